//! One place of the load: a tunnel, or a stream in one, with one request at a time.

use super::args::{Lifetime, LoadArgs, Speak};
use super::echo::Echo;
use super::h2c::{Calls, H2c, Shared};
use super::http1::{self, Http1};
use super::lane::{Failure, Lane, Lanes};
use super::pace::Pace;
use super::recorder::Recorder;
use anyhow::{Result, ensure};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// Pause after a failure, so that a proxy that is down is not asked as fast as it refuses.
const PAUSE: Duration = Duration::from_millis(20);

/// What all places share.
pub struct Worker {
    lanes: Lanes,
    common: Arc<Common>,
}

struct Common {
    targets: Vec<String>,
    lifetime: Lifetime,
    say: Say,
    recorder: Arc<Recorder>,
    pace: Arc<Pace>,
    /// Between the starts of two places: connections come up one after the other, within the first half of the
    /// warm-up.
    ramp: Duration,
}

/// Prepared requests.
enum Say {
    Http1(Arc<[Bytes]>),
    H2c(Arc<Calls>),
    Echo(Bytes),
}

/// Where a place sends its requests.
enum Way {
    /// A tunnel of its own.
    Own { lane: Lane, index: usize },
    /// A connection that it shares.
    Shared(Arc<Shared>),
}

/// What it sends them on, while that is open.
enum Wire {
    Http1(Http1),
    H2c(H2c),
    Echo(Echo),
}

impl Worker {
    /// By the arguments.
    pub fn new(
        args: &LoadArgs,
        targets: Vec<String>,
        recorder: Arc<Recorder>,
        pace: Arc<Pace>,
    ) -> Result<Worker> {
        ensure!(args.streams == 1 || args.speak == Speak::H2c, "--streams is for h2c");
        ensure!(
            args.speak != Speak::H2c || args.lifetime == Lifetime::Keep,
            "h2c connections are kept"
        );
        let say = match args.speak {
            Speak::Http1 => Say::Http1(http1::requests(args.request_bytes, args.response_bytes)),
            Speak::H2c => Say::H2c(Arc::new(Calls::new(args.request_bytes, args.response_bytes))),
            Speak::Echo => Say::Echo(vec![b'x'; args.request_bytes.max(1)].into()),
        };
        let places = args.connections * args.tunnels * args.streams;
        let ramp = args.warm_up / 2 / u32::try_from(places.max(1))?;
        Ok(Worker {
            lanes: Lanes::new(&args.certs(), args.waypoint, &args.expect)?,
            common: Arc::new(Common {
                targets,
                lifetime: args.lifetime,
                say,
                recorder,
                pace,
                ramp,
            }),
        })
    }

    /// Starts all places.
    pub fn spawn_all(&self, args: &LoadArgs, workers: &mut JoinSet<()>) -> Result<()> {
        let mut index = 0;
        for _ in 0..args.connections {
            let lane = self.lanes.lane();
            for _ in 0..args.tunnels {
                if args.speak == Speak::H2c {
                    let authority = self.common.target(index).to_owned();
                    let shared = Arc::new(Shared::new(lane.clone(), authority));
                    for _ in 0..args.streams {
                        let way = Way::Shared(Arc::clone(&shared));
                        workers.spawn(Arc::clone(&self.common).run(way, index));
                        index += 1;
                    }
                    continue;
                }
                let lane = match args.lifetime {
                    Lifetime::Keep | Lifetime::Churn => lane.clone(),
                    Lifetime::Reconnect => self.lanes.lane(),
                };
                workers.spawn(Arc::clone(&self.common).run(Way::Own { lane, index }, index));
                index += 1;
            }
        }
        Ok(())
    }
}

impl Common {
    fn target(&self, index: usize) -> &str {
        self.targets.get(index % self.targets.len().max(1)).map_or("", String::as_str)
    }

    /// One request after the other until there are no more.
    async fn run(self: Arc<Self>, mut way: Way, first: usize) {
        tokio::time::sleep(self.ramp * u32::try_from(first).unwrap_or(0)).await;
        let mut wire = None;
        let mut broken = None;
        while self.recorder.admits() {
            let Some(due) = self.pace.next().await else { return };
            let mut open = match wire.take() {
                Some(open) => open,
                None => match self.open(&mut way, broken, first).await {
                    Ok(open) => open,
                    Err(failure) => {
                        self.failed(&failure).await;
                        continue;
                    }
                },
            };
            match open.exchange().await {
                Ok(()) => self.recorder.succeed(due),
                Err(failure) => {
                    broken = open.generation();
                    self.failed(&failure).await;
                    continue;
                }
            }
            match self.lifetime {
                Lifetime::Keep => wire = Some(open),
                Lifetime::Churn => open.close().await,
                Lifetime::Reconnect => {
                    drop(open);
                    way.close();
                }
            }
        }
    }

    async fn failed(&self, failure: &Failure) {
        self.recorder.fail(failure);
        tokio::time::sleep(PAUSE).await;
    }

    async fn open(
        &self,
        way: &mut Way,
        broken: Option<u64>,
        first: usize,
    ) -> Result<Wire, Failure> {
        match (way, &self.say) {
            (Way::Own { lane, index }, say) => {
                let stream = lane.open(self.target(*index)).await?;
                if self.lifetime != Lifetime::Keep {
                    *index += 1;
                }
                Ok(match say {
                    Say::Http1(requests) => {
                        Wire::Http1(Http1::new(stream, Arc::clone(requests), *index))
                    }
                    Say::Echo(payload) => Wire::Echo(Echo::new(stream, payload.clone())),
                    Say::H2c(_) => return Err(Failure::new("h2c tunnels are shared")),
                })
            }
            (Way::Shared(shared), Say::H2c(calls)) => {
                Ok(Wire::H2c(shared.caller(broken, calls, first).await?))
            }
            (Way::Shared(_), _) => Err(Failure::new("only h2c tunnels are shared")),
        }
    }
}

impl Way {
    fn close(&self) {
        if let Way::Own { lane, .. } = self {
            lane.close();
        }
    }
}

impl Wire {
    async fn exchange(&mut self) -> Result<(), Failure> {
        match self {
            Wire::Http1(wire) => wire.exchange().await,
            Wire::H2c(wire) => wire.exchange().await,
            Wire::Echo(wire) => wire.exchange().await,
        }
    }

    fn generation(&self) -> Option<u64> {
        match self {
            Wire::H2c(wire) => Some(wire.generation()),
            Wire::Http1(_) | Wire::Echo(_) => None,
        }
    }

    async fn close(self) {
        match self {
            Wire::Http1(wire) => wire.close().await,
            Wire::Echo(wire) => wire.close().await,
            Wire::H2c(_) => {}
        }
    }
}

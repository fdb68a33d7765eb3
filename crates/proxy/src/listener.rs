//! Accepting HBONE connections, and ending them without losing a request.

use crate::counters::Raised;
use crate::instance::MeshInstance;
use crate::tunnel;
use crate::workers::{Shared, Workers};
use cairn_hbone::{Drain, DrainWatch, Terminator};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;
/// Pause after an accept failed, for example because no file descriptor was left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long the end of a drain waits for what is told to collectors.
const FLUSH: Duration = Duration::from_secs(2);
/// How often idle upstream connections are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The address could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address} for mesh {mesh}: {source}; is the port taken, or the address not of this machine?"
)]
pub struct ListenError {
    /// The address.
    pub address: SocketAddr,
    /// The mesh.
    pub mesh: String,
    /// What the system said.
    pub source: io::Error,
}

/// A mesh that is being served. Dropping it stops accepting and leaves open connections alone.
pub struct Running {
    /// Where it listens: with port 0 in the configuration, the port that was given.
    pub local_addr: SocketAddr,
    instance: Arc<MeshInstance>,
    drain: Drain,
    tasks: TaskTracker,
    stop: parking_lot::Mutex<Option<oneshot::Sender<()>>>,
    cut: tokio_util::sync::CancellationToken,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections and tunnels that were still open at the limit, and were cut.
    pub cut: usize,
}

/// Serves `instance` on `workers`, from the moment this returns.
pub async fn listen(
    instance: Arc<MeshInstance>,
    workers: &Workers,
) -> Result<Running, ListenError> {
    let address = instance.listen();
    let failed = |source| ListenError { address, mesh: instance.name().to_owned(), source };
    let shared = Arc::clone(workers.shared());
    instance.prepare(shared.len());
    let listener = bind(address).map_err(failed)?;
    let local_addr = listener.local_addr().map_err(failed)?;
    let listener = listener.into_std().map_err(failed)?;
    let (stop, stopped) = oneshot::channel();
    let running = Running {
        local_addr,
        instance: Arc::clone(&instance),
        drain: Drain::new(),
        tasks: TaskTracker::new(),
        stop: parking_lot::Mutex::new(Some(stop)),
        cut: tokio_util::sync::CancellationToken::new(),
    };
    let acceptor = Acceptor {
        terminator: Arc::new(Terminator::new(
            instance.identity().clone(),
            instance.limits().terminator.clone(),
            Arc::clone(instance.terminator_counters()),
        )),
        instance: Arc::clone(&instance),
        shared: Arc::clone(&shared),
        drain: running.drain.watch(),
        tasks: running.tasks.clone(),
        cut: running.cut.clone(),
    };
    let cut = running.cut.clone();
    instance.export_logs(|task| shared.spawn_on(0, task));
    shared.spawn_on(0, async move {
        let Ok(listener) = TcpListener::from_std(listener) else {
            return;
        };
        tokio::select! {
            () = acceptor.run(listener) => {}
            _ = stopped => {}
        }
    });
    shared.spawn_on(0, async move {
        let mut tick = tokio::time::interval(SWEEP_INTERVAL);
        while !cut.is_cancelled() {
            tick.tick().await;
            instance.sweep();
        }
    });
    Ok(running)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[derive(Clone)]
struct Acceptor {
    terminator: Arc<Terminator>,
    instance: Arc<MeshInstance>,
    shared: Arc<Shared>,
    drain: DrainWatch,
    tasks: TaskTracker,
    cut: tokio_util::sync::CancellationToken,
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((tcp, peer)) => self.admit(tcp, peer),
                Err(error) => {
                    tracing::warn!(mesh = self.instance.name(), %error, "accepting a connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, tcp: TcpStream, peer: SocketAddr) {
        let counters = self.instance.counters();
        if counters.connections.get() >= self.instance.limits().max_connections as u64 {
            counters.connections_shed.add_one();
            return;
        }
        let open = Raised::new(Arc::clone(counters), |counters| &counters.connections);
        let Ok(tcp) = tcp.into_std() else {
            return;
        };
        let seat = self.shared.seat();
        let (this, worker) = (self.clone(), seat.worker);
        let connection = async move {
            if let Ok(tcp) = TcpStream::from_std(tcp) {
                this.serve(tcp, peer, worker).await;
            }
            drop((seat, open));
        };
        self.shared.spawn_on(worker, self.tasks.track_future(connection));
    }

    async fn serve(&self, tcp: TcpStream, peer: SocketAddr, worker: usize) {
        let served = self.terminator.serve(tcp, peer, self.drain.clone(), |connect| {
            let place = self.shared.place(worker);
            let door = tunnel::Door {
                instance: &self.instance,
                engine: &self.shared.engine,
                drain: &self.drain,
                worker: place,
            };
            if let Some(task) = door.open(connect) {
                let cut = self.cut.clone();
                let task = async move {
                    tokio::select! {
                        () = task => {}
                        () = cut.cancelled() => {}
                    }
                };
                self.shared.spawn_on(place, self.tasks.track_future(task));
            }
        });
        tokio::select! {
            served = served => {
                if let Err(error) = served {
                    tracing::debug!(mesh = self.instance.name(), %peer, %error, "connection ended");
                }
            }
            () = self.cut.cancelled() => {}
        }
    }
}

impl Running {
    /// The instance that is served.
    pub fn instance(&self) -> &Arc<MeshInstance> {
        &self.instance
    }

    /// Stops accepting, tells clients (GOAWAY in two steps), lets what is in flight finish for up to `limit`,
    /// and cuts the rest.
    pub async fn drain(&self, limit: Duration) -> Drained {
        let drained = self.finish(limit).await;
        // The last requests are told of, too.
        self.instance.flush_exports(FLUSH).await;
        drained
    }

    async fn finish(&self, limit: Duration) -> Drained {
        drop(self.stop.lock().take());
        self.drain.start();
        self.tasks.close();
        if tokio::time::timeout(limit, self.tasks.wait()).await.is_ok() {
            return Drained { cut: 0 };
        }
        let cut = self.tasks.len();
        self.cut.cancel();
        let _gone_with_the_process =
            tokio::time::timeout(Duration::from_secs(1), self.tasks.wait()).await;
        Drained { cut }
    }
}

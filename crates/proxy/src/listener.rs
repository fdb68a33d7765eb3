//! Accepting HBONE connections.

use crate::counters::Raised;
use crate::instance::MeshInstance;
use crate::tunnel;
use crate::workers::{Shared, Workers};
use cairn_hbone::{Drain, DrainWatch, Terminator};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;
/// Pause after an accept failed, for example because no file descriptor was left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// By how much an age differs from the configured one at most, in parts of it.
const JITTER: f64 = 0.2;

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
    pub(crate) instance: Arc<MeshInstance>,
    pub(crate) drain: Drain,
    /// Connections and tunnels.
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: parking_lot::Mutex<Option<oneshot::Sender<()>>>,
    /// Cuts what is left, tunnels as well as connections.
    pub(crate) cut: CancellationToken,
    /// The drain is over.
    pub(crate) over: CancellationToken,
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
        cut: CancellationToken::new(),
        over: CancellationToken::new(),
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
    let over = running.over.clone();
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
    let sweep = sweep(Arc::downgrade(&instance), instance.sweep_interval());
    shared.spawn_on(0, async move {
        tokio::select! {
            () = sweep => {}
            () = over.cancelled() => {}
        }
    });
    Ok(running)
}

/// Looks after idle connections for as long as the instance is there.
async fn sweep(instance: Weak<MeshInstance>, interval: Duration) {
    let mut tick = tokio::time::interval(interval);
    loop {
        tick.tick().await;
        match instance.upgrade() {
            Some(instance) => instance.sweep(),
            None => return,
        }
    }
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
    cut: CancellationToken,
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
        let on_connect = |connect| {
            let place = self.shared.place(worker);
            let door = tunnel::Door {
                instance: &self.instance,
                engine: &self.shared.engine,
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
        };
        let drain = self.drain.child();
        let served = self.terminator.serve(tcp, peer, drain.watch(), on_connect);
        let aged = async {
            self.aged().await;
            self.instance.counters().connections_aged.add_one();
            drain.start();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            served = served => {
                if let Err(error) = served {
                    tracing::debug!(mesh = self.instance.name(), %peer, %error, "connection ended");
                }
            }
            () = aged => {}
            () = self.cut.cancelled() => {}
        }
    }

    /// Resolves when a connection that begins is too old.
    async fn aged(&self) {
        match self.instance.limits().max_hbone_age {
            Some(age) => {
                let part = 1.0 + JITTER * rand::random_range(-1.0..=1.0);
                tokio::time::sleep(age.mul_f64(part)).await;
            }
            None => std::future::pending().await,
        }
    }
}

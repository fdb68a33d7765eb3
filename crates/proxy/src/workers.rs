//! The threads that traffic runs on: one single-threaded runtime each.
//!
//! A tunnel's task runs where its connection's HTTP/2 driver runs, so that what they
//! say to each other is batched and no lock is contended.
//! [`Placement::Spread`] is for few connections that are each too hot for one core.

use crate::engine::Engine;
use crate::load::Delays;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Where a tunnel's task runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Placement {
    /// On the thread of its connection.
    #[default]
    Local,
    /// On all threads in turn.
    Spread,
}

/// Threads that serve connections. Dropping it ends them.
pub struct Workers {
    shared: Arc<Shared>,
    _stops: Vec<oneshot::Sender<()>>,
}

pub(crate) struct Shared {
    pub(crate) engine: Arc<Engine>,
    placement: Placement,
    workers: Vec<Worker>,
    next: AtomicUsize,
}

struct Worker {
    handle: Handle,
    connections: Arc<AtomicUsize>,
}

/// A connection's place on a worker; counted until it is dropped.
pub(crate) struct Seat {
    pub(crate) worker: usize,
    connections: Arc<AtomicUsize>,
}

impl Workers {
    /// Starts `threads` threads, at least one.
    pub fn start(threads: usize, placement: Placement) -> io::Result<Workers> {
        let engine = Engine::start()?;
        let mut workers = Vec::new();
        let mut stops = Vec::new();
        for number in 0..threads.max(1) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            workers.push(Worker { handle: runtime.handle().clone(), connections: Arc::default() });
            let (stop, stopped) = oneshot::channel::<()>();
            stops.push(stop);
            std::thread::Builder::new().name(format!("cairn-worker-{number}")).spawn(
                move || {
                    let _dropped_is_stopped = runtime.block_on(stopped);
                    runtime.shutdown_background();
                },
            )?;
        }
        Ok(Workers {
            shared: Arc::new(Shared { engine, placement, workers, next: AtomicUsize::new(0) }),
            _stops: stops,
        })
    }

    /// Number of threads.
    pub fn len(&self) -> usize {
        self.shared.workers.len()
    }

    /// Never: there is at least one.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Measures how late tasks run on them.
    pub fn delays(&self) -> Delays {
        Delays::new(Arc::clone(&self.shared))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Shared {
    pub(crate) fn len(&self) -> usize {
        self.workers.len()
    }

    /// A place on the worker with the fewest connections: they live long, so chance would be lopsided.
    pub(crate) fn seat(&self) -> Seat {
        let least = self
            .workers
            .iter()
            .enumerate()
            .min_by_key(|(_, worker)| worker.connections.load(Ordering::Relaxed))
            .map_or(0, |(number, _)| number);
        let connections = Arc::clone(&self.workers[least].connections);
        connections.fetch_add(1, Ordering::Relaxed);
        Seat { worker: least, connections }
    }

    /// Runs `task` on a worker.
    pub(crate) fn spawn_on(&self, worker: usize, task: impl Future<Output = ()> + Send + 'static) {
        self.workers[worker % self.workers.len()].handle.spawn(task);
    }

    /// Which worker a tunnel of a connection on `home` runs on.
    pub(crate) fn place(&self, home: usize) -> usize {
        match self.placement {
            Placement::Local => home,
            Placement::Spread => self.next.fetch_add(1, Ordering::Relaxed) % self.workers.len(),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

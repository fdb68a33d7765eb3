//! How much work there is: what is under way and for how long it was, by tenant; what waits; how
//! late tasks run.
//!
//! A tenant is a namespace of destinations of one mesh. What a request costs here is two clock reads
//! and a few additions to a place that its worker has for itself ([`cell`]): no lock, and nothing is
//! allocated. A tunnel looks its tenant up once ([`tenants`]).

mod cell;
mod delay;
mod tenants;

pub use cell::{Reading, Totals};
pub use delay::{DelaySummary, Delays};
pub use tenants::{TENANTS, TenantReading};
pub(crate) use tenants::{Tenant, Tenants, Underway};

pub(crate) use cell::{Cell, Clock, REQUEST, STREAM};

use crate::overload::{Overload, OverloadConfig};
use std::sync::Arc;
use std::time::Instant;

/// Counts one request of a known tenant, from its begin to its end, each time that it is called: for
/// benchmarks and tests.
#[doc(hidden)]
pub fn bench_request() -> impl Fn() + Send + Sync {
    bench_requests(1).remove(0)
}

/// As [`bench_request`] on so many workers, for the same tenant.
#[doc(hidden)]
pub fn bench_requests(workers: usize) -> Vec<Box<dyn Fn() + Send + Sync>> {
    let load = Arc::new(Load::new());
    let tenant = load.tenants.of(&"bench".into(), workers);
    let count = |worker| {
        let (load, tenant) = (Arc::clone(&load), Arc::clone(&tenant));
        Box::new(move || {
            let underway = load.begin(&tenant, worker, REQUEST);
            tenant.add_bytes(worker, 2048);
            drop(underway);
        }) as Box<dyn Fn() + Send + Sync>
    };
    (0..workers).map(count).collect()
}

/// As [`bench_requests`], where each also takes room of the tenant's share, and there is enough of it.
#[doc(hidden)]
pub fn bench_requests_admitted(workers: usize) -> Vec<Box<dyn Fn() + Send + Sync>> {
    let load = Arc::new(Load::new());
    load.tenants.set_overload(Overload::new(OverloadConfig::new(1000)));
    let tenant = load.tenants.of(&"bench".into(), workers);
    let count = |worker| {
        let (load, tenant) = (Arc::clone(&load), Arc::clone(&tenant));
        Box::new(move || {
            let taken = tenant.share().is_some_and(|share| share.take(REQUEST));
            let underway = load.begin(&tenant, worker, REQUEST);
            tenant.add_bytes(worker, 2048);
            drop(if taken { underway.admitted() } else { underway });
        }) as Box<dyn Fn() + Send + Sync>
    };
    (0..workers).map(count).collect()
}

/// What waits for something inside the proxy, each with the time it has waited.
#[derive(Debug)]
pub(crate) struct Waits {
    clock: Clock,
    /// For room in a cluster's connections (circuit breakers).
    pub(crate) connection: Cell,
    /// For an endpoint whose identity is known.
    pub(crate) endpoint: Cell,
    /// For room in the process.
    pub(crate) room: Cell,
}

/// A wait; counted until it is dropped.
pub(crate) struct Waiting<'a> {
    clock: Clock,
    cell: &'a Cell,
}

impl Waits {
    fn begin<'a>(&'a self, cell: &'a Cell) -> Waiting<'a> {
        cell.begin(self.clock.now(), REQUEST);
        Waiting { clock: self.clock, cell }
    }

    pub(crate) fn for_connection(&self) -> Waiting<'_> {
        self.begin(&self.connection)
    }

    pub(crate) fn for_endpoint(&self) -> Waiting<'_> {
        self.begin(&self.endpoint)
    }

    pub(crate) fn for_room(&self) -> Waiting<'_> {
        self.begin(&self.room)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.cell.end(self.clock.now(), REQUEST);
        self.cell.count_ended();
    }
}

/// The load of one instance.
#[derive(Debug)]
pub(crate) struct Load {
    clock: Clock,
    pub(crate) tenants: Tenants,
    pub(crate) waits: Waits,
}

/// What one instance has under way and has done, read at one moment.
#[derive(Debug, Clone)]
pub struct LoadReading {
    clock: Clock,
    /// By tenant, in no order.
    pub tenants: Vec<TenantReading>,
    /// Of tenants beyond [`TENANTS`], and of those that are gone.
    pub other: Reading,
    /// Waits for room in a cluster's connections; `requests` counts those that are over.
    pub connection_waits: Reading,
    /// Waits for an endpoint whose identity is known.
    pub endpoint_waits: Reading,
    /// Waits for room in the process.
    pub room_waits: Reading,
}

impl Load {
    pub(crate) fn new() -> Self {
        let clock = Clock::start();
        Load {
            clock,
            tenants: Tenants::new(clock),
            waits: Waits {
                clock,
                connection: Cell::default(),
                endpoint: Cell::default(),
                room: Cell::default(),
            },
        }
    }

    pub(crate) fn read(&self) -> LoadReading {
        let (tenants, other) = self.tenants.read();
        LoadReading {
            clock: self.clock,
            tenants,
            other,
            connection_waits: self.waits.connection.read(),
            endpoint_waits: self.waits.endpoint.read(),
            room_waits: self.waits.room.read(),
        }
    }

    /// Counts something of a tenant as under way on `worker`.
    pub(crate) fn begin(&self, tenant: &Arc<Tenant>, worker: usize, weight: u64) -> Underway {
        Underway::begin(Arc::clone(tenant), worker, weight)
    }
}

impl LoadReading {
    /// What `reading`, which is a part of this, comes to at `moment`, which is after it was made.
    pub fn totals(&self, reading: &Reading, moment: Instant) -> Totals {
        reading.at(self.clock.ticks(moment))
    }

    /// All tenants together.
    pub fn sum(&self) -> Reading {
        self.tenants.iter().fold(self.other, |sum, tenant| sum.plus(&tenant.reading))
    }
}

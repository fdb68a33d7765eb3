//! The tenants of an instance. Their number is bounded; those beyond share one place.

use super::cell::{Cell, Clock, REQUEST, Reading, STREAM};
use crate::overload::{Overload, Share};
use ahash::HashMap;
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock};

/// Tenants of one mesh that are kept apart. When there are more, those without tunnels make room.
pub const TENANTS: usize = 1_000;
/// Places of one tenant; workers beyond share them.
const MOST_CELLS: usize = 16;

/// One tenant.
#[derive(Debug)]
pub(crate) struct Tenant {
    clock: Clock,
    cells: Box<[Cell]>,
    /// What it may have of the process, where that is bounded.
    share: Option<Arc<Share>>,
}

/// What one tenant has under way and has done.
#[derive(Debug, Clone)]
pub struct TenantReading {
    /// Namespace of the destinations.
    pub namespace: Arc<str>,
    /// Its numbers.
    pub reading: Reading,
}

/// All tenants of an instance.
#[derive(Debug)]
pub(crate) struct Tenants {
    clock: Clock,
    known: Mutex<Known>,
    overload: OnceLock<Arc<Overload>>,
}

#[derive(Debug, Default)]
struct Known {
    by_namespace: HashMap<Arc<str>, Arc<Tenant>>,
    other: Option<Arc<Tenant>>,
    /// What tenants that made room have done.
    gone: Reading,
}

/// Something of a tenant that is under way; counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Underway {
    tenant: Arc<Tenant>,
    worker: usize,
    weight: u64,
    request: bool,
    /// It has room of the tenant's share.
    admitted: bool,
}

impl Tenant {
    fn new(clock: Clock, workers: usize, share: Option<Arc<Share>>) -> Arc<Self> {
        let cells = (0..workers.clamp(1, MOST_CELLS)).map(|_| Cell::default()).collect();
        Arc::new(Tenant { clock, cells, share })
    }

    fn cell(&self, worker: usize) -> &Cell {
        &self.cells[worker % self.cells.len()]
    }

    fn read(&self) -> Reading {
        self.cells.iter().fold(Reading::default(), |sum, cell| sum.plus(&cell.read()))
    }

    /// What it may have of the process; `None`: that is not bounded.
    pub(crate) fn share(&self) -> Option<&Arc<Share>> {
        self.share.as_ref()
    }

    /// Something was refused for lack of room.
    pub(crate) fn count_shed(&self, worker: usize) {
        self.cell(worker).count_shed();
    }

    /// Bytes have passed, whichever way.
    pub(crate) fn add_bytes(&self, worker: usize, bytes: u64) {
        self.cell(worker).add_bytes(bytes);
    }
}

impl Tenants {
    pub(crate) fn new(clock: Clock) -> Self {
        Tenants { clock, known: Mutex::default(), overload: OnceLock::new() }
    }

    /// Tenants that come from here on have a share of this. The first one that is set stays.
    pub(crate) fn set_overload(&self, overload: Arc<Overload>) {
        let _first_stays = self.overload.set(overload);
    }

    pub(crate) fn overload(&self) -> Option<&Arc<Overload>> {
        self.overload.get()
    }

    fn make(&self, workers: usize) -> Arc<Tenant> {
        Tenant::new(self.clock, workers, self.overload().map(Overload::share))
    }

    /// The tenant of a namespace; for a tunnel, not for a request.
    pub(crate) fn of(&self, namespace: &Arc<str>, workers: usize) -> Arc<Tenant> {
        let mut known = self.known.lock();
        if let Some(tenant) = known.by_namespace.get(namespace) {
            return Arc::clone(tenant);
        }
        if known.by_namespace.len() >= TENANTS {
            known.make_room();
        }
        if known.by_namespace.len() >= TENANTS {
            let other = known.other.get_or_insert_with(|| self.make(workers));
            return Arc::clone(other);
        }
        let tenant = self.make(workers);
        known.by_namespace.insert(Arc::clone(namespace), Arc::clone(&tenant));
        tenant
    }

    /// One that is not in any report: what the proxy does for itself.
    pub(crate) fn nobody(&self) -> Arc<Tenant> {
        Tenant::new(self.clock, 1, None)
    }

    /// Each tenant, and all others.
    pub(crate) fn read(&self) -> (Vec<TenantReading>, Reading) {
        let (tenants, other) = {
            let known = self.known.lock();
            let tenants: Vec<_> = known
                .by_namespace
                .iter()
                .map(|(namespace, tenant)| (Arc::clone(namespace), Arc::clone(tenant)))
                .collect();
            let other = known.other.as_ref().map_or_else(Reading::default, |other| other.read());
            (tenants, known.gone.plus(&other))
        };
        let tenants = tenants
            .into_iter()
            .map(|(namespace, tenant)| TenantReading { namespace, reading: tenant.read() })
            .collect();
        (tenants, other)
    }
}

impl Known {
    /// Forgets tenants that nothing refers to; what they have done is kept in one sum.
    fn make_room(&mut self) {
        let Known { by_namespace, other: _, gone } = self;
        by_namespace.retain(|_, tenant| {
            // Only here are references handed out, so nobody can take one now.
            if Arc::strong_count(tenant) > 1 {
                return true;
            }
            let reading = tenant.read();
            if reading.is_idle() {
                *gone = gone.plus(&reading);
            }
            !reading.is_idle()
        });
    }
}

impl Underway {
    pub(crate) fn begin(tenant: Arc<Tenant>, worker: usize, weight: u64) -> Self {
        tenant.cell(worker).begin(tenant.clock.now(), weight);
        Underway { tenant, worker, weight, request: weight == REQUEST, admitted: false }
    }

    /// It has taken so much room of the tenant's share, which its end gives back.
    pub(crate) fn admitted(mut self) -> Self {
        self.admitted = true;
        self
    }

    fn give_back(&self, weight: u64) {
        if self.admitted
            && let Some(share) = self.tenant.share()
        {
            share.release(weight);
        }
    }

    /// A request has become a stream of bytes (101): it weighs as an opaque connection from here on.
    pub(crate) fn became_stream(&mut self) {
        if self.weight == REQUEST {
            self.tenant.cell(self.worker).end(self.tenant.clock.now(), REQUEST - STREAM);
            self.weight = STREAM;
            self.give_back(REQUEST - STREAM);
        }
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        let cell = self.tenant.cell(self.worker);
        cell.end(self.tenant.clock.now(), self.weight);
        if self.request {
            cell.count_ended();
        }
        self.give_back(self.weight);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tenants() -> Tenants {
        Tenants::new(Clock::start())
    }

    fn find(tenants: &Tenants, namespace: &str) -> Option<Reading> {
        let (all, _) = tenants.read();
        all.into_iter().find(|one| *one.namespace == *namespace).map(|one| one.reading)
    }

    #[test]
    fn each_tenant_has_its_own_numbers() {
        let all = tenants();
        let (shop, bank) = (all.of(&"shop".into(), 2), all.of(&"bank".into(), 2));
        let first = Underway::begin(Arc::clone(&shop), 0, REQUEST);
        let second = Underway::begin(Arc::clone(&shop), 1, REQUEST);
        let stream = Underway::begin(Arc::clone(&bank), 7, STREAM);
        bank.count_shed(0);
        bank.add_bytes(1, 10);
        let totals = |namespace| find(&all, namespace).unwrap().at(0);
        assert_eq!((totals("shop").in_flight, totals("bank").in_flight), (2.0, 0.1));
        drop((first, stream));
        assert_eq!((totals("shop").in_flight, totals("shop").requests), (1.0, 1));
        assert_eq!(
            (totals("bank").requests, totals("bank").shed, totals("bank").bytes),
            (0, 1, 10)
        );
        drop(second);
        assert!(Arc::ptr_eq(&shop, &all.of(&"shop".into(), 2)));
    }

    #[test]
    fn tenants_beyond_the_bound_share_a_place_until_there_is_room() {
        let all = tenants();
        let held: Vec<_> =
            (0..TENANTS).map(|number| all.of(&format!("ns-{number}").into(), 1)).collect();
        let late = all.of(&"late".into(), 1);
        let later = all.of(&"later".into(), 1);
        assert!(Arc::ptr_eq(&late, &later));
        let request = Underway::begin(late, 0, REQUEST);
        assert!(find(&all, "late").is_none());
        assert_eq!(all.read().1.at(0).in_flight, 1.0);
        drop(request);
        held.first().unwrap().add_bytes(0, 5);
        drop(held);
        let _late = all.of(&"late".into(), 1);
        assert!(find(&all, "late").is_some() && find(&all, "ns-0").is_none());
        let other = all.read().1.at(0);
        assert_eq!((other.requests, other.bytes), (1, 5), "nothing that was done is forgotten");
    }
}

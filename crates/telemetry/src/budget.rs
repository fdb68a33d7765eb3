//! How many series there may be, and who may have how many of them.
//!
//! A tenant has at most its share. Of all places the last quarter is kept for tenants that have few series, so that
//! several tenants with full shares leave room for the others.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Part of all places that is kept for tenants with few series.
const KEPT: usize = 4;
/// A tenant with less than this part of all places has few.
const FEW: usize = 64;

/// Bounds shared by all families.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    tenant_limit: usize,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    all: usize,
    /// By tenant; those without a series have no entry.
    tenants: HashMap<Arc<str>, usize>,
}

impl Budget {
    pub(crate) fn new(limit: usize, tenant_limit: usize) -> Self {
        Budget { limit, tenant_limit: tenant_limit.min(limit), used: Mutex::default() }
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn tenant_limit(&self) -> usize {
        self.tenant_limit
    }

    /// A place for a series of this tenant, with the tenant's name as it is kept; `None`: there is none for it.
    pub(crate) fn take(&self, tenant: &str) -> Option<Arc<str>> {
        let mut used = self.used.lock();
        let Used { all, tenants } = &mut *used;
        let has = tenants.get(tenant).copied().unwrap_or(0);
        let kept = if self.tenant_limit < self.limit { self.limit / KEPT } else { 0 };
        let few = (self.limit / FEW).max(1);
        let room = if has < few { self.limit } else { self.limit - kept };
        if *all >= room || has >= self.tenant_limit {
            return None;
        }
        *all += 1;
        let name = match tenants.get_key_value(tenant) {
            Some((name, _)) => Arc::clone(name),
            None => tenant.into(),
        };
        *tenants.entry(Arc::clone(&name)).or_default() += 1;
        Some(name)
    }

    /// Gives a place back.
    pub(crate) fn give(&self, tenant: &str) {
        let mut used = self.used.lock();
        used.all = used.all.saturating_sub(1);
        if let Some(has) = used.tenants.get_mut(tenant) {
            *has -= 1;
            if *has == 0 {
                used.tenants.remove(tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(budget: &Budget, tenant: &str) -> usize {
        std::iter::from_fn(|| budget.take(tenant)).take(1_000).count()
    }

    #[test]
    fn without_shares_one_tenant_may_have_all() {
        assert_eq!(fill(&Budget::new(100, 100), "a"), 100);
        assert_eq!(fill(&Budget::new(3, 100), "a"), 3);
        assert_eq!(fill(&Budget::new(0, 0), "a"), 0);
    }

    #[test]
    fn greedy_tenants_leave_room_for_modest_ones() {
        let budget = Budget::new(640, 320);
        assert_eq!(fill(&budget, "a"), 320, "its share");
        assert_eq!(fill(&budget, "b"), 160, "what is not kept");
        let modest: Vec<usize> = (0..20).map(|i| fill(&budget, &i.to_string())).collect();
        assert_eq!(modest.iter().sum::<usize>(), 160);
        assert!(modest.iter().take(16).all(|got| *got == 10), "{modest:?}");
    }

    #[test]
    fn places_come_back() {
        let budget = Budget::new(4, 2);
        assert_eq!(fill(&budget, "a"), 2);
        assert_eq!(budget.take("a"), None);
        budget.give("a");
        assert!(budget.take("a").is_some());
        budget.give("a");
        budget.give("a");
        assert!(budget.used.lock().tenants.is_empty());
        assert_eq!(budget.used.lock().all, 0);
    }
}

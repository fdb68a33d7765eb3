//! Which tenants get a row of their own: those that had most in flight in the last seconds.

use super::Look;
use cairn_autoscale::TenantLoad;
use cairn_proxy::Reading;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// What tenants had done some seconds ago.
#[derive(Default)]
pub struct Recent {
    /// Integrals of what was in flight, in seconds, by mesh and namespace, of 5 to 10 s ago.
    before: HashMap<(usize, Arc<str>), f64>,
    /// Those of up to 5 s ago.
    last: HashMap<(usize, Arc<str>), f64>,
}

/// Meshes of one process differ in where they are.
fn key(look: &Look, namespace: &Arc<str>) -> (usize, Arc<str>) {
    (Arc::as_ptr(&look.instance).addr(), Arc::clone(namespace))
}

impl Recent {
    /// Takes in what there is at `moment`.
    pub fn remember(&mut self, looks: &[Look], moment: Instant) {
        let integrals = looks.iter().flat_map(|look| {
            look.load.tenants.iter().map(move |tenant| {
                let totals = look.load.totals(&tenant.reading, moment);
                (key(look, &tenant.namespace), totals.in_flight_seconds)
            })
        });
        self.before = std::mem::replace(&mut self.last, integrals.collect());
    }

    /// Rows of all tenants, those with the most in flight lately first; names decide where it is the same.
    pub fn busiest(&self, looks: &[Look], moment: Instant) -> Vec<TenantLoad> {
        let mut rows: Vec<(f64, TenantLoad)> = Vec::new();
        for look in looks {
            for tenant in &look.load.tenants {
                let row = row(look, &tenant.namespace, &tenant.reading, moment);
                let before = self.before.get(&key(look, &tenant.namespace)).copied();
                let lately = row.in_flight_seconds_total - before.unwrap_or_default();
                rows.push((lately, row));
            }
        }
        rows.sort_by(|(a, first), (b, second)| {
            b.total_cmp(a).then_with(|| {
                (&first.mesh, &first.namespace).cmp(&(&second.mesh, &second.namespace))
            })
        });
        rows.into_iter().map(|(_, row)| row).collect()
    }
}

/// One row.
pub fn row(look: &Look, namespace: &str, reading: &Reading, moment: Instant) -> TenantLoad {
    let totals = look.load.totals(reading, moment);
    TenantLoad {
        mesh: look.instance.name().to_owned(),
        namespace: namespace.to_owned(),
        in_flight: totals.in_flight,
        in_flight_seconds_total: totals.in_flight_seconds,
        requests_total: totals.requests,
        shed_total: totals.shed,
        bytes_total: totals.bytes,
    }
}

/// Adds the numbers of one row to another.
pub fn add(sum: &mut TenantLoad, row: &TenantLoad) {
    let TenantLoad {
        mesh: _,
        namespace: _,
        in_flight,
        in_flight_seconds_total,
        requests_total,
        shed_total,
        bytes_total,
    } = row;
    sum.in_flight += in_flight;
    sum.in_flight_seconds_total += in_flight_seconds_total;
    sum.requests_total += requests_total;
    sum.shed_total += shed_total;
    sum.bytes_total += bytes_total;
}

//! The memberships that there are, for those who look.

use super::cluster::Parts;
use super::state::Status;
use parking_lot::Mutex;
use std::sync::Arc;

/// What readiness calls a cluster that is served.
pub const A_CLUSTER: &str = "a cluster";

/// The memberships that there are, for those who look.
#[derive(Default)]
pub struct Roster {
    all: Mutex<Vec<(Arc<Status>, Arc<Parts>)>>,
}

impl Roster {
    /// All of them, by name.
    pub fn all(&self) -> Vec<(Arc<Status>, Arc<Parts>)> {
        self.all.lock().clone()
    }

    /// From here on these are there.
    pub fn show(&self, all: Vec<(Arc<Status>, Arc<Parts>)>) {
        *self.all.lock() = all;
    }

    /// The membership of a cluster.
    pub fn of(&self, name: &str) -> Option<(Arc<Status>, Arc<Parts>)> {
        self.all.lock().iter().find(|(status, _)| status.name == name).cloned()
    }
}

//! What the registrar decides, apart from how it sees and acts.
//!
//! [`Judge`] says of each member whether it lives; [`Ledger`] what becomes of an entry in a cluster; [`weight`] and
//! [`shards`] what entries are to say. Each gets the time handed in, none asks anybody, and none keeps what could not be
//! found out again: who starts anew comes to the same end, only later.

pub mod entry;
pub mod guard;
pub mod judge;
pub mod ledger;
pub mod shards;
pub mod weight;

pub use entry::Entry;
pub use guard::Guard;
pub use judge::{
    Answer, Judge, MemberState, MemberView, PodFact, Probe, Removal, Round, Seen, View,
};
pub use ledger::{Ledger, Step, Why};
pub use weight::Weights;

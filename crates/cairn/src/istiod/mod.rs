//! One mesh as its istiod configures it: the exchange with istiod, the translation, the snapshots, and what a start
//! waits for.
//!
//! A waypoint's process has one of these, a member of a pool one for each cluster; they share nothing.
//!
//! ```text
//! istiod ─ control: AdsClient ─ feeder: Translator ─ publisher: Compiler ─ MeshInstance
//!             └ store ─ file, sibling                  └ resources, for those who look
//! ```

mod asked;
mod control;
mod feeder;
mod metrics;
mod publisher;
mod startup;

pub use control::{Before, Control, Exchange, NEEDED};
pub use feeder::Feeder;
pub use metrics::{Sources, answer_ages, envoy_stats};
pub use startup::{awaited, compare_addresses, configured, listen};

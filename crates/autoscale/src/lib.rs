//! How many instances a pool needs.
//!
//! An instance reports what its work costs it ([`LoadReport`]); a [`Fleet`] makes one figure of the
//! reports of all members, the [`Demand`]; an [`Autoscaler`] decides by its course how many members
//! there are to be. Time is a value that the caller gives, so that the same reports lead to the
//! same decisions, in a test as in a [simulation](simulate).
#![forbid(unsafe_code)]

pub mod decide;
pub mod fleet;
pub mod load;
pub mod mean;
pub mod simulate;
pub mod window;

pub use decide::{Autoscaler, Decision, Mode, Policy, PolicyError};
pub use fleet::{Answer, Demand, Fleet, MemberState, MemberView, TenantCaps};
pub use load::{
    Capacity, ColdStart, Connections, LoadReport, Queue, Queues, ReportError, Shed, TenantLoad,
};
pub use mean::FleetMean;

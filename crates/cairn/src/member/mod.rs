//! `cairn pool member`: one process that is a waypoint of many clusters.
//!
//! For each cluster of `pool.yaml` there is a [`Membership`]: a certificate of that cluster's CA, an exchange with its
//! istiod, a mesh of its own on a port of its own, and a registration by which that cluster's ztunnels find the port.
//! Nothing but threads, memory and the process' end is shared between two of them. What does not belong to a cluster is
//! in [`process`]: the file, the pages, signals, and the order in which everything ends.
//!
//! ```text
//! pool.yaml ─ settings ─ process ─┬─ cluster a: certificate → (siblings) → config → port → register … deregister → drain
//!                                 ├─ cluster b: …
//!                                 └─ pages, numbers, balance
//! ```
//!
//! [`Membership`]: cluster::Membership

mod args;
mod balance;
mod cluster;
mod leave;
mod node;
mod numbers;
mod pages;
mod process;
mod registration;
mod roster;
mod settings;
mod sibling;
mod start;
mod state;
mod stay;

pub use args::MemberArgs;
pub use process::run;

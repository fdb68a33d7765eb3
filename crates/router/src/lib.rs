//! The L7 router and policy engine as pure functions.
//!
//! Two layers: [`spec`] is plain data, what YAML and xDS both produce; [`model`] is what it
//! compiles to, one immutable [`model::Mesh`] per snapshot. [`compile::Compiler`] leads from one
//! to the other and keeps what did not change. No sockets, no protobuf, no clock: callers bring
//! addresses, requests and random numbers.
//!
//! `Mesh` → [`destination::Destination`] → filters ([`rbac`]) → [`route`] → [`cluster::Cluster`]
//! → [`endpoint::Endpoint`].
#![forbid(unsafe_code)]

pub mod action;
pub mod cel;
pub mod cluster;
pub mod compile;
pub mod cors;
pub mod destination;
pub mod destination_index;
pub mod endpoint;
pub mod error;
pub mod extensions;
pub mod fault;
mod findings;
pub mod format;
pub mod header_ops;
pub mod lb;
mod lineup;
pub mod matching;
pub mod model;
pub mod observe;
pub mod original;
pub mod path;
mod path_template;
pub mod rbac;
mod registry;
pub mod request;
pub mod retry;
pub mod route;
pub mod route_index;
pub mod share;
pub mod spec;
pub mod workload;

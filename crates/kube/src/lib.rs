//! The little of Kubernetes that we need, and nothing of what it is used for.
//!
//! A [`Client`] comes from the pod's own account, a kubeconfig, or an address with token and CA.
//! [`endpoints`] follows who is behind a Service, [`lease`] elects one of several processes,
//! [`object`] reads and writes objects of any kind,
//! [`scale`] reads and changes the replicas of anything scalable. Every [`Error`] names what was asked
//! and, where it was forbidden, the rule that is missing.
#![forbid(unsafe_code)]

pub mod client;
pub mod endpoints;
pub mod error;
pub mod lease;
pub mod object;
pub mod scale;

pub use client::{Access, AccessError, Client};
pub use endpoints::{Endpoint, Endpoints};
pub use error::{Cause, Error, Request};
pub use lease::{Election, Leadership, LeaseSpec};
pub use object::{Kind, Selection, Version, seconds_until};
pub use scale::{Scale, Target, TargetError};

//! The shared pool of waypoints, as a user's cluster sees it.
//!
//! A user's cluster has a Gateway that nobody deploys for, a Service of which no pod of the cluster is a part, and
//! a WorkloadGroup by which members of the pool register themselves: [`objects`] makes them, [`lint()`] finds what
//! would keep them from working, or traffic from being policed. [`config`] is the file that describes the pool to its
//! members and to the registrar, [`registrar`] what the latter decides, [`rbac`] what it needs to be allowed. This crate knows nothing of requests.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod config;
pub mod lint;
pub mod objects;
pub mod print;
pub mod rbac;
pub mod registrar;

pub use cluster::{AllowedNamespaces, UserCluster, UserClusterError};
pub use config::{ConfigError, PoolConfig};
pub use lint::{Finding, Severity, lint};

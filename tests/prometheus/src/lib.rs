//! Real Prometheus and its promtool, for what reads our metrics and the dashboard's queries.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic)] // a failed helper is a failed test

pub mod alerts;
pub mod dashboard;
pub mod query;
pub mod server;
pub mod tools;

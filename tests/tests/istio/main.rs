//! `cairn proxy waypoint` as istiod's Deployment starts it, through real sockets: arguments, variables,
//! files, probes, and an istiod that can be told to misbehave.

#![allow(clippy::unwrap_used, clippy::panic)]

mod access_logs;
mod certificates;
mod discovery;
mod drain;
mod layers;
mod load;
mod mesh;
mod metrics;
mod outage;
mod pages;
mod pod;
mod ready;
mod report;
mod start;
mod storm;
mod traces;
mod unsupported;
mod warm;
mod workloads;

//! What becomes of single settings, and what never opens a door.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, deprecated)]

mod chains;
mod clusters;
mod endpoints;
mod matchers;
mod metrics;
mod mutations;
mod policies;
mod routes;
mod tracing;
mod tunnels;
mod world;

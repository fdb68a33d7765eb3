//! `cairn proxy waypoint` as istiod's Deployment starts it, through real sockets: arguments, variables,
//! files, probes, and an istiod that can be told to misbehave.

#![allow(clippy::unwrap_used, clippy::panic)]

mod pod;
mod start;

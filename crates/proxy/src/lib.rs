//! The data plane: tunnels in, Pingora's `HttpProxy` or a TCP splice over each, tunnels out.
//!
//! A [`MeshInstance`] is one mesh: identity, snapshot, pools, counters. [`Workers`] are the
//! threads. [`listen`] serves an instance on them until it is drained.
//!
//! ```text
//! listener ─ hbone::Terminator ─ tunnel: resolve → authorize → detect
//!     ├─ splice: authorize → connect → relay → record
//!     └─ downstream::{h1, h2} ─ engine (HttpProxy) ─ hooks: normalise → authorize → admit → route
//!                                    → upstream: connect → relay ─ record
//! ```
#![forbid(unsafe_code)]

mod access_log;
mod breakers;
mod choose;
mod connection;
mod cors;
mod counted;
mod counters;
mod date;
mod deliver;
mod detect;
mod downstream;
mod drain;
mod engine;
mod exchange;
mod fault;
mod filters;
mod framing;
mod grpc;
mod head;
mod headers;
mod hooks;
mod inbound;
mod instance;
mod io;
mod limits;
mod link;
mod listener;
mod load;
mod messages;
mod metrics;
mod mirror;
mod outgoing;
mod overload;
mod phases;
mod record;
mod reply;
mod resolve;
mod retry;
mod roll;
mod sink;
mod splice;
mod trace;
mod tunnel;
mod upstream;
mod workers;

pub use counters::{Count, Counters, Level, Raised};
pub use drain::{DrainPlan, Drained, InFlight};
pub use head::{fuzz_request, fuzz_response};
pub use instance::{IdentityWait, InstanceConfig, LocalHandler, MeshInstance, NodeInfo};
pub use limits::Limits;
pub use listener::{ListenError, Running, listen};
pub use load::{
    DelaySummary, Delays, LoadReading, Reading, TENANTS, TenantReading, Totals, bench_request,
    bench_requests, bench_requests_admitted,
};
pub use overload::{Overload, OverloadConfig, OverloadReading};
pub use workers::{Placement, Workers};

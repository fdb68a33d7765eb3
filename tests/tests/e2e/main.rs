//! Everything through real sockets: a client that speaks HBONE, the waypoint, HBONE endpoints,
//! backends. One binary, because linking costs more than all the tests.

#![allow(clippy::unwrap_used, clippy::panic)]

mod access_logs;
mod balancing;
mod broken;
mod circuit_breakers;
mod cors;
mod drain;
mod fault;
mod floods;
mod grpc;
mod headers;
mod http;
mod lifecycle;
mod limits;
mod load;
mod matching;
mod meshes;
mod original_destination;
mod overload;
mod pool;
mod proxy_headers;
mod rbac;
mod reload;
mod responses;
mod retries;
mod rotation;
mod routing;
mod smuggling;
mod support;
mod tcp;
mod telemetry;
mod tracing;
mod tunnel;
mod upstream;
mod workers;

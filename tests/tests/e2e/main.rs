//! Everything through real sockets: a client that speaks HBONE, the waypoint, HBONE endpoints,
//! backends. One binary, because linking costs more than all the tests.

#![allow(clippy::unwrap_used, clippy::panic)]

mod drain;
mod floods;
mod grpc;
mod http;
mod limits;
mod meshes;
mod pool;
mod rbac;
mod reload;
mod rotation;
mod routing;
mod smuggling;
mod support;
mod tcp;
mod telemetry;
mod tunnel;
mod upstream;

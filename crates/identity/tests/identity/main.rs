//! The identity crate through its public door: handshakes over real sockets, rotation, files.
#![allow(clippy::unwrap_used, clippy::panic)]

mod authority;
mod ca;
mod files;
mod handshake;
mod istiod;
mod material;
mod meeting;
mod rotation;

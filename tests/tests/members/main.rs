//! `cairn pool member` as a process, between meshes that share nothing but the addresses of their services.

#![allow(clippy::unwrap_used, clippy::panic)]

mod balance;
mod ending;
mod joining;
mod registration;
mod siblings;
mod world;

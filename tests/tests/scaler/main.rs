//! `cairn scaler` as a process, between members that are scripted or real and a client that speaks
//! KEDA's external scaler.

#![allow(clippy::unwrap_used, clippy::panic)]

mod decisions;
mod extremes;
mod fleet;
mod keda;
mod real;
mod restart;
mod settings;
mod support;

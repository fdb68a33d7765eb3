//! The same push of istiod for Cairn and for real Envoy, the same requests to both, and what came of
//! them.
//!
//! A recorded push is edited alike for both where chance would decide, or where a service would be
//! needed that is not there ([`push`]). Envoy gets it as a file, without what only Istio's build of it
//! has ([`bootstrap`]); Cairn gets it from a fake istiod ([`proxies`]). Requests are made from the
//! push's own routes and policies ([`generate`]).

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic)] // a failed helper is a failed test

pub mod any;
pub mod ask;
pub mod bootstrap;
pub mod compare;
pub mod destinations;
pub mod draft;
pub mod generate;
pub mod meet;
pub mod mutate;
pub mod pods;
pub mod proxies;
pub mod push;
pub mod sample;
pub mod seed;

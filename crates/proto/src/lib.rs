//! Messages on the wire between Cairn and istiod, and between KEDA and the scaler.
//!
//! Envoy's come from `envoy-types`; Istio's and KEDA's own, which no published crate has, are written
//! down in `proto/` by their field numbers and compiled when this crate is built. Comments of the fields
//! are in those files.
#![forbid(unsafe_code)]

pub use envoy_types::pb as envoy;
pub use {prost, prost_types, tonic, tonic_prost};

/// `istio.v1.auth`: istiod signs certificates.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod ca {
    tonic::include_proto!("istio.v1.auth");
}

/// `istio.workload`: who is at an address.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod workload {
    tonic::include_proto!("istio.workload");

    /// The type URL of [`Address`].
    pub const ADDRESS_TYPE_URL: &str = "type.googleapis.com/istio.workload.Address";
    /// The type URL of [`Workload`].
    pub const WORKLOAD_TYPE_URL: &str = "type.googleapis.com/istio.workload.Workload";
}

/// `stats`: settings of the `istio.stats` filter.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod stats {
    tonic::include_proto!("stats");
}

/// `externalscaler`: KEDA asks how many replicas there are to be.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod externalscaler {
    tonic::include_proto!("externalscaler");
}

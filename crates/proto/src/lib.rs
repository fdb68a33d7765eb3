//! Messages on the wire between Cairn and istiod, between KEDA and the scaler, and between Cairn and collectors.
//!
//! Envoy's come from `envoy-types`; Istio's and KEDA's own, which no published crate has, and the few
//! of the OpenTelemetry protocol that are sent, are written down in `proto/` by their field numbers and
//! compiled when this crate is built. Comments of the fields are in those files.
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

/// The OpenTelemetry protocol.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod opentelemetry {
    /// Packages are nested as the generated code expects them.
    pub mod proto {
        /// Attributes and resources.
        pub mod common {
            /// Version 1.
            pub mod v1 {
                tonic::include_proto!("opentelemetry.proto.common.v1");
            }
        }
        /// What collectors offer.
        pub mod collector {
            /// Spans.
            pub mod trace {
                /// Version 1.
                pub mod v1 {
                    tonic::include_proto!("opentelemetry.proto.collector.trace.v1");
                }
            }
            /// Log records.
            pub mod logs {
                /// Version 1.
                pub mod v1 {
                    tonic::include_proto!("opentelemetry.proto.collector.logs.v1");
                }
            }
        }
    }
}

//! What a control plane sends, and who takes it: the seam between the client that speaks xDS and
//! what makes a configuration of it.

use bytes::Bytes;
use std::collections::BTreeSet;
use std::fmt;

/// Kinds of resource that istiod sends a waypoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `envoy.config.cluster.v3.Cluster` (CDS).
    Cluster,
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment` (EDS).
    Endpoints,
    /// `envoy.config.listener.v3.Listener` (LDS).
    Listener,
    /// `istio.workload.Workload` (WDS).
    Workload,
    /// `envoy.config.core.v3.TypedExtensionConfig` (ECDS).
    ExtensionConfig,
    /// `envoy.extensions.transport_sockets.tls.v3.Secret` (SDS).
    Secret,
}

impl Kind {
    /// All of them, in the order in which they are asked for.
    pub const ALL: [Kind; 6] = [
        Kind::Cluster,
        Kind::Endpoints,
        Kind::Listener,
        Kind::Workload,
        Kind::ExtensionConfig,
        Kind::Secret,
    ];

    /// The type URL that is subscribed to.
    pub fn type_url(self) -> &'static str {
        match self {
            Kind::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Kind::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Kind::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Kind::Workload => "type.googleapis.com/istio.workload.Workload",
            Kind::ExtensionConfig => {
                "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
            }
            Kind::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        }
    }

    /// The kind with this type URL.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Kind::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// Short name, for logs and metrics: `cds`, `eds`, `lds`, `wds`, `ecds`, `sds`.
    pub fn label(self) -> &'static str {
        match self {
            Kind::Cluster => "cds",
            Kind::Endpoints => "eds",
            Kind::Listener => "lds",
            Kind::Workload => "wds",
            Kind::ExtensionConfig => "ecds",
            Kind::Secret => "sds",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// One resource as it was received.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Unique in its kind.
    pub name: String,
    /// istiod's version of it; may be empty.
    pub version: String,
    /// Type of `body`; may differ from the kind's (a wildcard answer of another version).
    pub type_url: String,
    /// The message, serialized.
    pub body: Bytes,
    /// Other names, for workloads `network/ip`.
    pub aliases: Vec<String>,
}

/// What one answer changes. What it does not name stays.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// Kind of all of it.
    pub kind: Kind,
    /// New, or in the place of the one with the same name.
    pub changed: Vec<Resource>,
    /// Names that are gone; unknown ones are ignored.
    pub removed: Vec<String>,
}

/// What the consumer needs by name, besides what comes unasked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Names of EDS resources.
    pub endpoints: BTreeSet<String>,
    /// Names of ECDS resources.
    pub extension_configs: BTreeSet<String>,
    /// Names of SDS resources that come through istiod.
    pub secrets: BTreeSet<String>,
    /// Workloads by `network/ip`, where they are asked for on demand.
    pub workloads: BTreeSet<String>,
}

/// Why an answer is refused, for the NACK: each resource that cannot be decoded, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Names the resources and the reasons; bounded.
    pub detail: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Rejected {}

/// Takes updates in. Called from one task.
pub trait Consumer: Send {
    /// Takes in what decodes; what does not keeps its last good value and is listed in the error.
    fn apply(&mut self, update: Update) -> Result<(), Rejected>;

    /// What is needed now. Asked after each [`Consumer::apply`].
    fn wanted(&self) -> Wanted;
}

//! What one file holds: like [`super::Config`], but every part may stand in another file.

use super::config::{AdminConfig, DrainConfig, IdentityConfig, Limits, LoadConfig, Placement};
use cairn_router::spec::{Cluster, Destination, EndpointSet, Workload};
use serde::Deserialize;
use std::net::SocketAddr;
use std::sync::Arc;

/// What one file holds.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Document {
    pub workers: Option<usize>,
    pub placement: Option<Placement>,
    pub drain: Option<DrainConfig>,
    pub admin: Option<AdminConfig>,
    pub load: Option<LoadConfig>,
    pub meshes: Vec<MeshPart>,
}

/// What one file says about a mesh.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MeshPart {
    pub name: String,
    #[serde(default)]
    pub listen: Option<SocketAddr>,
    #[serde(default)]
    pub identity: Option<IdentityConfig>,
    #[serde(default)]
    pub trust_domains: Option<Vec<String>>,
    #[serde(default)]
    pub limits: Option<Limits>,
    #[serde(default)]
    pub destinations: Vec<Arc<Destination>>,
    #[serde(default)]
    pub clusters: Vec<Arc<Cluster>>,
    #[serde(default)]
    pub endpoints: Vec<Arc<EndpointSet>>,
    #[serde(default)]
    pub workloads: Vec<Arc<Workload>>,
}

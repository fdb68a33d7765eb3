//! `/config`: what each mesh is configured with. Keys are never part of it: identities are named
//! by file or id.

use crate::fleet::Entry;
use cairn_router::spec::Resources;
use cairn_xds::{IdentityConfig, Limits};
use serde::Serialize;
use std::net::SocketAddr;
use std::sync::Arc;

#[derive(Serialize)]
struct Page<'a> {
    version: &'static str,
    meshes: Vec<Mesh<'a>>,
}

#[derive(Serialize)]
struct Mesh<'a> {
    name: &'a str,
    address: SocketAddr,
    id: String,
    certificate_serial: String,
    identity: &'a IdentityConfig,
    trust_domains: Vec<String>,
    limits: &'a Limits,
    warnings: Vec<String>,
    #[serde(flatten)]
    resources: &'a Resources,
}

/// JSON, with line breaks.
pub fn render(meshes: &[Arc<Entry>]) -> String {
    let meshes = meshes.iter().map(|entry| mesh(entry)).collect();
    let page = Page { version: env!("CARGO_PKG_VERSION"), meshes };
    let mut text = serde_json::to_string_pretty(&page)
        .unwrap_or_else(|error| serde_json::json!({ "error": error.to_string() }).to_string());
    text.push('\n');
    text
}

fn mesh(entry: &Entry) -> Mesh<'_> {
    let credentials = entry.instance.identity().current();
    Mesh {
        name: &entry.name,
        address: entry.address,
        id: credentials.id.to_string(),
        certificate_serial: credentials.serial.clone(),
        identity: &entry.config.identity,
        trust_domains: entry
            .instance
            .identity()
            .trust_domains()
            .iter()
            .map(str::to_owned)
            .collect(),
        limits: &entry.config.limits,
        warnings: entry.instance.mesh().warnings().to_vec(),
        resources: &entry.resources,
    }
}

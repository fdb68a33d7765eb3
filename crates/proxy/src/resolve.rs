//! What a CONNECT names, by one snapshot of the mesh.

use crate::instance::MeshInstance;
use crate::load::Tenant;
use cairn_hbone::Target;
use cairn_router::destination::{Destination, TargetRef};
use cairn_router::model::Mesh;
use cairn_router::rbac::CompiledRbac;
use cairn_router::request::ConnectionView;
use std::net::SocketAddr;
use std::sync::Arc;

/// A destination, and the snapshot that it belongs to.
pub(crate) struct Resolved {
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) destination: Arc<Destination>,
    /// Whose load it is.
    pub(crate) tenant: Arc<Tenant>,
}

impl Resolved {
    /// `None`: nobody has this address or name.
    pub(crate) fn find(instance: &MeshInstance, mesh: &Arc<Mesh>, target: &Target) -> Option<Self> {
        let target = match target {
            Target::Addr(addr) => TargetRef::Addr(*addr),
            Target::Host { host, port } => TargetRef::Host(host, *port),
        };
        let destination = Arc::clone(mesh.destination(&target)?);
        let tenant = instance.tenant(&destination.tenant.namespace);
        Some(Resolved { mesh: Arc::clone(mesh), destination, tenant })
    }

    /// Whether the destination's connection policies let this peer in.
    pub(crate) fn admits(&self, connection: &ConnectionView<'_>) -> bool {
        allowed(&self.destination.connection, connection).is_ok()
    }
}

/// Asks policies in order; the first refusal ends it, with Envoy's detail.
pub(crate) fn allowed(
    policies: &[CompiledRbac],
    connection: &ConnectionView<'_>,
) -> Result<(), String> {
    policies
        .iter()
        .find_map(|policy| policy.check_connection(connection).details())
        .map_or(Ok(()), Err)
}

/// The address that a target is, if it is one.
pub(crate) fn address(target: &Target) -> Option<SocketAddr> {
    match target {
        Target::Addr(addr) => Some(*addr),
        Target::Host { .. } => None,
    }
}

//! WorkloadGroup auto-registration, as istiod has it (`pilot/pkg/autoregistration`): a stream whose node names a group is
//! a WorkloadEntry for as long as it is open, and for a grace period after it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cairn_proto::prost::Message;
use cairn_proto::workload::{TunnelProtocol, Workload};
use cairn_xds::feed::Kind;

use super::resources::resource;
use super::world::{Event, Shared};

/// What a node says of itself.
pub(super) struct Entry {
    pub group: String,
    pub namespace: String,
    pub account: String,
    pub address: IpAddr,
}

/// A registration; it ends a while after it is dropped.
pub(super) struct Registered {
    shared: Arc<Shared>,
    name: String,
}

/// The name of an entry among the workloads.
pub(super) fn uid(namespace: &str, group: &str, address: IpAddr) -> String {
    format!("Kubernetes/networking.istio.io/WorkloadEntry/{namespace}/{group}-{address}")
}

impl Registered {
    /// Makes the entry, or keeps the one that there is.
    pub(super) fn begin(shared: &Arc<Shared>, entry: &Entry) -> Self {
        let Entry { group, namespace, account, address } = entry;
        let name = uid(namespace, group, *address);
        let workload = Workload {
            uid: name.clone(),
            name: format!("{group}-{address}"),
            namespace: namespace.clone(),
            addresses: vec![match address {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            }],
            service_account: account.clone(),
            tunnel_protocol: TunnelProtocol::Hbone as i32,
            native_tunnel: true,
            ..Workload::default()
        };
        let body = resource(Kind::Workload, &name, "", workload.encode_to_vec());
        let fresh = {
            let mut world = shared.world.lock().unwrap();
            *world.registered.entry(name.clone()).or_default() += 1;
            let fresh = world.get(Kind::Workload, &name).is_none();
            world.change(Kind::Workload, vec![body.clone()], &[]);
            fresh
        };
        if fresh {
            let (kind, changed, removed) = (Kind::Workload, vec![body], Vec::new());
            shared.announce(Event::Push { kind, changed, removed });
        }
        Registered { shared: Arc::clone(shared), name }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let (shared, name) = (Arc::clone(&self.shared), self.name.clone());
        let grace: Duration = {
            let mut world = shared.world.lock().unwrap();
            if let Some(streams) = world.registered.get_mut(&name) {
                *streams -= 1;
            }
            world.registration_grace
        };
        tokio::spawn(async move {
            tokio::time::sleep(grace).await;
            {
                let mut world = shared.world.lock().unwrap();
                if world.registered.get(&name).is_some_and(|streams| *streams > 0) {
                    return;
                }
                world.registered.remove(&name);
                world.change(Kind::Workload, Vec::new(), std::slice::from_ref(&name));
            }
            let (kind, changed, removed) = (Kind::Workload, Vec::new(), vec![name]);
            shared.announce(Event::Push { kind, changed, removed });
        });
    }
}

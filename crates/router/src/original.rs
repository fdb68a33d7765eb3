//! Endpoints for addresses that clients named (Envoy: `ORIGINAL_DST`).
//!
//! They are made when an address is named for the first time, and kept beside the cluster's state,
//! so that connections to them are pooled like others. At most [`MAX_KEPT`] are kept: the one that
//! was not used for longest, and is not in use, makes room.

use crate::cluster::{Cluster, ClusterState};
use crate::endpoint::{Endpoint, EndpointState, TunnelTo};
use crate::model::Mesh;
use crate::spec::{EndpointTransport, Health, Locality, OriginalDestination};
use ahash::AHashMap;
use parking_lot::Mutex;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Addresses of one cluster whose endpoints are kept.
pub const MAX_KEPT: usize = 1024;
/// Ids of these endpoints have this bit, those that the compiler gives have not.
const ID_BIT: u64 = 1 << 63;
/// Port of HBONE.
const HBONE_PORT: u16 = 15008;

/// Why there is no endpoint for an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoOriginal {
    /// Nothing answers at an unspecified address or port 0, and only we do at a loopback address.
    Nowhere(SocketAddr),
    /// Who runs at the address is not known, so nobody could be expected there.
    UnknownWorkload(IpAddr),
}

/// Beside a cluster's state.
#[derive(Debug, Default)]
struct Originals(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    endpoints: AHashMap<Key, Entry>,
    /// Grows with each use.
    clock: u64,
    last_id: u64,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    address: SocketAddr,
    /// `None`: plain.
    identity: Option<Arc<str>>,
}

#[derive(Debug)]
struct Entry {
    endpoint: Arc<Endpoint>,
    used: u64,
}

impl Cluster {
    /// The endpoint at the address that the client named, by the cluster's
    /// [`original_destination`](field@Cluster::original_destination), which is `how`.
    pub fn original(
        &self,
        how: OriginalDestination,
        named: SocketAddr,
        mesh: &Mesh,
    ) -> Result<Arc<Endpoint>, NoOriginal> {
        let OriginalDestination { transport, port, loopback } = how;
        let ip = named.ip().to_canonical();
        let address = SocketAddr::new(ip, port.unwrap_or(named.port()));
        if ip.is_unspecified() || (ip.is_loopback() && !loopback) || address.port() == 0 {
            return Err(NoOriginal::Nowhere(address));
        }
        let identity = match transport {
            EndpointTransport::Plain => None,
            EndpointTransport::Hbone => {
                let principal = mesh.workload(ip).and_then(|workload| workload.principal.clone());
                Some(principal.ok_or(NoOriginal::UnknownWorkload(ip))?)
            }
        };
        let originals = self.state.extension(Originals::default);
        Ok(originals.0.lock().get(Key { address, identity }, &self.state))
    }
}

impl Known {
    fn get(&mut self, key: Key, cluster: &Arc<ClusterState>) -> Arc<Endpoint> {
        self.clock += 1;
        if let Some(entry) = self.endpoints.get_mut(&key) {
            entry.used = self.clock;
            return Arc::clone(&entry.endpoint);
        }
        self.last_id += 1;
        let endpoint = Arc::new(endpoint(&key, ID_BIT | self.last_id, cluster));
        if self.has_room() {
            let entry = Entry { endpoint: Arc::clone(&endpoint), used: self.clock };
            self.endpoints.insert(key, entry);
        }
        endpoint
    }

    /// Makes room; `false`: all are in use.
    fn has_room(&mut self) -> bool {
        if self.endpoints.len() < MAX_KEPT {
            return true;
        }
        let unused = self.endpoints.iter().filter(|(_, entry)| entry.endpoint.state.active() == 0);
        let oldest = unused.min_by_key(|(_, entry)| entry.used).map(|(_, entry)| entry.used);
        oldest.is_some_and(|oldest| {
            self.endpoints.retain(|_, entry| entry.used != oldest);
            true
        })
    }
}

fn endpoint(key: &Key, id: u64, cluster: &Arc<ClusterState>) -> Endpoint {
    let Key { address, identity } = key;
    Endpoint {
        address: *address,
        tunnel: identity.as_ref().map(|identity| TunnelTo {
            address: SocketAddr::new(address.ip(), HBONE_PORT),
            identities: vec![identity.as_ref().to_owned()],
            authority: address.to_string().into(),
        }),
        weight: 1,
        priority: 0,
        health: Health::Healthy,
        locality: Arc::new(Locality::default()),
        state: Arc::new(EndpointState::new(id, Arc::clone(cluster))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::compile::Compiler;
    use serde_json::json;

    const IDENTITY: &str = "spiffe://cluster.local/ns/shop/sa/app";

    fn mesh(transport: &str) -> Mesh {
        let resources = serde_json::from_value(json!({
            "clusters": [{"name": "direct", "original_destination": {"transport": transport}}],
            "workloads": [{"addresses": ["10.0.0.1"], "name": "pod", "namespace": "shop",
                "service_account": "app", "trust_domain": "cluster.local"}],
        }));
        Compiler::new("mesh").compile(&resources.unwrap()).unwrap()
    }

    fn original(mesh: &Mesh, named: SocketAddr) -> Result<Arc<Endpoint>, NoOriginal> {
        let cluster = mesh.cluster("direct").unwrap();
        cluster.original(cluster.original_destination.unwrap(), named, mesh)
    }

    #[test]
    fn a_tunnel_expects_the_workload_at_the_address() {
        let mesh = mesh("hbone");
        let endpoint = original(&mesh, "[::ffff:10.0.0.1]:80".parse().unwrap()).unwrap();
        let tunnel = endpoint.tunnel.as_ref().unwrap();
        assert_eq!(endpoint.address, "10.0.0.1:80".parse().unwrap());
        assert_eq!(tunnel.address, "10.0.0.1:15008".parse().unwrap());
        assert_eq!((&*tunnel.authority, &*tunnel.identities[0]), ("10.0.0.1:80", IDENTITY));
        let stranger = "10.0.0.2:80".parse().unwrap();
        let unknown = NoOriginal::UnknownWorkload("10.0.0.2".parse().unwrap());
        assert_eq!(original(&mesh, stranger).unwrap_err(), unknown);
    }

    #[test]
    fn plain_ones_need_nobody_and_the_port_can_be_another() {
        let mesh = mesh("plain");
        let named = "10.9.9.9:80".parse().unwrap();
        let endpoint = original(&mesh, named).unwrap();
        assert!(endpoint.tunnel.is_none() && endpoint.is_healthy());
        assert!(Arc::ptr_eq(&endpoint, &original(&mesh, named).unwrap()));
        let how = OriginalDestination {
            transport: EndpointTransport::Plain,
            port: Some(81),
            loopback: false,
        };
        let other = mesh.cluster("direct").unwrap().original(how, named, &mesh).unwrap();
        assert_eq!(other.address.port(), 81);
        let ours = ["127.0.0.1:15000", "127.8.0.1:80", "[::1]:15000", "[::ffff:127.0.0.1]:80"];
        for nowhere in ["0.0.0.0:80", "[::]:80", "10.0.0.1:0"].into_iter().chain(ours) {
            let nowhere = original(&mesh, nowhere.parse().unwrap());
            assert!(matches!(nowhere, Err(NoOriginal::Nowhere(_))));
        }
    }

    #[test]
    fn the_oldest_unused_makes_room() {
        let mesh = mesh("plain");
        let at = |n: usize| original(&mesh, ([10, 1, (n >> 8) as u8, n as u8], 80).into()).unwrap();
        let (busy, idle) = (at(0), at(1));
        let in_flight = busy.begin();
        for n in 2..MAX_KEPT {
            at(n);
        }
        // Used again, so that the next one is older.
        at(1);
        at(MAX_KEPT);
        assert!(Arc::ptr_eq(&busy, &at(0)));
        assert!(Arc::ptr_eq(&idle, &at(1)));
        drop(in_flight);
        let held: Vec<_> = (0..MAX_KEPT).map(|n| at(n).begin()).collect();
        let (extra, again) = (at(MAX_KEPT + 1), at(MAX_KEPT + 1));
        assert!(!Arc::ptr_eq(&extra, &again), "all others are in use: it is not kept");
        drop(held);
    }
}

//! The pods behind a push: each endpoint's address with its ztunnel, or without one.

use crate::push::{Push, is_tunneled, socket};
use cairn_mesh_tests::hbone::Pod;
use cairn_mesh_tests::identity::{PodIdentity, spiffe};
use cairn_proto::workload::Workload;
use cairn_test_support::app::App;
use cairn_test_support::backend::{Backend, Recorded};
use cairn_test_support::istiod::FakeIstiod;
use prost::Message;
use std::collections::BTreeMap;
use std::net::IpAddr;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// All pods; they end when this is dropped.
pub struct Pods {
    backends: BTreeMap<String, Backend>,
    _tunneled: Vec<Pod>,
    plain: Vec<JoinHandle<()>>,
}

impl Drop for Pods {
    fn drop(&mut self) {
        self.plain.iter().for_each(JoinHandle::abort);
    }
}

impl Pods {
    /// Listens on all addresses; a cluster's backend has the cluster's name.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn start(push: &Push, istiod: &FakeIstiod) -> Self {
        let accounts = accounts(push);
        let mut backends = BTreeMap::new();
        let mut tunneled: BTreeMap<IpAddr, BTreeMap<u16, App>> = BTreeMap::new();
        let mut plain = Vec::new();
        for assignment in &push.endpoints {
            let name = &assignment.cluster_name;
            let backend = Backend::new(name);
            backends.insert(name.clone(), backend.clone());
            for endpoint in assignment.endpoints.iter().flat_map(|group| &group.lb_endpoints) {
                let Some(at) = socket(endpoint) else { continue };
                if is_tunneled(endpoint) {
                    tunneled.entry(at.ip()).or_default().insert(at.port(), App::from(&backend));
                } else if let Ok(listener) = TcpListener::bind(at).await {
                    plain.push(tokio::spawn(serve(listener, backend.clone())));
                }
            }
        }
        let mut pods = Vec::new();
        for (ip, apps) in tunneled {
            let id = accounts.get(&ip).unwrap_or_else(|| panic!("no workload is at {ip}"));
            pods.push(Pod::start(ip, identity(istiod, id), apps).await);
        }
        Pods { backends, _tunneled: pods, plain }
    }

    /// What the backends got so far, by cluster.
    pub fn received(&self) -> Vec<(String, Recorded)> {
        let of = |(name, backend): (&String, &Backend)| {
            let name = name.clone();
            backend.log().into_iter().map(move |seen| (name.clone(), seen)).collect::<Vec<_>>()
        };
        self.backends.iter().flat_map(of).collect()
    }
}

async fn serve(listener: TcpListener, backend: Backend) {
    while let Ok((io, _)) = listener.accept().await {
        let backend = backend.clone();
        tokio::spawn(async move { backend.serve(io).await });
    }
}

/// A certificate of the mesh.
pub fn identity(istiod: &FakeIstiod, id: &str) -> PodIdentity {
    let (chain, key) = istiod.issue(id);
    PodIdentity::from_pem(id, &chain, &key, &istiod.roots_pem())
}

/// Who is at an address.
fn accounts(push: &Push) -> BTreeMap<IpAddr, String> {
    let mut accounts = BTreeMap::new();
    for resource in &push.workloads {
        let Some(any) = &resource.resource else { continue };
        let Ok(workload) = Workload::decode(any.value.as_slice()) else { continue };
        for address in &workload.addresses {
            let Ok(octets) = <[u8; 4]>::try_from(address.as_ref()) else { continue };
            let id = spiffe(&workload.namespace, &workload.service_account);
            accounts.insert(IpAddr::from(octets), id);
        }
    }
    accounts
}

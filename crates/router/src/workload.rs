//! Who is at an address: labels of telemetry, and the identity to compare a peer's with.

use crate::spec;
use ahash::AHashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// A pod, or another thing that runs somewhere. Fields are empty where nothing is known.
#[derive(Debug)]
pub struct Workload {
    /// Addresses, IPv4-mapped IPv6 ones as IPv4.
    pub addresses: Box<[IpAddr]>,
    /// Pod name, or another unique name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
    /// Trust domain.
    pub trust_domain: Arc<str>,
    /// Deployment or other owner (`source_workload`).
    pub workload_name: Arc<str>,
    /// Istio's canonical service.
    pub canonical_name: Arc<str>,
    /// Istio's canonical revision.
    pub canonical_revision: Arc<str>,
    /// Cluster that it runs in.
    pub cluster: Arc<str>,
    /// `spiffe://trust-domain/ns/namespace/sa/service-account`; `None` if a part is unknown.
    pub principal: Option<Arc<str>>,
}

/// Workloads by address. Pods on the host's network, and pods of different networks, can share one.
#[derive(Debug, Default)]
pub(crate) struct WorkloadIndex {
    first: AHashMap<IpAddr, Arc<Workload>>,
    others: AHashMap<IpAddr, Vec<Arc<Workload>>>,
}

impl Workload {
    pub(crate) fn compile(workload: &spec::Workload) -> Self {
        let spec::Workload {
            addresses,
            name,
            namespace,
            service_account,
            trust_domain,
            workload_name,
            canonical_name,
            canonical_revision,
            cluster,
        } = workload;
        let known =
            !(trust_domain.is_empty() || namespace.is_empty() || service_account.is_empty());
        Workload {
            addresses: addresses.iter().map(IpAddr::to_canonical).collect(),
            name: name.as_str().into(),
            namespace: namespace.as_str().into(),
            service_account: service_account.as_str().into(),
            trust_domain: trust_domain.as_str().into(),
            workload_name: workload_name.as_str().into(),
            canonical_name: canonical_name.as_str().into(),
            canonical_revision: canonical_revision.as_str().into(),
            cluster: cluster.as_str().into(),
            principal: known.then(|| {
                format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}").into()
            }),
        }
    }
}

impl WorkloadIndex {
    pub(crate) fn insert(&mut self, workload: &Arc<Workload>) {
        for address in &workload.addresses {
            match self.first.entry(*address) {
                std::collections::hash_map::Entry::Vacant(entry) => {
                    entry.insert(Arc::clone(workload));
                }
                std::collections::hash_map::Entry::Occupied(_) => {
                    self.others.entry(*address).or_default().push(Arc::clone(workload));
                }
            }
        }
    }

    pub(crate) fn get(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.first.get(&address.to_canonical())
    }

    pub(crate) fn get_as(&self, address: IpAddr, principal: &str) -> Option<&Arc<Workload>> {
        let address = address.to_canonical();
        let first = self.first.get(&address)?;
        let others = self.others.get(&address).map_or(&[][..], Vec::as_slice);
        std::iter::once(first)
            .chain(others)
            .find(|workload| workload.principal.as_deref() == Some(principal))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn workload(name: &str, address: &str, account: &str) -> Arc<Workload> {
        Arc::new(Workload::compile(&spec::Workload {
            addresses: vec![address.parse().unwrap()],
            name: name.to_owned(),
            namespace: "shop".to_owned(),
            service_account: account.to_owned(),
            trust_domain: "cluster.local".to_owned(),
            ..spec::Workload::default()
        }))
    }

    #[test]
    fn found_by_address_and_by_who_it_is() {
        let mut index = WorkloadIndex::default();
        index.insert(&workload("a", "::ffff:10.0.0.1", "one"));
        index.insert(&workload("b", "10.0.0.1", "two"));
        let address = "10.0.0.1".parse().unwrap();
        assert_eq!(&*index.get(address).unwrap().name, "a");
        assert_eq!(&*index.get("::ffff:10.0.0.1".parse().unwrap()).unwrap().name, "a");
        let who = "spiffe://cluster.local/ns/shop/sa/two";
        assert_eq!(&*index.get_as(address, who).unwrap().name, "b");
        assert!(index.get_as(address, "spiffe://cluster.local/ns/shop/sa/three").is_none());
        assert!(index.get("10.0.0.2".parse().unwrap()).is_none());
    }

    #[test]
    fn no_principal_without_all_its_parts() {
        assert_eq!(workload("a", "10.0.0.1", "").principal, None);
    }
}

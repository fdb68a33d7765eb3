//! Who is at which address. Istio: `istio.workload.Workload`.

use super::Settings;
use super::wire::{Undecodable, decode};
use cairn_proto::workload::{Address, NetworkMode, Workload as Message, address};
use cairn_router::spec::Workload;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// What a workload without a trust domain is of (`workload.proto`), whatever domain is our own.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// One workload, as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Kept {
    /// Network and addresses by which it is found; none where several share the address of their host.
    pub places: Vec<Place>,
    /// SPIFFE id.
    pub identity: String,
    /// Name of the pod or owner, as endpoints name their workload.
    pub workload_name: String,
    pub namespace: String,
    /// For the router; `None` where it cannot be looked up by address here.
    pub spec: Option<Arc<Workload>>,
}

/// An address in a network.
pub(super) type Place = (String, IpAddr);

/// Reads a workload; `None`: it is something else.
pub(super) fn read(
    type_url: &str,
    bytes: &[u8],
    settings: &Settings,
) -> Result<Option<Kept>, Undecodable> {
    if type_url == cairn_proto::workload::ADDRESS_TYPE_URL {
        let Address { r#type } = decode("istio.workload.Address", bytes)?.message;
        return Ok(match r#type {
            Some(address::Type::Workload(workload)) => Some(keep(&workload, settings)),
            _ => None,
        });
    }
    let workload: Message = decode("istio.workload.Workload", bytes)?.message;
    Ok(Some(keep(&workload, settings)))
}

fn keep(from: &Message, settings: &Settings) -> Kept {
    let or = |text: &String, default: &str| match text.as_str() {
        "" => default.to_owned(),
        text => text.to_owned(),
    };
    let trust_domain = or(&from.trust_domain, DEFAULT_TRUST_DOMAIN);
    let service_account = or(&from.service_account, "default");
    let identity = format!("spiffe://{trust_domain}/ns/{}/sa/{service_account}", from.namespace);
    let shared = from.network_mode == NetworkMode::HostNetwork as i32;
    let addresses: Vec<IpAddr> = match shared {
        true => Vec::new(),
        false => from.addresses.iter().filter_map(|bytes| address(bytes)).collect(),
    };
    let here = from.network == settings.network && !addresses.is_empty();
    let spec = here.then(|| {
        Arc::new(Workload {
            addresses: addresses.clone(),
            name: unique_name(from),
            namespace: from.namespace.clone(),
            service_account,
            trust_domain,
            workload_name: from.workload_name.clone(),
            canonical_name: from.canonical_name.clone(),
            canonical_revision: from.canonical_revision.clone(),
            cluster: from.cluster_id.clone(),
        })
    });
    Kept {
        places: addresses.into_iter().map(|address| (from.network.clone(), address)).collect(),
        identity,
        workload_name: or(&from.workload_name, &from.name),
        namespace: from.namespace.clone(),
        spec,
    }
}

/// A pod's name is unique in its namespace and cluster; what else there is goes by its uid.
fn unique_name(from: &Message) -> String {
    let pod = format!("{}//Pod/{}/{}", from.cluster_id, from.namespace, from.name);
    if from.uid == pod || from.uid.is_empty() { from.name.clone() } else { from.uid.clone() }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| IpAddr::from(v6).to_canonical())
}

/// Workloads by name and by address.
#[derive(Debug, Default)]
pub(super) struct Workloads {
    by_name: BTreeMap<String, Kept>,
    by_place: BTreeMap<Place, BTreeSet<String>>,
}

impl Workloads {
    /// Takes one in; the addresses at which somebody came or went.
    pub(super) fn insert(&mut self, name: &str, kept: Kept) -> Vec<Place> {
        let mut touched = match self.by_name.get(name) {
            Some(before) if *before == kept => return Vec::new(),
            Some(before) if before.who() == kept.who() && before.places == kept.places => {
                Vec::new()
            }
            Some(_) => self.remove(name),
            None => Vec::new(),
        };
        let known = self.by_name.contains_key(name);
        if !known {
            for place in &kept.places {
                self.by_place.entry(place.clone()).or_default().insert(name.to_owned());
            }
            touched.extend(kept.places.iter().cloned());
        }
        self.by_name.insert(name.to_owned(), kept);
        touched
    }

    /// Drops one; the addresses at which it was.
    pub(super) fn remove(&mut self, name: &str) -> Vec<Place> {
        let Some(kept) = self.by_name.remove(name) else { return Vec::new() };
        for place in &kept.places {
            if let Some(names) = self.by_place.get_mut(place) {
                names.remove(name);
                if names.is_empty() {
                    self.by_place.remove(place);
                }
            }
        }
        kept.places
    }

    /// Who is at an address. Where several are, those whom the endpoint itself names, if there are any.
    pub(super) fn at(&self, place: &Place, named: Option<&(String, String)>) -> Vec<&Kept> {
        let names = self.by_place.get(place).into_iter().flatten();
        let all: Vec<&Kept> = names.filter_map(|name| self.by_name.get(name)).collect();
        let named: Vec<&Kept> = match named {
            Some((name, namespace)) if all.len() > 1 => {
                let fits =
                    |kept: &&&Kept| kept.workload_name == *name && kept.namespace == *namespace;
                all.iter().filter(fits).copied().collect()
            }
            _ => Vec::new(),
        };
        if named.is_empty() { all } else { named }
    }

    /// For the router, in the order of names.
    pub(super) fn specs(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.by_name.values().filter_map(|kept| kept.spec.as_ref())
    }

    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }
}

impl Kept {
    fn who(&self) -> (&str, &str, &str) {
        (&self.identity, &self.workload_name, &self.namespace)
    }
}

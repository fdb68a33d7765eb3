//! Endpoints. Envoy: `config.endpoint.v3.ClusterLoadAssignment`.
//!
//! An endpoint behind a tunnel has to prove the identity of the Workload at its address. One that cannot be
//! reached as asked is left out.

use super::cluster::Served;
use super::facts::Originate;
use super::tls::Socket;
use super::unsupported::{Notes, Subject};
use super::wire;
use super::workload::Workloads;
use super::{EndpointIdentity, Settings};
use cairn_proto::envoy as pb;
use cairn_router::spec::{Endpoint, EndpointSet, EndpointTransport, Health, Locality};
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::core::v3::HealthStatus;
use pb::envoy::config::core::v3::address::Address;
use pb::envoy::config::core::v3::envoy_internal_address::AddressNameSpecifier;
use pb::envoy::config::core::v3::socket_address::{PortSpecifier, Protocol};
use pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};

/// Internal listener that begins a tunnel.
const CONNECT_ORIGINATE: &str = "connect_originate";
/// Internal listener that begins a tunnel in a tunnel.
const DOUBLE: &str = "inner_connect_originate";
/// Metadata that says where a tunnel leads.
const ORIGINAL_DST: &str = "envoy.filters.listener.original_dst";
/// Metadata that says how an endpoint is reached.
const SOCKET_MATCH: &str = "envoy.transport_socket_match";
/// Port of HBONE.
const HBONE_PORT: u16 = 15008;

/// Endpoints as istiod lists them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Assignment {
    pub endpoints: Vec<Listed>,
    pub notes: Notes,
}

/// One endpoint as istiod lists it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Listed {
    pub address: SocketAddr,
    pub transport: EndpointTransport,
    weight: u32,
    locality_weight: u32,
    priority: u32,
    health: Health,
    locality: Locality,
    labels: BTreeMap<String, String>,
    /// Name and namespace of its workload.
    workload: Option<(String, String)>,
}

/// The endpoints of a cluster.
#[derive(Debug, PartialEq)]
pub(super) struct Built {
    pub set: EndpointSet,
    /// Addresses at which nobody is known.
    pub missing: BTreeSet<IpAddr>,
    pub notes: Notes,
}

/// What endpoints are made with.
pub(super) struct World<'a> {
    pub settings: &'a Settings,
    pub workloads: &'a Workloads,
    pub originate: Option<&'a Originate>,
}

/// Its one endpoint begins a tunnel to whatever the client named (Istio: `encap`).
pub(super) fn leads_to_original_destination(from: &ClusterLoadAssignment) -> bool {
    let mut endpoints = from.endpoints.iter().flat_map(|locality| &locality.lb_endpoints);
    let (Some(only), None) = (endpoints.next(), endpoints.next()) else { return false };
    only.metadata.is_none()
        && matches!(address(only), Some(Address::EnvoyInternalAddress(internal))
            if listener(internal) == Some(CONNECT_ORIGINATE) && internal.endpoint_id.is_empty())
}

/// Reads a list of endpoints; `name` is what findings call it.
pub(super) fn assignment(from: &ClusterLoadAssignment, name: &str) -> Assignment {
    let mut subject = Subject::new("endpoint", name);
    let ClusterLoadAssignment { cluster_name: _, endpoints, named_endpoints, policy } = from;
    subject.degrade_if(
        policy.as_ref().is_some_and(|policy| !policy.drop_overloads.is_empty()),
        "a share of requests that is dropped",
    );
    subject.degrade_if(!named_endpoints.is_empty(), "a list of named endpoints");
    let mut listed = Vec::new();
    for from in endpoints {
        let LocalityLbEndpoints {
            locality,
            metadata: _,
            lb_endpoints,
            load_balancing_weight,
            priority,
            proximity: _,
            lb_config,
        } = from;
        if lb_config.is_some() {
            subject.refuse("endpoints that come in another way (LEDS) are left out");
        }
        let locality = locality.as_ref().map(|from| Locality {
            region: from.region.clone(),
            zone: from.zone.clone(),
            subzone: from.sub_zone.clone(),
        });
        let locality = locality.unwrap_or_default();
        let locality_weight = load_balancing_weight.as_ref().map_or(0, |weight| weight.value);
        for from in lb_endpoints {
            match one(from) {
                Ok((address, transport)) => listed.push(Listed {
                    address,
                    transport,
                    weight: from
                        .load_balancing_weight
                        .as_ref()
                        .map_or(1, |weight| weight.value)
                        .max(1),
                    locality_weight,
                    priority: *priority,
                    health: health(from.health_status),
                    locality: locality.clone(),
                    labels: labels(from),
                    workload: workload(from),
                }),
                Err(what) => subject.refuse(format!("{what} is left out")),
            }
        }
    }
    Assignment { endpoints: listed, notes: subject.notes }
}

/// Address and transport of one endpoint. The error says what is left out.
fn one(from: &LbEndpoint) -> Result<(SocketAddr, EndpointTransport), String> {
    match address(from) {
        Some(Address::EnvoyInternalAddress(internal)) => match listener(internal) {
            Some(CONNECT_ORIGINATE) => {
                let metadata = metadata(from, ORIGINAL_DST);
                if metadata.is_some_and(|of| of.fields.contains_key("waypoint")) {
                    return Err("an endpoint behind another waypoint".to_owned());
                }
                let local = metadata.and_then(|of| wire::text(of, "local"));
                let local = local.and_then(|local| local.parse::<SocketAddr>().ok());
                match local.filter(answers) {
                    Some(local) => Ok((local, EndpointTransport::Hbone)),
                    None => Err("a tunnelled endpoint without an address".to_owned()),
                }
            }
            Some(DOUBLE) => {
                Err("an endpoint in another network (a tunnel in a tunnel, double HBONE)"
                    .to_owned())
            }
            other => {
                Err(format!("an endpoint behind the listener `{}`", other.unwrap_or_default()))
            }
        },
        Some(Address::SocketAddress(socket)) => {
            let core::SocketAddress { protocol, address, port_specifier, .. } = socket;
            if *protocol != Protocol::Tcp as i32 {
                return Err("an endpoint that speaks no TCP".to_owned());
            }
            let ip: IpAddr = address
                .parse()
                .map_err(|_| format!("the endpoint `{address}`, which needs DNS,"))?;
            let port = match port_specifier {
                Some(PortSpecifier::PortValue(port)) => u16::try_from(*port).ok(),
                _ => None,
            };
            match port.map(|port| SocketAddr::new(ip, port)).filter(answers) {
                Some(address) => Ok((address, EndpointTransport::Plain)),
                None => Err(format!("the endpoint `{address}` without a port")),
            }
        }
        Some(Address::Pipe(_)) => Err("an endpoint behind a Unix socket".to_owned()),
        None => Err("an endpoint without an address".to_owned()),
    }
}

/// Something can answer there.
fn answers(address: &SocketAddr) -> bool {
    !address.ip().is_unspecified() && address.port() != 0
}

fn address(from: &LbEndpoint) -> Option<&Address> {
    match from.host_identifier.as_ref()? {
        HostIdentifier::Endpoint(endpoint) => endpoint.address.as_ref()?.address.as_ref(),
        HostIdentifier::EndpointName(_) => None,
    }
}

fn listener(internal: &core::EnvoyInternalAddress) -> Option<&str> {
    match internal.address_name_specifier.as_ref()? {
        AddressNameSpecifier::ServerListenerName(name) => Some(name),
    }
}

fn metadata<'a>(from: &'a LbEndpoint, filter: &str) -> Option<&'a pb::google::protobuf::Struct> {
    from.metadata.as_ref()?.filter_metadata.get(filter)
}

/// What transport sockets are chosen by; what is no text is no label, and takes no other label with it.
fn labels(from: &LbEndpoint) -> BTreeMap<String, String> {
    let Some(fields) = metadata(from, SOCKET_MATCH) else { return BTreeMap::new() };
    let texts = fields.fields.keys().filter_map(|key| Some((key, wire::text(fields, key)?)));
    texts.map(|(key, text)| (key.clone(), text.to_owned())).collect()
}

/// Name and namespace of `name;namespace;canonical;revision;cluster`.
fn workload(from: &LbEndpoint) -> Option<(String, String)> {
    let mut parts = wire::text(metadata(from, "istio")?, "workload")?.split(';');
    match (parts.next()?, parts.next()?) {
        ("", _) => None,
        (name, namespace) => Some((name.to_owned(), namespace.to_owned())),
    }
}

fn health(status: i32) -> Health {
    match HealthStatus::try_from(status) {
        Ok(HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded) => {
            Health::Healthy
        }
        Ok(HealthStatus::Draining) => Health::Draining,
        Ok(HealthStatus::Unhealthy | HealthStatus::Timeout) | Err(_) => Health::Unhealthy,
    }
}

/// The endpoints of a cluster.
pub(super) fn build(served: &Served, listed: &Assignment, world: &World<'_>) -> Built {
    let name = &served.spec.name;
    let mut subject = Subject::new("endpoint", name);
    let mut missing = BTreeSet::new();
    let mut endpoints = Vec::with_capacity(listed.endpoints.len());
    let mut seen = HashSet::with_capacity(listed.endpoints.len());
    let weights = weights(&listed.endpoints, served.by_locality);
    for (from, weight) in listed.endpoints.iter().zip(weights) {
        if from.address.ip().to_canonical().is_loopback() && !world.settings.loopback_endpoints {
            subject.refuse(format!(
                "the endpoint {}, which is this pod itself, is left out",
                from.address
            ));
            continue;
        }
        if let Err(what) = reachable(from, served) {
            subject.refuse(format!("{what} is left out"));
            continue;
        }
        // A locality without weight gets nothing.
        if weight == 0 {
            continue;
        }
        if !seen.insert((from.address, from.transport as u8)) {
            subject.degrade(format!("{} is there twice", from.address));
            continue;
        }
        let hbone = from.transport == EndpointTransport::Hbone;
        let identities = if hbone { identities(from, world) } else { Vec::new() };
        if hbone && identities.is_empty() {
            missing.insert(from.address.ip().to_canonical());
        }
        let port = world.originate.map_or(HBONE_PORT, |originate| originate.port);
        endpoints.push(Endpoint {
            address: from.address,
            transport: from.transport,
            identities,
            tunnel_address: (hbone && port != HBONE_PORT)
                .then(|| SocketAddr::new(from.address.ip(), port)),
            weight,
            priority: from.priority,
            health: from.health,
            locality: from.locality.clone(),
        });
    }
    let set = EndpointSet { cluster: name.clone(), endpoints };
    Built { set, missing, notes: subject.notes }
}

/// The error says why it cannot be reached as asked.
fn reachable(from: &Listed, served: &Served) -> Result<(), String> {
    if served.matches.is_empty() {
        return Ok(());
    }
    let fits = |labels: &BTreeMap<String, String>| {
        labels.iter().all(|(key, value)| from.labels.get(key) == Some(value))
    };
    let chosen = served.matches.iter().find(|of| fits(&of.labels)).map(|of| &of.socket);
    match (chosen, &served.spec.tls) {
        (Some(Socket::Plain), None) => Ok(()),
        (Some(Socket::Tls(tls)), Some(own)) if tls == own => Ok(()),
        (Some(Socket::Broken(what)), _) => Err(format!("an endpoint that needs {what}")),
        (Some(Socket::Plain | Socket::Tls(_)), _) => {
            Err("an endpoint with other TLS than its neighbours".to_owned())
        }
        (None, _) => Err("an endpoint that no transport socket is for".to_owned()),
    }
}

/// Whom a tunnel's far end has to prove to be.
fn identities(from: &Listed, world: &World<'_>) -> Vec<String> {
    let place = (world.settings.network.clone(), from.address.ip().to_canonical());
    let found = world.workloads.at(&place, from.workload.as_ref());
    let prefixes = world.originate.map(|originate| originate.prefixes.as_slice());
    let trusted = |identity: &String| match prefixes {
        None | Some([]) => true,
        Some(prefixes) => prefixes.iter().any(|prefix| identity.starts_with(prefix.as_str())),
    };
    let mut identities: Vec<String> = match world.settings.endpoint_identity {
        EndpointIdentity::Workload => found.iter().map(|kept| kept.identity.clone()).collect(),
        EndpointIdentity::TrustDomain => match prefixes {
            None | Some([]) => vec![format!("spiffe://{}/", world.settings.trust_domain)],
            Some(prefixes) => widest(prefixes),
        },
    };
    identities.retain(trusted);
    identities.sort();
    identities.dedup();
    identities
}

/// Those that begin with no other: istiod lists the whole trust domain, and then its namespaces once more.
fn widest(prefixes: &[String]) -> Vec<String> {
    let covered = |prefix: &String| {
        prefixes.iter().any(|wider| wider != prefix && prefix.starts_with(wider.as_str()))
    };
    prefixes.iter().filter(|prefix| !covered(prefix)).cloned().collect()
}

/// Share of each endpoint among those of its priority; 0: none.
///
/// Where weights of localities count, Envoy draws a locality first and an endpoint of it then: the
/// share is the product of both, over the sum of the locality's endpoints.
fn weights(listed: &[Listed], by_locality: bool) -> Vec<u32> {
    if !by_locality {
        return listed.iter().map(|endpoint| endpoint.weight).collect();
    }
    let mut sums: BTreeMap<(u32, &str, &str, &str), u64> = BTreeMap::new();
    for endpoint in listed {
        let Locality { region, zone, subzone } = &endpoint.locality;
        *sums.entry((endpoint.priority, region, zone, subzone)).or_default() +=
            u64::from(endpoint.weight);
    }
    const SCALE: u64 = 10_000;
    let scaled: Vec<u64> = listed
        .iter()
        .map(|endpoint| {
            let Locality { region, zone, subzone } = &endpoint.locality;
            let sum = sums.get(&(endpoint.priority, region, zone, subzone)).copied().unwrap_or(1);
            let product = u128::from(endpoint.locality_weight)
                * u128::from(endpoint.weight)
                * u128::from(SCALE)
                / u128::from(sum.max(1));
            match endpoint.locality_weight {
                0 => 0,
                _ => u64::try_from(product).unwrap_or(u64::MAX).max(1),
            }
        })
        .collect();
    let divisor = scaled.iter().copied().fold(0, gcd).max(1);
    let largest = scaled.iter().copied().max().unwrap_or(1) / divisor;
    // Kept small enough that the sum of thousands fits into 32 bits.
    let shrink = (largest / 1_000_000).max(1);
    let fit = |weight: u64| match weight {
        0 => 0,
        weight => u32::try_from(weight / divisor / shrink).unwrap_or(u32::MAX).max(1),
    };
    scaled.into_iter().map(fit).collect()
}

fn gcd(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { gcd(other, one % other) }
}

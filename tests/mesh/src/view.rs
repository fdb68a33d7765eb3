//! What a cluster's ztunnels know at a moment, and how they choose with it.
//!
//! ztunnel: `src/state.rs` (`fetch_waypoint`, `find_upstream_from_service`, `load_balance`). A member is chosen at
//! random by its weight, among the healthy ones of the best locality; there is no retry.

use crate::identity::spiffe_in;
use cairn_proto::workload::{
    Address, GatewayAddress, Locality, Service, TunnelProtocol, Workload, WorkloadStatus, address,
    gateway_address, load_balancing,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// Services and workloads by the names of their resources.
#[derive(Debug, Clone, Default)]
pub struct View {
    services: BTreeMap<String, Service>,
    workloads: BTreeMap<String, Workload>,
}

/// Where one connection of an application goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pick {
    /// The member.
    pub member: SocketAddr,
    /// Who it must be.
    pub id: String,
}

/// Why a connection is not made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoPick {
    /// No service has that VIP and port.
    NoService,
    /// The service has no waypoint: the connection would go to a pod, past all L7 policy.
    NoWaypoint,
    /// The waypoint's service is not known.
    UnknownWaypoint,
    /// The waypoint has no member: the connection is refused.
    NoMember,
}

/// A member as a cluster's ztunnels see it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Address and port of the remap.
    pub at: SocketAddr,
    /// SPIFFE id that it must have.
    pub id: String,
    /// Share of the connections; 1 unless given.
    pub weight: u32,
    /// It is reached by HBONE.
    pub hbone: bool,
}

impl View {
    /// One more, or another of that name.
    pub(crate) fn put(&mut self, name: String, address: Address) {
        match address.r#type {
            Some(address::Type::Workload(workload)) => {
                self.workloads.insert(name, workload);
            }
            Some(address::Type::Service(service)) => {
                self.services.insert(name, service);
            }
            None => {}
        }
    }

    /// They are gone.
    pub(crate) fn remove(&mut self, names: &[String]) {
        for name in names {
            self.services.remove(name);
            self.workloads.remove(name);
        }
    }

    /// The service `namespace/hostname`.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.get(name)
    }

    /// Workloads with this address.
    pub fn workloads_at(&self, ip: IpAddr) -> Vec<&Workload> {
        let has = |workload: &&Workload| workload.addresses.iter().any(|bytes| is(bytes, ip));
        self.workloads.values().filter(has).collect()
    }

    /// The service that has this VIP and port.
    fn service_at(&self, vip: SocketAddr) -> Option<&Service> {
        self.services.values().find(|service| {
            let address = service
                .addresses
                .iter()
                .any(|found| found.length.is_none() && is(&found.address, vip.ip()));
            let port = service.ports.iter().any(|port| port.service_port == u32::from(vip.port()));
            address && port
        })
    }

    /// Names of all resources.
    pub(crate) fn names(&self) -> Vec<String> {
        self.services.keys().chain(self.workloads.keys()).cloned().collect()
    }

    /// Chooses a member for a connection from `source` to `vip`.
    ///
    /// # Errors
    /// Why there is none.
    pub fn pick(&self, source: IpAddr, vip: SocketAddr) -> Result<Pick, NoPick> {
        let service = self.service_at(vip).ok_or(NoPick::NoService)?;
        let waypoint = waypoint_of(service)?;
        let members = self.behind(waypoint)?;
        let waypoint = self.waypoint(waypoint)?;
        let origin = self.workloads_at(source).first().and_then(|found| found.locality.clone());
        let members = nearest(members, waypoint, origin.as_ref());
        let weights: Vec<u32> = members.iter().map(|(_, seen)| seen.weight).collect();
        let (_, seen) = members.get(weighted(&weights)).ok_or(NoPick::NoMember)?;
        Ok(Pick { member: seen.at, id: seen.id.clone() })
    }

    /// Members of the waypoint of the service that has this VIP; empty without one.
    pub fn members(&self, vip: SocketAddr) -> BTreeSet<Seen> {
        let members = self
            .service_at(vip)
            .and_then(|service| service.waypoint.as_ref())
            .and_then(|waypoint| self.behind(waypoint).ok());
        members.into_iter().flatten().map(|(_, seen)| seen).collect()
    }

    fn waypoint(&self, address: &GatewayAddress) -> Result<&Service, NoPick> {
        let Some(gateway_address::Destination::Hostname(name)) = &address.destination else {
            return Err(NoPick::UnknownWaypoint);
        };
        let key = format!("{}/{}", name.namespace, name.hostname);
        self.services.get(&key).ok_or(NoPick::UnknownWaypoint)
    }

    /// Healthy workloads of a waypoint's service, where its HBONE port is mapped.
    fn behind(&self, address: &GatewayAddress) -> Result<Vec<(&Workload, Seen)>, NoPick> {
        let service = self.waypoint(address)?;
        let key = format!("{}/{}", service.namespace, service.hostname);
        let mut members = Vec::new();
        for workload in self.workloads.values() {
            let Some(ports) = workload.services.get(&key) else { continue };
            let mapped = ports.ports.iter().find(|p| p.service_port == address.hbone_mtls_port);
            let port = mapped.and_then(|port| u16::try_from(port.target_port).ok());
            let ip = workload.addresses.first().and_then(|bytes| ip(bytes));
            let (Some(port @ 1..), Some(ip)) = (port, ip) else { continue };
            if workload.status() != WorkloadStatus::Healthy {
                continue;
            }
            let or = |value: &str, usual: &str| {
                if value.is_empty() { usual.to_owned() } else { value.to_owned() }
            };
            let seen = Seen {
                at: SocketAddr::new(ip, port),
                id: spiffe_in(
                    &or(&workload.trust_domain, "cluster.local"),
                    &workload.namespace,
                    &or(&workload.service_account, "default"),
                ),
                weight: workload.capacity.unwrap_or(1),
                hbone: workload.tunnel_protocol() == TunnelProtocol::Hbone,
            };
            members.push((workload, seen));
        }
        if members.is_empty() { Err(NoPick::NoMember) } else { Ok(members) }
    }
}

/// The waypoint for one connection; of several, one at random by weight.
fn waypoint_of(service: &Service) -> Result<&GatewayAddress, NoPick> {
    let weights: Vec<u32> = service.weighted_waypoints.iter().map(|one| one.weight).collect();
    let chosen = service.weighted_waypoints.get(weighted(&weights));
    let chosen = chosen.and_then(|one| one.destination.as_ref());
    chosen.or(service.waypoint.as_ref()).ok_or(NoPick::NoWaypoint)
}

/// ztunnel `load_balance`: with `FAILOVER`, those that match most scopes in their order; with `STRICT`, those that
/// match all; else all.
fn nearest<'a>(
    members: Vec<(&'a Workload, Seen)>,
    service: &Service,
    origin: Option<&Locality>,
) -> Vec<(&'a Workload, Seen)> {
    let Some(balancing) = &service.load_balancing else { return members };
    let scopes: Vec<load_balancing::Scope> = balancing.routing_preference().collect();
    let nothing = Locality::default();
    let origin = origin.unwrap_or(&nothing);
    let rank = |workload: &Workload| {
        let there = workload.locality.as_ref().unwrap_or(&nothing);
        let matches = |scope: &&load_balancing::Scope| match scope {
            load_balancing::Scope::Region => origin.region == there.region,
            load_balancing::Scope::Zone => origin.zone == there.zone,
            load_balancing::Scope::Subzone => origin.subzone == there.subzone,
            _ => true, // one network, and one node
        };
        scopes.iter().take_while(matches).count()
    };
    let wanted = match balancing.mode() {
        load_balancing::Mode::Failover => {
            members.iter().map(|(workload, _)| rank(workload)).max().unwrap_or(0)
        }
        load_balancing::Mode::Strict => scopes.len(),
        _ => return members,
    };
    members.into_iter().filter(|(workload, _)| rank(workload) >= wanted).collect()
}

/// An index at random, each with the share that its weight has; past the end when all are 0.
fn weighted(weights: &[u32]) -> usize {
    let total: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
    if total == 0 {
        return weights.len();
    }
    let random = ring::rand::generate::<[u8; 8]>(&ring::rand::SystemRandom::new()).unwrap();
    let mut left = u64::from_ne_bytes(random.expose()) % total;
    for (index, &weight) in weights.iter().enumerate() {
        let weight = u64::from(weight);
        if left < weight {
            return index;
        }
        left -= weight;
    }
    weights.len()
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes {
        [_, _, _, _] => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

fn is(bytes: &[u8], wanted: IpAddr) -> bool {
    ip(bytes) == Some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_proto::workload::{
        LoadBalancing, NamespacedHostname, NetworkAddress, Port, PortList, WeightedWaypoint,
    };

    const POOL: &str = "pool/pool.pool.svc.cluster.local";

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn waypoint() -> GatewayAddress {
        let hostname = NamespacedHostname {
            namespace: "pool".to_owned(),
            hostname: "pool.pool.svc.cluster.local".to_owned(),
        };
        GatewayAddress {
            destination: Some(gateway_address::Destination::Hostname(hostname)),
            hbone_mtls_port: 15008,
        }
    }

    fn service(namespace: &str, hostname: &str, vip: [u8; 4], port: u32) -> Service {
        let address = NetworkAddress { address: vip.to_vec(), ..NetworkAddress::default() };
        Service {
            namespace: namespace.to_owned(),
            hostname: hostname.to_owned(),
            addresses: vec![address],
            ports: vec![Port { service_port: port, target_port: port, app_protocol: 0 }],
            ..Service::default()
        }
    }

    fn member(last: u8, zone: &str, weight: Option<u32>) -> Workload {
        let ports = PortList {
            ports: vec![Port { service_port: 15008, target_port: 21001, app_protocol: 0 }],
        };
        Workload {
            namespace: "pool".to_owned(),
            service_account: "pool".to_owned(),
            addresses: vec![vec![10, 8, 3, last]],
            services: [(POOL.to_owned(), ports)].into(),
            locality: Some(Locality { zone: zone.to_owned(), ..Locality::default() }),
            capacity: weight,
            ..Workload::default()
        }
    }

    fn view(members: &[Workload]) -> View {
        let mut view = View::default();
        let mut app = service("shop", "app", [10, 96, 10, 1], 80);
        app.waypoint = Some(waypoint());
        view.services.insert("shop/app".to_owned(), app);
        let pool = service("pool", "pool.pool.svc.cluster.local", [10, 96, 0, 200], 15008);
        view.services.insert(POOL.to_owned(), pool);
        for (number, member) in members.iter().enumerate() {
            view.workloads.insert(format!("m{number}"), member.clone());
        }
        view
    }

    fn shares(view: &View, count: usize) -> BTreeMap<SocketAddr, usize> {
        let mut shares = BTreeMap::new();
        for _ in 0..count {
            let pick = view.pick(at("10.244.1.1:0").ip(), at("10.96.10.1:80")).unwrap();
            *shares.entry(pick.member).or_default() += 1;
        }
        shares
    }

    #[test]
    fn the_remapped_port_and_the_identity_are_the_members() {
        let pick = view(&[member(17, "", None)]).pick(at("10.244.1.1:0").ip(), at("10.96.10.1:80"));
        let wanted = Pick {
            member: at("10.8.3.17:21001"),
            id: "spiffe://cluster.local/ns/pool/sa/pool".to_owned(),
        };
        assert_eq!(pick, Ok(wanted));
    }

    #[test]
    fn why_there_is_none() {
        let source = at("10.244.1.1:0").ip();
        let mut known = view(&[]);
        assert_eq!(known.pick(source, at("10.96.10.9:80")), Err(NoPick::NoService));
        assert_eq!(known.pick(source, at("10.96.10.1:81")), Err(NoPick::NoService));
        assert_eq!(known.pick(source, at("10.96.10.1:80")), Err(NoPick::NoMember));
        known.services.remove(POOL);
        assert_eq!(known.pick(source, at("10.96.10.1:80")), Err(NoPick::UnknownWaypoint));
        known.services.get_mut("shop/app").unwrap().waypoint = None;
        assert_eq!(known.pick(source, at("10.96.10.1:80")), Err(NoPick::NoWaypoint));
        let mut sick = member(17, "", None);
        sick.set_status(WorkloadStatus::Unhealthy);
        assert_eq!(view(&[sick]).pick(source, at("10.96.10.1:80")), Err(NoPick::NoMember));
    }

    #[test]
    fn weights_are_shares() {
        let view = view(&[member(17, "", Some(3)), member(18, "", None)]);
        let shares = shares(&view, 4000);
        let heavy = shares[&at("10.8.3.17:21001")];
        assert!((2700..3300).contains(&heavy), "{shares:?}"); // 3000, deviation 27
    }

    #[test]
    fn the_own_zone_is_preferred_and_left_when_it_is_empty() {
        let balancing = |mode: load_balancing::Mode| LoadBalancing {
            routing_preference: vec![load_balancing::Scope::Zone.into()],
            mode: mode.into(),
            ..LoadBalancing::default()
        };
        let mut known = view(&[member(17, "z1", None), member(18, "z2", None)]);
        let mut client = Workload { addresses: vec![vec![10, 244, 1, 1]], ..Workload::default() };
        client.locality = Some(Locality { zone: "z2".to_owned(), ..Locality::default() });
        known.workloads.insert("client".to_owned(), client);
        assert_eq!(shares(&known, 100).len(), 2);
        let pool = known.services.get_mut(POOL).unwrap();
        pool.load_balancing = Some(balancing(load_balancing::Mode::Failover));
        assert_eq!(shares(&known, 100), BTreeMap::from([(at("10.8.3.18:21001"), 100)]));
        known.workloads.remove("m1");
        assert_eq!(shares(&known, 100), BTreeMap::from([(at("10.8.3.17:21001"), 100)]));
        let pool = known.services.get_mut(POOL).unwrap();
        pool.load_balancing = Some(balancing(load_balancing::Mode::Strict));
        let pick = known.pick(at("10.244.1.1:0").ip(), at("10.96.10.1:80"));
        assert_eq!(pick, Err(NoPick::NoMember));
    }

    #[test]
    fn a_canary_has_its_share_and_none_at_weight_0() {
        let mut known = view(&[member(17, "", None)]);
        let app = known.services.get_mut("shop/app").unwrap();
        let mut other = waypoint();
        if let Some(gateway_address::Destination::Hostname(name)) = &mut other.destination {
            name.hostname = "other".to_owned();
        }
        let weighted = |destination: GatewayAddress, weight: u32| WeightedWaypoint {
            destination: Some(destination),
            weight,
        };
        app.weighted_waypoints = vec![weighted(other.clone(), 90), weighted(waypoint(), 10)];
        let count = |known: &View| {
            let source = at("10.244.1.1:0").ip();
            (0..2000).filter(|_| known.pick(source, at("10.96.10.1:80")).is_ok()).count()
        };
        assert!((120..300).contains(&count(&known)), "200 of 2000, deviation 13");
        let app = known.services.get_mut("shop/app").unwrap();
        app.weighted_waypoints = vec![weighted(other, 100), weighted(waypoint(), 0)];
        assert_eq!(count(&known), 0);
    }
}

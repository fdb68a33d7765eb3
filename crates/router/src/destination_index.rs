//! From what CONNECT named to a destination.
//!
//! A host name is looked up as such. An address goes to the most specific network that has it; at
//! each network the exact port comes before "every port" (Envoy: `IPMatcher` around a port map,
//! not exclusive: a network that does not know the port leaves it to a wider one). One address is a
//! network of full length. `0.0.0.0` and `::` name nothing; IPv4-mapped IPv6 is IPv4.

use crate::destination::{Destination, TargetRef};
use ahash::AHashMap;
use ipnet::{IpNet, Ipv4Net};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Destinations by host name and address.
#[derive(Debug, Default)]
pub(crate) struct DestinationIndex {
    hosts: AHashMap<Box<str>, Ports>,
    /// Networks of full length.
    addresses: AHashMap<IpAddr, Ports>,
    /// Wider networks by the length of their prefix.
    v4: BTreeMap<u8, AHashMap<IpAddr, Ports>>,
    v6: BTreeMap<u8, AHashMap<IpAddr, Ports>>,
}

/// The destinations of one name: mostly a single one.
#[derive(Debug)]
struct Ports {
    first: Arc<Destination>,
    /// Few: searched from the front.
    others: Vec<Arc<Destination>>,
}

impl DestinationIndex {
    /// With room for so many destinations of one host and one address each.
    pub(crate) fn with_capacity(destinations: usize) -> Self {
        DestinationIndex {
            hosts: AHashMap::with_capacity(destinations),
            addresses: AHashMap::with_capacity(destinations),
            ..DestinationIndex::default()
        }
    }

    /// Adds a name; gives back who has it already.
    pub(crate) fn add_host(
        &mut self,
        host: &str,
        destination: &Arc<Destination>,
    ) -> Result<(), Arc<Destination>> {
        add(&mut self.hosts, host.to_ascii_lowercase().into(), destination)
    }

    /// Adds a network; gives back who has it already. Unspecified addresses are left out.
    pub(crate) fn add_network(
        &mut self,
        network: IpNet,
        destination: &Arc<Destination>,
    ) -> Result<(), Arc<Destination>> {
        let network = canonical(network);
        let (address, length) = (network.network(), network.prefix_len());
        if length == network.max_prefix_len() {
            if address.is_unspecified() {
                return Ok(());
            }
            return add(&mut self.addresses, address, destination);
        }
        let lengths = if address.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        add(lengths.entry(length).or_default(), address, destination)
    }

    pub(crate) fn get(&self, target: &TargetRef<'_>) -> Option<&Arc<Destination>> {
        match *target {
            TargetRef::Host(host, port) => {
                let host = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
                    Cow::Owned(host.to_ascii_lowercase())
                } else {
                    Cow::Borrowed(host)
                };
                self.hosts.get(&*host)?.get(port)
            }
            TargetRef::Addr(address) => self.by_address(address),
        }
    }

    fn by_address(&self, target: SocketAddr) -> Option<&Arc<Destination>> {
        let (address, port) = (target.ip().to_canonical(), target.port());
        if address.is_unspecified() {
            return None;
        }
        if let Some(found) = self.addresses.get(&address).and_then(|ports| ports.get(port)) {
            return Some(found);
        }
        let lengths = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        lengths.iter().rev().find_map(|(length, networks)| {
            let network = IpNet::new(address, *length).ok()?.network();
            networks.get(&network)?.get(port)
        })
    }
}

impl Ports {
    /// `None`: every port.
    fn of(&self, port: Option<u16>) -> Option<&Arc<Destination>> {
        if self.first.port == port {
            return Some(&self.first);
        }
        self.others.iter().find(|destination| destination.port == port)
    }

    fn get(&self, port: u16) -> Option<&Arc<Destination>> {
        self.of(Some(port)).or_else(|| self.of(None))
    }
}

/// Adds a destination to those of one name; gives back who has its port already.
fn add<K: Eq + Hash>(
    names: &mut AHashMap<K, Ports>,
    name: K,
    destination: &Arc<Destination>,
) -> Result<(), Arc<Destination>> {
    match names.entry(name) {
        Entry::Vacant(entry) => {
            entry.insert(Ports { first: Arc::clone(destination), others: Vec::new() });
        }
        Entry::Occupied(mut entry) => match entry.get().of(destination.port) {
            // The same name twice in one destination.
            Some(owner) if Arc::ptr_eq(owner, destination) => {}
            Some(owner) => return Err(Arc::clone(owner)),
            None => entry.get_mut().others.push(Arc::clone(destination)),
        },
    }
    Ok(())
}

/// Networks inside `::ffff:0:0/96` are IPv4 networks.
fn canonical(network: IpNet) -> IpNet {
    if let IpNet::V6(v6) = network
        && let Some(length) = v6.prefix_len().checked_sub(96)
        && let Some(v4) = v6.network().to_ipv4_mapped()
        && let Ok(v4) = Ipv4Net::new(v4, length)
    {
        return IpNet::V4(v4.trunc());
    }
    network.trunc()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::destination::Tenant;
    use proptest::prelude::*;

    fn destination(name: &str, port: Option<u16>) -> Arc<Destination> {
        Arc::new(Destination {
            name: name.into(),
            tenant: Tenant { mesh: "mesh".into(), namespace: "shop".into() },
            port,
            connection: Vec::new(),
            http: None,
            tcp: None,
            broken: None,
        })
    }

    fn index(of: &[(&str, Option<u16>)]) -> DestinationIndex {
        let mut index = DestinationIndex::default();
        for (network, port) in of {
            let name = port.map_or((*network).to_owned(), |port| format!("{network}!{port}"));
            let made = destination(&name, *port);
            if let Ok(address) = network.parse::<IpAddr>() {
                index.add_network(address.into(), &made).unwrap();
            } else if let Ok(network) = network.parse() {
                index.add_network(network, &made).unwrap();
            } else {
                index.add_host(network, &made).unwrap();
            }
        }
        index
    }

    #[track_caller]
    fn expect(index: &DestinationIndex, target: &str, name: Option<&str>) {
        let target_ref = match target.parse() {
            Ok(address) => TargetRef::Addr(address),
            Err(_) => {
                let (host, port) = target.split_once(':').unwrap();
                TargetRef::Host(host, port.parse().unwrap())
            }
        };
        assert_eq!(index.get(&target_ref).map(|found| &*found.name), name, "{target}");
    }

    #[test]
    fn most_specific_network_then_port() {
        let index = index(&[
            ("10.0.0.1", Some(80)),
            ("10.0.0.1", Some(443)),
            ("10.0.0.2", None),
            ("10.0.0.0/24", Some(80)),
            ("10.0.0.0/24", Some(9000)),
            ("10.0.0.0/8", None),
            ("fd00::1", Some(80)),
            ("fd00::/16", None),
            ("App.shop.svc.cluster.local", Some(80)),
            ("any.example", None),
        ]);
        for (target, name) in [
            ("10.0.0.1:80", Some("10.0.0.1!80")),
            ("10.0.0.1:443", Some("10.0.0.1!443")),
            ("10.0.0.1:9000", Some("10.0.0.0/24!9000")),
            ("10.0.0.1:81", Some("10.0.0.0/8")),
            ("10.0.0.2:80", Some("10.0.0.2")),
            ("10.0.0.3:80", Some("10.0.0.0/24!80")),
            ("10.9.0.3:80", Some("10.0.0.0/8")),
            ("11.0.0.1:80", None),
            ("[::ffff:10.0.0.1]:80", Some("10.0.0.1!80")),
            ("[fd00::1]:80", Some("fd00::1!80")),
            ("[fd00::1]:81", Some("fd00::/16")),
            ("[fe00::1]:80", None),
            ("app.shop.svc.cluster.local:80", Some("App.shop.svc.cluster.local!80")),
            ("APP.SHOP.svc.cluster.local:80", Some("App.shop.svc.cluster.local!80")),
            ("app.shop.svc.cluster.local:81", None),
            ("any.example:1", Some("any.example")),
            ("other.example:1", None),
        ] {
            expect(&index, target, name);
        }
    }

    #[test]
    fn unspecified_addresses_name_nothing() {
        let index =
            index(&[("0.0.0.0", Some(80)), ("::", Some(80)), ("0.0.0.0/0", None), ("::/0", None)]);
        expect(&index, "0.0.0.0:80", None);
        expect(&index, "[::]:80", None);
        expect(&index, "[::ffff:0.0.0.0]:80", None);
        expect(&index, "1.2.3.4:80", Some("0.0.0.0/0"));
        expect(&index, "[1::]:80", Some("::/0"));
    }

    #[test]
    fn mapped_networks_are_ipv4() {
        let index = index(&[("::ffff:10.1.0.0/112", Some(80)), ("::ffff:10.2.0.1", None)]);
        expect(&index, "10.1.2.3:80", Some("::ffff:10.1.0.0/112!80"));
        expect(&index, "10.2.0.1:80", Some("::ffff:10.2.0.1"));
    }

    #[test]
    fn a_name_has_one_owner() {
        let (one, other) = (destination("one", Some(80)), destination("other", Some(80)));
        let mut index = DestinationIndex::default();
        let network = "10.0.0.0/24".parse().unwrap();
        assert!(index.add_network(network, &one).is_ok());
        assert!(index.add_network(network, &one).is_ok());
        assert_eq!(&*index.add_network(network, &other).unwrap_err().name, "one");
        assert!(index.add_host("a.example", &one).is_ok());
        assert_eq!(&*index.add_host("A.example", &other).unwrap_err().name, "one");
    }

    /// Few bits, so that networks overlap.
    fn networks() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (0_u32..64, 22_u8..=32).prop_map(|(low, length)| {
                IpNet::new(IpAddr::V4((0x0a00_0000 | low << 4).into()), length).unwrap().trunc()
            }),
            (0_u128..64, 118_u8..=128).prop_map(|(low, length)| {
                IpNet::new(IpAddr::V6(((0xfd00 << 112) | low << 4).into()), length).unwrap().trunc()
            }),
            (0_u32..64, 118_u8..=128).prop_map(|(low, length)| {
                let address = std::net::Ipv4Addr::from(0x0a00_0000 | low << 4).to_ipv6_mapped();
                IpNet::new(IpAddr::V6(address), length).unwrap().trunc()
            }),
        ]
    }

    fn ports() -> impl Strategy<Value = Option<u16>> {
        prop_oneof![Just(None), Just(Some(80)), Just(Some(81))]
    }

    proptest! {
        #[test]
        fn same_as_looking_at_every_network(
            entries in prop::collection::vec((networks(), ports()), 0..40),
            targets in prop::collection::vec((any::<bool>(), 0_u32..1024, 79_u16..82), 1..60),
        ) {
            let mut index = DestinationIndex::default();
            let mut added: Vec<(IpNet, Arc<Destination>)> = Vec::new();
            for (number, (network, port)) in entries.iter().enumerate() {
                let made = destination(&number.to_string(), *port);
                if index.add_network(*network, &made).is_ok() {
                    added.push((canonical(*network), made));
                }
            }
            for (v4, low, port) in targets {
                let address = if v4 {
                    IpAddr::V4((0x0a00_0000 | low).into())
                } else {
                    IpAddr::V6(((0xfd00_u128 << 112) | u128::from(low)).into())
                };
                let naive = added
                    .iter()
                    .filter(|(network, made)| {
                        network.contains(&address) && made.port.is_none_or(|known| known == port)
                    })
                    .max_by_key(|(network, made)| (network.prefix_len(), made.port.is_some()));
                let found = index.get(&TargetRef::Addr((address, port).into()));
                prop_assert_eq!(
                    found.map(|made| &made.name),
                    naive.map(|(_, made)| &made.name),
                    "{}:{}", address, port
                );
            }
        }
    }
}

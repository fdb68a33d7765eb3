//! Where the process listens.
//!
//! The ports are Istio's and fixed: probes, scrapes and istiod's listener name them. `CAIRN_PORTS` moves
//! them for tests and for hosts where one is taken: `15008=0,15021=127.0.0.1:18021`, each the port and
//! where to listen instead; 0 takes any free port. What was taken is in the log.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// HBONE.
pub const HBONE: u16 = 15008;
/// Admin pages, on loopback.
pub const ADMIN: u16 = 15000;
/// Metrics, and what the agent answers.
pub const AGENT: u16 = 15020;
/// Probes.
pub const STATUS: u16 = 15021;
/// Envoy's metrics.
pub const PROMETHEUS: u16 = 15090;

/// All of them.
const ALL: [u16; 5] = [HBONE, ADMIN, AGENT, STATUS, PROMETHEUS];

/// Where to listen instead.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ports(BTreeMap<u16, Instead>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instead {
    ip: Option<IpAddr>,
    port: u16,
}

/// What is wrong with `CAIRN_PORTS`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "CAIRN_PORTS: `{0}` cannot be used; write PORT=PORT or PORT=IP:PORT for one of 15000, 15008, 15020, 15021, 15090, \
     for example 15008=0,15021=127.0.0.1:18021"
)]
pub struct PortsError(String);

impl Ports {
    /// Reads the list; an empty one changes nothing.
    pub fn parse(text: &str) -> Result<Ports, PortsError> {
        let mut ports = BTreeMap::new();
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let read = || {
                let (port, instead) = entry.split_once('=')?;
                let port = port.trim().parse().ok().filter(|port| ALL.contains(port))?;
                let instead = instead.trim();
                let instead = match instead.parse::<SocketAddr>() {
                    Ok(address) => Instead { ip: Some(address.ip()), port: address.port() },
                    Err(_) => Instead { ip: None, port: instead.parse().ok()? },
                };
                Some((port, instead))
            };
            let (port, instead) = read().ok_or_else(|| PortsError(entry.to_owned()))?;
            ports.insert(port, instead);
        }
        Ok(Ports(ports))
    }

    /// Where to listen for `ip` and this port.
    pub fn at(&self, ip: IpAddr, port: u16) -> SocketAddr {
        match self.0.get(&port) {
            Some(instead) => SocketAddr::new(instead.ip.unwrap_or(ip), instead.port),
            None => SocketAddr::new(ip, port),
        }
    }
}

/// Every address of this machine, in the families that the pod has: `[::]` takes both.
pub fn everywhere(addresses: &[IpAddr]) -> IpAddr {
    if addresses.iter().any(IpAddr::is_ipv6) {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    }
}

/// Where to accept tunnels, by the addresses of the listener `connect_terminate`: one socket for all of
/// them, `[::]` where IPv6 is among them. `None` without an address.
pub fn tunnels(listener: &[SocketAddr]) -> Option<SocketAddr> {
    let v6 = listener.iter().find(|address| address.is_ipv6());
    v6.or(listener.first()).copied()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

    #[test]
    fn ports_move_alone_or_with_their_address() {
        let ports = Ports::parse(" 15008=0 ,15021=127.0.0.1:18021,15090=[::1]:9,").unwrap();
        assert_eq!(ports.at(ANY, HBONE), "0.0.0.0:0".parse().unwrap());
        assert_eq!(ports.at(ANY, STATUS), "127.0.0.1:18021".parse().unwrap());
        assert_eq!(ports.at(ANY, PROMETHEUS), "[::1]:9".parse().unwrap());
        assert_eq!(ports.at(ANY, AGENT), "0.0.0.0:15020".parse().unwrap());
        assert_eq!(Ports::parse("").unwrap(), Ports::default());
    }

    #[test]
    fn mistakes_are_shown_with_an_example() {
        for entry in ["15008", "15008=", "15007=1", "a=1", "15008=70000", "15008=host:1"] {
            let error = Ports::parse(entry).unwrap_err().to_string();
            assert!(error.contains(entry) && error.contains("15008=0"), "{error}");
        }
    }

    #[test]
    fn the_family_follows_the_pod() {
        let v4: IpAddr = "10.0.0.1".parse().unwrap();
        let v6: IpAddr = "fd00::1".parse().unwrap();
        assert_eq!(everywhere(&[v4]), ANY);
        assert!(everywhere(&[v6]).is_ipv6());
        assert!(everywhere(&[v4, v6]).is_ipv6());
        let listener = |addresses: &[&str]| {
            let addresses: Vec<SocketAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
            tunnels(&addresses).map(|address| address.to_string())
        };
        assert_eq!(listener(&["0.0.0.0:15008"]).as_deref(), Some("0.0.0.0:15008"));
        assert_eq!(listener(&["[::]:15008"]).as_deref(), Some("[::]:15008"));
        assert_eq!(listener(&["0.0.0.0:15008", "[::]:15008"]).as_deref(), Some("[::]:15008"));
        assert_eq!(listener(&[]), None);
    }
}

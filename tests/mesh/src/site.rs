//! Where the parts of one cluster listen, and what it calls itself: several clusters run side by side
//! in one network namespace, each on addresses of its own and on the usual ports.

use crate::namespace::ISTIOD;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// One cluster of the lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Put in front of the names of its logs, with a hyphen; empty for the only cluster of a lab.
    pub name: String,
    /// What istiod calls it.
    pub cluster_id: String,
    /// Of its mesh.
    pub trust_domain: String,
    /// Where etcd and the API server listen, and istiod's pages for operators.
    pub loopback: Ipv4Addr,
    /// Where istiod serves proxies.
    pub istiod: Ipv4Addr,
}

impl Default for Site {
    /// The only cluster of a lab: istiod is reached from the networks of pods, too.
    fn default() -> Self {
        Site {
            name: String::new(),
            cluster_id: "Kubernetes".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            loopback: Ipv4Addr::LOCALHOST,
            istiod: ISTIOD,
        }
    }
}

impl Site {
    /// The cluster of that name on `127.0.<number>.1`; `number` is 1 to 255.
    pub fn numbered(name: &str, number: u8) -> Self {
        let address = Ipv4Addr::new(127, 0, number, 1);
        Site {
            name: name.to_owned(),
            cluster_id: format!("cluster-{name}"),
            loopback: address,
            istiod: address,
            ..Site::default()
        }
    }

    /// The cluster of that name on `10.244.0.<number>`, which pods with a network of their own reach, too. istiod calls it
    /// as it calls any that nobody has named: so it is rendered into waypoints.
    pub fn reachable(name: &str, number: u8) -> Self {
        let address = Ipv4Addr::new(10, 244, 0, number);
        Site { name: name.to_owned(), loopback: address, istiod: address, ..Site::default() }
    }

    /// Name of a part's log.
    pub fn part(&self, role: &str) -> String {
        if self.name.is_empty() { role.to_owned() } else { format!("{}-{role}", self.name) }
    }

    /// A port of its loopback address.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.loopback), port)
    }

    /// The API server.
    pub fn api(&self) -> SocketAddr {
        self.at(6443)
    }

    /// istiod's secure port.
    pub fn istiod(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.istiod), 15012)
    }

    /// istiod's pages for operators.
    pub fn debug(&self) -> SocketAddr {
        self.at(8080)
    }

    /// istiod's metrics.
    pub fn metrics(&self) -> SocketAddr {
        self.at(15014)
    }
}

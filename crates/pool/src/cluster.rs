//! What is to be known of a user's cluster, and the names by which things find each other there.

use std::fmt;

/// Port of HBONE that ztunnels dial, as Istio has fixed it. Members listen on another one for each cluster; the
/// WorkloadGroup tells ztunnels which.
pub const HBONE_PORT: u16 = 15008;
/// By this label istiod finds the policies of a Gateway.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// What has this label gets no waypoint itself.
pub const MANAGED: &str = "gateway.istio.io/managed";
/// Value of [`MANAGED`].
pub const MANAGED_BY: &str = "istio.io-mesh-controller";
/// With the value `http`: reached by HBONE.
pub const TUNNEL: &str = "networking.istio.io/tunnel";

/// A user's cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserCluster {
    /// Namespace of the pool's objects. Default `waypoint-pool`.
    pub namespace: String,
    /// Name of Gateway, Service and WorkloadGroup. Default `waypoint-pool`.
    pub name: String,
    /// Who members are in this cluster. Default `waypoint-pool`.
    pub service_account: String,
    /// Port on which every member listens for this cluster, and for no other.
    pub port: u16,
    /// DNS domain of the cluster. Default `cluster.local`.
    pub domain: String,
    /// Namespaces that may use the pool.
    pub allowed: AllowedNamespaces,
    /// Clients prefer members of their zone; sensible with two members or more in each. Default `false`.
    pub prefer_close: bool,
}

/// Namespaces that may use the pool. Gateway API: `allowedRoutes`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AllowedNamespaces {
    /// All of them.
    #[default]
    All,
    /// Those with this label.
    Labelled {
        /// The label.
        key: String,
        /// Its value.
        value: String,
    },
}

/// What is wrong with a [`UserCluster`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserClusterError {
    /// A name that Kubernetes would refuse.
    #[error(
        "{what} `{value}` is no name for it: up to {most} lower-case letters, digits and `-`, with a letter or digit at both ends"
    )]
    Name {
        /// Which one.
        what: &'static str,
        /// As given.
        value: String,
        /// Longest, in characters.
        most: usize,
    },
    /// The port cannot be a member's.
    #[error(
        "port {0} cannot be a member's for this cluster: take one of 1024 to 65535 other than 15000, 15008, 15020, 15021 and 15090"
    )]
    Port(u16),
    /// The label cannot be one.
    #[error("`{0}` is no label: write KEY=VALUE, for example waypoint-pool/enabled=true")]
    Label(String),
}

/// Ports of a member that are not a cluster's.
const TAKEN: [u16; 5] = [15000, HBONE_PORT, 15020, 15021, 15090];

impl UserCluster {
    /// The usual names; members listen on `port`.
    pub fn new(port: u16) -> Self {
        let usual = || "waypoint-pool".to_owned();
        UserCluster {
            namespace: usual(),
            name: usual(),
            service_account: usual(),
            port,
            domain: "cluster.local".to_owned(),
            allowed: AllowedNamespaces::All,
            prefer_close: false,
        }
    }

    /// Checks that Kubernetes would take the names.
    ///
    /// # Errors
    /// The first that it would not.
    pub fn check(&self) -> Result<(), UserClusterError> {
        // A Gateway's name becomes the value of a label, and a Service's name the first label of a host.
        for (what, value, most) in [
            ("the namespace", &self.namespace, 63),
            ("the pool's name", &self.name, 63),
            ("the service account", &self.service_account, 63),
        ] {
            if !is_label(value, most) {
                return Err(UserClusterError::Name { what, value: value.clone(), most });
            }
        }
        if !self.domain.split('.').all(|part| is_label(part, 63)) || self.domain.len() > 253 {
            let value = self.domain.clone();
            return Err(UserClusterError::Name { what: "the domain", value, most: 253 });
        }
        if self.port < 1024 || TAKEN.contains(&self.port) {
            return Err(UserClusterError::Port(self.port));
        }
        match &self.allowed {
            AllowedNamespaces::All => Ok(()),
            AllowedNamespaces::Labelled { key, value } if is_key(key) && is_value(value) => Ok(()),
            AllowedNamespaces::Labelled { key, value } => {
                Err(UserClusterError::Label(format!("{key}={value}")))
            }
        }
    }

    /// The Service's host, which is the Gateway's address.
    pub fn host(&self) -> String {
        format!("{}.{}.svc.{}", self.name, self.namespace, self.domain)
    }

    /// Label of members, by which the Service selects them.
    pub fn member_label(&self) -> String {
        format!("{}/member", self.name)
    }
}

impl fmt::Display for AllowedNamespaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AllowedNamespaces::All => f.write_str("all"),
            AllowedNamespaces::Labelled { key, value } => write!(f, "{key}={value}"),
        }
    }
}

impl std::str::FromStr for AllowedNamespaces {
    type Err = UserClusterError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "all" {
            return Ok(AllowedNamespaces::All);
        }
        match text.split_once('=') {
            Some((key, value)) if is_key(key) && is_value(value) => {
                Ok(AllowedNamespaces::Labelled { key: key.to_owned(), value: value.to_owned() })
            }
            _ => Err(UserClusterError::Label(text.to_owned())),
        }
    }
}

/// RFC 1123, as Kubernetes checks it.
fn is_label(text: &str, most: usize) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty()
        && text.len() <= most
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_value(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let end = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(inner)
        && end(text.bytes().next())
        && end(text.bytes().last())
}

fn is_key(text: &str) -> bool {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let prefix = prefix.is_none_or(|prefix| {
        prefix.len() <= 253 && prefix.split('.').all(|part| is_label(part, 63))
    });
    prefix && !name.is_empty() && is_value(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_usual_names_are_good() {
        let cluster = UserCluster::new(21001);
        assert_eq!(cluster.check(), Ok(()));
        assert_eq!(cluster.host(), "waypoint-pool.waypoint-pool.svc.cluster.local");
        assert_eq!(cluster.member_label(), "waypoint-pool/member");
    }

    #[test]
    fn what_kubernetes_refuses_is_refused_here() {
        let long = "a".repeat(64);
        for bad in ["", "A", "-a", "a-", "a.b", "a b", "ä", "a\nb: c", long.as_str()] {
            let cluster = UserCluster { namespace: bad.to_owned(), ..UserCluster::new(21001) };
            assert!(cluster.check().is_err(), "{bad:?}");
            let cluster = UserCluster { domain: format!("x.{bad}"), ..UserCluster::new(21001) };
            assert_eq!(cluster.check().is_ok(), bad == "a.b", "{bad:?}");
        }
        for port in [0, 80, 1023, 15000, 15008, 15020, 15021, 15090] {
            assert_eq!(UserCluster::new(port).check(), Err(UserClusterError::Port(port)));
        }
    }

    #[test]
    fn labels_are_read_back() {
        for text in ["all", "waypoint-pool/enabled=true", "a="] {
            assert_eq!(text.parse::<AllowedNamespaces>().unwrap().to_string(), text);
        }
        for text in ["", "some", "=a", "/a=b", "a b=c", "a=b=c", "A.b/c/d=e", "a=-"] {
            assert!(text.parse::<AllowedNamespaces>().is_err(), "{text:?}");
        }
    }
}

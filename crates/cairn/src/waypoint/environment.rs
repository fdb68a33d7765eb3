//! What a pod tells its proxy: variables, two files, arguments, addresses. Plain data, so that what is
//! made of it can be tested without a pod.

use super::args::Args;
use super::paths::Paths;
use super::pod_info;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;

/// Everything that a pod tells its proxy.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Environment {
    /// The arguments.
    pub args: Args,
    /// The variables.
    pub vars: BTreeMap<String, String>,
    /// Contents of the labels' file, if there is one.
    pub labels: Option<String>,
    /// Contents of the annotations' file, if there is one.
    pub annotations: Option<String>,
    /// Addresses of this machine that the variables do not name, for the family that they lack.
    pub other_addresses: Vec<IpAddr>,
}

impl Environment {
    /// Of this process. Variables that are no UTF-8 are left out; a file that cannot be read is absent.
    pub fn of_process(args: Args) -> (Environment, Paths) {
        let vars: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let root = vars.get("CAIRN_ROOT").map_or("/", String::as_str);
        let paths = Paths::below(root);
        let environment = Environment {
            labels: read(&paths.labels()),
            annotations: read(&paths.annotations()),
            other_addresses: other_addresses(&vars),
            args,
            vars,
        };
        (environment, paths)
    }

    /// A variable that is set and not empty.
    pub fn var(&self, name: &str) -> Option<&str> {
        self.vars.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// A file may be absent; what is there and cannot be read is said.
fn read(path: &Path) -> Option<String> {
    let text = || -> io::Result<String> {
        let mut text = String::new();
        let file = std::fs::File::open(path)?;
        file.take(pod_info::MAX_FILE_BYTES).read_to_string(&mut text)?;
        Ok(text)
    };
    match text() {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot be read and is left out");
            None
        }
    }
}

/// A pod with two families is told one of its addresses: the other is that from which it would send.
/// Asked only in a pod that is told one address and no list.
fn other_addresses(vars: &BTreeMap<String, String>) -> Vec<IpAddr> {
    if vars.contains_key("INSTANCE_IPS") || vars.contains_key("CAIRN_ROOT") {
        return Vec::new();
    }
    let told = vars.get("INSTANCE_IP").and_then(|ip| ip.parse::<IpAddr>().ok());
    // Addresses that documentation may use; nothing is sent to them.
    let (from, to): (IpAddr, SocketAddr) = match told {
        Some(IpAddr::V4(_)) => {
            (Ipv6Addr::UNSPECIFIED.into(), ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 9).into())
        }
        Some(IpAddr::V6(_)) => (Ipv4Addr::UNSPECIFIED.into(), ([192, 0, 2, 1], 9).into()),
        None => return Vec::new(),
    };
    let source = || -> io::Result<IpAddr> {
        let socket = UdpSocket::bind((from, 0))?;
        socket.connect(to)?;
        Ok(socket.local_addr()?.ip())
    };
    let usable = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_unspecified() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unspecified() && !ip.is_unicast_link_local(),
    };
    source().ok().filter(usable).into_iter().collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_pod_are_read_below_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path());
        std::fs::create_dir_all(paths.labels().parent().unwrap()).unwrap();
        std::fs::write(paths.labels(), "a=\"b\"\n").unwrap();
        assert_eq!(read(&paths.labels()).as_deref(), Some("a=\"b\"\n"));
        assert_eq!(read(&paths.annotations()), None);
        assert_eq!(paths.at("/a/b"), paths.at("a/b"));
        assert!(paths.at("/a").starts_with(dir.path()));
    }

    #[test]
    fn an_empty_variable_is_none() {
        let vars = [("A", "x"), ("B", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let environment = Environment { vars, ..Environment::default() };
        assert_eq!(environment.var("A"), Some("x"));
        assert_eq!(environment.var("B"), None);
        assert_eq!(environment.var("C"), None);
    }

    #[test]
    fn addresses_are_not_looked_for_where_a_list_is_given() {
        let vars = |name: &str| [(name.to_owned(), "10.0.0.1".to_owned())].into();
        assert_eq!(other_addresses(&vars("INSTANCE_IPS")), Vec::<IpAddr>::new());
        assert_eq!(other_addresses(&BTreeMap::new()), Vec::<IpAddr>::new());
    }
}

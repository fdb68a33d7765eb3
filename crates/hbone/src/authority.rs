//! The `:authority` of a CONNECT: where the tunnel leads.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest DNS name, in bytes (RFC 1035 section 2.3.4, without the trailing dot).
const MAX_HOST_BYTES: usize = 253;

/// The longest DNS label, in bytes (RFC 1035 section 2.3.4).
const MAX_LABEL_BYTES: usize = 63;

/// The longest authority that is looked at, in bytes: a name, its trailing dot, a colon and five digits.
const MAX_AUTHORITY_BYTES: usize = MAX_HOST_BYTES + 1 + 1 + 5;

/// Where a tunnel leads: an address, or a service name that the receiver resolves.
///
/// `Display` gives the authority in canonical form: lower case, IPv6 in brackets, always with a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// `ip:port` or `[v6]:port`. An IPv4-mapped IPv6 address is held as IPv4, so that one destination has one spelling.
    Addr(SocketAddr),
    /// `host:port`, as clients of other networks send it.
    Host {
        /// A DNS name of at most 253 bytes, in lower case and without a trailing dot.
        host: String,
        /// 1 to 65535.
        port: u16,
    },
}

impl Target {
    /// Parses the authority of a CONNECT (RFC 9113 section 8.5: host and port, nothing else).
    ///
    /// # Errors
    ///
    /// Says which part is wrong. User information, zone ids, white space, a missing port and port 0 are refused, and
    /// so are names that look like a malformed IPv4 address.
    pub fn parse(authority: &str) -> Result<Self, AuthorityError> {
        if authority.is_empty() {
            return Err(AuthorityError::Empty);
        }
        if authority.len() > MAX_AUTHORITY_BYTES {
            return Err(AuthorityError::TooLong);
        }
        if let Some(rest) = authority.strip_prefix('[') {
            let (host, after) = rest.split_once(']').ok_or(AuthorityError::BadAddress)?;
            let ip: Ipv6Addr = host.parse().map_err(|_| AuthorityError::BadAddress)?;
            let port =
                after.strip_prefix(':').ok_or(AuthorityError::MissingPort).and_then(parse_port)?;
            return Ok(Self::from_ip(IpAddr::V6(ip), port));
        }
        let (host, port) = authority.rsplit_once(':').ok_or(AuthorityError::MissingPort)?;
        let port = parse_port(port)?;
        if let Ok(ip) = host.parse::<Ipv4Addr>() {
            return Ok(Self::from_ip(IpAddr::V4(ip), port));
        }
        Ok(Self::Host { host: parse_host(host)?, port })
    }

    /// The port, 1 to 65535.
    pub fn port(&self) -> u16 {
        match self {
            Self::Addr(addr) => addr.port(),
            Self::Host { port, .. } => *port,
        }
    }

    fn from_ip(ip: IpAddr, port: u16) -> Self {
        Self::Addr(SocketAddr::new(ip.to_canonical(), port))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl std::str::FromStr for Target {
    type Err = AuthorityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::parse(s)
    }
}

/// Why an authority is refused. The answer to it is 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// There is none.
    #[error("the authority is empty")]
    Empty,
    /// Longer than any name with a port.
    #[error("the authority is longer than {MAX_AUTHORITY_BYTES} bytes")]
    TooLong,
    /// No `:port` at the end.
    #[error("the authority has no port")]
    MissingPort,
    /// The port is not a number from 1 to 65535 in plain digits.
    #[error("the port is not a number from 1 to 65535")]
    BadPort,
    /// What stands in brackets is not an IPv6 address. Zone ids are refused.
    #[error("the address in brackets is not an IPv6 address")]
    BadAddress,
    /// The host is neither an IPv4 address nor a DNS name.
    #[error("the host is neither an IPv4 address nor a DNS name")]
    BadHost,
}

fn parse_port(digits: &str) -> Result<u16, AuthorityError> {
    let plain = !digits.is_empty()
        && digits.len() <= 5
        && !digits.starts_with('0')
        && digits.bytes().all(|b| b.is_ascii_digit());
    if !plain {
        return Err(AuthorityError::BadPort);
    }
    digits.parse().map_err(|_| AuthorityError::BadPort)
}

/// A DNS name in lower case. Underscores are allowed, as in names of SRV records and of some services.
fn parse_host(host: &str) -> Result<String, AuthorityError> {
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.is_empty() || host.len() > MAX_HOST_BYTES {
        return Err(AuthorityError::BadHost);
    }
    let mut last_is_numeric = false;
    for label in host.split('.') {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let fits = !label.is_empty() && label.len() <= MAX_LABEL_BYTES;
        if !fits || label.starts_with('-') || label.ends_with('-') || !label.bytes().all(allowed) {
            return Err(AuthorityError::BadHost);
        }
        last_is_numeric = label.bytes().all(|b| b.is_ascii_digit());
    }
    if last_is_numeric {
        return Err(AuthorityError::BadHost);
    }
    Ok(host.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_and_names() {
        let canonical = [
            ("10.88.0.3:80", "10.88.0.3:80"),
            ("[2001:db8::1]:443", "[2001:db8::1]:443"),
            ("[2001:DB8:0:0::1]:443", "[2001:db8::1]:443"),
            ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
            ("Web.Default.svc.cluster.local:8080", "web.default.svc.cluster.local:8080"),
            ("web.default.svc.cluster.local.:1", "web.default.svc.cluster.local:1"),
            ("localhost:65535", "localhost:65535"),
            ("_grpc._tcp.web:1", "_grpc._tcp.web:1"),
            ("1web:1", "1web:1"),
        ];
        for (given, expected) in canonical {
            assert_eq!(Target::parse(given).unwrap().to_string(), expected, "{given}");
        }
    }

    #[test]
    fn refusals() {
        use AuthorityError::*;
        let long = format!("{}:80", "a".repeat(64));
        let longer = format!("{}:80", "a.".repeat(200));
        let refused: &[(&str, AuthorityError)] = &[
            ("", Empty),
            ("10.0.0.1", MissingPort),
            ("web", MissingPort),
            ("[::1]", MissingPort),
            ("[::1]80", MissingPort),
            ("10.0.0.1:", BadPort),
            ("10.0.0.1:0", BadPort),
            ("10.0.0.1:65536", BadPort),
            ("10.0.0.1:+80", BadPort),
            ("10.0.0.1:080", BadPort),
            ("10.0.0.1:80 ", BadPort),
            ("web:80:80", BadHost),
            ("::1:80", BadHost),
            ("[::1:80", BadAddress),
            ("[10.0.0.1]:80", BadAddress),
            ("[fe80::1%eth0]:80", BadAddress),
            ("[]:80", BadAddress),
            (":80", BadHost),
            (".:80", BadHost),
            ("user@10.0.0.1:80", BadHost),
            ("user:pass@web:80", BadHost),
            (" web:80", BadHost),
            ("we b:80", BadHost),
            ("web..local:80", BadHost),
            ("-web:80", BadHost),
            ("web-:80", BadHost),
            ("wéb:80", BadHost),
            ("web/x:80", BadHost),
            ("10.0.0.256:80", BadHost),
            ("010.0.0.1:80", BadHost),
            ("10.0.1:80", BadHost),
            ("2130706433:80", BadHost),
            (&long, BadHost),
            (&longer, TooLong),
        ];
        for (given, expected) in refused {
            assert_eq!(Target::parse(given), Err(*expected), "{given:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in any::<String>()) {
            let _ = Target::parse(&text);
        }

        #[test]
        fn almost_authorities_never_panic(text in "[\\[\\]:.a-z0-9@%-]{0,40}") {
            let _ = Target::parse(&text);
        }

        #[test]
        fn display_parses_back(ip in any::<IpAddr>(), port in 1u16..) {
            let target = Target::parse(&SocketAddr::new(ip, port).to_string()).unwrap();
            prop_assert_eq!(&target, &Target::Addr(SocketAddr::new(ip.to_canonical(), port)));
            prop_assert_eq!(Target::parse(&target.to_string()).unwrap(), target);
        }

        #[test]
        fn names_parse_back(host in "[a-zA-Z0-9_]{1,20}(\\.[a-zA-Z][a-zA-Z0-9]{0,20}){1,4}", port in 1u16..) {
            let target = Target::parse(&format!("{host}:{port}")).unwrap();
            prop_assert_eq!(&target, &Target::Host { host: host.to_ascii_lowercase(), port });
            prop_assert_eq!(Target::parse(&target.to_string()).unwrap(), target);
        }
    }
}

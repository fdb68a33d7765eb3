//! The `forwarded` header (RFC 7239) as ztunnel fills it: the address of the application behind the tunnel.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The most parameters of the first element that are looked at.
const MAX_PARAMETERS: usize = 16;

/// The first element of a `forwarded` header: what the nearest sender says. Telemetry only, never trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// `for=`: the client, with port 0 where the header gives none. `None` for `unknown` and obfuscated names.
    pub client: Option<SocketAddr>,
    /// `host=`: the service that the client addressed.
    pub host: Option<String>,
}

impl Forwarded {
    /// Reads the first element of the header (RFC 7239 section 4). Tokens and quoted strings are understood, IPv6
    /// addresses stand in brackets. A malformed part ends the reading; what stood before it is kept.
    pub fn parse(header: &str) -> Self {
        let mut found = Self::default();
        let mut rest = header;
        for _ in 0..MAX_PARAMETERS {
            let Some((name, after)) = rest.split_once('=') else {
                break;
            };
            let Some((value, after)) = take_value(after) else {
                break;
            };
            match name.trim_matches([' ', '\t']) {
                name if name.eq_ignore_ascii_case("for") && found.client.is_none() => {
                    found.client = parse_node(&value);
                }
                name if name.eq_ignore_ascii_case("host") && found.host.is_none() => {
                    found.host = (!value.is_empty()).then_some(value);
                }
                _ => {}
            }
            match after.trim_start_matches([' ', '\t']).strip_prefix(';') {
                Some(after) => rest = after,
                None => break,
            }
        }
        found
    }
}

/// A token or a quoted string, and what follows it.
fn take_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ',', ' ', '\t', '"']).unwrap_or(text.len());
        let (token, rest) = text.split_at(end);
        return Some((token.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, quoted.get(at + 1..)?)),
            '\\' => value.push(chars.next()?.1),
            _ => value.push(c),
        }
    }
    None
}

/// RFC 7239 section 6: `node = nodename [ ":" node-port ]`, without obfuscated parts.
fn parse_node(node: &str) -> Option<SocketAddr> {
    if let Some(rest) = node.strip_prefix('[') {
        let (ip, after) = rest.split_once(']')?;
        let ip: Ipv6Addr = ip.parse().ok()?;
        let port = match after.strip_prefix(':') {
            Some(port) => parse_port(port)?,
            None if after.is_empty() => 0,
            None => return None,
        };
        return Some(SocketAddr::new(IpAddr::V6(ip), port));
    }
    let (ip, port) = match node.split_once(':') {
        Some((ip, port)) => (ip, parse_port(port)?),
        None => (node, 0),
    };
    Some(SocketAddr::new(IpAddr::V4(ip.parse().ok()?), port))
}

fn parse_port(digits: &str) -> Option<u16> {
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;
    use proptest::prelude::*;

    fn client(header: &str) -> Option<SocketAddr> {
        Forwarded::parse(header).client
    }

    #[test]
    fn as_ztunnel_sends_it() {
        let forwarded =
            Forwarded::parse("for=\"10.77.0.1:39052\";host=viahost.default.svc.cluster.local");
        assert_eq!(forwarded.client, Some("10.77.0.1:39052".parse().unwrap()));
        assert_eq!(forwarded.host.as_deref(), Some("viahost.default.svc.cluster.local"));
    }

    #[test]
    fn spellings() {
        let v6 = Some("[2001:db8::1]:4711".parse().unwrap());
        assert_eq!(client("For=\"[2001:db8::1]:4711\""), v6);
        assert_eq!(client("proto=http;by=203.0.113.43; for=\"[2001:db8::1]:4711\""), v6);
        assert_eq!(
            client("for=192.0.2.60;proto=http, for=1.1.1.1"),
            Some("192.0.2.60:0".parse().unwrap())
        );
        assert_eq!(client("for=\"192.0.2.\\60:80\""), Some("192.0.2.60:80".parse().unwrap()));
        assert_eq!(client("for=\"[::1]\""), Some("[::1]:0".parse().unwrap()));
        assert_eq!(client("for=192.0.2.1:80"), Some("192.0.2.1:80".parse().unwrap()));
    }

    #[test]
    fn refusals() {
        for header in [
            "",
            "for",
            "for=",
            "for=unknown",
            "for=_hidden",
            "for=\"10.0.0.1:_port\"",
            "for=\"10.0.0.1:+1\"",
            "for=\"10.0.0.1:65536\"",
            "for=\"10.0.0.1:1",
            "for=\"10.0.0.1\\",
            "for=\"[::1]x\"",
            "for=\"[fe80::1%eth0]:1\"",
            "for=::1",
            "host=a,for=10.0.0.1",
        ] {
            assert_eq!(client(header), None, "{header}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in any::<String>()) {
            let _ = Forwarded::parse(&text);
        }

        #[test]
        fn near_misses_never_panic(text in "(for|host|[=;,\"\\\\\\[\\]:. é0-9]){0,30}") {
            let _ = Forwarded::parse(&text);
        }

        #[test]
        fn quoted_addresses_come_back(addr in any::<SocketAddr>()) {
            let plain = SocketAddr::new(addr.ip(), addr.port());
            prop_assert_eq!(client(&format!("for=\"{plain}\"")), Some(plain));
        }
    }
}

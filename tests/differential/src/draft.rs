//! A request that is being made up.

use std::net::SocketAddr;

/// How HTTP is spoken inside of the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    H2c,
}

/// A request, and who sends it where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// What CONNECT names.
    pub target: SocketAddr,
    /// SPIFFE id of the client.
    pub client: String,
    /// Version of HTTP.
    pub protocol: Protocol,
    /// Method.
    pub method: String,
    /// Without a query.
    pub path: String,
    /// Names and values.
    pub query: Vec<(String, String)>,
    /// `Host` or `:authority`.
    pub authority: String,
    /// All others.
    pub headers: Vec<(String, String)>,
    /// Sent where it is not empty.
    pub body: Vec<u8>,
    /// From what it was made.
    pub about: String,
}

impl Draft {
    /// A plain `GET /`.
    pub fn new(target: SocketAddr, authority: &str, client: &str) -> Self {
        Draft {
            target,
            client: client.to_owned(),
            protocol: Protocol::Http1,
            method: "GET".to_owned(),
            path: "/".to_owned(),
            query: Vec::new(),
            authority: authority.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            about: String::new(),
        }
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Sets a header; names with a colon in front are what they stand for.
    pub fn set(&mut self, name: &str, value: &str) {
        match name {
            ":method" => value.clone_into(&mut self.method),
            ":authority" | "host" => value.clone_into(&mut self.authority),
            ":path" => self.set_path(value),
            _ if name.starts_with(':') => {}
            _ => {
                self.unset(name);
                self.headers.push((name.to_owned(), value.to_owned()));
            }
        }
    }

    /// Takes a header away.
    pub fn unset(&mut self, name: &str) {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
    }

    /// Sets path and, where there is one, query.
    pub fn set_path(&mut self, path: &str) {
        match path.split_once('?') {
            Some((path, query)) => {
                path.clone_into(&mut self.path);
                let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
                self.query = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
            }
            None => path.clone_into(&mut self.path),
        }
    }

    /// Path and query as they are sent.
    pub fn path_and_query(&self) -> String {
        let pairs: Vec<_> =
            self.query.iter().map(|(key, value)| format!("{key}={value}")).collect();
        match pairs.as_slice() {
            [] => self.path.clone(),
            pairs => format!("{}?{}", self.path, pairs.join("&")),
        }
    }

    /// It is a gRPC call.
    pub fn is_grpc(&self) -> bool {
        self.header("content-type").is_some_and(|kind| kind.starts_with("application/grpc"))
    }
}

impl std::fmt::Display for Draft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Draft { target, client, protocol, method, authority, headers, body, about, .. } = self;
        let path = self.path_and_query();
        writeln!(f, "{method} {path} ({protocol:?}, {about})")?;
        writeln!(f, "  to {target} from {client}")?;
        write!(f, "  host: {authority}")?;
        for (name, value) in headers {
            write!(f, "\n  {name}: {value}")?;
        }
        if !body.is_empty() {
            write!(f, "\n  {} bytes of body", body.len())?;
        }
        Ok(())
    }
}

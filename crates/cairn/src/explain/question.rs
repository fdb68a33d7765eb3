//! What is asked: who sends what where.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Headers of a question.
const MAX_HEADERS: usize = 100;

/// Who sends what where.
#[derive(Debug, Clone)]
pub struct Question {
    /// What CONNECT names.
    pub target: Target,
    /// What is asked inside of the tunnel; `None`: `GET /` where the destination speaks HTTP.
    pub request: Option<Asked>,
    /// The client's SPIFFE id.
    pub from: Option<String>,
    /// The client's address.
    pub source_ip: IpAddr,
    /// In which mesh, where there are several.
    pub mesh: Option<String>,
}

/// What CONNECT names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// An address and port.
    Address(SocketAddr),
    /// A host name and port.
    Host(String, u16),
}

/// A request.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Its method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// Its `:authority`; `None`: the destination's own name.
    pub authority: Option<String>,
    /// Its headers, without `host`.
    pub headers: HeaderMap,
}

/// A question as it is typed.
#[derive(Debug, Clone, Default)]
pub struct Words<'a> {
    /// `HOST:PORT`
    pub target: Option<&'a str>,
    /// `GET`
    pub method: Option<&'a str>,
    /// `/path?query`
    pub path: Option<&'a str>,
    /// `name: value`
    pub headers: Vec<&'a str>,
    /// SPIFFE id.
    pub from: Option<&'a str>,
    /// Address.
    pub source_ip: Option<&'a str>,
    /// Name.
    pub mesh: Option<&'a str>,
}

impl Words<'_> {
    /// Name and value of each, as [`Question::from_pairs`] takes them.
    pub fn pairs(&self) -> Vec<(&'static str, String)> {
        let one = |name, value: Option<&str>| value.map(|value| (name, value.to_owned()));
        [
            one("target", self.target),
            one("method", self.method),
            one("path", self.path),
            one("from", self.from),
            one("source_ip", self.source_ip),
            one("mesh", self.mesh),
        ]
        .into_iter()
        .flatten()
        .chain(self.headers.iter().map(|header| ("header", (*header).to_owned())))
        .collect()
    }
}

impl Question {
    /// From the query of a page; the error says what to write.
    pub fn from_pairs<'a>(
        pairs: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Result<Question, String> {
        let mut words = Words::default();
        for (name, value) in pairs {
            match name {
                "target" => words.target = Some(value),
                "method" => words.method = Some(value),
                "path" => words.path = Some(value),
                "header" => words.headers.push(value),
                "from" => words.from = Some(value),
                "source_ip" => words.source_ip = Some(value),
                "mesh" => words.mesh = Some(value),
                _ => return Err(format!("`{name}` is not known; {}", super::PAGE_HELP)),
            }
        }
        Question::parse(&words)
    }

    /// Checks what was typed; the error says what to write.
    pub fn parse(words: &Words<'_>) -> Result<Question, String> {
        let Words { target, method, path, headers, from, source_ip, mesh } = words;
        let target = target.ok_or("write a target, HOST:PORT")?.parse()?;
        let source_ip = match source_ip {
            None => Ipv4Addr::UNSPECIFIED.into(),
            Some(text) => text.parse().map_err(|_| format!("`{text}` is no IP address"))?,
        };
        if let Some(id) = from.filter(|id| !id.starts_with("spiffe://")) {
            return Err(format!(
                "`{id}` is no SPIFFE id; write spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT"
            ));
        }
        let request = match (method, path, headers.is_empty()) {
            (None, None, true) => None,
            _ => Some(Asked::parse(method.unwrap_or("GET"), path.unwrap_or("/"), headers)?),
        };
        Ok(Question {
            target,
            request,
            from: from.map(str::to_owned),
            source_ip,
            mesh: mesh.map(str::to_owned),
        })
    }
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse() {
            return Ok(Target::Address(address));
        }
        let wrong = || format!("`{text}` is no target; write HOST:PORT, for example 10.96.0.10:80");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        if host.is_empty() || host.contains([':', '/', ' ']) {
            return Err(wrong());
        }
        Ok(Target::Host(host.to_owned(), port))
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Address(address) => address.fmt(f),
            Target::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

impl Asked {
    /// `GET /`
    pub fn get() -> Self {
        let (method, headers) = (Method::GET, HeaderMap::new());
        Asked { method, path: "/".to_owned(), authority: None, headers }
    }

    fn parse(method: &str, path: &str, lines: &[&str]) -> Result<Self, String> {
        if lines.len() > MAX_HEADERS {
            return Err(format!("{MAX_HEADERS} headers are the most"));
        }
        let method = Method::from_bytes(method.as_bytes())
            .map_err(|_| format!("`{method}` is no method"))?;
        if !(path.starts_with('/') || path == "*") || path.contains([' ', '#']) {
            return Err(format!("`{path}` is no path; it begins with /"));
        }
        let mut asked = Asked { method, path: path.to_owned(), ..Asked::get() };
        for line in lines {
            let wrong = || format!("`{line}` is no header; write NAME: VALUE");
            // A pseudo-header begins with a colon.
            let name_len = line.get(1..).and_then(|rest| rest.find(':')).ok_or_else(wrong)? + 1;
            let (name, value) = line.split_at_checked(name_len).ok_or_else(wrong)?;
            let value = value.trim_start_matches(':').trim();
            match name.to_ascii_lowercase().as_str() {
                "host" | ":authority" => asked.authority = Some(value.to_owned()),
                name => {
                    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
                    asked.headers.append(name, HeaderValue::from_str(value).map_err(|_| wrong())?);
                }
            }
        }
        Ok(asked)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn targets() {
        assert_eq!("10.0.0.1:80".parse(), Ok(Target::Address("10.0.0.1:80".parse().unwrap())));
        assert_eq!("[fd00::1]:80".parse(), Ok(Target::Address("[fd00::1]:80".parse().unwrap())));
        assert_eq!("app.shop:80".parse(), Ok(Target::Host("app.shop".to_owned(), 80)));
        for wrong in ["app", "app:", ":80", "http://app:80", "app:x", "fd00::1:80:"] {
            assert!(wrong.parse::<Target>().unwrap_err().contains("HOST:PORT"), "{wrong}");
        }
    }

    #[test]
    fn a_question_survives_the_query() {
        let words = Words {
            target: Some("app:80"),
            path: Some("/a?b=c"),
            headers: vec!["x-a: 1", "Host: shop", ":authority: other:81"],
            from: Some("spiffe://td/ns/a/sa/b"),
            ..Words::default()
        };
        let pairs = words.pairs();
        let question = Question::from_pairs(pairs.iter().map(|(n, v)| (*n, v.as_str()))).unwrap();
        let asked = question.request.unwrap();
        assert_eq!((asked.method, asked.path.as_str()), (Method::GET, "/a?b=c"));
        assert_eq!(asked.authority.as_deref(), Some("other:81"));
        assert_eq!(asked.headers.len(), 1);
        assert_eq!(question.source_ip, IpAddr::from([0, 0, 0, 0]));
    }

    #[test]
    fn mistakes_are_explained() {
        let wrong =
            |pairs: &[(&str, &str)]| Question::from_pairs(pairs.iter().copied()).unwrap_err();
        assert!(wrong(&[]).contains("HOST:PORT"));
        assert!(wrong(&[("target", "a:1"), ("path", "x")]).contains("begins with /"));
        assert!(wrong(&[("target", "a:1"), ("header", "novalue")]).contains("NAME: VALUE"));
        assert!(wrong(&[("target", "a:1"), ("from", "bob")]).contains("spiffe://"));
        assert!(wrong(&[("taget", "a:1")]).contains("`taget` is not known"));
    }
}

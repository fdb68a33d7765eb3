//! What `curl`'s arguments ask for, checked before anything is dialled.

use crate::cli::{CurlArgs, Upgrade};
use crate::exchange::{Ask, Wire};
use crate::failure::Failure;
use crate::websocket;
use bytes::Bytes;
use cairn_hbone::Target;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};

/// One request, ready to be sent.
#[derive(Debug)]
pub struct Plan {
    /// Authority of the CONNECT.
    pub to: String,
    /// What is spoken inside the tunnel.
    pub wire: Wire,
    /// The request.
    pub ask: Ask,
    /// With an upgrade: the handshake's key and the message to send.
    pub message: Option<(String, String)>,
}

impl Plan {
    /// Checks the arguments against each other.
    pub fn new(args: &CurlArgs) -> Result<Plan, Failure> {
        let (host, path) = url(&args.url)?;
        let to = args.to.clone().unwrap_or_else(|| with_port(&host));
        Target::parse(&to).map_err(|error| {
            Failure::new(format!("--to {to}: {error}"))
                .hint("write ADDRESS:PORT or HOST:PORT, for example 10.96.0.10:80")
        })?;
        let mut headers = HeaderMap::new();
        for line in &args.headers {
            let (name, value) = header_line(line)?;
            headers.append(name, value);
        }
        let data = args.data.as_deref().map(data).transpose()?;
        let authority = args.authority.clone().unwrap_or(host);
        let wire = if args.h2c { Wire::H2c } else { Wire::Http1 };

        let Some(Upgrade::Websocket) = args.upgrade else {
            let method = match &args.method {
                Some(method) => self::method(method)?,
                None if data.is_some() => Method::POST,
                None => Method::GET,
            };
            let body = data.unwrap_or_default();
            let ask = Ask { method, authority, path, headers, body };
            return Ok(Plan { to, wire, ask, message: None });
        };
        let words = match data {
            Some(data) => String::from_utf8(data.into()).map_err(|_| {
                Failure::new("--data is not UTF-8; with --upgrade it is sent as text")
            })?,
            None => "hello".to_owned(),
        };
        let key = websocket::new_key();
        headers.extend(websocket::request_headers(&key));
        let ask = Ask { method: Method::GET, authority, path, headers, body: Bytes::new() };
        Ok(Plan { to, wire, ask, message: Some((key, words)) })
    }
}

/// Host with the port as it was written, and path with query.
fn url(text: &str) -> Result<(String, PathAndQuery), Failure> {
    let wrong =
        |why: &str| Failure::new(format!("`{text}`: {why}")).hint("write http://HOST[:PORT]/PATH");
    let uri: Uri =
        text.parse().map_err(|error: http::uri::InvalidUri| wrong(&error.to_string()))?;
    match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP => {}
        Some(scheme) if *scheme == Scheme::HTTPS => {
            return Err(wrong("the tunnel is the encryption; inside it plain HTTP is spoken"));
        }
        _ => return Err(wrong("no http URL")),
    }
    let authority = uri.authority().ok_or_else(|| wrong("no host"))?;
    if authority.as_str().contains('@') {
        return Err(wrong("a user name in a URL is not sent; use -H 'authorization: ...'"));
    }
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    Ok((authority.to_string(), path))
}

/// The authority with `:80` where it names no port.
fn with_port(authority: &str) -> String {
    let after_address = authority.rsplit(']').next().unwrap_or(authority);
    if after_address.contains(':') { authority.to_owned() } else { format!("{authority}:80") }
}

fn header_line(line: &str) -> Result<(HeaderName, HeaderValue), Failure> {
    let wrong = |why: &str| Failure::new(format!("-H '{line}': {why}")).hint("write 'Name: value'");
    let (name, value) = line.split_once(':').ok_or_else(|| wrong("there is no colon"))?;
    let name: HeaderName = name.trim().parse().map_err(|_| wrong("that is no header name"))?;
    if name == header::HOST {
        return Err(wrong("the host is set with --authority"));
    }
    let value =
        HeaderValue::from_str(value.trim()).map_err(|_| wrong("that is no header value"))?;
    Ok((name, value))
}

fn method(text: &str) -> Result<Method, Failure> {
    match text.parse() {
        Ok(Method::CONNECT) => Err(Failure::new("-X CONNECT: the tunnel itself is the CONNECT")),
        Ok(method) => Ok(method),
        Err(_) => Err(Failure::new(format!("-X {text}: that is no method"))),
    }
}

fn data(text: &str) -> Result<Bytes, Failure> {
    match text.strip_prefix('@') {
        Some(file) => std::fs::read(file)
            .map(Bytes::from)
            .map_err(|error| Failure::new(format!("--data @{file}: {error}"))),
        None => Ok(Bytes::copy_from_slice(text.as_bytes())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn plan(more: &[&str]) -> Result<Plan, String> {
        let always = ["cairn", "curl", "--cert", "c", "--key", "k", "--roots", "r"];
        let expect = ["--expect", "spiffe://t/ns/n/sa/s"];
        let line = always.iter().chain(&expect).chain(more);
        let Ok(Cli { command: Command::Curl(args) }) = Cli::try_parse_from(line) else { panic!() };
        Plan::new(&args).map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn the_url_gives_the_defaults() {
        let plan = plan(&["http://app.shop/a?b=c"]).unwrap();
        assert_eq!((plan.to.as_str(), plan.ask.authority.as_str()), ("app.shop:80", "app.shop"));
        assert_eq!((plan.ask.path.as_str(), plan.ask.method), ("/a?b=c", Method::GET));
        assert_eq!(plan.wire, Wire::Http1);
        assert_eq!(with_port("[::1]"), "[::1]:80");
        assert_eq!(with_port("[::1]:81"), "[::1]:81");
    }

    #[test]
    fn options_win() {
        let plan = plan(&[
            "http://app.shop:8080",
            "--to",
            "10.96.0.10:80",
            "--authority",
            "other",
            "-d",
            "x",
            "-H",
            "a: 1",
            "-H",
            "A:2",
            "--h2c",
        ])
        .unwrap();
        assert_eq!((plan.to.as_str(), plan.ask.authority.as_str()), ("10.96.0.10:80", "other"));
        assert_eq!((plan.ask.path.as_str(), plan.ask.method), ("/", Method::POST));
        assert_eq!(plan.ask.headers.get_all("a").iter().count(), 2);
        assert_eq!(plan.wire, Wire::H2c);
    }

    #[test]
    fn an_upgrade_has_its_handshake() {
        let plan = plan(&["http://a/ws", "--upgrade", "websocket", "-d", "hi"]).unwrap();
        let (key, words) = plan.message.unwrap();
        assert_eq!(words, "hi");
        assert_eq!(plan.ask.headers[header::SEC_WEBSOCKET_KEY], key);
        assert_eq!(plan.ask.method, Method::GET);
        assert!(plan.ask.body.is_empty());
    }

    #[test]
    fn mistakes_are_named() {
        for (line, word) in [
            (&["https://a/"][..], "plain HTTP"),
            (&["ftp://a/"], "no http URL"),
            (&["http://u:p@a/"], "user name"),
            (&["http://a/", "--to", "nowhere"], "--to nowhere"),
            (&["http://a/", "-H", "nocolon"], "no colon"),
            (&["http://a/", "-H", "host: b"], "--authority"),
            (&["http://a/", "-X", "CONNECT"], "tunnel"),
            (&["http://a/", "-X", "A B"], "no method"),
            (&["http://a/", "-d", "@/does/not/exist"], "/does/not/exist"),
        ] {
            let text = plan(line).unwrap_err();
            assert!(text.contains(word), "{line:?}: {text}");
        }
    }
}

//! Requests of our own to clusters of the mesh: what is told to collectors.
//!
//! They go the way of every other request: the cluster's load balancer chooses, the endpoint's pool has the
//! connection, a tunnel or TLS if the cluster says so. Nobody waits for them and no policy judges them.

use crate::breakers;
use crate::choose::{self, choose};
use crate::inbound::Inbound;
use crate::instance::MeshInstance;
use crate::link::{Link, LinkParts};
use crate::resolve::Resolved;
use crate::roll::Entry;
use crate::upstream::{Attempt, Upstream};
use bytes::{BufMut, Bytes, BytesMut};
use cairn_hbone::{ConnectHeaders, Peer, Target as ConnectTarget};
use cairn_router::cluster::Cluster;
use cairn_router::destination::{Destination, Tenant};
use cairn_router::endpoint::Endpoint;
use cairn_router::model::Mesh;
use cairn_router::spec::ClusterProtocol;
use cairn_telemetry::export::{Content, Deliver, Delivery, Target, Undelivered};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use pingora_core::protocols::http::custom::client::Session as _;
use pingora_http::RequestHeader;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};

const USER_AGENT: &str = concat!("cairn/", env!("CARGO_PKG_VERSION"));
/// Name of what stands in for a destination.
const NAME: &str = "cairn-export";

/// Sends for one mesh.
pub(crate) struct Courier {
    instance: Weak<MeshInstance>,
    /// Whose pools are used: those of the worker that it runs on.
    worker: usize,
}

impl Courier {
    pub(crate) fn new(instance: &Arc<MeshInstance>, worker: usize) -> Arc<Self> {
        Arc::new(Courier { instance: Arc::downgrade(instance), worker })
    }

    async fn send(&self, target: &Target, message: Vec<u8>) -> Result<(), Undelivered> {
        let instance = self.instance.upgrade().ok_or_else(|| undelivered("the mesh is gone"))?;
        let mesh = instance.mesh();
        let link = self.link(&instance, &mesh);
        let resolved = Arc::new(stand_in(&instance, &mesh));
        let (cluster, endpoint) = find(&link, &mesh, &target.cluster).await?;
        let room = breakers::request(&cluster)
            .map_err(|breakers::Overflow| undelivered("the cluster has no room"))?;
        let grpc = target.content == Content::Grpc;
        let http2 = grpc || cluster.protocol == ClusterProtocol::Http2;
        let inbound = Arc::new(Inbound::new(link, resolved));
        let _counted = endpoint.begin();
        let attempt = Attempt::new(Arc::clone(&inbound), cluster, endpoint, http2, None);
        let attempt = Arc::new(attempt.in_room(room));
        let body = if grpc { framed(&message)? } else { Bytes::from(message) };
        let mut head = head(target, body.len())?;
        head.extensions_mut().insert(Arc::clone(&attempt));
        match exchange(&inbound, head, body, grpc).await {
            Ok(answer) => answer,
            Err(error) => Err(Undelivered(match attempt.failure() {
                Some(failure) => format!("{}: {failure:?}", attempt.endpoint.address),
                None => format!("{}: {error}", attempt.endpoint.address),
            })),
        }
    }

    /// Nobody's tunnel: the peer is ourselves.
    fn link(&self, instance: &Arc<MeshInstance>, mesh: &Arc<Mesh>) -> Arc<Link> {
        let id = instance.identity().current().id.clone();
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        Arc::new(Link::new(LinkParts {
            instance: Arc::clone(instance),
            worker: self.worker,
            peer: Arc::new(Peer { local_id: id.clone(), id, addr: nowhere, local_addr: nowhere }),
            target: ConnectTarget::Host { host: NAME.to_owned(), port: 0 },
            connect_headers: ConnectHeaders::default(),
            entry: Arc::new(Entry::new(0, 0.0)),
            resolved: Arc::new(stand_in(instance, mesh)),
        }))
    }
}

impl Deliver for Courier {
    fn deliver<'a>(&'a self, target: &'a Target, message: Vec<u8>) -> Delivery<'a> {
        Box::pin(async move {
            tokio::time::timeout(target.timeout, self.send(target, message))
                .await
                .unwrap_or_else(|_| Err(undelivered("no answer in time")))
        })
    }
}

fn undelivered(reason: &str) -> Undelivered {
    Undelivered(reason.to_owned())
}

/// A destination that nothing leads to.
fn stand_in(instance: &MeshInstance, mesh: &Arc<Mesh>) -> Resolved {
    let destination = Destination {
        name: NAME.into(),
        tenant: Tenant { mesh: "".into(), namespace: "".into() },
        port: None,
        connection: Vec::new(),
        http: None,
        tcp: None,
        broken: None,
    };
    let tenant = instance.nobody();
    Resolved { mesh: Arc::clone(mesh), destination: Arc::new(destination), tenant }
}

async fn find(
    link: &Link,
    mesh: &Mesh,
    name: &str,
) -> Result<(Arc<Cluster>, Arc<Endpoint>), Undelivered> {
    let cluster = mesh.cluster(name).ok_or_else(|| undelivered("no such cluster"))?;
    if let Some(reason) = &cluster.broken {
        return Err(undelivered(reason));
    }
    let none = match choose(link, mesh, cluster, &[], 1) {
        Ok(endpoint) => return Ok((Arc::clone(cluster), endpoint)),
        Err(none) => none,
    };
    choose::wait(link, cluster, none).await.map_err(|none| Undelivered(none.details().into_owned()))
}

/// One message of gRPC: not compressed, its length, the message.
fn framed(message: &[u8]) -> Result<Bytes, Undelivered> {
    let length = u32::try_from(message.len()).map_err(|_| undelivered("message over 4 GiB"))?;
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(length);
    framed.put_slice(message);
    Ok(framed.freeze())
}

fn head(target: &Target, length: usize) -> Result<Box<RequestHeader>, Undelivered> {
    let Target { cluster, authority, path, headers, timeout: _, content } = target;
    let wrong = |what: &str| Undelivered(format!("{what} of the collector cannot be sent"));
    let mut head = RequestHeader::build(Method::POST, path.as_bytes(), Some(8 + headers.len()))
        .map_err(|_| wrong("the path"))?;
    let authority = if authority.is_empty() { cluster } else { authority };
    let mut put = |name: HeaderName, value: &str| {
        let value = HeaderValue::from_str(value).map_err(|_| wrong(name.as_str()))?;
        head.insert_header(name.clone(), value).map_err(|_| wrong(name.as_str()))
    };
    put(header::HOST, authority)?;
    put(header::USER_AGENT, USER_AGENT)?;
    match content {
        Content::Json => put(header::CONTENT_TYPE, "application/json")?,
        Content::Protobuf => put(header::CONTENT_TYPE, "application/x-protobuf")?,
        Content::Grpc => {
            put(header::CONTENT_TYPE, "application/grpc")?;
            put(header::TE, "trailers")?;
        }
    }
    if *content != Content::Grpc {
        put(header::CONTENT_LENGTH, &length.to_string())?;
    }
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong(name))?;
        put(name, value)?;
    }
    Ok(Box::new(head))
}

/// Sends and reads the answer to its end. The inner result is what the collector says.
async fn exchange(
    inbound: &Inbound,
    head: Box<RequestHeader>,
    body: Bytes,
    grpc: bool,
) -> pingora_error::Result<Result<(), Undelivered>> {
    let mut upstream = Upstream::default();
    upstream.write_request_header(head, false).await?;
    inbound.with_outgoing(|outgoing| {
        outgoing.push(body);
        outgoing.finish(None);
    });
    let write = async {
        inbound.flushed().await;
        Ok::<(), Box<pingora_error::Error>>(())
    };
    let read = async {
        let head = loop {
            upstream.read_response_header().await?;
            match upstream.response_header() {
                Some(head) if !head.status.is_informational() => break head.clone(),
                _ => {}
            }
        };
        while upstream.read_response_body().await?.is_some() {}
        let trailers = if grpc { upstream.read_trailers().await? } else { None };
        Ok((head, trailers))
    };
    let ((), (head, trailers)) = tokio::try_join!(write, read)?;
    upstream.release();
    Ok(judge(head.status, &head.headers, trailers.as_ref(), grpc))
}

/// What an answer means.
fn judge(
    status: http::StatusCode,
    headers: &HeaderMap,
    trailers: Option<&HeaderMap>,
    grpc: bool,
) -> Result<(), Undelivered> {
    if !status.is_success() {
        return Err(Undelivered(format!("answered {status}")));
    }
    if !grpc {
        return Ok(());
    }
    let fields = trailers.filter(|fields| fields.contains_key("grpc-status")).unwrap_or(headers);
    match crate::grpc::status_in(fields) {
        Some(0) => Ok(()),
        Some(code) => {
            let message = fields.get("grpc-message").and_then(|text| text.to_str().ok());
            Err(Undelivered(format!(
                "answered gRPC status {code}: {}",
                message.unwrap_or_default()
            )))
        }
        None => Err(undelivered("answered without a gRPC status")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use http::StatusCode;
    use std::time::Duration;

    fn target(content: Content) -> Target {
        Target {
            cluster: "collector".to_owned(),
            authority: String::new(),
            path: "/v1/traces?x=1".to_owned(),
            headers: vec![("X-Token".to_owned(), "t".to_owned())],
            timeout: Duration::from_secs(5),
            content,
        }
    }

    #[test]
    fn heads() {
        let get = |head: &RequestHeader, name: &str| {
            head.headers.get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        let json = head(&target(Content::Json), 7).unwrap();
        assert_eq!(json.uri.path_and_query().unwrap(), "/v1/traces?x=1");
        assert_eq!(get(&json, "host").unwrap(), "collector");
        assert_eq!(get(&json, "content-length").unwrap(), "7");
        assert_eq!(get(&json, "x-token").unwrap(), "t");
        let grpc = head(&target(Content::Grpc), 7).unwrap();
        assert_eq!(get(&grpc, "te").unwrap(), "trailers");
        assert_eq!(get(&grpc, "content-length"), None);
        let named = Target { authority: "c.example".to_owned(), ..target(Content::Protobuf) };
        assert_eq!(get(&head(&named, 0).unwrap(), "host").unwrap(), "c.example");
        let bad = Target { headers: vec![("a b".to_owned(), String::new())], ..named };
        assert!(head(&bad, 0).is_err());
    }

    #[test]
    fn answers() {
        let none = HeaderMap::new();
        let status = |code: &str| {
            let mut fields = HeaderMap::new();
            fields.insert("grpc-status", code.parse().unwrap());
            fields
        };
        let ok = StatusCode::OK;
        assert!(judge(ok, &none, None, false).is_ok());
        assert!(judge(StatusCode::ACCEPTED, &none, None, false).is_ok());
        assert!(judge(StatusCode::SERVICE_UNAVAILABLE, &none, None, false).is_err());
        assert!(judge(ok, &none, Some(&status("0")), true).is_ok());
        assert!(judge(ok, &status("0"), None, true).is_ok());
        assert!(judge(ok, &none, Some(&status("14")), true).is_err());
        assert!(judge(ok, &none, None, true).is_err());
        assert_eq!(&framed(b"abc").unwrap()[..], b"\0\0\0\0\x03abc");
    }
}

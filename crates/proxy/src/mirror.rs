//! Copies of requests for other clusters, whose answers are thrown away.
//!
//! A copy is sent when the original has been read to its end, so it never slows it
//! down; a body over the replay bound is not copied.

use crate::breakers;
use crate::choose::choose;
use crate::inbound::Inbound;
use crate::upstream::{Attempt, Upstream};
use bytes::{Bytes, BytesMut};
use cairn_router::action::Forward;
use cairn_router::cluster::Cluster;
use cairn_router::spec::ClusterProtocol;
use http::{HeaderValue, header};
use pingora_core::protocols::http::custom::client::Session as _;
use pingora_http::RequestHeader;
use std::sync::Arc;
use std::time::Duration;

/// Bound of a mirrored request that has no timeout of its own.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Copies of one request that are waiting for its body.
pub(crate) struct Mirror {
    inbound: Arc<Inbound>,
    head: RequestHeader,
    copies: Vec<Copy>,
    body: BytesMut,
    limit: usize,
    too_long: bool,
}

struct Copy {
    cluster: Arc<Cluster>,
    shadow_suffix: bool,
}

/// Room that a copy takes up until it is over.
struct Room(Arc<Inbound>);

impl Drop for Room {
    fn drop(&mut self) {
        self.0.link.instance.end_mirror();
    }
}

impl Mirror {
    /// Draws which mirrors of the route get a copy. `None`: none of them.
    pub(crate) fn of(
        forward: &Forward,
        inbound: &Arc<Inbound>,
        head: &RequestHeader,
    ) -> Option<Box<Mirror>> {
        let copies: Vec<Copy> = forward
            .mirrors
            .iter()
            .filter(|mirror| mirror.applies(rand::random()))
            .filter_map(|mirror| {
                let cluster = inbound.resolved.mesh.cluster(&mirror.cluster)?;
                cluster.broken.is_none().then(|| Copy {
                    cluster: Arc::clone(cluster),
                    shadow_suffix: mirror.shadow_suffix,
                })
            })
            .collect();
        (!copies.is_empty()).then(|| {
            Box::new(Mirror {
                inbound: Arc::clone(inbound),
                head: head.clone(),
                copies,
                body: BytesMut::new(),
                limit: inbound.link.instance.limits().max_replay,
                too_long: false,
            })
        })
    }

    /// Head of the copies.
    pub(crate) fn head_mut(&mut self) -> &mut RequestHeader {
        &mut self.head
    }

    /// Keeps part of the body.
    pub(crate) fn keep(&mut self, data: &[u8]) {
        if self.too_long || self.body.len() + data.len() > self.limit {
            self.too_long = true;
            self.body = BytesMut::new();
        } else {
            self.body.extend_from_slice(data);
        }
    }

    /// Sends the copies.
    pub(crate) fn start(self: Box<Self>) {
        let Mirror { inbound, head, copies, body, too_long, .. } = *self;
        let body = body.freeze();
        for copy in copies {
            let instance = &inbound.link.instance;
            if too_long || !instance.begin_mirror() {
                instance.counters().mirrors_shed.add_one();
                continue;
            }
            let room = Room(Arc::clone(&inbound));
            let Some(request) = Prepared::new(&inbound, &head, &copy, body.clone()) else {
                continue;
            };
            instance.counters().mirrored.add_one();
            tokio::spawn(async move {
                let _answer_is_thrown_away = tokio::time::timeout(TIMEOUT, request.send()).await;
                drop(room);
            });
        }
    }
}

/// `app-shadow:8000` of `app:8000` (Envoy: the suffix goes to the host).
fn shadow(host: &HeaderValue) -> Option<HeaderValue> {
    let bytes = host.as_bytes();
    let is_port = |at: &usize| bytes[at + 1..].iter().all(u8::is_ascii_digit);
    let end = bytes.iter().rposition(|byte| *byte == b':').filter(is_port).unwrap_or(bytes.len());
    let (host, port) = bytes.split_at_checked(end)?;
    HeaderValue::from_bytes(&[host, b"-shadow", port].concat()).ok()
}

/// One copy, ready to be sent.
struct Prepared {
    inbound: Arc<Inbound>,
    head: Box<RequestHeader>,
    body: Bytes,
}

impl Prepared {
    fn new(original: &Inbound, head: &RequestHeader, copy: &Copy, body: Bytes) -> Option<Self> {
        let mesh = &original.resolved.mesh;
        let endpoint = choose(&original.link, mesh, &copy.cluster, &[], 1).ok()?;
        let room = breakers::request(&copy.cluster).ok()?;
        let inbound =
            Arc::new(Inbound::new(Arc::clone(&original.link), Arc::clone(&original.resolved)));
        let http2 = match copy.cluster.protocol {
            ClusterProtocol::Http1 => false,
            ClusterProtocol::Http2 => true,
            ClusterProtocol::Downstream => head.version == http::Version::HTTP_2,
        };
        let attempt =
            Attempt::new(Arc::clone(&inbound), Arc::clone(&copy.cluster), endpoint, http2, None);
        let attempt = Arc::new(attempt.in_room(room));
        let mut head = Box::new(head.clone());
        if copy.shadow_suffix
            && let Some(host) = head.headers.get(header::HOST)
        {
            let shadow = shadow(host)?;
            head.insert_header(header::HOST, shadow).ok()?;
        }
        head.remove_header(&header::EXPECT);
        head.extensions_mut().insert(attempt);
        Some(Prepared { inbound, head, body })
    }

    async fn send(self) -> pingora_error::Result<()> {
        let mut upstream = Upstream::default();
        let empty = self.body.is_empty();
        upstream.write_request_header(self.head, empty).await?;
        self.inbound.with_outgoing(|outgoing| {
            outgoing.push(self.body);
            if !empty {
                outgoing.finish(None);
            }
        });
        let inbound = &self.inbound;
        let write = async {
            inbound.flushed().await;
            Ok::<(), Box<pingora_error::Error>>(())
        };
        let read = async {
            loop {
                upstream.read_response_header().await?;
                let interim =
                    upstream.response_header().is_some_and(|head| head.status.is_informational());
                if !interim {
                    break;
                }
            }
            while upstream.read_response_body().await?.is_some() {}
            Ok::<(), Box<pingora_error::Error>>(())
        };
        let _both: ((), ()) = tokio::try_join!(write, read)?;
        upstream.release();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_suffix_goes_to_the_host() {
        for (host, expected) in [
            ("app", "app-shadow"),
            ("app:8000", "app-shadow:8000"),
            ("[::1]:80", "[::1]-shadow:80"),
            ("[::1]", "[::1]-shadow"),
            ("", "-shadow"),
        ] {
            let host = HeaderValue::from_str(host).unwrap();
            assert_eq!(shadow(&host).unwrap(), expected);
        }
    }
}

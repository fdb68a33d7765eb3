//! Replies that we make ourselves, as Envoy makes them.

use crate::counted::{self, Counted};
use crate::date;
use crate::grpc;
use crate::head::HeadError;
use crate::link::Link;
use bytes::{BufMut, Bytes, BytesMut};
use cairn_router::format::{Facts, FormatContext};
use cairn_telemetry::{RequestEvent, ResponseFlags, SecurityPolicy, Timings};
use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header};
use pingora_error::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;
use std::borrow::Cow;
use std::time::SystemTime;

/// A reply of our own, and what the records say of it.
#[derive(Debug, Clone)]
pub(crate) struct LocalReply {
    pub(crate) status: StatusCode,
    pub(crate) body: Cow<'static, str>,
    pub(crate) flags: ResponseFlags,
    /// Envoy's response code details.
    pub(crate) details: Cow<'static, str>,
    /// For gRPC, where it is not the one that goes with `status`.
    pub(crate) grpc_status: Option<u32>,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// It is sent as it is: to a gRPC client, too, and without what the route changes in responses.
    pub(crate) plain: bool,
}

impl LocalReply {
    pub(crate) fn new(
        status: StatusCode,
        body: impl Into<Cow<'static, str>>,
        flags: ResponseFlags,
        details: impl Into<Cow<'static, str>>,
    ) -> Self {
        LocalReply {
            status,
            body: body.into(),
            flags,
            details: details.into(),
            grpc_status: None,
            headers: Vec::new(),
            plain: false,
        }
    }
}

/// How the client is to be answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form<'a> {
    pub(crate) grpc: bool,
    pub(crate) request: &'a RequestHeader,
}

impl LocalReply {
    /// What a gRPC client is told.
    pub(crate) fn grpc_status(&self) -> u32 {
        self.grpc_status.unwrap_or_else(|| grpc::status_of(self.status))
    }

    /// Head, but for the server's name, and body. To a gRPC request everything is in the head: 200 with `grpc-status` (Envoy: `sendLocalReply`).
    pub(crate) fn render(&self, form: Form<'_>) -> Result<(ResponseHeader, Bytes)> {
        let status = if form.grpc { StatusCode::OK } else { self.status };
        let mut head = ResponseHeader::build(status, Some(8))?;
        let mut body = Bytes::new();
        if form.grpc {
            head.insert_header(header::CONTENT_TYPE, "application/grpc")?;
            head.insert_header("grpc-status", self.grpc_status().to_string())?;
            if !self.body.is_empty() && form.request.method != Method::HEAD {
                head.insert_header("grpc-message", grpc::message(&self.body))?;
            }
        } else {
            let bodiless = matches!(self.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
            if bodiless {
                // Neither a body nor its length.
            } else if !self.body.is_empty() {
                head.insert_header(header::CONTENT_LENGTH, self.body.len())?;
                head.insert_header(header::CONTENT_TYPE, "text/plain")?;
                if form.request.method != Method::HEAD {
                    body = Bytes::copy_from_slice(self.body.as_bytes());
                }
            } else if form.request.version != Version::HTTP_2 {
                // HTTP/2 says it by ending the stream.
                head.insert_header(header::CONTENT_LENGTH, 0)?;
            }
        }
        for (name, value) in &self.headers {
            head.insert_header(name.clone(), value.clone())?;
        }
        head.insert_header(header::DATE, date::now())?;
        Ok((head, body))
    }
}

/// Sends a reply, past Pingora's session: that would not say that the head is the whole of it, and a gRPC client
/// would see trailers instead of a trailers-only response.
pub(crate) async fn send(session: &mut Session, head: ResponseHeader, body: Bytes) -> Result<()> {
    let session = session
        .as_downstream_mut()
        .as_custom_mut()
        .ok_or_else(|| Error::explain(ErrorType::InternalError, "a session that is not ours"))?;
    session.write_response_header(Box::new(head), body.is_empty()).await?;
    if !body.is_empty() {
        session.write_body(body, true).await?;
    }
    Ok(())
}

/// The answer to a request whose head is no good, in full: there is no session for it.
pub(crate) fn refused_head(error: HeadError) -> Bytes {
    let status = error.status();
    let mut out = BytesMut::with_capacity(256);
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.put_slice(b"\r\ndate: ");
    out.put_slice(date::now().as_bytes());
    out.put_slice(b"\r\nserver: istio-envoy\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    out.freeze()
}

/// Counts and records a request whose head was refused.
pub(crate) fn record_refused_head(link: &Link, error: HeadError) {
    link.instance.counters().refused_heads.add_one();
    let known = link.known();
    let chain = known.destination.http.as_ref();
    let settings = counted::settings(chain.and_then(|chain| chain.observe.as_ref()));
    let context = FormatContext::default();
    let facts = Facts { context: &context, request: None, response: None };
    let counted = Counted::by(settings, &facts);
    if counted.off {
        return;
    }
    link.metrics.record_request(&RequestEvent {
        mesh: link.instance.name(),
        tenant: &known.destination.tenant.namespace,
        source: Some(&link.source),
        source_principal: link.peer.id.as_str(),
        source_address: Some(link.peer.addr),
        security: SecurityPolicy::of_tunnel(link.peer.id.as_str(), link.peer.local_id.as_str()),
        target: &link.target_text,
        response_code: error.status().as_u16(),
        flags: ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR,
        details: error.details(),
        head_bytes_out: refused_head(error).len() as u64,
        timings: Timings { start: SystemTime::now(), ..Timings::default() },
        rules: counted.rules,
        dimensions: &counted.dimensions,
        ..RequestEvent::default()
    });
}

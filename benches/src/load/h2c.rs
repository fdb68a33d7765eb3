//! Unary gRPC calls on HTTP/2 in a tunnel, several at once.

use super::lane::{Failure, Lane};
use crate::world::ROUTES;
use bytes::Bytes;
use cairn_hbone::Defer;
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderValue, Method, Request, Version, header};
use std::sync::Arc;
use tokio::sync::Mutex;

/// Bytes of a gRPC message's own header.
const FRAME: usize = 5;

/// An HTTP/2 connection in a tunnel that several callers share.
pub struct Shared {
    lane: Lane,
    authority: String,
    current: Mutex<Option<(u64, SendRequest<Bytes>)>>,
}

/// One caller.
pub struct H2c {
    generation: u64,
    send: SendRequest<Bytes>,
    calls: Arc<Calls>,
    next: usize,
}

/// Prepared calls: one for each route, and a message.
pub struct Calls {
    heads: Vec<Request<()>>,
    message: Bytes,
}

impl Calls {
    /// With messages of `request_bytes`, asking for answers of `response_bytes`.
    pub fn new(request_bytes: usize, response_bytes: usize) -> Calls {
        let head = |path: &str, header: Option<(&'static str, &'static str)>| {
            let mut request = Request::new(());
            *request.method_mut() = Method::POST;
            *request.version_mut() = Version::HTTP_2;
            let uri = format!("http://echo.shop.svc.cluster.local{path}?bytes={response_bytes}");
            *request.uri_mut() = uri.parse().unwrap_or_default();
            let headers = request.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
            headers.insert(header::USER_AGENT, HeaderValue::from_static("grpc-benches/1"));
            if let Some((name, value)) = header.filter(|(name, _)| !name.starts_with(':')) {
                headers.insert(name, HeaderValue::from_static(value));
            }
            request
        };
        let mut message = vec![0; FRAME + request_bytes];
        if let Some(length) = message.get_mut(1..FRAME) {
            length.copy_from_slice(&(request_bytes as u32).to_be_bytes());
        }
        Calls {
            heads: ROUTES.iter().map(|route| head(route.sample, route.header)).collect(),
            message: message.into(),
        }
    }
}

impl Shared {
    /// Opened with the first call.
    pub fn new(lane: Lane, authority: String) -> Shared {
        Shared { lane, authority, current: Mutex::new(None) }
    }

    /// A caller; after a failure of `broken`, on a new connection unless somebody has opened it.
    pub async fn caller(
        &self,
        broken: Option<u64>,
        calls: &Arc<Calls>,
        first: usize,
    ) -> Result<H2c, Failure> {
        let mut current = self.current.lock().await;
        if let Some((generation, send)) =
            current.as_ref().filter(|(known, _)| Some(*known) != broken)
        {
            return Ok(H2c {
                generation: *generation,
                send: send.clone(),
                calls: Arc::clone(calls),
                next: first,
            });
        }
        *current = None;
        let tunnel = self.lane.open(&self.authority).await?;
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .handshake(tunnel)
            .await
            .map_err(|error| Failure::of_h2(&error))?;
        tokio::spawn(async move {
            let _shown_by_the_calls = Defer::new(connection, true).await;
        });
        let generation = broken.map_or(0, |broken| broken + 1);
        *current = Some((generation, send.clone()));
        Ok(H2c { generation, send, calls: Arc::clone(calls), next: first })
    }
}

impl H2c {
    /// Which connection this is, for [`Shared::caller`].
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// One call, to its trailers.
    pub async fn exchange(&mut self) -> Result<(), Failure> {
        let failed = |error: h2::Error| Failure::of_h2(&error);
        let Some(head) = self.calls.heads.get(self.next % self.calls.heads.len().max(1)) else {
            return Err(Failure::new("no request"));
        };
        self.next = self.next.wrapping_add(1);
        std::future::poll_fn(|cx| self.send.poll_ready(cx)).await.map_err(failed)?;
        let (response, mut body) = self.send.send_request(head.clone(), false).map_err(failed)?;
        body.send_data(self.calls.message.clone(), true).map_err(failed)?;
        finish(response).await
    }
}

async fn finish(response: ResponseFuture) -> Result<(), Failure> {
    let failed = |error: h2::Error| Failure::of_h2(&error);
    let (head, mut body) = response.await.map_err(failed)?.into_parts();
    while let Some(chunk) = body.data().await {
        let length = chunk.map_err(failed)?.len();
        body.flow_control().release_capacity(length).map_err(failed)?;
    }
    if head.status != 200 {
        return Err(Failure::new(format!("status {}", head.status.as_u16())));
    }
    let trailers = body.trailers().await.map_err(failed)?;
    let status = trailers.as_ref().unwrap_or(&head.headers).get("grpc-status");
    match status.and_then(|status| status.to_str().ok()) {
        Some("0") => Ok(()),
        Some(status) => Err(Failure::new(format!("grpc-status {status}"))),
        None => Err(Failure::new("no grpc-status")),
    }
}

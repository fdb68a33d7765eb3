//! One request and its response as a Pingora session, whatever protocol carries them.
//!
//! [`Codec`] is what HTTP/1.1 and HTTP/2 do differently; what Pingora asks of a session
//! beyond that is answered here once.

use super::{Replay, answered_early, pingora_addr};
use crate::inbound::{Inbound, digest_for};
use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use http::HeaderMap;
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::HttpTask;
use pingora_core::protocols::http::custom::{CustomMessageWrite, server::Session};
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_error::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

type MessageReader = Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>;

/// What is the same for both protocols.
pub(super) struct Shared {
    pub(super) request: RequestHeader,
    pub(super) inbound: Arc<Inbound>,
    digest: Digest,
    client: SocketAddr,
    server: SocketAddr,
    body_empty: bool,
    replay: Replay,
    /// The final head that was written.
    pub(super) response: Option<Box<ResponseHeader>>,
    /// The response was written to its end.
    pub(super) complete: bool,
    pub(super) sent: usize,
    read: usize,
}

impl Shared {
    pub(super) fn new(
        parts: http::request::Parts,
        inbound: Arc<Inbound>,
        body_empty: bool,
    ) -> Self {
        Shared {
            request: RequestHeader::from(parts),
            digest: digest_for(Arc::clone(&inbound)),
            client: pingora_addr(inbound.link.peer.addr),
            server: pingora_addr(inbound.link.peer.local_addr),
            inbound,
            body_empty,
            replay: Replay::default(),
            response: None,
            complete: false,
            sent: 0,
            read: 0,
        }
    }

    /// Body bytes have been read.
    pub(super) fn was_read(&mut self, data: &Bytes) {
        self.inbound.touch();
        self.read += data.len();
        self.replay.keep(data, self.inbound.replay_limit());
    }
}

/// What the protocols do differently.
pub(super) trait Codec: Send + Sync + Unpin + 'static {
    /// The next part of the request's body; `None` after the last. Cancel-safe.
    fn next_data(
        &mut self,
        shared: &mut Shared,
    ) -> impl Future<Output = Result<Option<Bytes>>> + Send;
    /// The request was read to its end.
    fn is_body_done(&self) -> bool;
    /// Nobody wants the rest of the request's body.
    fn discard_body(&mut self);
    /// Takes a head; with `end` nothing follows.
    fn put_head(
        &mut self,
        shared: &mut Shared,
        head: &ResponseHeader,
        end: bool,
    ) -> impl Future<Output = Result<()>> + Send;
    /// Takes part of the body; with `end` nothing follows.
    fn put_data(
        &mut self,
        shared: &mut Shared,
        data: Bytes,
        end: bool,
    ) -> impl Future<Output = Result<()>> + Send;
    /// Ends the response, if it was begun and is not over.
    fn end(
        &mut self,
        shared: &mut Shared,
        trailers: Option<HeaderMap>,
    ) -> impl Future<Output = Result<()>> + Send;
    /// Hands everything that was taken to the transport.
    fn flush(&mut self) -> impl Future<Output = Result<()>> + Send;
    /// Resolves when the client has reset the stream.
    fn poll_reset(&mut self, shared: &Shared, cx: &mut Context<'_>) -> Poll<Box<Error>>;
    /// The request asks to switch protocols.
    fn wants_upgrade(&self) -> bool;
    /// The protocols were switched.
    fn was_upgraded(&self) -> bool;
    /// Whatever is written from here on is lost: the response must not look whole.
    fn abandon(&mut self);
    /// The session is over.
    fn close(&mut self, shared: &mut Shared);
}

/// A request and its response.
pub(super) struct RequestSession<C: Codec> {
    shared: Shared,
    codec: C,
}

impl<C: Codec> RequestSession<C> {
    pub(super) fn new(shared: Shared, codec: C) -> Self {
        RequestSession { shared, codec }
    }

    async fn put_task(&mut self, task: HttpTask, last: bool) -> Result<bool> {
        let Self { shared, codec } = self;
        match task {
            HttpTask::Header(head, end) => {
                codec.put_head(shared, &head, end).await?;
                Ok(end && !head.status.is_informational())
            }
            HttpTask::Body(data, end) | HttpTask::UpgradedBody(data, end) => {
                let end = end || last;
                codec.put_data(shared, data.unwrap_or_default(), end).await?;
                Ok(end)
            }
            HttpTask::Trailer(trailers) => {
                codec.end(shared, trailers.map(|trailers| *trailers)).await?;
                Ok(true)
            }
            HttpTask::Done => {
                codec.end(shared, None).await?;
                Ok(true)
            }
            HttpTask::Failed(error) => {
                codec.abandon();
                Err(error)
            }
        }
    }
}

impl<C: Codec> Drop for RequestSession<C> {
    fn drop(&mut self) {
        self.codec.close(&mut self.shared);
    }
}

#[async_trait]
impl<C: Codec> Session for RequestSession<C> {
    fn req_header(&self) -> &RequestHeader {
        &self.shared.request
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        &mut self.shared.request
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        self.codec.next_data(&mut self.shared).await
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        while self.codec.next_data(&mut self.shared).await?.is_some() {}
        Ok(())
    }

    async fn write_response_header(
        &mut self,
        response: Box<ResponseHeader>,
        end: bool,
    ) -> Result<()> {
        self.write_response_header_ref(&response, end).await
    }

    async fn write_response_header_ref(
        &mut self,
        response: &ResponseHeader,
        end: bool,
    ) -> Result<()> {
        // Only replies of our own come this way.
        self.codec.discard_body();
        self.codec.put_head(&mut self.shared, response, end).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.codec.put_data(&mut self.shared, data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.codec.end(&mut self.shared, Some(trailers)).await
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut over = false;
        let mut tasks = tasks.into_iter().peekable();
        while let Some(task) = tasks.next() {
            // A body whose end is known already takes it along: one frame less.
            let last = matches!(tasks.peek(), Some(HttpTask::Done));
            over |= self.put_task(task, last).await?;
        }
        self.codec.flush().await?;
        Ok(over)
    }

    fn set_read_timeout(&mut self, _timeout: Option<Duration>) {}

    fn get_read_timeout(&self) -> Option<Duration> {
        None
    }

    fn set_write_timeout(&mut self, _timeout: Option<Duration>) {}

    fn get_write_timeout(&self) -> Option<Duration> {
        None
    }

    fn set_total_drain_timeout(&mut self, _timeout: Option<Duration>) {}

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        None
    }

    fn request_summary(&self) -> String {
        format!("{} {}", self.shared.request.method, self.shared.request.uri)
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.shared.response.as_deref()
    }

    async fn shutdown(&mut self, _code: u32, _ctx: &str) {
        self.codec.abandon();
    }

    fn is_body_done(&mut self) -> bool {
        self.codec.is_body_done()
    }

    async fn finish(&mut self) -> Result<()> {
        self.codec.end(&mut self.shared, None).await
    }

    fn is_body_empty(&mut self) -> bool {
        self.shared.body_empty
    }

    /// END_STREAM is no abort: the client still waits for its response. RST_STREAM is one. The body is read on
    /// only when the endpoint has taken what was read before.
    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        let Self { shared, codec } = self;
        let reading = !no_body_expected && !codec.is_body_done();
        if reading && shared.complete && !codec.was_upgraded() {
            return Err(answered_early());
        }
        let reset = std::future::poll_fn(|cx| {
            if let Poll::Ready(error) = codec.poll_reset(shared, cx) {
                return Poll::Ready(Some(error));
            }
            match shared.inbound.poll_flush(cx) {
                Poll::Ready(()) if reading => Poll::Ready(None),
                _ => Poll::Pending,
            }
        })
        .await;
        match reset {
            None => codec.next_data(shared).await,
            Some(error) => Err(error),
        }
    }

    fn body_bytes_sent(&self) -> usize {
        self.shared.sent
    }

    fn body_bytes_read(&self) -> usize {
        self.shared.read
    }

    fn digest(&self) -> Option<&Digest> {
        Some(&self.shared.digest)
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        Some(&mut self.shared.digest)
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        Some(&self.shared.client)
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        Some(&self.shared.server)
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        Bytes::new()
    }

    fn enable_retry_buffering(&mut self) {
        self.shared.replay.enabled = self.shared.inbound.replay_limit() > 0;
    }

    fn retry_buffer_truncated(&self) -> bool {
        let replay = &self.shared.replay;
        replay.truncated || (!replay.enabled && self.shared.read > 0)
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        self.shared.replay.take()
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(&mut self) -> Option<MessageReader> {
        Some(Box::new(futures::stream::empty()))
    }

    fn restore_custom_message_reader(&mut self, _reader: MessageReader) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        Some(Box::new(()))
    }

    fn restore_custom_message_writer(
        &mut self,
        _writer: Box<dyn CustomMessageWrite>,
    ) -> Result<()> {
        Ok(())
    }

    fn is_upgrade_req(&self) -> bool {
        self.codec.wants_upgrade()
    }

    fn was_upgraded(&self) -> bool {
        self.codec.was_upgraded()
    }
}

/// The client's stream has failed.
pub(super) fn read_failed(
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Box<Error> {
    Error::because(ErrorType::ConnectionClosed, "reading the request", error).into_down()
}

/// The client's stream takes nothing any more.
pub(super) fn write_failed(
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Box<Error> {
    Error::because(ErrorType::WriteError, "writing the response", error).into_down()
}

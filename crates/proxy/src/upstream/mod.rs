//! Requests to endpoints: Pingora's custom connector and its sessions.
//!
//! Pingora asks for a session before it knows the request; ours therefore connects
//! when the request's head is written, which carries the [`Attempt`] that says where to.

mod attempt;
mod body;
mod dial;
mod h1;
mod h2;
mod pool;
mod tls;

pub(crate) use attempt::{Attempt, Failure};
pub(crate) use dial::{Destination, dial};
pub(crate) use pool::EndpointPool;
pub(crate) use tls::ClusterTls;

use self::attempt::Bound;
use self::body::BodyWriter;
use self::h1::H1Exchange;
use self::h2::H2Exchange;
use ::http::HeaderMap;
use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use pingora_core::connectors::http::custom::{Connection, Connector};
use pingora_core::protocols::http::custom::{BodyWrite, CustomMessageWrite, client::Session};
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::protocols::{Digest, UniqueIDType};
use pingora_core::upstreams::peer::Peer;
use pingora_error::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use std::sync::Arc;
use std::time::Duration;

/// Hands out sessions; connections are pooled beside the endpoints.
pub(crate) struct Upstreams;

#[async_trait]
impl Connector for Upstreams {
    type Session = Upstream;

    async fn get_http_session<P: Peer + Send + Sync + 'static>(
        &self,
        _peer: &P,
    ) -> Result<(Connection<Upstream>, bool)> {
        Ok((Connection::Session(Upstream::default()), false))
    }

    async fn reused_http_session<P: Peer + Send + Sync + 'static>(
        &self,
        _peer: &P,
    ) -> Option<Upstream> {
        None
    }

    async fn release_http_session<P: Peer + Send + Sync + 'static>(
        &self,
        session: Upstream,
        _peer: &P,
        _idle_timeout: Option<Duration>,
    ) {
        session.release();
    }
}

/// One try, from its head to the end of its response.
#[derive(Default)]
pub(crate) struct Upstream {
    attempt: Option<Arc<Attempt>>,
    exchange: Exchange,
    response: Option<Box<ResponseHeader>>,
    upgraded: bool,
}

#[derive(Default)]
enum Exchange {
    #[default]
    None,
    H1(Box<H1Exchange>),
    H2(Box<H2Exchange>),
}

impl Upstream {
    /// Keeps the connection if it can carry another request.
    pub(crate) fn release(self) {
        if let (Some(attempt), Exchange::H1(exchange)) = (&self.attempt, self.exchange) {
            exchange.release(attempt);
        }
    }
}

/// The error that Pingora sees; what it means is in the attempt.
fn failed(attempt: &Attempt, failure: Failure) -> Box<Error> {
    let error = Error::explain(ErrorType::ConnectError, format!("{failure:?}")).into_up();
    attempt.fail(failure);
    error
}

fn timed_out() -> Box<Error> {
    Error::explain(ErrorType::ReadTimedout, "the upstream took too long").into_up()
}

fn not_started() -> Box<Error> {
    Error::explain(ErrorType::InternalError, "no request was sent on this session")
}

#[async_trait]
impl Session for Upstream {
    async fn write_request_header(&mut self, request: Box<RequestHeader>, end: bool) -> Result<()> {
        let attempt = request.extensions.get::<Arc<Attempt>>().cloned().ok_or_else(not_started)?;
        self.attempt = Some(Arc::clone(&attempt));
        let started = attempt
            .bounded(Bound::Try, async {
                if attempt.http2 {
                    H2Exchange::start(&attempt, &request, end)
                        .await
                        .map(|exchange| Exchange::H2(Box::new(exchange)))
                } else {
                    H1Exchange::start(&attempt, &request, end)
                        .await
                        .map(|exchange| Exchange::H1(Box::new(exchange)))
                }
            })
            .await
            .ok_or_else(timed_out)?;
        self.exchange = started.map_err(|failure| failed(&attempt, failure))?;
        Ok(())
    }

    async fn write_request_body(&mut self, _data: Bytes, _end: bool) -> Result<()> {
        Err(not_started())
    }

    async fn finish_request_body(&mut self) -> Result<()> {
        Ok(())
    }

    fn set_read_timeout(&mut self, _timeout: Option<Duration>) {}

    fn set_write_timeout(&mut self, _timeout: Option<Duration>) {}

    async fn read_response_header(&mut self) -> Result<()> {
        let attempt = self.attempt.as_ref().ok_or_else(not_started)?;
        let exchange = &mut self.exchange;
        let head = attempt
            .bounded(Bound::Try, async {
                match exchange {
                    Exchange::H1(exchange) => exchange.head(attempt).await,
                    Exchange::H2(exchange) => exchange.head().await,
                    Exchange::None => Err(Failure::Reset { reused: false }),
                }
            })
            .await
            .ok_or_else(timed_out)?;
        let head = head.map_err(|failure| failed(attempt, failure))?;
        self.upgraded = head.status == ::http::StatusCode::SWITCHING_PROTOCOLS;
        self.response = Some(Box::new(head));
        Ok(())
    }

    async fn read_response_body(&mut self) -> Result<Option<Bytes>> {
        let attempt = self.attempt.as_ref().ok_or_else(not_started)?;
        let exchange = &mut self.exchange;
        let read = async {
            match exchange {
                Exchange::H1(exchange) => exchange.data().await,
                Exchange::H2(exchange) => exchange.data().await,
                Exchange::None => Ok(None),
            }
        };
        let bound = if self.upgraded { Bound::Silence } else { Bound::Route };
        let data = attempt.bounded(bound, read).await.ok_or_else(timed_out)?;
        attempt.inbound.touch();
        data.map_err(|failure| failed(attempt, failure))
    }

    fn response_finished(&self) -> bool {
        match &self.exchange {
            Exchange::H1(exchange) => exchange.is_finished(),
            Exchange::H2(exchange) => exchange.is_finished(),
            Exchange::None => true,
        }
    }

    async fn shutdown(&mut self, _code: u32, _ctx: &str) {
        self.exchange = Exchange::None;
    }

    fn response_header(&self) -> Option<&ResponseHeader> {
        self.response.as_deref()
    }

    fn was_upgraded(&self) -> bool {
        self.upgraded
    }

    fn digest(&self) -> Option<&Digest> {
        None
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        None
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        None
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        None
    }

    async fn read_trailers(&mut self) -> Result<Option<HeaderMap>> {
        let attempt = self.attempt.as_ref().ok_or_else(not_started)?;
        let exchange = &mut self.exchange;
        let read = async {
            match exchange {
                Exchange::H1(exchange) => Ok(exchange.trailers()),
                Exchange::H2(exchange) => exchange.trailers().await,
                Exchange::None => Ok(None),
            }
        };
        let trailers = attempt.bounded(Bound::Route, read).await.ok_or_else(timed_out)?;
        trailers.map_err(|failure| failed(attempt, failure))
    }

    fn fd(&self) -> UniqueIDType {
        -1
    }

    async fn check_response_end_or_error(&mut self, _headers: bool) -> Result<bool> {
        Ok(!self.upgraded && self.response_finished())
    }

    fn take_request_body_writer(&mut self) -> Option<Box<dyn BodyWrite>> {
        let attempt = self.attempt.as_ref()?;
        Some(Box::new(BodyWriter::new(Arc::clone(&attempt.inbound))))
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        Some(Box::new(futures::stream::empty()))
    }

    async fn drain_custom_messages(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        Some(Box::new(()))
    }
}

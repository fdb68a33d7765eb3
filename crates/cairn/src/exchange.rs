//! HTTP inside a tunnel, from the client's side: HTTP/1.1 or HTTP/2 with prior knowledge over
//! any byte stream.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, header, uri::PathAndQuery};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

/// What is spoken inside the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    H2c,
}

/// A request, whatever it is spoken in.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Method.
    pub method: Method,
    /// `Host` or `:authority`.
    pub authority: String,
    /// Path and query.
    pub path: PathAndQuery,
    /// Further headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Ask {
    /// A GET without a body.
    pub fn get(authority: &str, path: PathAndQuery) -> Ask {
        Ask {
            method: Method::GET,
            authority: authority.to_owned(),
            path,
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }
}

/// A whole response.
#[derive(Debug)]
pub struct Answer {
    /// Status and headers.
    pub head: http::response::Parts,
    /// Body.
    pub body: Bytes,
    /// Trailers, if there were any.
    pub trailers: Option<HeaderMap>,
}

/// What can go wrong once the tunnel is open.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The authority or a header cannot be put in a request.
    #[error("the request cannot be built: {0}")]
    Request(#[from] http::Error),
    /// The connection broke, or what came is no HTTP.
    #[error("{}", whole(.0))]
    Http(#[from] hyper::Error),
    /// The body broke off, or is longer than the caller takes.
    #[error("the response body: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
}

/// A connection that requests can be sent on, one after the other.
pub enum Exchange {
    /// HTTP/1.1.
    Http1(http1::SendRequest<Full<Bytes>>),
    /// HTTP/2.
    H2c(http2::SendRequest<Full<Bytes>>),
}

impl Exchange {
    /// Starts speaking; a task of its own drives the connection until it ends.
    pub async fn open<S>(stream: S, wire: Wire) -> Result<Exchange, ExchangeError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let io = TokioIo::new(stream);
        match wire {
            Wire::Http1 => {
                let (sender, connection) = http1::handshake(io).await?;
                // Errors reach whoever waits for the response.
                tokio::spawn(connection.with_upgrades());
                Ok(Exchange::Http1(sender))
            }
            Wire::H2c => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                tokio::spawn(connection);
                Ok(Exchange::H2c(sender))
            }
        }
    }

    /// Sends a request and waits for the response's head.
    pub async fn send(&mut self, ask: &Ask) -> Result<Response<Incoming>, ExchangeError> {
        let mut request = Request::builder().method(ask.method.clone());
        request = match self {
            Exchange::Http1(_) => {
                request.uri(ask.path.as_str()).header(header::HOST, ask.authority.as_str())
            }
            Exchange::H2c(_) => request.uri(
                http::Uri::builder()
                    .scheme("http")
                    .authority(ask.authority.as_str())
                    .path_and_query(ask.path.clone())
                    .build()?,
            ),
        };
        let mut request = request.body(Full::new(ask.body.clone()))?;
        request.headers_mut().extend(ask.headers.clone());
        Ok(match self {
            Exchange::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Exchange::H2c(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        })
    }

    /// Sends a request and reads the whole response, at most `limit` bytes of body.
    pub async fn ask(&mut self, ask: &Ask, limit: usize) -> Result<Answer, ExchangeError> {
        let (head, body) = self.send(ask).await?.into_parts();
        let body = Limited::new(body, limit).collect().await.map_err(ExchangeError::Body)?;
        let trailers = body.trailers().cloned();
        Ok(Answer { head, body: body.to_bytes(), trailers })
    }
}

/// hyper's message alone says too little; the causes belong to it.
fn whole(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use hyper_util::server::conn::auto;
    use std::convert::Infallible;

    async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let host = match request.headers().get(header::HOST) {
            Some(host) => host.to_str().unwrap().to_owned(),
            None => request.uri().authority().unwrap().to_string(),
        };
        let text =
            format!("{:?} {} {host} {}", request.version(), request.method(), request.uri().path());
        Ok(Response::new(Full::new(Bytes::from(text))))
    }

    #[tokio::test]
    async fn both_wires_carry_the_same_request() {
        for (wire, version) in [(Wire::Http1, "HTTP/1.1"), (Wire::H2c, "HTTP/2.0")] {
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            tokio::spawn(async move {
                auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(theirs), hyper::service::service_fn(echo))
                    .await
            });
            let mut exchange = Exchange::open(ours, wire).await.unwrap();
            for _ in 0..2 {
                let ask = Ask::get("app.example:81", PathAndQuery::from_static("/x?y=1"));
                let answer = exchange.ask(&ask, 1024).await.unwrap();
                assert_eq!(answer.body, format!("{version} GET app.example:81 /x"));
            }
        }
    }

    #[tokio::test]
    async fn an_endless_body_is_cut() {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        tokio::spawn(async move {
            auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(theirs), hyper::service::service_fn(echo))
                .await
        });
        let mut exchange = Exchange::open(ours, Wire::Http1).await.unwrap();
        let ask = Ask::get("a", PathAndQuery::from_static("/"));
        assert!(matches!(exchange.ask(&ask, 4).await, Err(ExchangeError::Body(_))));
    }
}

//! What the demo tries, and what should happen.

use super::backend::VERSION_HEADER;
use super::client::Client;
use super::grpc;
use super::table::{Row, Table};
use super::world::World;
use crate::exchange::{Answer, Ask, Exchange, Wire};
use crate::websocket::{self, Message, Role};
use cairn_hbone::{ConnectError, TunnelStream};
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use hyper_util::rt::TokioIo;
use std::error::Error;
use std::future::Future;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Services, by the addresses that config/demo.yaml gives them.
pub mod service {
    pub const APP: &str = "10.96.0.10:80";
    pub const APP_HOST: &str = "app.shop.svc.cluster.local";
    pub const ECHO: &str = "10.96.0.20:50051";
    pub const ECHO_HOST: &str = "echo.shop.svc.cluster.local";
    pub const LEDGER: &str = "10.96.0.30:9000";
    pub const NOBODY: &str = "10.96.0.99:80";
}

/// A scene that takes longer has failed.
const SCENE_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a response body that are read.
const MAX_BODY_BYTES: usize = 64 * 1024;
const DENIED: &str = "403 RBAC: access denied";

type Seen = Result<String, Box<dyn Error>>;

/// Plays all scenes.
pub async fn play(world: &World) -> Table {
    let (web, visitor) = (&world.web, &world.visitor);
    let v2 = (HeaderName::from_static("x-version"), HeaderValue::from_static("v2"));
    Table(vec![
        canary(world).await,
        same("header x-version: v2", "200 from v2", version(world, v2)).await,
        retry(world).await,
        same("redirect by the waypoint", "308 to /new", redirect(world)).await,
        same("denied path", DENIED, denied(world, web, "/admin/users")).await,
        same("denied path, disguised", DENIED, denied(world, web, "/x/../%61dmin/users")).await,
        same("denied identity, HTTP", DENIED, denied(world, visitor, "/")).await,
        same("denied identity, TCP", "CONNECT 403", refused(world, visitor, service::LEDGER)).await,
        same("unknown service", "CONNECT 404", refused(world, web, service::NOBODY)).await,
        same("around the waypoint", "CONNECT 401", around(world)).await,
        same("waypoint is not who we expect", "refused in TLS", impostor(world)).await,
        same("gRPC, unary", "200, hello back, grpc-status 0", unary(world)).await,
        same("WebSocket", "101, hello back", web_socket(world)).await,
        same("TCP, half-closed", "HELLO CAIRN back, then the end", tcp(world)).await,
    ])
}

/// A scene in which what is seen must be what is expected, word by word.
async fn same(what: &'static str, expected: &str, scene: impl Future<Output = Seen>) -> Row {
    let seen = bounded(scene).await;
    let ok = seen == expected;
    Row { what, expected: expected.to_owned(), seen, ok }
}

async fn bounded(scene: impl Future<Output = Seen>) -> String {
    match tokio::time::timeout(SCENE_LIMIT, scene).await {
        Ok(Ok(seen)) => seen,
        Ok(Err(error)) => format!("{error}"),
        Err(_) => format!("nothing within {SCENE_LIMIT:?}"),
    }
}

/// A hundred requests, split by weight.
async fn canary(world: &World) -> Row {
    const REQUESTS: u32 = 100;
    let (mut ok, mut v1, mut v2) = (0_u32, 0_u32, 0_u32);
    let seen = bounded(async {
        let mut exchange = http(world, &world.web).await?;
        for _ in 0..REQUESTS {
            let answer = ask(&mut exchange, "/", None).await?;
            ok += u32::from(answer.head.status == StatusCode::OK);
            match version_of(&answer) {
                "v1" => v1 += 1,
                "v2" => v2 += 1,
                _ => {}
            }
        }
        Ok(format!("{ok} x 200, v1 {v1}, v2 {v2}"))
    })
    .await;
    Row {
        what: "canary, 90 % v1 and 10 % v2",
        expected: "100 x 200, v1 70 to 99, v2 the rest".to_owned(),
        seen,
        ok: ok == REQUESTS && (70..=99).contains(&v1) && v1 + v2 == REQUESTS,
    }
}

/// Requests of which most first meet an endpoint that fails.
async fn retry(world: &World) -> Row {
    const REQUESTS: u32 = 20;
    let before = world.broken.requests.load(Ordering::Relaxed);
    let mut ok = 0_u32;
    let seen = bounded(async {
        let mut exchange = http(world, &world.web).await?;
        for _ in 0..REQUESTS {
            let answer = ask(&mut exchange, "/flaky", None).await?;
            ok += u32::from(answer.head.status == StatusCode::OK);
        }
        let failed = world.broken.requests.load(Ordering::Relaxed) - before;
        Ok(format!("{ok} x 200, after {failed} x 503"))
    })
    .await;
    let failed = world.broken.requests.load(Ordering::Relaxed) - before;
    Row {
        what: "retry, two of three endpoints fail",
        expected: "20 x 200, after some 503".to_owned(),
        seen,
        ok: ok == REQUESTS && failed > 0,
    }
}

/// Which version answers a request with this header.
async fn version(world: &World, header: (HeaderName, HeaderValue)) -> Seen {
    let mut exchange = http(world, &world.web).await?;
    let answer = ask(&mut exchange, "/", Some(header)).await?;
    Ok(format!("{} from {}", answer.head.status.as_u16(), version_of(&answer)))
}

async fn redirect(world: &World) -> Seen {
    let mut exchange = http(world, &world.web).await?;
    let answer = ask(&mut exchange, "/old", None).await?;
    let location = answer.head.headers.get(header::LOCATION);
    let location: http::Uri = location.ok_or("no location")?.to_str()?.parse()?;
    Ok(format!("{} to {}", answer.head.status.as_u16(), location.path()))
}

/// A request that a policy refuses: status and body.
async fn denied(world: &World, client: &Client, path: &str) -> Seen {
    let mut exchange = http(world, client).await?;
    let answer = ask(&mut exchange, path, None).await?;
    Ok(format!("{} {}", answer.head.status.as_u16(), String::from_utf8_lossy(&answer.body)))
}

/// A tunnel that the waypoint refuses.
async fn refused(world: &World, client: &Client, authority: &str) -> Seen {
    Ok(refusal(client.open(world.waypoint, &world.waypoint_id, authority).await))
}

/// A client that dials the pod itself.
async fn around(world: &World) -> Seen {
    let pod = world.pod_address();
    let tunnel = world.web.open(pod.tunnel, &world.app_id, &pod.authority).await;
    Ok(refusal(tunnel))
}

/// A client that expects another waypoint.
async fn impostor(world: &World) -> Seen {
    let tunnel = world.web.open(world.waypoint, &world.app_id, service::APP).await;
    Ok(refusal(tunnel))
}

async fn unary(world: &World) -> Seen {
    let tunnel = world.web.open(world.waypoint, &world.waypoint_id, service::ECHO).await?;
    let mut exchange = Exchange::open(tunnel, Wire::H2c).await?;
    let mut ask = Ask::get(service::ECHO_HOST, PathAndQuery::from_static(grpc::METHOD));
    ask.method = Method::POST;
    ask.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    ask.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    ask.body = grpc::frame("hello");
    let answer = exchange.ask(&ask, MAX_BODY_BYTES).await?;
    let words = grpc::text(&answer.body).unwrap_or("nothing");
    let status = answer.trailers.as_ref().unwrap_or(&answer.head.headers).get("grpc-status");
    let status = status.and_then(|status| status.to_str().ok()).unwrap_or("missing");
    Ok(format!("{}, {words} back, grpc-status {status}", answer.head.status.as_u16()))
}

async fn web_socket(world: &World) -> Seen {
    let mut exchange = http(world, &world.web).await?;
    let key = websocket::new_key();
    let mut ask = Ask::get(service::APP_HOST, PathAndQuery::from_static("/ws"));
    ask.headers = websocket::request_headers(&key);
    let response = exchange.send(&ask).await?;
    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(status.as_u16().to_string());
    }
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await?);
    websocket::write(&mut stream, Role::Client, &Message::Text("hello".to_owned())).await?;
    let Some(Message::Text(words)) = websocket::read(&mut stream).await? else {
        return Ok("101, but no text back".to_owned());
    };
    websocket::write(&mut stream, Role::Client, &Message::Close(vec![3, 232])).await?;
    Ok(format!("101, {words} back"))
}

/// Sends, ends its own direction, and reads to the end.
async fn tcp(world: &World) -> Seen {
    let mut stream = world.web.open(world.waypoint, &world.waypoint_id, service::LEDGER).await?;
    stream.write_all(b"hello cairn").await?;
    stream.shutdown().await?;
    let mut back = String::new();
    stream.take(MAX_BODY_BYTES as u64).read_to_string(&mut back).await?;
    Ok(format!("{back} back, then the end"))
}

/// A connection to the app service.
async fn http(world: &World, client: &Client) -> Result<Exchange, Box<dyn Error>> {
    let tunnel = client.open(world.waypoint, &world.waypoint_id, service::APP).await?;
    Ok(Exchange::open(tunnel, Wire::Http1).await?)
}

async fn ask(
    exchange: &mut Exchange,
    path: &str,
    header: Option<(HeaderName, HeaderValue)>,
) -> Result<Answer, Box<dyn Error>> {
    let mut ask = Ask::get(service::APP_HOST, path.parse()?);
    ask.headers.extend(header);
    Ok(exchange.ask(&ask, MAX_BODY_BYTES).await?)
}

fn version_of(answer: &Answer) -> &str {
    let version = answer.head.headers.get(VERSION_HEADER);
    version.and_then(|version| version.to_str().ok()).unwrap_or("nobody")
}

fn refusal(tunnel: Result<TunnelStream, ConnectError>) -> String {
    match tunnel {
        Ok(_) => "CONNECT 200".to_owned(),
        Err(ConnectError::Refused { status }) => format!("CONNECT {}", status.as_u16()),
        Err(ConnectError::Tls(_)) => "refused in TLS".to_owned(),
        Err(error) => error.to_string(),
    }
}

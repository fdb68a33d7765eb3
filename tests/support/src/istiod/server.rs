//! The port: TLS, connections, and their ends.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use cairn_proto::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use cairn_proto::envoy::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use cairn_proto::tonic::body::Body;
use cairn_proto::tonic::service::Routes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use super::authority::Certificates;
use super::discovery::Discovery;
use super::world::{Caller, Shared};
use crate::pki;

/// Largest request that it takes, in bytes: the limit of a Go server that was told nothing.
const MAX_REQUEST_BYTES: usize = 4 * 1024 * 1024;

/// What connections are told. The numbers count up, so that a connection that looks late does not miss one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Orders {
    cut: u64,
    go_away: u64,
    stop: bool,
}

/// A listening port.
pub(super) struct Server {
    address: SocketAddr,
    orders: watch::Sender<Orders>,
    /// Closed when the port and all connections are.
    done: mpsc::Receiver<()>,
}

impl Server {
    pub(super) async fn start(address: SocketAddr, shared: Arc<Shared>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (orders, heard) = watch::channel(Orders::default());
        let (alive, done) = mpsc::channel(1);
        tokio::spawn(accept(listener, shared, heard, alive));
        Server { address, orders, done }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn close_connections(&self) {
        self.orders.send_modify(|orders| orders.cut += 1);
    }

    pub(super) fn go_away(&self) {
        self.orders.send_modify(|orders| orders.go_away += 1);
    }

    pub(super) async fn stop(mut self) {
        self.orders.send_modify(|orders| orders.stop = true);
        let none = self.done.recv().await;
        assert!(none.is_none(), "nothing is sent");
    }
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    orders: watch::Receiver<Orders>,
    alive: mpsc::Sender<()>,
) {
    let mut heard = orders.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                // As every connection of a Go server; who has gone meanwhile needs nothing.
                let _ = stream.set_nodelay(true);
                let (shared, orders) = (Arc::clone(&shared), orders.clone());
                let alive = alive.clone();
                tokio::spawn(async move {
                    serve(stream, shared, orders).await;
                    drop(alive);
                });
            }
            stopped = heard.wait_for(|orders| orders.stop) => {
                drop(stopped);
                return;
            }
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>, mut orders: watch::Receiver<Orders>) {
    let mut known = *orders.borrow_and_update();
    let config = {
        let trusts = shared.world.lock().unwrap().certificates;
        shared.authority.lock().unwrap().tls(trusts)
    };
    let accepting = TlsAcceptor::from(config).accept(stream);
    let stream = tokio::select! {
        Ok(stream) = accepting => stream,
        else => return,
    };
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(|leaf| pki::uris(leaf).into_iter().next());
    {
        let mut record = shared.record.lock().unwrap();
        record.connections += 1;
        record.certificates.extend(certificate.clone());
    }
    let caller = Caller { certificate };
    let discovery =
        AggregatedDiscoveryServiceServer::new(Discovery { shared: Arc::clone(&shared) })
            .max_decoding_message_size(MAX_REQUEST_BYTES);
    let certificates = IstioCertificateServiceServer::new(Certificates { shared });
    let routes = Routes::new(discovery).add_service(certificates).prepare();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(caller.clone());
        let routes = routes.clone();
        async move { Ok::<Response<Body>, Infallible>(routes.oneshot(request).await.unwrap()) }
    });
    let connection =
        http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    loop {
        tokio::select! {
            _ended = connection.as_mut() => return,
            changed = orders.changed() => {
                let now = *orders.borrow_and_update();
                if changed.is_err() || now.stop || now.cut != known.cut {
                    return;
                }
                if now.go_away != known.go_away {
                    connection.as_mut().graceful_shutdown();
                }
                known = now;
            }
        }
    }
}

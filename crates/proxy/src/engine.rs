//! Pingora's `HttpProxy`, without its server.
//!
//! `HttpProxy` with a connector of one's own can only be built inside a `Service`, and
//! only the service's accept loop hands out the `Arc` that requests need. So the
//! service is started once, on a runtime and a loopback port that live for a moment:
//! its first connection gives the `Arc`, and both are dropped. Connections are
//! accepted by [`crate::listener`] from then on.

use crate::hooks::Hooks;
use crate::upstream::Upstreams;
use futures::FutureExt;
use pingora_core::apps::{HttpServerApp, HttpServerOptions};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::custom::server::Session;
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{Fds, ShutdownWatch};
use pingora_proxy::{HttpProxy, ProxyServiceBuilder};
use std::io;
use std::net::TcpListener;
use std::os::fd::IntoRawFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

type Proxy = HttpProxy<Hooks, Upstreams>;

/// Tries of one request: the first and the most retries that a route can have.
const MAX_TRIES: usize = 1 + cairn_router::retry::MAX_ATTEMPTS as usize;
/// Starting takes milliseconds; this is for a machine that stands still.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs requests through Pingora.
pub(crate) struct Engine {
    proxy: Arc<Proxy>,
    shutdown: ShutdownWatch,
    _never: watch::Sender<bool>,
}

impl Engine {
    /// Needs a loopback interface that is up.
    pub(crate) fn start() -> io::Result<Arc<Engine>> {
        let proxy = std::thread::Builder::new()
            .name("cairn-engine".to_owned())
            .spawn(extract)?
            .join()
            .map_err(|_| io::Error::other("the proxy engine did not start"))??;
        let (never, shutdown) = watch::channel(false);
        Ok(Arc::new(Engine { proxy, shutdown, _never: never }))
    }

    /// One request; returns when its response is over or given up.
    pub(crate) async fn process(&self, session: Box<dyn Session>) {
        let session = ServerSession::new_custom(session);
        let _custom_sessions_reuse_their_streams_themselves =
            self.proxy.process_new_http(session, &self.shutdown).await;
    }
}

fn extract() -> io::Result<Arc<Proxy>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(no_loopback)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let mut fds = Fds::new();
        fds.add(address.to_string(), listener.into_raw_fd());

        let (give, mut take) = tokio::sync::mpsc::channel::<Arc<Proxy>>(1);
        let conf =
            Arc::new(ServerConf { max_retries: MAX_TRIES, threads: 1, ..ServerConf::default() });
        let mut options = HttpServerOptions::default();
        options.force_custom = true;
        let mut service = ProxyServiceBuilder::new(&conf, Hooks)
            .server_options(options)
            .custom(
                Upstreams,
                Arc::new(move |proxy: Arc<Proxy>, _stream, _shutdown: &ShutdownWatch| {
                    let give = give.clone();
                    async move {
                        let _first_is_enough = give.try_send(proxy);
                        None
                    }
                    .boxed()
                }),
            )
            .build();
        service.add_tcp(&address.to_string());
        let (_running, shutdown) = watch::channel(false);
        let fds = Some(Arc::new(parking_lot::Mutex::new(fds)));
        let taken = async {
            let _stream = tokio::net::TcpStream::connect(address).await.map_err(no_loopback)?;
            take.recv().await.ok_or_else(|| io::Error::other("the proxy engine gave nothing"))
        };
        tokio::select! {
            () = pingora_core::services::Service::start_service(&mut service, fds, shutdown, 1) => {
                Err(io::Error::other("the proxy engine ended"))
            }
            taken = tokio::time::timeout(START_TIMEOUT, taken) => taken?,
        }
    })
}

fn no_loopback(error: io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("127.0.0.1 cannot be used ({error}); bring the loopback interface up"),
    )
}

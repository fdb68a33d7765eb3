//! Requests all the time, while something else happens. Nothing may fail.

use super::mesh::{Mesh, waypoint_id};
use super::pod::Waypoint;
use cairn_test_support::hbone_client::{HboneClient, OpenFailure};
use cairn_test_support::http1::Http1;
use cairn_test_support::pki::Cert;
use cairn_test_support::wait::{eventually, within};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::task::JoinHandle;

/// Requests on one tunnel.
const ON_A_TUNNEL: usize = 4;
/// Tunnels on one connection.
const ON_A_CONNECTION: usize = 25;

/// Running clients.
pub struct Load {
    stop: Arc<AtomicBool>,
    ending: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

#[derive(Clone)]
struct Sender {
    address: SocketAddr,
    cert: Cert,
    authority: String,
    stop: Arc<AtomicBool>,
    ending: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

impl Load {
    /// Two clients for each of these services.
    pub async fn start(mesh: &Mesh, waypoint: &Waypoint, services: &[&str]) -> Self {
        let cert = mesh.cert("client");
        Self::with(mesh, waypoint, services, &[cert.clone(), cert]).await
    }

    /// A client with each of these certificates, for each of these services.
    pub async fn with(mesh: &Mesh, waypoint: &Waypoint, services: &[&str], certs: &[Cert]) -> Self {
        let (stop, ending) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let done = Arc::<AtomicU64>::default();
        let address = waypoint.hbone().await;
        let mut clients = Vec::new();
        for service in services {
            for cert in certs {
                let (stop, ending, done) = (stop.clone(), ending.clone(), done.clone());
                let authority = mesh.vip(service);
                let sender = Sender { address, cert: cert.clone(), authority, stop, ending, done };
                clients.push(tokio::spawn(sender.run()));
            }
        }
        let load = Load { stop, ending, done, clients };
        load.more(10).await;
        load
    }

    /// Requests that were answered as they should be.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    /// Waits until so many more are answered, or somebody has failed.
    pub async fn more(&self, count: u64) {
        let goal = self.done() + count;
        eventually(&format!("{count} more requests"), || {
            self.done() >= goal || self.clients.iter().any(JoinHandle::is_finished)
        })
        .await;
    }

    /// The waypoint is about to go: who gets no connection any more has not failed.
    pub fn expect_end(&self) {
        self.ending.store(true, Ordering::SeqCst);
    }

    /// Ends it. Nothing has failed; returns how much was done.
    pub async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        let mut failures = Vec::new();
        for client in self.clients {
            failures.extend(within("the last requests", client).await.unwrap());
        }
        assert_eq!(failures, Vec::<String>::new());
        self.done.load(Ordering::SeqCst)
    }
}

impl Sender {
    /// Until it is stopped, the waypoint is gone as expected, or something fails. Returns what failed.
    async fn run(self) -> Vec<String> {
        while !self.stop.load(Ordering::SeqCst) {
            let waypoint = waypoint_id();
            let connecting = HboneClient::connect(self.address, &self.cert, &waypoint);
            let hbone = match within("a connection", connecting).await {
                Ok(hbone) => hbone,
                Err(_) if self.ending.load(Ordering::SeqCst) => return Vec::new(),
                Err(error) => return vec![format!("a connection: {error:?}")],
            };
            if let Err(failure) = self.connection(&hbone).await {
                return vec![failure];
            }
        }
        Vec::new()
    }

    /// A CONNECT that is not answered because the connection goes away is no failure; after the 200 everything counts.
    async fn connection(&self, hbone: &HboneClient) -> Result<(), String> {
        for _ in 0..ON_A_CONNECTION {
            let tunnel = match within("CONNECT", hbone.open(&self.authority)).await {
                Ok(tunnel) => tunnel,
                Err(OpenFailure::H2(_)) => return Ok(()),
                Err(OpenFailure::Status(status, _)) => return Err(format!("CONNECT: {status}")),
            };
            let mut http = Http1::new(tunnel);
            for round in 0..ON_A_TUNNEL {
                match within("a request", http.get("/load")).await {
                    Ok(response) if response.status == 200 => {
                        self.done.fetch_add(1, Ordering::SeqCst);
                        if response.headers.has_token("connection", "close") {
                            break;
                        }
                    }
                    Ok(response) => {
                        return Err(format!(
                            "request {round}: {} {}",
                            response.status,
                            response.text()
                        ));
                    }
                    Err(error) => return Err(format!("request {round}: {error}")),
                }
            }
            if self.stop.load(Ordering::SeqCst) {
                return Ok(());
            }
        }
        Ok(())
    }
}

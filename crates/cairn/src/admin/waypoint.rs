//! The ports of a waypoint, as Istio's agent and Envoy have them.
//!
//! | port | who asks | pages |
//! |---|---|---|
//! | 127.0.0.1:15000 | `istioctl`, people | Envoy's, from the moment that there is a certificate |
//! | 15020 | Prometheus, the scaler | `/stats/prometheus`, `/metrics`, `/load`, `/healthz/ready`; `/quitquitquit` from this machine |
//! | 15021 | kubelet | `/healthz/ready` |
//! | 15090 | Prometheus | `/stats/prometheus` |

use super::envoy::EnvoyPages;
use super::scrape;
use super::server::{self, LONG, Page, SHORT, not_found, text};
use super::{load_of, read, ready_of, refuse_write};
use crate::load::Reporter;
use crate::ready::Readiness;
use cairn_telemetry::Telemetry;
use http::StatusCode;
use http::request::Parts;
use std::sync::{Arc, OnceLock};
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// Who asks at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// 15000.
    Admin,
    /// 15020.
    Agent,
    /// 15021.
    Status,
    /// 15090.
    Prometheus,
}

/// What the ports answer.
pub struct WaypointPages {
    readiness: Arc<Readiness>,
    telemetry: Arc<Telemetry>,
    quit: Arc<Notify>,
    load: Arc<Reporter>,
    envoy: OnceLock<EnvoyPages>,
}

impl WaypointPages {
    /// Without Envoy's pages; `quit` is told when the process shall end.
    pub fn new(
        readiness: Arc<Readiness>,
        telemetry: Arc<Telemetry>,
        quit: Arc<Notify>,
        load: Arc<Reporter>,
    ) -> Arc<Self> {
        Arc::new(WaypointPages { readiness, telemetry, quit, load, envoy: OnceLock::new() })
    }

    /// Envoy's pages from here on; the first ones stay.
    pub fn put(&self, pages: EnvoyPages) {
        let _first_stays = self.envoy.set(pages);
    }

    /// Answers until the task is aborted.
    pub fn serve(
        self: &Arc<Self>,
        door: Door,
        listener: TcpListener,
    ) -> impl Future<Output = ()> + use<> {
        let pages = Arc::clone(self);
        let lifetime = if door == Door::Admin { LONG } else { SHORT };
        server::serve(listener, lifetime, move |request| pages.answer(door, request))
    }

    fn answer(&self, door: Door, request: &Parts) -> Page {
        let metrics = || read(request, || scrape::metrics(&self.telemetry, request));
        let ready = || read(request, || ready_of(&self.readiness));
        match (door, request.uri.path()) {
            (Door::Admin, path) => {
                if let Some(page) = self.envoy.get().and_then(|pages| pages.answer(request)) {
                    return page;
                }
                match path {
                    "/stats/prometheus" => metrics(),
                    "/ready" => ready(),
                    "/quitquitquit" => self.quit(request),
                    _ if self.envoy.get().is_none() => ready_of(&self.readiness),
                    _ => not_found(),
                }
            }
            (Door::Agent, "/metrics" | "/stats/prometheus") => metrics(),
            (Door::Agent, "/load") => read(request, || load_of(&self.load)),
            (Door::Prometheus, "/stats/prometheus") => metrics(),
            (Door::Agent | Door::Status, "/healthz/ready") => ready(),
            (Door::Agent, "/quitquitquit") => self.quit(request),
            _ => not_found(),
        }
    }

    fn quit(&self, request: &Parts) -> Page {
        if let Some(refusal) = refuse_write(request, "POST") {
            return refusal;
        }
        self.quit.notify_one();
        text(StatusCode::OK, "draining\n")
    }
}

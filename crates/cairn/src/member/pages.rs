//! The pages of a member.
//!
//! | port | who asks | pages |
//! |---|---|---|
//! | 127.0.0.1:15000 | people | `/` lists them; each cluster's own below `/mesh/NAME/` |
//! | 15020 | Prometheus, scaler, registrar | metrics, `/load`, `/healthz/ready`, `/drain` |
//! | 15021 | kubelet | `/healthz/ready` |
//! | 15090 | Prometheus | metrics |
//!
//! What changes something takes a POST from this machine; a drain order may come from anywhere if it shows the pool's
//! token.

use super::roster::Roster;
use crate::admin::server::{self, LONG, Page, SHORT, not_found, page, text};
use crate::admin::{Door, read, refuse_write, scrape};
use crate::load::Reporter;
use crate::logging::Logging;
use crate::ready::{NotReady, Readiness};
use crate::scaler::PoolToken;
use cairn_telemetry::Telemetry;
use http::request::Parts;
use http::{Method, StatusCode, Uri};
use serde_json::json;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::Notify;

const INDEX: &str = "\
cairn pool member
  GET  /clusters          every cluster's membership, as JSON
  GET  /drain             where the memberships are, as text
  POST /drain             deregisters everywhere, drains, and ends the process
  POST /quitquitquit      the same
  GET  /load              how busy the process is, as JSON
  GET  /logging           the log filter; POST /logging?level=FILTER changes it
  GET  /ready             200 while at least one cluster is served
  GET  /stats/prometheus  metrics
  GET  /mesh/NAME/        a cluster's own pages: config_dump, clusters, explain, certs, unsupported …
";

/// What the pages show.
pub struct Pages {
    /// The memberships.
    pub roster: Arc<Roster>,
    /// Of the process.
    pub readiness: Arc<Readiness>,
    /// For metrics.
    pub telemetry: Arc<Telemetry>,
    /// For `/load`.
    pub load: Arc<Reporter>,
    /// Told when the process shall end.
    pub quit: Arc<Notify>,
    /// Who may order a drain from elsewhere.
    pub token: PoolToken,
    /// For `/logging`.
    pub logging: Logging,
}

impl Pages {
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
        match (door, request.uri.path()) {
            (_, "/stats/prometheus") if door != Door::Status => metrics(),
            (Door::Agent, "/metrics") => metrics(),
            (Door::Agent | Door::Admin, "/load") => {
                read(request, || page(StatusCode::OK, "application/json", self.load.json()))
            }
            (Door::Agent | Door::Status, "/healthz/ready") | (Door::Admin, "/ready") => {
                read(request, || self.ready())
            }
            (Door::Agent, "/drain") => self.drain(request, true),
            (Door::Admin, "/drain") => self.drain(request, false),
            (Door::Agent | Door::Admin, "/quitquitquit") => self.quit(request),
            (Door::Admin, "/") => read(request, || text(StatusCode::OK, INDEX)),
            (Door::Admin, "/clusters") => read(request, || self.clusters()),
            (Door::Admin, "/logging") => self.logging(request),
            (Door::Admin, path) => match path.strip_prefix("/mesh/") {
                Some(rest) => self.mesh(request, rest),
                None => not_found(),
            },
            _ => not_found(),
        }
    }

    fn lines(&self) -> String {
        self.roster.all().iter().map(|(status, _)| format!("{}\n", status.line())).collect()
    }

    /// Ready while one cluster is served; the body has all of them.
    fn ready(&self) -> Page {
        let (status, head) = match self.readiness.check() {
            Ok(()) => (StatusCode::OK, "ready".to_owned()),
            Err(NotReady::Waiting(_)) => {
                (StatusCode::SERVICE_UNAVAILABLE, "no cluster is served".to_owned())
            }
            Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason.to_string()),
        };
        text(status, format!("{head}\n{}", self.lines()))
    }

    fn clusters(&self) -> Page {
        let all = self.roster.all();
        let rows = all.iter().map(|(status, parts)| {
            let seen = status.seen();
            let (age, in_flight) = parts.numbers();
            json!({
                "name": status.name,
                "phase": seen.phase.to_string(),
                "phase_seconds": seen.seconds,
                "registered": seen.registered.to_string(),
                "registrations": seen.registrations,
                "taken_away": seen.taken_away,
                "trouble": seen.trouble,
                "waiting_for": status.readiness.check().err().map(|reason| reason.to_string()),
                "warm_start": seen.warm,
                "istiod_connected": seen.connected,
                "config_age_seconds": age,
                "in_flight": in_flight,
            })
        });
        let rows: Vec<_> = rows.collect();
        page(StatusCode::OK, "application/json", format!("{:#}\n", json!(rows)))
    }

    /// A drain order: from this machine, or with the pool's token where that is enough.
    fn drain(&self, request: &Parts, by_token: bool) -> Page {
        if server::is_read(&request.method) {
            return text(StatusCode::OK, self.lines());
        }
        if by_token && request.method == Method::POST && self.token.is_shown_by(request) {
            tracing::info!("drain order with the pool's token");
            self.quit.notify_one();
            return text(StatusCode::OK, "draining\n");
        }
        self.quit(request)
    }

    fn quit(&self, request: &Parts) -> Page {
        if let Some(refusal) = refuse_write(request, "POST") {
            return refusal;
        }
        self.quit.notify_one();
        text(StatusCode::OK, "draining\n")
    }

    fn logging(&self, request: &Parts) -> Page {
        crate::admin::logging_of(&self.logging, request)
    }

    fn mesh(&self, request: &Parts, rest: &str) -> Page {
        let (name, path) = rest.split_once('/').unwrap_or((rest, ""));
        let Some((status, parts)) = self.roster.of(name) else {
            let all = self.roster.all();
            let names: Vec<&str> = all.iter().map(|(status, _)| status.name.as_str()).collect();
            let names = names.join(", ");
            return text(StatusCode::NOT_FOUND, format!("no cluster {name}; there are: {names}\n"));
        };
        let Some(pages) = parts.pages.get() else {
            return text(StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", status.line()));
        };
        // What ends the process is the process' and not one cluster's.
        if ["quitquitquit", "drain_listeners", "healthcheck/fail", "healthcheck/ok"].contains(&path)
        {
            return not_found();
        }
        let query = request.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let Ok(uri) = format!("/{path}{query}").parse::<Uri>() else { return not_found() };
        let mut inner = request.clone();
        inner.uri = uri;
        pages.answer(&inner).unwrap_or_else(not_found)
    }
}

//! What people, Prometheus, probes and the pool's members ask the scaler.

use super::numbers::Numbers;
use super::report;
use super::snapshot::Snapshot;
use super::target::Acting;
use super::token::PoolToken;
use crate::admin::server::{self, Page, SHORT, page, text};
use crate::admin::{read, ready_of, scrape};
use crate::ready::Readiness;
use cairn_kube::Leadership;
use cairn_telemetry::Telemetry;
use http::request::Parts;
use http::{HeaderValue, StatusCode, header};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;

const INDEX: &str = "\
cairn scaler
  /decision           the last decision in words and numbers; JSON, or text where it is asked for
  /fleet              the fleet's mean, for members that show the pool's token
  /stats/prometheus   metrics; OpenMetrics where it is asked for
  /healthz/ready      200 once something was decided
";

/// What the pages show.
pub struct Pages {
    /// Name of the pool.
    pub pool: String,
    /// Decisions.
    pub latest: watch::Receiver<Option<Arc<Snapshot>>>,
    /// What becomes of them.
    pub acting: Option<watch::Receiver<Acting>>,
    /// Who acts.
    pub leadership: Option<watch::Receiver<Leadership>>,
    /// Who may read `/fleet`.
    pub token: PoolToken,
    /// For `/healthz/ready`.
    pub readiness: Arc<Readiness>,
    /// For `/stats/prometheus`.
    pub telemetry: Arc<Telemetry>,
}

impl Pages {
    /// Adds the scaler's own numbers to the metrics.
    pub fn register(&self, numbers: Arc<Numbers>) {
        let latest = self.latest.clone();
        let leadership = self.leadership.clone();
        self.telemetry.register(Box::new(move |writer| {
            let snapshot = latest.borrow().clone();
            let leads = leadership.as_ref().map(|leadership| leadership.borrow().holds());
            numbers.write(writer, snapshot.as_deref(), leads);
        }));
    }

    /// Serves until the task is aborted.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        server::serve(listener, SHORT, move |request| self.answer(request)).await;
    }

    fn answer(&self, request: &Parts) -> Page {
        match request.uri.path() {
            "/" => read(request, || text(StatusCode::OK, INDEX)),
            "/decision" => read(request, || self.decision(request)),
            "/fleet" => read(request, || self.fleet(request)),
            "/stats/prometheus" | "/metrics" => {
                read(request, || scrape::metrics(&self.telemetry, request))
            }
            "/healthz/ready" | "/ready" => read(request, || ready_of(&self.readiness)),
            _ => server::not_found(),
        }
    }

    fn decision(&self, request: &Parts) -> Page {
        let latest = self.latest.borrow().clone();
        let acting = self.acting.as_ref().map(|acting| acting.borrow().clone());
        let leadership = self.leadership.as_ref().map(|leadership| leadership.borrow().clone());
        let waits_for = self.readiness.check().err().map(|reason| reason.to_string());
        let report = report::Report {
            pool: &self.pool,
            snapshot: latest.as_deref(),
            waits_for,
            acting: acting.as_ref(),
            leadership: leadership.as_ref(),
        };
        if wants_text(request) {
            text(StatusCode::OK, report.text())
        } else {
            page(StatusCode::OK, "application/json", format!("{:#}\n", report.json()))
        }
    }

    fn fleet(&self, request: &Parts) -> Page {
        if !self.token.is_configured() {
            return text(StatusCode::FORBIDDEN, "closed: the scaler has no --token-file\n");
        }
        if !self.token.is_shown_by(request) {
            let mut page = text(StatusCode::UNAUTHORIZED, "show the pool's token\n");
            page.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return page;
        }
        let latest = self.latest.borrow().clone();
        let Some(snapshot) = latest.filter(|snapshot| !snapshot.is_stale()) else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "nothing fresh is known of the fleet\n");
        };
        let mut mean = snapshot.mean.clone();
        mean.age_seconds = snapshot.at.elapsed().as_secs_f64();
        match serde_json::to_string(&mean) {
            Ok(json) => page(StatusCode::OK, "application/json", json),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }
}

/// People's tools say that they want text; all others get JSON.
fn wants_text(request: &Parts) -> bool {
    let accept = request.headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let Some(accept) = accept else { return false };
    let at = |kind: &str| accept.find(kind).unwrap_or(usize::MAX);
    at("text/") < at("application/json")
}

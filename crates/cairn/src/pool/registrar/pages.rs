//! What people, Prometheus and probes ask the registrar.

use super::numbers::Numbers;
use crate::admin::server::{self, Page, SHORT, page, text};
use crate::admin::{read, ready_of, scrape};
use crate::ready::Readiness;
use cairn_kube::Leadership;
use cairn_pool::registrar::View;
use cairn_telemetry::Telemetry;
use http::StatusCode;
use http::request::Parts;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;

const INDEX: &str = "\
cairn pool registrar
  /state              members and clusters as they stand; JSON
  /stats/prometheus   metrics; OpenMetrics where it is asked for
  /healthz/ready      200 once all members were judged, or another registrar leads
";

/// What the pages show.
pub struct Pages {
    /// Members; `None` while another registrar leads.
    pub view: watch::Receiver<Option<Arc<View>>>,
    /// Who leads.
    pub leadership: watch::Receiver<Leadership>,
    /// Counts.
    pub numbers: Arc<Numbers>,
    /// For `/healthz/ready`.
    pub readiness: Arc<Readiness>,
    /// For `/stats/prometheus`.
    pub telemetry: Arc<Telemetry>,
}

impl Pages {
    /// Serves until the task is aborted.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let Pages { view, leadership, numbers, .. } = &*self;
        let (view, leadership) = (view.clone(), leadership.clone());
        let numbers = Arc::clone(numbers);
        self.telemetry.register(Box::new(move |writer| {
            let view = view.borrow().clone();
            numbers.write(writer, view.as_deref(), leadership.borrow().holds());
        }));
        server::serve(listener, SHORT, move |request| self.answer(request)).await;
    }

    fn answer(&self, request: &Parts) -> Page {
        match request.uri.path() {
            "/" => read(request, || text(StatusCode::OK, INDEX)),
            "/state" => read(request, || {
                let view = self.view.borrow().clone();
                let state = self.numbers.state(view.as_deref(), &self.leadership.borrow());
                page(StatusCode::OK, "application/json", format!("{state:#}\n"))
            }),
            "/stats/prometheus" | "/metrics" => {
                read(request, || scrape::metrics(&self.telemetry, request))
            }
            "/healthz/ready" | "/ready" => read(request, || ready_of(&self.readiness)),
            _ => server::not_found(),
        }
    }
}

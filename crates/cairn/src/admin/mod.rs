//! What people, Prometheus and kubelet see: three listeners, one set of pages.
//!
//! | listener | default | pages |
//! |---|---|---|
//! | admin | 127.0.0.1:15000 | everything, and what changes something |
//! | metrics | 0.0.0.0:15020 | `/stats/prometheus`, `/metrics`, `/load`, `/healthz/ready` |
//! | health | 0.0.0.0:15021 | `/healthz/ready` |
//!
//! Pages are made from snapshots and counters; none waits for the data plane or holds it up.

mod clusters;
mod configured;
mod envoy;
pub mod scrape;
pub mod server;
mod waypoint;

pub use envoy::{Actions, AdminView, Bound, EnvoyPages, Started};
pub use waypoint::{Door, WaypointPages};

use crate::explain::{self, Question};
use crate::fleet::Roster;
use crate::load::Reporter;
use crate::logging::Logging;
use crate::ready::Readiness;
use cairn_telemetry::Telemetry;
use envoy::query::Query;
use http::request::Parts;
use http::{Method, StatusCode, header};
use server::{LONG, Page, SHORT, Visitor, is_read, method_not_allowed, not_found, page, text};
use std::fmt::Write;
use std::future::Future;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// The admin pages, for `/`.
const PAGES: [(&str, &str, &str); 10] = [
    ("GET", "/", "this page"),
    ("GET", "/config", "what each mesh is configured with, as JSON"),
    ("GET", "/clusters", "clusters and endpoints with their counters"),
    ("GET", "/explain", explain::PAGE_HELP),
    ("GET", "/logging", "the log filter"),
    (
        "POST",
        "/logging?level=FILTER",
        "changes the log filter, for example to info,cairn_proxy=debug",
    ),
    ("GET", "/stats/prometheus", "metrics; OpenMetrics where it is asked for, and gzip"),
    ("GET", "/load", "how busy the process is, as JSON"),
    ("GET", "/ready", "200 when traffic is welcome, else 503 and what it waits for"),
    ("POST", "/quitquitquit", "drains and ends the process"),
];

/// What the pages show, and the two things that they change.
pub struct Admin {
    /// For `/ready`.
    pub readiness: Arc<Readiness>,
    /// For `/stats/prometheus`.
    pub telemetry: Arc<Telemetry>,
    /// For `/load`.
    pub load: Arc<Reporter>,
    /// For `/config` and `/clusters`.
    pub roster: Arc<Roster>,
    /// For `/logging`.
    pub logging: Logging,
    /// Told when the process shall end.
    pub quit: Arc<Notify>,
}

impl Admin {
    /// Serves all pages.
    pub fn serve_admin(
        self: &Arc<Self>,
        listener: TcpListener,
    ) -> impl Future<Output = ()> + use<> {
        let admin = Arc::clone(self);
        server::serve(listener, LONG, move |request| admin.admin_page(request))
    }

    /// Serves metrics.
    pub fn serve_metrics(
        self: &Arc<Self>,
        listener: TcpListener,
    ) -> impl Future<Output = ()> + use<> {
        let admin = Arc::clone(self);
        server::serve(listener, SHORT, move |request| admin.metrics_page(request))
    }

    /// Serves the readiness probe.
    pub fn serve_health(
        self: &Arc<Self>,
        listener: TcpListener,
    ) -> impl Future<Output = ()> + use<> {
        let admin = Arc::clone(self);
        server::serve(listener, SHORT, move |request| admin.health_page(request))
    }

    fn admin_page(&self, request: &Parts) -> Page {
        match request.uri.path() {
            "/" => read(request, || index(&PAGES)),
            "/config" => read(request, || {
                page(StatusCode::OK, "application/json", configured::render(&self.roster.entries()))
            }),
            "/clusters" => {
                read(request, || text(StatusCode::OK, clusters::render(&self.roster.entries())))
            }
            "/explain" => read(request, || self.explain(request)),
            "/logging" => self.logging(request),
            "/stats/prometheus" => read(request, || self.metrics(request)),
            "/load" => read(request, || load_of(&self.load)),
            "/ready" => read(request, || self.ready()),
            "/quitquitquit" => self.quit(request),
            _ => not_found(),
        }
    }

    fn metrics_page(&self, request: &Parts) -> Page {
        match request.uri.path() {
            "/stats/prometheus" | "/metrics" => read(request, || self.metrics(request)),
            "/load" => read(request, || load_of(&self.load)),
            "/healthz/ready" => read(request, || self.ready()),
            _ => not_found(),
        }
    }

    fn health_page(&self, request: &Parts) -> Page {
        match request.uri.path() {
            "/healthz/ready" => read(request, || self.ready()),
            _ => not_found(),
        }
    }

    fn explain(&self, request: &Parts) -> Page {
        let query = Query::parse(request.uri.query()).ok_or("the query is no text".to_owned());
        let question = query.and_then(|query| Question::from_pairs(query.pairs()));
        let question = match question {
            Ok(question) => question,
            Err(reason) => return text(StatusCode::BAD_REQUEST, format!("{reason}\n")),
        };
        let meshes = self.roster.entries();
        let found = match &question.mesh {
            Some(name) => meshes.iter().find(|entry| entry.name == *name),
            None => meshes.first(),
        };
        let Some(entry) = found else {
            let names: Vec<&str> = meshes.iter().map(|entry| entry.name.as_str()).collect();
            let names = names.join(", ");
            return text(StatusCode::NOT_FOUND, format!("no such mesh; there are: {names}\n"));
        };
        let answer = explain::explain(&entry.instance.mesh(), &entry.resources, &question);
        page(StatusCode::OK, "application/json", explain::json(&answer))
    }

    fn metrics(&self, request: &Parts) -> Page {
        scrape::metrics(&self.telemetry, request)
    }

    fn ready(&self) -> Page {
        ready_of(&self.readiness)
    }

    fn logging(&self, request: &Parts) -> Page {
        logging_of(&self.logging, request)
    }

    fn quit(&self, request: &Parts) -> Page {
        if let Some(refusal) = refuse_write(request, "POST") {
            return refusal;
        }
        self.quit.notify_one();
        text(StatusCode::OK, "draining\n")
    }
}

/// How busy the process is.
fn load_of(load: &Reporter) -> Page {
    page(StatusCode::OK, "application/json", load.json())
}

/// 200 when traffic is welcome, else 503 and why not.
pub fn ready_of(readiness: &Readiness) -> Page {
    match readiness.check() {
        Ok(()) => text(StatusCode::OK, "ready\n"),
        Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

/// The log filter, or another one from here on.
pub fn logging_of(logging: &Logging, request: &Parts) -> Page {
    if is_read(&request.method) {
        return text(StatusCode::OK, format!("{}\n", logging.filter()));
    }
    if let Some(refusal) = refuse_write(request, "GET, POST") {
        return refusal;
    }
    let query = request.uri.query().unwrap_or_default();
    let level = query.split('&').find_map(|pair| pair.strip_prefix("level="));
    let Some(filter) = level.and_then(percent_decoded) else {
        return text(StatusCode::BAD_REQUEST, "write /logging?level=FILTER\n");
    };
    match logging.set_filter(&filter) {
        Ok(()) => {
            tracing::info!(filter, "log filter changed");
            text(StatusCode::OK, format!("{filter}\n"))
        }
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

/// A page that changes nothing.
pub fn read(request: &Parts, make: impl FnOnce() -> Page) -> Page {
    if is_read(&request.method) { make() } else { method_not_allowed("GET") }
}

/// Only POST from this machine changes something, and never one that a web page made a browser send.
pub fn refuse_write(request: &Parts, allowed: &'static str) -> Option<Page> {
    let local = request.extensions.get::<Visitor>().is_some_and(|visitor| visitor.is_local());
    if request.method != Method::POST {
        Some(method_not_allowed(allowed))
    } else if !local {
        Some(text(StatusCode::FORBIDDEN, "only from this machine\n"))
    } else if request.headers.contains_key(header::ORIGIN) {
        Some(text(StatusCode::FORBIDDEN, "not for web pages\n"))
    } else {
        None
    }
}

fn index(pages: &[(&str, &str, &str)]) -> Page {
    let mut html = String::from(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Cairn</title>\
         <style>body{font:1rem/1.5 system-ui;margin:2rem}td{padding:0 1.5rem 0 0}</style>",
    );
    // Writing to a String cannot fail.
    let _ = write!(html, "<h1>Cairn {}</h1><table>", env!("CARGO_PKG_VERSION"));
    for (method, path, what) in pages {
        let shown = match *method {
            "GET" => format!("<a href=\"{path}\">{path}</a>"),
            _ => format!("<code>{path}</code>"),
        };
        let _ = write!(html, "<tr><td>{method}<td>{shown}<td>{what}");
    }
    html.push_str("</table></html>\n");
    page(StatusCode::OK, "text/html; charset=utf-8", html)
}

/// `None` when the escapes are broken or the result is no UTF-8.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let high = char::from(rest.next()?).to_digit(16)?;
                let low = char::from(rest.next()?).to_digit(16)?;
                (high * 16 + low) as u8
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests;

//! Pages in Envoy's shapes, for `istioctl` and for people who know Envoy.
//!
//! Sources: Envoy's admin interface documentation and `envoy.admin.v3`; which of it `istioctl` and
//! Istio's runbooks read. What changes something answers to POST from this machine only. Pages that
//! can be large are written in pieces by a thread of their own.

mod bootstrap;
mod clusters;
mod config_dump;
mod json;
mod loggers;
mod print;
pub(super) mod query;
mod secrets;
mod server_info;
mod stats;
mod stream;
mod types;
mod view;

pub use view::{Actions, AdminView, Bound, Started};

use super::server::{Page, page, text};
use super::{read, refuse_write};
use crate::explain;
use config_dump::Section;
use http::StatusCode;
use http::request::Parts;
use query::Query;
use regex::RegexBuilder;
use std::sync::Arc;
use stream::Desk;

/// The pages, for `/` and `/help`.
pub const PAGES: [(&str, &str, &str); 17] = [
    ("GET", "/certs", "the certificate and the roots, as JSON"),
    ("GET", "/clusters", "clusters and endpoints with their numbers; ?format=json"),
    (
        "GET",
        "/config_dump",
        "what istiod sent, as JSON; ?include_eds=true, ?resource=LIST, ?name_regex=NAME",
    ),
    ("POST", "/drain_listeners", "no new tunnels; those that are open go on"),
    ("GET", "/explain", explain::PAGE_HELP),
    ("POST", "/healthcheck/fail", "readiness fails"),
    ("POST", "/healthcheck/ok", "readiness is what it is"),
    ("GET", "/help", "this list, as text"),
    ("GET", "/listeners", "what is listened on; ?format=json"),
    (
        "POST",
        "/logging",
        "the levels; ?level=LEVEL or ?level=FILTER, ?LOGGER=LEVEL, ?paths=LOGGER:LEVEL,… change them",
    ),
    ("POST", "/quitquitquit", "drains and ends the process"),
    ("GET", "/ready", "200 when traffic is welcome, else 503 and what it waits for"),
    ("GET", "/server_info", "version, state, uptime and node, as JSON"),
    ("GET", "/stats", "numbers; ?format=json or prometheus, ?filter=REGEX, ?usedonly"),
    ("GET", "/stats/prometheus", "metrics; OpenMetrics where it is asked for, and gzip"),
    ("GET", "/unsupported", "what istiod sent and is not supported, as JSON"),
    ("GET", "/", "this list"),
];

/// Bound of a regular expression in a query, in bytes once it is compiled.
const REGEX_BYTES: usize = 1 << 20;

/// Answers for one waypoint.
pub struct EnvoyPages {
    view: Arc<AdminView>,
    desk: Desk,
}

impl EnvoyPages {
    /// For what `view` shows.
    pub fn new(view: AdminView) -> Self {
        EnvoyPages { view: Arc::new(view), desk: Desk::default() }
    }

    /// `None`: it is none of these pages.
    pub fn answer(&self, request: &Parts) -> Option<Page> {
        let Some(query) = Query::parse(request.uri.query()) else {
            return Some(bad("a % in the query is followed by no two digits, or it is no UTF-8"));
        };
        Some(match request.uri.path() {
            "/certs" => read(request, || json(server_info::certs(&self.view))),
            "/clusters" => read(request, || self.clusters(&query)),
            "/config_dump" => read(request, || self.config_dump(&query)),
            "/drain_listeners" => self.act(request, |actions| (actions.drain_listeners)()),
            "/explain" => read(request, || self.explain(&query)),
            "/healthcheck/fail" => self.act(request, |actions| (actions.fail_health)(true)),
            "/healthcheck/ok" => self.act(request, |actions| (actions.fail_health)(false)),
            "/help" => read(request, || text(StatusCode::OK, help())),
            "/listeners" => read(request, || match query.get("format") {
                Some("json") => json(server_info::listeners_json(&self.view)),
                _ => text(StatusCode::OK, server_info::listeners_text(&self.view)),
            }),
            "/logging" => self.logging(request, &query),
            "/quitquitquit" => self.act(request, |actions| (actions.quit)()),
            "/server_info" => read(request, || json(server_info::server_info(&self.view))),
            "/stats" => read(request, || self.stats(&query)),
            "/unsupported" => read(request, || self.unsupported()),
            "/" => read(request, || super::index(&PAGES)),
            _ => return None,
        })
    }

    /// `OK`, after it was done.
    fn act(&self, request: &Parts, act: impl FnOnce(&Actions)) -> Page {
        if let Some(refusal) = refuse_write(request, "POST") {
            return refusal;
        }
        act(&self.view.actions);
        tracing::info!(page = request.uri.path(), "done as the admin page was told");
        text(StatusCode::OK, "OK\n")
    }

    fn clusters(&self, query: &Query) -> Page {
        let mesh = self.view.instance.mesh();
        match query.get("format") {
            Some("json") => {
                self.desk.page("application/json", move |out| clusters::write_json(&mesh, out))
            }
            _ => self
                .desk
                .page("text/plain; charset=utf-8", move |out| clusters::write_text(&mesh, out)),
        }
    }

    fn config_dump(&self, query: &Query) -> Page {
        let mut selection = config_dump::Selection {
            include_eds: query.is_set("include_eds"),
            ..config_dump::Selection::default()
        };
        if let Some(name) = query.get("resource") {
            selection.resource = Section::parse(name);
            if selection.resource.is_none() {
                let known: Vec<_> = Section::names().collect();
                let known = known.join(", ");
                return text(
                    StatusCode::NOT_FOUND,
                    format!("{name} not found in config dump; there are {known}\n"),
                );
            }
        }
        if let Some(regex) = query.get("name_regex").filter(|regex| !regex.is_empty()) {
            // Envoy: the whole name has to match.
            match RegexBuilder::new(&format!("^(?:{regex})$")).size_limit(REGEX_BYTES).build() {
                Ok(regex) => selection.name = Some(regex),
                Err(error) => return bad(format!("name_regex: {error}")),
            }
        }
        let view = Arc::clone(&self.view);
        self.desk.page("application/json", move |out| config_dump::write(&view, &selection, out))
    }

    fn stats(&self, query: &Query) -> Page {
        let mut selection = stats::Selection {
            used_only: query.get("usedonly").is_some(),
            ..stats::Selection::default()
        };
        if let Some(filter) = query.get("filter").filter(|filter| !filter.is_empty()) {
            match RegexBuilder::new(filter).size_limit(REGEX_BYTES).build() {
                Ok(filter) => selection.filter = Some(filter),
                Err(error) => return bad(format!("filter: {error}")),
            }
        }
        let view = &self.view;
        match query.get("format") {
            Some("json") => json(stats::json(&stats::collect(view, &selection))),
            Some("prometheus") => text(StatusCode::OK, view.instance.telemetry().render(false)),
            _ => text(StatusCode::OK, stats::text(&stats::collect(view, &selection))),
        }
    }

    fn logging(&self, request: &Parts, query: &Query) -> Page {
        let logging = &self.view.logging;
        if super::is_read(&request.method) {
            return text(StatusCode::OK, loggers::list(&logging.filter()));
        }
        if let Some(refusal) = refuse_write(request, "GET, POST") {
            return refusal;
        }
        let filter = match changed(&logging.filter(), query) {
            Ok(filter) => filter,
            Err(reason) => return bad(reason),
        };
        if filter != logging.filter() {
            if let Err(error) = logging.set_filter(&filter) {
                return bad(error);
            }
            tracing::info!(filter, "log filter changed");
        }
        text(StatusCode::OK, loggers::list(&filter))
    }

    fn unsupported(&self) -> Page {
        let (closed, other) = ((self.view.unsupported)(), (self.view.degraded)());
        let closed = closed.iter().map(|one| (one, "fails closed"));
        let list = closed.chain(other.iter().map(|one| (one, "done in another way")));
        let list = list.map(|(one, effect)| {
            serde_json::json!({
                "kind": one.kind, "name": one.name, "effect": effect, "reason": one.reason
            })
        });
        json(format!("{:#}\n", serde_json::Value::Array(list.collect())))
    }

    fn explain(&self, query: &Query) -> Page {
        let question = match explain::Question::from_pairs(query.pairs()) {
            Ok(question) => question,
            Err(reason) => return bad(reason),
        };
        let (mesh, resources) = (self.view.instance.mesh(), self.view.resources.load_full());
        self.desk.page("application/json", move |out| {
            let explanation = explain::explain(&mesh, &resources, &question);
            out.write_all(explain::json(&explanation).as_bytes())
        })
    }
}

/// The filter with the changes that a query asks for.
fn changed(filter: &str, query: &Query) -> Result<String, String> {
    let unknown = |name: &str| {
        format!("`{name}` is no level; there are trace, debug, info, warning, error and off")
    };
    let one = |filter: &str, logger: &str, level: &str| {
        let target = loggers::target(logger)
            .ok_or_else(|| format!("`{logger}` is no logger; GET /logging lists them"))?;
        let level = loggers::level(level).ok_or_else(|| unknown(level))?;
        Ok::<_, String>(loggers::with_level(filter, Some(target), level))
    };
    let mut filter = filter.to_owned();
    for (name, value) in query.pairs() {
        filter = match name {
            "level" => match loggers::level(value) {
                // Envoy: all loggers get it.
                Some(level) => level.to_owned(),
                None => value.to_owned(),
            },
            "paths" => value.split(',').try_fold(filter, |filter, pair| {
                let (logger, level) = pair.split_once(':').ok_or_else(|| unknown(pair))?;
                one(&filter, logger, level)
            })?,
            logger => one(&filter, logger, value)?,
        };
    }
    Ok(filter)
}

fn help() -> String {
    PAGES.iter().map(|(method, path, what)| format!("{method:<5}{path:<20}{what}\n")).collect()
}

fn json(body: String) -> Page {
    page(StatusCode::OK, "application/json", body)
}

fn bad(reason: impl std::fmt::Display) -> Page {
    text(StatusCode::BAD_REQUEST, format!("{reason}\n"))
}

#[cfg(test)]
mod tests;

//! `/stats`: Envoy's names for what Envoy counts too, and everything else that Prometheus is told.

use super::server_info::state;
use super::view::AdminView;
use cairn_xds::feed::Kind;
use regex::Regex;
use serde::Serialize;

/// One number.
#[derive(Debug, PartialEq, Serialize)]
pub struct Stat {
    /// Envoy's name, or a Prometheus name with its labels.
    pub name: String,
    /// Now.
    pub value: Number,
}

/// The value of a [`Stat`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Number {
    /// A counter, or a gauge of whole things.
    Whole(u64),
    /// Any other.
    Real(f64),
}

/// What is asked for.
#[derive(Debug, Default)]
pub struct Selection {
    /// Those whose names contain a match.
    pub filter: Option<Regex>,
    /// Those that are not zero.
    pub used_only: bool,
}

/// What is asked for, in the order of the names.
pub fn collect(view: &AdminView, selection: &Selection) -> Vec<Stat> {
    let mut stats = own(view);
    stats.extend((view.stats)().into_iter().map(|(name, value)| whole(name, value)));
    // What Prometheus gets by Envoy's names is there by those already.
    let page = view.instance.telemetry().render(false);
    stats.extend(samples(&page).filter(|stat| !stat.name.starts_with("envoy_")));
    stats.retain(|stat| {
        selection.filter.as_ref().is_none_or(|filter| filter.is_match(&stat.name))
            && !(selection.used_only && stat.value.is_zero())
    });
    stats.sort_by(|a, b| a.name.cmp(&b.name));
    stats.dedup_by(|a, b| a.name == b.name);
    stats
}

/// `name: value` a line.
pub fn text(stats: &[Stat]) -> String {
    stats.iter().map(|stat| format!("{}: {}\n", stat.name, stat.value)).collect()
}

/// `{"stats": [{"name": …, "value": …}]}`
pub fn json(stats: &[Stat]) -> String {
    #[derive(Serialize)]
    struct Page<'a> {
        stats: &'a [Stat],
    }
    let mut text = serde_json::to_string(&Page { stats })
        .unwrap_or_else(|error| serde_json::json!({ "error": error.to_string() }).to_string());
    text.push('\n');
    text
}

impl Number {
    fn is_zero(self) -> bool {
        matches!(self, Number::Whole(0)) || self == Number::Real(0.0)
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Number::Whole(value) => value.fmt(f),
            Number::Real(value) => value.fmt(f),
        }
    }
}

fn whole(name: String, value: u64) -> Stat {
    Stat { name, value: Number::Whole(value) }
}

/// What Envoy counts too.
fn own(view: &AdminView) -> Vec<Stat> {
    let mesh = view.instance.mesh();
    let listeners = view.store.len(Kind::Listener) as u64;
    let server_state = state(view);
    let mut stats = vec![
        whole("cluster_manager.active_clusters".to_owned(), mesh.clusters().len() as u64),
        whole("listener_manager.total_listeners_active".to_owned(), listeners),
        whole("server.live".to_owned(), u64::from(server_state.as_str_name() == "LIVE")),
        whole("server.state".to_owned(), i32::from(server_state).unsigned_abs().into()),
        whole("server.uptime".to_owned(), view.started.instant.elapsed().as_secs()),
    ];
    for cluster in mesh.clusters() {
        let endpoints = cluster.endpoints.all();
        let sum = |of: fn(&cairn_router::endpoint::Endpoint) -> u64| {
            endpoints.iter().map(|endpoint| of(endpoint)).sum()
        };
        let healthy = endpoints.iter().filter(|endpoint| endpoint.is_healthy()).count() as u64;
        for (name, value) in [
            ("membership_healthy", healthy),
            ("membership_total", endpoints.len() as u64),
            ("upstream_rq_active", sum(|endpoint| endpoint.state.active().into())),
            ("upstream_rq_total", sum(|endpoint| endpoint.state.total())),
        ] {
            stats.push(whole(format!("cluster.{}.{name}", cluster.name), value));
        }
    }
    stats
}

/// The samples of a Prometheus page.
fn samples(page: &str) -> impl Iterator<Item = Stat> {
    page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        let value = match value.parse::<u64>() {
            Ok(value) => Number::Whole(value),
            Err(_) => Number::Real(value.parse().ok()?),
        };
        Some(Stat { name: name.to_owned(), value })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_a_prometheus_page() {
        let page = "# TYPE a counter\na{b=\"c d\"} 3\nx 0.5\n\nnonsense\n";
        let stats: Vec<Stat> = samples(page).collect();
        let stat = |name: &str, value| Stat { name: name.to_owned(), value };
        let expected = [stat("a{b=\"c d\"}", Number::Whole(3)), stat("x", Number::Real(0.5))];
        assert_eq!(stats, expected);
        assert_eq!(text(&stats), "a{b=\"c d\"}: 3\nx: 0.5\n");
        assert_eq!(json(&stats[1..]), "{\"stats\":[{\"name\":\"x\",\"value\":0.5}]}\n");
    }
}

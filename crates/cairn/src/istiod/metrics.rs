//! Numbers about one mesh: configuration, istiod, certificate.

use super::feeder::Feeder;
use super::publisher::Published;
use cairn_identity::Identity;
use cairn_identity::ca::CaStatus;
use cairn_telemetry::Writer;
use cairn_xds::ads::AdsStatus;
use cairn_xds::feed::Kind;
use cairn_xds::store::Store;
use cairn_xds::translate::{Counters, Unsupported};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Series of one family that name things of the configuration; the others are counted in one more.
const MAX_NAMED: usize = 200;

/// Where the numbers come from.
pub struct Sources {
    /// Which mesh, where there can be several.
    pub mesh: Option<String>,
    /// Our certificate.
    pub identity: Identity,
    /// The exchange with the CA; `None`: the certificate comes from files.
    pub ca: Option<watch::Receiver<CaStatus>>,
    /// The exchange with istiod.
    pub ads: watch::Receiver<AdsStatus>,
    /// What was accepted.
    pub store: Arc<Store>,
    /// What was published.
    pub published: watch::Receiver<Published>,
    /// How much was read.
    pub feeder: Feeder,
}

impl Sources {
    /// Writes all of them.
    pub fn write(&self, writer: &mut Writer) {
        self.certificate(writer);
        self.istiod(writer);
        self.configuration(writer);
    }

    /// These labels, and the mesh's where there can be several.
    fn labels<'a>(&'a self, labels: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let mesh = self.mesh.iter().map(|mesh| ("mesh", mesh.as_str()));
        labels.iter().copied().chain(mesh).collect()
    }

    fn certificate(&self, writer: &mut Writer) {
        let left = seconds_until(self.identity.current().not_after, SystemTime::now());
        writer.gauge(
            "istio_agent_cert_expiry_seconds",
            "Until our certificate expires; negative when it has.",
            &self.labels(&[("resource_name", "default")]),
            left,
        );
        let Some(ca) = &self.ca else { return };
        let ca = ca.borrow().clone();
        for (name, help, value) in [
            ("cairn_ca_requests_total", "Certificates that were asked for.", ca.requests),
            ("cairn_ca_signed_total", "Certificates that were issued.", ca.signed),
            ("cairn_ca_failures_total", "Certificates that were not issued.", ca.failed),
        ] {
            writer.counter(name, help, &self.labels(&[]), value);
        }
    }

    fn istiod(&self, writer: &mut Writer) {
        let ads = self.ads.borrow().clone();
        let none = self.labels(&[]);
        let connected = if ads.connected { 1.0 } else { 0.0 };
        let help = "1 while there is a stream to istiod.";
        writer.gauge("cairn_xds_connected", help, &none, connected);
        let help = "Streams on which istiod answered.";
        writer.counter("cairn_xds_streams_total", help, &none, ads.streams);
        let help = "Streams and attempts that ended.";
        writer.counter("cairn_xds_reconnects_total", help, &none, ads.reconnects);
        for kind in Kind::ALL {
            let held = self.store.len(kind) as f64;
            let labels = self.labels(&[("type", kind.label())]);
            writer.gauge("cairn_xds_resources", "Resources that are held.", &labels, held);
        }
        for (kind, status) in &ads.kinds {
            let labels = self.labels(&[("type", kind.label())]);
            let help = "Answers that were taken.";
            writer.counter("cairn_xds_accepted_total", help, &labels, status.acks);
            let help = "Answers of which something was refused.";
            writer.counter("cairn_xds_rejected_total", help, &labels, status.nacks);
            if let Some(age) = status.last_answer.and_then(|at| at.elapsed().ok()) {
                let help = "Since istiod's last answer.";
                writer.gauge("cairn_xds_last_answer_age_seconds", help, &labels, age.as_secs_f64());
            }
        }
    }

    fn configuration(&self, writer: &mut Writer) {
        let published = self.published.borrow().clone();
        let help = "Time that the last snapshot took to make.";
        let none = self.labels(&[]);
        writer.gauge("cairn_config_snapshot_seconds", help, &none, published.took.as_secs_f64());
        self.findings(
            writer,
            (
                "cairn_config_unsupported",
                "What istiod asks for and is not understood: it fails closed.",
            ),
            &published.unsupported,
        );
        self.findings(
            writer,
            ("cairn_config_degraded", "What istiod asks for and is done in another way."),
            &published.degraded,
        );
        let Counters {
            chains_parsed,
            chains_reused,
            clusters_parsed,
            clusters_reused,
            assignments_parsed,
            assignments_reused,
            workloads_parsed,
            workloads_reused,
            sets_built,
            rejected: _,
        } = self.feeder.counters();
        for (what, parsed, reused) in [
            ("chain", chains_parsed, chains_reused),
            ("cluster", clusters_parsed, clusters_reused),
            ("endpoints", assignments_parsed, assignments_reused),
            ("workload", workloads_parsed, workloads_reused),
        ] {
            let labels = self.labels(&[("what", what)]);
            let help = "Pieces of configuration that were read.";
            writer.counter("cairn_config_parsed_total", help, &labels, parsed);
            let help = "Pieces of configuration that came again as they were.";
            writer.counter("cairn_config_reused_total", help, &labels, reused);
        }
        let help = "Endpoint sets that were made anew.";
        writer.counter("cairn_config_endpoint_sets_built_total", help, &none, sets_built);
    }
}

impl Sources {
    /// One series for each finding up to a bound, and one for how many there are beyond it.
    fn findings(&self, writer: &mut Writer, (name, help): (&str, &str), findings: &[Unsupported]) {
        for Unsupported { kind, name: thing, reason: _ } in findings.iter().take(MAX_NAMED) {
            writer.gauge(name, help, &self.labels(&[("kind", kind), ("name", thing)]), 1.0);
        }
        if findings.len() > MAX_NAMED {
            let more = (findings.len() - MAX_NAMED) as f64;
            writer.gauge(name, help, &self.labels(&[("kind", "more"), ("name", "")]), more);
        }
    }
}

/// Seconds since istiod's last answer, by type.
pub fn answer_ages(ads: &AdsStatus) -> BTreeMap<String, f64> {
    let age = |at: SystemTime| at.elapsed().ok().map(|age| age.as_secs_f64());
    let ages = ads
        .kinds
        .iter()
        .filter_map(|(kind, status)| Some((kind.label().to_owned(), age(status.last_answer?)?)));
    ages.collect()
}

/// By the names of Envoy's `/stats`.
pub fn envoy_stats(ads: &AdsStatus, published: &Published) -> Vec<(String, u64)> {
    let mut stats = vec![
        ("control_plane.connected_state".to_owned(), u64::from(ads.connected)),
        ("cluster.xds-grpc.upstream_cx_total".to_owned(), ads.streams),
        ("cluster.xds-grpc.upstream_cx_active".to_owned(), u64::from(ads.connected)),
        (
            "cluster.xds-grpc.upstream_cx_connect_fail".to_owned(),
            (ads.reconnects + u64::from(ads.connected)).saturating_sub(ads.streams),
        ),
        ("listener_manager.workers_started".to_owned(), u64::from(published.snapshots > 0)),
    ];
    for (kind, prefix) in
        [(Kind::Cluster, "cluster_manager.cds"), (Kind::Listener, "listener_manager.lds")]
    {
        let status = ads.kinds.get(&kind).cloned().unwrap_or_default();
        stats.push((format!("{prefix}.update_success"), status.acks));
        stats.push((format!("{prefix}.update_rejected"), status.nacks));
        stats.push((format!("{prefix}.update_attempt"), status.acks + status.nacks));
    }
    stats
}

/// Negative when it is over.
fn seconds_until(then: SystemTime, now: SystemTime) -> f64 {
    let since =
        |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    since(then) - since(now)
}

//! Numbers about the process itself: configuration, istiod, certificate, memory.

use super::feeder::Feeder;
use super::memory::Used;
use super::publisher::Published;
use crate::ready::Readiness;
use cairn_identity::Identity;
use cairn_identity::ca::CaStatus;
use cairn_telemetry::Writer;
use cairn_xds::ads::AdsStatus;
use cairn_xds::feed::Kind;
use cairn_xds::store::Store;
use cairn_xds::translate::{Counters, Unsupported};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Series of one family that name things of the configuration; the others are counted in one more.
const MAX_NAMED: usize = 200;

/// Where the numbers come from.
pub struct Sources {
    /// Whether traffic is welcome.
    pub readiness: Arc<Readiness>,
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
    /// Memory in use.
    pub memory: Used,
    /// Memory that may be used.
    pub memory_limit: Option<u64>,
    /// When the process began.
    pub started: Instant,
}

impl Sources {
    /// Writes all of them.
    pub fn write(&self, writer: &mut Writer) {
        let ready = if self.readiness.check().is_ok() { 1.0 } else { 0.0 };
        writer.gauge("cairn_ready", "1 when traffic is welcome.", &[], ready);
        self.certificate(writer);
        self.istiod(writer);
        self.configuration(writer);
        self.envoy(writer);
        let used = self.memory.get();
        writer.gauge("process_resident_memory_bytes", "Memory in use.", &[], used as f64);
        if let Some(limit) = self.memory_limit {
            writer.gauge("cairn_memory_limit_bytes", "Memory that may be used.", &[], limit as f64);
        }
    }

    fn certificate(&self, writer: &mut Writer) {
        let left = seconds_until(self.identity.current().not_after, SystemTime::now());
        writer.gauge(
            "istio_agent_cert_expiry_seconds",
            "Until our certificate expires; negative when it has.",
            &[("resource_name", "default")],
            left,
        );
        let Some(ca) = &self.ca else { return };
        let ca = ca.borrow().clone();
        for (name, help, value) in [
            ("cairn_ca_requests_total", "Certificates that were asked for.", ca.requests),
            ("cairn_ca_signed_total", "Certificates that were issued.", ca.signed),
            ("cairn_ca_failures_total", "Certificates that were not issued.", ca.failed),
        ] {
            writer.counter(name, help, &[], value);
        }
    }

    fn istiod(&self, writer: &mut Writer) {
        let ads = self.ads.borrow().clone();
        let connected = if ads.connected { 1.0 } else { 0.0 };
        writer.gauge("cairn_xds_connected", "1 while there is a stream to istiod.", &[], connected);
        let help = "Streams on which istiod answered.";
        writer.counter("cairn_xds_streams_total", help, &[], ads.streams);
        let help = "Streams and attempts that ended.";
        writer.counter("cairn_xds_reconnects_total", help, &[], ads.reconnects);
        for kind in Kind::ALL {
            let held = self.store.len(kind) as f64;
            let labels = [("type", kind.label())];
            writer.gauge("cairn_xds_resources", "Resources that are held.", &labels, held);
        }
        for (kind, status) in &ads.kinds {
            let labels = [("type", kind.label())];
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
        writer.gauge("cairn_config_snapshot_seconds", help, &[], published.took.as_secs_f64());
        findings(
            writer,
            "cairn_config_unsupported",
            "What istiod asks for and is not understood: it fails closed.",
            &published.unsupported,
        );
        findings(
            writer,
            "cairn_config_degraded",
            "What istiod asks for and is done in another way.",
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
            let labels = [("what", what)];
            let help = "Pieces of configuration that were read.";
            writer.counter("cairn_config_parsed_total", help, &labels, parsed);
            let help = "Pieces of configuration that came again as they were.";
            writer.counter("cairn_config_reused_total", help, &labels, reused);
        }
        let help = "Endpoint sets that were made anew.";
        writer.counter("cairn_config_endpoint_sets_built_total", help, &[], sets_built);
    }
}

impl Sources {
    /// What Istio's dashboards, and alerts that people write, ask of Envoy itself, by Envoy's names.
    ///
    /// Envoy's counters without `_total` are gauges here: both text formats ask for the suffix.
    fn envoy(&self, writer: &mut Writer) {
        let ads = self.ads.borrow().clone();
        let published = self.published.borrow().clone();
        let live = f64::from(u8::from(self.readiness.check().is_ok()));
        writer.gauge("envoy_server_live", "1 when traffic is welcome.", &[], live);
        let up = self.started.elapsed().as_secs() as f64;
        writer.gauge("envoy_server_uptime", "Seconds since the start.", &[], up);
        for (name, value) in envoy_stats(&ads, &published) {
            if let Some(of_istiod) = name.strip_prefix("cluster.xds-grpc.") {
                let labels = [("cluster_name", "xds-grpc")];
                let help = "Of the stream to istiod.";
                let name = format!("envoy_cluster_{of_istiod}");
                if name.ends_with("_total") {
                    writer.counter(&name, help, &labels, value);
                } else {
                    writer.gauge(&name, help, &labels, value as f64);
                }
            } else {
                let name = format!("envoy_{}", name.replace('.', "_"));
                writer.gauge(&name, "As Envoy has it.", &[], value as f64);
            }
        }
    }
}

/// One series for each finding up to a bound, and one for how many there are beyond it.
fn findings(writer: &mut Writer, name: &str, help: &str, findings: &[Unsupported]) {
    for Unsupported { kind, name: thing, reason: _ } in findings.iter().take(MAX_NAMED) {
        writer.gauge(name, help, &[("kind", kind), ("name", thing)], 1.0);
    }
    if findings.len() > MAX_NAMED {
        let more = (findings.len() - MAX_NAMED) as f64;
        writer.gauge(name, help, &[("kind", "more"), ("name", "")], more);
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

//! Numbers about the process: readiness, memory, and what people ask of Envoy by its names.

use super::memory::Used;
use crate::istiod::{self, envoy_stats};
use crate::ready::Readiness;
use cairn_telemetry::Writer;
use std::sync::Arc;
use std::time::Instant;

/// Where the numbers come from.
pub struct Sources {
    /// The one mesh.
    pub mesh: istiod::Sources,
    /// Whether traffic is welcome.
    pub readiness: Arc<Readiness>,
    /// Memory in use.
    pub memory: Used,
    /// Memory that may be used.
    pub memory_limit: Option<u64>,
    /// When the process began.
    pub started: Instant,
}

/// Whether traffic is welcome, and memory.
pub fn of_process(writer: &mut Writer, ready: bool, memory: &Used, limit: Option<u64>) {
    let ready = f64::from(u8::from(ready));
    writer.gauge("cairn_ready", "1 when traffic is welcome.", &[], ready);
    let used = memory.get() as f64;
    writer.gauge("process_resident_memory_bytes", "Memory in use.", &[], used);
    if let Some(limit) = limit {
        writer.gauge("cairn_memory_limit_bytes", "Memory that may be used.", &[], limit as f64);
    }
}

impl Sources {
    /// Writes all of them.
    pub fn write(&self, writer: &mut Writer) {
        of_process(writer, self.readiness.check().is_ok(), &self.memory, self.memory_limit);
        self.mesh.write(writer);
        self.envoy(writer);
    }
}

impl Sources {
    /// What Istio's dashboards, and alerts that people write, ask of Envoy itself, by Envoy's names.
    ///
    /// Envoy's counters without `_total` are gauges here: both text formats ask for the suffix.
    fn envoy(&self, writer: &mut Writer) {
        let ads = self.mesh.ads.borrow().clone();
        let published = self.mesh.published.borrow().clone();
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

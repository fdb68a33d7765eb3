//! What the load generator tells whoever started it: one JSON value a line.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// A second went by.
    Progress {
        /// `warm-up` or `window`.
        stage: String,
        /// Answers in this second.
        requests: u64,
        /// Failures since the start.
        failed: u64,
    },
    /// Tunnels are open and stay so.
    Held {
        /// How many.
        tunnels: usize,
    },
    /// The end.
    Result(LoadReport),
}

/// The whole result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LoadReport {
    /// What was used in the window.
    pub window: Window,
    /// Its parts; one, unless lines on standard input divided it.
    pub phases: Vec<PhaseReport>,
}

/// Requests of a part of the window.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PhaseReport {
    /// How long it was.
    pub seconds: f64,
    /// Good answers.
    pub requests: u64,
    /// Failures by kind.
    pub errors: BTreeMap<String, u64>,
    /// Time to the end of the answer.
    pub latency: Latency,
}

/// Quantiles in microseconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Half of the requests took no longer.
    pub p50: f64,
    /// 90 % took no longer.
    pub p90: f64,
    /// 99 % took no longer.
    pub p99: f64,
    /// 99.9 % took no longer.
    pub p999: f64,
    /// None took longer.
    pub max: f64,
}

/// Clocks over the window.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Window {
    /// How long it was.
    pub seconds: f64,
    /// What the proxy used, if its process was named.
    pub proxy: Option<ProxyUse>,
    /// What everybody used.
    pub machine: Machine,
}

/// What the proxy used in the window.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct ProxyUse {
    /// CPU time in user mode and in the kernel.
    pub cpu_seconds: f64,
    /// CPU time in the kernel.
    pub kernel_seconds: f64,
    /// Time that it was ready to run and had no CPU: others were in the way.
    pub waited_seconds: f64,
    /// Resident memory in bytes when the window began.
    pub rss_before: u64,
    /// And when it ended.
    pub rss_after: u64,
}

/// CPU time of the machine in the window.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Machine {
    /// Of the load generator.
    pub load_seconds: f64,
    /// Of the backend.
    pub backend_seconds: f64,
    /// Of processes that do not belong to the measurement.
    pub foreign_seconds: f64,
    /// Taken by the hypervisor.
    pub stolen_seconds: f64,
    /// Of all cores.
    pub total_seconds: f64,
}

impl Line {
    /// On standard output.
    pub fn print(&self) {
        if let Ok(text) = serde_json::to_string(self) {
            println!("{text}");
        }
    }
}

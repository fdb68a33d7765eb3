//! A running `cairn scaler`, and what it says.

use crate::http1::{Http1, Response};
use crate::metrics;
use crate::process::Cairn;
use crate::wait::{eventually, eventually_async};
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;

/// Between two looks at a page.
const PAUSE: Duration = Duration::from_millis(50);

/// Windows that are as short as a test wants them.
pub const QUICK: &str = "stable_window=3s,panic_window=1s,overload_for=1s,down_delay=3s,\
                         down_period=1s,headroom_deviations=0";

/// A process that listens on loopback; it is killed when this is dropped.
pub struct Scaler {
    /// The process.
    pub process: Cairn,
    /// Its pages.
    pub pages: SocketAddr,
    /// KEDA's gRPC.
    pub grpc: SocketAddr,
}

impl Scaler {
    /// With these arguments, two polls a second and [`QUICK`] windows; waits until it listens.
    ///
    /// # Panics
    /// When it does not.
    pub async fn start(more: &[&str]) -> Self {
        let mut args = vec!["scaler", "--log-format", "json", "--poll-interval", "500ms"];
        args.extend(["--poll-timeout", "400ms", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        args.extend(["--policy", QUICK]);
        args.extend_from_slice(more);
        let mut process = Cairn::start(&args);
        eventually("the scaler listens", || {
            assert!(process.is_running(), "{:#?}", process.output());
            process.printed("scaler pages") && process.printed("KEDA's gRPC")
        })
        .await;
        let pages = process.address("scaler pages");
        let grpc = process.address("KEDA's gRPC");
        Scaler { process, pages, grpc }
    }

    /// One page.
    ///
    /// # Panics
    /// When nobody answers.
    pub async fn page(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        let tcp = TcpStream::connect(self.pages).await.unwrap();
        Http1::new(tcp).ask(&format!("GET {path}"), headers).await
    }

    /// `/decision`.
    pub async fn decision(&self) -> Value {
        self.page("/decision", &[]).await.json()
    }

    /// Waits until `/decision` is as `wanted` says, and returns it.
    ///
    /// # Panics
    /// When it is not in time, with what it was last.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let start = std::time::Instant::now();
        loop {
            let last = self.decision().await;
            if wanted(&last) {
                return last;
            }
            let late = start.elapsed() > crate::wait::DEADLINE;
            assert!(!late, "{what}: {last:#}\n{:#?}", self.process.output());
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Waits until so many decisions were made after this call.
    ///
    /// # Panics
    /// When they are not.
    pub async fn decisions(&self, count: usize) {
        let name = "cairn_scaler_decisions_total";
        let goal = self.count(name, &[]).await + count as f64;
        eventually_async("decisions are made", async || {
            tokio::time::sleep(PAUSE).await;
            self.count(name, &[]).await >= goal
        })
        .await;
    }

    /// The sum of a metric.
    ///
    /// # Panics
    /// When nobody answers.
    pub async fn count(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let page = self.page("/stats/prometheus", &[]).await;
        metrics::sum(&metrics::parse(&page.text()), name, labels)
    }
}

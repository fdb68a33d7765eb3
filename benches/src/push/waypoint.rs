//! The process under test: the container of a waypoint's pod, on the proxy's core.

use crate::bed::Bed;
use crate::process::{Doors, Process};
use crate::proxy::{Contender, free_address};
use anyhow::{Context, Result, ensure};
use cairn_test_support::http1::Http1;
use cairn_test_support::istiod::FakeIstiod;
use cairn_test_support::metrics;
use cairn_test_support::pod::Pod;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// Its service account, in the namespace of [`cairn_test_support::istiod::shapes`].
pub const ACCOUNT: &str = "waypoint";
/// Between two looks at the readiness page: what they cost is in the CPU time of a start.
const LOOK: Duration = Duration::from_millis(2);
/// A push that is not in use after so long never will be.
const LIMIT: Duration = Duration::from_secs(30);

/// `cairn proxy waypoint`.
pub struct Waypoint {
    /// Its process.
    pub process: Process,
    metrics: SocketAddr,
}

/// Its pod in the mesh of `istiod`.
pub fn pod(istiod: &FakeIstiod) -> Pod {
    let mut pod = Pod::new();
    pod.join(istiod);
    pod.set("CAIRN_LOOPBACK_ENDPOINTS", "on");
    pod.set("MINIMUM_DRAIN_DURATION", "0s");
    pod
}

impl Waypoint {
    /// Starts the container. It is not ready yet.
    pub async fn start(bed: &Bed, contender: &Contender, pod: &mut Pod) -> Result<Waypoint> {
        let (hbone, health) = (free_address().await?, free_address().await?);
        let metrics = free_address().await?;
        let ports = format!("15008={hbone},15021={health},15090={metrics}");
        pod.set("CAIRN_PORTS", &format!("{ports},15020=127.0.0.1:0,15000=127.0.0.1:0"));
        let mut command = contender.command();
        command.args(&pod.args).env_clear().envs(&pod.vars);
        let log = bed.dir().join(format!("{}-waypoint.log", contender.name));
        let doors = Doors { hbone, health, ready: "/healthz/ready" };
        Ok(Waypoint { process: Process::start(command, bed.cores(), log, doors)?, metrics })
    }

    /// Waits until it is ready; tells how long that took from exec.
    pub async fn until_ready(&mut self) -> Result<Duration> {
        self.process.until_ready_by(|| sleep(LOOK)).await
    }

    /// Configurations that it has served by.
    pub async fn snapshots(&self) -> Result<f64> {
        Ok(self.last_snapshot().await?.0)
    }

    /// How many there were, and how long it took to make the last one.
    pub async fn last_snapshot(&self) -> Result<(f64, Duration)> {
        let stream = TcpStream::connect(self.metrics).await.context("no metrics page")?;
        let page = Http1::new(stream).request("GET", "/stats/prometheus", &[], b"").await?;
        ensure!(page.status == 200, "the metrics page has status {}", page.status);
        let samples = metrics::parse(&page.text());
        let took = metrics::sum(&samples, "cairn_config_snapshot_seconds", &[]);
        let took = Duration::try_from_secs_f64(took)?;
        Ok((metrics::sum(&samples, "cairn_snapshots_total", &[]), took))
    }

    /// How long it takes until what `push` pushes is served by.
    pub async fn until_used(&self, push: impl FnOnce() -> Result<()>) -> Result<Duration> {
        let before = self.snapshots().await?;
        let since = Instant::now();
        push()?;
        while self.snapshots().await? <= before {
            ensure!(since.elapsed() < LIMIT, "the change is not in use after {LIMIT:?}");
            sleep(LOOK).await;
        }
        Ok(since.elapsed())
    }
}

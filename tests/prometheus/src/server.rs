//! A Prometheus that scrapes what it is told, and its API.

use crate::tools::Tools;
use cairn_test_support::http1::Http1;
use serde_json::Value;
use std::fmt::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is scraped.
#[derive(Debug, Clone)]
pub struct Target {
    /// Name of the job.
    pub job: &'static str,
    /// Where it is.
    pub address: SocketAddr,
    /// Where its metrics are.
    pub path: &'static str,
    /// Labels that the target gets, as Kubernetes' discovery gives them.
    pub labels: Vec<(&'static str, &'static str)>,
}

/// A running server; it is killed when this is dropped.
pub struct Server {
    address: SocketAddr,
    _child: Child,
}

impl Server {
    /// Starts it and waits until it answers. It scrapes twice a second.
    ///
    /// # Panics
    /// When it does not.
    pub async fn start(tools: &Tools, dir: &Path, targets: &[Target]) -> Self {
        let config = dir.join("prometheus.yml");
        std::fs::write(&config, configuration(targets)).unwrap();
        let address = free_address();
        let log = std::fs::File::create(dir.join("prometheus.log")).unwrap();
        let mut command = Command::new(&tools.prometheus);
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address={address}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        let server = Server { address, _child: command.spawn().unwrap() };
        let start = Instant::now();
        while server.get("/-/ready").await.is_none_or(|(status, _)| status != 200) {
            let log = || std::fs::read_to_string(dir.join("prometheus.log")).unwrap_or_default();
            assert!(start.elapsed() < PATIENCE, "Prometheus is not ready: {}", log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        server
    }

    async fn get(&self, path: &str) -> Option<(u16, String)> {
        let stream = TcpStream::connect(self.address).await.ok()?;
        let response = Http1::new(stream).get(path).await.ok()?;
        Some((response.status, response.text()))
    }

    /// A call of the API: its `data`.
    ///
    /// # Errors
    /// What it says is wrong.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn api(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let mut place = format!("/api/v1/{path}?");
        for (name, value) in parameters {
            let _ = write!(place, "{name}={}&", encoded(value));
        }
        let (_, text) = self.get(&place).await.expect("Prometheus answers");
        let mut answer: Value = serde_json::from_str(&text).map_err(|_| text)?;
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(answer["data"].take()),
        }
    }

    /// The series that a query finds now.
    ///
    /// # Errors
    /// What is wrong with the query.
    pub async fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let data = self.api("query", &[("query", expression)]).await?;
        Ok(data["result"].as_array().cloned().unwrap_or_default())
    }

    /// What is wrong with the last scrape of each target that is not well; waits until each was
    /// scraped.
    ///
    /// # Panics
    /// When one is not in time.
    pub async fn complaints(&self) -> Vec<String> {
        let start = Instant::now();
        loop {
            let data = self.api("targets", &[]).await.unwrap();
            let targets = data["activeTargets"].as_array().cloned().unwrap_or_default();
            if !targets.is_empty() && targets.iter().all(|target| target["health"] != "unknown") {
                let ill = targets.iter().filter(|target| target["health"] != "up");
                return ill
                    .map(|target| format!("{}: {}", target["scrapeUrl"], target["lastError"]))
                    .collect();
            }
            assert!(start.elapsed() < PATIENCE, "not scraped: {targets:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn configuration(targets: &[Target]) -> String {
    let mut text =
        String::from("global: {scrape_interval: 500ms, scrape_timeout: 500ms}\nscrape_configs:\n");
    for Target { job, address, path, labels } in targets {
        let labels: Vec<String> =
            labels.iter().map(|(name, value)| format!("{name}: '{value}'")).collect();
        let _ = writeln!(
            text,
            "- job_name: {job}\n  metrics_path: {path}\n  static_configs:\n  \
             - {{targets: ['{address}'], labels: {{{}}}}}",
            labels.join(", ")
        );
    }
    text
}

/// Prometheus cannot say which port it took.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                encoded.push(char::from(byte));
            }
            _ => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

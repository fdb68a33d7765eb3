//! A running scaler and those who ask it.

use cairn_proto::externalscaler::external_scaler_client::ExternalScalerClient;
use cairn_proto::externalscaler::{GetMetricsRequest, ScaledObjectRef};
use cairn_proto::tonic::transport::{Channel, Endpoint};
use cairn_proto::tonic::{Code, Status};
use cairn_test_support::http1::{Http1, Response};
use cairn_test_support::member::{Member, Work};
use cairn_test_support::process::Cairn;
use cairn_test_support::wait::{eventually, eventually_async, within};
use serde_json::Value;
use std::net::SocketAddr;
use tokio::net::TcpStream;

pub const DESIRED: &str = "waypoint_pool_desired_replicas";
pub const PRESSURE: &str = "waypoint_pool_pressure_percent";

/// Windows that are as short as a test wants them.
pub const QUICK: &str = "stable_window=3s,panic_window=1s,overload_for=1s,down_delay=3s,down_period=1s,headroom_deviations=0";

pub struct Scaler {
    pub process: Cairn,
    pub pages: SocketAddr,
    pub grpc: SocketAddr,
}

/// So many members with so many requests in flight each, of 100.
pub async fn members(count: usize, in_flight: f64) -> Vec<Member> {
    let mut members = Vec::new();
    for number in 0..count {
        let work = Work { in_flight, ..Work::default() };
        members.push(Member::start(&format!("member-{number}"), work).await);
    }
    members
}

impl Scaler {
    /// With a fixed list of members and quick windows; waits until it listens.
    pub async fn start(members: &[Member], more: &[&str]) -> Self {
        let addresses: Vec<String> =
            members.iter().map(|member| format!("--member={}", member.address())).collect();
        let mut args: Vec<&str> = addresses.iter().map(String::as_str).collect();
        args.extend(["--policy", QUICK]);
        args.extend_from_slice(more);
        Self::start_with(&args).await
    }

    /// With these arguments; waits until it listens.
    pub async fn start_with(more: &[&str]) -> Self {
        let mut args = vec!["scaler", "--log-format", "json", "--poll-interval", "500ms"];
        args.extend(["--poll-timeout", "400ms", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
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

    pub async fn page(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        let tcp = TcpStream::connect(self.pages).await.unwrap();
        Http1::new(tcp).ask(&format!("GET {path}"), headers).await
    }

    pub async fn decision(&self) -> Value {
        self.page("/decision", &[]).await.json()
    }

    /// Waits until a decision is as `wanted` says, and returns it.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        eventually_async(what, async || {
            last = self.decision().await;
            let found = wanted(&last);
            if !found {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            found
        })
        .await;
        last
    }

    /// Waits for so many decisions that are made after this call.
    pub async fn decisions(&self, count: u64) -> u64 {
        let start = self.count("cairn_scaler_decisions_total", &[]).await;
        let mut now = start;
        eventually_async("decisions are made", async || {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            now = self.count("cairn_scaler_decisions_total", &[]).await;
            now >= start + count as f64
        })
        .await;
        now as u64
    }

    /// The sum of a metric.
    pub async fn count(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let page = self.page("/stats/prometheus", &[]).await;
        let samples = cairn_test_support::metrics::parse(&page.text());
        cairn_test_support::metrics::sum(&samples, name, labels)
    }

    pub async fn keda(&self) -> Keda {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.grpc)).unwrap();
        Keda {
            client: ExternalScalerClient::new(
                within("KEDA connects", endpoint.connect()).await.unwrap(),
            ),
        }
    }
}

/// What KEDA would do.
pub struct Keda {
    pub client: ExternalScalerClient<Channel>,
}

/// The trigger of a ScaledObject for this pool.
pub fn scaled(pool: &str) -> ScaledObjectRef {
    let metadata = [("scalerAddress", "x:9090"), ("pool", pool)];
    ScaledObjectRef {
        name: "waypoint".to_owned(),
        namespace: "pool".to_owned(),
        scaler_metadata: metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
    }
}

impl Keda {
    /// The value of a metric, and then, as KEDA does, whether there is to be anything.
    pub async fn value(&mut self, metric: &str) -> Result<f64, Status> {
        let request = GetMetricsRequest {
            scaled_object_ref: Some(scaled("waypoint-pool")),
            metric_name: metric.to_owned(),
        };
        let answer = within("GetMetrics", self.client.get_metrics(request)).await?.into_inner();
        let active = self.client.is_active(scaled("waypoint-pool")).await?;
        assert!(active.into_inner().result);
        let [value] = answer.metric_values.as_slice() else { panic!("{answer:?}") };
        assert_eq!(value.metric_name, metric);
        assert_eq!(value.metric_value, value.metric_value_float.ceil() as i64);
        Ok(value.metric_value_float)
    }

    /// The code of a value that is refused.
    pub async fn refusal(&mut self, metric: &str) -> Code {
        self.value(metric).await.map_err(|status| status.code()).expect_err("it is refused")
    }
}

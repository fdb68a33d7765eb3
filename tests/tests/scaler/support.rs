//! Members of a pool, and KEDA.

use cairn_proto::externalscaler::external_scaler_client::ExternalScalerClient;
use cairn_proto::externalscaler::{GetMetricsRequest, ScaledObjectRef};
use cairn_proto::tonic::transport::{Channel, Endpoint};
use cairn_proto::tonic::{Code, Status};
use cairn_test_support::member::{Member, Work};
use cairn_test_support::scaler::Scaler;
use cairn_test_support::wait::within;

pub const DESIRED: &str = "waypoint_pool_desired_replicas";
pub const PRESSURE: &str = "waypoint_pool_pressure_percent";

/// So many members with so many requests in flight each, of 100.
pub async fn members(count: usize, in_flight: f64) -> Vec<Member> {
    let mut members = Vec::new();
    for number in 0..count {
        let work = Work { in_flight, ..Work::default() };
        members.push(Member::start(&format!("member-{number}"), work).await);
    }
    members
}

/// A scaler of these members.
pub async fn scaler_of(members: &[Member], more: &[&str]) -> Scaler {
    let addresses: Vec<String> =
        members.iter().map(|member| format!("--member={}", member.address())).collect();
    let mut args: Vec<&str> = addresses.iter().map(String::as_str).collect();
    args.extend_from_slice(more);
    Scaler::start(&args).await
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
    pub async fn of(scaler: &Scaler) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{}", scaler.grpc)).unwrap();
        let channel = within("KEDA connects", endpoint.connect()).await.unwrap();
        Keda { client: ExternalScalerClient::new(channel) }
    }

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

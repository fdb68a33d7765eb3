//! KEDA's external scaler, gRPC without TLS: the mesh or a network policy guards it.
//!
//! KEDA asks for the value of a metric each time that its HPA syncs, and then whether there is to be
//! anything at all. An error counts towards the ScaledObject's `fallback`; so where nothing can be said
//! (few members answer, no fresh decision) there is an error and no guess.

use super::numbers::Numbers;
use super::snapshot::Snapshot;
use cairn_proto::externalscaler::external_scaler_server::{ExternalScaler, ExternalScalerServer};
use cairn_proto::externalscaler::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec,
    MetricValue, ScaledObjectRef,
};
use cairn_proto::tonic::body::Body;
use cairn_proto::tonic::service::Routes;
use cairn_proto::tonic::{self, Request, Response, Status};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

/// Replicas that the target is to have; the HPA aims at one per replica.
pub const DESIRED: &str = "waypoint_pool_desired_replicas";
/// Demand in percent of a reference member, without what the members beside the target are there for;
/// the HPA aims at the policy's target per replica.
pub const PRESSURE: &str = "waypoint_pool_pressure_percent";

/// Connections at a time; KEDA's operator and its metrics adapter need two.
const MAX_CONNECTIONS: usize = 64;
/// Calls at a time on one of them.
const MAX_STREAMS: u32 = 128;
const MAX_HEAD_BYTES: u32 = 16 * 1024;
/// Largest request in bytes.
const MAX_REQUEST_BYTES: usize = 256 * 1024;
/// A peer that does not answer a ping for so long is gone.
const PING: Duration = Duration::from_secs(30);
/// Pause after a failed accept (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers KEDA.
#[derive(Clone)]
pub struct Keda {
    /// Name of the pool.
    pub pool: Arc<str>,
    /// Share of its capacity that a member is to be busy.
    pub target: f64,
    /// Decisions.
    pub latest: watch::Receiver<Option<Arc<Snapshot>>>,
    /// Counts.
    pub numbers: Arc<Numbers>,
}

impl Keda {
    /// Serves until it is dropped.
    pub async fn serve(self, listener: TcpListener) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let service = ExternalScalerServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES);
        let routes = Routes::new(service).prepare();
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accept on the gRPC listener failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
            let _ = stream.set_nodelay(true);
            let routes = routes.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: http::Request<Incoming>| {
                    let routes = routes.clone();
                    async move { Ok::<http::Response<Body>, Infallible>(answer(routes, request).await) }
                });
                let connection = http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .max_concurrent_streams(MAX_STREAMS)
                    .max_header_list_size(MAX_HEAD_BYTES)
                    .keep_alive_interval(PING)
                    .keep_alive_timeout(PING)
                    .serve_connection(TokioIo::new(stream), service);
                // Who breaks off comes again.
                let _ = connection.await;
                drop(slot);
            });
        }
    }

    /// The trigger has to be one for this pool, where it says for which.
    fn check(&self, of: Option<&ScaledObjectRef>) -> Result<(), Status> {
        match of.and_then(|of| of.scaler_metadata.get("pool")) {
            Some(pool) if **pool != *self.pool => Err(Status::not_found(format!(
                "this scaler scales the pool `{}`, and the trigger's metadata has `pool: {pool}`",
                self.pool
            ))),
            _ => Ok(()),
        }
    }

    fn value(&self, metric: &str) -> Result<f64, Status> {
        if metric != DESIRED && metric != PRESSURE {
            return Err(Status::invalid_argument(format!(
                "there is no metric `{metric}`; there are {DESIRED} and {PRESSURE}"
            )));
        }
        let latest = self.latest.borrow().clone();
        let Some(snapshot) = latest else {
            return Err(Status::unavailable("nothing is decided yet"));
        };
        if snapshot.is_stale() {
            let age = snapshot.at.elapsed().as_secs();
            return Err(Status::unavailable(format!("the last decision is {age} s old")));
        }
        let Some(desired) = snapshot.desired_of_target() else {
            return Err(Status::unavailable(snapshot.decision.reason.clone()));
        };
        Ok(match metric {
            DESIRED => f64::from(desired),
            _ => pressure(&snapshot, self.target),
        })
    }
}

/// The stable average: a short one would ask for members that the decision does not.
fn pressure(snapshot: &Snapshot, target: f64) -> f64 {
    let of_others = f64::from(snapshot.fixed) * target;
    (snapshot.decision.stable_units - of_others).max(0.0) * 100.0
}

async fn answer(mut routes: Routes, request: http::Request<Incoming>) -> http::Response<Body> {
    use tonic::codegen::Service;
    let never: Result<_, Infallible> = routes.call(request).await;
    match never {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

#[tonic::async_trait]
impl ExternalScaler for Keda {
    type StreamIsActiveStream =
        Pin<Box<dyn futures::Stream<Item = Result<IsActiveResponse, Status>> + Send>>;

    /// Always: a pool has members at any time.
    async fn is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<IsActiveResponse>, Status> {
        self.check(Some(request.get_ref()))?;
        Ok(Response::new(IsActiveResponse { result: true }))
    }

    /// Says so at once and stays open.
    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        self.check(Some(request.get_ref()))?;
        let mut latest = self.latest.clone();
        let first = futures::stream::iter([Ok(IsActiveResponse { result: true })]);
        let ends = futures::stream::once(async move {
            while latest.changed().await.is_ok() {}
            Err(Status::unavailable("the scaler is going"))
        });
        Ok(Response::new(Box::pin(futures::StreamExt::chain(first, ends))))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        self.check(Some(request.get_ref()))?;
        let spec = |name: &str, target: f64| MetricSpec {
            metric_name: name.to_owned(),
            target_size: target.round().max(1.0) as i64,
            target_size_float: target,
        };
        let metric_specs = vec![spec(DESIRED, 1.0), spec(PRESSURE, self.target * 100.0)];
        Ok(Response::new(GetMetricSpecResponse { metric_specs }))
    }

    async fn get_metrics(
        &self,
        request: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        let GetMetricsRequest { scaled_object_ref, metric_name } = request.into_inner();
        let checked = self.check(scaled_object_ref.as_ref());
        let value = checked.and_then(|()| self.value(&metric_name));
        self.numbers.answered_keda(value.is_ok());
        let value = value?;
        let value = MetricValue {
            metric_name,
            metric_value: value.ceil() as i64,
            metric_value_float: value,
        };
        Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
    }
}

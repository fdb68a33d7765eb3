//! What istiod was recorded to send to a waypoint for 1,000 services with ten routes each.

use super::waypoint::{self, Waypoint};
use crate::bed::Bed;
use crate::cost::{QUIET, cost};
use crate::proxy::Contender;
use crate::report::{PushChange, PushRun, median};
use anyhow::{Context, Result, bail};
use cairn_proto::envoy::envoy::config::endpoint::v3::ClusterLoadAssignment;
use cairn_proto::envoy::envoy::config::listener::v3::filter::ConfigType;
use cairn_proto::envoy::envoy::config::listener::v3::{FilterChain, Listener};
use cairn_proto::envoy::envoy::config::route::v3::route::Action;
use cairn_proto::envoy::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use cairn_proto::envoy::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use cairn_proto::envoy::google::protobuf::{Duration as ProtoDuration, UInt32Value};
use cairn_proto::prost::{self, Message};
use cairn_test_support::istiod::{FakeIstiod, capture, resource, shapes};
use cairn_test_support::pod::Pod;
use cairn_xds::feed::Kind;
use std::time::Duration;
use tokio::time::sleep;

/// Listener with a chain for each service.
const LISTENER: &str = "main_internal";
/// Until a waypoint has written down what it was sent, and has given back memory.
const SETTLE: Duration = Duration::from_secs(5);
/// Some builds make a second snapshot soon after the first.
const TRIES: usize = 10;
/// What is held for a warm start: all that istiod sends.
const ALL: [Kind; 4] = [Kind::Cluster, Kind::Listener, Kind::Endpoints, Kind::Workload];

/// An istiod with the recording, of which one endpoint and one route change.
pub struct Recorded {
    istiod: FakeIstiod,
    assignment: ClusterLoadAssignment,
    listener: Chains,
    /// The listener without its chains.
    rest: Vec<u8>,
    changes: u32,
}

/// The chains of a listener as the bytes that they are: decoding and encoding them again would change the
/// order in maps, and so all of them.
#[derive(Clone, PartialEq, Message)]
#[prost(prost_path = "prost")]
struct Chains {
    #[prost(bytes = "vec", repeated, tag = "3")]
    filter_chains: Vec<Vec<u8>>,
}

impl Recorded {
    /// Reads the recording.
    pub async fn start() -> Result<Recorded> {
        let istiod = super::istiod().await;
        let (mut assignment, mut listener) = (None, None);
        for (kind, resources) in capture(&shapes::captures().join("scale")) {
            let body = |named: &dyn Fn(&str) -> bool| {
                let mut found = resources.iter().filter(|resource| named(&resource.name));
                found
                    .next()
                    .and_then(|found| found.resource.as_ref())
                    .map(|body| body.value.clone())
            };
            match kind {
                Kind::Endpoints => assignment = body(&|_| true),
                Kind::Listener => listener = body(&|name| name == LISTENER),
                _ => {}
            }
            istiod.set(kind, resources);
        }
        let listener = listener.context("the recording has no listener with chains")?;
        let mut rest = Listener::decode(listener.as_slice())?;
        rest.filter_chains.clear();
        let assignment = assignment.context("the recording has no endpoints")?;
        Ok(Recorded {
            istiod,
            assignment: ClusterLoadAssignment::decode(assignment.as_slice())?,
            listener: Chains::decode(listener.as_slice())?,
            rest: rest.encode_to_vec(),
            changes: 0,
        })
    }

    /// One waypoint from its first start to its second.
    pub async fn measure(
        mut self,
        bed: &Bed,
        contender: &Contender,
        changes: usize,
    ) -> Result<PushRun> {
        let mut pod = waypoint::pod(&self.istiod);
        let mut waypoint = Waypoint::start(bed, contender, &mut pod).await?;
        let ready = waypoint.until_ready().await?;
        let ready_cpu = waypoint.process.usage()?.precise;
        sleep(SETTLE).await;
        let idle_rss = waypoint.process.usage()?.rss;
        let (endpoint_change, idle_cpu) =
            self.change(&waypoint, changes, Recorded::push_endpoint).await?;
        let (route_change, _) = self.change(&waypoint, changes, Recorded::push_route).await?;
        let changed_rss = waypoint.process.usage()?.rss;
        waypoint.process.finish().await?;

        for kind in ALL {
            self.istiod.hold(kind);
        }
        let (warm_ready, compile) = warm_start(bed, contender, &mut pod).await?;
        let millis = |duration: Duration| duration.as_secs_f64() * 1e3;
        Ok(PushRun {
            services: self.listener.filter_chains.len() as u64,
            ready_ms: millis(ready),
            ready_cpu_ms: millis(ready_cpu),
            warm_ready_ms: millis(warm_ready),
            compile_ms: millis(compile),
            idle_rss,
            changed_rss,
            idle_cpu: idle_cpu * 1e3,
            endpoint_change,
            route_change,
        })
    }

    /// What one kind of change costs, beside the CPU seconds per second of the idle waypoint.
    async fn change(
        &mut self,
        waypoint: &Waypoint,
        changes: usize,
        push: fn(&mut Recorded) -> Result<()>,
    ) -> Result<(PushChange, f64)> {
        let mut costs = Vec::new();
        for _ in 0..changes {
            costs.push(cost(&waypoint.process, || push(self)).await?);
            sleep(QUIET).await;
        }
        let mut used = Vec::new();
        for _ in 0..changes {
            used.push(waypoint.until_used(|| push(self)).await?.as_secs_f64() * 1e3);
            sleep(QUIET).await;
        }
        // Until it is written down.
        sleep(SETTLE).await;
        let middle = |figures: Vec<f64>| median(figures.into_iter()).unwrap_or(0.0);
        let change = PushChange {
            cpu_ms: middle(costs.iter().map(|cost| cost.at_once).collect()),
            kept_cpu_ms: middle(costs.iter().map(|cost| cost.total).collect()),
            until_used_ms: middle(used),
        };
        Ok((change, middle(costs.iter().map(|cost| cost.idle).collect())))
    }

    /// Another weight for the first endpoint.
    fn push_endpoint(&mut self) -> Result<()> {
        self.changes += 1;
        let endpoints = self.assignment.endpoints.first_mut();
        let endpoint = endpoints.and_then(|endpoints| endpoints.lb_endpoints.first_mut());
        let weight = UInt32Value { value: 1 + self.changes };
        endpoint.context("the first service has no endpoint")?.load_balancing_weight = Some(weight);
        let body = self.assignment.encode_to_vec();
        let changed = resource(Kind::Endpoints, &self.assignment.cluster_name, "", body);
        self.istiod.push(Kind::Endpoints, vec![changed], &[]);
        Ok(())
    }

    /// Another timeout for a route of the service in the middle, and the whole listener with it.
    fn push_route(&mut self) -> Result<()> {
        self.changes += 1;
        let middle = self.listener.filter_chains.len() / 2;
        let chain = self.listener.filter_chains.get_mut(middle).context("there is no chain")?;
        *chain = with_timeout(chain, 60 + i64::from(self.changes))?;
        let mut body = self.rest.clone();
        self.listener.encode(&mut body)?;
        self.istiod.push(Kind::Listener, vec![resource(Kind::Listener, LISTENER, "", body)], &[]);
        Ok(())
    }
}

/// A start from what is kept, while istiod is silent: from exec to ready, and the time that the snapshot took, which
/// is of everything, and nothing was known before.
async fn warm_start(
    bed: &Bed,
    contender: &Contender,
    pod: &mut Pod,
) -> Result<(Duration, Duration)> {
    for _ in 0..TRIES {
        let mut waypoint = Waypoint::start(bed, contender, pod).await?;
        let ready = waypoint.until_ready().await?;
        let (snapshots, took) = waypoint.last_snapshot().await?;
        waypoint.process.stop().await?;
        if snapshots == 1.0 {
            return Ok((ready, took));
        }
    }
    bail!("a waypoint to which istiod says nothing makes more than one snapshot")
}

/// A chain whose first route has this timeout.
fn with_timeout(chain: &[u8], seconds: i64) -> Result<Vec<u8>> {
    let mut chain = FilterChain::decode(chain)?;
    for filter in &mut chain.filters {
        let Some(ConfigType::TypedConfig(config)) = &mut filter.config_type else { continue };
        if !config.type_url.ends_with(".HttpConnectionManager") {
            continue;
        }
        let mut manager = HttpConnectionManager::decode(config.value.as_slice())?;
        let Some(RouteSpecifier::RouteConfig(routes)) = &mut manager.route_specifier else {
            continue;
        };
        for route in routes.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
            if let Some(Action::Route(action)) = &mut route.action {
                action.timeout = Some(ProtoDuration { seconds, nanos: 0 });
                config.value = manager.encode_to_vec();
                return Ok(chain.encode_to_vec());
            }
        }
    }
    bail!("the chain {} has no route to a cluster", chain.name)
}

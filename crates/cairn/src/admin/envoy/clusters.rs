//! `/clusters`: clusters, endpoints and their numbers, as text and as `envoy.admin.v3.Clusters`.
//!
//! An endpoint behind a tunnel has the address that it has in Envoy, where tunnels begin at an
//! internal listener: `envoy://connect_originate/10.0.0.1:8080`.

use super::bootstrap::socket;
use super::json::Items;
use super::print::Printed;
use super::types::Types;
use cairn_proto::envoy::envoy::admin::v3::{
    ClusterStatus, HostHealthStatus, HostStatus, SimpleMetric, simple_metric,
};
use cairn_proto::envoy::envoy::config::cluster::v3::{CircuitBreakers, circuit_breakers};
use cairn_proto::envoy::envoy::config::core::v3::{
    Address, EnvoyInternalAddress, HealthStatus, Locality, RoutingPriority, address,
    envoy_internal_address,
};
use cairn_proto::envoy::google::protobuf::UInt32Value;
use cairn_proto::prost::Message;
use cairn_router::cluster::Cluster;
use cairn_router::endpoint::Endpoint;
use cairn_router::model::Mesh;
use cairn_router::spec::Health;
use std::fmt::{self, Display};
use std::io::{self, Write};
use std::sync::Arc;

/// Envoy's name of the internal listener at which tunnels begin.
const TUNNEL: &str = "connect_originate";

/// `envoy.admin.v3.Clusters`.
pub fn write_json(mesh: &Mesh, out: &mut dyn Write) -> io::Result<()> {
    let types = Types::load();
    Items::write(out, "{\"cluster_statuses\":[", "\n]}\n", |items| {
        for cluster in sorted(mesh) {
            let message = types
                .decode("envoy.admin.v3.ClusterStatus", &status(cluster).encode_to_vec())
                .map_err(io::Error::other)?;
            items.push(&Printed::new(&types, &message))?;
        }
        Ok(())
    })
}

/// One `cluster::endpoint::name::value` a line.
pub fn write_text(mesh: &Mesh, out: &mut dyn Write) -> io::Result<()> {
    for cluster in sorted(mesh) {
        let name = &cluster.name;
        writeln!(out, "{name}::observability_name::{name}")?;
        let breakers = cluster.circuit_breakers.clone().unwrap_or_default();
        for (what, bound) in [
            ("max_connections", breakers.max_connections),
            ("max_pending_requests", breakers.max_pending_requests),
            ("max_requests", breakers.max_requests),
            ("max_retries", breakers.max_retries),
        ] {
            writeln!(out, "{name}::default_priority::{what}::{}", bound.unwrap_or(u32::MAX))?;
        }
        writeln!(out, "{name}::added_via_api::true")?;
        writeln!(out, "{name}::eds_service_name::{name}")?;
        if let Some(reason) = &cluster.broken {
            writeln!(out, "{name}::broken::{reason}")?;
        }
        for endpoint in cluster.endpoints.all() {
            write_endpoint(out, name, endpoint)?;
        }
    }
    Ok(())
}

fn write_endpoint(out: &mut dyn Write, cluster: &str, endpoint: &Endpoint) -> io::Result<()> {
    let address = Place(endpoint);
    let mut line =
        |name: &str, value: &dyn Display| writeln!(out, "{cluster}::{address}::{name}::{value}");
    for (_, name, value) in numbers(endpoint) {
        line(name, &value)?;
    }
    line("hostname", &"")?;
    line(
        "health_flags",
        &match endpoint.health {
            Health::Healthy => "healthy",
            Health::Unhealthy => "/failed_eds_health",
            Health::Draining => "/eds_status_draining",
        },
    )?;
    line("weight", &endpoint.weight)?;
    line("region", &endpoint.locality.region)?;
    line("zone", &endpoint.locality.zone)?;
    line("sub_zone", &endpoint.locality.subzone)?;
    line("canary", &false)?;
    line("priority", &endpoint.priority)?;
    line("success_rate", &"-1")?;
    line("local_origin_success_rate", &"-1")
}

fn sorted(mesh: &Mesh) -> Vec<&Arc<Cluster>> {
    let mut clusters: Vec<_> = mesh.clusters().collect();
    clusters.sort_by(|a, b| a.name.cmp(&b.name));
    clusters
}

fn status(cluster: &Cluster) -> ClusterStatus {
    ClusterStatus {
        name: cluster.name.to_string(),
        added_via_api: true,
        host_statuses: cluster.endpoints.all().iter().map(|endpoint| host(endpoint)).collect(),
        circuit_breakers: cluster.circuit_breakers.as_ref().map(|breakers| CircuitBreakers {
            thresholds: vec![circuit_breakers::Thresholds {
                priority: RoutingPriority::Default.into(),
                max_connections: breakers.max_connections.map(number),
                max_pending_requests: breakers.max_pending_requests.map(number),
                max_requests: breakers.max_requests.map(number),
                max_retries: breakers.max_retries.map(number),
                ..circuit_breakers::Thresholds::default()
            }],
            ..CircuitBreakers::default()
        }),
        observability_name: cluster.name.to_string(),
        eds_service_name: cluster.name.to_string(),
        ..ClusterStatus::default()
    }
}

fn number(value: u32) -> UInt32Value {
    UInt32Value { value }
}

fn host(endpoint: &Endpoint) -> HostStatus {
    let health = match endpoint.health {
        Health::Healthy => HealthStatus::Healthy,
        Health::Unhealthy => HealthStatus::Unhealthy,
        Health::Draining => HealthStatus::Draining,
    };
    HostStatus {
        address: Some(address(endpoint)),
        stats: numbers(endpoint)
            .map(|(kind, name, value)| SimpleMetric {
                r#type: kind.into(),
                value,
                name: name.to_owned(),
            })
            .into(),
        health_status: Some(HostHealthStatus {
            eds_health_status: health.into(),
            ..HostHealthStatus::default()
        }),
        weight: endpoint.weight,
        priority: endpoint.priority,
        locality: Some(Locality {
            region: endpoint.locality.region.clone(),
            zone: endpoint.locality.zone.clone(),
            sub_zone: endpoint.locality.subzone.clone(),
        }),
        ..HostStatus::default()
    }
}

/// What is counted at an endpoint, by Envoy's names.
fn numbers(endpoint: &Endpoint) -> [(simple_metric::Type, &'static str, u64); 4] {
    use simple_metric::Type::{Counter, Gauge};
    let state = &endpoint.state;
    let (total, failures) = (state.total(), state.failures());
    [
        (Counter, "rq_total", total),
        (Counter, "rq_error", failures),
        (Counter, "rq_success", total.saturating_sub(failures + u64::from(state.active()))),
        (Gauge, "rq_active", u64::from(state.active())),
    ]
}

fn address(endpoint: &Endpoint) -> Address {
    if endpoint.tunnel.is_none() {
        return socket(endpoint.address);
    }
    Address {
        address: Some(address::Address::EnvoyInternalAddress(EnvoyInternalAddress {
            endpoint_id: endpoint.address.to_string(),
            address_name_specifier: Some(
                envoy_internal_address::AddressNameSpecifier::ServerListenerName(TUNNEL.to_owned()),
            ),
        })),
    }
}

/// The endpoint's address as text.
struct Place<'a>(&'a Endpoint);

impl Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.tunnel {
            Some(_) => write!(f, "envoy://{TUNNEL}/{}", self.0.address),
            None => write!(f, "{}", self.0.address),
        }
    }
}

//! `/clusters`: one `cluster::address::stat::value` per line, as Envoy's page.

use crate::fleet::Entry;
use cairn_router::cluster::Cluster;
use cairn_router::endpoint::Endpoint;
use cairn_router::spec::{Health, LbPolicy};
use std::fmt::{self, Display, Write};
use std::sync::Arc;

/// Clusters by name. With more than one mesh, `MESH/` stands before the cluster's name.
pub fn render(meshes: &[Arc<Entry>]) -> String {
    let mut out = String::new();
    for entry in meshes {
        let prefix = if meshes.len() > 1 { format!("{}/", entry.name) } else { String::new() };
        let mesh = entry.instance.mesh();
        let mut clusters: Vec<_> = mesh.clusters().collect();
        clusters.sort_by(|a, b| a.name.cmp(&b.name));
        for cluster in clusters {
            // Writing to a String cannot fail.
            let _ = write_cluster(&mut out, &prefix, cluster);
        }
    }
    out
}

fn write_cluster(out: &mut String, prefix: &str, cluster: &Cluster) -> fmt::Result {
    let name = format_args!("{prefix}{}", cluster.name);
    let policy = match cluster.lb {
        LbPolicy::LeastRequest => "least_request",
        LbPolicy::RoundRobin => "round_robin",
        LbPolicy::Random => "random",
    };
    writeln!(out, "{name}::lb_policy::{policy}")?;
    writeln!(out, "{name}::service::{}", cluster.service)?;
    for endpoint in cluster.endpoints.all() {
        write_endpoint(out, &name, endpoint)?;
    }
    Ok(())
}

fn write_endpoint(out: &mut String, cluster: &dyn Display, endpoint: &Endpoint) -> fmt::Result {
    let address = endpoint.address;
    let mut stat =
        |name: &str, value: &dyn Display| writeln!(out, "{cluster}::{address}::{name}::{value}");
    stat("rq_active", &endpoint.state.active())?;
    stat("rq_total", &endpoint.state.total())?;
    stat("rq_error", &endpoint.state.failures())?;
    stat(
        "health_flags",
        &match endpoint.health {
            Health::Healthy => "healthy",
            Health::Unhealthy => "/failed_eds_health",
            Health::Draining => "/eds_status_draining",
        },
    )?;
    stat("weight", &endpoint.weight)?;
    stat("priority", &endpoint.priority)?;
    stat("region", &endpoint.locality.region)?;
    stat("zone", &endpoint.locality.zone)?;
    stat("sub_zone", &endpoint.locality.subzone)?;
    if let Some(tunnel) = &endpoint.tunnel {
        stat("tunnel", &tunnel.address)?;
    }
    Ok(())
}

//! Clusters and endpoints: where a request can go, and why not elsewhere.

use super::answer::{ClusterFound, EndpointFound};
use cairn_router::cluster::Cluster;
use cairn_router::endpoint::Endpoint;
use cairn_router::model::Mesh;
use cairn_router::original::NoOriginal;
use cairn_router::spec::{ClusterProtocol, Health, LbPolicy};
use std::net::SocketAddr;
use std::sync::Arc;

/// Endpoints of a cluster that are shown.
const MAX_SHOWN: usize = 50;

/// The cluster of that name, which gets `share` percent; `named` is the address in CONNECT.
pub fn cluster(mesh: &Mesh, name: &str, share: f64, named: Option<SocketAddr>) -> ClusterFound {
    let found = ClusterFound { name: name.to_owned(), share, ..ClusterFound::default() };
    let Some(cluster) = mesh.cluster(name) else {
        return ClusterFound { what: "there is no such cluster".to_owned(), ..found };
    };
    if let Some(reason) = &cluster.broken {
        return ClusterFound { what: format!("503, it cannot be honoured: {reason}"), ..found };
    }
    if cluster.original_destination.is_some() {
        return original(mesh, cluster, found, named);
    }
    let all = cluster.endpoints.all();
    let candidates = cluster.endpoints.candidates();
    let priority = candidates.first().map(|endpoint| endpoint.priority);
    let mut what = describe(cluster);
    if all.is_empty() {
        what.push_str("; it has no endpoints, so 503");
    } else if candidates.is_empty() {
        what.push_str("; no endpoint is usable, so 503");
    }
    ClusterFound {
        what,
        usable: candidates.len(),
        total: all.len(),
        endpoints: all
            .iter()
            .take(MAX_SHOWN)
            .map(|one| {
                let usable = candidates.iter().any(|candidate| Arc::ptr_eq(candidate, one));
                endpoint(mesh, one, usable, &why(cluster, one, usable, priority))
            })
            .collect(),
        ..found
    }
}

fn describe(cluster: &Cluster) -> String {
    let lb = match cluster.lb {
        LbPolicy::LeastRequest => "the less busy of two",
        LbPolicy::RoundRobin => "in turn",
        LbPolicy::Random => "by chance",
    };
    let protocol = match cluster.protocol {
        ClusterProtocol::Http1 => "HTTP/1.1",
        ClusterProtocol::Http2 => "HTTP/2",
        ClusterProtocol::Downstream => "the client's protocol",
    };
    let tls = match cluster.tls.as_deref() {
        None => String::new(),
        Some(tls) => format!(", TLS to {}", tls.sni.as_deref().unwrap_or("a name in the SANs")),
    };
    format!("{protocol}{tls}, {lb}, dial within {:?}", cluster.connect_timeout)
}

/// Why an endpoint gets requests, or none.
fn why(cluster: &Cluster, endpoint: &Endpoint, usable: bool, priority: Option<u32>) -> String {
    let unidentified = cluster.endpoints.unidentified().contains(&endpoint.address.ip());
    match (usable, endpoint.health, priority) {
        (true, ..) if endpoint.priority > 0 => {
            format!("healthy, priority {}: all of the lower ones are unhealthy", endpoint.priority)
        }
        (true, ..) => format!("healthy, weight {}", endpoint.weight),
        (false, Health::Unhealthy, _) if unidentified => {
            "unhealthy: no workload is known at its address, so nobody could be expected there"
                .to_owned()
        }
        (false, Health::Unhealthy, _) => "unhealthy, says the control plane".to_owned(),
        (false, Health::Draining, _) => "draining, says the control plane".to_owned(),
        (false, Health::Healthy, Some(priority)) => format!(
            "healthy, but of priority {} while there are healthy ones of priority {priority}",
            endpoint.priority
        ),
        (false, Health::Healthy, None) => "healthy".to_owned(),
    }
}

fn endpoint(mesh: &Mesh, endpoint: &Endpoint, usable: bool, why: &str) -> EndpointFound {
    let via = match &endpoint.tunnel {
        None => "in plain".to_owned(),
        Some(tunnel) if tunnel.identities.is_empty() => {
            format!("by HBONE at {}", tunnel.address)
        }
        Some(tunnel) => {
            format!("by HBONE at {} as {}", tunnel.address, tunnel.identities.join(" or "))
        }
    };
    let workload = mesh
        .workload(endpoint.address.ip())
        .map(|workload| format!("workload {} in {}", workload.name, workload.namespace));
    let state = &endpoint.state;
    EndpointFound {
        address: endpoint.address.to_string(),
        usable,
        why: why.to_owned(),
        via,
        workload,
        requests: [state.active().into(), state.total(), state.failures()],
    }
}

/// The address that the client named is the endpoint.
fn original(
    mesh: &Mesh,
    cluster: &Cluster,
    found: ClusterFound,
    named: Option<SocketAddr>,
) -> ClusterFound {
    let (Some(how), Some(named)) = (cluster.original_destination, named) else {
        let what = "503: it leads to the address that CONNECT names, and a host was named";
        return ClusterFound { what: what.to_owned(), ..found };
    };
    match cluster.original(how, named, mesh) {
        Ok(one) => ClusterFound {
            what: format!("{}; it leads to the address that CONNECT names", describe(cluster)),
            usable: 1,
            total: 1,
            endpoints: vec![endpoint(mesh, &one, true, "the address that CONNECT names")],
            ..found
        },
        Err(NoOriginal::Nowhere(address)) => {
            ClusterFound { what: format!("503: nothing answers at {address}"), ..found }
        }
        Err(NoOriginal::UnknownWorkload(ip)) => {
            ClusterFound { what: format!("503: no workload is known at {ip}"), ..found }
        }
    }
}

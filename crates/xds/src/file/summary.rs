//! A configuration in a few lines, for `cairn check`.

use super::config::{Config, IdentityConfig, MeshConfig};
use cairn_router::spec::{ClusterProtocol, Destination, EndpointTransport, Resources};
use std::fmt::{self, Write};
use std::sync::Arc;

/// What a configuration contains, and what in it is allowed but unusual. Lines end with `\n`.
///
/// What the router's compiler warns of (a route to a cluster that is not there, an endpoint without
/// identity) is in its mesh, not here.
pub fn summary(config: &Config) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_summary(&mut text, config);
    text
}

fn write_summary(out: &mut String, config: &Config) -> fmt::Result {
    let Config { workers, placement: _, drain: _, admin, load: _, meshes } = config;
    let threads =
        if *workers == 0 { "a thread per core".to_owned() } else { counted(*workers, "thread") };
    writeln!(out, "{}, {threads}", counted(meshes.len(), "mesh"))?;
    let mut warnings = Vec::new();
    if !admin.address.ip().is_loopback() {
        warnings.push(format!(
            "admin.address {} is not on loopback: whoever reaches it can stop the proxy",
            admin.address
        ));
    }
    for mesh in meshes {
        write_mesh(out, mesh, &mut warnings)?;
    }
    for warning in warnings {
        writeln!(out, "warning: {warning}")?;
    }
    Ok(())
}

fn write_mesh(out: &mut String, mesh: &MeshConfig, warnings: &mut Vec<String>) -> fmt::Result {
    let MeshConfig { name, listen, identity, trust_domains, limits: _, resources } = mesh;
    let Resources { destinations, clusters, endpoints, workloads, tunnels: _ } = resources;
    writeln!(out, "mesh `{name}` on {listen}")?;
    match identity {
        IdentityConfig::Files(files) => writeln!(out, "  identity: {}", files.cert.display())?,
        IdentityConfig::Dev(dev) => {
            writeln!(out, "  identity: {} (throw-away authority)", dev.id)?;
            warnings.push(format!(
                "mesh `{name}`: nobody outside this process trusts a `dev` identity"
            ));
        }
    }
    if !trust_domains.is_empty() {
        writeln!(out, "  clients of: {}", trust_domains.join(", "))?;
    }

    let chains = |http: bool, tcp: bool| {
        let with = |d: &&Arc<Destination>| d.http.is_some() == http && d.tcp.is_some() == tcp;
        destinations.iter().filter(with).count()
    };
    let kinds = [
        (chains(true, false), "HTTP"),
        (chains(false, true), "TCP"),
        (chains(true, true), "HTTP or TCP"),
    ];
    writeln!(out, "  destinations: {}", breakdown(destinations.len(), &kinds))?;
    let hosts = || {
        destinations
            .iter()
            .filter_map(|d| d.http.as_ref())
            .flat_map(|http| &http.routes.virtual_hosts)
    };
    let routes: usize = hosts().map(|host| host.routes.len()).sum();
    writeln!(out, "  routes: {routes} in {}", counted(hosts().count(), "virtual host"))?;

    let speaking =
        |protocol| clusters.iter().filter(|cluster| cluster.protocol == protocol).count();
    let protocols = [
        (speaking(ClusterProtocol::Http1), "HTTP/1.1"),
        (speaking(ClusterProtocol::Http2), "HTTP/2"),
        (speaking(ClusterProtocol::Downstream), "as the client"),
    ];
    writeln!(out, "  clusters: {}", breakdown(clusters.len(), &protocols))?;
    let all = || endpoints.iter().flat_map(|set| &set.endpoints);
    let reached = |transport| all().filter(|endpoint| endpoint.transport == transport).count();
    let transports = [
        (reached(EndpointTransport::Hbone), "HBONE"),
        (reached(EndpointTransport::Plain), "plain"),
    ];
    writeln!(out, "  endpoints: {}", breakdown(all().count(), &transports))?;
    writeln!(out, "  workloads: {}", workloads.len())?;

    if destinations.is_empty() {
        warnings.push(format!("mesh `{name}` has no destination: every CONNECT gets 404"));
    }
    Ok(())
}

fn counted(count: usize, noun: &str) -> String {
    let plural = match noun {
        _ if count == 1 => "",
        "mesh" => "es",
        _ => "s",
    };
    format!("{count} {noun}{plural}")
}

/// `3 (2 HTTP, 1 TCP)`; kinds of which there are none are left out.
fn breakdown(total: usize, kinds: &[(usize, &str)]) -> String {
    let kinds: Vec<String> = kinds
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, kind)| format!("{count} {kind}"))
        .collect();
    if kinds.is_empty() { total.to_string() } else { format!("{total} ({})", kinds.join(", ")) }
}

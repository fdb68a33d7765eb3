//! Opaque bytes: policies, then an endpoint, then chunks moved both ways without a copy.

use crate::breakers::{self, Held};
use crate::choose::{choose, wait};
use crate::connection::Connection;
use crate::inbound::Inbound;
use crate::io::{ByteReader, ByteWriter, from_tunnel};
use crate::link::Link;
use crate::load::STREAM;
use crate::resolve::{self, Resolved};
use crate::upstream::{Attempt, Destination, Failure, dial};
use bytes::Bytes;
use cairn_hbone::TunnelStream;
use cairn_router::cluster::Cluster;
use cairn_telemetry::ResponseFlags;
use std::borrow::Cow;
use std::io;
use std::sync::Arc;

/// Endpoints that are tried: no byte was sent to one that could not be reached.
const MAX_ENDPOINTS: usize = 3;

/// Serves one tunnel until both directions are over, one fails, or both are silent for too long.
pub(crate) async fn serve(
    link: Arc<Link>,
    resolved: Arc<Resolved>,
    stream: TunnelStream,
    first: Bytes,
) {
    let mut connection = Connection::new(link, resolved);
    let (flags, details) = match run(&mut connection, stream, first).await {
        Ok(()) => (ResponseFlags::NONE, Cow::Borrowed("")),
        Err(End { flags, details }) => (flags, details),
    };
    connection.over(flags, &details);
}

/// Why a connection ended otherwise than by both ends.
struct End {
    flags: ResponseFlags,
    details: Cow<'static, str>,
}

fn end(flags: ResponseFlags, details: impl Into<Cow<'static, str>>) -> End {
    End { flags, details: details.into() }
}

/// A chain or cluster whose configuration cannot be honoured.
fn unsupported(reason: &Option<Arc<str>>) -> End {
    let reason = reason.as_deref().unwrap_or_default();
    end(ResponseFlags::NONE, format!("unsupported_config: {reason}"))
}

async fn run(connection: &mut Connection, stream: TunnelStream, first: Bytes) -> Result<(), End> {
    let (link, resolved) = (Arc::clone(&connection.link), Arc::clone(&connection.resolved));
    let tenant = &resolved.tenant;
    let taken = tenant.share().map(|share| share.take(STREAM));
    if taken == Some(false) {
        link.instance.counters().tunnels_shed.add_one();
        tenant.count_shed(link.worker);
        return Err(end(ResponseFlags::UPSTREAM_OVERFLOW, "overload_tenant_share"));
    }
    let underway = link.instance.loads().begin(tenant, link.worker, STREAM);
    let _underway = if taken.is_some() { underway.admitted() } else { underway };
    let Some(chain) = resolved.destination.tcp.as_ref() else {
        return Err(end(ResponseFlags::NO_ROUTE_FOUND, "no_tcp_chain"));
    };
    // Envoy: the cluster is chosen before policies are asked.
    let name = chain.pick_cluster(rand::random());
    let cluster = name.and_then(|name| resolved.mesh.cluster(name));
    connection.cluster = cluster.cloned();
    resolve::allowed(&chain.rbac, &link.connection())
        .map_err(|details| end(ResponseFlags::NONE, details))?;
    if name.is_none() {
        return Err(unsupported(&chain.broken));
    }
    let cluster =
        cluster.ok_or_else(|| end(ResponseFlags::NO_CLUSTER_FOUND, "cluster_not_found"))?;
    if cluster.broken.is_some() {
        return Err(unsupported(&cluster.broken));
    }
    let reach = async {
        let place = place(&link, cluster).await?;
        Ok((place, connect(&link, &resolved, cluster).await?))
    };
    let (_place, (attempt, (up_reader, up_writer))) = tokio::select! {
        reached = reach => reached?,
        () = link.entry.cut_short() => {
            return Err(end(ResponseFlags::LOCAL_RESET, "drain_limit_reached"));
        }
    };
    let _active = attempt.endpoint.begin();
    connection.open(&attempt);
    let (down_reader, down_writer) = from_tunnel(stream);
    let idle_timeout = chain.idle_timeout.unwrap_or(link.instance.limits().tcp_idle_timeout);
    let meter = &connection.meter;
    let both = async {
        tokio::try_join!(
            copy(down_reader, up_writer, first, |bytes| {
                tenant.add_bytes(link.worker, bytes as u64);
                meter.passed(&meter.from_client, bytes);
            }),
            copy(up_reader, down_writer, Bytes::new(), |bytes| {
                tenant.add_bytes(link.worker, bytes as u64);
                meter.passed(&meter.to_client, bytes);
            }),
        )
    };
    tokio::select! {
        both = both => match both {
            Ok(_) => Ok(()),
            Err(error) => Err(end(ResponseFlags::NONE, format!("connection_failure: {error}"))),
        },
        () = link.entry.cut_short() => Err(end(ResponseFlags::LOCAL_RESET, "drain_limit_reached")),
        () = meter.lasted(chain.max_duration) => {
            Err(end(ResponseFlags::DURATION_TIMEOUT, "max_connection_duration_reached"))
        }
        () = meter.silent_for(idle_timeout) => Err(end(ResponseFlags::STREAM_IDLE_TIMEOUT, "idle_timeout")),
        never = connection.count() => match never {},
    }
}

/// Leave to have a connection at the cluster.
async fn place(link: &Link, cluster: &Cluster) -> Result<Option<Held>, End> {
    if cluster.circuit_breakers.is_none() {
        return Ok(None);
    }
    let place = breakers::place(cluster, &link.instance.loads().waits);
    Box::pin(place).await.map_err(|failure| match failure {
        Failure::Overflow => {
            link.instance.counters().overflows.add_one();
            end(ResponseFlags::UPSTREAM_OVERFLOW, "upstream_connection_pool_overflow")
        }
        failure => end(ResponseFlags::UPSTREAM_CONNECTION_FAILURE, format!("{failure:?}")),
    })
}

type Halves = (ByteReader, ByteWriter);

async fn connect(
    link: &Arc<Link>,
    resolved: &Arc<Resolved>,
    cluster: &Arc<Cluster>,
) -> Result<(Arc<Attempt>, Halves), End> {
    let mut tried = Vec::new();
    let mut failure = end(ResponseFlags::NO_HEALTHY_UPSTREAM, "no_healthy_upstream");
    let mut cluster = Arc::clone(cluster);
    while tried.len() < MAX_ENDPOINTS {
        let endpoint = match choose(link, &resolved.mesh, &cluster, &tried, 1) {
            Ok(endpoint) => endpoint,
            Err(_) if !tried.is_empty() => break,
            Err(none) => {
                let found = Box::pin(wait(link, &cluster, none))
                    .await
                    .map_err(|none| end(ResponseFlags::NO_HEALTHY_UPSTREAM, none.details()))?;
                cluster = found.0;
                found.1
            }
        };
        if tried.contains(&endpoint.id()) {
            break;
        }
        tried.push(endpoint.id());
        let inbound = Arc::new(Inbound::new(Arc::clone(link), Arc::clone(resolved)));
        let attempt = Arc::new(Attempt::new(
            inbound,
            Arc::clone(&cluster),
            Arc::clone(&endpoint),
            false,
            None,
        ));
        let pool = link.instance.pool(&endpoint);
        let to = Destination { attempt: &attempt, pool: &pool, http2: false };
        match dial(to).await {
            Ok(dialled) => return Ok((Arc::clone(&attempt), dialled.split())),
            Err(reason) => {
                endpoint.state.record_failure();
                tracing::debug!(mesh = link.instance.name(), endpoint = %endpoint.address, ?reason, "endpoint not reached");
                // Envoy's TCP proxy has both flags when its attempts are used up.
                let flags = ResponseFlags::UPSTREAM_CONNECTION_FAILURE
                    | ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED;
                failure = end(flags, format!("{reason:?}"));
            }
        }
    }
    Err(failure)
}

/// Moves bytes until the sender ends its direction, which is passed on.
async fn copy(
    mut from: ByteReader,
    mut to: ByteWriter,
    first: Bytes,
    passed: impl Fn(usize),
) -> io::Result<()> {
    if !first.is_empty() {
        passed(first.len());
        to.write(first).await?;
    }
    while let Some(chunk) = from.chunk().await {
        let chunk = chunk?;
        passed(chunk.len());
        to.write(chunk).await?;
    }
    to.finish().await
}

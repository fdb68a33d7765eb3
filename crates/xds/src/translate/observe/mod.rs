//! What chains tell of requests and connections. Envoy: `access_log`, `tracing`; Istio: the filter `istio.stats`.

mod access_log;
mod metrics;
mod tracing;

use super::unsupported::Subject;
use super::wire::Undecodable;
use cairn_proto::envoy as pb;
use cairn_proto::stats::PluginConfig;
use cairn_router::spec::Observe;
use pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use std::sync::Arc;

/// What an HTTP chain tells.
pub(super) fn http(
    from: &HttpConnectionManager,
    stats: Option<&PluginConfig>,
    subject: &mut Subject<'_>,
) -> Result<Option<Arc<Observe>>, Undecodable> {
    let observe = Observe {
        access_logs: access_log::all(&from.access_log, subject)?,
        tracing: match &from.tracing {
            Some(tracing) => tracing::tracing(tracing, subject)?,
            None => None,
        },
        metrics: stats.and_then(|stats| metrics::metrics(stats, subject)),
    };
    Ok((!observe.is_empty()).then(|| Arc::new(observe)))
}

/// What a TCP chain tells.
pub(super) fn tcp(
    from: &TcpProxy,
    stats: Option<&PluginConfig>,
    subject: &mut Subject<'_>,
) -> Result<Option<Arc<Observe>>, Undecodable> {
    let observe = Observe {
        access_logs: access_log::all(&from.access_log, subject)?,
        tracing: None,
        metrics: stats.and_then(|stats| metrics::metrics(stats, subject)),
    };
    Ok((!observe.is_empty()).then(|| Arc::new(observe)))
}

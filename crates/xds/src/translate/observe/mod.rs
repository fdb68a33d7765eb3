//! What chains tell of requests and connections. Envoy: `access_log`, `tracing`; Istio: the filter `istio.stats`.

pub(super) mod access_log;
mod metrics;
mod tracing;

use super::unsupported::Subject;
use super::wire::Undecodable;
use cairn_proto::envoy as pb;
use cairn_proto::stats::PluginConfig;
use cairn_router::spec::Observe;
use pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Weak};

/// Host with port, and path, of a URI whose scheme may be missing. Envoy: `extractHostPathFromUri`.
fn host_and_path(uri: &str) -> (&str, &str) {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    }
}

/// What an HTTP chain tells.
pub(super) fn http(
    from: &HttpConnectionManager,
    stats: Option<&PluginConfig>,
    subject: &mut Subject<'_>,
) -> Result<Option<Arc<Observe>>, Undecodable> {
    let observe = Observe {
        access_logs: access_log::all(&from.access_log, subject)?,
        tracing: match &from.tracing {
            Some(tracing) => {
                let extension = from.request_id_extension.as_ref();
                let config = extension.and_then(|extension| extension.typed_config.as_ref());
                let ids = tracing::request_id(config, subject)?;
                Some(Arc::new(tracing::tracing(tracing, ids, subject)?))
            }
            None => None,
        },
        metrics: metrics::metrics(stats, subject),
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
        metrics: metrics::metrics(stats, subject),
    };
    Ok((!observe.is_empty()).then(|| Arc::new(observe)))
}

/// Equal values as one: chains of a thousand services tell the same.
#[derive(Debug, Default)]
pub(super) struct Shared(HashMap<u64, Vec<Weak<Observe>>>);

impl Shared {
    /// The value that is known already, if an equal one is in use.
    pub(super) fn share(&mut self, observe: &mut Option<Arc<Observe>>) {
        let Some(made) = observe else { return };
        self.0.retain(|_, alike| {
            alike.retain(|known| known.strong_count() > 0);
            !alike.is_empty()
        });
        let mut hash = DefaultHasher::new();
        format!("{made:?}").hash(&mut hash);
        let alike = self.0.entry(hash.finish()).or_default();
        match alike.iter().filter_map(Weak::upgrade).find(|known| known == made) {
            Some(known) => *made = known,
            None => alike.push(Arc::downgrade(made)),
        }
    }
}

//! Filter chains of `main_internal`: what is done with the bytes of a tunnel.

use super::filters::{self, NetworkFilters};
use super::http;
use super::observe;
use super::unsupported::{Notes, Subject};
use super::wire::{Undecodable, decode, duration, open, type_name};
use cairn_proto::envoy as pb;
use cairn_proto::stats::PluginConfig;
use cairn_router::spec::{HttpChain, TcpChain, WeightedTcp};
use pb::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch, filter};
use pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use pb::google::protobuf::Any;

/// Name of the message.
pub(super) const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

/// A translated chain.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Body {
    Http(HttpChain),
    Tcp(TcpChain),
}

/// A chain and what is known of it.
#[derive(Debug)]
pub(super) struct Chain {
    pub name: String,
    pub body: Body,
    pub notes: Notes,
    pub baggage: bool,
    /// Names of ECDS resources.
    pub discovered: Vec<String>,
}

/// Translates the bytes of a chain. `number` names one without a name.
pub(super) fn chain(bytes: &[u8]) -> Result<Chain, Undecodable> {
    let read = decode::<FilterChain>("FilterChain", bytes)?;
    #[allow(deprecated)]
    let FilterChain {
        filter_chain_match,
        filters,
        use_proxy_proto,
        metadata: _,
        transport_socket,
        transport_socket_connect_timeout: _,
        name,
    } = read.message;
    let mut subject = Subject::new("chain", &name);
    subject.refuse_if(!read.whole, "a chain with fields that are not known");
    subject.refuse_if(
        filter_chain_match.is_some_and(|from| from != FilterChainMatch::default()),
        "a condition of the chain's own",
    );
    subject.refuse_if(use_proxy_proto.is_some_and(|asked| asked.value), "the PROXY protocol");
    subject.refuse_if(transport_socket.is_some(), "TLS inside a tunnel");
    let is_http = filters.iter().any(|filter| config(filter).is_some_and(is_http));
    let mut chain = Chain {
        name: String::new(),
        body: Body::Tcp(broken_tcp("")),
        notes: Notes::default(),
        baggage: false,
        discovered: Vec::new(),
    };
    let mut before = NetworkFilters::default();
    let last = filters.len().saturating_sub(1);
    let mut done = false;
    for (number, filter) in filters.iter().enumerate() {
        let Some(config) = config(filter) else {
            subject.refuse(format!(
                "network filter `{}` without settings is not supported",
                filter.name
            ));
            continue;
        };
        match type_name(config) {
            http::TYPE if number == last => {
                let translated = http::chain(&config.value, &mut subject)?;
                subject.refuse_if(!before.rbac.is_empty(), "network RBAC in front of HTTP");
                chain.baggage = translated.filters.baggage;
                chain.discovered = translated.filters.discovered;
                chain.body = Body::Http(translated.chain);
                done = true;
            }
            TCP_PROXY if number == last => {
                let rbac = std::mem::take(&mut before.rbac);
                let proxied = tcp(config, rbac, before.stats.as_ref(), &mut subject)?;
                chain.body = Body::Tcp(proxied);
                done = true;
            }
            _ => filters::network(&filter.name, config, &mut before, &mut subject)?,
        }
    }
    if !done {
        subject.refuse("a chain that ends in neither HTTP nor TCP is not supported");
    }
    let notes = subject.notes;
    if let Some(reason) = &notes.broken {
        // What is refused is told of, too.
        let observe = match &chain.body {
            Body::Http(chain) => chain.observe.clone(),
            Body::Tcp(chain) => chain.observe.clone(),
        };
        chain.body = match is_http {
            true => Body::Http(HttpChain { observe, ..http::broken(reason) }),
            false => Body::Tcp(TcpChain { observe, ..broken_tcp(reason) }),
        };
    }
    Ok(Chain { name, notes, ..chain })
}

fn config(filter: &Filter) -> Option<&Any> {
    match &filter.config_type {
        Some(filter::ConfigType::TypedConfig(config)) => Some(config),
        _ => None,
    }
}

fn is_http(config: &Any) -> bool {
    type_name(config) == http::TYPE
}

/// A chain that refuses every connection.
pub(super) fn broken_tcp(reason: &str) -> TcpChain {
    TcpChain {
        rbac: Vec::new(),
        clusters: Vec::new(),
        idle_timeout: None,
        max_duration: None,
        observe: None,
        broken: Some(reason.to_owned()),
    }
}

#[allow(deprecated)]
fn tcp(
    config: &Any,
    rbac: Vec<cairn_router::spec::Rbac>,
    stats: Option<&PluginConfig>,
    subject: &mut Subject<'_>,
) -> Result<TcpChain, Undecodable> {
    let read = open::<tcp::TcpProxy>(config)?;
    let observe = observe::tcp(&read.message, stats, subject)?;
    let tcp::TcpProxy {
        stat_prefix: _,
        on_demand,
        metadata_match,
        idle_timeout,
        downstream_idle_timeout,
        upstream_idle_timeout,
        access_log: _,
        max_connect_attempts,
        backoff_options,
        hash_policy,
        tunneling_config,
        max_downstream_connection_duration,
        max_downstream_connection_duration_jitter_percentage: _,
        access_log_flush_interval: _,
        flush_access_log_on_connected: _,
        access_log_options: _,
        proxy_protocol_tlvs,
        proxy_protocol_tlv_merge_policy: _,
        upstream_connect_mode: _,
        max_early_data_bytes: _,
        check_drain_close: _,
        cluster_specifier,
    } = read.message;
    if !read.whole {
        subject.degrade("settings of TCP that are not known are left out");
    }
    subject.refuse_if(on_demand.is_some(), "clusters on demand");
    subject.refuse_if(metadata_match.is_some(), "a choice of endpoints by metadata");
    subject.refuse_if(tunneling_config.is_some(), "a tunnel (DestinationRule `tunnel`)");
    subject.degrade_if(
        downstream_idle_timeout.is_some() || upstream_idle_timeout.is_some(),
        "an idle timeout of one side",
    );
    subject.degrade_if(
        max_connect_attempts.is_some_and(|most| most.value > 1) || backoff_options.is_some(),
        "a second try to connect",
    );
    subject.degrade_if(!hash_policy.is_empty(), "a choice of endpoints by the client's address");
    subject.degrade_if(!proxy_protocol_tlvs.is_empty(), "what PROXY protocol would carry");
    let clusters = match cluster_specifier {
        Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(name)) => {
            vec![WeightedTcp { name, weight: 1 }]
        }
        Some(tcp::tcp_proxy::ClusterSpecifier::WeightedClusters(weighted)) => {
            subject.refuse_if(
                weighted.clusters.iter().any(|cluster| cluster.metadata_match.is_some()),
                "a choice of endpoints by metadata",
            );
            let clusters = weighted.clusters.into_iter();
            clusters
                .map(|cluster| WeightedTcp { name: cluster.name, weight: cluster.weight })
                .collect()
        }
        None => Vec::new(),
    };
    let sum: u64 = clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
    subject.refuse_if(
        sum == 0 || clusters.iter().any(|cluster| cluster.name.is_empty()),
        "a chain without a cluster",
    );
    Ok(TcpChain {
        rbac,
        clusters,
        idle_timeout: idle_timeout.as_ref().map(duration),
        max_duration: max_downstream_connection_duration.as_ref().map(duration),
        observe,
        broken: None,
    })
}

//! The filters in front of routing, HTTP and network ones.
//!
//! Those that Istio puts into every waypoint become facts; authorization and header changes become filters; any
//! other one makes its chain fail closed.

use super::overrides::{self, Filters, Problem};
use super::rbac::{self, Place};
use super::unsupported::Subject;
use super::wire::{Content, Undecodable, open};
use super::{headers, wire};
use cairn_proto::envoy as pb;
use cairn_proto::stats::PluginConfig;
use cairn_router::spec::{HeaderOps, HttpFilter, Rbac};
use pb::envoy::config::common::mutation_rules::v3::header_mutation::Action as Mutation;
use pb::envoy::config::core::v3::SubstitutionFormatString;
use pb::envoy::config::core::v3::data_source::Specifier;
use pb::envoy::config::core::v3::substitution_format_string::Format;
use pb::envoy::extensions::filters::common::set_filter_state::v3::FilterStateValue;
use pb::envoy::extensions::filters::common::set_filter_state::v3::filter_state_value::{
    Key, Value,
};
use pb::envoy::extensions::filters::http::header_mutation::v3::{HeaderMutation, Mutations};
use pb::envoy::extensions::filters::http::router::v3::Router;
use pb::envoy::extensions::filters::http::set_filter_state::v3::Config as HttpState;
use pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use pb::envoy::extensions::filters::network::set_filter_state::v3::Config as NetworkState;
use pb::envoy::extensions::filters::{http, network};
use pb::google::protobuf::Any;

/// What `connect_terminate` remembers of a tunnel: keys of filter state and what they are set to.
const TUNNEL_STATE: [(&str, &str); 5] = [
    ("envoy.filters.listener.original_dst.local_ip", "%REQ(:AUTHORITY)%"),
    ("io.istio.connect_authority", "%REQ(:AUTHORITY)%"),
    ("envoy.filters.listener.original_dst.remote_ip", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("io.istio.peer_principal", "%DOWNSTREAM_PEER_URI_SAN%"),
    ("io.istio.local_principal", "%DOWNSTREAM_LOCAL_URI_SAN%"),
];

/// Key that direct chains set to itself.
const LOCAL_IP: &str = "envoy.filters.listener.original_dst.local_ip";
const LOCAL_IP_AGAIN: &str = "%FILTER_STATE(envoy.filters.listener.original_dst.local_ip:PLAIN)%";
/// Key that chains set where destinations are named by host, and how its value begins.
const ORIGINAL_DST: &str = "envoy.network.transport_socket.original_dst_address";
const ORIGINAL_DST_BEGINS: &str =
    "%CEL('envoy.filters.listener.original_dst.local_ip' in filter_state ? ";

/// What the filters of an HTTP chain come to.
#[derive(Debug, Default)]
pub(super) struct HttpFilters {
    pub filters: Vec<HttpFilter>,
    /// Those that routes have settings for.
    pub overridable: Filters,
    pub suppress_envoy_headers: bool,
    pub stats: Option<PluginConfig>,
    pub baggage: bool,
    /// Names of ECDS resources.
    pub discovered: Vec<String>,
}

/// The HTTP filters of a chain, whose last one has to be the router.
pub(super) fn http(
    from: &[hcm::HttpFilter],
    place: Place,
    chain: &mut Subject<'_>,
) -> Result<HttpFilters, Undecodable> {
    let mut all = HttpFilters::default();
    let mut routed = false;
    for filter in from {
        let hcm::HttpFilter { name, is_optional, disabled, config_type } = filter;
        all.overridable.names.insert(name.clone());
        if routed {
            chain.refuse(format!("HTTP filter `{name}` behind the router is not supported"));
        }
        match config_type {
            Some(hcm::http_filter::ConfigType::TypedConfig(config)) => {
                // Envoy: a disabled filter runs only where a route has settings for it.
                if *disabled && !is_router(config) {
                    continue;
                }
                let content = Content::of(config)?;
                if *is_optional && !content.name().starts_with("envoy.") && !is_known(&content) {
                    // Envoy: an optional filter that it does not have is left out.
                    chain.degrade(format!(
                        "optional HTTP filter `{name}` ({}) is left out",
                        content.name()
                    ));
                    continue;
                }
                one_http((name, config, &content), place, &mut all, chain)?;
                routed |= is_router(config);
            }
            Some(hcm::http_filter::ConfigType::ConfigDiscovery(_)) => {
                all.discovered.push(name.clone());
                if !disabled {
                    chain.refuse(format!(
                        "HTTP filter `{name}`, which comes by ECDS (Wasm), is not supported"
                    ));
                }
            }
            None if *disabled => {}
            None => chain.refuse(format!("HTTP filter `{name}` without settings is not supported")),
        }
    }
    if !routed {
        chain.refuse("HTTP filters without a router are not supported");
    }
    Ok(all)
}

fn is_router(config: &Any) -> bool {
    wire::type_name(config) == "envoy.extensions.filters.http.router.v3.Router"
}

fn is_known(content: &Content<'_>) -> bool {
    matches!(
        content,
        Content::Structured(name) if name == "io.istio.http.peer_metadata.Config"
    ) || matches!(content, Content::Message("stats.PluginConfig"))
}

fn one_http(
    (name, config, content): (&String, &Any, &Content<'_>),
    place: Place,
    all: &mut HttpFilters,
    chain: &mut Subject<'_>,
) -> Result<(), Undecodable> {
    match content {
        Content::Message("envoy.extensions.filters.http.rbac.v3.RBAC") => {
            let rbac = http_rbac((name, config), place, chain)?;
            all.filters.extend(rbac.map(HttpFilter::Rbac));
        }
        Content::Message("envoy.extensions.filters.http.header_mutation.v3.HeaderMutation")
            if place == Place::Inner =>
        {
            mutations((name, config), all, chain)?;
        }
        Content::Message("envoy.extensions.filters.http.grpc_stats.v3.FilterConfig") => {}
        Content::Message("envoy.extensions.filters.http.fault.v3.HTTPFault")
            if place == Place::Inner =>
        {
            all.overridable.faults.insert(name.clone());
            match overrides::fault(config) {
                Ok(fault) => all.overridable.fault = fault.or(all.overridable.fault.take()),
                Err(Problem::Undecodable(undecodable)) => return Err(undecodable),
                Err(Problem::Unsupported(what)) => {
                    chain.refuse(format!("HTTP filter `{name}`: {what} is not supported"));
                }
            }
        }
        Content::Message("envoy.extensions.filters.http.cors.v3.Cors") if place == Place::Inner => {
            all.overridable.cors.insert(name.clone());
        }
        Content::Message("envoy.extensions.filters.http.set_filter_state.v3.Config")
            if place == Place::Tunnel =>
        {
            let read = open::<HttpState>(config)?;
            let HttpState { on_request_headers, clear_route_cache: _ } = read.message;
            if !read.whole {
                chain.refuse(format!("HTTP filter `{name}` with fields that are not known"));
            }
            let known = |state: &FilterStateValue| {
                assigned(state).is_some_and(|pair| TUNNEL_STATE.contains(&pair))
            };
            if !on_request_headers.iter().all(known) {
                chain.refuse(format!("HTTP filter `{name}` sets filter state that is not known"));
            }
        }
        Content::Structured(kind) if kind == "io.istio.http.peer_metadata.Config" => {
            // The bytes of the struct's keys are enough to tell.
            all.baggage |= config.value.windows(7).any(|bytes| bytes == b"baggage");
        }
        Content::Message("stats.PluginConfig") => all.stats = Some(open(config)?.message),
        Content::Message("envoy.extensions.filters.http.router.v3.Router") => {
            let Router {
                suppress_envoy_headers,
                upstream_http_filters,
                upstream_log,
                strict_check_headers,
                respect_expected_rq_timeout,
                ..
            } = open(config)?.message;
            all.suppress_envoy_headers = suppress_envoy_headers;
            chain.refuse_if(!upstream_http_filters.is_empty(), "the router's own HTTP filters");
            chain.degrade_if(!upstream_log.is_empty(), "the router's access log");
            chain.degrade_if(
                !strict_check_headers.is_empty() || respect_expected_rq_timeout,
                "control of the router by the client's headers",
            );
        }
        other => {
            chain.refuse(format!("HTTP filter `{name}` ({}) is not supported", other.name()));
        }
    }
    Ok(())
}

fn http_rbac(
    (name, config): (&String, &Any),
    place: Place,
    chain: &mut Subject<'_>,
) -> Result<Option<Rbac>, Undecodable> {
    let read = open::<http::rbac::v3::Rbac>(config)?;
    if !read.whole {
        chain.refuse(format!("HTTP filter `{name}` with fields that are not known"));
    }
    let http::rbac::v3::Rbac {
        rules,
        rules_stat_prefix: _,
        matcher,
        shadow_rules: _,
        shadow_matcher: _,
        shadow_rules_stat_prefix: _,
        track_per_rule_stats: _,
    } = read.message;
    chain.refuse_if(matcher.is_some(), "RBAC by a tree of matchers");
    rbac::rules(rules.as_ref(), place, chain)
}

/// Each change is a filter of its own: they are done in order.
fn mutations(
    (name, config): (&String, &Any),
    all: &mut HttpFilters,
    chain: &mut Subject<'_>,
) -> Result<(), Undecodable> {
    let read = open::<HeaderMutation>(config)?;
    if !read.whole {
        chain.refuse(format!("HTTP filter `{name}` with fields that are not known"));
    }
    let HeaderMutation { mutations, most_specific_header_mutations_wins: _ } = read.message;
    let Mutations {
        request_mutations,
        query_parameter_mutations,
        response_mutations,
        response_trailers_mutations,
        request_trailers_mutations,
    } = mutations.unwrap_or_default();
    let others = !query_parameter_mutations.is_empty()
        || !response_mutations.is_empty()
        || !response_trailers_mutations.is_empty()
        || !request_trailers_mutations.is_empty();
    if others {
        chain.refuse(format!(
            "HTTP filter `{name}` changes something else than request headers, which is not supported"
        ));
    }
    for mutation in &request_mutations {
        let ops = match &mutation.action {
            Some(Mutation::Remove(header)) => headers::ops(&[], std::slice::from_ref(header)),
            Some(Mutation::Append(option)) => headers::ops(std::slice::from_ref(option), &[]),
            Some(Mutation::RemoveOnMatch(_)) => Err("a removal by pattern".to_owned()),
            None => Err("a change that is not known".to_owned()),
        };
        match ops {
            Ok(ops) if ops == HeaderOps::default() => {}
            Ok(ops) => all.filters.push(HttpFilter::RequestHeaders(ops)),
            Err(what) => chain.refuse(format!("HTTP filter `{name}`: {what} is not supported")),
        }
    }
    Ok(())
}

/// What the network filters in front of a chain's last one come to.
#[derive(Debug, Default)]
pub(super) struct NetworkFilters {
    pub rbac: Vec<Rbac>,
    pub stats: Option<PluginConfig>,
}

/// One network filter that is not the last of its chain.
pub(super) fn network(
    name: &str,
    config: &Any,
    all: &mut NetworkFilters,
    chain: &mut Subject<'_>,
) -> Result<(), Undecodable> {
    match Content::of(config)? {
        Content::Structured(kind)
            if kind == "envoy.tcp.metadataexchange.config.MetadataExchange" => {}
        Content::Message("stats.PluginConfig") => all.stats = Some(open(config)?.message),
        Content::Message("envoy.extensions.filters.network.set_filter_state.v3.Config") => {
            let NetworkState { on_new_connection, on_downstream_tls_handshake, on_downstream_data } =
                open(config)?.message;
            let known = |state: &FilterStateValue| match assigned(state) {
                Some((LOCAL_IP, LOCAL_IP_AGAIN)) => true,
                Some((ORIGINAL_DST, value)) => value.starts_with(ORIGINAL_DST_BEGINS),
                _ => false,
            };
            let others = !on_downstream_tls_handshake.is_empty() || !on_downstream_data.is_empty();
            if others || !on_new_connection.iter().all(known) {
                chain
                    .refuse(format!("network filter `{name}` sets filter state that is not known"));
            }
        }
        Content::Message("envoy.extensions.filters.network.rbac.v3.RBAC") => {
            let read = open::<network::rbac::v3::Rbac>(config)?;
            if !read.whole {
                chain.refuse(format!("network filter `{name}` with fields that are not known"));
            }
            let network::rbac::v3::Rbac {
                rules,
                matcher,
                shadow_rules: _,
                shadow_matcher: _,
                shadow_rules_stat_prefix: _,
                stat_prefix: _,
                // Decided once, before a byte passes.
                enforcement_type: _,
                delay_deny: _,
            } = read.message;
            chain.refuse_if(matcher.is_some(), "RBAC by a tree of matchers");
            all.rbac.extend(rbac::rules(rules.as_ref(), Place::Inner, chain)?);
        }
        other => {
            chain.refuse(format!("network filter `{name}` ({}) is not supported", other.name()));
        }
    }
    Ok(())
}

/// Key and format of a filter state that is set; `None`: not understood.
fn assigned(state: &FilterStateValue) -> Option<(&str, &str)> {
    let Some(Key::ObjectKey(key)) = &state.key else { return None };
    let Some(Value::FormatString(SubstitutionFormatString { format, .. })) = &state.value else {
        return None;
    };
    match format {
        Some(Format::TextFormatSource(source)) => match &source.specifier {
            Some(Specifier::InlineString(text)) => Some((key, text)),
            _ => None,
        },
        _ => None,
    }
}

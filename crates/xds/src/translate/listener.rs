//! The listener `connect_terminate`: how tunnels are accepted.
//!
//! Cairn accepts tunnels by itself. What the listener says beyond that, and is not understood, closes
//! everything: it stands in front of all destinations.

use super::facts::Terminate;
use super::filters;
use super::http;
use super::observe;
use super::rbac::Place;
use super::tls;
use super::unsupported::{Notes, Subject};
use super::wire::{Undecodable, decode, duration, is_true, open, type_name};
use cairn_proto::envoy as pb;
use cairn_router::spec::{AccessLog, ConnectionPolicy, HttpFilter};
use pb::envoy::config::core::v3::address::Address as Kind;
use pb::envoy::config::core::v3::socket_address::PortSpecifier;
use pb::envoy::config::core::v3::transport_socket::ConfigType;
use pb::envoy::config::core::v3::{Address, TransportSocket};
use pb::envoy::config::listener::v3::{
    AdditionalAddress, FilterChain, FilterChainMatch, Listener, filter,
};
use pb::envoy::config::route::v3::route::Action;
use pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use pb::envoy::config::route::v3::route_match::PathSpecifier;
use pb::envoy::config::route::v3::{Route, RouteConfiguration};
use pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use pb::envoy::extensions::transport_sockets::tls::v3 as sockets;
use pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use pb::google::protobuf::Any;
use std::net::SocketAddr;

const DOWNSTREAM: &str = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";

/// What `connect_terminate` comes to.
#[derive(Debug)]
pub(super) struct Translated {
    pub terminate: Terminate,
    pub policy: ConnectionPolicy,
    pub notes: Notes,
    pub baggage: bool,
    /// Of CONNECTs that are refused.
    pub logs: Vec<AccessLog>,
}

/// Reads the listener.
pub(super) fn terminate(bytes: &[u8]) -> Result<Translated, Undecodable> {
    let listener = decode::<Listener>("envoy.config.listener.v3.Listener", bytes)?.message;
    let mut subject = Subject::new("listener", "connect_terminate");
    let own = listener.address.as_ref();
    let additional = listener.additional_addresses.iter();
    let additional = additional.map(|AdditionalAddress { address, .. }| address.as_ref());
    let mut addresses = Vec::new();
    for address in std::iter::once(own).chain(additional) {
        match address.and_then(socket_address) {
            Some(address) => addresses.push(address),
            None => subject.degrade("an address that is no IP address and port is left out"),
        }
    }
    subject.refuse_if(
        !listener.listener_filters.is_empty(),
        "a listener filter in front of tunnels (PROXY protocol)",
    );
    subject.refuse_if(
        listener.default_filter_chain.is_some() || listener.filter_chain_matcher.is_some(),
        "a choice of chains in front of tunnels",
    );
    // The listener's own access log is of connections that no chain takes: there are none.
    let mut translated = Translated {
        terminate: Terminate { addresses, ..Terminate::default() },
        policy: ConnectionPolicy::default(),
        notes: Notes::default(),
        baggage: false,
        logs: Vec::new(),
    };
    match listener.filter_chains.as_slice() {
        [only] => chain(only, &mut translated, &mut subject)?,
        _ => subject.refuse("several chains in front of tunnels are not supported"),
    }
    translated.notes = subject.notes;
    translated.terminate.broken = translated.notes.broken.clone();
    Ok(translated)
}

/// The access logs of a listener that begins tunnels: of what is sent through it.
pub(super) fn originate(bytes: &[u8], name: &str) -> Result<(Vec<AccessLog>, Notes), Undecodable> {
    let listener = decode::<Listener>("envoy.config.listener.v3.Listener", bytes)?.message;
    let mut subject = Subject::new("listener", name);
    let mut logs = Vec::new();
    for filter in listener.filter_chains.iter().flat_map(|chain| &chain.filters) {
        if let Some(filter::ConfigType::TypedConfig(config)) = &filter.config_type
            && type_name(config) == super::chain::TCP_PROXY
        {
            let proxied = open::<TcpProxy>(config)?.message;
            logs.extend(observe::access_log::all(&proxied.access_log, &mut subject)?);
        }
    }
    Ok((logs, subject.notes))
}

fn socket_address(address: &Address) -> Option<SocketAddr> {
    let Some(Kind::SocketAddress(address)) = &address.address else { return None };
    let Some(PortSpecifier::PortValue(port)) = &address.port_specifier else { return None };
    Some(SocketAddr::new(address.address.parse().ok()?, u16::try_from(*port).ok()?))
}

fn chain(
    from: &FilterChain,
    translated: &mut Translated,
    subject: &mut Subject<'_>,
) -> Result<(), Undecodable> {
    subject.refuse_if(
        from.filter_chain_match.as_ref().is_some_and(|of| *of != FilterChainMatch::default()),
        "a condition on connections",
    );
    let config = match &from.transport_socket {
        Some(TransportSocket { config_type: Some(ConfigType::TypedConfig(config)), .. }) => {
            Some(config)
        }
        _ => None,
    };
    match config.filter(|config| type_name(config) == DOWNSTREAM) {
        Some(config) => tls(config, translated, subject)?,
        None => subject.refuse("tunnels without TLS are not supported"),
    }
    match from.filters.as_slice() {
        [only] => match &only.config_type {
            Some(filter::ConfigType::TypedConfig(config)) if type_name(config) == http::TYPE => {
                tunnels(config, translated, subject)
            }
            _ => {
                subject.refuse(format!("network filter `{}` is not supported here", only.name));
                Ok(())
            }
        },
        others => {
            let names: Vec<&str> = others.iter().map(|filter| filter.name.as_str()).collect();
            let names = names.join("`, `");
            subject.refuse(format!("the network filters `{names}` are not supported here"));
            Ok(())
        }
    }
}

fn tls(
    config: &Any,
    translated: &mut Translated,
    subject: &mut Subject<'_>,
) -> Result<(), Undecodable> {
    let read = open::<sockets::DownstreamTlsContext>(config)?;
    subject.refuse_if(!read.whole, "TLS with fields that are not known");
    let context = read.message;
    if !is_true(&context.require_client_certificate) {
        subject.degrade("clients without a certificate are refused nevertheless");
    }
    subject.degrade_if(
        context.require_sni.is_some_and(|asked| asked.value),
        "a server name that clients must send",
    );
    match uri_prefixes(context.common_tls_context.as_ref()) {
        Ok(prefixes) => {
            let domains = prefixes.iter().map(|prefix| trust_domain(prefix));
            match domains.collect::<Option<Vec<_>>>() {
                Some(domains) => translated.terminate.trust_domains = domains,
                None => subject.refuse("clients of a part of a trust domain only: not supported"),
            }
        }
        Err(what) => subject.refuse(format!("{what} of clients: not supported")),
    }
    Ok(())
}

/// `cluster.local` of `spiffe://cluster.local/`.
fn trust_domain(prefix: &str) -> Option<String> {
    let domain = prefix.strip_prefix("spiffe://")?.strip_suffix('/')?;
    (!domain.is_empty() && !domain.contains('/')).then(|| domain.to_owned())
}

/// Beginnings of which a certificate's URI must have one; empty: any. The error says what else is asked for.
#[allow(deprecated)]
pub(super) fn uri_prefixes(
    from: Option<&sockets::CommonTlsContext>,
) -> Result<Vec<String>, String> {
    let Some(from) = from else { return Err("certificates of unknown roots".to_owned()) };
    let (context, roots) = match &from.validation_context_type {
        Some(ValidationContextType::CombinedValidationContext(combined)) => (
            combined.default_validation_context.clone().unwrap_or_default(),
            combined.validation_context_sds_secret_config.as_ref(),
        ),
        Some(ValidationContextType::ValidationContextSdsSecretConfig(secret)) => {
            (sockets::CertificateValidationContext::default(), Some(secret))
        }
        _ => return Err("certificates of unknown roots".to_owned()),
    };
    if roots.is_none_or(|roots| roots.name != "ROOTCA") {
        return Err("certificates of other roots than the mesh's".to_owned());
    }
    tls::only_names(&context)?;
    let typed = context.match_typed_subject_alt_names.iter();
    let mut prefixes = typed
        .map(|san| {
            let pattern = san.matcher.as_ref().and_then(|of| of.match_pattern.as_ref());
            match (SanType::try_from(san.san_type), pattern) {
                (Ok(SanType::Uri), Some(MatchPattern::Prefix(prefix))) => Ok(prefix.clone()),
                _ => Err("a pattern of certificates' names".to_owned()),
            }
        })
        .collect::<Result<Vec<_>, _>>()?;
    // Envoy: the untyped list counts only where there is no typed one.
    if prefixes.is_empty() && !context.match_subject_alt_names.is_empty() {
        return Err("a pattern of certificates' names".to_owned());
    }
    prefixes.sort();
    prefixes.dedup();
    Ok(prefixes)
}

fn tunnels(
    config: &Any,
    translated: &mut Translated,
    subject: &mut Subject<'_>,
) -> Result<(), Undecodable> {
    let read = open::<hcm::HttpConnectionManager>(config)?;
    if !read.whole {
        subject.degrade("settings of tunnels that are not known are left out");
    }
    let from = read.message;
    let all = filters::http(&from.http_filters, Place::Tunnel, subject)?;
    translated.baggage = all.baggage;
    for filter in all.filters {
        match filter {
            HttpFilter::Rbac(rbac) => translated.policy.rbac.push(rbac),
            HttpFilter::RequestHeaders(_) => {
                subject.refuse("a change of CONNECT's headers is not supported");
            }
        }
    }
    let routed = match &from.route_specifier {
        Some(RouteSpecifier::RouteConfig(table)) => leads_inside(table),
        _ => false,
    };
    subject.refuse_if(!routed, "a route of CONNECT to anywhere else than `main_internal`");
    translated.logs = observe::access_log::all(&from.access_log, subject)?;
    subject.degrade_if(
        from.tracing.as_ref().is_some_and(|tracing| tracing.provider.is_some()),
        "tracing of tunnels",
    );
    if let Some(http2) = &from.http2_protocol_options {
        translated.terminate.max_concurrent_streams =
            http2.max_concurrent_streams.as_ref().map(|most| most.value);
        translated.terminate.keepalive = http2.connection_keepalive.as_ref().and_then(|alive| {
            let interval = alive.interval.as_ref().map(duration)?;
            Some((interval, alive.timeout.as_ref().map(duration)?))
        });
    }
    Ok(())
}

/// Every CONNECT goes to `main_internal`.
fn leads_inside(table: &RouteConfiguration) -> bool {
    let [host] = table.virtual_hosts.as_slice() else { return false };
    let [
        Route {
            r#match: Some(matches),
            action: Some(Action::Route(action)),
            typed_per_filter_config,
            ..
        },
    ] = host.routes.as_slice()
    else {
        return false;
    };
    host.domains == ["*"]
        && host.typed_per_filter_config.is_empty()
        && table.typed_per_filter_config.is_empty()
        && typed_per_filter_config.is_empty()
        && matches!(&matches.path_specifier, Some(PathSpecifier::ConnectMatcher(_)))
        && matches.headers.is_empty()
        && matches!(&action.cluster_specifier, Some(ClusterSpecifier::Cluster(name)) if name == "main_internal")
}

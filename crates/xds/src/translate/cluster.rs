//! Where routes lead. Envoy: `config.cluster.v3.Cluster`.
//!
//! A cluster that asks for something that is not understood is broken: what is sent there gets 503 with the
//! reason. Only how endpoints are chosen, ejected and warmed up may be done in another way.

use super::endpoint::{self, Assignment};
use super::facts::Originate;
use super::shallow::Digest;
use super::tls::{self, Socket};
use super::unsupported::{Notes, Subject};
use super::wire::{self, Content, Undecodable, decode, duration, open, type_name};
use cairn_proto::envoy as pb;
use cairn_router::spec::{
    CircuitBreakers, Cluster, ClusterProtocol, EndpointTransport, LbPolicy, OriginalDestination,
    UpstreamTls,
};
use pb::envoy::config::cluster::v3 as cluster;
use pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbConfig,
    LbPolicy as From, OriginalDstLbConfig,
};
use pb::envoy::config::core::v3 as core;
use pb::envoy::extensions::transport_sockets::tls::v3 as sockets;
use pb::envoy::extensions::upstreams::http::v3 as upstream;
use pb::envoy::extensions::upstreams::http::v3::http_protocol_options::UpstreamProtocolOptions;
use pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use pb::google::protobuf::UInt32Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Istio's filter that tells both ends of plain TCP who the other is.
const METADATA_EXCHANGE: &str = "envoy.tcp.metadataexchange.config.MetadataExchange";
/// Istio's filter that reads the peer's metadata from the answer to CONNECT (`AMBIENT_ENABLE_BAGGAGE`).
const PEER_METADATA: &str = "envoy.extensions.network_filters.peer_metadata.UpstreamConfig";
/// Clusters that lead into Cairn's own tunnels and are no place to send requests to.
const INTERNAL: [&str; 3] = ["main_internal", "inner_connect_originate", "outer_connect_originate"];
/// The cluster that says how tunnels are begun.
const ORIGINATE: &str = "connect_originate";
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// A bound that is none.
const UNBOUNDED: u32 = u32::MAX;
/// Envoy's default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Envoy's default.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// For connections that are never too idle: ten years.
const NEVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// One cluster, as it is kept.
#[derive(Debug)]
pub(super) struct Kept {
    pub digest: Digest,
    pub role: Role,
    pub notes: Notes,
}

/// What a cluster is for.
#[derive(Debug)]
pub(super) enum Role {
    /// Part of how tunnels work, which Cairn does by itself.
    Internal,
    /// Says how tunnels are begun.
    Originate(Originate),
    /// Where requests go.
    Served(Served),
}

/// Where requests go.
#[derive(Debug)]
pub(super) struct Served {
    pub spec: Arc<Cluster>,
    /// Name of its EDS resource.
    pub service: Option<String>,
    /// Endpoints that it brings along.
    pub inline: Option<Assignment>,
    /// How endpoints are reached by their labels.
    pub matches: Vec<SocketMatch>,
    /// Weights of localities count.
    pub by_locality: bool,
}

/// How endpoints with these labels are reached.
#[derive(Debug, PartialEq)]
pub(super) struct SocketMatch {
    pub labels: BTreeMap<String, String>,
    pub socket: Socket,
}

/// Reads a cluster.
pub(super) fn read(bytes: &[u8], digest: Digest) -> Result<Kept, Undecodable> {
    let read = decode::<cluster::Cluster>("envoy.config.cluster.v3.Cluster", bytes)?;
    let from = read.message;
    let mut subject = Subject::new("cluster", &from.name);
    if INTERNAL.contains(&from.name.as_str()) {
        return Ok(Kept { digest, role: Role::Internal, notes: subject.notes });
    }
    if from.name == ORIGINATE {
        let originate = originate(&from, &mut subject)?;
        return Ok(Kept { digest, role: Role::Originate(originate), notes: subject.notes });
    }
    if !read.whole {
        subject.degrade("settings that are not known are left out");
    }
    let served = served(&from, &mut subject)?;
    Ok(Kept { digest, role: Role::Served(served), notes: subject.notes })
}

/// Port, names and bounds of tunnels.
#[allow(deprecated)]
fn originate(from: &cluster::Cluster, subject: &mut Subject<'_>) -> Result<Originate, Undecodable> {
    let port = match &from.lb_config {
        Some(LbConfig::OriginalDstLbConfig(config)) => {
            config.upstream_port_override.as_ref().and_then(|port| u16::try_from(port.value).ok())
        }
        _ => None,
    };
    let mut prefixes = Vec::new();
    let socket = from.transport_socket.as_ref().and_then(|socket| socket.config_type.as_ref());
    if let Some(core::transport_socket::ConfigType::TypedConfig(config)) = socket
        && type_name(config) == tls::UPSTREAM
    {
        let context = open::<sockets::UpstreamTlsContext>(config)?.message;
        match super::listener::uri_prefixes(context.common_tls_context.as_ref()) {
            Ok(of) => prefixes = of,
            Err(what) => {
                subject.refuse(format!("{what} at endpoints is not supported: none is trusted"));
                // Begins no identity.
                prefixes = vec!["\n".to_owned()];
            }
        }
    }
    let options = options(from, subject)?;
    Ok(Originate {
        port: port.unwrap_or(15008),
        prefixes,
        connect_timeout: from.connect_timeout.as_ref().map(duration),
        idle_timeout: options.idle_timeout,
    })
}

#[allow(deprecated)]
fn served(from: &cluster::Cluster, subject: &mut Subject<'_>) -> Result<Served, Undecodable> {
    let cluster::Cluster {
        transport_socket_matches,
        transport_socket_matcher,
        name,
        alt_stat_name: _,
        stats_matcher: _,
        eds_cluster_config,
        connect_timeout,
        per_connection_buffer_limit_bytes: _,
        per_connection_buffer_high_watermark_timeout: _,
        lb_policy,
        load_assignment,
        health_checks,
        max_requests_per_connection: _,
        circuit_breakers,
        upstream_http_protocol_options: _,
        common_http_protocol_options: _,
        http_protocol_options: _,
        http2_protocol_options: _,
        typed_extension_protocol_options: _,
        dns_refresh_rate: _,
        dns_jitter: _,
        dns_failure_refresh_rate: _,
        respect_dns_ttl: _,
        dns_lookup_family: _,
        dns_resolvers: _,
        use_tcp_for_dns_lookups: _,
        dns_resolution_config: _,
        typed_dns_resolver_config: _,
        wait_for_warm_on_init: _,
        outlier_detection,
        cleanup_interval: _,
        upstream_bind_config,
        lb_subset_config,
        common_lb_config,
        transport_socket,
        metadata,
        protocol_selection: _,
        upstream_connection_options,
        close_connections_on_host_health_failure: _,
        ignore_health_on_host_removal: _,
        filters,
        load_balancing_policy,
        lrs_server: _,
        lrs_report_endpoint_metrics: _,
        track_timeout_budgets: _,
        upstream_config,
        track_cluster_stats: _,
        preconnect_policy: _,
        connection_pool_per_downstream_connection,
        queuing_policies: _,
        cluster_discovery_type,
        lb_config,
    } = from;
    subject.refuse_if(transport_socket_matcher.is_some(), "a tree of transport sockets");
    subject.refuse_if(lb_subset_config.is_some(), "a choice of endpoints by metadata");
    subject.refuse_if(upstream_config.is_some(), "an upstream extension");
    subject
        .refuse_if(*connection_pool_per_downstream_connection, "a pool of its own for each client");
    subject.degrade_if(outlier_detection.is_some(), "outlier detection");
    subject.degrade_if(!health_checks.is_empty(), "active health checking");
    subject.degrade_if(upstream_bind_config.is_some(), "a source address");
    subject.degrade_if(
        upstream_connection_options.as_ref().is_some_and(|options| options.tcp_keepalive.is_some()),
        "TCP keepalive",
    );
    for filter in filters {
        let content = filter.typed_config.as_ref().map(Content::of).transpose()?;
        match content {
            Some(Content::Structured(kind)) if kind == METADATA_EXCHANGE => {}
            // Only telemetry reads what it finds.
            Some(Content::Structured(kind)) if kind == PEER_METADATA => {
                subject.degrade(
                    "metadata of the peer in the answer to CONNECT (`baggage`) is not honoured",
                );
            }
            _ => subject
                .refuse(format!("upstream network filter `{}` is not supported", filter.name)),
        }
    }
    let options = options(from, subject)?;
    let by_locality = common(common_lb_config.as_ref(), subject);
    let lb = balancing(*lb_policy, lb_config.as_ref(), load_balancing_policy.is_some(), subject);
    let (socket, matches) = {
        let socket = tls::socket(transport_socket.as_ref(), options.auto_sni, subject)?;
        let mut matches = Vec::with_capacity(transport_socket_matches.len());
        for of in transport_socket_matches {
            let labels = of.r#match.as_ref().map(wire::texts);
            match labels {
                Some(Some(labels)) => {
                    let socket =
                        tls::socket(of.transport_socket.as_ref(), options.auto_sni, subject)?;
                    matches.push(SocketMatch { labels, socket });
                }
                None => {
                    let socket =
                        tls::socket(of.transport_socket.as_ref(), options.auto_sni, subject)?;
                    matches.push(SocketMatch { labels: BTreeMap::new(), socket });
                }
                Some(None) => subject.refuse("a transport socket by labels that are no texts"),
            }
        }
        (socket, matches)
    };
    let tls = tls_of(&socket, &matches, subject);
    let named = name.clone();
    let found = discovery(
        Discovery {
            kind: cluster_discovery_type.as_ref(),
            eds: eds_cluster_config.as_ref(),
            name: &named,
            lb_config: lb_config.as_ref(),
            inline: load_assignment.as_ref(),
        },
        subject,
    )?;
    let panic =
        common_lb_config.as_ref().and_then(|common| common.healthy_panic_threshold.as_ref());
    // What goes where the client names has no endpoints that could be unhealthy.
    if found.original.is_none() && panic.is_none_or(|percent| percent.value != 0.0) {
        subject.degrade("endpoints that are not healthy never get requests (panic threshold)");
    }
    let service = metadata
        .as_ref()
        .and_then(|metadata| metadata.filter_metadata.get("istio"))
        .and_then(|istio| wire::first(istio, "services"));
    let of = |key: &str| {
        service.and_then(|service| wire::text(service, key)).unwrap_or_default().to_owned()
    };
    let positive = |time: Duration, other: Duration| if time.is_zero() { other } else { time };
    let timeout = connect_timeout.as_ref().map_or(CONNECT_TIMEOUT, duration);
    let spec = Cluster {
        name: name.clone(),
        service: of("host"),
        service_name: of("name"),
        service_namespace: of("namespace"),
        lb,
        protocol: options.protocol,
        connect_timeout: positive(timeout, CONNECT_TIMEOUT),
        tls,
        idle_timeout: positive(options.idle_timeout.unwrap_or(IDLE_TIMEOUT), NEVER),
        max_requests_per_connection: options.max_requests.filter(|most| *most > 0),
        circuit_breakers: breakers(circuit_breakers.as_ref(), subject),
        original_destination: found.original,
        broken: subject.notes.broken.clone(),
    };
    Ok(Served {
        spec: Arc::new(spec),
        service: found.service,
        inline: found.inline,
        matches,
        by_locality,
    })
}

/// The one TLS of a cluster. Endpoints that would be reached in another way are left out later.
fn tls_of(
    socket: &Socket,
    matches: &[SocketMatch],
    subject: &mut Subject<'_>,
) -> Option<UpstreamTls> {
    let usable = matches.iter().map(|of| &of.socket).find(|of| !matches!(of, Socket::Broken(_)));
    let chosen = if matches.is_empty() { Some(socket) } else { usable };
    match chosen {
        Some(Socket::Plain) => None,
        Some(Socket::Tls(tls)) => Some(tls.clone()),
        Some(Socket::Broken(what)) => {
            subject.refuse(format!("{what}: not supported"));
            None
        }
        None => {
            let what = matches.iter().find_map(|of| match &of.socket {
                Socket::Broken(what) => Some(what.as_str()),
                _ => None,
            });
            subject.refuse(format!("{}: not supported", what.unwrap_or("its transport sockets")));
            None
        }
    }
}

/// What says where a cluster's endpoints come from.
struct Discovery<'a> {
    kind: Option<&'a ClusterDiscoveryType>,
    eds: Option<&'a EdsClusterConfig>,
    name: &'a str,
    lb_config: Option<&'a LbConfig>,
    inline: Option<&'a pb::envoy::config::endpoint::v3::ClusterLoadAssignment>,
}

/// Where a cluster's endpoints come from.
#[derive(Default)]
struct Found {
    service: Option<String>,
    inline: Option<Assignment>,
    original: Option<OriginalDestination>,
}

fn discovery(from: Discovery<'_>, subject: &mut Subject<'_>) -> Result<Found, Undecodable> {
    let Discovery { kind, eds, name, lb_config, inline } = from;
    let mut found = Found::default();
    let kind = match kind {
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            let dns = custom.name.contains("dns") || custom.name.contains("dynamic_forward_proxy");
            let what = if dns { ", which needs DNS," } else { "" };
            subject.refuse(format!("the cluster type `{}`{what} is not supported", custom.name));
            return Ok(found);
        }
        Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(*kind),
        None => Ok(DiscoveryType::Static),
    };
    match kind {
        Ok(DiscoveryType::Eds) => {
            let over_ads = eds.and_then(|eds| eds.eds_config.as_ref()).is_some_and(|source| {
                use core::config_source::ConfigSourceSpecifier as Source;
                matches!(source.config_source_specifier, Some(Source::Ads(_) | Source::Self_(_)))
            });
            subject.refuse_if(!over_ads, "endpoints that do not come from istiod");
            let service = eds.map(|eds| eds.service_name.as_str()).filter(|name| !name.is_empty());
            found.service = Some(service.unwrap_or(name).to_owned());
        }
        Ok(DiscoveryType::Static) => {
            if let Some(assignment) = inline {
                if endpoint::leads_to_original_destination(assignment) {
                    let transport = EndpointTransport::Hbone;
                    found.original =
                        Some(OriginalDestination { transport, port: None, loopback: false });
                } else {
                    found.inline = Some(endpoint::assignment(assignment, name));
                }
            }
        }
        Ok(DiscoveryType::OriginalDst) => {
            found.original = Some(original_destination(lb_config, subject));
        }
        Ok(kind @ (DiscoveryType::StrictDns | DiscoveryType::LogicalDns)) => {
            subject.refuse(format!("endpoints by DNS ({}) are not supported", kind.as_str_name()));
        }
        Err(_) => subject.refuse("a cluster type that is not known is not supported"),
    }
    Ok(found)
}

fn original_destination(
    config: Option<&LbConfig>,
    subject: &mut Subject<'_>,
) -> OriginalDestination {
    let mut port = None;
    if let Some(LbConfig::OriginalDstLbConfig(config)) = config {
        let OriginalDstLbConfig {
            use_http_header,
            http_header_name: _,
            upstream_port_override,
            metadata_key,
        } = config;
        subject.refuse_if(*use_http_header, "a destination that a header names");
        subject.refuse_if(metadata_key.is_some(), "a destination that metadata names");
        if let Some(other) = upstream_port_override {
            port = u16::try_from(other.value).ok().filter(|port| *port != 0);
            subject.refuse_if(port.is_none(), "a port above 65535");
        }
    }
    OriginalDestination { transport: EndpointTransport::Plain, port, loopback: false }
}

/// Whether weights of localities count.
fn common(from: Option<&CommonLbConfig>, subject: &mut Subject<'_>) -> bool {
    use cluster::cluster::common_lb_config::LocalityConfigSpecifier as Localities;
    let Some(from) = from else { return false };
    subject.degrade_if(
        from.consistent_hashing_lb_config.is_some(),
        "a bound on the load of consistent hashing",
    );
    match &from.locality_config_specifier {
        Some(Localities::LocalityWeightedLbConfig(_)) => true,
        Some(Localities::ZoneAwareLbConfig(_)) => {
            subject.degrade("routing by the proxy's own zone is not honoured");
            false
        }
        None => false,
    }
}

fn balancing(
    policy: i32,
    config: Option<&LbConfig>,
    extension: bool,
    subject: &mut Subject<'_>,
) -> LbPolicy {
    subject.degrade_if(extension, "a load balancing extension");
    let warm_up = match config {
        Some(LbConfig::LeastRequestLbConfig(config)) => config.slow_start_config.is_some(),
        Some(LbConfig::RoundRobinLbConfig(config)) => config.slow_start_config.is_some(),
        _ => false,
    };
    subject.degrade_if(warm_up, "warm-up of new endpoints");
    match From::try_from(policy) {
        Ok(From::RoundRobin) => LbPolicy::RoundRobin,
        Ok(From::Random) => LbPolicy::Random,
        Ok(From::LeastRequest | From::ClusterProvided) => LbPolicy::LeastRequest,
        Ok(kind @ (From::RingHash | From::Maglev)) => {
            let name = kind.as_str_name();
            subject.degrade(format!("consistent hashing ({name}): least request is used instead"));
            LbPolicy::LeastRequest
        }
        Ok(From::LoadBalancingPolicyConfig) => LbPolicy::LeastRequest,
        Err(_) => {
            subject.degrade("a load balancer that is not known: least request is used instead");
            LbPolicy::LeastRequest
        }
    }
}

fn breakers(from: Option<&cluster::CircuitBreakers>, subject: &mut Subject<'_>) -> CircuitBreakers {
    let default = cluster::circuit_breakers::Thresholds::default();
    let thresholds = from.map(|from| from.thresholds.as_slice()).unwrap_or_default();
    // Those of the priority DEFAULT.
    let of = thresholds.iter().find(|of| of.priority == 0).unwrap_or(&default);
    subject.degrade_if(of.retry_budget.is_some(), "a budget of retries");
    subject.degrade_if(
        from.is_some_and(|from| !from.per_host_thresholds.is_empty()),
        "a bound for each endpoint",
    );
    // Envoy's defaults where nothing is said.
    let bound = |value: &Option<UInt32Value>, default: u32| match value {
        None => Some(default),
        Some(UInt32Value { value: UNBOUNDED }) => None,
        Some(UInt32Value { value }) => Some(*value),
    };
    CircuitBreakers {
        max_connections: bound(&of.max_connections, 1024),
        max_pending_requests: bound(&of.max_pending_requests, 1024),
        max_requests: bound(&of.max_requests, 1024),
        max_retries: match of.retry_budget {
            Some(_) => None,
            None => bound(&of.max_retries, 3),
        },
    }
}

/// What is said about HTTP to endpoints.
#[derive(Default)]
struct Options {
    protocol: ClusterProtocol,
    idle_timeout: Option<Duration>,
    max_requests: Option<u32>,
    auto_sni: bool,
}

#[allow(deprecated)]
fn options(from: &cluster::Cluster, subject: &mut Subject<'_>) -> Result<Options, Undecodable> {
    let mut options = Options {
        protocol: match &from.http2_protocol_options {
            Some(_) => ClusterProtocol::Http2,
            None if from.protocol_selection == 1 => ClusterProtocol::Downstream,
            None => ClusterProtocol::Http1,
        },
        idle_timeout: from
            .common_http_protocol_options
            .as_ref()
            .and_then(|common| common.idle_timeout.as_ref())
            .map(duration),
        max_requests: from.max_requests_per_connection.as_ref().map(|most| most.value),
        auto_sni: from
            .upstream_http_protocol_options
            .as_ref()
            .is_some_and(|options| options.auto_sni),
    };
    for (name, config) in &from.typed_extension_protocol_options {
        if type_name(config) != HTTP_OPTIONS {
            subject.degrade(format!("the protocol options `{name}` are not honoured"));
            continue;
        }
        let upstream::HttpProtocolOptions {
            common_http_protocol_options,
            upstream_http_protocol_options,
            http_filters,
            header_validation_config: _,
            outlier_detection: _,
            request_mirror_policies,
            hash_policy: _,
            retry_policy,
            upstream_protocol_options,
        } = open(config)?.message;
        subject.refuse_if(!http_filters.is_empty(), "HTTP filters of a cluster");
        subject.degrade_if(
            !request_mirror_policies.is_empty() || retry_policy.is_some(),
            "mirrors and retries of a cluster",
        );
        if let Some(common) = &common_http_protocol_options {
            options.idle_timeout = common.idle_timeout.as_ref().map(duration);
            options.max_requests =
                common.max_requests_per_connection.as_ref().map(|most| most.value);
            subject.degrade_if(
                common.max_connection_duration.is_some() || common.max_stream_duration.is_some(),
                "the longest life of a connection",
            );
        }
        options.auto_sni = upstream_http_protocol_options.is_some_and(|of| of.auto_sni);
        options.protocol = protocol(upstream_protocol_options.as_ref(), subject);
    }
    Ok(options)
}

fn protocol(from: Option<&UpstreamProtocolOptions>, subject: &mut Subject<'_>) -> ClusterProtocol {
    match from {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
            match &explicit.protocol_config {
                Some(ProtocolConfig::Http2ProtocolOptions(_)) => ClusterProtocol::Http2,
                Some(ProtocolConfig::HttpProtocolOptions(_)) | None => ClusterProtocol::Http1,
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                    subject.refuse("HTTP/3 to endpoints is not supported");
                    ClusterProtocol::Http1
                }
            }
        }
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(_)) => {
            ClusterProtocol::Downstream
        }
        Some(UpstreamProtocolOptions::AutoConfig(_)) => {
            subject.degrade("the version of HTTP by ALPN: HTTP/1.1 is used instead");
            ClusterProtocol::Http1
        }
        None => ClusterProtocol::Http1,
    }
}

//! HTTP chains. Envoy: `http_connection_manager.v3.HttpConnectionManager`.

use super::filters::{self, HttpFilters};
use super::observe;
use super::rbac::{self, Place};
use super::route::{self, Scope, Unread};
use super::shallow;
use super::unsupported::Subject;
use super::wire::{Undecodable, decode, duration, is_true, type_name};
use cairn_proto::envoy as pb;
use cairn_router::spec::{
    EscapedSlashes, ForwardedClientCert, HttpChain, HttpFilter, RouteTable, ServerMode,
};
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::core::v3::http_protocol_options::HeadersWithUnderscoresAction;
use pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier,
    ServerHeaderTransformation, UpgradeConfig,
};
use std::time::Duration;

/// Name of the message.
pub(super) const TYPE: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// Envoy's bound of silence on a stream, where none is said.
const STREAM_IDLE: Duration = Duration::from_secs(300);

/// What a connection manager comes to.
pub(super) struct Translated {
    pub chain: HttpChain,
    pub filters: HttpFilters,
}

/// Translates a connection manager inside a tunnel.
pub(super) fn chain(bytes: &[u8], subject: &mut Subject<'_>) -> Result<Translated, Undecodable> {
    let read = decode::<hcm::HttpConnectionManager>(TYPE, bytes)?;
    let unread = if read.whole { Unread::default() } else { unread(bytes, subject)? };
    let mut filters = filters::http(&read.message.http_filters, Place::Inner, subject)?;
    let routes = match &read.message.route_specifier {
        Some(RouteSpecifier::RouteConfig(table)) => {
            let stream_idle = match &read.message.stream_idle_timeout {
                None => Some(STREAM_IDLE),
                Some(idle) => Some(duration(idle)).filter(|idle| !idle.is_zero()),
            };
            let scope = Scope { filters: &filters.overridable, stream_idle, unread: &unread };
            route::table(table, &scope, subject)?
        }
        Some(RouteSpecifier::Rds(_) | RouteSpecifier::ScopedRoutes(_)) => {
            subject.refuse("routes that come by RDS are not supported");
            RouteTable::default()
        }
        None => {
            subject.refuse("a chain without routes is not supported");
            RouteTable::default()
        }
    };
    let mut chain = settings(&read.message, &filters.filters, subject);
    chain.filters = std::mem::take(&mut filters.filters);
    chain.suppress_envoy_headers = filters.suppress_envoy_headers;
    chain.routes = routes;
    chain.observe = observe::http(&read.message, filters.stats.as_ref(), subject)?;
    Ok(Translated { chain, filters })
}

/// What a chain looks like that answers 503.
pub(super) fn broken(reason: &str) -> HttpChain {
    HttpChain { broken: Some(reason.to_owned()), ..empty() }
}

fn empty() -> HttpChain {
    HttpChain {
        filters: Vec::new(),
        routes: RouteTable::default(),
        normalize_path: false,
        merge_slashes: false,
        accept_http_10: false,
        upgrades: Vec::new(),
        server: "istio-envoy".to_owned(),
        server_mode: ServerMode::Overwrite,
        forwarded_client_cert: ForwardedClientCert::Sanitize,
        generate_request_id: true,
        append_x_forwarded_port: false,
        suppress_envoy_headers: false,
        escaped_slashes: EscapedSlashes::KeepUnchanged,
        idle_timeout: None,
        observe: None,
        broken: None,
    }
}

/// Which fields were not read: those of routes are the routes' matter, those of filters the chain's.
fn unread(bytes: &[u8], subject: &mut Subject<'_>) -> Result<Unread, Undecodable> {
    let filters = shallow::parts(bytes, 5);
    let mut known = true;
    for filter in filters {
        known &= decode::<hcm::HttpFilter>("HttpFilter", filter)?.whole;
    }
    subject.refuse_if(!known, "an HTTP filter with fields that are not known");
    let tables = shallow::parts(bytes, 4);
    match tables.as_slice() {
        [table] => {
            let unread = Unread::find(table)?;
            if unread == Unread::default() && known {
                subject.degrade("settings of HTTP that are not known are left out");
            }
            Ok(unread)
        }
        _ => Ok(Unread::table()),
    }
}

/// Everything but filters and routes.
#[allow(deprecated)]
fn settings(
    from: &hcm::HttpConnectionManager,
    filters: &[HttpFilter],
    subject: &mut Subject<'_>,
) -> HttpChain {
    let hcm::HttpConnectionManager {
        codec_type,
        stat_prefix: _,
        http_filters: _,
        add_user_agent,
        tracing: _,
        common_http_protocol_options,
        http1_safe_max_connection_duration: _,
        http_protocol_options,
        http2_protocol_options: _,
        http3_protocol_options: _,
        server_name,
        server_header_transformation,
        scheme_header_transformation,
        max_request_headers_kb,
        stream_idle_timeout: _,
        stream_flush_timeout: _,
        request_timeout,
        request_headers_timeout,
        drain_timeout: _,
        drain_timeout_jitter: _,
        delayed_close_timeout: _,
        access_log: _,
        access_log_flush_interval: _,
        flush_access_log_on_new_request: _,
        access_log_options: _,
        use_remote_address,
        xff_num_trusted_hops,
        original_ip_detection_extensions,
        early_header_mutation_extensions,
        internal_address_config,
        skip_xff_append: _,
        via,
        generate_request_id,
        preserve_external_request_id: _,
        always_set_request_id_in_response,
        forward_client_cert_details,
        set_current_client_cert_details: _,
        forward_client_cert_matcher,
        proxy_100_continue: _,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6: _,
        upgrade_configs,
        normalize_path,
        merge_slashes,
        path_with_escaped_slashes_action,
        request_id_extension,
        local_reply_config,
        strip_matching_host_port,
        stream_error_on_invalid_http_message: _,
        path_normalization_options,
        strip_trailing_host_dot,
        proxy_status_config,
        typed_header_validation_config,
        append_x_forwarded_port,
        append_local_overload: _,
        add_proxy_protocol_connection_state: _,
        forward_proto_config,
        route_specifier: _,
        strip_port_mode,
    } = from;
    subject.degrade_if(*codec_type != CodecType::Auto as i32, "a fixed version of HTTP");
    subject.degrade_if(is_true(add_user_agent), "the header `user-agent`");
    subject.degrade_if(scheme_header_transformation.is_some(), "a change of `:scheme`");
    subject.degrade_if(max_request_headers_kb.is_some(), "a bound of its own on request headers");
    let bounded = [request_timeout, request_headers_timeout];
    subject.degrade_if(
        bounded.into_iter().flatten().any(|bound| !duration(bound).is_zero()),
        "a bound on how long a request may take to come",
    );
    subject.refuse_if(
        !early_header_mutation_extensions.is_empty(),
        "a change of headers before all filters",
    );
    subject.degrade_if(internal_address_config.is_some(), "the list of internal addresses");
    subject.degrade_if(!via.is_empty(), "the header `via`");
    subject.degrade_if(*always_set_request_id_in_response, "the request id on responses");
    subject.degrade_if(forward_client_cert_matcher.is_some(), "a condition on XFCC");
    subject.degrade_if(
        request_id_extension
            .as_ref()
            .and_then(|extension| extension.typed_config.as_ref())
            .is_some_and(|config| {
                type_name(config) != "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig"
            }),
        "another kind of request ids",
    );
    subject.degrade_if(local_reply_config.is_some(), "a change of local replies");
    subject.refuse_if(
        *strip_matching_host_port || strip_port_mode.is_some() || *strip_trailing_host_dot,
        "a change of the host before policies and routes",
    );
    subject.refuse_if(path_normalization_options.is_some(), "path transformations");
    subject.degrade_if(proxy_status_config.is_some(), "the header `proxy-status`");
    subject.refuse_if(typed_header_validation_config.is_some(), "a header validator");
    subject.degrade_if(forward_proto_config.is_some(), "a rule for `x-forwarded-proto`");
    let other_client = is_true(use_remote_address)
        || *xff_num_trusted_hops > 0
        || !original_ip_detection_extensions.is_empty();
    let by_client = filters.iter().any(|filter| match filter {
        HttpFilter::Rbac(rbac) => rbac::asks_for_remote_ip(rbac),
        HttpFilter::RequestHeaders(_) => false,
    });
    let what = "another rule for the client's address";
    subject.refuse_if(other_client && by_client, what);
    subject.degrade_if(other_client && !by_client, what);
    let idle_timeout = common(common_http_protocol_options.as_ref(), subject);
    let accept_http_10 = http1(http_protocol_options.as_ref(), subject);
    HttpChain {
        normalize_path: is_true(normalize_path),
        merge_slashes: *merge_slashes,
        accept_http_10,
        upgrades: upgrade_configs.iter().filter_map(|from| upgrade(from, subject)).collect(),
        // Envoy's own name, where none is given.
        server: if server_name.is_empty() { "envoy".to_owned() } else { server_name.clone() },
        server_mode: match ServerHeaderTransformation::try_from(*server_header_transformation) {
            Ok(ServerHeaderTransformation::AppendIfAbsent) => ServerMode::AppendIfAbsent,
            Ok(ServerHeaderTransformation::PassThrough) => ServerMode::PassThrough,
            _ => ServerMode::Overwrite,
        },
        // Envoy: a connection without TLS of its own, as inside a tunnel, knows only these two.
        forwarded_client_cert: match ForwardClientCertDetails::try_from(
            *forward_client_cert_details,
        ) {
            Ok(ForwardClientCertDetails::AlwaysForwardOnly) => {
                ForwardedClientCert::AlwaysForwardOnly
            }
            _ => ForwardedClientCert::Sanitize,
        },
        generate_request_id: generate_request_id.as_ref().is_none_or(|asked| asked.value),
        append_x_forwarded_port: *append_x_forwarded_port,
        escaped_slashes: match PathWithEscapedSlashesAction::try_from(
            *path_with_escaped_slashes_action,
        ) {
            Ok(
                PathWithEscapedSlashesAction::ImplementationSpecificDefault
                | PathWithEscapedSlashesAction::KeepUnchanged,
            ) => EscapedSlashes::KeepUnchanged,
            Ok(PathWithEscapedSlashesAction::UnescapeAndForward) => {
                EscapedSlashes::UnescapeAndForward
            }
            Ok(PathWithEscapedSlashesAction::UnescapeAndRedirect) => {
                EscapedSlashes::UnescapeAndRedirect
            }
            Ok(PathWithEscapedSlashesAction::RejectRequest) | Err(_) => {
                EscapedSlashes::RejectRequest
            }
        },
        idle_timeout,
        ..empty()
    }
}

/// The idle timeout of a connection.
fn common(from: Option<&core::HttpProtocolOptions>, subject: &mut Subject<'_>) -> Option<Duration> {
    let core::HttpProtocolOptions {
        idle_timeout,
        max_connection_duration,
        max_connection_duration_jitter: _,
        max_headers_count,
        max_response_headers_kb,
        max_stream_duration,
        headers_with_underscores_action,
        max_requests_per_connection,
    } = from?;
    subject.degrade_if(
        max_connection_duration.is_some() || max_requests_per_connection.is_some(),
        "the longest life of a client's connection",
    );
    subject.degrade_if(max_stream_duration.is_some(), "the longest life of a stream");
    subject.degrade_if(
        max_headers_count.is_some() || max_response_headers_kb.is_some(),
        "a bound of its own on headers",
    );
    subject.refuse_if(
        *headers_with_underscores_action != HeadersWithUnderscoresAction::Allow as i32,
        "a rule against headers with underscores",
    );
    idle_timeout.as_ref().map(duration).filter(|idle| !idle.is_zero())
}

/// Whether HTTP/1.0 is answered.
fn http1(from: Option<&core::Http1ProtocolOptions>, subject: &mut Subject<'_>) -> bool {
    let Some(from) = from else { return false };
    subject.degrade_if(from.header_key_format.is_some(), "the case of HTTP/1 header names");
    subject.degrade_if(
        !from.default_host_for_http_10.is_empty(),
        "a host for HTTP/1.0 requests without one",
    );
    subject.degrade_if(
        !from.ignore_http_11_upgrade.is_empty(),
        "the list of upgrades that are overlooked",
    );
    from.accept_http_10
}

/// An upgrade that passes, by its name.
fn upgrade(from: &UpgradeConfig, subject: &mut Subject<'_>) -> Option<String> {
    let UpgradeConfig { upgrade_type, filters, enabled } = from;
    if enabled.as_ref().is_some_and(|enabled| !enabled.value) {
        return None;
    }
    if !filters.is_empty() {
        subject.degrade(format!("the upgrade `{upgrade_type}` with filters of its own is refused"));
        return None;
    }
    Some(upgrade_type.clone())
}

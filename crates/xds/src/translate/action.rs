//! What routes do. Envoy: `config.route.v3.RouteAction`, `RedirectAction`, `DirectResponseAction`.
//!
//! Errors say what is not supported; the route then answers 503.

use super::headers;
use super::overrides::Filters;
use super::wire::{duration, percent};
use cairn_proto::envoy as pb;
use cairn_router::retry::{MAX_ATTEMPTS, MAX_HOST_SELECTION_ATTEMPTS, RetryOn};
use cairn_router::spec::{
    DirectResponse, Forward, HashPolicy, Mirror, Redirect, RegexRewrite, Retry, RetryBackoff,
    WeightedCluster,
};
use pb::envoy::config::core::v3::data_source::Specifier;
use pb::envoy::config::route::v3 as route;
use pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use pb::envoy::config::route::v3::route_action::hash_policy::PolicySpecifier;
use pb::envoy::config::route::v3::route_action::{
    ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier, RequestMirrorPolicy,
};
use pb::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use pb::envoy::config::route::v3::weighted_cluster::cluster_weight::HostRewriteSpecifier as WeightedRewrite;
use std::collections::BTreeSet;
use std::time::Duration;

/// Bodies of direct responses may be so long, in bytes (the router's bound).
const MAX_BODY: usize = 1 << 20;

/// The host predicate that is known.
const PREVIOUS_HOSTS: &str = "envoy.retry_host_predicates.previous_hosts";

/// What holds where a route says nothing.
pub(super) struct Defaults<'a> {
    pub retry: Option<&'a route::RetryPolicy>,
    pub mirrors: &'a [RequestMirrorPolicy],
    /// Neither side of a stream may be silent for so long; `None`: no bound.
    pub stream_idle: Option<Duration>,
}

/// Parts of a route that are done in another way.
type Degraded = BTreeSet<String>;

#[allow(deprecated)]
pub(super) fn forward(
    from: &route::RouteAction,
    defaults: &Defaults<'_>,
    filters: &Filters,
    degraded: &mut Degraded,
) -> Result<Forward, String> {
    let route::RouteAction {
        cluster_not_found_response_code,
        metadata_match,
        prefix_rewrite,
        regex_rewrite,
        path_rewrite_policy,
        path_rewrite,
        append_x_forwarded_host,
        timeout,
        idle_timeout,
        flush_timeout: _,
        early_data_policy: _,
        retry_policy,
        retry_policy_typed_config,
        request_mirror_policies,
        priority: _,
        rate_limits: _,
        include_vh_rate_limits: _,
        hash_policy,
        cors,
        max_grpc_timeout,
        grpc_timeout_offset,
        upgrade_configs,
        internal_redirect_policy,
        internal_redirect_action,
        max_internal_redirects: _,
        hedge_policy,
        max_stream_duration,
        cluster_specifier,
        host_rewrite_specifier,
    } = from;
    for (present, what) in [
        (metadata_match.is_some(), "a choice of endpoints by metadata"),
        (path_rewrite_policy.is_some(), "a path rewrite policy"),
        (!path_rewrite.is_empty(), "a path rewrite with operators"),
        (cors.is_some(), "CORS outside of filter settings"),
        (!upgrade_configs.is_empty(), "a route's own list of upgrades"),
    ] {
        if present {
            return Err(what.to_owned());
        }
    }
    for (present, what) in [
        (grpc_timeout_offset.is_some(), "the offset of gRPC timeouts"),
        (
            internal_redirect_policy.is_some() || *internal_redirect_action != 0,
            "internal redirects",
        ),
        (hedge_policy.is_some(), "hedging"),
        (retry_policy_typed_config.is_some(), "a retry extension"),
    ] {
        if present {
            degraded.insert(format!("{what} is not honoured"));
        }
    }
    let mut max_grpc_timeout = max_grpc_timeout.as_ref().map(duration);
    if let Some(most) = max_stream_duration {
        if let Some(header) = &most.grpc_timeout_header_max {
            max_grpc_timeout = Some(duration(header));
        }
        if most.max_stream_duration.is_some() {
            degraded.insert("the longest life of a stream is not honoured".to_owned());
        }
    }
    let (cluster, weighted_clusters) = match cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) if !name.is_empty() => {
            (Some(name.clone()), Vec::new())
        }
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            (None, self::weighted(weighted, filters, degraded)?)
        }
        Some(ClusterSpecifier::ClusterHeader(_)) => {
            return Err("a cluster that a header names".to_owned());
        }
        Some(ClusterSpecifier::ClusterSpecifierPlugin(name)) => {
            return Err(format!("the cluster plug-in `{name}`"));
        }
        Some(ClusterSpecifier::InlineClusterSpecifierPlugin(_)) => {
            return Err("a cluster plug-in".to_owned());
        }
        Some(ClusterSpecifier::Cluster(_)) | None => {
            return Err("a route without cluster".to_owned());
        }
    };
    let host_rewrite = match host_rewrite_specifier {
        None => None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => Some(host.clone()),
        Some(HostRewriteSpecifier::AutoHostRewrite(asked)) if !asked.value => None,
        Some(HostRewriteSpecifier::AutoHostRewrite(_)) => {
            return Err("the endpoint's host name as the request's host".to_owned());
        }
        Some(HostRewriteSpecifier::HostRewriteHeader(_)) => {
            return Err("a host that a header names".to_owned());
        }
        Some(HostRewriteSpecifier::HostRewritePathRegex(_)) => {
            return Err("a host made of the path".to_owned());
        }
        Some(HostRewriteSpecifier::HostRewrite(_)) => {
            return Err("a host rewrite with operators".to_owned());
        }
    }
    .filter(|host| !host.is_empty());
    let regex_rewrite = regex_rewrite.as_ref().map(|rewrite| RegexRewrite {
        pattern: rewrite.pattern.as_ref().map(|regex| regex.regex.clone()).unwrap_or_default(),
        substitution: rewrite.substitution.clone(),
    });
    let prefix_rewrite = (!prefix_rewrite.is_empty()).then(|| prefix_rewrite.clone());
    if prefix_rewrite.as_ref().is_some_and(|text| !is_path_text(text)) {
        return Err("a path with characters that no path can have".to_owned());
    }
    let mirrors = match request_mirror_policies.as_slice() {
        [] => defaults.mirrors,
        own => own,
    };
    let retry = retry_policy.as_ref().or(defaults.retry);
    let idle = match idle_timeout {
        Some(own) => Some(duration(own)).filter(|own| !own.is_zero()),
        None => defaults.stream_idle,
    };
    Ok(Forward {
        cluster,
        weighted_clusters,
        cluster_not_found_status: match ClusterNotFoundResponseCode::try_from(
            *cluster_not_found_response_code,
        ) {
            Ok(ClusterNotFoundResponseCode::NotFound) => Some(404),
            Ok(ClusterNotFoundResponseCode::InternalServerError) => Some(500),
            _ => None,
        },
        timeout: timeout.as_ref().map(duration),
        max_grpc_timeout,
        retry: retry.and_then(|policy| self::retry(policy, degraded)),
        prefix_rewrite,
        regex_rewrite,
        host_rewrite,
        append_x_forwarded_host: *append_x_forwarded_host,
        mirrors: mirrors.iter().map(mirror).collect::<Result<_, _>>()?,
        idle_timeout: idle,
        hash_policy: hash_policy.iter().filter_map(|policy| hash(policy, degraded)).collect(),
    })
}

fn weighted(
    from: &route::WeightedCluster,
    filters: &Filters,
    degraded: &mut Degraded,
) -> Result<Vec<WeightedCluster>, String> {
    if from.random_value_specifier.is_some() {
        degraded.insert("a split that does not go by chance goes by chance".to_owned());
    }
    let clusters = from
        .clusters
        .iter()
        .map(|cluster| weighted_cluster(cluster, filters))
        .collect::<Result<Vec<_>, _>>()?;
    match clusters.iter().any(|cluster| cluster.weight > 0) {
        true => Ok(clusters),
        false => Err("a split without any weight".to_owned()),
    }
}

fn weighted_cluster(from: &ClusterWeight, filters: &Filters) -> Result<WeightedCluster, String> {
    let ClusterWeight {
        name,
        cluster_header,
        weight,
        metadata_match,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        typed_per_filter_config,
        host_rewrite_specifier,
    } = from;
    if !cluster_header.is_empty() {
        return Err("a cluster that a header names".to_owned());
    }
    if metadata_match.is_some() {
        return Err("a choice of endpoints by metadata".to_owned());
    }
    if typed_per_filter_config.keys().any(|name| filters.names.contains(name)) {
        return Err("settings for filters by cluster".to_owned());
    }
    if name.is_empty() {
        return Err("a cluster without a name".to_owned());
    }
    Ok(WeightedCluster {
        name: name.clone(),
        weight: weight.as_ref().map_or(0, |weight| weight.value),
        request_headers: headers::ops(request_headers_to_add, request_headers_to_remove)?,
        response_headers: headers::ops(response_headers_to_add, response_headers_to_remove)?,
        host_rewrite: match host_rewrite_specifier {
            Some(WeightedRewrite::HostRewriteLiteral(host)) if !host.is_empty() => {
                Some(host.clone())
            }
            _ => None,
        },
    })
}

fn mirror(from: &RequestMirrorPolicy) -> Result<Mirror, String> {
    let RequestMirrorPolicy {
        cluster,
        cluster_header,
        runtime_fraction,
        trace_sampled: _,
        disable_shadow_host_suffix_append,
        request_headers_mutations,
        host_rewrite_literal,
    } = from;
    if !cluster_header.is_empty() || cluster.is_empty() {
        return Err("a mirror whose cluster a header names".to_owned());
    }
    if !request_headers_mutations.is_empty() || !host_rewrite_literal.is_empty() {
        return Err("a mirror with changes of its own".to_owned());
    }
    let share = runtime_fraction.as_ref().map(|fraction| {
        // Envoy: without a default nothing is copied.
        fraction.default_value.as_ref().map_or(0.0, percent)
    });
    Ok(Mirror {
        cluster: cluster.clone(),
        percent: share.unwrap_or(100.0),
        shadow_suffix: !disable_shadow_host_suffix_append,
    })
}

fn hash(from: &route::route_action::HashPolicy, degraded: &mut Degraded) -> Option<HashPolicy> {
    match from.policy_specifier.as_ref()? {
        PolicySpecifier::Header(header) => {
            if header.regex_rewrite.is_some() {
                degraded.insert("the part of a header that a hash is of".to_owned());
            }
            Some(HashPolicy::Header(header.header_name.clone()))
        }
        PolicySpecifier::Cookie(cookie) => Some(HashPolicy::Cookie {
            name: cookie.name.clone(),
            ttl: cookie.ttl.as_ref().map(duration),
            path: cookie.path.clone(),
        }),
        PolicySpecifier::ConnectionProperties(properties) => {
            properties.source_ip.then_some(HashPolicy::SourceIp)
        }
        PolicySpecifier::QueryParameter(parameter) => {
            Some(HashPolicy::QueryParameter(parameter.name.clone()))
        }
        PolicySpecifier::FilterState(state) => {
            degraded.insert(format!("a hash of the filter state `{}`", state.key));
            None
        }
    }
}

/// `None`: nothing is retried.
fn retry(from: &route::RetryPolicy, degraded: &mut Degraded) -> Option<Retry> {
    let route::RetryPolicy {
        retry_on,
        num_retries,
        per_try_timeout,
        per_try_idle_timeout,
        retry_priority,
        retry_host_predicate,
        retry_options_predicates,
        host_selection_retry_max_attempts,
        retriable_status_codes,
        retry_back_off,
        rate_limited_retry_back_off,
        retriable_headers,
        retriable_request_headers,
        refresh_cluster_on_retry: _,
    } = from;
    let mut degrade = |present: bool, what: &str| {
        if present {
            degraded.insert(format!("{what} is not honoured"));
        }
    };
    degrade(per_try_idle_timeout.is_some(), "the idle timeout of a try");
    degrade(retry_priority.is_some(), "the choice of another priority for retries");
    degrade(!retry_options_predicates.is_empty(), "a retry option");
    degrade(rate_limited_retry_back_off.is_some(), "the pause that a rate limit asks for");
    degrade(!retriable_headers.is_empty(), "the list of headers to retry on");
    if !retriable_request_headers.is_empty() {
        degraded.insert("only some requests may be retried: none is".to_owned());
        return None;
    }
    let mut on = Vec::new();
    for name in retry_on.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match RetryOn::parse(name) {
            Ok(_) => on.push(name.to_owned()),
            Err(_) => {
                degraded.insert(format!("the retry condition `{name}` is not known"));
            }
        }
    }
    let attempts = num_retries.as_ref().map_or(1, |most| most.value);
    if on.is_empty() || attempts == 0 {
        return None;
    }
    if attempts > MAX_ATTEMPTS {
        degraded.insert(format!("{attempts} retries are cut to {MAX_ATTEMPTS}"));
    }
    let avoid_previous_hosts =
        retry_host_predicate.iter().any(|predicate| predicate.name == PREVIOUS_HOSTS);
    if retry_host_predicate.iter().any(|predicate| predicate.name != PREVIOUS_HOSTS) {
        degraded.insert("a predicate of endpoints for retries is not honoured".to_owned());
    }
    let by_status = on.iter().any(|name| name == "retriable-status-codes");
    let codes = retriable_status_codes.iter().filter_map(|code| u16::try_from(*code).ok());
    let backoff = retry_back_off.as_ref();
    let base = backoff.and_then(|backoff| backoff.base_interval.as_ref()).map(duration);
    let base = base.filter(|base| !base.is_zero()).unwrap_or(RetryBackoff::default().base);
    let max = backoff.and_then(|backoff| backoff.max_interval.as_ref()).map(duration);
    // Envoy: 0 draws is one.
    let draws = u32::try_from(*host_selection_retry_max_attempts).unwrap_or(1);
    Some(Retry {
        on,
        attempts: attempts.min(MAX_ATTEMPTS),
        per_try_timeout: per_try_timeout.as_ref().map(duration),
        status_codes: codes.filter(|code| by_status && (100..=599).contains(code)).collect(),
        avoid_previous_hosts,
        host_selection_attempts: draws.clamp(1, MAX_HOST_SELECTION_ATTEMPTS),
        backoff: RetryBackoff { base, max: max.filter(|max| *max >= base) },
    })
}

pub(super) fn redirect(from: &route::RedirectAction) -> Result<Redirect, String> {
    let route::RedirectAction {
        host_redirect,
        port_redirect,
        response_code,
        strip_query,
        scheme_rewrite_specifier,
        path_rewrite_specifier,
    } = from;
    let given = |text: &String| (!text.is_empty()).then(|| text.clone());
    let scheme = match scheme_rewrite_specifier {
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".to_owned()),
        Some(SchemeRewriteSpecifier::HttpsRedirect(false)) | None => None,
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => given(scheme),
    };
    if let Some(scheme) = scheme.as_ref().filter(|scheme| *scheme != "http" && *scheme != "https") {
        return Err(format!("a redirect to the scheme `{scheme}`"));
    }
    let (path, prefix_rewrite) = match path_rewrite_specifier {
        // Envoy: literal, whatever it looks like.
        Some(PathRewriteSpecifier::PathRedirect(path)) => (given(path), None),
        Some(PathRewriteSpecifier::PrefixRewrite(text)) => (None, given(text)),
        Some(PathRewriteSpecifier::PathRewrite(text)) if !text.contains('%') => (given(text), None),
        Some(PathRewriteSpecifier::PathRewrite(_)) => {
            return Err("a redirect with operators".to_owned());
        }
        Some(PathRewriteSpecifier::RegexRewrite(_)) => {
            return Err("a redirect with a path pattern".to_owned());
        }
        None => (None, None),
    };
    if path.iter().chain(&prefix_rewrite).any(|text| !is_path_text(text)) {
        return Err("a path with characters that no path can have".to_owned());
    }
    let status = match RedirectResponseCode::try_from(*response_code) {
        Ok(RedirectResponseCode::MovedPermanently) => None,
        Ok(RedirectResponseCode::Found) => Some(302),
        Ok(RedirectResponseCode::SeeOther) => Some(303),
        Ok(RedirectResponseCode::TemporaryRedirect) => Some(307),
        Ok(RedirectResponseCode::PermanentRedirect) => Some(308),
        Err(_) => return Err(format!("a redirect with the code {response_code}")),
    };
    let port = u16::try_from(*port_redirect)
        .map_err(|_| format!("a redirect to the port {port_redirect}"))?;
    Ok(Redirect {
        scheme,
        host: given(host_redirect),
        port: (port != 0).then_some(port),
        path,
        prefix_rewrite,
        status,
        strip_query: *strip_query,
    })
}

pub(super) fn direct_response(
    from: &route::DirectResponseAction,
) -> Result<DirectResponse, String> {
    let route::DirectResponseAction { status, body, body_format } = from;
    if body_format.is_some() {
        return Err("a direct response with operators".to_owned());
    }
    let status = match u16::try_from(*status) {
        Ok(status @ 200..=599) => status,
        _ => return Err(format!("a direct response with the status {status}")),
    };
    let body = match body.as_ref().and_then(|body| body.specifier.as_ref()) {
        None => String::new(),
        Some(Specifier::InlineString(text)) => text.clone(),
        Some(Specifier::InlineBytes(bytes)) => std::str::from_utf8(bytes)
            .map_err(|_| "a direct response that is no UTF-8".to_owned())?
            .to_owned(),
        Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) => {
            return Err("a direct response from a file or the environment".to_owned());
        }
    };
    if body.len() > MAX_BODY {
        return Err(format!("a direct response of {} bytes", body.len()));
    }
    Ok(DirectResponse { status, body })
}

/// The router takes it for a path.
fn is_path_text(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

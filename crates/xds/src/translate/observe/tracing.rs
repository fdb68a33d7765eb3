//! Tracing. Envoy: `HttpConnectionManager.Tracing`.
//!
//! What cannot be honoured is left out and listed: requests pass all the same.

use super::Subject;
use super::Undecodable;
use super::host_and_path;
use super::pb::envoy::config::core::v3 as core;
use super::pb::envoy::config::trace::v3 as trace;
use super::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as hcm;
use super::pb::envoy::r#type::tracing::v3 as tags;
use super::pb::google::protobuf::Any;
use crate::translate::wire::{Read, duration, is_true, open, type_name};
use cairn_router::format::Format;
use cairn_router::request::HeaderKey;
use cairn_router::spec::{
    CustomTag, GrpcCollector, HttpCollector, Named, OpenTelemetry, OtlpCollector, TagValue,
    TraceProvider, Tracing, Zipkin,
};
use core::grpc_service::TargetSpecifier;
use core::http_uri::HttpUpstreamType;
use std::time::Duration;
use tags::custom_tag::{self, Type};
use trace::tracing::http::ConfigType;
use trace::zipkin_config::{CollectorEndpointVersion, TraceContextOption};

/// How `x-request-id` takes part in the decision. Envoy: `UuidRequestIdConfig`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestId {
    pub decides: bool,
    pub pack: bool,
}

impl Default for RequestId {
    fn default() -> Self {
        RequestId { decides: true, pack: true }
    }
}

/// How requests are traced.
pub(super) fn tracing(
    from: &hcm::Tracing,
    ids: RequestId,
    subject: &mut Subject<'_>,
) -> Result<Tracing, Undecodable> {
    let hcm::Tracing {
        client_sampling,
        random_sampling,
        overall_sampling,
        verbose,
        max_path_tag_length,
        custom_tags,
        provider,
        spawn_upstream_span,
        operation,
        upstream_operation,
        no_context_propagation,
    } = from;
    subject.degrade_if(
        !operation.is_empty() || !upstream_operation.is_empty(),
        "a text for the names of spans",
    );
    let percent = |percent: &Option<super::pb::envoy::r#type::v3::Percent>| {
        let value = percent.as_ref().map_or(100.0, |percent| percent.value);
        if value.is_nan() { 0.0 } else { value.clamp(0.0, 100.0) }
    };
    let provider = match provider {
        Some(from) => self::provider(from, subject)?,
        None => None,
    };
    Ok(Tracing {
        client_sampling: percent(client_sampling),
        random_sampling: percent(random_sampling),
        overall_sampling: percent(overall_sampling),
        by_request_id: ids.decides,
        pack_trace_reason: ids.pack,
        verbose: *verbose,
        max_path_tag_length: max_path_tag_length.as_ref().map_or(256, |length| length.value),
        spawn_upstream_span: is_true(spawn_upstream_span),
        no_context_propagation: *no_context_propagation,
        // Without a provider nobody sees them.
        custom_tags: match &provider {
            Some(_) => custom_tags.iter().filter_map(|from| tag(from, subject)).collect(),
            None => Vec::new(),
        },
        provider,
    })
}

/// A tag that can be had.
fn tag(from: &tags::CustomTag, subject: &mut Subject<'_>) -> Option<CustomTag> {
    let tags::CustomTag { tag, r#type } = from;
    let named =
        |name: &str, default: &str| Named { name: name.to_owned(), default: default.to_owned() };
    let value = match r#type.as_ref()? {
        Type::Literal(literal) => TagValue::Literal(literal.value.clone()),
        Type::Environment(from) => TagValue::Environment(named(&from.name, &from.default_value)),
        Type::RequestHeader(from) => {
            if let Err(reason) = HeaderKey::parse(&from.name) {
                subject.degrade(format!("the tag `{tag}` is left out: {reason}"));
                return None;
            }
            TagValue::RequestHeader(named(&from.name, &from.default_value))
        }
        Type::Value(text) => {
            for reason in Format::parse_for_log(text).1 {
                subject.degrade(format!("the tag `{tag}` is in part without a value: {reason}"));
            }
            TagValue::Format(text.clone())
        }
        Type::Metadata(from) => return metadata(tag, from, subject),
    };
    if tag.is_empty() {
        return None;
    }
    Some(CustomTag { tag: tag.clone(), value })
}

/// The results of policies that are tried out are the only metadata that istiod asks for. Nobody writes any, so there is
/// the default, or no tag, as at an Envoy where no such policy exists.
fn metadata(
    tag: &str,
    from: &custom_tag::Metadata,
    subject: &mut Subject<'_>,
) -> Option<CustomTag> {
    let custom_tag::Metadata { kind: _, metadata_key, default_value } = from;
    let namespace = metadata_key.as_ref().map_or("", |key| key.key.as_str());
    if namespace != "envoy.filters.http.rbac" {
        subject.degrade(format!(
            "the tag `{tag}` has its default: it is of the metadata `{namespace}`"
        ));
    }
    (!default_value.is_empty() && !tag.is_empty())
        .then(|| CustomTag { tag: tag.to_owned(), value: TagValue::Literal(default_value.clone()) })
}

fn provider(
    from: &trace::tracing::Http,
    subject: &mut Subject<'_>,
) -> Result<Option<TraceProvider>, Undecodable> {
    let trace::tracing::Http { name, config_type } = from;
    let Some(ConfigType::TypedConfig(config)) = config_type else {
        subject.degrade(format!("requests are not traced: the tracer `{name}` has no settings"));
        return Ok(None);
    };
    let made = match type_name(config) {
        "envoy.config.trace.v3.ZipkinConfig" => zipkin(config, subject)?.map(TraceProvider::Zipkin),
        "envoy.config.trace.v3.OpenTelemetryConfig" => {
            open_telemetry(config, subject)?.map(TraceProvider::OpenTelemetry)
        }
        _ => {
            subject
                .degrade(format!("requests are not traced: the tracer `{name}` is not supported"));
            return Ok(None);
        }
    };
    if made.is_none() {
        subject.degrade(format!("requests are not traced: the tracer `{name}` names no collector"));
    }
    Ok(made)
}

// `split_spans_for_request` is looked at to be listed.
#[allow(deprecated)]
fn zipkin(config: &Any, subject: &mut Subject<'_>) -> Result<Option<Zipkin>, Undecodable> {
    let Read { message, whole } = open::<trace::ZipkinConfig>(config)?;
    if !whole {
        subject.degrade("settings of the tracer that are not known are left out");
    }
    let trace::ZipkinConfig {
        collector_cluster,
        collector_endpoint,
        trace_id_128bit,
        shared_span_context,
        collector_endpoint_version,
        collector_hostname,
        split_spans_for_request,
        trace_context_option,
        collector_service,
        timestamp_trace_ids,
    } = message;
    subject.degrade_if(split_spans_for_request, "Zipkin's split of spans");
    subject.degrade_if(timestamp_trace_ids, "the time in ids of traces");
    subject.degrade_if(
        collector_endpoint_version == CollectorEndpointVersion::HttpProto as i32,
        "Zipkin's protobuf (JSON is sent)",
    );
    let collector = match &collector_service {
        None => (!collector_cluster.is_empty()).then(|| HttpCollector {
            cluster: collector_cluster,
            host: collector_hostname,
            path: absolute(&collector_endpoint),
            timeout: None,
            headers: Vec::new(),
        }),
        Some(service) => http(service, subject),
    };
    Ok(collector.map(|collector| Zipkin {
        collector,
        trace_id_128bit,
        shared_span_context: shared_span_context.as_ref().is_none_or(|shared| shared.value),
        w3c: trace_context_option == TraceContextOption::UseB3WithW3cPropagation as i32,
    }))
}

fn open_telemetry(
    config: &Any,
    subject: &mut Subject<'_>,
) -> Result<Option<OpenTelemetry>, Undecodable> {
    let Read { message, whole } = open::<trace::OpenTelemetryConfig>(config)?;
    if !whole {
        subject.degrade("settings of the tracer that are not known are left out");
    }
    let trace::OpenTelemetryConfig {
        grpc_service,
        http_service,
        exporter,
        service_name,
        resource_detectors,
        sampler,
        max_cache_size: _,
        set_telemetry_sdk_resource_attributes,
        set_service_name_resource_attribute,
        set_instrumentation_scope,
    } = message;
    subject.degrade_if(exporter.is_some(), "an exporter of its own");
    if let Some(sampler) = &sampler {
        subject.degrade_if(true, &format!("the sampler `{}`", sampler.name));
    }
    let without = [
        set_telemetry_sdk_resource_attributes,
        set_service_name_resource_attribute,
        set_instrumentation_scope,
    ];
    subject.degrade_if(
        without.iter().flatten().any(|set| !set.value),
        "a message without what sends it",
    );
    let mut environment = false;
    for detector in &resource_detectors {
        let kind = detector.typed_config.as_ref().map_or("", type_name);
        if kind.ends_with(".EnvironmentResourceDetectorConfig") {
            environment = true;
        } else {
            subject.degrade_if(true, &format!("the resource detector `{}`", detector.name));
        }
    }
    let collector = match (&grpc_service, &http_service) {
        (Some(service), _) => grpc(service, subject).map(OtlpCollector::Grpc),
        (None, Some(service)) => http(service, subject).map(OtlpCollector::Http),
        (None, None) => None,
    };
    Ok(collector.map(|collector| OpenTelemetry { collector, service_name, environment }))
}

/// A gRPC service of the mesh; `None`: it is no cluster.
pub(in crate::translate) fn grpc(
    from: &core::GrpcService,
    subject: &mut Subject<'_>,
) -> Option<GrpcCollector> {
    let core::GrpcService { timeout, initial_metadata, retry_policy: _, target_specifier } = from;
    let TargetSpecifier::EnvoyGrpc(envoy) = target_specifier.as_ref()? else {
        return None;
    };
    let headers = initial_metadata.iter().filter_map(|from| {
        if HeaderKey::parse(&from.key).is_err() || from.value.contains('%') {
            subject.degrade(format!("the metadata `{}` is not sent to the collector", from.key));
            return None;
        }
        Some((from.key.clone(), from.value.clone()))
    });
    let headers = headers.collect();
    (!envoy.cluster_name.is_empty()).then(|| GrpcCollector {
        cluster: envoy.cluster_name.clone(),
        authority: envoy.authority.clone(),
        timeout: timeout.as_ref().map(duration).filter(|timeout| *timeout > Duration::ZERO),
        headers,
    })
}

/// An HTTP service of the mesh; `None`: it is no cluster.
fn http(from: &core::HttpService, subject: &mut Subject<'_>) -> Option<HttpCollector> {
    let core::HttpService { http_uri, request_headers_to_add, formatters: _ } = from;
    let core::HttpUri { uri, timeout, http_upstream_type } = http_uri.as_ref()?;
    let HttpUpstreamType::Cluster(cluster) = http_upstream_type.as_ref()?;
    let (host, path) = host_and_path(uri);
    let headers = request_headers_to_add.iter().filter_map(|option| {
        let header = option.header.as_ref()?;
        if HeaderKey::parse(&header.key).is_err() || header.value.contains('%') {
            subject.degrade(format!("the header `{}` is not sent to the collector", header.key));
            return None;
        }
        Some((header.key.clone(), header.value.clone()))
    });
    let headers = headers.collect();
    (!cluster.is_empty()).then(|| HttpCollector {
        cluster: cluster.clone(),
        host: host.to_owned(),
        path: path.to_owned(),
        timeout: timeout.as_ref().map(duration).filter(|timeout| *timeout > Duration::ZERO),
        headers,
    })
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

/// How the connection manager's request ids take part.
pub(in crate::translate) fn request_id(
    config: Option<&Any>,
    subject: &mut Subject<'_>,
) -> Result<RequestId, Undecodable> {
    use super::pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
    let Some(config) = config else { return Ok(RequestId::default()) };
    if type_name(config) != "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig" {
        return Ok(RequestId::default());
    }
    let Read { message, whole } = open::<UuidRequestIdConfig>(config)?;
    if !whole {
        subject.degrade("settings of request ids that are not known are left out");
    }
    let UuidRequestIdConfig { pack_trace_reason, use_request_id_for_trace_sampling } = message;
    let unless_no = |said: &Option<_>| said.is_none() || is_true(said);
    Ok(RequestId {
        pack: unless_no(&pack_trace_reason),
        decides: unless_no(&use_request_id_for_trace_sampling),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_of_collectors() {
        for (uri, host, path) in [
            ("http://c.example:4318/v1/traces", "c.example:4318", "/v1/traces"),
            ("http://c.example", "c.example", "/"),
            ("https://c.example/a?b=c", "c.example", "/a?b=c"),
            ("/v1/traces", "", "/v1/traces"),
            ("v1", "v1", "/"),
            // As istiod writes it.
            ("c.shop.svc.cluster.local/v1/traces", "c.shop.svc.cluster.local", "/v1/traces"),
        ] {
            let (found, rest) = host_and_path(uri);
            assert_eq!((found, rest), (host, path), "{uri}");
        }
    }
}

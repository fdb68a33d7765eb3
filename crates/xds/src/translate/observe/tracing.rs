//! Tracing. Envoy: `HttpConnectionManager.Tracing`.
//!
//! What cannot be honoured is left out and listed: requests pass all the same.

use super::Subject;
use super::Undecodable;
use super::pb::envoy::config::core::v3 as core;
use super::pb::envoy::config::trace::v3 as trace;
use crate::translate::wire::{Read, decode, duration, is_true, open, type_name};
use cairn_proto::envoy::google::protobuf::Any;
use cairn_proto::tracing as pb;
use cairn_router::format::Format;
use cairn_router::request::HeaderKey;
use cairn_router::spec::{
    CustomTag, GrpcCollector, HttpCollector, Named, OpenTelemetry, OtlpCollector, TagValue,
    TraceProvider, Tracing, Zipkin,
};
use core::grpc_service::TargetSpecifier;
use core::http_uri::HttpUpstreamType;
use pb::custom_tag::{self, Type};
use std::time::Duration;

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

/// How requests are traced, from the bytes of the settings: they have fields that Envoy's published types do not have.
pub(super) fn tracing(
    bytes: &[u8],
    ids: RequestId,
    subject: &mut Subject<'_>,
) -> Result<Option<Tracing>, Undecodable> {
    let Read { message, whole } = decode::<pb::Tracing>("Tracing", bytes)?;
    if !whole {
        subject.degrade("settings of tracing that are not known are left out");
    }
    let pb::Tracing {
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
    } = message;
    subject.degrade_if(
        !operation.is_empty() || !upstream_operation.is_empty(),
        "a text for the names of spans",
    );
    let percent = |percent: &Option<pb::Percent>| {
        let value = percent.as_ref().map_or(100.0, |percent| percent.value);
        if value.is_nan() { 0.0 } else { value.clamp(0.0, 100.0) }
    };
    let provider = match &provider {
        Some(from) => self::provider(from, subject)?,
        None => None,
    };
    Ok(Some(Tracing {
        client_sampling: percent(&client_sampling),
        random_sampling: percent(&random_sampling),
        overall_sampling: percent(&overall_sampling),
        by_request_id: ids.decides,
        pack_trace_reason: ids.pack,
        verbose,
        max_path_tag_length: max_path_tag_length.unwrap_or(256),
        spawn_upstream_span: spawn_upstream_span.unwrap_or(false),
        no_context_propagation,
        // Without a provider nobody sees them.
        custom_tags: match &provider {
            Some(_) => custom_tags.iter().filter_map(|from| tag(from, subject)).collect(),
            None => Vec::new(),
        },
        provider,
    }))
}

/// A tag that can be had.
fn tag(from: &pb::CustomTag, subject: &mut Subject<'_>) -> Option<CustomTag> {
    let pb::CustomTag { tag, r#type } = from;
    let named = |from: &custom_tag::Named| Named {
        name: from.name.clone(),
        default: from.default_value.clone(),
    };
    let value = match r#type.as_ref()? {
        Type::Literal(literal) => TagValue::Literal(literal.value.clone()),
        Type::Environment(from) => TagValue::Environment(named(from)),
        Type::RequestHeader(from) => {
            if let Err(reason) = HeaderKey::parse(&from.name) {
                subject.degrade(format!("the tag `{tag}` is left out: {reason}"));
                return None;
            }
            TagValue::RequestHeader(named(from))
        }
        Type::Value(text) => {
            if let Err(reason) = Format::parse(text) {
                subject.degrade(format!("the tag `{tag}` is left out: {reason}"));
                return None;
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
    from: &pb::Provider,
    subject: &mut Subject<'_>,
) -> Result<Option<TraceProvider>, Undecodable> {
    let pb::Provider { name, typed_config } = from;
    let Some(config) = typed_config else {
        subject.degrade(format!("requests are not traced: the tracer `{name}` has no settings"));
        return Ok(None);
    };
    let config = Any { type_url: config.type_url.clone(), value: config.value.clone() };
    let made = match type_name(&config) {
        "envoy.config.trace.v3.ZipkinConfig" => {
            zipkin(&config, subject)?.map(TraceProvider::Zipkin)
        }
        "envoy.config.trace.v3.OpenTelemetryConfig" => {
            open_telemetry(&config, subject)?.map(TraceProvider::OpenTelemetry)
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

fn zipkin(config: &Any, subject: &mut Subject<'_>) -> Result<Option<Zipkin>, Undecodable> {
    let Read { message, whole } = open::<pb::ZipkinConfig>(config)?;
    if !whole {
        subject.degrade("settings of the tracer that are not known are left out");
    }
    let pb::ZipkinConfig {
        collector_cluster,
        collector_endpoint,
        trace_id_128bit,
        shared_span_context,
        collector_endpoint_version,
        collector_hostname,
        split_spans_for_request,
        trace_context_option,
        collector_service,
    } = message;
    subject.degrade_if(split_spans_for_request, "Zipkin's split of spans");
    subject.degrade_if(collector_endpoint_version == 2, "Zipkin's protobuf (JSON is sent)");
    let collector = if collector_service.is_empty() {
        (!collector_cluster.is_empty()).then(|| HttpCollector {
            cluster: collector_cluster,
            host: collector_hostname,
            path: absolute(&collector_endpoint),
            timeout: None,
            headers: Vec::new(),
        })
    } else {
        let Read { message, whole } =
            decode::<core::HttpService>("HttpService", &collector_service)?;
        if !whole {
            subject.degrade("settings of the collector that are not known are left out");
        }
        http(&message, subject)
    };
    Ok(collector.map(|collector| Zipkin {
        collector,
        trace_id_128bit,
        shared_span_context: shared_span_context.unwrap_or(true),
        w3c: trace_context_option == 1,
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
        set_service_name_resource_attribute: _,
        set_instrumentation_scope: _,
    } = message;
    subject.degrade_if(exporter.is_some(), "an exporter of its own");
    if let Some(sampler) = &sampler {
        subject.degrade_if(true, &format!("the sampler `{}`", sampler.name));
    }
    subject.degrade_if(
        set_telemetry_sdk_resource_attributes.as_ref().is_some_and(|set| !set.value),
        "a resource without what sends it",
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
    let (host, path) = parts(uri);
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
        path: absolute(path),
        timeout: timeout.as_ref().map(duration).filter(|timeout| *timeout > Duration::ZERO),
        headers,
    })
}

/// Host with port, and path, of a URI that may be a path alone.
fn parts(uri: &str) -> (&str, &str) {
    match uri.split_once("://") {
        None => ("", uri),
        Some((_, rest)) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
    }
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
            ("v1", "", "/v1"),
        ] {
            let (found, rest) = parts(uri);
            assert_eq!((found, absolute(rest).as_str()), (host, path), "{uri}");
        }
    }
}

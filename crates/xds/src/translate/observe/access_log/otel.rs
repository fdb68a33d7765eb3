//! Records for a collector. Envoy: `OpenTelemetryAccessLogConfig`.

use super::super::host_and_path;
use super::Subject;
use super::format::checked;
use crate::translate::wire::duration;
use cairn_proto::envoy as pb;
use cairn_router::spec::{LogTarget, LogValue, OtelLog};
use pb::envoy::config::core::v3::grpc_service::TargetSpecifier;
use pb::envoy::config::core::v3::http_uri::HttpUpstreamType;
use pb::envoy::config::core::v3::{GrpcService, HttpService};
use pb::envoy::extensions::access_loggers::open_telemetry::v3::OpenTelemetryAccessLogConfig;
use pb::opentelemetry::proto::common::v1::{AnyValue, KeyValueList, any_value};
use std::collections::BTreeMap;

/// Deepest value.
const MAX_DEPTH: usize = 16;

/// `None`: it cannot be sent anywhere.
#[allow(deprecated)]
pub(super) fn log(
    from: OpenTelemetryAccessLogConfig,
    subject: &mut Subject<'_>,
) -> Option<OtelLog> {
    let OpenTelemetryAccessLogConfig {
        common_config,
        http_service,
        grpc_service,
        disable_builtin_labels,
        resource_attributes,
        resource_detectors,
        body,
        attributes,
        stat_prefix: _,
        formatters: _,
        log_name,
        buffer_flush_interval: _,
        buffer_size_bytes: _,
        filter_state_objects_to_log: _,
        custom_tags,
    } = from;
    let common = common_config.unwrap_or_default();
    subject.degrade_if(!resource_detectors.is_empty(), "a detector of the access log's resource");
    subject.degrade_if(!custom_tags.is_empty(), "custom tags of an access log");
    let log_name = if log_name.is_empty() { common.log_name } else { log_name };
    let mut resource = Vec::new();
    if !disable_builtin_labels {
        resource.push(("log_name".to_owned(), log_name));
    }
    for pair in resource_attributes.map(|list| list.values).unwrap_or_default() {
        match pair.value.and_then(|value| value.value) {
            Some(any_value::Value::StringValue(text)) => resource.push((pair.key, text)),
            _ => subject
                .degrade("an attribute of the access log's resource that is no text is left out"),
        }
    }
    let target = match (http_service, grpc_service.or(common.grpc_service)) {
        (Some(http), _) => over_http(http, subject),
        (None, Some(grpc)) => over_grpc(grpc),
        (None, None) => None,
    };
    let Some(target) = target else {
        subject.degrade("an access log for a collector without a cluster is not sent");
        return None;
    };
    Some(OtelLog {
        target: LogTarget { resource, ..target },
        body: body.and_then(|body| value(body, subject, 0)),
        attributes: fields(attributes.unwrap_or_default(), subject, 0),
    })
}

fn over_grpc(from: GrpcService) -> Option<LogTarget> {
    let Some(TargetSpecifier::EnvoyGrpc(envoy)) = from.target_specifier else { return None };
    let metadata = from.initial_metadata.into_iter();
    Some(LogTarget {
        cluster: envoy.cluster_name,
        http_path: None,
        authority: envoy.authority,
        timeout: from.timeout.as_ref().map(duration),
        headers: metadata.map(|header| (header.key, header.value)).collect(),
        resource: Vec::new(),
    })
}

fn over_http(from: HttpService, subject: &mut Subject<'_>) -> Option<LogTarget> {
    let HttpService { http_uri, request_headers_to_add, formatters: _ } = from;
    let uri = http_uri?;
    let HttpUpstreamType::Cluster(cluster) = uri.http_upstream_type?;
    let (authority, path) = host_and_path(&uri.uri);
    let mut headers = Vec::new();
    for header in request_headers_to_add.into_iter().filter_map(|option| option.header) {
        subject.degrade_if(header.value.contains('%'), "an operator in a collector's header");
        headers.push((header.key, header.value));
    }
    Some(LogTarget {
        cluster,
        http_path: Some(path.to_owned()),
        authority: authority.to_owned(),
        timeout: uri.timeout.as_ref().map(duration),
        headers,
        resource: Vec::new(),
    })
}

fn fields(
    from: KeyValueList,
    subject: &mut Subject<'_>,
    depth: usize,
) -> BTreeMap<String, LogValue> {
    let mut fields = BTreeMap::new();
    for pair in from.values {
        if let Some(value) = pair.value.and_then(|from| value(from, subject, depth + 1)) {
            fields.insert(pair.key, value);
        }
    }
    fields
}

fn value(from: AnyValue, subject: &mut Subject<'_>, depth: usize) -> Option<LogValue> {
    if depth > MAX_DEPTH {
        subject.degrade("an access log with too many values is sent in part");
        return None;
    }
    Some(match from.value? {
        any_value::Value::StringValue(text) => LogValue::Text(checked(text, subject)),
        any_value::Value::BoolValue(yes) => LogValue::Bool(yes),
        any_value::Value::IntValue(number) => LogValue::Number(number as f64),
        any_value::Value::DoubleValue(number) => LogValue::Number(number),
        any_value::Value::ArrayValue(list) => {
            let values = list.values.into_iter();
            LogValue::List(values.filter_map(|from| value(from, subject, depth + 1)).collect())
        }
        any_value::Value::KvlistValue(list) => LogValue::Map(fields(list, subject, depth + 1)),
        _ => {
            subject.degrade("a value of an access log that is no text, number or list is left out");
            return None;
        }
    })
}

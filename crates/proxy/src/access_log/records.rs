//! Records for collectors of OpenTelemetry.

use cairn_router::format::Facts;
use cairn_router::observe::{Field, OtelLog};
use cairn_router::spec;
use cairn_telemetry::access_log::{
    LogQueue, LogRecord, LogTarget, LogTransport, LogValue, OtelLogs,
};
use std::sync::Arc;
use std::time::SystemTime;

/// Puts a record into the collector's queue, which is kept beside the log.
pub(super) fn push(log: &OtelLog, facts: &Facts<'_>, mesh: &str, queues: &OtelLogs) {
    let queue: &Arc<LogQueue> = log.state.get_or_init(|| queues.queue(&target(mesh, &log.target)));
    let attributes = log.attributes(facts).into_iter();
    let _full_queues_count = queue.push(LogRecord {
        time: facts.context.start_time.unwrap_or_else(SystemTime::now),
        body: log.body(facts).map(value),
        attributes: attributes.map(|(name, field)| (name, value(field))).collect(),
        trace_id: facts.context.trace_id.and_then(hexadecimal),
        span_id: facts.context.span_id.and_then(hexadecimal),
    });
}

fn target(mesh: &str, from: &spec::LogTarget) -> LogTarget {
    let spec::LogTarget { cluster, http_path, authority, timeout, headers, resource } = from;
    LogTarget {
        mesh: mesh.to_owned(),
        cluster: cluster.clone(),
        transport: match http_path {
            Some(path) => LogTransport::Http(path.clone()),
            None => LogTransport::Grpc,
        },
        authority: authority.clone(),
        timeout: *timeout,
        headers: headers.clone(),
        resource: resource.clone(),
    }
}

fn value(from: Field) -> LogValue {
    match from {
        Field::Text(text) => LogValue::Text(text),
        Field::Bool(yes) => LogValue::Bool(yes),
        Field::Number(number) if number.fract() == 0.0 && number.abs() < 9e15 => {
            LogValue::Int(number as i64)
        }
        Field::Number(number) => LogValue::Double(number),
        Field::List(list) => LogValue::List(list.into_iter().map(value).collect()),
        Field::Map(fields) => {
            LogValue::Map(fields.into_iter().map(|(name, field)| (name, value(field))).collect())
        }
    }
}

/// `None`: not so many digits.
fn hexadecimal<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    if text.len() != 2 * BYTES || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; BYTES];
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * place..2 * place + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        assert_eq!(hexadecimal("00f067aa0ba902b7"), Some([0, 240, 103, 170, 11, 169, 2, 183]));
        assert_eq!(hexadecimal::<8>("00f067aa0ba902b"), None);
        assert_eq!(hexadecimal::<8>("00f067aa0ba902bx"), None);
    }
}

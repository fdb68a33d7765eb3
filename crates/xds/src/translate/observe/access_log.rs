//! Access logs.
//!
//! A log never keeps a chain from being served: what cannot be honoured is listed, and the log writes `-`
//! in its place, writes nothing, or is left out.

mod filter;
mod format;
mod otel;

use super::Subject;
use super::Undecodable;
use super::pb::envoy::config::accesslog::v3 as accesslog;
use super::pb::envoy::extensions::access_loggers as loggers;
use crate::translate::wire::{decode, open, type_name};
use cairn_router::spec::{AccessLog, LogFormat, LogSink};
use prost::Message;
use std::sync::Arc;

const FILE: &str = "envoy.extensions.access_loggers.file.v3.FileAccessLog";
const STDOUT: &str = "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog";
const STDERR: &str = "envoy.extensions.access_loggers.stream.v3.StderrAccessLog";
const OTEL: &str = "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig";
/// Most logs of one chain.
const MAX_LOGS: usize = 16;

/// The access logs of a listener, and nothing else of it.
#[derive(Clone, PartialEq, Message)]
struct ListenerLogs {
    #[prost(message, repeated, tag = "22")]
    access_log: Vec<accesslog::AccessLog>,
}

/// Those of a listener itself.
pub(crate) fn of_listener(
    listener: &[u8],
    subject: &mut Subject<'_>,
) -> Result<Vec<AccessLog>, Undecodable> {
    let logs = decode::<ListenerLogs>("envoy.config.listener.v3.Listener", listener)?.message;
    all(&logs.access_log, subject)
}

/// Those that can be written.
pub(crate) fn all(
    from: &[accesslog::AccessLog],
    subject: &mut Subject<'_>,
) -> Result<Vec<AccessLog>, Undecodable> {
    let mut logs = Vec::new();
    for log in from.iter().take(MAX_LOGS) {
        let accesslog::AccessLog { name, filter, config_type } = log;
        let Some(accesslog::access_log::ConfigType::TypedConfig(config)) = config_type else {
            subject.degrade(format!("the access log `{name}` has no settings and is not written"));
            continue;
        };
        let to = match type_name(config) {
            FILE => {
                let file = open::<loggers::file::v3::FileAccessLog>(config)?.message;
                Some(in_file(file, subject))
            }
            STDOUT => {
                use loggers::stream::v3::stdout_access_log::AccessLogFormat::LogFormat;
                let log = open::<loggers::stream::v3::StdoutAccessLog>(config)?.message;
                let format = log.access_log_format.map(|LogFormat(format)| format);
                Some(LogSink::Stdout(format::or_default(format, subject)))
            }
            STDERR => {
                use loggers::stream::v3::stderr_access_log::AccessLogFormat::LogFormat;
                let log = open::<loggers::stream::v3::StderrAccessLog>(config)?.message;
                let format = log.access_log_format.map(|LogFormat(format)| format);
                Some(LogSink::Stderr(format::or_default(format, subject)))
            }
            OTEL => {
                let log =
                    open::<loggers::open_telemetry::v3::OpenTelemetryAccessLogConfig>(config)?;
                otel::log(log.message, subject).map(|log| LogSink::Otel(Arc::new(log)))
            }
            other => {
                subject.degrade(format!("an access log of type `{other}` is not written"));
                None
            }
        };
        let Some(to) = to else { continue };
        let filter = match filter {
            Some(filter) => filter::filter(filter, subject)?,
            None => None,
        };
        logs.push(AccessLog { filter, to });
    }
    subject.degrade_if(from.len() > MAX_LOGS, &format!("more than {MAX_LOGS} access logs"));
    Ok(logs)
}

#[allow(deprecated)]
fn in_file(from: loggers::file::v3::FileAccessLog, subject: &mut Subject<'_>) -> LogSink {
    use loggers::file::v3::file_access_log::AccessLogFormat;
    let loggers::file::v3::FileAccessLog { path, access_log_format } = from;
    let format: LogFormat = match access_log_format {
        Some(AccessLogFormat::LogFormat(format)) => format::or_default(Some(format), subject),
        Some(AccessLogFormat::Format(text)) if !text.is_empty() => format::text(text, subject),
        Some(AccessLogFormat::JsonFormat(json) | AccessLogFormat::TypedJsonFormat(json)) => {
            format::json(json, subject)
        }
        Some(AccessLogFormat::Format(_)) | None => format::or_default(None, subject),
    };
    match path.as_str() {
        "/dev/stdout" => LogSink::Stdout(format),
        "/dev/stderr" => LogSink::Stderr(format),
        other => {
            subject.degrade(format!(
                "the access log in `{other}` is written to standard output: no files are written"
            ));
            LogSink::Stdout(format)
        }
    }
}

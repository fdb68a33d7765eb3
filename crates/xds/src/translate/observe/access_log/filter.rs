//! Which requests and connections are logged. Envoy: `AccessLogFilter`.
//!
//! What is not understood logs nothing: a filter is there because somebody does not want all lines.

use super::{Subject, Undecodable};
use crate::translate::headers;
use crate::translate::wire::{open, type_name};
use cairn_proto::envoy as pb;
use cairn_router::cel::Expression;
use cairn_router::spec::{Comparison, ComparisonOp, LogFilter};
use pb::envoy::config::accesslog::v3 as accesslog;
use pb::envoy::data::accesslog::v3::AccessLogType;
use pb::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use pb::envoy::r#type::v3::fractional_percent::DenominatorType;

const CEL: &str = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter";

/// `None`: everything is logged.
pub(super) fn filter(
    from: &accesslog::AccessLogFilter,
    subject: &mut Subject<'_>,
) -> Result<Option<LogFilter>, Undecodable> {
    use accesslog::access_log_filter::FilterSpecifier as From;
    let mut never = |what: &str| {
        subject.degrade(format!("an access log with {what} writes nothing"));
        Ok(Some(LogFilter::Never))
    };
    let Some(from) = &from.filter_specifier else { return Ok(None) };
    Ok(Some(match from {
        From::StatusCodeFilter(from) => match comparison(from.comparison.as_ref()) {
            Some(comparison) => LogFilter::StatusCode(comparison),
            None => return never("a comparison that is not known"),
        },
        From::DurationFilter(from) => match comparison(from.comparison.as_ref()) {
            Some(comparison) => LogFilter::Duration(comparison),
            None => return never("a comparison that is not known"),
        },
        // There are no health checks here: all requests are logged.
        From::NotHealthCheckFilter(_) => return Ok(None),
        From::TraceableFilter(_) => return never("a filter for traced requests"),
        From::RuntimeFilter(from) => {
            let Some(share) = &from.percent_sampled else {
                return never("a filter by a runtime key");
            };
            let of = match DenominatorType::try_from(share.denominator) {
                Ok(DenominatorType::Hundred) => 100.0,
                Ok(DenominatorType::TenThousand) => 10_000.0,
                Ok(DenominatorType::Million) => 1_000_000.0,
                Err(_) => return never("a share that is not known"),
            };
            let percent = (f64::from(share.numerator) / of * 100.0).min(100.0);
            LogFilter::Sampled { percent }
        }
        From::AndFilter(from) => LogFilter::And(every(&from.filters, subject)?),
        From::OrFilter(from) => {
            let mut any = Vec::new();
            for one in &from.filters {
                match filter(one, subject)? {
                    Some(one) => any.push(one),
                    None => return Ok(None),
                }
            }
            LogFilter::Or(any)
        }
        From::HeaderFilter(from) => match from.header.as_ref().map(headers::header) {
            Some(Ok(header)) => LogFilter::Header(header),
            Some(Err(what)) => return never(&what),
            None => return never("a filter by no header"),
        },
        From::ResponseFlagFilter(from) => LogFilter::ResponseFlags(from.flags.clone()),
        From::GrpcStatusFilter(from) => LogFilter::GrpcStatus {
            statuses: from
                .statuses
                .iter()
                .filter_map(|status| u32::try_from(*status).ok())
                .collect(),
            exclude: from.exclude,
        },
        From::ExtensionFilter(from) => {
            let Some(accesslog::extension_filter::ConfigType::TypedConfig(config)) =
                &from.config_type
            else {
                return never("a filter without settings");
            };
            if type_name(config) != CEL {
                return never(&format!("the filter `{}`", type_name(config)));
            }
            let expression = open::<ExpressionFilter>(config)?.message.expression;
            match Expression::compile(&expression) {
                Ok(compiled) => {
                    for name in compiled.unknown() {
                        subject.degrade(format!(
                            "`{name}` has never a value in an access log's filter"
                        ));
                    }
                    LogFilter::Expression(expression)
                }
                Err(error) => return never(&format!("an expression that {error}")),
            }
        }
        From::MetadataFilter(_) => return never("a filter by metadata"),
        From::LogTypeFilter(from) => {
            let name =
                |kind: &i32| Some(AccessLogType::try_from(*kind).ok()?.as_str_name().to_owned());
            LogFilter::LogType {
                types: from.types.iter().filter_map(name).collect(),
                exclude: from.exclude,
            }
        }
    }))
}

fn every(
    from: &[accesslog::AccessLogFilter],
    subject: &mut Subject<'_>,
) -> Result<Vec<LogFilter>, Undecodable> {
    let mut all = Vec::new();
    for one in from {
        all.extend(filter(one, subject)?);
    }
    Ok(all)
}

/// Runtime keys have no other value than their default.
fn comparison(from: Option<&accesslog::ComparisonFilter>) -> Option<Comparison> {
    use accesslog::comparison_filter::Op;
    let from = from?;
    let op = match Op::try_from(from.op).ok()? {
        Op::Eq => ComparisonOp::Eq,
        Op::Ge => ComparisonOp::Ge,
        Op::Le => ComparisonOp::Le,
        Op::Ne => ComparisonOp::Ne,
    };
    Some(Comparison { op, value: from.value.as_ref()?.default_value })
}

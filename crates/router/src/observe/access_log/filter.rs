//! Which requests and connections are logged.

use crate::cel::Expression;
use crate::error::Context;
use crate::format::Facts;
use crate::matching::HeaderMatcher;
use crate::request::RequestView;
use crate::share::Share;
use crate::spec::{self, ComparisonOp, LogFilter};

#[derive(Debug)]
pub(super) enum Filter {
    Expression(Expression),
    StatusCode(spec::Comparison),
    Duration(spec::Comparison),
    ResponseFlags(Box<[Box<str>]>),
    GrpcStatus { statuses: Box<[u32]>, exclude: bool },
    Header(HeaderMatcher),
    Sampled(Share),
    LogType { types: Box<[Box<str>]>, exclude: bool },
    And(Vec<Filter>),
    Or(Vec<Filter>),
    Never,
}

impl Filter {
    /// A filter that cannot be understood logs nothing; it does not break the chain.
    pub(super) fn compile(from: &LogFilter, at: &mut Context) -> Filter {
        let boxed = |texts: &[String]| texts.iter().map(|text| text.as_str().into()).collect();
        match from {
            LogFilter::Expression(text) => match Expression::compile(text) {
                Ok(expression) => Filter::Expression(expression),
                Err(error) => {
                    at.warn(format!("nothing is logged: the expression {error}"));
                    Filter::Never
                }
            },
            LogFilter::StatusCode(comparison) => Filter::StatusCode(*comparison),
            LogFilter::Duration(comparison) => Filter::Duration(*comparison),
            LogFilter::ResponseFlags(flags) => Filter::ResponseFlags(boxed(flags)),
            LogFilter::GrpcStatus { statuses, exclude } => {
                Filter::GrpcStatus { statuses: statuses.as_slice().into(), exclude: *exclude }
            }
            LogFilter::Header(header) => {
                or_never(at, |at| HeaderMatcher::compile(header, at).map(Filter::Header))
            }
            LogFilter::Sampled { percent } => {
                or_never(at, |at| Share::compile(*percent, at).map(Filter::Sampled))
            }
            LogFilter::LogType { types, exclude } => {
                Filter::LogType { types: boxed(types), exclude: *exclude }
            }
            LogFilter::And(all) => Filter::And(each(all, at)),
            LogFilter::Or(any) => Filter::Or(each(any, at)),
            LogFilter::Never => Filter::Never,
        }
    }

    pub(super) fn matches(&self, facts: &Facts<'_>, request: Option<&RequestView<'_>>) -> bool {
        let known = facts.context;
        match self {
            Filter::Expression(expression) => expression.is_true(facts),
            Filter::StatusCode(comparison) => {
                holds(*comparison, u64::from(known.response_code.unwrap_or_default()))
            }
            Filter::Duration(comparison) => {
                let millis = known.duration.unwrap_or_default().as_millis();
                holds(*comparison, u64::try_from(millis).unwrap_or(u64::MAX))
            }
            Filter::ResponseFlags(wanted) => {
                let mut flags = known.response_flags.unwrap_or("-").split(',');
                match wanted.is_empty() {
                    true => flags.any(|flag| !flag.is_empty() && flag != "-"),
                    false => flags.any(|flag| wanted.iter().any(|wanted| **wanted == *flag)),
                }
            }
            Filter::GrpcStatus { statuses, exclude } => {
                let status = known
                    .grpc_status
                    .unwrap_or_else(|| of_http(known.response_code.unwrap_or_default()));
                statuses.contains(&status) != *exclude
            }
            Filter::Header(header) => request.is_some_and(|request| header.matches(request)),
            Filter::Sampled(share) => share.applies(rand::random()),
            Filter::LogType { types, exclude } => {
                let log_type = known.access_log_type.unwrap_or_default();
                types.iter().any(|wanted| **wanted == *log_type) != *exclude
            }
            Filter::And(all) => all.iter().all(|filter| filter.matches(facts, request)),
            Filter::Or(any) => any.iter().any(|filter| filter.matches(facts, request)),
            Filter::Never => false,
        }
    }
}

fn each(filters: &[LogFilter], at: &mut Context) -> Vec<Filter> {
    filters.iter().map(|filter| Filter::compile(filter, at)).collect()
}

fn or_never(at: &mut Context, compile: impl FnOnce(&mut Context) -> Option<Filter>) -> Filter {
    let mut apart = Context::new();
    compile(&mut apart).unwrap_or_else(|| {
        let reason = apart.reason_since(0).unwrap_or_default();
        at.warn(format!("nothing is logged: {reason}"));
        Filter::Never
    })
}

fn holds(comparison: spec::Comparison, number: u64) -> bool {
    let value = u64::from(comparison.value);
    match comparison.op {
        ComparisonOp::Eq => number == value,
        ComparisonOp::Ne => number != value,
        ComparisonOp::Ge => number >= value,
        ComparisonOp::Le => number <= value,
    }
}

/// The gRPC status for an HTTP status (gRPC: "HTTP to gRPC Status Code Mapping").
fn of_http(status: u16) -> u32 {
    match status {
        200 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

//! Access logs: what is written, where to, and of which requests and connections.

use crate::spec::HeaderMatch;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// One access log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessLog {
    /// Which requests and connections; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<LogFilter>,
    /// What is written where.
    pub to: LogSink,
}

/// What is written where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogSink {
    /// Lines to the process's standard output.
    Stdout(LogFormat),
    /// Lines to the process's standard error.
    Stderr(LogFormat),
    /// Records to a collector of OpenTelemetry.
    Otel(Arc<OtelLog>),
}

/// How a line is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogFormat {
    /// What stands in it.
    pub line: Line,
    /// What has no value leaves nothing behind: in texts no `-`, in JSON no name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub omit_empty: bool,
}

/// What stands in a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// A text with `%OPERATORS%`; nothing is added, so it ends with a line feed.
    Text(String),
    /// A JSON object in one line; its names are sorted.
    Json(BTreeMap<String, LogValue>),
}

/// A value of a structured log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LogValue {
    /// `null`
    Null,
    /// A truth value as it is.
    Bool(bool),
    /// A number as it is.
    Number(f64),
    /// A text with `%OPERATORS%`; one operator alone keeps its type.
    Text(String),
    /// Values in order.
    List(Vec<LogValue>),
    /// Values by name.
    Map(BTreeMap<String, LogValue>),
}

/// Records for a collector. Envoy: `OpenTelemetryAccessLogConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtelLog {
    /// Where they go.
    pub target: LogTarget,
    /// The record's body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<LogValue>,
    /// The record's attributes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, LogValue>,
}

/// A collector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogTarget {
    /// Name of the cluster that leads to it.
    pub cluster: String,
    /// Path of a POST; absent: gRPC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_path: Option<String>,
    /// `:authority`; empty: the cluster's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub authority: String,
    /// Of one request.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "crate::spec::duration::optional"
    )]
    pub timeout: Option<Duration>,
    /// Headers or gRPC metadata of every request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
    /// Attributes of the resource.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resource: Vec<(String, String)>,
}

/// Which requests and connections are logged. Envoy: `AccessLogFilter`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFilter {
    /// Where a CEL expression is true; one that ends in an error is not.
    Expression(String),
    /// By the status of the reply; 0 if there was none.
    StatusCode(Comparison),
    /// By milliseconds from start to end.
    Duration(Comparison),
    /// By the response flags: one of these short codes; empty: any flag.
    ResponseFlags(Vec<String>),
    /// By the gRPC status; a request without one counts by its HTTP status (Envoy).
    GrpcStatus {
        /// Numbers.
        statuses: Vec<u32>,
        /// All others.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        exclude: bool,
    },
    /// By a header of the request.
    Header(HeaderMatch),
    /// A share.
    Sampled {
        /// In percent of the requests, 0 to 100.
        percent: f64,
    },
    /// By the kind of log, such as `DownstreamEnd`.
    LogType {
        /// Kinds.
        types: Vec<String>,
        /// All others.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        exclude: bool,
    },
    /// All of them.
    And(Vec<LogFilter>),
    /// One of them.
    Or(Vec<LogFilter>),
    /// Nothing is logged: what was asked for is not understood.
    Never,
}

/// Compares a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// How.
    pub op: ComparisonOp,
    /// With what.
    pub value: u32,
}

/// How numbers are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComparisonOp {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// At least.
    Ge,
    /// At most.
    Le,
}

/// What is logged of tunnels, apart from what happens inside of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TunnelLogs {
    /// Of CONNECTs that are refused. Envoy: the access log of `connect_terminate`'s HTTP connection manager.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub connects: Vec<AccessLog>,
    /// Of tunnels whose target nobody has. Envoy: the access log of the listener `main_internal`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unmatched: Vec<AccessLog>,
    /// Of tunnels to endpoints that do not come about. Envoy: the access log of `connect_originate`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub originated: Vec<AccessLog>,
}

impl TunnelLogs {
    /// Nothing is logged.
    pub fn is_empty(&self) -> bool {
        self.connects.is_empty() && self.unmatched.is_empty() && self.originated.is_empty()
    }
}

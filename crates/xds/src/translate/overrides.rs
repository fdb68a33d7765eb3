//! What routes say to filters: `typed_per_filter_config`.
//!
//! Only faults and CORS have settings of their own here. Settings for a filter that the chain does not have
//! are without effect in Envoy, too; those for any other filter make the route fail closed.

use super::headers;
use super::wire::{Undecodable, duration, open, percent, type_name};
use cairn_proto::envoy as pb;
use cairn_router::spec::{Cors, Fault, FaultAbort, FaultDelay};
use pb::envoy::config::core::v3::RuntimeFractionalPercent;
use pb::envoy::config::route::v3::FilterConfig;
use pb::envoy::extensions::filters::common::fault::v3::FaultDelay as Delay;
use pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use pb::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use pb::envoy::extensions::filters::http::fault::v3::{FaultAbort as Abort, HttpFault};
use pb::google::protobuf::Any;
use std::collections::{BTreeSet, HashMap};

const HTTP_FAULT: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";
const CORS_POLICY: &str = "envoy.extensions.filters.http.cors.v3.CorsPolicy";

/// Filters of a chain that take settings from routes, by their names in the chain.
#[derive(Debug, Clone, Default)]
pub(super) struct Filters {
    /// All names of the chain's filters, the disabled ones too.
    pub names: BTreeSet<String>,
    /// Names of fault filters, which inject `fault` unless a route says otherwise.
    pub faults: BTreeSet<String>,
    pub fault: Option<Fault>,
    /// Names of CORS filters.
    pub cors: BTreeSet<String>,
}

/// What applies to one route.
#[derive(Debug, Clone, Default)]
pub(super) struct Overrides {
    pub fault: Option<Fault>,
    pub cors: Option<Cors>,
}

/// Why a setting is not honoured, or why it cannot be read.
pub(super) enum Problem {
    Unsupported(String),
    Undecodable(Undecodable),
}

impl From<Undecodable> for Problem {
    fn from(undecodable: Undecodable) -> Self {
        Problem::Undecodable(undecodable)
    }
}

impl From<String> for Problem {
    fn from(what: String) -> Self {
        Problem::Unsupported(what)
    }
}

impl Filters {
    /// What holds where nothing else is said.
    pub(super) fn base(&self) -> Overrides {
        Overrides { fault: self.fault.clone(), cors: None }
    }

    /// `under` with the settings of one level more specific.
    pub(super) fn apply(
        &self,
        settings: &HashMap<String, Any>,
        under: &Overrides,
    ) -> Result<Overrides, Problem> {
        let mut result = under.clone();
        let known = settings.iter().filter(|(name, _)| self.names.contains(*name));
        for (name, setting) in known {
            let unwrapped;
            let (setting, disabled) = match type_name(setting) {
                "envoy.config.route.v3.FilterConfig" => {
                    let FilterConfig { config, is_optional: _, disabled } = open(setting)?.message;
                    unwrapped = config;
                    (unwrapped.as_ref(), disabled)
                }
                _ => (Some(setting), false),
            };
            let kind = setting.map(type_name);
            match kind {
                _ if self.faults.contains(name) && disabled => result.fault = None,
                _ if self.cors.contains(name) && disabled => result.cors = None,
                Some(HTTP_FAULT) if self.faults.contains(name) => {
                    result.fault = setting.map(fault).transpose()?.flatten();
                }
                Some(CORS_POLICY) if self.cors.contains(name) => {
                    result.cors = setting.map(cors).transpose()?.flatten();
                }
                _ => {
                    return Err(Problem::Unsupported(format!(
                        "settings of its own for the filter `{name}`"
                    )));
                }
            }
        }
        Ok(result)
    }
}

/// Faults; `None`: none is injected.
pub(super) fn fault(config: &Any) -> Result<Option<Fault>, Problem> {
    let read = open::<HttpFault>(config)?;
    if !read.whole {
        return Err("a fault with fields that are not known".to_owned().into());
    }
    let HttpFault { delay, abort, ref upstream_cluster, ref headers, ref downstream_nodes, .. } =
        read.message;
    let conditional =
        !upstream_cluster.is_empty() || !headers.is_empty() || !downstream_nodes.is_empty();
    if conditional || read.message.response_rate_limit.is_some() {
        return Err("a fault for some requests only, or a rate".to_owned().into());
    }
    let delay = delay.as_ref().map(fault_delay).transpose()?.flatten();
    let abort = abort.as_ref().map(fault_abort).transpose()?.flatten();
    Ok((delay.is_some() || abort.is_some()).then_some(Fault { delay, abort }))
}

fn fault_delay(delay: &Delay) -> Result<Option<FaultDelay>, String> {
    let Delay { percentage, fault_delay_secifier } = delay;
    let percent = percentage.as_ref().map_or(0.0, percent);
    match fault_delay_secifier {
        Some(FaultDelaySecifier::FixedDelay(fixed)) => {
            let fixed = duration(fixed);
            Ok((percent > 0.0 && !fixed.is_zero()).then_some(FaultDelay { fixed, percent }))
        }
        Some(FaultDelaySecifier::HeaderDelay(_)) => Err("a delay that a header names".to_owned()),
        None => Ok(None),
    }
}

fn fault_abort(abort: &Abort) -> Result<Option<FaultAbort>, String> {
    let Abort { percentage, response_body, error_type } = abort;
    if !response_body.is_empty() {
        return Err("an abort with a body of its own".to_owned());
    }
    let percent = percentage.as_ref().map_or(0.0, percent);
    let (http_status, grpc_status) = match error_type {
        Some(ErrorType::HttpStatus(status)) => match u16::try_from(*status) {
            Ok(status @ 200..=599) => (Some(status), None),
            _ => return Err(format!("an abort with the status {status}")),
        },
        Some(ErrorType::GrpcStatus(status @ 0..=16)) => (None, Some(*status)),
        Some(ErrorType::GrpcStatus(status)) => {
            return Err(format!("an abort with the gRPC status {status}"));
        }
        Some(ErrorType::HeaderAbort(_)) => {
            return Err("an abort that a header names".to_owned());
        }
        None => return Ok(None),
    };
    Ok((percent > 0.0).then_some(FaultAbort { http_status, grpc_status, percent }))
}

/// CORS; `None`: it is off.
fn cors(config: &Any) -> Result<Option<Cors>, Problem> {
    let read = open::<CorsPolicy>(config)?;
    if !read.whole {
        return Err("CORS with fields that are not known".to_owned().into());
    }
    let CorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        filter_enabled,
        shadow_enabled: _,
        allow_private_network_access: _,
        forward_not_matching_preflights,
    } = read.message;
    let share =
        |fraction: RuntimeFractionalPercent| fraction.default_value.as_ref().map_or(0.0, percent);
    match filter_enabled.map_or(100.0, share) {
        0.0 => return Ok(None),
        share if share < 100.0 => {
            return Err("CORS for a share of the requests".to_owned().into());
        }
        _ => {}
    }
    let origins = allow_origin_string_match.iter().map(headers::exact_case);
    Ok(Some(Cors {
        allow_origins: origins.collect::<Result<_, _>>()?,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials: allow_credentials.is_some_and(|asked| asked.value),
        forward_not_matching_preflights: forward_not_matching_preflights.map(|asked| asked.value),
    }))
}

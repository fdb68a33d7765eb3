//! Delays and aborts of some requests. Envoy: `filters.http.fault`.

use crate::error::Context;
use crate::share::Share;
use crate::spec;
use http::StatusCode;
use std::time::Duration;

/// What is done to some requests of a route. The delay comes first; both are drawn for themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// A pause.
    pub delay: Option<Delay>,
    /// An answer instead of the endpoint's.
    pub abort: Option<Abort>,
}

/// A pause before the request goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delay {
    /// More than 0.
    pub fixed: Duration,
    /// Of the requests.
    pub share: Share,
}

/// An answer instead of the endpoint's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abort {
    /// What is answered.
    pub answer: AbortAnswer,
    /// Of the requests.
    pub share: Share,
}

/// The status of an abort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortAnswer {
    /// 200 to 599; gRPC gets the status that goes with it.
    Http(StatusCode),
    /// 0 to 16; what is not gRPC gets a 200 (Envoy).
    Grpc(u32),
}

impl Fault {
    /// Checks and compiles; `Some(None)`: nothing is ever done.
    pub(crate) fn compile(fault: &spec::Fault, at: &mut Context) -> Option<Option<Fault>> {
        let spec::Fault { delay, abort } = fault;
        let delay = match delay {
            Some(delay) => at.field("delay", |at| Delay::compile(delay, at))?,
            None => None,
        };
        let abort = match abort {
            Some(abort) => Some(at.field("abort", |at| Abort::compile(abort, at))?),
            None => None,
        };
        Some(Some(Fault { delay, abort }).filter(|_| delay.is_some() || abort.is_some()))
    }
}

impl Delay {
    /// `Some(None)`: it lasts no time.
    fn compile(delay: &spec::FaultDelay, at: &mut Context) -> Option<Option<Delay>> {
        let spec::FaultDelay { fixed, percent } = delay;
        let share = Share::compile(*percent, at)?;
        Some(Some(Delay { fixed: *fixed, share }).filter(|delay| !delay.fixed.is_zero()))
    }
}

impl Abort {
    fn compile(abort: &spec::FaultAbort, at: &mut Context) -> Option<Abort> {
        let spec::FaultAbort { http_status, grpc_status, percent } = abort;
        let share = Share::compile(*percent, at);
        let answer = match (http_status, grpc_status) {
            (Some(code), None) => at.field("http_status", |at| match StatusCode::from_u16(*code) {
                Ok(status) if (200..600).contains(code) => Some(AbortAnswer::Http(status)),
                _ => at.reject(format!("{code} is not in 200 to 599")),
            }),
            (None, Some(code @ 0..=16)) => Some(AbortAnswer::Grpc(*code)),
            (None, Some(code)) => {
                at.field("grpc_status", |at| at.reject(format!("{code} is not in 0 to 16")))
            }
            _ => at.reject("needs exactly one of `http_status` and `grpc_status`"),
        };
        Some(Abort { answer: answer?, share: share? })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn abort(http_status: Option<u16>, grpc_status: Option<u32>, percent: f64) -> spec::FaultAbort {
        spec::FaultAbort { http_status, grpc_status, percent }
    }

    fn compile(fault: &spec::Fault) -> Result<Option<Fault>, Vec<String>> {
        let mut at = Context::new();
        let fault = Fault::compile(fault, &mut at);
        fault.ok_or_else(|| at.into_errors().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn shares_and_statuses() {
        let delay = spec::FaultDelay { fixed: Duration::from_secs(2), percent: 0.5 };
        let spec = spec::Fault { delay: Some(delay), abort: Some(abort(Some(418), None, 100.0)) };
        let fault = compile(&spec).unwrap().unwrap();
        let (delay, abort_all) = (fault.delay.unwrap(), fault.abort.unwrap());
        assert_eq!(delay.fixed, Duration::from_secs(2));
        assert!(delay.share.applies(4_999) && !delay.share.applies(5_000));
        assert!(abort_all.share.applies(u64::MAX));
        assert_eq!(abort_all.answer, AbortAnswer::Http(StatusCode::IM_A_TEAPOT));
        let grpc = spec::Fault { delay: None, abort: Some(abort(None, Some(14), 0.0)) };
        let grpc = compile(&grpc).unwrap().unwrap().abort.unwrap();
        assert_eq!(grpc.answer, AbortAnswer::Grpc(14));
        assert!(!grpc.share.applies(0));
    }

    #[test]
    fn nothing_is_none() {
        let delay = spec::FaultDelay { fixed: Duration::ZERO, percent: 100.0 };
        let spec = spec::Fault { delay: Some(delay), abort: None };
        assert_eq!(compile(&spec), Ok(None));
        assert_eq!(compile(&spec::Fault::default()), Ok(None));
    }

    #[test]
    fn errors() {
        for (abort, error) in [
            (abort(None, None, 1.0), "abort: needs exactly one of"),
            (abort(Some(200), Some(0), 1.0), "abort: needs exactly one of"),
            (abort(Some(199), None, 1.0), "abort.http_status: 199 is not in 200 to 599"),
            (abort(Some(600), None, 1.0), "abort.http_status: 600 is not in 200 to 599"),
            (abort(None, Some(17), 1.0), "abort.grpc_status: 17 is not in 0 to 16"),
            (abort(Some(500), None, 101.0), "abort.percent: 101 is not in 0 to 100"),
        ] {
            let spec = spec::Fault { delay: None, abort: Some(abort) };
            let errors = compile(&spec).unwrap_err();
            assert!(errors[0].starts_with(error), "{errors:?}");
        }
        let delay = spec::FaultDelay { fixed: Duration::from_secs(1), percent: f64::NAN };
        let spec = spec::Fault { delay: Some(delay), abort: None };
        assert_eq!(compile(&spec).unwrap_err(), ["delay.percent: NaN is not in 0 to 100"]);
    }
}

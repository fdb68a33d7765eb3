//! When and how often a request is tried again. Envoy: `RetryPolicy`, `router/retry_state_impl.cc`.
//!
//! Nothing here knows how many tries were made, nor whether the request can be sent again: that is
//! the caller's.

use crate::error::Context;
use crate::spec;
use std::fmt;
use std::time::Duration;

/// Retries that a route may ask for.
pub const MAX_ATTEMPTS: u32 = 16;
/// Draws for an endpoint that was not tried.
pub const MAX_HOST_SELECTION_ATTEMPTS: u32 = 32;
/// Shortest pause (Envoy rounds shorter ones up).
const MIN_BACKOFF: Duration = Duration::from_millis(1);

/// A set of conditions.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct RetryOn(u32);

/// When and how often a request is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Conditions.
    pub on: RetryOn,
    /// Retries after the first try, 0 to [`MAX_ATTEMPTS`].
    pub attempts: u32,
    /// Bound of each try, up to the response's head; `None`: none of its own.
    pub per_try_timeout: Option<Duration>,
    /// For [`RetryOn::STATUS_CODES`].
    pub status_codes: Vec<u16>,
    /// Endpoints that were tried are avoided.
    pub avoid_previous_hosts: bool,
    /// 1 to [`MAX_HOST_SELECTION_ATTEMPTS`]; see [`Cluster::pick`](crate::cluster::Cluster::pick).
    pub host_selection_attempts: u32,
    /// First step of the pause, at least 1 ms.
    pub backoff_base: Duration,
    /// Longest pause, at least the base.
    pub backoff_max: Duration,
}

impl RetryOn {
    /// `5xx`: any 5xx, and everything that would become one: reset, no connection, timeout of a try.
    pub const SERVER_ERROR: RetryOn = RetryOn(1);
    /// `gateway-error`: 502, 503, 504, and what would become one.
    pub const GATEWAY_ERROR: RetryOn = RetryOn(1 << 1);
    /// `reset`: no answer at all: reset, no connection, timeout of a try.
    pub const RESET: RetryOn = RetryOn(1 << 2);
    /// `reset-before-request`: a reset before the request's head was sent.
    pub const RESET_BEFORE_REQUEST: RetryOn = RetryOn(1 << 3);
    /// `connect-failure`: no connection. A CONNECT that the endpoint's ztunnel refuses is one too.
    pub const CONNECT_FAILURE: RetryOn = RetryOn(1 << 4);
    /// `envoy-ratelimited`: the response has `x-envoy-ratelimited`.
    pub const RATE_LIMITED: RetryOn = RetryOn(1 << 5);
    /// `retriable-4xx`: 409.
    pub const RETRIABLE_4XX: RetryOn = RetryOn(1 << 6);
    /// `refused-stream`: reset with `REFUSED_STREAM`.
    pub const REFUSED_STREAM: RetryOn = RetryOn(1 << 7);
    /// `retriable-status-codes`: one of [`RetryPolicy::status_codes`].
    pub const STATUS_CODES: RetryOn = RetryOn(1 << 8);
    /// `cancelled`: grpc-status 1.
    pub const GRPC_CANCELLED: RetryOn = RetryOn(1 << 9);
    /// `deadline-exceeded`: grpc-status 4.
    pub const GRPC_DEADLINE_EXCEEDED: RetryOn = RetryOn(1 << 10);
    /// `resource-exhausted`: grpc-status 8.
    pub const GRPC_RESOURCE_EXHAUSTED: RetryOn = RetryOn(1 << 11);
    /// `internal`: grpc-status 13.
    pub const GRPC_INTERNAL: RetryOn = RetryOn(1 << 12);
    /// `unavailable`: grpc-status 14.
    pub const GRPC_UNAVAILABLE: RetryOn = RetryOn(1 << 13);

    const NAMES: [(&'static str, RetryOn); 14] = [
        ("5xx", RetryOn::SERVER_ERROR),
        ("gateway-error", RetryOn::GATEWAY_ERROR),
        ("reset", RetryOn::RESET),
        ("reset-before-request", RetryOn::RESET_BEFORE_REQUEST),
        ("connect-failure", RetryOn::CONNECT_FAILURE),
        ("envoy-ratelimited", RetryOn::RATE_LIMITED),
        ("retriable-4xx", RetryOn::RETRIABLE_4XX),
        ("refused-stream", RetryOn::REFUSED_STREAM),
        ("retriable-status-codes", RetryOn::STATUS_CODES),
        ("cancelled", RetryOn::GRPC_CANCELLED),
        ("deadline-exceeded", RetryOn::GRPC_DEADLINE_EXCEEDED),
        ("resource-exhausted", RetryOn::GRPC_RESOURCE_EXHAUSTED),
        ("internal", RetryOn::GRPC_INTERNAL),
        ("unavailable", RetryOn::GRPC_UNAVAILABLE),
    ];

    /// The condition of that name; the error lists those that there are.
    pub fn parse(name: &str) -> Result<RetryOn, String> {
        let found = RetryOn::NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, condition)| *condition).ok_or_else(|| {
            let known: Vec<&str> = RetryOn::NAMES.iter().map(|(known, _)| *known).collect();
            format!("`{name}` is no retry condition; there are {}", known.join(", "))
        })
    }

    /// Both sets.
    pub const fn union(self, other: RetryOn) -> RetryOn {
        RetryOn(self.0 | other.0)
    }

    /// The sets have a condition in common.
    pub const fn intersects(self, other: RetryOn) -> bool {
        self.0 & other.0 != 0
    }
}

impl fmt::Display for RetryOn {
    /// Names with commas between them, as in `x-envoy-retry-on`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = RetryOn::NAMES.iter().filter(|(_, condition)| self.intersects(*condition));
        for (number, (name, _)) in names.enumerate() {
            if number > 0 {
                f.write_str(",")?;
            }
            f.write_str(name)?;
        }
        Ok(())
    }
}

impl fmt::Debug for RetryOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RetryOn({self})")
    }
}

/// What every kind of missing answer is retried for.
const NO_ANSWER: RetryOn =
    RetryOn::SERVER_ERROR.union(RetryOn::GATEWAY_ERROR).union(RetryOn::RESET);

impl RetryPolicy {
    /// Checks and compiles; `None` after an error was recorded.
    pub fn compile(retry: &spec::Retry, at: &mut Context) -> Option<RetryPolicy> {
        let spec::Retry {
            on,
            attempts,
            per_try_timeout,
            status_codes,
            avoid_previous_hosts,
            host_selection_attempts,
            backoff: spec::RetryBackoff { base, max },
        } = retry;
        let before = at.error_count();
        let conditions = at.each("on", on, |name, at| match RetryOn::parse(name.trim()) {
            Ok(condition) => Some(condition),
            Err(message) => at.reject(message),
        });
        let on = conditions?.into_iter().fold(RetryOn::default(), RetryOn::union);
        if on == RetryOn::default() {
            at.field("on", |at| at.error("names no condition: nothing would be retried"));
        }
        if *attempts > MAX_ATTEMPTS {
            at.field("attempts", |at| {
                at.error(format!("{attempts} is more than {MAX_ATTEMPTS}, the most there may be"));
            });
        }
        at.each("status_codes", status_codes, |code, at| {
            if !(100..=599).contains(code) {
                at.error(format!("{code} is no HTTP status; there are 100 to 599"));
            }
            Some(())
        });
        if !status_codes.is_empty() && !on.intersects(RetryOn::STATUS_CODES) {
            at.field("status_codes", |at| {
                at.error("have an effect only if `on` has `retriable-status-codes`");
            });
        }
        if !(1..=MAX_HOST_SELECTION_ATTEMPTS).contains(host_selection_attempts) {
            at.field("host_selection_attempts", |at| {
                at.error(format!(
                    "{host_selection_attempts} is not in 1 to {MAX_HOST_SELECTION_ATTEMPTS}"
                ));
            });
        }
        if base.is_zero() {
            at.field("backoff", |at| at.field("base", |at| at.error("must be more than 0")));
        }
        let backoff_base = (*base).max(MIN_BACKOFF);
        let backoff_max = match max {
            Some(max) if max < base => at.field("backoff", |at| {
                at.field("max", |at| at.reject("must not be less than `base`"))
            })?,
            Some(max) => (*max).max(MIN_BACKOFF),
            None => backoff_base.saturating_mul(10),
        };
        (at.error_count() == before).then(|| RetryPolicy {
            on,
            attempts: *attempts,
            per_try_timeout: per_try_timeout.filter(|timeout| !timeout.is_zero()),
            status_codes: status_codes.clone(),
            avoid_previous_hosts: *avoid_previous_hosts,
            host_selection_attempts: *host_selection_attempts,
            backoff_base,
            backoff_max,
        })
    }

    /// The response is retried. `grpc_status` is that of a trailers-only response: one in trailers
    /// comes too late. A response with `x-envoy-ratelimited` is a matter of
    /// [`on_rate_limited`](Self::on_rate_limited) alone.
    pub fn on_status(&self, status: u16, grpc_status: Option<u32>) -> bool {
        let grpc = match grpc_status {
            Some(1) => RetryOn::GRPC_CANCELLED,
            Some(4) => RetryOn::GRPC_DEADLINE_EXCEEDED,
            Some(8) => RetryOn::GRPC_RESOURCE_EXHAUSTED,
            Some(13) => RetryOn::GRPC_INTERNAL,
            Some(14) => RetryOn::GRPC_UNAVAILABLE,
            _ => RetryOn::default(),
        };
        let http = match status {
            409 => RetryOn::RETRIABLE_4XX,
            502..=504 => RetryOn::SERVER_ERROR.union(RetryOn::GATEWAY_ERROR),
            500..=599 => RetryOn::SERVER_ERROR,
            _ => RetryOn::default(),
        };
        self.on.intersects(grpc.union(http))
            || (self.on.intersects(RetryOn::STATUS_CODES) && self.status_codes.contains(&status))
    }

    /// A response with `x-envoy-ratelimited` is retried.
    pub fn on_rate_limited(&self) -> bool {
        self.on.intersects(RetryOn::RATE_LIMITED)
    }

    /// A reset, or a try that ran out of time, is retried. `before_request`: nothing of the request
    /// had been sent.
    pub fn on_reset(&self, before_request: bool) -> bool {
        self.on.intersects(NO_ANSWER)
            || (before_request && self.on.intersects(RetryOn::RESET_BEFORE_REQUEST))
    }

    /// A failure to connect, which is a reset before the request too, is retried.
    pub fn on_connect_failure(&self) -> bool {
        self.on_reset(true) || self.on.intersects(RetryOn::CONNECT_FAILURE)
    }

    /// A reset with `REFUSED_STREAM` is retried.
    pub fn on_refused_stream(&self) -> bool {
        self.on_reset(false) || self.on.intersects(RetryOn::REFUSED_STREAM)
    }

    /// Pause before a retry, of which the first has number 1: `random`, uniform over 64 bits, is
    /// spread over `0 .. min(base * (2^number - 1), max)`.
    pub fn backoff(&self, retry_number: u32, random: u64) -> Duration {
        let steps = 1_u128.checked_shl(retry_number.min(64)).unwrap_or(u128::MAX) - 1;
        let longest = self
            .backoff_base
            .as_nanos()
            .saturating_mul(steps)
            .min(self.backoff_max.as_nanos())
            .min(u64::MAX.into());
        Duration::from_nanos(((u128::from(random) * longest) >> 64) as u64)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn retry(on: &[&str]) -> spec::Retry {
        spec::Retry {
            on: on.iter().map(|name| (*name).to_owned()).collect(),
            attempts: 1,
            per_try_timeout: None,
            status_codes: Vec::new(),
            avoid_previous_hosts: true,
            host_selection_attempts: 5,
            backoff: spec::RetryBackoff::default(),
        }
    }

    fn policy(on: &[&str]) -> RetryPolicy {
        RetryPolicy::compile(&retry(on), &mut Context::new()).unwrap()
    }

    fn errors(retry: &spec::Retry) -> Vec<String> {
        let mut at = Context::new();
        assert_eq!(RetryPolicy::compile(retry, &mut at), None);
        at.into_errors().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn statuses() {
        for (on, status, grpc, retried) in [
            ("5xx", 500, None, true),
            ("5xx", 599, None, true),
            ("5xx", 499, None, false),
            ("5xx", 200, Some(13), false),
            ("gateway-error", 500, None, false),
            ("gateway-error", 502, None, true),
            ("gateway-error", 503, None, true),
            ("gateway-error", 504, None, true),
            ("gateway-error", 505, None, false),
            ("retriable-4xx", 409, None, true),
            ("retriable-4xx", 404, None, false),
            ("cancelled", 200, Some(1), true),
            ("deadline-exceeded", 200, Some(4), true),
            ("resource-exhausted", 200, Some(8), true),
            ("internal", 200, Some(13), true),
            ("unavailable", 200, Some(14), true),
            ("unavailable", 200, Some(13), false),
            ("unavailable", 503, None, false),
            ("reset", 503, None, false),
            ("connect-failure", 503, None, false),
        ] {
            assert_eq!(policy(&[on]).on_status(status, grpc), retried, "{on} {status} {grpc:?}");
        }
    }

    #[test]
    fn missing_answers() {
        // Reset after and before the request, no connection, refused stream.
        for (on, expected) in [
            ("5xx", [true, true, true, true]),
            ("gateway-error", [true, true, true, true]),
            ("reset", [true, true, true, true]),
            ("reset-before-request", [false, true, true, false]),
            ("connect-failure", [false, false, true, false]),
            ("refused-stream", [false, false, false, true]),
            ("unavailable", [false, false, false, false]),
            ("retriable-4xx", [false, false, false, false]),
        ] {
            let policy = policy(&[on]);
            let seen = [
                policy.on_reset(false),
                policy.on_reset(true),
                policy.on_connect_failure(),
                policy.on_refused_stream(),
            ];
            assert_eq!(seen, expected, "{on}");
        }
    }

    #[test]
    fn status_codes_need_their_condition() {
        let mut with = retry(&["retriable-status-codes", "connect-failure"]);
        with.status_codes = vec![503, 418];
        let compiled = RetryPolicy::compile(&with, &mut Context::new()).unwrap();
        assert!(compiled.on_status(418, None));
        assert!(!compiled.on_status(500, None));
        assert!(!policy(&["retriable-status-codes"]).on_status(503, None));
        with.on = vec!["5xx".to_owned()];
        assert_eq!(
            errors(&with),
            ["status_codes: have an effect only if `on` has `retriable-status-codes`"]
        );
    }

    #[test]
    fn rate_limited_is_a_condition_of_its_own() {
        assert!(policy(&["envoy-ratelimited"]).on_rate_limited());
        assert!(!policy(&["5xx"]).on_rate_limited());
    }

    #[test]
    fn unknown_condition_lists_the_known_ones() {
        let mut wrong = retry(&["5xx", "5xy", "retry-please"]);
        wrong.attempts = 17;
        let errors = errors(&wrong);
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(
            errors[0]
                .starts_with("on[1]: `5xy` is no retry condition; there are 5xx, gateway-error,")
        );
        assert!(errors[0].ends_with("internal, unavailable"));
        assert!(errors[1].starts_with("on[2]: `retry-please`"));
    }

    #[test]
    fn bounds() {
        let mut wrong = retry(&[]);
        wrong.attempts = 17;
        wrong.host_selection_attempts = 0;
        wrong.status_codes = vec![99];
        wrong.backoff = spec::RetryBackoff { base: Duration::ZERO, max: None };
        assert_eq!(
            errors(&wrong),
            [
                "on: names no condition: nothing would be retried",
                "attempts: 17 is more than 16, the most there may be",
                "status_codes[0]: 99 is no HTTP status; there are 100 to 599",
                "status_codes: have an effect only if `on` has `retriable-status-codes`",
                "host_selection_attempts: 0 is not in 1 to 32",
                "backoff.base: must be more than 0",
            ]
        );
        let mut wrong = retry(&["reset"]);
        wrong.backoff.max = Some(Duration::from_millis(24));
        assert_eq!(errors(&wrong), ["backoff.max: must not be less than `base`"]);
    }

    #[test]
    fn zero_per_try_timeout_is_none() {
        let mut zero = retry(&["reset"]);
        zero.per_try_timeout = Some(Duration::ZERO);
        assert_eq!(RetryPolicy::compile(&zero, &mut Context::new()).unwrap().per_try_timeout, None);
    }

    #[test]
    fn backoff_grows_to_its_bound() {
        let policy = policy(&["reset"]);
        let longest = |number| policy.backoff(number, u64::MAX).as_micros();
        // Just below 25 ms times 1, 3, 7, then ten times the base.
        assert_eq!([1, 2, 3, 4].map(longest), [24_999, 74_999, 174_999, 249_999]);
        assert_eq!([16, u32::MAX].map(longest), [249_999; 2]);
        assert_eq!(policy.backoff(0, u64::MAX), Duration::ZERO);
        assert_eq!(policy.backoff(3, 0), Duration::ZERO);
    }

    #[test]
    fn names_are_printed() {
        let on = RetryOn::RESET.union(RetryOn::GRPC_UNAVAILABLE);
        assert_eq!(on.to_string(), "reset,unavailable");
    }

    proptest! {
        #[test]
        fn backoff_is_bounded(
            number: u32, random: u64, base in 1_u64..u64::MAX, max in 1_u64..u64::MAX,
        ) {
            let mut policy = policy(&["reset"]);
            policy.backoff_base = Duration::from_nanos(base);
            policy.backoff_max = Duration::from_nanos(max);
            prop_assert!(policy.backoff(number, random) < policy.backoff_max);
        }
    }
}

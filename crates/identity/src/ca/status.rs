//! How the requests went, for metrics and for people.

use std::time::{Duration, SystemTime};

/// What the authority's client has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaStatus {
    /// Requests that ended, one way or the other (Istio: `istio_agent_num_outgoing_requests{request_type="csr"}`).
    pub requests: u64,
    /// Certificates that were issued and came into use.
    pub signed: u64,
    /// Requests that brought no certificate (Istio: `istio_agent_num_failed_outgoing_requests{request_type="csr"}`).
    pub failed: u64,
    /// How long all requests took together (Istio: `istio_agent_outgoing_latency`).
    pub waited: Duration,
    /// Why the last request failed; `None` when it succeeded.
    pub last_error: Option<String>,
    /// End of the validity of the certificate in use; `None` before there is one.
    pub not_after: Option<SystemTime>,
    /// Serial number of the certificate in use, in lower-case hexadecimal.
    pub serial: Option<String>,
    /// When the next request is due; `None` before the first has ended.
    pub next_request: Option<SystemTime>,
    /// Whether the certificate in use was kept from an earlier start and not issued in this one.
    pub kept: bool,
    /// Why key and certificate are not kept although they should be.
    pub keeping_failed: Option<String>,
}

impl CaStatus {
    /// End of the validity of the certificate in use in seconds since 1970.
    pub fn expiry_seconds(&self) -> Option<u64> {
        let since = self.not_after?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(since.as_secs())
    }

    /// Seconds from `now` to the end of the certificate in use, negative when it has ended (Istio:
    /// `istio_agent_cert_expiry_seconds`).
    pub fn seconds_left(&self, now: SystemTime) -> Option<f64> {
        let not_after = self.not_after?;
        Some(match not_after.duration_since(now) {
            Ok(left) => left.as_secs_f64(),
            Err(error) => -error.duration().as_secs_f64(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_counts_on_below_zero() {
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let status = CaStatus { not_after: Some(end), ..CaStatus::default() };
        assert_eq!(status.expiry_seconds(), Some(1000));
        assert_eq!(status.seconds_left(end - Duration::from_secs(10)), Some(10.0));
        assert_eq!(status.seconds_left(end + Duration::from_secs(10)), Some(-10.0));
        assert_eq!(CaStatus::default().seconds_left(end), None);
    }
}

//! Response flags: why a reply or a connection ended otherwise than the upstream meant it.
//!
//! The names, the order and the text form are Envoy's (`CoreResponseFlag`, `%RESPONSE_FLAGS%`), since dashboards,
//! alerts and Kiali read them.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

/// A set of Envoy's response flags.
///
/// `Display` prints the short codes in Envoy's order joined with `,`, and `-` for the empty set, as
/// `%RESPONSE_FLAGS%` and the label `response_flags` do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ResponseFlags(u32);

/// One constant per flag, and the table of them that `Display` walks, in the order given.
macro_rules! flags {
    ($($(#[$doc:meta])* $bit:literal $name:ident $code:literal;)*) => {
        impl ResponseFlags {
            $($(#[$doc])* pub const $name: ResponseFlags = ResponseFlags(1 << $bit);)*

            /// Every flag with its short code, in the order in which Envoy prints them.
            pub const ALL: &'static [(ResponseFlags, &'static str)] = &[$((ResponseFlags::$name, $code)),*];
        }
    };
}

flags! {
    /// `LH`: the local service failed its health check.
    0 FAILED_LOCAL_HEALTH_CHECK "LH";
    /// `UH`: the cluster has no healthy endpoint; the reply is 503.
    1 NO_HEALTHY_UPSTREAM "UH";
    /// `UT`: the request's or a try's time was up; the reply is 504.
    2 UPSTREAM_REQUEST_TIMEOUT "UT";
    /// `LR`: the connection was reset on our side.
    3 LOCAL_RESET "LR";
    /// `UR`: the upstream reset the stream.
    4 UPSTREAM_REMOTE_RESET "UR";
    /// `UF`: no connection to the upstream came about.
    5 UPSTREAM_CONNECTION_FAILURE "UF";
    /// `UC`: the upstream's connection ended in the middle.
    6 UPSTREAM_CONNECTION_TERMINATION "UC";
    /// `UO`: a circuit breaker or a bound of ours refused; the reply is 503.
    7 UPSTREAM_OVERFLOW "UO";
    /// `NR`: no route, or no filter chain, fits.
    8 NO_ROUTE_FOUND "NR";
    /// `DI`: a delay was injected.
    9 DELAY_INJECTED "DI";
    /// `FI`: a fault was injected.
    10 FAULT_INJECTED "FI";
    /// `RL`: rate limited; the reply is 429.
    11 RATE_LIMITED "RL";
    /// `UAEX`: an external authorization service refused, or RBAC did for a connection.
    12 UNAUTHORIZED_EXTERNAL_SERVICE "UAEX";
    /// `RLSE`: the rate limit service failed.
    13 RATE_LIMIT_SERVICE_ERROR "RLSE";
    /// `DC`: the client's connection ended in the middle.
    14 DOWNSTREAM_CONNECTION_TERMINATION "DC";
    /// `URX`: all retries, or for TCP all connection attempts, are used up.
    15 UPSTREAM_RETRY_LIMIT_EXCEEDED "URX";
    /// `SI`: the stream was idle for too long; the reply is 408 or 504.
    16 STREAM_IDLE_TIMEOUT "SI";
    /// `IH`: a header that Envoy checks strictly had an invalid value; the reply is 400.
    17 INVALID_ENVOY_REQUEST_HEADERS "IH";
    /// `DPE`: the client broke the protocol.
    18 DOWNSTREAM_PROTOCOL_ERROR "DPE";
    /// `UMSDR`: the stream reached its longest duration.
    19 UPSTREAM_MAX_STREAM_DURATION_REACHED "UMSDR";
    /// `RFCF`: the reply came from a cache.
    20 RESPONSE_FROM_CACHE_FILTER "RFCF";
    /// `NFCF`: a filter's configuration did not arrive in time.
    21 NO_FILTER_CONFIG_FOUND "NFCF";
    /// `DT`: the connection or request exceeded its longest duration.
    22 DURATION_TIMEOUT "DT";
    /// `UPE`: the upstream broke the protocol.
    23 UPSTREAM_PROTOCOL_ERROR "UPE";
    /// `NC`: the route names a cluster that does not exist.
    24 NO_CLUSTER_FOUND "NC";
    /// `OM`: overload protection refused.
    25 OVERLOAD_MANAGER "OM";
    /// `DF`: a name did not resolve.
    26 DNS_RESOLUTION_FAILED "DF";
    /// `DO`: dropped by the endpoints' drop policy.
    27 DROP_OVERLOAD "DO";
    /// `DR`: the client reset the stream.
    28 DOWNSTREAM_REMOTE_RESET "DR";
}

impl ResponseFlags {
    /// The empty set, printed as `-`.
    pub const NONE: ResponseFlags = ResponseFlags(0);

    /// The bits: bit i stands for entry i of [`ResponseFlags::ALL`].
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether no flag is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether every flag of `other` is set.
    pub const fn contains(self, other: ResponseFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together; for constants, where `|` cannot be used.
    #[must_use]
    pub const fn union(self, other: ResponseFlags) -> ResponseFlags {
        ResponseFlags(self.0 | other.0)
    }

    /// Adds the flags of `other`.
    pub fn insert(&mut self, other: ResponseFlags) {
        self.0 |= other.0;
    }

    /// The flags' short codes, in Envoy's order.
    pub fn codes(self) -> impl Iterator<Item = &'static str> {
        Self::ALL.iter().filter(move |(flag, _)| self.contains(*flag)).map(|(_, code)| *code)
    }
}

impl BitOr for ResponseFlags {
    type Output = ResponseFlags;

    fn bitor(self, other: ResponseFlags) -> ResponseFlags {
        self.union(other)
    }
}

impl BitOrAssign for ResponseFlags {
    fn bitor_assign(&mut self, other: ResponseFlags) {
        self.insert(other);
    }
}

impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        for (i, code) in self.codes().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            f.write_str(code)?;
        }
        Ok(())
    }
}

impl fmt::Debug for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ResponseFlags({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_prints_a_dash() {
        assert_eq!(ResponseFlags::default().to_string(), "-");
        assert_eq!(ResponseFlags::NONE.codes().count(), 0);
    }

    #[test]
    fn prints_in_envoys_order_whatever_the_order_of_insertion() {
        let mut flags = ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED;
        flags |= ResponseFlags::UPSTREAM_CONNECTION_FAILURE;
        flags.insert(ResponseFlags::NO_HEALTHY_UPSTREAM);
        assert_eq!(flags.to_string(), "UH,UF,URX");
        assert_eq!(format!("{flags:?}"), "ResponseFlags(UH,UF,URX)");
    }

    #[test]
    fn knows_every_code_once() {
        let mut all = ResponseFlags::NONE;
        for (i, (flag, _)) in ResponseFlags::ALL.iter().enumerate() {
            assert_eq!(flag.bits(), 1 << i, "the table is in the order of the bits");
            assert!(!all.contains(*flag));
            all.insert(*flag);
        }
        assert_eq!(
            all.to_string(),
            "LH,UH,UT,LR,UR,UF,UC,UO,NR,DI,FI,RL,UAEX,RLSE,DC,URX,SI,IH,DPE,UMSDR,RFCF,NFCF,DT,UPE,NC,OM,DF,DO,DR"
        );
    }
}

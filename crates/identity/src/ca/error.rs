//! Why there is no new certificate.

use std::time::Duration;

use tonic::{Code, Status};

use super::answer::AnswerError;
use crate::istiod::{self, DialError};

/// Most characters of a message that are repeated.
const MAX_MESSAGE_CHARS: usize = 1024;

/// Why one request brought no certificate. `Display` says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaError {
    /// An RSA key was asked for.
    #[error(
        "RSA keys cannot be made here (ring has no generation of RSA keys); unset WORKLOAD_RSA_KEY_SIZE or set ECC_SIGNATURE_ALGORITHM=ECDSA, istiod signs ECDSA keys with any of its own"
    )]
    Rsa,
    /// The key or the request could not be made.
    #[error("the key could not be made: {reason}; the system's random numbers may be missing")]
    Key {
        /// What went wrong.
        reason: String,
    },
    /// The authority was not reached, or there is nothing to show it.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The authority answered with an error, or the connection broke.
    #[error("the certificate authority at {address} answered {code:?}: {message}; {remedy}", remedy = remedy(*.code))]
    Refused {
        /// The authority.
        address: String,
        /// gRPC's code.
        code: Code,
        /// What the authority said.
        message: String,
    },
    /// There was no answer in time.
    #[error("the certificate authority at {address} did not answer within {} s; see istiod's log and load", .after.as_secs())]
    Timeout {
        /// The authority.
        address: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The answer cannot be used.
    #[error("the answer of the certificate authority at {address} is not used: {error}")]
    Answer {
        /// The authority.
        address: String,
        /// What is wrong with it.
        error: AnswerError,
    },
}

impl CaError {
    pub(super) fn refused(address: &str, status: &Status) -> Self {
        if let Some(error) = DialError::within(status) {
            return Self::Dial(error.clone());
        }
        let message = match std::error::Error::source(status) {
            Some(source) => istiod::reasons(source),
            None => status.message().chars().take(MAX_MESSAGE_CHARS).collect(),
        };
        Self::Refused { address: address.to_owned(), code: status.code(), message }
    }

    /// Whether the same request may soon succeed: the authority is away or busy, or a file is being replaced. Other
    /// errors need somebody to change something, so they are tried again at a slower pace.
    ///
    /// Istio's agent has the same list without `Unauthenticated` and `Unknown`: the first is also what an old token looks
    /// like before the kubelet has written the next, the second what a broken connection looks like here.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Dial(_) | Self::Timeout { .. } => true,
            Self::Refused { code, .. } => matches!(
                code,
                Code::Cancelled
                    | Code::Unknown
                    | Code::DeadlineExceeded
                    | Code::ResourceExhausted
                    | Code::Aborted
                    | Code::Internal
                    | Code::Unavailable
                    | Code::Unauthenticated
            ),
            Self::Rsa | Self::Key { .. } | Self::Answer { .. } => false,
        }
    }
}

fn remedy(code: Code) -> &'static str {
    match code {
        Code::Unauthenticated => {
            "the token must be current and have the audience istio-ca, and CLUSTER_ID must be a cluster that istiod knows"
        }
        Code::PermissionDenied => "istiod does not let this service account have the identity",
        Code::InvalidArgument => {
            "check SECRET_TTL (istiod refuses more than its maximum, 90 days by default) and ISTIO_META_CERT_SIGNER"
        }
        Code::Unimplemented => {
            "this server signs no certificates; CA_ADDR must be an istiod with its authority enabled"
        }
        Code::ResourceExhausted => "istiod is busy, it is tried again",
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::Unknown => "it is tried again; see istiod's log if it stays",
        _ => "see istiod's log",
    }
}

//! What the authority answered, checked before it is believed.

use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::credentials::{
    Credentials, IdentityError, MAX_CHAIN, MAX_ROOTS, MaterialPart, certificates,
};
use crate::spiffe::SpiffeId;

/// Why an answer is not used. `Display` says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// There is no element for the roots, or none at all.
    #[error(
        "it has {0} elements where a certificate and the roots are needed; the authority must send its root last"
    )]
    Short(usize),
    /// There are more elements than a chain can have.
    #[error("it has {found} elements, at most {limit} are read; the authority's chain is too long")]
    Long {
        /// How many there are.
        found: usize,
        /// How many are read.
        limit: usize,
    },
    /// An element is not PEM, or has no certificate in it.
    #[error("element {number} cannot be used: {error}; see the authority's log")]
    Element {
        /// Its place, from 1.
        number: usize,
        /// What is wrong.
        error: IdentityError,
    },
    /// The certificate is for another identity.
    #[error(
        "the certificate is for {found} and not for {expected}; the token and the pod's namespace, service account and trust domain must belong together (POD_NAMESPACE, SERVICE_ACCOUNT, TRUST_DOMAIN)"
    )]
    Identity {
        /// Who we are.
        expected: SpiffeId,
        /// Whom the certificate names.
        found: SpiffeId,
    },
    /// The certificate is not for our key, not valid now, or does not lead to the roots.
    #[error("{0}; {remedy}", remedy = .0.remedy())]
    Certificate(IdentityError),
}

/// Reads an answer to the request for `key`: the leaf first, then intermediates, and in the last element one or more
/// roots (Istio: `security/pkg/server/ca/server.go`).
pub(super) fn read(
    answer: &[String],
    key: PrivateKeyDer<'static>,
    id: &SpiffeId,
    now: SystemTime,
) -> Result<Credentials, AnswerError> {
    let (roots, chain) = match answer.split_last() {
        Some((roots, chain)) if !chain.is_empty() => (roots, chain),
        _ => return Err(AnswerError::Short(answer.len())),
    };
    if chain.len() > MAX_CHAIN {
        return Err(AnswerError::Long { found: answer.len(), limit: MAX_CHAIN + 1 });
    }
    let read = |index: usize, pem: &str, part, limit| {
        certificates(pem.as_bytes(), part, limit)
            .map_err(|error| AnswerError::Element { number: index + 1, error })
    };
    let mut list: Vec<CertificateDer<'static>> = Vec::with_capacity(chain.len());
    for (index, pem) in chain.iter().enumerate() {
        list.extend(read(index, pem, MaterialPart::Chain, MAX_CHAIN)?);
    }
    let roots = read(chain.len(), roots, MaterialPart::Roots, MAX_ROOTS)?;
    let credentials = Credentials::from_der(list, key, roots).map_err(AnswerError::Certificate)?;
    if credentials.id != *id {
        return Err(AnswerError::Identity { expected: id.clone(), found: credentials.id });
    }
    credentials.check(now).map_err(AnswerError::Certificate)?;
    Ok(credentials)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use proptest::prelude::*;
    use rustls_pki_types::PrivatePkcs8KeyDer;
    use rustls_pki_types::pem::PemObject;

    use super::*;
    use crate::dev::{DevCa, IssueOptions, PemBundle};

    struct Case {
        id: SpiffeId,
        bundle: PemBundle,
    }

    impl Case {
        fn new() -> Self {
            let ca = DevCa::new("td").unwrap();
            let id = ca.id("shop", "waypoint").unwrap();
            let below = ca.intermediate().unwrap().intermediate().unwrap();
            Self { bundle: below.issue_pem(&id, IssueOptions::default()).unwrap(), id }
        }

        /// One element per certificate, the roots last.
        fn answer(&self) -> Vec<String> {
            const END: &str = "-----END CERTIFICATE-----\n";
            let mut answer: Vec<_> =
                self.bundle.cert_chain.split_inclusive(END).map(str::to_owned).collect();
            answer.push(self.bundle.roots.clone());
            answer
        }

        fn read(&self, answer: &[String]) -> Result<Credentials, AnswerError> {
            let key = PrivateKeyDer::from_pem_slice(self.bundle.key.as_bytes()).unwrap();
            read(answer, key, &self.id, SystemTime::now())
        }
    }

    #[test]
    fn leaf_intermediates_and_roots() {
        let case = Case::new();
        let mut answer = case.answer();
        assert_eq!(answer.len(), 4);
        let credentials = case.read(&answer).unwrap();
        assert_eq!((credentials.chain().len(), credentials.roots().len()), (3, 1));

        answer[3] = [case.bundle.roots.as_str(), DevCa::new("td").unwrap().root_pem()].concat();
        assert_eq!(case.read(&answer).unwrap().roots().len(), 2);
        // Elements need not end with a line break, and may hold more than one certificate.
        let joined =
            [case.bundle.cert_chain.trim_end().to_owned(), answer[3].trim_end().to_owned()];
        let credentials = case.read(&joined).unwrap();
        assert_eq!((credentials.chain().len(), credentials.roots().len()), (3, 2));
    }

    #[test]
    fn what_is_missing_is_said() {
        let case = Case::new();
        let answer = case.answer();
        assert_eq!(case.read(&[]).unwrap_err(), AnswerError::Short(0));
        assert_eq!(case.read(&answer[..1]).unwrap_err(), AnswerError::Short(1));
        let many = vec![answer[0].clone(); MAX_CHAIN + 2];
        assert!(matches!(case.read(&many).unwrap_err(), AnswerError::Long { .. }));
        for (index, part) in
            [(0, MaterialPart::Chain), (1, MaterialPart::Chain), (3, MaterialPart::Roots)]
        {
            let mut answer = answer.clone();
            answer[index].clear();
            let error = IdentityError::Empty(part);
            assert_eq!(
                case.read(&answer).unwrap_err(),
                AnswerError::Element { number: index + 1, error }
            );
        }
        let without_intermediates = [answer[0].clone(), answer[3].clone()];
        assert!(matches!(
            case.read(&without_intermediates).unwrap_err(),
            AnswerError::Certificate(IdentityError::Untrusted(_))
        ));
    }

    proptest! {
        #[test]
        fn any_answer_is_read_or_refused(answer in prop::collection::vec(any::<String>(), 0..6)) {
            let case = Case::new();
            prop_assert!(case.read(&answer).is_err());
        }

        #[test]
        fn any_pem_is_read_or_refused(
            blocks in prop::collection::vec(
                (prop::sample::select(vec!["CERTIFICATE", "PRIVATE KEY", "X"]),
                 prop::collection::vec(any::<u8>(), 0..200)),
                0..6,
            ),
            // The position of a real element among them, if any.
            real in prop::option::of((0usize..6, 0usize..4)),
        ) {
            use base64::Engine;
            let case = Case::new();
            let mut answer: Vec<String> = blocks
                .iter()
                .map(|(label, bytes)| {
                    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
                    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
                })
                .collect();
            if let Some((at, which)) = real {
                answer.insert(at.min(answer.len()), case.answer()[which].clone());
            }
            prop_assert!(case.read(&answer).is_err());
        }

        #[test]
        fn a_damaged_answer_is_read_or_refused(
            element in 0usize..4,
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<bool>(),
        ) {
            let case = Case::new();
            let mut answer = case.answer();
            let mut bytes = answer[element].clone().into_bytes();
            let at = at.index(bytes.len());
            if cut {
                bytes.truncate(at);
            } else {
                bytes[at] = byte;
            }
            answer[element] = String::from_utf8_lossy(&bytes).into_owned();
            if let Ok(credentials) = case.read(&answer) {
                prop_assert_eq!(credentials.id, case.id);
            }
        }
    }

    #[test]
    fn a_foreign_key_is_refused() {
        let case = Case::new();
        let other = rcgen::KeyPair::generate().unwrap();
        let key = PrivatePkcs8KeyDer::from(other.serialize_der()).into();
        let error = read(&case.answer(), key, &case.id, SystemTime::now()).unwrap_err();
        assert_eq!(error, AnswerError::Certificate(IdentityError::KeyMismatch));
    }
}

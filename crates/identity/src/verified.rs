//! Client certificates that were verified before.
//!
//! Mesh peers connect again and again with the same certificate. Verifying its chain costs as much as the rest of
//! our part of the handshake, and would come to the same result as long as roots and validity are the same: entries
//! live with one set of roots, and count only while every certificate that was sent is valid. That the peer has the
//! key is proven in each handshake anew.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::certificate::Leaf;

/// Most chains that are kept; beyond it the cache starts anew.
const MAX_CHAINS: usize = 4096;

/// SHA-256 over the certificates with their lengths.
type Fingerprint = [u8; SHA256_OUTPUT_LEN];

/// Chains that lead to the roots that this belongs to.
#[derive(Debug, Default)]
pub(crate) struct VerifiedChains(Mutex<HashMap<Fingerprint, Verified>>);

/// What is known of one chain.
#[derive(Clone, Copy, Debug)]
struct Verified {
    not_before: SystemTime,
    not_after: SystemTime,
}

impl VerifiedChains {
    /// Whether these very certificates were verified and all are valid at that time.
    pub(crate) fn contains(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> bool {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs());
        let verified = self.0.lock().get(&fingerprint(leaf, intermediates)).copied();
        verified.is_some_and(|chain| chain.not_before <= now && now <= chain.not_after)
    }

    /// Keeps certificates that have just been verified. What cannot be read is not kept.
    pub(crate) fn keep(&self, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) {
        let Ok(Leaf { mut not_before, mut not_after, .. }) = Leaf::read(leaf) else { return };
        for certificate in intermediates {
            let Ok(read) = Leaf::read(certificate) else { return };
            not_before = not_before.max(read.not_before);
            not_after = not_after.min(read.not_after);
        }
        let verified = Verified { not_before, not_after };
        let mut chains = self.0.lock();
        if chains.len() >= MAX_CHAINS {
            chains.clear();
        }
        chains.insert(fingerprint(leaf, intermediates), verified);
    }
}

fn fingerprint(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Fingerprint {
    let mut hash = Context::new(&SHA256);
    for certificate in std::iter::once(leaf).chain(intermediates) {
        hash.update(&(certificate.len() as u64).to_be_bytes());
        hash.update(certificate);
    }
    let mut fingerprint = [0; SHA256_OUTPUT_LEN];
    fingerprint.copy_from_slice(hash.finish().as_ref());
    fingerprint
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::dev::DevCa;

    fn at(time: SystemTime) -> UnixTime {
        UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap())
    }

    #[test]
    fn only_the_same_certificates_within_their_validity() {
        let ca = DevCa::new("td").unwrap();
        let issue = |name: &str, ttl: u64| {
            let id = ca.id("default", name).unwrap();
            let credentials = ca.issue(&id, Duration::from_secs(ttl)).unwrap();
            (credentials.certified.cert.first().unwrap().clone(), credentials)
        };
        let (leaf, credentials) = issue("web", 600);
        let (longer, _) = issue("longer", 6000);
        let (other, _) = issue("other", 60);
        let chains = VerifiedChains::default();
        let now = at(SystemTime::now());
        assert!(!chains.contains(&leaf, &[], now));
        chains.keep(&leaf, &[]);
        assert!(chains.contains(&leaf, &[], now));
        assert!(!chains.contains(&other, &[], now));
        assert!(!chains.contains(&leaf, std::slice::from_ref(&other), now), "another chain");
        let second = Duration::from_secs(1);
        assert!(!chains.contains(&leaf, &[], at(credentials.not_after + second)), "expired");
        assert!(!chains.contains(&leaf, &[], at(credentials.not_before - second)), "too early");

        // The chain is valid for as long as all that is in it.
        chains.keep(&longer, std::slice::from_ref(&leaf));
        let contains = |time| chains.contains(&longer, std::slice::from_ref(&leaf), at(time));
        assert!(contains(credentials.not_after));
        assert!(!contains(credentials.not_after + second));
    }

    #[test]
    fn bounded() {
        let ca = DevCa::new("td").unwrap();
        let id = ca.id("default", "web").unwrap();
        let leaf = ca.issue(&id, Duration::from_secs(60)).unwrap().certified.cert[0].clone();
        let chains = VerifiedChains::default();
        let long_ago = SystemTime::UNIX_EPOCH;
        let verified = Verified { not_before: long_ago, not_after: long_ago };
        for number in 0..MAX_CHAINS {
            let mut key = [0; SHA256_OUTPUT_LEN];
            key[..8].copy_from_slice(&number.to_be_bytes());
            chains.0.lock().insert(key, verified);
        }
        chains.keep(&leaf, &[]);
        assert_eq!(chains.0.lock().len(), 1);
    }
}

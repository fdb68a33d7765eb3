//! The key of one certificate and the request that carries its public half.

use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    SanType,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::error::CaError;
use crate::spiffe::SpiffeId;

/// Which kind of key is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on P-256.
    #[default]
    EcdsaP256,
    /// ECDSA on P-384.
    EcdsaP384,
    /// RSA with 2048 bits. Our cryptography (ring) can use such keys but not make them, so asking for one is answered
    /// with [`CaError::Rsa`].
    Rsa2048,
}

/// What is wrong with the environment's wish for a kind of key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyKindError {
    /// The algorithm is unknown.
    #[error("ECC_SIGNATURE_ALGORITHM={0:?} is not known; write ECDSA, or unset it")]
    Algorithm(String),
    /// The curve is unknown.
    #[error("ECC_CURVE={0:?} is not known; write P256 or P384, or unset it")]
    Curve(String),
}

impl KeyKind {
    /// What Istio's environment asks for: `ECC_SIGNATURE_ALGORITHM` (`ECDSA`) with `ECC_CURVE` (`P256`, `P384`), or else
    /// `WORKLOAD_RSA_KEY_SIZE`. Without any of them it is P-256, where Istio's agent makes an RSA key; istiod signs both.
    ///
    /// # Errors
    /// [`KeyKindError`] for an algorithm or a curve that Istio does not know.
    pub fn from_env(
        algorithm: Option<&str>,
        curve: Option<&str>,
        rsa_key_size: Option<&str>,
    ) -> Result<Self, KeyKindError> {
        let given = |value: Option<&str>| {
            value.map(str::trim).filter(|value| !value.is_empty()).map(str::to_owned)
        };
        match (given(algorithm), given(rsa_key_size)) {
            (None, Some(_)) => Ok(Self::Rsa2048),
            (Some(algorithm), _) if !algorithm.eq_ignore_ascii_case("ECDSA") => {
                Err(KeyKindError::Algorithm(algorithm))
            }
            _ => match given(curve) {
                None => Ok(Self::EcdsaP256),
                Some(curve) if curve.eq_ignore_ascii_case("P256") => Ok(Self::EcdsaP256),
                Some(curve) if curve.eq_ignore_ascii_case("P384") => Ok(Self::EcdsaP384),
                Some(curve) => Err(KeyKindError::Curve(curve)),
            },
        }
    }
}

/// A key that is ours alone, and the request to sign it.
pub(super) struct KeyRequest {
    /// The certificate signing request as PEM.
    pub(super) csr: String,
    key: KeyPair,
}

impl KeyRequest {
    /// Makes a key. The request has an empty subject and the id as its one SAN, as Istio's agent does it.
    pub(super) fn new(kind: KeyKind, id: &SpiffeId) -> Result<Self, CaError> {
        let algorithm = match kind {
            KeyKind::EcdsaP256 => &PKCS_ECDSA_P256_SHA256,
            KeyKind::EcdsaP384 => &PKCS_ECDSA_P384_SHA384,
            KeyKind::Rsa2048 => return Err(CaError::Rsa),
        };
        let make = || {
            let key = KeyPair::generate_for(algorithm)?;
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.subject_alt_names.push(SanType::URI(Ia5String::try_from(id.as_str())?));
            let csr = params.serialize_request(&key)?.pem()?;
            Ok(Self { csr, key })
        };
        make().map_err(|error: rcgen::Error| CaError::Key { reason: error.to_string() })
    }

    /// The private key as PKCS#8.
    pub(super) fn private(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rcgen::CertificateSigningRequestParams;

    use super::*;

    #[test]
    fn requests_carry_the_id_and_nothing_else() {
        let id = SpiffeId::parse("spiffe://td/ns/shop/sa/waypoint").unwrap();
        for kind in [KeyKind::EcdsaP256, KeyKind::EcdsaP384] {
            let request = KeyRequest::new(kind, &id).unwrap();
            let read = CertificateSigningRequestParams::from_pem(&request.csr).unwrap();
            assert_eq!(read.params.distinguished_name.iter().count(), 0);
            let uri = SanType::URI(Ia5String::try_from(id.as_str()).unwrap());
            assert_eq!(read.params.subject_alt_names, [uri]);
        }
        let error = KeyRequest::new(KeyKind::Rsa2048, &id).err().unwrap().to_string();
        assert!(
            error.contains("WORKLOAD_RSA_KEY_SIZE") && error.contains("ECC_SIGNATURE_ALGORITHM")
        );
    }

    #[test]
    fn each_request_has_a_key_of_its_own() {
        let id = SpiffeId::parse("spiffe://td/ns/shop/sa/waypoint").unwrap();
        let key = || KeyRequest::new(KeyKind::default(), &id).unwrap().private();
        assert_ne!(key(), key());
    }

    #[test]
    fn the_environment_chooses() {
        let cases = [
            ((None, None, None), Ok(KeyKind::EcdsaP256)),
            ((Some(""), Some(""), Some("")), Ok(KeyKind::EcdsaP256)),
            ((Some("ECDSA"), None, None), Ok(KeyKind::EcdsaP256)),
            ((Some("ECDSA"), Some("P384"), Some("2048")), Ok(KeyKind::EcdsaP384)),
            ((None, Some("P256"), None), Ok(KeyKind::EcdsaP256)),
            ((None, None, Some("4096")), Ok(KeyKind::Rsa2048)),
            ((Some("EdDSA"), None, None), Err(KeyKindError::Algorithm("EdDSA".to_owned()))),
            ((Some("ECDSA"), Some("P521"), None), Err(KeyKindError::Curve("P521".to_owned()))),
        ];
        for ((algorithm, curve, rsa), expected) in cases {
            assert_eq!(KeyKind::from_env(algorithm, curve, rsa), expected);
        }
    }
}

//! One body, compressed. Small bodies of a kind look alike, so each may lean on a dictionary that its kind shares.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// Most bytes of a dictionary. Each body that is compressed reads it once, so it is small.
pub(super) const MAX_DICTIONARY_BYTES: usize = 4 * 1024;
/// Bodies that are shorter are kept as they are.
const MIN_PACKED_BYTES: usize = 64;
/// LZ4 cannot make anything smaller than by this factor; what claims more is damaged.
const MAX_RATIO: usize = 255;

/// A body, compressed where that helps.
#[derive(Debug, Clone)]
pub(super) struct Packed {
    /// Bytes of the body.
    pub length: usize,
    /// Whether `bytes` are LZ4 (block format), or the body itself.
    pub compressed: bool,
    /// What was shared when it was compressed.
    pub dictionary: Option<Arc<[u8]>>,
    /// What is kept.
    pub bytes: Bytes,
}

/// The bytes do not come to a body of the length that they should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Damaged;

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a body cannot be decompressed")
    }
}

impl Packed {
    pub(super) fn pack(body: &[u8], dictionary: Option<&Arc<[u8]>>) -> Self {
        let whole = || Packed {
            length: body.len(),
            compressed: false,
            dictionary: None,
            bytes: Bytes::copy_from_slice(body),
        };
        if body.len() < MIN_PACKED_BYTES {
            return whole();
        }
        let packed = match dictionary {
            Some(dictionary) => lz4_flex::block::compress_with_dict(body, dictionary),
            None => lz4_flex::block::compress(body),
        };
        if packed.len() >= body.len() {
            return whole();
        }
        Packed {
            length: body.len(),
            compressed: true,
            dictionary: dictionary.cloned(),
            bytes: Bytes::copy_from_slice(&packed),
        }
    }

    pub(super) fn unpack(&self) -> Result<Bytes, Damaged> {
        if !self.compressed {
            return if self.bytes.len() == self.length {
                Ok(self.bytes.clone())
            } else {
                Err(Damaged)
            };
        }
        if self.length > self.bytes.len().saturating_mul(MAX_RATIO) {
            return Err(Damaged);
        }
        let body = match &self.dictionary {
            Some(dictionary) => {
                lz4_flex::block::decompress_with_dict(&self.bytes, self.length, dictionary)
            }
            None => lz4_flex::block::decompress(&self.bytes, self.length),
        };
        match body {
            Ok(body) if body.len() == self.length => Ok(Bytes::from(body)),
            _ => Err(Damaged),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_resembles_the_dictionary_becomes_small() {
        let body = |n: u32| {
            let text = format!(
                "inbound-vip|{n}|http|app-{n}.shop.svc.cluster.local;connect_timeout=10s;circuit_breakers"
            );
            text.repeat(2).into_bytes()
        };
        let dictionary: Arc<[u8]> = Arc::from(body(1));
        let (alone, together) =
            (Packed::pack(&body(2), None), Packed::pack(&body(2), Some(&dictionary)));
        assert!(together.bytes.len() < alone.bytes.len());
        assert_eq!(together.unpack().unwrap(), body(2));
        assert_eq!(alone.unpack().unwrap(), body(2));
    }

    #[test]
    fn what_does_not_shrink_is_kept_as_it_is() {
        let body: Vec<u8> = (0..=255).collect();
        let packed = Packed::pack(&body, None);
        assert!(!packed.compressed);
        assert_eq!(packed.unpack().unwrap(), body);
        assert_eq!(Packed::pack(&[], None).unpack().unwrap(), Bytes::new());
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_before_memory_is_taken() {
        let packed = Packed {
            length: usize::MAX / 2,
            compressed: true,
            dictionary: None,
            bytes: Bytes::from_static(b"\x10a\0\0"),
        };
        assert_eq!(packed.unpack(), Err(Damaged));
    }

    proptest! {
        #[test]
        fn round_trip(
            words in proptest::collection::vec("[a-z]{1,8}", 0..200),
            noise in proptest::collection::vec(any::<u8>(), 0..300),
            dictionary in proptest::option::of(proptest::collection::vec(any::<u8>(), 1..5000)),
        ) {
            let mut body = words.join("/").into_bytes();
            body.extend_from_slice(&noise);
            let dictionary = dictionary.map(|mut bytes| {
                bytes.extend_from_slice(&body);
                bytes.truncate(MAX_DICTIONARY_BYTES);
                Arc::<[u8]>::from(bytes)
            });
            let packed = Packed::pack(&body, dictionary.as_ref());
            prop_assert_eq!(packed.unpack().unwrap(), body);
        }

        #[test]
        fn damage_never_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            length in 0usize..100_000,
            dictionary in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200)),
            compressed: bool,
        ) {
            let packed = Packed {
                length,
                compressed,
                dictionary: dictionary.map(Arc::from),
                bytes: Bytes::from(bytes),
            };
            if let Ok(body) = packed.unpack() {
                prop_assert_eq!(body.len(), length);
            }
        }
    }
}

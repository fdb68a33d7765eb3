//! Taking a message apart without decoding it: its fields as slices of the bytes.
//!
//! A listener of 8 MB in which one filter chain changed is walked, hashed and decoded only where it changed.

use prost::encoding::{WireType, decode_key, decode_varint};
use ring::digest::{SHA256, digest};
use std::fmt;

/// SHA-256 of bytes: equal digests, equal bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Digest([u8; 32]);

impl Digest {
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut out = [0; 32];
        out.copy_from_slice(digest(&SHA256, bytes).as_ref());
        Digest(out)
    }
}

/// Bytes that are no sequence of protobuf fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed {
    /// Where, in bytes from the start.
    pub at: usize,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no protobuf field begins at byte {}", self.at)
    }
}

/// The payloads of all length-delimited occurrences of `field`, and the rest of the message as it was.
pub(super) struct Split<'a> {
    pub parts: Vec<&'a [u8]>,
    pub rest: Vec<u8>,
}

/// Takes `field` out of a message.
pub(super) fn split(message: &[u8], field: u32) -> Result<Split<'_>, Malformed> {
    let mut parts = Vec::new();
    let mut rest = Vec::new();
    let mut from = message;
    while !from.is_empty() {
        let (number, payload, after) =
            next(from).ok_or(Malformed { at: message.len() - from.len() })?;
        match payload {
            Some(payload) if number == field => parts.push(payload),
            _ => rest.extend_from_slice(
                from.get(..from.len() - after.len())
                    .expect("what comes after a field is a part of what began with it"),
            ),
        }
        from = after;
    }
    Ok(Split { parts, rest })
}

/// The payloads of all length-delimited occurrences of `field`; malformed messages have none.
pub(super) fn parts(message: &[u8], field: u32) -> Vec<&[u8]> {
    split(message, field).map(|split| split.parts).unwrap_or_default()
}

/// Number, payload if it is length-delimited, and what comes after the field.
type Field<'a> = (u32, Option<&'a [u8]>, &'a [u8]);

/// The first field; none where the message is malformed.
fn next(bytes: &[u8]) -> Option<Field<'_>> {
    let mut from = bytes;
    let (number, wire) = decode_key(&mut from).ok()?;
    match wire {
        WireType::Varint => {
            decode_varint(&mut from).ok()?;
            Some((number, None, from))
        }
        WireType::SixtyFourBit => Some((number, None, from.get(8..)?)),
        WireType::ThirtyTwoBit => Some((number, None, from.get(4..)?)),
        WireType::LengthDelimited => {
            let length = usize::try_from(decode_varint(&mut from).ok()?).ok()?;
            let (payload, after) = from.split_at_checked(length)?;
            Some((number, Some(payload), after))
        }
        // Groups are not used by any message of Envoy's or Istio's.
        WireType::StartGroup | WireType::EndGroup => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use cairn_proto::envoy::envoy::config::listener::v3::{FilterChain, Listener};
    use proptest::prelude::*;
    use prost::Message;

    #[test]
    fn chains_are_taken_out() {
        let chain = |name: &str| FilterChain { name: name.into(), ..FilterChain::default() };
        let listener = Listener {
            name: "main_internal".into(),
            filter_chains: vec![chain("a"), chain("b")],
            stat_prefix: "x".into(),
            ..Listener::default()
        };
        let bytes = listener.encode_to_vec();
        let Split { parts, rest } = split(&bytes, 3).unwrap();
        let names: Vec<String> =
            parts.iter().map(|part| FilterChain::decode(*part).unwrap().name).collect();
        assert_eq!(names, ["a", "b"]);
        let rest = Listener::decode(rest.as_slice()).unwrap();
        assert_eq!(rest, Listener { filter_chains: Vec::new(), ..listener });
    }

    #[test]
    fn where_it_is_malformed() {
        let mut bytes = Listener { name: "x".into(), ..Listener::default() }.encode_to_vec();
        bytes.extend_from_slice(&[0x1a, 5, 1]);
        assert_eq!(split(&bytes, 3).err(), Some(Malformed { at: 3 }));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), field in 1..40_u32) {
            if let Ok(Split { parts, rest }) = split(&bytes, field) {
                let taken: usize = parts.iter().map(|part| part.len()).sum();
                prop_assert!(taken + rest.len() <= bytes.len());
            }
        }
    }
}

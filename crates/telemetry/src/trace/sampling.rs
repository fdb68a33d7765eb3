//! Which requests are traced, by `x-request-id` (Envoy: `ConnectionManagerUtility::mutateTracingRequestHeader`,
//! `UUIDRequestIDExtension`).
//!
//! The id's first eight digits are a number that all proxies on the way draw with, and its fifteenth character says
//! what was decided before: `9` drawn, `a` forced, `b` asked for by the client, everything else not traced.

/// Length of a UUID.
const UUID_LENGTH: usize = 36;
/// Where in it the decision stands.
const REASON_AT: usize = 14;

/// Shares of 10,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    /// Of the requests with `x-client-trace-id`.
    pub client: u32,
    /// Of the others.
    pub random: u32,
    /// Of all.
    pub overall: u32,
    /// `x-request-id` decides; otherwise all are traced.
    pub by_request_id: bool,
    /// The decision is written into `x-request-id`.
    pub pack: bool,
}

/// What is known of a request before it is decided.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// `x-request-id`, the client's or ours.
    pub request_id: Option<&'a [u8]>,
    /// It has `x-client-trace-id`.
    pub client_trace_id: bool,
    /// A random number.
    pub draw: u32,
}

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// It is traced, unless its caller says otherwise.
    pub traced: bool,
    /// The character at [`Decision::PLACE`] of `x-request-id` shall become this one.
    pub write: Option<u8>,
}

impl Decision {
    /// Where in `x-request-id` the decision is written.
    pub const PLACE: usize = REASON_AT;
}

impl Sampling {
    /// Decides.
    pub fn decide(&self, question: Question<'_>) -> Decision {
        let Sampling { client, random, overall, by_request_id, pack } = *self;
        let Question { request_id, client_trace_id, draw } = question;
        if !by_request_id {
            return Decision { traced: true, write: None };
        }
        let not = Decision { traced: false, write: None };
        let Some((id, number)) = request_id.and_then(|id| Some((id, number(id)?))) else {
            return not;
        };
        let drawn = number % 10_000;
        let before = (id.len() == UUID_LENGTH).then(|| id.get(REASON_AT)).flatten();
        let known = matches!(before, Some(b'9' | b'a' | b'b'));
        let mut reason = match before {
            _ if known => None,
            _ if client_trace_id && draw % 10_000 < client => Some(b'b'),
            _ if drawn < random => Some(b'9'),
            _ => return not,
        };
        let mut traced = true;
        if drawn >= overall {
            (traced, reason) = (false, Some(b'4'));
        }
        let changed = pack && before.is_some() && reason.as_ref() != before;
        Decision { traced, write: reason.filter(|_| changed) }
    }
}

/// The first eight digits.
fn number(id: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(id.get(..8)?).ok()?;
    digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then_some(())?;
    u32::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Sampling = Sampling {
        client: 10_000,
        random: 10_000,
        overall: 10_000,
        by_request_id: true,
        pack: true,
    };
    /// 0x2710 is 10,000, so these draw 0 and 9,999.
    const LOW: &str = "00002710-0000-4000-8000-000000000001";
    const HIGH: &str = "0000270f-0000-4000-8000-000000000001";

    fn decide(sampling: Sampling, id: &str, client_trace_id: bool) -> (bool, Option<char>) {
        let question = Question { request_id: Some(id.as_bytes()), client_trace_id, draw: 5_000 };
        let Decision { traced, write } = sampling.decide(question);
        (traced, write.map(char::from))
    }

    /// As Envoy 1.40 answered.
    #[test]
    fn as_envoy_decides() {
        let none = Sampling { random: 0, ..ALL };
        let marked = |mark: char| LOW.replacen("-4", &format!("-{mark}"), 1);
        for (sampling, id, client, expected) in [
            (ALL, LOW, false, (true, Some('9'))),
            (none, LOW, false, (false, None)),
            (Sampling { random: 1, ..ALL }, LOW, false, (true, Some('9'))),
            (Sampling { random: 9_999, ..ALL }, HIGH, false, (false, None)),
            (none, LOW, true, (true, Some('b'))),
            (Sampling { client: 5_000, ..none }, LOW, true, (false, None)),
            (Sampling { client: 5_001, ..none }, LOW, true, (true, Some('b'))),
            (Sampling { client: 0, ..ALL }, LOW, true, (true, Some('9'))),
            (none, &marked('9'), false, (true, None)),
            (none, &marked('a'), false, (true, None)),
            (none, &marked('b'), false, (true, None)),
            (none, &marked('7'), false, (false, None)),
            (Sampling { overall: 0, ..ALL }, &marked('9'), false, (false, Some('4'))),
            (Sampling { overall: 0, ..ALL }, LOW, false, (false, None)),
            (Sampling { overall: 9_999, ..ALL }, HIGH, false, (false, None)),
            (Sampling { pack: false, ..ALL }, LOW, false, (true, None)),
            (Sampling { by_request_id: false, ..none }, LOW, false, (true, None)),
            // Long enough to draw, not long enough to be written into.
            (ALL, "00000000x", false, (true, None)),
            (ALL, "short", false, (false, None)),
            (ALL, "not-hexadecimal-at-all-but-quite-long", true, (false, None)),
            (ALL, "+0000000", false, (false, None)),
            (ALL, "", false, (false, None)),
        ] {
            assert_eq!(decide(sampling, id, client), expected, "{sampling:?} {id} {client}");
        }
        let nothing = Question { request_id: None, client_trace_id: true, draw: 0 };
        assert_eq!(ALL.decide(nothing), Decision { traced: false, write: None });
    }

    #[test]
    fn the_share_is_kept() {
        let some = Sampling { random: 1_250, ..ALL };
        let traced = (0..80_000_u32).filter(|number| {
            let id =
                format!("{:08x}-0000-4000-8000-000000000001", number.wrapping_mul(0x9e37_79b1));
            decide(some, &id, false).0
        });
        let share = traced.count() as f64 / 80_000.0;
        assert!((share - 0.125).abs() < 0.01, "{share}");
    }
}

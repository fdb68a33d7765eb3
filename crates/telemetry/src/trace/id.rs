//! Ids of traces and spans: hexadecimal digits in headers.

use std::fmt;

/// Id of a trace: 128 bits, of which some callers use 64. Never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

/// Id of a span: 64 bits, never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(u64);

impl TraceId {
    /// `None` for 0.
    pub fn new(value: u128) -> Option<Self> {
        (value != 0).then_some(TraceId(value))
    }

    /// Of 16 or 32 hexadecimal digits in either case, and not 0.
    pub fn parse(text: &[u8]) -> Option<Self> {
        matches!(text.len(), 16 | 32).then(|| hex(text)).flatten().and_then(TraceId::new)
    }

    /// In network order.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// It has no more than 64 bits.
    pub fn is_short(self) -> bool {
        self.0 >> 64 == 0
    }

    /// The lower half; `None` if it is 0.
    pub fn low(self) -> Option<SpanId> {
        SpanId::new(u64::try_from(self.0 & u128::from(u64::MAX)).unwrap_or_default())
    }
}

impl SpanId {
    /// `None` for 0.
    pub fn new(value: u64) -> Option<Self> {
        (value != 0).then_some(SpanId(value))
    }

    /// Of 16 hexadecimal digits in either case, and not 0.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let value = (text.len() == 16).then(|| hex(text)).flatten()?;
        SpanId::new(u64::try_from(value).ok()?)
    }

    /// In network order.
    pub fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// As a number.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// At most 32 digits.
fn hex(text: &[u8]) -> Option<u128> {
    text.iter().try_fold(0, |value: u128, digit| {
        Some(value << 4 | u128::from(char::from(*digit).to_digit(16)?))
    })
}

impl fmt::Display for TraceId {
    /// 32 digits in lower case.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::LowerHex for TraceId {
    /// 16 digits for an id of 64 bits, 32 otherwise: Zipkin's form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_short() { write!(f, "{:016x}", self.0) } else { write!(f, "{:032x}", self.0) }
    }
}

impl fmt::Display for SpanId {
    /// 16 digits in lower case.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

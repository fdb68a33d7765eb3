//! Matchers that routes and policies share.

use serde::{Deserialize, Serialize};

/// How a string is compared. Envoy: `type.matcher.v3.StringMatcher`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StringMatch {
    /// Equal.
    Exact(String),
    /// Starts with.
    Prefix(String),
    /// Ends with.
    Suffix(String),
    /// Contains.
    Contains(String),
    /// RE2 syntax; the whole value must match.
    Regex(String),
}

/// What is asked of a header's or query parameter's value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ValueMatch {
    /// Equal.
    Exact(String),
    /// Starts with.
    Prefix(String),
    /// Ends with.
    Suffix(String),
    /// Contains.
    Contains(String),
    /// RE2 syntax; the whole value must match.
    Regex(String),
    /// `true`: there; `false`: absent.
    Present(bool),
}

/// A header matcher. Envoy: `config.route.v3.HeaderMatcher`. Pseudo-headers `:method`,
/// `:authority`, `:path` and `:scheme` can be named. Of several values of a header one has to match;
/// inverted none may.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderMatch {
    /// Name, in any case.
    pub name: String,
    /// What the value must be.
    #[serde(rename = "match")]
    pub value: ValueMatch,
    /// Matches when the value does not. An absent header does not match an inverted
    /// value match unless `treat_missing_as_empty` (Envoy).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub invert: bool,
    /// An absent header counts as an empty one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub treat_missing_as_empty: bool,
    /// Values are compared without regard to ASCII case (not for `regex`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ignore_case: bool,
}

/// A query parameter matcher: the first parameter of that name is looked at, as it was sent, without
/// decoding (Envoy).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueryMatch {
    /// Name, compared exactly.
    pub name: String,
    /// What the value must be.
    #[serde(rename = "match")]
    pub value: ValueMatch,
}

/// An IP network such as `10.0.0.0/8`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CidrRange(pub ipnet::IpNet);

impl TryFrom<String> for CidrRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse::<ipnet::IpNet>()
            .or_else(|_| text.parse::<std::net::IpAddr>().map(ipnet::IpNet::from))
            .map(|net| CidrRange(net.trunc()))
            .map_err(|_| {
                format!("`{text}` is neither an IP address nor a network such as 10.0.0.0/8")
            })
    }
}

impl From<CidrRange> for String {
    fn from(range: CidrRange) -> Self {
        if range.0.prefix_len() == range.0.max_prefix_len() {
            range.0.addr().to_string()
        } else {
            range.0.to_string()
        }
    }
}

//! Authorization policies. Envoy: `config.rbac.v3.RBAC`, in the vocabulary that istiod uses.

use super::matching::{CidrRange, HeaderMatch, StringMatch};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a matching policy does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Only what matches a policy passes.
    #[default]
    Allow,
    /// What matches a policy is refused.
    Deny,
    /// Nothing is refused; a match is recorded.
    Log,
}

/// One RBAC filter: policies by name, tried in the order of their names (Envoy keeps a sorted map).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rbac {
    /// What a match does.
    #[serde(default)]
    pub action: Action,
    /// Policies by name. None at all with `ALLOW` refuses everything.
    #[serde(default)]
    pub policies: BTreeMap<String, Policy>,
}

/// Matches when one of the permissions and one of the principals match.
///
/// Conditions on a request cannot be decided on a connection: an `ALLOW` policy that hangs on one
/// does not match there, a `DENY` policy does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// What is done; an empty list matches nothing.
    pub permissions: Vec<Permission>,
    /// Who does it; an empty list matches nothing.
    pub principals: Vec<Principal>,
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    /// Anything.
    Any,
    /// All of them.
    And(Vec<Permission>),
    /// One of them.
    Or(Vec<Permission>),
    /// Not that.
    Not(Box<Permission>),
    /// A request header.
    Header(HeaderMatch),
    /// The normalised path without its query.
    Path(StringMatch),
    /// The request method.
    Method(StringMatch),
    /// The `:authority`, compared without regard to case.
    Host(StringMatch),
    /// The service's address that the client named.
    DestinationIp(CidrRange),
    /// The service's port that the client named.
    DestinationPort(u16),
    /// A range of the service's ports.
    DestinationPortRange {
        /// The first.
        start: u16,
        /// The one after the last.
        end: u32,
    },
    /// The path by a template such as `/users/*/profile` or `/files/**` (Envoy: `uri_template`): `*` is one
    /// segment, `**` the rest.
    PathTemplate(String),
    /// What cannot be decided here, and why: neither it nor its negation lets anybody in. An `ALLOW`
    /// policy that hangs on it does not match, a `DENY` policy does.
    Undecidable(String),
}

/// Who does it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Principal {
    /// Anybody, also without an identity.
    Any,
    /// All of them.
    And(Vec<Principal>),
    /// One of them.
    Or(Vec<Principal>),
    /// Not that.
    Not(Box<Principal>),
    /// The peer's SPIFFE URI, from its certificate.
    Authenticated(StringMatch),
    /// Address of the HBONE peer. AuthorizationPolicy: `source.ip`.
    SourceIp(CidrRange),
    /// For a request the last address of `x-forwarded-for`, if there is one, else the HBONE peer's address
    /// (Envoy with `use_remote_address: false`); for a connection the peer's. AuthorizationPolicy: `remote.ip`.
    RemoteIp(CidrRange),
    /// A request header.
    Header(HeaderMatch),
    /// The normalised path without its query.
    Path(StringMatch),
    /// What cannot be decided here, and why: as for [`Permission::Undecidable`].
    Undecidable(String),
}

//! Names of workloads: the SPIFFE id, and the sets of them that a peer is held against.
//!
//! Comparison is always of whole strings, byte for byte. What has two spellings (percent-encoding, dot segments, ports,
//! queries) is not an id here, so two different strings are two different workloads.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest id in bytes (SPIFFE-ID, section 2.3).
const MAX_ID_BYTES: usize = 2048;
/// Longest trust domain in bytes (SPIFFE-ID, section 2.1).
const MAX_TRUST_DOMAIN_BYTES: usize = 255;
const SCHEME: &str = "spiffe://";
const NAMESPACE: &str = "/ns/";
const SERVICE_ACCOUNT: &str = "/sa/";

/// The identity of a workload in the mesh: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
///
/// Cloning costs one reference count.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    text: Arc<str>,
    /// Where the trust domain ends in `text`.
    trust_domain_end: u16,
    /// Where the namespace ends in `text`.
    namespace_end: u16,
}

/// Why a text is not a [`SpiffeId`], or a list not a set of peers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// It does not start with `spiffe://` (lower case).
    #[error("it must start with spiffe://")]
    Scheme,
    /// It has other segments than trust domain, `ns`, namespace, `sa`, service account.
    #[error("its form must be spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Form,
    /// It is longer than 2048 bytes.
    #[error("it is {0} bytes long, at most {MAX_ID_BYTES} are allowed")]
    TooLong(usize),
    /// A part is empty.
    #[error("its {0} is empty")]
    Empty(&'static str),
    /// A part has a character other than ASCII letters, digits, `.`, `-` and `_`, or is `.` or `..`.
    #[error("its {part} has {found:?}, only ASCII letters, digits, '.', '-' and '_' are allowed")]
    Character {
        /// The part: trust domain, namespace or service account.
        part: &'static str,
        /// The first character that is not allowed.
        found: char,
    },
    /// A list of identities or of trust domains has no entry.
    #[error("the list is empty, name at least one")]
    EmptyList,
}

impl SpiffeId {
    /// Reads an id.
    ///
    /// # Errors
    /// [`SpiffeError`] when `text` is not exactly `spiffe://<trust domain>/ns/<namespace>/sa/<service account>` of at
    /// most 2048 bytes, with parts of ASCII letters, digits, `.`, `-` and `_` (SPIFFE-ID, sections 2.1 and 2.2).
    pub fn parse(text: &str) -> Result<Self, SpiffeError> {
        if text.len() > MAX_ID_BYTES {
            return Err(SpiffeError::TooLong(text.len()));
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeError::Scheme)?;
        let mut segments = rest.split('/');
        let mut next = || segments.next();
        let (
            Some(trust_domain),
            Some("ns"),
            Some(namespace),
            Some("sa"),
            Some(service_account),
            None,
        ) = (next(), next(), next(), next(), next(), next())
        else {
            return Err(SpiffeError::Form);
        };
        check_trust_domain(trust_domain)?;
        check_part("namespace", namespace)?;
        check_part("service account", service_account)?;
        let trust_domain_end = SCHEME.len() + trust_domain.len();
        let namespace_end = trust_domain_end + NAMESPACE.len() + namespace.len();
        let offset = |at: usize| u16::try_from(at).map_err(|_| SpiffeError::TooLong(text.len()));
        Ok(Self {
            text: Arc::from(text),
            trust_domain_end: offset(trust_domain_end)?,
            namespace_end: offset(namespace_end)?,
        })
    }

    /// Builds an id of its parts.
    ///
    /// # Errors
    /// As [`SpiffeId::parse`].
    pub fn new(
        trust_domain: &str,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeError> {
        Self::parse(&format!(
            "{SCHEME}{trust_domain}{NAMESPACE}{namespace}{SERVICE_ACCOUNT}{service_account}"
        ))
    }

    /// The whole id, as it stands in a certificate.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain, such as `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        self.part(SCHEME.len(), self.trust_domain_end.into())
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        self.part(usize::from(self.trust_domain_end) + NAMESPACE.len(), self.namespace_end.into())
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        self.part(usize::from(self.namespace_end) + SERVICE_ACCOUNT.len(), self.text.len())
    }

    fn part(&self, from: usize, to: usize) -> &str {
        // `parse` is the only constructor and measured both ends on this very text.
        self.text.get(from..to).unwrap_or_default()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl AsRef<str> for SpiffeId {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl std::str::FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = SpiffeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.text.as_ref().to_owned()
    }
}

/// The trust domains whose clients are accepted: the mesh's own and its aliases. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomains(Arc<[String]>);

impl TrustDomains {
    /// Takes a list of trust domains; repeats are dropped.
    ///
    /// # Errors
    /// [`SpiffeError`] when the list is empty or an entry is not a trust domain.
    pub fn new<T: Into<String>>(domains: impl IntoIterator<Item = T>) -> Result<Self, SpiffeError> {
        let mut list: Vec<String> = domains.into_iter().map(Into::into).collect();
        for domain in &list {
            check_trust_domain(domain)?;
        }
        list.sort();
        list.dedup();
        if list.is_empty() {
            return Err(SpiffeError::EmptyList);
        }
        Ok(Self(list.into()))
    }

    /// Only the trust domain of `id`.
    pub fn of(id: &SpiffeId) -> Self {
        Self(Arc::from([id.trust_domain().to_owned()]))
    }

    /// Whether `id` is of one of these trust domains.
    pub fn accepts(&self, id: &SpiffeId) -> bool {
        self.0.iter().any(|domain| domain == id.trust_domain())
    }

    /// The trust domains, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// The identities of which a server that we dial must have one. Never empty; equal when the sets are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExpectedPeers(Expected);

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Expected {
    Ids(Arc<[SpiffeId]>),
    AnyOf(TrustDomains),
}

impl ExpectedPeers {
    /// Takes a list of identities; order and repeats do not matter.
    ///
    /// # Errors
    /// [`SpiffeError::EmptyList`] when the list is empty: nobody would be accepted, and that is never meant.
    pub fn new(ids: impl IntoIterator<Item = SpiffeId>) -> Result<Self, SpiffeError> {
        let mut list: Vec<SpiffeId> = ids.into_iter().collect();
        list.sort();
        list.dedup();
        if list.is_empty() {
            return Err(SpiffeError::EmptyList);
        }
        Ok(Self(Expected::Ids(list.into())))
    }

    /// Exactly one identity.
    pub fn one(id: SpiffeId) -> Self {
        Self(Expected::Ids(Arc::from([id])))
    }

    /// Anybody of these trust domains, as Envoy's waypoint accepts: less than Cairn demands by default.
    pub fn any_of(domains: TrustDomains) -> Self {
        Self(Expected::AnyOf(domains))
    }

    /// Reads a list of identities as configuration has them.
    ///
    /// # Errors
    /// [`SpiffeError`] of the first entry that is not an id, or when there is none.
    pub fn parse<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Result<Self, SpiffeError> {
        let ids: Result<Vec<_>, _> =
            texts.into_iter().map(|text| SpiffeId::parse(text.as_ref())).collect();
        Self::new(ids?)
    }

    /// Whether `id` is one of these.
    pub fn contains(&self, id: &SpiffeId) -> bool {
        match &self.0 {
            Expected::Ids(ids) => ids.contains(id),
            Expected::AnyOf(domains) => domains.accepts(id),
        }
    }
}

impl fmt::Display for ExpectedPeers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut item = |item: &dyn fmt::Display, f: &mut fmt::Formatter<'_>| {
            write!(f, "{separator}{item}")?;
            separator = ", ";
            Ok(())
        };
        match &self.0 {
            Expected::Ids(ids) => ids.iter().try_for_each(|id| item(id, f)),
            Expected::AnyOf(domains) => {
                domains.iter().try_for_each(|domain| item(&format_args!("spiffe://{domain}/*"), f))
            }
        }
    }
}

fn check_trust_domain(text: &str) -> Result<(), SpiffeError> {
    if text.len() > MAX_TRUST_DOMAIN_BYTES {
        return Err(SpiffeError::TooLong(text.len()));
    }
    check_part("trust domain", text)
}

fn check_part(part: &'static str, text: &str) -> Result<(), SpiffeError> {
    if text.is_empty() {
        return Err(SpiffeError::Empty(part));
    }
    if text == "." || text == ".." {
        return Err(SpiffeError::Character { part, found: '.' });
    }
    match text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))) {
        Some(found) => Err(SpiffeError::Character { part, found }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_ids() {
        let cases = [
            ("spiffe://cluster.local/ns/default/sa/web", ("cluster.local", "default", "web")),
            ("spiffe://td/ns/ns/sa/sa", ("td", "ns", "sa")),
            ("spiffe://a/ns/b/sa/c.d-e_f", ("a", "b", "c.d-e_f")),
            ("spiffe://p-1.svc.id.goog/ns/n/sa/...", ("p-1.svc.id.goog", "n", "...")),
        ];
        for (text, (trust_domain, namespace, service_account)) in cases {
            let id = SpiffeId::parse(text).unwrap();
            assert_eq!(id.trust_domain(), trust_domain);
            assert_eq!(id.namespace(), namespace);
            assert_eq!(id.service_account(), service_account);
            assert_eq!(id.as_str(), text);
            assert_eq!(id.to_string(), text);
            assert_eq!(id, SpiffeId::new(trust_domain, namespace, service_account).unwrap());
        }
    }

    #[test]
    fn refuses_what_is_not_an_id() {
        let character = |part, found| SpiffeError::Character { part, found };
        let cases = [
            ("", SpiffeError::Scheme),
            ("cluster.local/ns/a/sa/b", SpiffeError::Scheme),
            ("http://td/ns/a/sa/b", SpiffeError::Scheme),
            ("SPIFFE://td/ns/a/sa/b", SpiffeError::Scheme),
            (" spiffe://td/ns/a/sa/b", SpiffeError::Scheme),
            ("spiffe:/td/ns/a/sa/b", SpiffeError::Scheme),
            ("spiffe://", SpiffeError::Form),
            ("spiffe://td", SpiffeError::Form),
            ("spiffe://td/", SpiffeError::Form),
            ("spiffe://td/ns/a", SpiffeError::Form),
            ("spiffe://td/ns/a/sa", SpiffeError::Form),
            ("spiffe://td/ns/a/sa/b/", SpiffeError::Form),
            ("spiffe://td/ns/a/sa/b/c", SpiffeError::Form),
            ("spiffe://td//ns/a/sa/b", SpiffeError::Form),
            ("spiffe:///td/ns/a/sa/b", SpiffeError::Form),
            ("spiffe://td/sa/b/ns/a", SpiffeError::Form),
            ("spiffe://td/NS/a/sa/b", SpiffeError::Form),
            ("spiffe://td/workload/a/sa/b", SpiffeError::Form),
            ("spiffe:///ns/a/sa/b", SpiffeError::Empty("trust domain")),
            ("spiffe://td/ns//sa/b", SpiffeError::Empty("namespace")),
            ("spiffe://td/ns/a/sa/", SpiffeError::Empty("service account")),
            ("spiffe://td:8443/ns/a/sa/b", character("trust domain", ':')),
            ("spiffe://user@td/ns/a/sa/b", character("trust domain", '@')),
            ("spiffe://td/ns/%61/sa/b", character("namespace", '%')),
            ("spiffe://td/ns/a/sa/b?c", character("service account", '?')),
            ("spiffe://td/ns/a/sa/b#c", character("service account", '#')),
            ("spiffe://td/ns/a/sa/b\0", character("service account", '\0')),
            ("spiffe://td/ns/a/sa/b ", character("service account", ' ')),
            ("spiffe://td/ns/a/sa/\u{e9}", character("service account", '\u{e9}')),
            ("spiffe://td/ns/*/sa/b", character("namespace", '*')),
            ("spiffe://td/ns/../sa/b", character("namespace", '.')),
            ("spiffe://td/ns/a/sa/.", character("service account", '.')),
        ];
        for (text, expected) in cases {
            assert_eq!(SpiffeId::parse(text).unwrap_err(), expected, "{text:?}");
        }
    }

    #[test]
    fn length_is_bounded() {
        let longest = format!("spiffe://td/ns/a/sa/{}", "b".repeat(MAX_ID_BYTES - 20));
        assert_eq!(longest.len(), MAX_ID_BYTES);
        assert!(SpiffeId::parse(&longest).is_ok());
        assert_eq!(
            SpiffeId::parse(&format!("{longest}b")),
            Err(SpiffeError::TooLong(MAX_ID_BYTES + 1))
        );
        assert_eq!(SpiffeId::new(&"d".repeat(256), "a", "b"), Err(SpiffeError::TooLong(256)));
        assert!(SpiffeId::new(&"d".repeat(255), "a", "b").is_ok());
    }

    #[test]
    fn parts_cannot_smuggle_segments() {
        assert_eq!(SpiffeId::new("td", "a/sa/b", "c"), Err(SpiffeError::Form));
        assert_eq!(SpiffeId::new("td/ns/a", "b", "c"), Err(SpiffeError::Form));
    }

    #[test]
    fn trust_domains_compare_whole_names() {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/a/sa/b").unwrap();
        let accepts = |list: &[&str]| TrustDomains::new(list.iter().copied()).unwrap().accepts(&id);
        assert!(accepts(&["cluster.local"]));
        assert!(accepts(&["old.example", "cluster.local"]));
        assert!(!accepts(&["local"]));
        assert!(!accepts(&["cluster.local.evil.example"]));
        assert!(!accepts(&["CLUSTER.LOCAL"]));
        assert!(TrustDomains::of(&id).accepts(&id));
        assert_eq!(TrustDomains::new(Vec::<String>::new()), Err(SpiffeError::EmptyList));
        assert!(TrustDomains::new(["*"]).is_err());
        assert!(TrustDomains::new([""]).is_err());
    }

    #[test]
    fn expected_peers_are_a_set() {
        let a = SpiffeId::new("td", "n", "a").unwrap();
        let b = SpiffeId::new("td", "n", "b").unwrap();
        let both = ExpectedPeers::new([b.clone(), a.clone(), b.clone()]).unwrap();
        assert_eq!(both, ExpectedPeers::new([a.clone(), b.clone()]).unwrap());
        assert!(both.contains(&a) && both.contains(&b));
        assert!(!ExpectedPeers::one(a.clone()).contains(&b));
        assert_eq!(both.to_string(), format!("{a}, {b}"));
        assert_eq!(ExpectedPeers::new([]), Err(SpiffeError::EmptyList));
        assert_eq!(ExpectedPeers::parse(["spiffe://td/ns/n/sa/a"]), Ok(ExpectedPeers::one(a)));
        assert_eq!(ExpectedPeers::parse(["td/ns/n/sa/a"]), Err(SpiffeError::Scheme));
    }

    #[test]
    fn serialises_as_text() {
        let id = SpiffeId::new("td", "n", "a").unwrap();
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, "\"spiffe://td/ns/n/sa/a\"");
        assert_eq!(serde_json::from_str::<SpiffeId>(&json).unwrap(), id);
        assert!(serde_json::from_str::<SpiffeId>("\"spiffe://td/n\"").is_err());
    }

    proptest! {
        #[test]
        fn parse_never_panics(text in any::<String>()) {
            let _ = SpiffeId::parse(&text);
        }

        #[test]
        fn near_misses_never_panic_and_round_trip(text in "spiffe://[a-z.%/:]{0,12}(/ns/)?[a-z./]{0,8}(/sa/)?[a-z?#.\u{e9}]{0,8}") {
            if let Ok(id) = SpiffeId::parse(&text) {
                prop_assert_eq!(id.as_str(), text.as_str());
                let again = SpiffeId::new(id.trust_domain(), id.namespace(), id.service_account());
                prop_assert_eq!(again, Ok(id));
            }
        }

        #[test]
        fn parts_round_trip(
            trust_domain in "[a-zA-Z0-9][a-zA-Z0-9._-]{0,40}",
            namespace in "[a-zA-Z0-9][a-zA-Z0-9._-]{0,40}",
            service_account in "[a-zA-Z0-9][a-zA-Z0-9._-]{0,40}",
        ) {
            let id = SpiffeId::new(&trust_domain, &namespace, &service_account)?;
            prop_assert_eq!(id.trust_domain(), trust_domain);
            prop_assert_eq!(id.namespace(), namespace);
            prop_assert_eq!(id.service_account(), service_account);
            prop_assert_eq!(SpiffeId::parse(id.as_str()), Ok(id));
        }
    }
}

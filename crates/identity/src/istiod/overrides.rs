//! Addresses that stand in for DNS, for tests and odd set-ups.

use std::collections::HashMap;
use std::net::SocketAddr;

/// Most entries.
const MAX_ENTRIES: usize = 1024;

/// A list `host:port=ip:port,…`, as `CAIRN_RESOLVE` has it: the address on the right is dialled where the one on the left
/// is meant. The name on the left stays the one that a certificate must have. The default is an empty list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides(HashMap<String, SocketAddr>);

/// What is wrong with a list of [`Overrides`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverrideError {
    /// An entry has another form.
    #[error(
        "the entry {entry:?} has {what}; write host:port=ip:port, for example istiod.istio-system.svc:15012=127.0.0.1:15012"
    )]
    Form {
        /// The entry.
        entry: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// One name is there twice.
    #[error("{0} is there twice; keep one of the two entries")]
    Twice(String),
    /// The list is too long.
    #[error("there are more than {MAX_ENTRIES} entries; drop those that are not needed")]
    TooMany,
}

impl Overrides {
    /// Reads a list. White space around entries and empty entries do not matter; names are compared without case.
    ///
    /// # Errors
    /// [`OverrideError`] names the entry.
    pub fn parse(text: &str) -> Result<Self, OverrideError> {
        let mut entries = HashMap::new();
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let bad = |what| OverrideError::Form { entry: entry.to_owned(), what };
            let (name, address) = entry.split_once('=').ok_or(bad("no '='"))?;
            let (name, address) = (name.trim(), address.trim());
            super::dial::host_and_port(name).map_err(bad)?;
            let address = address.parse().map_err(|_| bad("no ip:port on the right"))?;
            if entries.len() >= MAX_ENTRIES {
                return Err(OverrideError::TooMany);
            }
            if entries.insert(name.to_ascii_lowercase(), address).is_some() {
                return Err(OverrideError::Twice(name.to_owned()));
            }
        }
        Ok(Self(entries))
    }

    /// What to dial instead of `host_port`, if anything.
    pub fn of(&self, host_port: &str) -> Option<SocketAddr> {
        if self.0.is_empty() {
            return None;
        }
        self.0.get(&host_port.to_ascii_lowercase()).copied()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn reads_lists() {
        let list = " istiod.istio-system.svc:15012=127.0.0.1:4000, ,[::1]:80=[fd00::1]:81,";
        let overrides = Overrides::parse(list).unwrap();
        let of = |name| overrides.of(name).map(|address| address.to_string());
        assert_eq!(of("istiod.istio-system.svc:15012").as_deref(), Some("127.0.0.1:4000"));
        assert_eq!(of("ISTIOD.istio-system.svc:15012").as_deref(), Some("127.0.0.1:4000"));
        assert_eq!(of("[::1]:80").as_deref(), Some("[fd00::1]:81"));
        assert_eq!(of("istiod.istio-system.svc:15010"), None);
        assert_eq!(Overrides::parse("").unwrap(), Overrides::default());
        assert_eq!(Overrides::default().of("a:1"), None);
    }

    #[test]
    fn refuses_other_forms_and_says_how() {
        let cases = [
            ("a:1", "no '='"),
            ("a=1.2.3.4:5", "no port"),
            (":1=1.2.3.4:5", "no host"),
            ("a:0=1.2.3.4:5", "a port that is not between 1 and 65535"),
            ("a:65536=1.2.3.4:5", "a port that is not between 1 and 65535"),
            ("a:1=b:2", "no ip:port on the right"),
            ("a:1=1.2.3.4", "no ip:port on the right"),
            ("::1:80=1.2.3.4:5", "an IPv6 address without brackets"),
        ];
        for (entry, what) in cases {
            let error = Overrides::parse(&format!("x:1=1.2.3.4:5,{entry}")).unwrap_err();
            assert_eq!(error, OverrideError::Form { entry: entry.to_owned(), what });
            assert!(error.to_string().contains("host:port=ip:port"));
        }
        let twice = Overrides::parse("a:1=1.2.3.4:5,A:1=1.2.3.4:6").unwrap_err();
        assert_eq!(twice, OverrideError::Twice("A:1".to_owned()));
    }
}

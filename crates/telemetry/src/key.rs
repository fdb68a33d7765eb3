//! What tells one series from another, borrowed from an event or owned by a shard's index.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use crate::event::{
    ConnectionEvent, Protocol, RequestEvent, SecurityPolicy, ServiceLabels, WorkloadLabels,
};
use crate::flags::ResponseFlags;
use crate::rules::Rules;

/// The fields of an event that its labels are made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyRef<'a> {
    /// Mesh and namespace of the destination. They bound series and tell none apart.
    pub(crate) tenant: (&'a str, &'a str),
    pub(crate) source: Option<&'a Arc<WorkloadLabels>>,
    pub(crate) source_principal: &'a str,
    pub(crate) destination: Option<&'a Arc<WorkloadLabels>>,
    pub(crate) service: Option<&'a Arc<ServiceLabels>>,
    pub(crate) outcome: Outcome,
    pub(crate) rules: Option<&'a Arc<Rules>>,
    pub(crate) dimensions: &'a [String],
}

/// The part of a key that is numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Outcome {
    pub(crate) protocol: Protocol,
    pub(crate) response_code: u16,
    pub(crate) grpc_status: Option<u32>,
    pub(crate) flags: ResponseFlags,
    pub(crate) security: SecurityPolicy,
}

/// An owned key.
#[derive(Debug)]
pub(crate) struct Key {
    source: Option<Arc<WorkloadLabels>>,
    source_principal: Box<str>,
    destination: Option<Arc<WorkloadLabels>>,
    service: Option<Arc<ServiceLabels>>,
    outcome: Outcome,
    rules: Option<Arc<Rules>>,
    dimensions: Box<[String]>,
}

impl<'a> KeyRef<'a> {
    pub(crate) fn of_request(event: &RequestEvent<'a>) -> Self {
        KeyRef {
            tenant: (event.mesh, event.tenant),
            source: event.source,
            source_principal: event.source_principal,
            destination: event.destination,
            service: event.service,
            outcome: Outcome {
                protocol: event.protocol,
                response_code: event.response_code,
                grpc_status: event.grpc_status.filter(|_| event.protocol == Protocol::Grpc),
                flags: event.flags,
                security: event.security,
            },
            rules: event.rules,
            dimensions: event.dimensions,
        }
    }

    /// Of a request's messages, which are counted before its outcome is known.
    pub(crate) fn of_messages(event: &RequestEvent<'a>) -> Self {
        KeyRef { outcome: Outcome::default(), ..KeyRef::of_request(event) }
    }

    pub(crate) fn of_connection(event: &ConnectionEvent<'a>) -> Self {
        KeyRef {
            tenant: (event.mesh, event.tenant),
            source: event.source,
            source_principal: event.source_principal,
            destination: event.destination,
            service: event.service,
            outcome: Outcome {
                protocol: Protocol::Tcp,
                response_code: 0,
                grpc_status: None,
                flags: event.flags,
                security: event.security,
            },
            rules: event.rules,
            dimensions: event.dimensions,
        }
    }

    /// Hashes what usually tells series apart; [`Key::is`] compares everything.
    pub(crate) fn fingerprint(&self, hasher: &impl BuildHasher) -> u64 {
        let mut state = hasher.build_hasher();
        for workload in [self.source, self.destination] {
            match workload {
                Some(w) => {
                    (&*w.workload, &*w.namespace, &*w.cluster, &*w.canonical_revision)
                        .hash(&mut state);
                }
                None => state.write_u8(0),
            }
        }
        self.source_principal.hash(&mut state);
        self.service.map(|s| &*s.host).hash(&mut state);
        self.outcome.hash(&mut state);
        if let Some(rules) = self.rules {
            rules.fingerprint().hash(&mut state);
            self.dimensions.hash(&mut state);
        }
        state.finish()
    }

    pub(crate) fn to_key(self) -> Key {
        Key {
            source: self.source.cloned(),
            source_principal: self.source_principal.into(),
            destination: self.destination.cloned(),
            service: self.service.cloned(),
            outcome: self.outcome,
            rules: self.rules.cloned(),
            dimensions: self.dimensions.into(),
        }
    }
}

impl Key {
    /// Whether `other` has the same value in every field.
    pub(crate) fn is(&self, other: &KeyRef<'_>) -> bool {
        self.outcome == other.outcome
            && same(self.source.as_ref(), other.source)
            && same(self.destination.as_ref(), other.destination)
            && same(self.service.as_ref(), other.service)
            && *self.source_principal == *other.source_principal
            && same(self.rules.as_ref(), other.rules)
            && *self.dimensions == *other.dimensions
    }
}

/// Equal values; the address alone decides where a configuration push has not made a new value of the same content.
fn same<T: PartialEq>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
        (None, None) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ahash::RandomState;

    fn workload(name: &str) -> Arc<WorkloadLabels> {
        Arc::new(WorkloadLabels { workload: name.into(), ..WorkloadLabels::default() })
    }

    #[test]
    fn equal_content_is_the_same_key_whatever_its_address() {
        let hasher = RandomState::new();
        let (a, b, c) = (workload("web"), workload("web"), workload("app"));
        let event = |source| RequestEvent { source, ..RequestEvent::default() };
        let key = KeyRef::of_request(&event(Some(&a)));
        let owned = key.to_key();
        let again = KeyRef::of_request(&event(Some(&b)));
        assert!(owned.is(&again));
        assert_eq!(key.fingerprint(&hasher), again.fingerprint(&hasher));
        assert!(!owned.is(&KeyRef::of_request(&event(Some(&c)))));
        assert!(!owned.is(&KeyRef::of_request(&event(None))));
    }

    #[test]
    fn every_field_tells_keys_apart() {
        let (web, app) = (workload("web"), workload("app"));
        let service = Arc::new(ServiceLabels::default());
        let rules = Arc::default();
        let dimensions = ["value".to_owned()];
        let base = RequestEvent::default();
        let owned = KeyRef::of_request(&base).to_key();
        let changed = [
            RequestEvent { source: Some(&web), ..base.clone() },
            RequestEvent { source_principal: "spiffe://a/ns/b/sa/c", ..base.clone() },
            RequestEvent { destination: Some(&app), ..base.clone() },
            RequestEvent { service: Some(&service), ..base.clone() },
            RequestEvent { protocol: Protocol::Grpc, ..base.clone() },
            RequestEvent { response_code: 200, ..base.clone() },
            RequestEvent { grpc_status: Some(0), protocol: Protocol::Grpc, ..base.clone() },
            RequestEvent { flags: ResponseFlags::RATE_LIMITED, ..base.clone() },
            RequestEvent { security: SecurityPolicy::MutualTls, ..base.clone() },
            RequestEvent { rules: Some(&rules), ..base.clone() },
            RequestEvent { dimensions: &dimensions, ..base.clone() },
        ];
        for event in &changed {
            assert!(!owned.is(&KeyRef::of_request(event)), "{event:?}");
        }
        let refused = RequestEvent { grpc_status: Some(7), ..base.clone() };
        assert!(owned.is(&KeyRef::of_request(&refused)), "a status that Envoy does not see");
        assert!(owned.is(&KeyRef::of_request(&RequestEvent { path: "/other", ..base })));
    }
}

//! Conditions that are not understood close doors and open none.

use super::*;
use proptest::prelude::{Just, Strategy, prop, prop_assert, prop_oneof, proptest};

fn undecidable() -> String {
    "test".to_owned()
}

#[test]
fn neither_it_nor_its_negation_lets_anybody_in() {
    let headers = HeaderMap::new();
    let peer = connection(Some(WEB));
    let get = request(&Method::GET, "/", &headers);
    let not = |permission| P::Not(Box::new(permission));
    let unsure = || P::Undecidable(undecidable());
    let not_q = Q::Not(Box::new(Q::Undecidable(undecidable())));
    for (permission, principal) in [
        (unsure(), Q::Any),
        (not(unsure()), Q::Any),
        (not(not(unsure())), Q::Any),
        (P::And(vec![P::Any, unsure()]), Q::Any),
        (P::Or(vec![not(P::Any), unsure()]), Q::Any),
        (P::PathTemplate("/{id}".into()), Q::Any),
        (not(P::PathTemplate("no/slash".into())), Q::Any),
        (P::Any, Q::Undecidable(undecidable())),
        (P::Any, not_q),
    ] {
        for action in [spec::Action::Allow, spec::Action::Deny] {
            let filter = rbac(action, &[("p", permission.clone(), principal.clone())]);
            let what = format!("{action:?} {permission:?} {principal:?}");
            assert!(filter.check_request(&peer, &get).is_denied(), "{what}");
            assert!(filter.check_connection(&peer).is_denied(), "{what}");
        }
        let log = rbac(spec::Action::Log, &[("p", permission, principal)]);
        assert_eq!(log.check_request(&peer, &get), Verdict::Allowed);
    }
    // What holds whatever it may be.
    let either = P::Or(vec![P::Any, unsure()]);
    let allow = rbac(spec::Action::Allow, &[("p", either, Q::Any)]);
    assert_eq!(allow.check_request(&peer, &get), Verdict::Allowed);
    let both = P::And(vec![not(P::Any), unsure()]);
    let deny = rbac(spec::Action::Deny, &[("p", both, Q::Any)]);
    assert_eq!(deny.check_request(&peer, &get), Verdict::Allowed);
}

#[test]
fn each_is_worth_a_warning() {
    let filter = spec::Rbac {
        action: spec::Action::Allow,
        policies: [(
            "p".to_owned(),
            spec::Policy {
                permissions: vec![P::Undecidable("no such thing".into())],
                principals: vec![Q::Not(Box::new(Q::Undecidable("who".into())))],
            },
        )]
        .into_iter()
        .collect(),
    };
    let mut at = Context::new();
    assert!(CompiledRbac::compile(&filter, &mut at).is_some());
    let warnings: Vec<String> = at.take_warnings().iter().map(ToString::to_string).collect();
    let rest = "an ALLOW policy that hangs on it does not match, a DENY policy does";
    assert_eq!(
        warnings,
        [
            format!("policies[\"p\"].permissions[0]: cannot be decided (no such thing): {rest}"),
            format!("policies[\"p\"].principals[0].not: cannot be decided (who): {rest}"),
        ]
    );
    assert_eq!(at.into_errors(), []);
}

/// A condition, and the same one with parts that are not understood.
fn permissions() -> impl Strategy<Value = (P, P)> {
    let leaf = prop_oneof![
        Just(P::Any),
        Just(P::DestinationPort(80)),
        Just(P::DestinationPort(81)),
        Just(P::Method(exact("GET"))),
        Just(P::Path(prefix("/b"))),
        Just(P::PathTemplate("/*".into())),
    ];
    let leaf = (leaf, prop::bool::ANY).prop_map(|(leaf, unsure)| {
        let other = if unsure { P::Undecidable(undecidable()) } else { leaf.clone() };
        (leaf, other)
    });
    leaf.prop_recursive(4, 24, 3, |inner| {
        let list = (prop::collection::vec(inner.clone(), 1..4), prop::bool::ANY).prop_map(
            |(pairs, more)| {
                let (plain, mut unsure): (Vec<P>, Vec<P>) = pairs.into_iter().unzip();
                unsure.extend(more.then(|| P::Undecidable(undecidable())));
                (plain, unsure)
            },
        );
        prop_oneof![
            inner.prop_map(|(plain, unsure)| {
                (P::Not(Box::new(plain)), P::Not(Box::new(unsure)))
            }),
            list.clone().prop_map(|(plain, unsure)| (P::And(plain), P::And(unsure))),
            list.prop_map(|(plain, unsure)| (P::Or(plain), P::Or(unsure))),
        ]
    })
}

/// As [`permissions`].
fn principals() -> impl Strategy<Value = (Q, Q)> {
    let leaf = prop_oneof![
        Just(Q::Any),
        Just(Q::Authenticated(exact(WEB))),
        Just(Q::Authenticated(exact("somebody"))),
        Just(Q::SourceIp(net("10.0.0.0/8"))),
        Just(Q::RemoteIp(net("192.0.2.0/24"))),
        Just(Q::Path(exact("/a"))),
    ];
    let leaf = (leaf, prop::bool::ANY).prop_map(|(leaf, unsure)| {
        let other = if unsure { Q::Undecidable(undecidable()) } else { leaf.clone() };
        (leaf, other)
    });
    leaf.prop_recursive(3, 12, 3, |inner| {
        let list = prop::collection::vec(inner.clone(), 1..4)
            .prop_map(|pairs| pairs.into_iter().unzip::<Q, Q, Vec<Q>, Vec<Q>>());
        prop_oneof![
            inner.prop_map(|(plain, unsure)| {
                (Q::Not(Box::new(plain)), Q::Not(Box::new(unsure)))
            }),
            list.clone().prop_map(|(plain, unsure)| (Q::And(plain), Q::And(unsure))),
            list.prop_map(|(plain, unsure)| (Q::Or(plain), Q::Or(unsure))),
        ]
    })
}

proptest! {
    #[test]
    fn adding_it_never_opens(
        permission in permissions(),
        principal in principals(),
        deny in prop::bool::ANY,
        put in prop::bool::ANY,
        forwarded in prop::bool::ANY,
    ) {
        let action = if deny { spec::Action::Deny } else { spec::Action::Allow };
        let plain = rbac(action, &[("p", permission.0, principal.0)]);
        let unsure = rbac(action, &[("p", permission.1, principal.1)]);
        let mut headers = HeaderMap::new();
        if forwarded {
            headers.insert("x-forwarded-for", "192.0.2.1".parse().unwrap());
        }
        let method = if put { Method::PUT } else { Method::GET };
        let view = request(&method, "/a", &headers);
        let peer = connection(Some(WEB));
        if plain.check_request(&peer, &view).is_denied() {
            prop_assert!(unsure.check_request(&peer, &view).is_denied());
        }
        if plain.check_connection(&peer).is_denied() {
            prop_assert!(unsure.check_connection(&peer).is_denied());
        }
    }
}

//! Authorization policies.

use crate::world::*;
use cairn_proto::envoy as pb;
use cairn_proto::prost::Message;
use cairn_router::spec::{Action, HttpFilter, Permission, Policy, Principal, StringMatch};
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::rbac::v3 as rbac;
use pb::envoy::config::rbac::v3::permission::{self, Rule};
use pb::envoy::config::rbac::v3::principal::{self, Identifier};
use pb::envoy::config::route::v3 as route;
use pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use pb::envoy::extensions::filters::network::tcp_proxy::v3 as proxy;
use pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use pb::envoy::r#type::matcher::v3 as types;
use pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;

fn string(pattern: MatchPattern) -> types::StringMatcher {
    types::StringMatcher { match_pattern: Some(pattern), ignore_case: false }
}

fn permission(rule: Rule) -> rbac::Permission {
    rbac::Permission { rule: Some(rule) }
}

fn principal(identifier: Identifier) -> rbac::Principal {
    rbac::Principal { identifier: Some(identifier) }
}

fn policy(permissions: Vec<rbac::Permission>, principals: Vec<rbac::Principal>) -> rbac::Policy {
    rbac::Policy { permissions, principals, ..rbac::Policy::default() }
}

fn rules(action: rbac::rbac::Action, policy: rbac::Policy) -> rbac::Rbac {
    rbac::Rbac {
        action: action as i32,
        policies: [("p".to_owned(), policy)].into_iter().collect(),
        ..rbac::Rbac::default()
    }
}

/// The policy as it comes out of an HTTP chain.
fn translated(from: rbac::Policy) -> Policy {
    let config =
        HttpRbac { rules: Some(rules(rbac::rbac::Action::Allow, from)), ..HttpRbac::default() };
    let mut manager = manager();
    manager.http_filters.insert(0, http_filter("rbac", pack(&config)));
    let (translator, destination) = of_chain(http_chain(&manager));
    compiles(&translator.resources());
    let chain = destination.http.as_ref().unwrap();
    assert_eq!(chain.broken, None);
    let [HttpFilter::Rbac(rbac)] = chain.filters.as_slice() else { panic!("{:?}", chain.filters) };
    assert_eq!(rbac.action, Action::Allow);
    rbac.policies["p"].clone()
}

fn of_permission(rule: Rule) -> Permission {
    translated(policy(vec![permission(rule)], vec![principal(Identifier::Any(true))])).permissions
        [0]
    .clone()
}

fn of_principal(identifier: Identifier) -> Principal {
    translated(policy(vec![permission(Rule::Any(true))], vec![principal(identifier)])).principals[0]
        .clone()
}

fn cidr(address: &str, length: u32) -> core::CidrRange {
    core::CidrRange {
        address_prefix: address.to_owned(),
        prefix_len: Some(pb::google::protobuf::UInt32Value { value: length }),
    }
}

fn path(pattern: MatchPattern) -> types::PathMatcher {
    types::PathMatcher { rule: Some(types::path_matcher::Rule::Path(string(pattern))) }
}

fn state(key: &str, pattern: MatchPattern) -> Identifier {
    Identifier::FilterState(types::FilterStateMatcher {
        key: key.to_owned(),
        matcher: Some(types::filter_state_matcher::Matcher::StringMatch(string(pattern))),
    })
}

#[test]
fn permissions() {
    assert_eq!(of_permission(Rule::Any(true)), Permission::Any);
    let set = permission::Set { rules: vec![permission(Rule::DestinationPort(80))] };
    let port = || vec![Permission::DestinationPort(80)];
    assert_eq!(of_permission(Rule::AndRules(set.clone())), Permission::And(port()));
    assert_eq!(of_permission(Rule::OrRules(set)), Permission::Or(port()));
    let not = Rule::NotRule(Box::new(permission(Rule::Any(true))));
    assert_eq!(of_permission(not), Permission::Not(Box::new(Permission::Any)));
    assert_eq!(
        of_permission(Rule::UrlPath(path(MatchPattern::Prefix("/a".to_owned())))),
        Permission::Path(StringMatch::Prefix("/a".to_owned()))
    );
    let template = UriTemplateMatchConfig { path_template: "/a/*/b".to_owned() };
    let extension =
        core::TypedExtensionConfig { name: "t".to_owned(), typed_config: Some(pack(&template)) };
    assert_eq!(
        of_permission(Rule::UriTemplate(extension)),
        Permission::PathTemplate("/a/*/b".to_owned())
    );
    let Permission::DestinationIp(network) =
        of_permission(Rule::DestinationIp(cidr("10.0.0.0", 8)))
    else {
        panic!()
    };
    assert_eq!(String::from(network), "10.0.0.0/8");
    let host = route::HeaderMatcher {
        name: ":authority".to_owned(),
        header_match_specifier: Some(route::header_matcher::HeaderMatchSpecifier::StringMatch(
            types::StringMatcher {
                ignore_case: true,
                ..string(MatchPattern::Exact("App".to_owned()))
            },
        )),
        ..route::HeaderMatcher::default()
    };
    let Permission::Header(header) = of_permission(Rule::Header(host)) else { panic!() };
    assert!(header.ignore_case && header.name == ":authority");
}

#[test]
fn principals() {
    let exact = || MatchPattern::Exact("spiffe://td/ns/a/sa/b".to_owned());
    assert_eq!(
        of_principal(state("io.istio.peer_principal", exact())),
        Principal::Authenticated(StringMatch::Exact("spiffe://td/ns/a/sa/b".to_owned()))
    );
    let set = principal::Set { ids: vec![principal(Identifier::Any(true))] };
    assert_eq!(of_principal(Identifier::AndIds(set.clone())), Principal::And(vec![Principal::Any]));
    assert_eq!(of_principal(Identifier::OrIds(set)), Principal::Or(vec![Principal::Any]));
    let not = Identifier::NotId(Box::new(principal(Identifier::Any(true))));
    assert_eq!(of_principal(not), Principal::Not(Box::new(Principal::Any)));
    assert!(matches!(
        of_principal(Identifier::DirectRemoteIp(cidr("10.0.0.0", 8))),
        Principal::SourceIp(_)
    ));
    assert!(matches!(
        of_principal(Identifier::RemoteIp(cidr("10.0.0.0", 8))),
        Principal::RemoteIp(_)
    ));
}

/// What cannot be decided is said to be so; the engine lets nobody in by it or its negation.
#[test]
fn what_cannot_be_decided() {
    let metadata = types::MetadataMatcher { filter: "jwt".to_owned(), ..Default::default() };
    for rule in [
        Rule::Metadata(metadata.clone()),
        Rule::RequestedServerName(string(MatchPattern::Exact("a".to_owned()))),
        Rule::Matcher(core::TypedExtensionConfig::default()),
        Rule::UriTemplate(core::TypedExtensionConfig::default()),
        Rule::Any(false),
        Rule::AndRules(permission::Set::default()),
        Rule::OrRules(permission::Set::default()),
        Rule::DestinationPort(70_000),
        Rule::DestinationIp(cidr("nowhere", 8)),
        Rule::UrlPath(types::PathMatcher::default()),
        Rule::UrlPath(path(MatchPattern::Prefix(String::new()))),
    ] {
        let outcome = of_permission(rule.clone());
        assert!(matches!(outcome, Permission::Undecidable(_)), "{rule:?}: {outcome:?}");
    }
    let certificate = principal::Authenticated { principal_name: None };
    for identifier in [
        Identifier::Metadata(metadata),
        Identifier::Authenticated(certificate),
        state("io.istio.other", MatchPattern::Exact("a".to_owned())),
        Identifier::Custom(core::TypedExtensionConfig::default()),
        Identifier::Any(false),
        Identifier::AndIds(principal::Set::default()),
    ] {
        let outcome = of_principal(identifier.clone());
        assert!(matches!(outcome, Principal::Undecidable(_)), "{identifier:?}: {outcome:?}");
    }
    let nothing =
        translated(policy(vec![rbac::Permission { rule: None }], vec![rbac::Principal::default()]));
    assert!(matches!(nothing.permissions[0], Permission::Undecidable(_)));
    assert!(matches!(nothing.principals[0], Principal::Undecidable(_)));
    let conditional = rbac::Policy {
        condition: Some(Default::default()),
        ..policy(vec![permission(Rule::Any(true))], vec![principal(Identifier::Any(true))])
    };
    let Permission::And(both) = &translated(conditional).permissions[0] else { panic!() };
    assert!(matches!(both[1], Permission::Undecidable(_)));
}

#[test]
fn rules_of_tcp_chains() {
    let everybody =
        policy(vec![permission(Rule::Any(true))], vec![principal(Identifier::Any(true))]);
    let of = |config: &NetworkRbac| {
        let proxied = proxy::TcpProxy {
            cluster_specifier: Some(proxy::tcp_proxy::ClusterSpecifier::Cluster("c".to_owned())),
            ..proxy::TcpProxy::default()
        };
        tcp(vec![network_filter("rbac", pack(config)), network_filter("tcp", pack(&proxied))])
    };
    let deny = NetworkRbac {
        rules: Some(rules(rbac::rbac::Action::Deny, everybody.clone())),
        ..NetworkRbac::default()
    };
    let chain = of(&deny);
    assert_eq!((chain.broken, chain.rbac.len(), chain.rbac[0].action), (None, 1, Action::Deny));
    // Only looked at by others.
    let shadow = NetworkRbac {
        shadow_rules: Some(rules(rbac::rbac::Action::Deny, everybody)),
        ..NetworkRbac::default()
    };
    let chain = of(&shadow);
    assert_eq!((chain.broken, chain.rbac.len()), (None, 0));
    let matcher = NetworkRbac { matcher: Some(Default::default()), ..NetworkRbac::default() };
    assert!(of(&matcher).broken.is_some());
}

/// An address by another rule than Envoy's default would let the wrong clients in.
#[test]
fn remote_ip_with_another_rule_for_addresses() {
    let of = |identifier| {
        let everything = policy(vec![permission(Rule::Any(true))], vec![principal(identifier)]);
        let config = HttpRbac {
            rules: Some(rules(rbac::rbac::Action::Allow, everything)),
            ..HttpRbac::default()
        };
        let mut manager = manager();
        manager.xff_num_trusted_hops = 1;
        manager.http_filters.insert(0, http_filter("rbac", pack(&config)));
        http(&manager).broken.is_some()
    };
    assert!(of(Identifier::RemoteIp(cidr("10.0.0.0", 8))));
    assert!(of(Identifier::NotId(Box::new(principal(Identifier::RemoteIp(cidr("10.0.0.0", 8)))))));
    assert!(!of(Identifier::Any(true)));
}

#[test]
fn a_policy_that_does_not_decode_is_refused() {
    let mut manager = manager();
    let bad = any("envoy.extensions.filters.http.rbac.v3.RBAC", vec![0x0a, 9]);
    manager.http_filters.insert(0, http_filter("rbac", bad));
    let mut translator = translator();
    let listener = main_internal(vec![http_chain(&manager)], at_app());
    let bad = resource(cairn_xds::feed::Kind::Listener, "main_internal", listener.encode_to_vec());
    translator.apply(update(cairn_xds::feed::Kind::Listener, vec![bad])).unwrap_err();
    let resources = translator.resources();
    assert!(resources.destinations[0].tcp.as_ref().unwrap().broken.is_some());
}

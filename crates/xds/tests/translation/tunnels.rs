//! `connect_terminate`.

use crate::world::*;
use cairn_proto::envoy as pb;
use cairn_proto::prost::Message;
use cairn_router::spec::{Principal, StringMatch};
use cairn_xds::feed::Kind;
use cairn_xds::translate::{Settings, Translator};
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::listener::v3 as listener;
use pb::envoy::config::rbac::v3 as rbac;
use pb::envoy::config::route::v3 as route;
use pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use pb::envoy::r#type::matcher::v3 as types;

fn string(pattern: types::string_matcher::MatchPattern) -> types::StringMatcher {
    types::StringMatcher { match_pattern: Some(pattern), ignore_case: false }
}

fn san(
    kind: tls::subject_alt_name_matcher::SanType,
    pattern: types::string_matcher::MatchPattern,
) -> tls::SubjectAltNameMatcher {
    tls::SubjectAltNameMatcher {
        san_type: kind as i32,
        matcher: Some(string(pattern)),
        ..tls::SubjectAltNameMatcher::default()
    }
}

fn with_names(names: Vec<tls::SubjectAltNameMatcher>) -> listener::Listener {
    use tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
    let context = tls::DownstreamTlsContext {
        common_tls_context: Some(tls::CommonTlsContext {
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(
                CombinedCertificateValidationContext {
                    default_validation_context: Some(tls::CertificateValidationContext {
                        match_typed_subject_alt_names: names,
                        ..tls::CertificateValidationContext::default()
                    }),
                    validation_context_sds_secret_config: Some(tls::SdsSecretConfig {
                        name: "ROOTCA".to_owned(),
                        sds_config: None,
                    }),
                    ..CombinedCertificateValidationContext::default()
                },
            )),
            ..tls::CommonTlsContext::default()
        }),
        require_client_certificate: Some(pb::google::protobuf::BoolValue { value: true }),
        ..tls::DownstreamTlsContext::default()
    };
    let connect = route::Route {
        r#match: Some(route::RouteMatch {
            path_specifier: Some(route::route_match::PathSpecifier::ConnectMatcher(
                route::route_match::ConnectMatcher::default(),
            )),
            ..route::RouteMatch::default()
        }),
        action: Some(route::route::Action::Route(route::RouteAction {
            cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(
                "main_internal".to_owned(),
            )),
            ..route::RouteAction::default()
        })),
        ..route::Route::default()
    };
    let manager = hcm::HttpConnectionManager {
        http_filters: vec![router()],
        route_specifier: Some(RouteSpecifier::RouteConfig(table(vec![connect]))),
        ..hcm::HttpConnectionManager::default()
    };
    listener::Listener {
        name: "connect_terminate".to_owned(),
        address: Some(socket_address("::", 15008)),
        additional_addresses: vec![listener::AdditionalAddress {
            address: Some(socket_address("0.0.0.0", 15008)),
            ..listener::AdditionalAddress::default()
        }],
        filter_chains: vec![listener::FilterChain {
            filters: vec![network_filter("hcm", pack(&manager))],
            transport_socket: Some(core::TransportSocket {
                name: "tls".to_owned(),
                config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(&context))),
            }),
            ..listener::FilterChain::default()
        }],
        ..listener::Listener::default()
    }
}

pub fn terminate() -> listener::Listener {
    use tls::subject_alt_name_matcher::SanType::Uri;
    use types::string_matcher::MatchPattern::Prefix;
    with_names(vec![san(Uri, Prefix("spiffe://cluster.local/".to_owned()))])
}

/// Puts an HTTP filter in front of the router.
fn with_filter(filter: hcm::HttpFilter) -> listener::Listener {
    let mut listener = terminate();
    let listener::filter::ConfigType::TypedConfig(config) =
        listener.filter_chains[0].filters[0].config_type.as_mut().unwrap()
    else {
        panic!()
    };
    let mut manager = hcm::HttpConnectionManager::decode(config.value.as_slice()).unwrap();
    manager.http_filters.insert(0, filter);
    *config = pack(&manager);
    listener
}

fn broken(listener: &listener::Listener) -> Option<String> {
    let mut translator = Translator::new(Settings::default());
    let own = resource(Kind::Listener, "connect_terminate", listener.encode_to_vec());
    translator.apply(update(Kind::Listener, vec![own])).unwrap();
    listen(&mut translator, &main_internal(vec![http_chain(&manager())], at_app()));
    let resources = translator.resources();
    let http = resources.destinations[0].http.as_ref().unwrap();
    assert_eq!(translator.facts().terminate.unwrap().broken, http.broken);
    http.broken.clone()
}

#[test]
fn addresses_and_trust_domains() {
    use tls::subject_alt_name_matcher::SanType::Uri;
    use types::string_matcher::MatchPattern::Prefix;
    let of = |domain: &str| san(Uri, Prefix(format!("spiffe://{domain}/")));
    let mut translator = Translator::new(Settings::default());
    let listener = with_names(vec![of("b.example"), of("a.example")]);
    let own = resource(Kind::Listener, "connect_terminate", listener.encode_to_vec());
    translator.apply(update(Kind::Listener, vec![own])).unwrap();
    let facts = translator.facts();
    assert_eq!(facts.trust_domains, ["a.example", "b.example"]);
    let addresses = facts.terminate.unwrap().addresses;
    assert_eq!(addresses, ["[::]:15008".parse().unwrap(), "0.0.0.0:15008".parse().unwrap()]);
}

#[test]
fn what_is_not_understood_closes_everything() {
    use tls::subject_alt_name_matcher::SanType::{Dns, Uri};
    use types::string_matcher::MatchPattern::{Exact, Prefix};
    assert_eq!(broken(&terminate()), None);
    assert_eq!(broken(&with_names(Vec::new())), None, "PILOT_SKIP_VALIDATE_TRUST_DOMAIN");
    let deeper = san(Uri, Prefix("spiffe://cluster.local/ns/a/".to_owned()));
    let exact = san(Uri, Exact("spiffe://cluster.local/ns/a/sa/b".to_owned()));
    let dns = san(Dns, Prefix("spiffe://cluster.local/".to_owned()));
    for name in [deeper, exact, dns] {
        assert!(broken(&with_names(vec![name.clone()])).is_some(), "{name:?}");
    }
    let limit = any("envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit", Vec::new());
    let reason = broken(&with_filter(http_filter("limit", limit.clone()))).unwrap();
    assert!(reason.contains("`limit`") && reason.contains("local_ratelimit"), "{reason}");
    let mut disabled = http_filter("limit", limit.clone());
    disabled.disabled = true;
    assert_eq!(broken(&with_filter(disabled)), None);
    let mut network = terminate();
    network.filter_chains[0].filters.insert(0, network_filter("limit", limit));
    assert!(broken(&network).is_some());
    let mut sandwiched = terminate();
    sandwiched.listener_filters.push(listener::ListenerFilter {
        name: "envoy.filters.listener.proxy_protocol".to_owned(),
        ..listener::ListenerFilter::default()
    });
    assert!(broken(&sandwiched).is_some());
    let mut second = terminate();
    second.filter_chains.push(second.filter_chains[0].clone());
    assert!(broken(&second).is_some());
    let mut plain = terminate();
    plain.filter_chains[0].transport_socket = None;
    assert!(broken(&plain).is_some());
}

#[test]
fn state_that_is_not_known_closes_everything() {
    use pb::envoy::extensions::filters::common::set_filter_state::v3 as state;
    use pb::envoy::extensions::filters::http::set_filter_state::v3::Config;
    let of = |key: &str, format: &str| {
        let source = core::DataSource {
            specifier: Some(core::data_source::Specifier::InlineString(format.to_owned())),
            ..core::DataSource::default()
        };
        let value = state::FilterStateValue {
            key: Some(state::filter_state_value::Key::ObjectKey(key.to_owned())),
            value: Some(state::filter_state_value::Value::FormatString(
                core::SubstitutionFormatString {
                    format: Some(core::substitution_format_string::Format::TextFormatSource(
                        source,
                    )),
                    ..core::SubstitutionFormatString::default()
                },
            )),
            ..state::FilterStateValue::default()
        };
        let config = Config { on_request_headers: vec![value], ..Config::default() };
        broken(&with_filter(http_filter("state", pack(&config))))
    };
    assert_eq!(of("io.istio.peer_principal", "%DOWNSTREAM_PEER_URI_SAN%"), None);
    assert!(of("io.istio.peer_principal", "%REQ(X-WHO)%").is_some());
    assert!(of("io.istio.other", "%DOWNSTREAM_PEER_URI_SAN%").is_some());
}

#[test]
fn policies_of_tunnels() {
    use pb::envoy::extensions::filters::http::rbac::v3::Rbac;
    let principal = |identifier| rbac::Principal { identifier: Some(identifier) };
    let name =
        string(types::string_matcher::MatchPattern::Exact("spiffe://td/ns/a/sa/b".to_owned()));
    let authenticated =
        principal(rbac::principal::Identifier::Authenticated(rbac::principal::Authenticated {
            principal_name: Some(name),
        }));
    let policy = rbac::Policy {
        permissions: vec![rbac::Permission { rule: Some(rbac::permission::Rule::Any(true)) }],
        principals: vec![authenticated],
        ..rbac::Policy::default()
    };
    let rules = rbac::Rbac {
        action: rbac::rbac::Action::Deny as i32,
        policies: [("p".to_owned(), policy)].into_iter().collect(),
        ..rbac::Rbac::default()
    };
    let config = Rbac { rules: Some(rules), ..Rbac::default() };
    let mut translator = Translator::new(Settings::default());
    let listener = with_filter(http_filter("rbac", pack(&config)));
    let own = resource(Kind::Listener, "connect_terminate", listener.encode_to_vec());
    translator.apply(update(Kind::Listener, vec![own])).unwrap();
    listen(&mut translator, &main_internal(vec![http_chain(&manager())], at_app()));
    let resources = translator.resources();
    compiles(&resources);
    let policy = &resources.destinations[0].connection.rbac[0].policies["p"];
    let exact = StringMatch::Exact("spiffe://td/ns/a/sa/b".to_owned());
    assert_eq!(policy.principals, [Principal::Authenticated(exact)]);
}

#[test]
fn a_listener_that_does_not_decode_keeps_the_last_one() {
    let mut translator = translator();
    listen(&mut translator, &main_internal(vec![http_chain(&manager())], at_app()));
    let before = translator.resources();
    for name in ["connect_terminate", "main_internal"] {
        let bad = resource(Kind::Listener, name, vec![0x0a, 200]);
        let rejected = translator.apply(update(Kind::Listener, vec![bad])).unwrap_err();
        assert!(rejected.detail.contains(name), "{rejected}");
    }
    assert!(translator.resources() == before);
}

//! Routes: what they match and what they do.

use crate::world::*;
use cairn_proto::envoy as pb;
use cairn_proto::prost::Message;
use cairn_router::spec::{HashPolicy, PathMatch, StringMatch, ValueMatch};
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::route::v3 as route;
use pb::envoy::config::route::v3::redirect_action::{PathRewriteSpecifier, SchemeRewriteSpecifier};
use pb::envoy::config::route::v3::route::Action;
use pb::envoy::config::route::v3::route_action::{ClusterSpecifier, HostRewriteSpecifier};
use pb::envoy::config::route::v3::route_match::PathSpecifier;
use pb::envoy::extensions::filters::common::fault::v3 as common_fault;
use pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use pb::envoy::extensions::filters::http::fault::v3 as fault;
use pb::envoy::r#type::matcher::v3 as types;
use pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use pb::envoy::r#type::v3::FractionalPercent;
use pb::google::protobuf::{Any, BoolValue, Duration as Span, UInt32Value};
use std::time::Duration;

fn string(pattern: MatchPattern) -> types::StringMatcher {
    types::StringMatcher { match_pattern: Some(pattern), ignore_case: false }
}

fn exact_text(text: &str) -> types::StringMatcher {
    string(MatchPattern::Exact(text.to_owned()))
}

fn matching(change: impl FnOnce(&mut route::RouteMatch)) -> cairn_router::spec::RouteMatch {
    let mut from = plain_route();
    change(from.r#match.as_mut().unwrap());
    let (translator, route) = routed(from);
    compiles(&translator.resources());
    if let Some(never) = &route.matches.never {
        let listed = translator.unsupported();
        assert!(listed.iter().any(|of| of.kind == "route" && of.reason.contains(never.as_str())));
    }
    route.matches
}

fn doing(action: Action) -> cairn_router::spec::Route {
    let (translator, route) = routed(route::Route { action: Some(action), ..plain_route() });
    compiles(&translator.resources());
    route
}

fn forwarding(change: impl FnOnce(&mut route::RouteAction)) -> cairn_router::spec::Route {
    let mut action = to_cluster();
    change(&mut action);
    doing(Action::Route(action))
}

fn overridden(name: &str, setting: Any) -> cairn_router::spec::Route {
    let mut from = plain_route();
    from.typed_per_filter_config.insert(name.to_owned(), setting);
    routed(from).1
}

fn is_unavailable(route: &cairn_router::spec::Route) -> bool {
    route.direct_response.as_ref().is_some_and(|of| of.status == 503 && !of.body.is_empty())
}

#[test]
fn paths() {
    let path = |from: PathSpecifier| matching(|of| of.path_specifier = Some(from)).path;
    assert_eq!(path(PathSpecifier::Path("/a".to_owned())), PathMatch::Exact("/a".to_owned()));
    assert_eq!(path(PathSpecifier::Prefix("/a".to_owned())), PathMatch::Prefix("/a".to_owned()));
    assert_eq!(
        path(PathSpecifier::PathSeparatedPrefix("/a".to_owned())),
        PathMatch::PathSeparatedPrefix("/a".to_owned())
    );
    let regex = types::RegexMatcher { regex: "/a.*".to_owned(), ..Default::default() };
    assert_eq!(path(PathSpecifier::SafeRegex(regex)), PathMatch::Regex("/a.*".to_owned()));
    assert!(matching(|_| ()).case_sensitive);
    assert!(!matching(|of| of.case_sensitive = Some(BoolValue { value: false })).case_sensitive);
}

#[test]
fn conditions_that_are_not_understood_never_match() {
    type Change = fn(&mut route::RouteMatch);
    let changes: [(&str, Change); 12] = [
        ("no path", |of| of.path_specifier = None),
        ("connect", |of| {
            of.path_specifier = Some(PathSpecifier::ConnectMatcher(Default::default()))
        }),
        ("template", |of| {
            of.path_specifier = Some(PathSpecifier::PathMatchPolicy(Default::default()))
        }),
        ("query in the path", |of| {
            of.path_specifier = Some(PathSpecifier::Path("/a?b".to_owned()))
        }),
        ("separated", |of| {
            of.path_specifier = Some(PathSpecifier::PathSeparatedPrefix("/".to_owned()))
        }),
        ("claims", |of| of.dynamic_metadata.push(Default::default())),
        ("filter state", |of| of.filter_state.push(Default::default())),
        ("cookies", |of| of.cookies.push(Default::default())),
        ("grpc", |of| of.grpc = Some(Default::default())),
        ("tls", |of| of.tls_context = Some(Default::default())),
        ("range", |of| {
            of.headers.push(route::HeaderMatcher {
                name: "x".to_owned(),
                header_match_specifier: Some(
                    route::header_matcher::HeaderMatchSpecifier::RangeMatch(Default::default()),
                ),
                ..Default::default()
            });
        }),
        ("share", |of| {
            of.runtime_fraction = Some(core::RuntimeFractionalPercent {
                default_value: Some(FractionalPercent { numerator: 50, denominator: 0 }),
                ..Default::default()
            });
        }),
    ];
    for (what, change) in changes {
        assert!(matching(change).never.is_some(), "{what}");
    }
    let all = core::RuntimeFractionalPercent {
        default_value: Some(FractionalPercent { numerator: 1_000_000, denominator: 2 }),
        ..Default::default()
    };
    assert_eq!(matching(|of| of.runtime_fraction = Some(all)).never, None);
}

#[test]
fn fields_that_are_not_known() {
    const UNKNOWN: &[u8] = &[0xa0, 0x38, 1];
    let routes_with = |bytes: Vec<u8>| {
        let field = |number: u8, bytes: &[u8]| {
            let mut field = vec![number << 3 | 2];
            let mut length = bytes.len();
            while length > 127 {
                field.push(u8::try_from(length & 127).unwrap() | 128);
                length >>= 7;
            }
            field.push(u8::try_from(length).unwrap());
            field.extend_from_slice(bytes);
            field
        };
        let mut host = table(vec![]).virtual_hosts[0].encode_to_vec();
        host.extend(field(3, &bytes));
        let mut manager = manager();
        manager.route_specifier = None;
        let mut manager = manager.encode_to_vec();
        manager.extend(field(4, &field(2, &host)));
        let hcm =
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        let (_, destination) = of_chain(chain(vec![network_filter("hcm", any(hcm, manager))]));
        let chain = destination.http.clone().unwrap();
        assert_eq!(chain.broken, None);
        chain.routes.virtual_hosts[0].routes[0].clone()
    };
    assert!(routes_with(plain_route().encode_to_vec()).route.is_some());
    let mut own = plain_route().encode_to_vec();
    own.extend_from_slice(UNKNOWN);
    let route = routes_with(own);
    assert!(is_unavailable(&route) && route.matches.never.is_none());
    let mut condition = any_path().encode_to_vec();
    condition.extend_from_slice(UNKNOWN);
    let mut own = vec![0x0a, u8::try_from(condition.len()).unwrap()];
    own.extend_from_slice(&condition);
    own.extend(route::Route { r#match: None, ..plain_route() }.encode_to_vec());
    assert!(routes_with(own).matches.never.is_some());
}

#[test]
fn headers_and_query() {
    use route::header_matcher::HeaderMatchSpecifier as Header;
    use route::query_parameter_matcher::QueryParameterMatchSpecifier as Query;
    let matches = matching(|of| {
        of.headers = vec![
            route::HeaderMatcher {
                name: "x-a".to_owned(),
                header_match_specifier: Some(Header::StringMatch(exact_text("1"))),
                invert_match: true,
                treat_missing_header_as_empty: true,
            },
            route::HeaderMatcher { name: "x-b".to_owned(), ..Default::default() },
        ];
        of.query_parameters = vec![route::QueryParameterMatcher {
            name: "q".to_owned(),
            query_parameter_match_specifier: Some(Query::PresentMatch(false)),
        }];
    });
    assert_eq!(matches.never, None);
    let first = &matches.headers[0];
    assert!(first.invert && first.treat_missing_as_empty);
    assert_eq!(first.value, ValueMatch::Exact("1".to_owned()));
    assert_eq!(matches.headers[1].value, ValueMatch::Present(true));
    assert_eq!(matches.query[0].value, ValueMatch::Present(false));
}

#[test]
fn forwards() {
    let route = forwarding(|of| {
        of.timeout = Some(Span { seconds: 5, nanos: 0 });
        of.max_grpc_timeout = Some(Span::default());
        of.prefix_rewrite = "/b".to_owned();
        of.host_rewrite_specifier =
            Some(HostRewriteSpecifier::HostRewriteLiteral("b.example".to_owned()));
        of.cluster_not_found_response_code = 2;
        of.hash_policy = vec![route::route_action::HashPolicy {
            policy_specifier: Some(
                route::route_action::hash_policy::PolicySpecifier::ConnectionProperties(
                    route::route_action::hash_policy::ConnectionProperties { source_ip: true },
                ),
            ),
            ..Default::default()
        }];
        of.request_mirror_policies = vec![route::route_action::RequestMirrorPolicy {
            cluster: "m".to_owned(),
            runtime_fraction: Some(core::RuntimeFractionalPercent {
                default_value: Some(FractionalPercent { numerator: 255_000, denominator: 2 }),
                ..Default::default()
            }),
            disable_shadow_host_suffix_append: true,
            ..Default::default()
        }];
    });
    let forward = route.route.unwrap();
    assert_eq!(forward.cluster.as_deref(), Some(CLUSTER));
    assert_eq!(forward.timeout, Some(Duration::from_secs(5)));
    assert_eq!(forward.max_grpc_timeout, Some(Duration::ZERO));
    assert_eq!(forward.prefix_rewrite.as_deref(), Some("/b"));
    assert_eq!(forward.host_rewrite.as_deref(), Some("b.example"));
    assert_eq!(forward.cluster_not_found_status, Some(500));
    assert_eq!(forward.hash_policy, [HashPolicy::SourceIp]);
    assert_eq!((forward.mirrors[0].percent, forward.mirrors[0].shadow_suffix), (25.5, false));
    assert_eq!((forward.retry, forward.idle_timeout), (None, None));
    assert_eq!(forwarding(|_| ()).route.unwrap().timeout, None, "Envoy's 15 s");
}

#[test]
fn splits() {
    use route::weighted_cluster::ClusterWeight;
    let of = |name: &str, weight: u32| ClusterWeight {
        name: name.to_owned(),
        weight: Some(UInt32Value { value: weight }),
        ..ClusterWeight::default()
    };
    let split = |clusters: Vec<ClusterWeight>| {
        forwarding(|action| {
            action.cluster_specifier =
                Some(ClusterSpecifier::WeightedClusters(route::WeightedCluster {
                    clusters,
                    ..Default::default()
                }));
        })
    };
    let forward = split(vec![of("a", 90), of("b", 10)]).route.unwrap();
    let weights: Vec<_> =
        forward.weighted_clusters.iter().map(|of| (of.name.as_str(), of.weight)).collect();
    assert_eq!(weights, [("a", 90), ("b", 10)]);
    assert!(is_unavailable(&split(vec![of("a", 0)])));
    let by_header = ClusterWeight { cluster_header: "x".to_owned(), ..of("a", 1) };
    assert!(is_unavailable(&split(vec![by_header])));
}

#[test]
fn retries() {
    let retry = |policy: route::RetryPolicy| {
        forwarding(|of| of.retry_policy = Some(policy)).route.unwrap().retry
    };
    let of = route::RetryPolicy {
        retry_on: "connect-failure,retriable-headers, 5xx,retriable-status-codes".to_owned(),
        num_retries: Some(UInt32Value { value: 100 }),
        retriable_status_codes: vec![503, 9999],
        host_selection_retry_max_attempts: 5,
        retry_host_predicate: vec![route::retry_policy::RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let policy = retry(of.clone()).unwrap();
    assert_eq!(policy.on, ["connect-failure", "5xx", "retriable-status-codes"]);
    assert_eq!((policy.attempts, policy.status_codes.as_slice()), (16, &[503][..]));
    assert!(policy.avoid_previous_hosts && policy.host_selection_attempts == 5);
    let none = UInt32Value { value: 0 };
    assert_eq!(retry(route::RetryPolicy { num_retries: Some(none), ..of.clone() }), None);
    let some = route::RetryPolicy { retriable_request_headers: vec![Default::default()], ..of };
    assert_eq!(retry(some), None, "only some requests may be retried");
}

#[test]
fn actions_that_are_not_understood_answer_503() {
    type Change = fn(&mut route::RouteAction);
    let changes: [(&str, Change); 9] = [
        ("no cluster", |of| of.cluster_specifier = None),
        ("by header", |of| {
            of.cluster_specifier = Some(ClusterSpecifier::ClusterHeader("x".to_owned()))
        }),
        ("plug-in", |of| {
            of.cluster_specifier = Some(ClusterSpecifier::ClusterSpecifierPlugin("x".to_owned()));
        }),
        ("metadata", |of| of.metadata_match = Some(core::Metadata::default())),
        ("auto host", |of| {
            of.host_rewrite_specifier =
                Some(HostRewriteSpecifier::AutoHostRewrite(BoolValue { value: true }));
        }),
        ("host header", |of| {
            of.host_rewrite_specifier =
                Some(HostRewriteSpecifier::HostRewriteHeader("x".to_owned()));
        }),
        ("path policy", |of| of.path_rewrite_policy = Some(Default::default())),
        ("old CORS", |of| of.cors = Some(Default::default())),
        ("upgrades", |of| of.upgrade_configs.push(Default::default())),
    ];
    for (what, change) in changes {
        assert!(is_unavailable(&forwarding(change)), "{what}");
    }
    let (translator, route) = routed(route::Route { action: None, ..plain_route() });
    assert!(is_unavailable(&route));
    assert_eq!(translator.unsupported()[0].kind, "route");
    let mut operator = plain_route();
    operator.request_headers_to_add.push(core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: "x".to_owned(),
            value: "%NO_SUCH%".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    });
    assert!(is_unavailable(&routed(operator).1));
}

#[test]
fn redirects() {
    let redirect = |change: fn(&mut route::RedirectAction)| {
        let mut action = route::RedirectAction::default();
        change(&mut action);
        doing(Action::Redirect(action))
    };
    let done = redirect(|of| {
        of.host_redirect = "r.example".to_owned();
        of.port_redirect = 8443;
        of.response_code = 4;
        of.scheme_rewrite_specifier = Some(SchemeRewriteSpecifier::HttpsRedirect(true));
        // Literal in Envoy, whatever VirtualService means by it.
        of.path_rewrite_specifier =
            Some(PathRewriteSpecifier::PathRedirect("%PREFIX()%/z".to_owned()));
    });
    let of = done.redirect.unwrap();
    assert_eq!((of.scheme.as_deref(), of.host.as_deref()), (Some("https"), Some("r.example")));
    assert_eq!((of.port, of.status), (Some(8443), Some(308)));
    assert_eq!(of.path.as_deref(), Some("%PREFIX()%/z"));
    for change in [
        (|of: &mut route::RedirectAction| of.port_redirect = 70_000) as fn(&mut _),
        |of| of.response_code = 9,
        |of| {
            of.scheme_rewrite_specifier =
                Some(SchemeRewriteSpecifier::SchemeRedirect("ftp".to_owned()));
        },
        |of| {
            of.path_rewrite_specifier =
                Some(PathRewriteSpecifier::PathRewrite("%REQ(X)%".to_owned()));
        },
        |of| {
            of.path_rewrite_specifier = Some(PathRewriteSpecifier::RegexRewrite(Default::default()))
        },
    ] {
        assert!(is_unavailable(&redirect(change)));
    }
}

#[test]
fn direct_responses() {
    let respond = |status: u32, specifier: Option<core::data_source::Specifier>| {
        doing(Action::DirectResponse(route::DirectResponseAction {
            status,
            body: specifier
                .map(|of| core::DataSource { specifier: Some(of), ..Default::default() }),
            ..Default::default()
        }))
    };
    use core::data_source::Specifier::{Filename, InlineBytes, InlineString};
    let done = respond(418, Some(InlineString("short".to_owned()))).direct_response.unwrap();
    assert_eq!((done.status, done.body.as_str()), (418, "short"));
    let done = respond(200, Some(InlineBytes(b"hello".to_vec()))).direct_response.unwrap();
    assert_eq!(done.body, "hello");
    assert_eq!(respond(500, None).direct_response.unwrap().body, "");
    assert!(is_unavailable(&respond(100, None)));
    assert!(is_unavailable(&respond(200, Some(InlineBytes(vec![0xff])))));
    assert!(is_unavailable(&respond(200, Some(Filename("/etc/passwd".to_owned())))));
}

#[test]
fn faults() {
    let share = |numerator| Some(FractionalPercent { numerator, denominator: 2 });
    let config = fault::HttpFault {
        delay: Some(common_fault::FaultDelay {
            percentage: share(100_000),
            fault_delay_secifier: Some(common_fault::fault_delay::FaultDelaySecifier::FixedDelay(
                Span { seconds: 2, nanos: 0 },
            )),
        }),
        abort: Some(fault::FaultAbort {
            percentage: share(255_000),
            error_type: Some(fault::fault_abort::ErrorType::HttpStatus(555)),
            ..Default::default()
        }),
        ..Default::default()
    };
    let kind = "envoy.extensions.filters.http.fault.v3.HTTPFault";
    let name = "envoy.filters.http.fault";
    let route = overridden(name, any(kind, config.encode_to_vec()));
    let of = route.fault.unwrap();
    let delay = of.delay.unwrap();
    assert_eq!((delay.fixed, delay.percent), (Duration::from_secs(2), 10.0));
    let abort = of.abort.unwrap();
    assert_eq!((abort.http_status, abort.percent), (Some(555), 25.5));
    let some = fault::HttpFault { headers: vec![Default::default()], ..config.clone() };
    assert!(is_unavailable(&overridden(name, any(kind, some.encode_to_vec()))));
    // Not in this chain: without effect.
    assert_eq!(overridden("other", any(kind, config.encode_to_vec())).fault, None);
}

#[test]
fn cors() {
    let config = CorsPolicy {
        allow_origin_string_match: vec![exact_text("https://a.example")],
        allow_methods: "GET".to_owned(),
        max_age: "600".to_owned(),
        allow_credentials: Some(BoolValue { value: true }),
        forward_not_matching_preflights: Some(BoolValue { value: false }),
        ..Default::default()
    };
    let kind = "envoy.extensions.filters.http.cors.v3.CorsPolicy";
    let name = "envoy.filters.http.cors";
    let of = overridden(name, any(kind, config.encode_to_vec())).cors.unwrap();
    assert_eq!(of.allow_origins, [StringMatch::Exact("https://a.example".to_owned())]);
    assert_eq!((of.allow_methods.as_str(), of.max_age.as_str()), ("GET", "600"));
    assert!(of.allow_credentials && of.forward_not_matching_preflights == Some(false));
    let some = CorsPolicy {
        filter_enabled: Some(core::RuntimeFractionalPercent {
            default_value: Some(FractionalPercent { numerator: 50, denominator: 0 }),
            ..Default::default()
        }),
        ..config
    };
    assert!(is_unavailable(&overridden(name, any(kind, some.encode_to_vec()))));
}

#[test]
fn settings_of_other_filters() {
    let disabled = route::FilterConfig { disabled: true, ..Default::default() };
    let kind = "envoy.config.route.v3.FilterConfig";
    let off = any(kind, disabled.encode_to_vec());
    let route = overridden("envoy.filters.http.fault", off.clone());
    assert!(route.fault.is_none() && route.route.is_some());
    // The router is in the chain; what a route wants of it is not known.
    assert!(is_unavailable(&overridden("router", off)));
    let session =
        any("envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute", vec![]);
    assert!(overridden("envoy.filters.http.stateful_session", session).route.is_some());
}

#[test]
fn what_closes_the_whole_table() {
    type Change = fn(&mut route::RouteConfiguration);
    let changes: [(&str, Change); 6] = [
        ("vhds", |of| of.vhds = Some(Default::default())),
        ("tls", |of| of.virtual_hosts[0].require_tls = 2),
        ("tree", |of| of.virtual_hosts[0].matcher = Some(Default::default())),
        ("header", |of| of.vhost_header = "x".to_owned()),
        ("parameters", |of| of.ignore_path_parameters_in_path_matching = true),
        ("filter", |of| {
            of.typed_per_filter_config.insert("router".to_owned(), Any::default());
        }),
    ];
    for (what, change) in changes {
        let mut routes = table(vec![plain_route()]);
        change(&mut routes);
        let mut manager = manager();
        manager.route_specifier = Some(
            pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier::RouteConfig(routes),
        );
        assert!(http(&manager).broken.is_some(), "{what}");
    }
}

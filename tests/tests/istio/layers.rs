//! Policies of routes and tunnels, each seen to take effect.

use super::mesh::Mesh;
use cairn_proto::envoy::envoy::config::rbac::v3::{
    Permission, Policy, Principal, Rbac, permission, principal, rbac,
};
use cairn_proto::envoy::envoy::config::route::v3::route::Action;
use cairn_proto::envoy::envoy::config::route::v3::route_action::{
    ClusterSpecifier, RequestMirrorPolicy,
};
use cairn_proto::envoy::envoy::extensions::filters::common::fault::v3::{FaultDelay, fault_delay};
use cairn_proto::envoy::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use cairn_proto::envoy::envoy::extensions::filters::http::fault::v3::{
    FaultAbort, HttpFault, fault_abort,
};
use cairn_proto::envoy::envoy::extensions::filters::http::rbac::v3::Rbac as RbacFilter;
use cairn_proto::envoy::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter, http_filter,
};
use cairn_proto::envoy::envoy::r#type::matcher::v3::{
    FilterStateMatcher, StringMatcher, filter_state_matcher, string_matcher,
};
use cairn_proto::envoy::envoy::r#type::v3::FractionalPercent;
use cairn_proto::envoy::google::protobuf::Duration;
use cairn_test_support::http1::Http1;
use cairn_test_support::istiod::shapes;
use cairn_test_support::process::drive;
use cairn_test_support::wait::{eventually, eventually_async, within};
use cairn_xds::feed::Kind;

fn exactly(text: &str) -> StringMatcher {
    let pattern = string_matcher::MatchPattern::Exact(text.to_owned());
    StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() }
}

/// Who a client is by its certificate: for filters in front of tunnels.
fn authenticated(account: &str) -> principal::Identifier {
    let principal_name = Some(exactly(&shapes::identity(account)));
    principal::Identifier::Authenticated(principal::Authenticated { principal_name })
}

/// Who a client is by what was kept of it: for filters inside tunnels.
fn kept(account: &str) -> principal::Identifier {
    let matcher = filter_state_matcher::Matcher::StringMatch(exactly(&shapes::identity(account)));
    principal::Identifier::FilterState(FilterStateMatcher {
        key: "io.istio.peer_principal".to_owned(),
        matcher: Some(matcher),
    })
}

/// DENY for whoever this is.
fn deny(account: &str, identifier: principal::Identifier) -> HttpFilter {
    let policy = Policy {
        permissions: vec![Permission { rule: Some(permission::Rule::Any(true)) }],
        principals: vec![Principal { identifier: Some(identifier) }],
        ..Policy::default()
    };
    let policies = [(format!("ns[plain]-policy[deny-{account}]-rule[0]"), policy)].into();
    let rules = Rbac { action: rbac::Action::Deny as i32, policies, ..Rbac::default() };
    let config = shapes::pack(&RbacFilter { rules: Some(rules), ..RbacFilter::default() });
    HttpFilter {
        name: "envoy.filters.http.rbac".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    }
}

#[test]
fn policies_stand_in_front_of_tunnels_and_of_requests() {
    drive(async {
        let mut mesh = Mesh::with(&["app", "other"]).await;
        let front = shapes::with_filter_of_tunnels(deny("outcast", authenticated("outcast")));
        mesh.istiod.push(Kind::Listener, vec![shapes::listener_of(&front)], &[]);
        mesh.edit("app", |manager| manager.http_filters.insert(0, deny("guest", kept("guest"))));
        let (_pod, waypoint) = mesh.waypoint().await;
        let (friend, guest, outcast) = (
            mesh.client_as(&waypoint, "friend").await,
            mesh.client_as(&waypoint, "guest").await,
            mesh.client_as(&waypoint, "outcast").await,
        );
        for (client, app, other) in [(&friend, 200, 200), (&guest, 403, 200), (&outcast, 403, 403)]
        {
            assert_eq!(client.status(&mesh.vip("app"), "/").await, app);
            assert_eq!(client.status(&mesh.vip("other"), "/").await, other);
        }
        assert_eq!(mesh.service("app").app.requests(), 1);
        // Taken back in front, it holds inside.
        let terminate = shapes::listener_of(&shapes::terminate());
        mesh.istiod.push(Kind::Listener, vec![terminate], &[]);
        mesh.answers(&outcast, "other", 200).await;
        assert_eq!(guest.status(&mesh.vip("app"), "/").await, 403);
    });
}

#[test]
fn a_policy_does_not_wait_for_endpoints_that_came_with_it() {
    drive(async {
        let mut mesh = Mesh::with(&["app"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let friend = mesh.client_as(&waypoint, "friend").await;
        let guest = mesh.client_as(&waypoint, "guest").await;
        mesh.answers(&guest, "app", 200).await;
        mesh.istiod.hold(Kind::Endpoints);
        let late = shapes::cluster_of(&shapes::cluster("late"));
        mesh.istiod.push(Kind::Cluster, vec![late], &[]);
        mesh.edit("app", |manager| {
            manager.http_filters.insert(0, deny("guest", kept("guest")));
            shapes::route(manager).action = Some(shapes::to("late"));
        });
        // The guest is out while others still get what was served before.
        mesh.answers(&guest, "app", 403).await;
        assert_eq!(mesh.get(&friend, "app", "/").await.backend(), "app");
        // In the end the new route holds, endpoints or not.
        mesh.answers(&friend, "app", 503).await;
        assert_eq!(guest.status(&mesh.vip("app"), "/").await, 403);
    });
}

fn all() -> Option<FractionalPercent> {
    Some(FractionalPercent { numerator: 100, denominator: 0 })
}

#[test]
fn faults_cors_and_mirrors_of_a_route() {
    drive(async {
        let mut mesh = Mesh::with(&["app", "other"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client(&waypoint).await;
        let fault = HttpFault {
            delay: Some(FaultDelay {
                percentage: all(),
                fault_delay_secifier: Some(fault_delay::FaultDelaySecifier::FixedDelay(Duration {
                    seconds: 0,
                    nanos: 1_000_000,
                })),
            }),
            abort: Some(FaultAbort {
                percentage: all(),
                error_type: Some(fault_abort::ErrorType::HttpStatus(418)),
                ..FaultAbort::default()
            }),
            ..HttpFault::default()
        };
        mesh.edit("app", |manager| {
            let config = shapes::pack(&fault);
            let per_filter = &mut shapes::route(manager).typed_per_filter_config;
            per_filter.insert("envoy.filters.http.fault".to_owned(), config);
        });
        mesh.answers(&client, "app", 418).await;
        assert_eq!(mesh.get(&client, "app", "/").await.text(), "fault filter abort");

        let cors = CorsPolicy {
            allow_origin_string_match: vec![exactly("https://shop.example")],
            allow_methods: "GET,POST".to_owned(),
            ..CorsPolicy::default()
        };
        mesh.edit("app", |manager| {
            let config = shapes::pack(&cors);
            let per_filter = &mut shapes::route(manager).typed_per_filter_config;
            per_filter.insert("envoy.filters.http.cors".to_owned(), config);
        });
        mesh.answers(&client, "app", 200).await;
        let preflight =
            [("origin", "https://shop.example"), ("access-control-request-method", "POST")];
        let tunnel = client.hbone.open(&mesh.vip("app")).await.unwrap();
        let asked = Http1::new(tunnel).ask("OPTIONS /", &preflight).await;
        assert_eq!(asked.header("access-control-allow-origin"), Some("https://shop.example"));
        assert_eq!(asked.header("access-control-allow-methods"), Some("GET,POST"));

        mesh.edit("app", |manager| {
            let Some(Action::Route(action)) = &mut shapes::route(manager).action else {
                panic!("no route")
            };
            action.request_mirror_policies.push(RequestMirrorPolicy {
                cluster: shapes::name("other"),
                ..RequestMirrorPolicy::default()
            });
        });
        eventually_async("mirrored", async || {
            assert_eq!(mesh.get(&client, "app", "/mirrored").await.backend(), "app");
            mesh.service("other").app.count("/mirrored") > 0
        })
        .await;

        mesh.edit("app", |manager| {
            let Some(Action::Route(action)) = &mut shapes::route(manager).action else {
                panic!("no route")
            };
            action.cluster_specifier = Some(ClusterSpecifier::Cluster(shapes::name("other")));
        });
        eventually_async("routed elsewhere", async || {
            mesh.get(&client, "app", "/").await.backend() == "other"
        })
        .await;
    });
}

/// The tunnel's peer is who the client was, for the application: in XFCC, where istiod asks for it.
#[test]
fn the_client_is_told_to_the_application() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client_as(&waypoint, "web").await;
        let tunnel = client.hbone.open(&mesh.vip("app")).await.unwrap();
        let forged = [("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/plain/sa/forged")];
        let answer =
            within("a request", Http1::new(tunnel).request("GET", "/who", &forged, b"")).await;
        assert_eq!(answer.unwrap().status, 200);
        eventually("it has arrived", || mesh.service("app").app.count("/who") == 1).await;
        let seen = mesh.service("app").app.last("/who");
        assert_eq!(seen.headers.get("x-forwarded-client-cert"), None);
        assert_eq!(mesh.service("app").ztunnel.connects()[0].client, super::mesh::waypoint_id());
    });
}

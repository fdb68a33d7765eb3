//! What is not understood closes one door, opens none, and is listed.

use super::mesh::{Client, Mesh};
use super::pod::Waypoint;
use cairn_proto::envoy::envoy::config::core::v3::transport_socket::ConfigType as SocketType;
use cairn_proto::envoy::envoy::config::core::v3::{TransportSocket, TypedExtensionConfig};
use cairn_proto::envoy::envoy::config::rbac::v3::{
    Permission, Policy, Principal, Rbac, SourcedMetadata, permission, principal, rbac,
};
use cairn_proto::envoy::envoy::config::route::v3::route_match::PathSpecifier;
use cairn_proto::envoy::envoy::extensions::filters::http::rbac::v3::Rbac as RbacFilter;
use cairn_proto::envoy::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter, http_filter,
};
use cairn_proto::envoy::google::protobuf::Any;
use cairn_test_support::http1::Response;
use cairn_test_support::istiod::shapes;
use cairn_test_support::process::drive;
use cairn_test_support::wait::eventually_async;
use cairn_xds::feed::Kind;

fn unknown(of: &str) -> Any {
    Any { type_url: format!("type.googleapis.com/{of}"), value: Vec::new() }
}

fn http_filter(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    }
}

/// A policy for whoever this is.
fn policy(action: rbac::Action, principal: principal::Identifier) -> HttpFilter {
    let policy = Policy {
        permissions: vec![Permission { rule: Some(permission::Rule::Any(true)) }],
        principals: vec![Principal { identifier: Some(principal) }],
        ..Policy::default()
    };
    let policies = [("ns[plain]-policy[p]-rule[0]".to_owned(), policy)].into();
    let rules = Rbac { action: action as i32, policies, ..Rbac::default() };
    let filter = RbacFilter { rules: Some(rules), ..RbacFilter::default() };
    http_filter("envoy.filters.http.rbac", shapes::pack(&filter))
}

/// It is closed, with this reason in the body, on the page and in the log; `open` still serves.
async fn closed(
    mesh: &Mesh,
    waypoint: &Waypoint,
    client: &Client,
    kind: &str,
    reason: &str,
) -> Response {
    mesh.answers(client, "app", 503).await;
    let response = mesh.get(client, "app", "/").await;
    assert!(response.text().contains(reason), "{reason} in {}", response.text());
    assert_eq!(mesh.get(client, "open", "/").await.backend(), "open", "{reason}");
    // The page and the numbers follow the traffic by a moment.
    let app = shapes::name("app");
    let mut name = String::new();
    eventually_async(&format!("{kind} {reason} is listed"), async || {
        let listed = waypoint.admin("/unsupported").await.json();
        let found = listed.as_array().unwrap().iter().find(|one| {
            one["kind"] == kind
                && one["name"].as_str().unwrap().contains(&app)
                && one["reason"].as_str().unwrap().contains(reason)
        });
        found.is_some_and(|found| {
            found["name"].as_str().unwrap().clone_into(&mut name);
            true
        })
    })
    .await;
    let labels = [("kind", kind), ("name", name.as_str())];
    assert_eq!(waypoint.metric("cairn_config_unsupported", &labels).await, 1.0, "{reason}");
    waypoint.says(reason).await;
    response
}

#[test]
fn an_unknown_http_filter_closes_its_destination() {
    drive(async {
        let mut mesh = Mesh::with(&["app", "open"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client(&waypoint).await;
        let app = shapes::name("app");
        assert!(!waypoint.admin("/unsupported").await.text().contains(&app));
        mesh.edit("app", |manager| {
            let filter = http_filter("wasm", unknown("envoy.extensions.filters.http.wasm.v3.Wasm"));
            manager.http_filters.insert(0, filter);
        });
        closed(&mesh, &waypoint, &client, "chain", "wasm").await;
        let seen = mesh.service("app").app.requests();
        assert_eq!(mesh.get(&client, "app", "/").await.status, 503);
        assert_eq!(mesh.service("app").app.requests(), seen);
        // Taken back, it serves, and nothing is listed.
        mesh.edit("app", |_| {});
        mesh.answers(&client, "app", 200).await;
        eventually_async("nothing is listed", async || {
            waypoint.metric("cairn_config_unsupported", &[]).await == 0.0
        })
        .await;
        assert_eq!(mesh.istiod.record().nacks(Kind::Listener), Vec::<String>::new());
    });
}

/// An ALLOW policy that cannot be judged lets nobody in, a DENY policy lets nobody through.
#[test]
fn an_rbac_matcher_that_is_not_known_refuses() {
    drive(async {
        let mut mesh = Mesh::with(&["app", "open"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client(&waypoint).await;
        let labels = [("kind", "policy")];
        for action in [rbac::Action::Allow, rbac::Action::Deny] {
            mesh.edit("app", |manager| {
                let unknown = principal::Identifier::SourcedMetadata(SourcedMetadata::default());
                manager.http_filters.insert(0, policy(action, unknown));
            });
            mesh.answers(&client, "app", 403).await;
            assert_eq!(mesh.get(&client, "app", "/").await.text(), "RBAC: access denied");
            assert_eq!(mesh.get(&client, "open", "/").await.backend(), "open");
            eventually_async("counted", async || {
                waypoint.metric("cairn_config_unsupported", &labels).await == 1.0
            })
            .await;
            let listed = waypoint.admin("/unsupported").await.text();
            assert!(listed.contains("hangs on metadata"), "{listed}");
            mesh.edit("app", |manager| {
                let anybody = principal::Identifier::Any(true);
                manager.http_filters.insert(0, policy(rbac::Action::Allow, anybody));
            });
            mesh.answers(&client, "app", 200).await;
        }
        waypoint.says("hangs on metadata: it lets nobody in").await;
        waypoint.says("hangs on metadata: it refuses everybody").await;
    });
}

#[test]
fn an_unknown_transport_socket_closes_its_cluster() {
    drive(async {
        let mesh = Mesh::with(&["app", "open"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client(&waypoint).await;
        let mut cluster = shapes::cluster("app");
        cluster.transport_socket = Some(TransportSocket {
            name: "odd".to_owned(),
            config_type: Some(SocketType::TypedConfig(unknown("example.OddSocket"))),
        });
        mesh.istiod.push(Kind::Cluster, vec![shapes::cluster_of(&cluster)], &[]);
        closed(&mesh, &waypoint, &client, "cluster", "OddSocket").await;
        mesh.istiod.push(Kind::Cluster, vec![shapes::cluster_of(&shapes::cluster("app"))], &[]);
        mesh.answers(&client, "app", 200).await;
    });
}

/// Of two routes the first cannot be matched: it never matches, and the second takes everything.
#[test]
fn a_route_matcher_that_is_not_known_never_matches() {
    drive(async {
        let mut mesh = Mesh::with(&["app", "open"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client(&waypoint).await;
        mesh.edit("app", |manager| {
            let mut odd = shapes::route(manager).clone();
            odd.name = "odd".to_owned();
            odd.r#match.as_mut().unwrap().path_specifier =
                Some(PathSpecifier::PathMatchPolicy(TypedExtensionConfig {
                    name: "odd".to_owned(),
                    typed_config: Some(unknown("example.OddPath")),
                }));
            odd.action = Some(shapes::to("open"));
            shapes::routes(manager).virtual_hosts[0].routes.insert(0, odd);
        });
        let listed =
            async || waypoint.metric("cairn_config_unsupported", &[("kind", "route")]).await;
        eventually_async("listed", async || listed().await == 1.0).await;
        for path in ["/", "/odd", "/example"] {
            assert_eq!(mesh.get(&client, "app", path).await.backend(), "app");
        }
        waypoint.says("never matches: the path matcher `odd` is not supported").await;
    });
}

/// What stands in front of all destinations closes all.
#[test]
fn an_unknown_filter_in_front_of_tunnels_closes_everything() {
    drive(async {
        let mesh = Mesh::with(&["app", "open"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client(&waypoint).await;
        let listener =
            shapes::with_filter_of_tunnels(http_filter("odd", unknown("example.OddFilter")));
        mesh.istiod.push(Kind::Listener, vec![shapes::listener_of(&listener)], &[]);
        for service in ["app", "open"] {
            mesh.answers(&client, service, 503).await;
            let response = mesh.get(&client, service, "/").await;
            assert!(response.text().contains("OddFilter"), "{}", response.text());
        }
        mesh.istiod.push(Kind::Listener, vec![shapes::listener_of(&shapes::terminate())], &[]);
        for service in ["app", "open"] {
            mesh.answers(&client, service, 200).await;
        }
    });
}

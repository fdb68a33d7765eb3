//! Compiling again and again: what is shared, what survives, what is refused and where.
#![allow(clippy::unwrap_used, clippy::panic)]

use cairn_router::cluster::Cluster;
use cairn_router::compile::Compiler;
use cairn_router::destination::{Destination, TargetRef};
use cairn_router::model::Mesh;
use cairn_router::spec::{self, Resources};
use serde_json::{Value, json};
use std::sync::Arc;

const IDENTITY: &str = "spiffe://cluster.local/ns/shop/sa/app";

fn resources(value: Value) -> Resources {
    serde_json::from_value(value).unwrap()
}

fn destination(number: usize) -> Value {
    json!({
        "name": format!("d{number}"),
        "namespace": "shop",
        "addresses": [format!("10.{}.{}.{}", number >> 16, (number >> 8) & 255, number & 255)],
        "hosts": [format!("d{number}.shop.svc.cluster.local")],
        "port": 80,
        "tcp": {"clusters": [{"name": format!("c{number}")}]},
    })
}

fn cluster(number: usize) -> Value {
    json!({"name": format!("c{number}"), "service": format!("d{number}.shop.svc.cluster.local")})
}

fn endpoints(number: usize, addresses: &[&str]) -> Value {
    let endpoint = |address: &&str| json!({"address": address, "identities": [IDENTITY]});
    json!({"cluster": format!("c{number}"), "endpoints": addresses.iter().map(endpoint).collect::<Vec<_>>()})
}

fn shop(services: usize) -> Resources {
    let pod = |number: usize| endpoints(number, &["10.244.0.1:8080", "10.244.0.2:8080"]);
    resources(json!({
        "destinations": (0..services).map(destination).collect::<Vec<_>>(),
        "clusters": (0..services).map(cluster).collect::<Vec<_>>(),
        "endpoints": (0..services).map(pod).collect::<Vec<_>>(),
        "workloads": [{"addresses": ["10.244.0.1"], "name": "pod", "namespace": "shop",
            "service_account": "app", "trust_domain": "cluster.local"}],
    }))
}

fn find<'a>(mesh: &'a Mesh, target: &str) -> Option<&'a Arc<Destination>> {
    mesh.destination(&TargetRef::Addr(target.parse().unwrap()))
}

fn named<'a>(mesh: &'a Mesh, name: &str) -> &'a Arc<Cluster> {
    mesh.cluster(name).unwrap()
}

fn errors(value: Value) -> Vec<String> {
    let refused = Compiler::new("mesh").compile(&resources(value)).err();
    refused.unwrap_or_default().iter().map(ToString::to_string).collect()
}

#[test]
fn a_mesh_is_looked_up() {
    let mesh = Compiler::new("east").compile(&shop(3)).unwrap();
    assert_eq!(mesh.warnings(), &[] as &[String]);
    let found = find(&mesh, "10.0.0.2:80").unwrap();
    assert_eq!(&*found.name, "d2");
    assert_eq!((&*found.tenant.mesh, &*found.tenant.namespace), ("east", "shop"));
    assert!(find(&mesh, "10.0.0.2:81").is_none());
    let by_host = mesh.destination(&TargetRef::Host("D1.shop.svc.cluster.local", 80)).unwrap();
    assert_eq!(&*by_host.name, "d1");
    let tcp = by_host.tcp.as_ref().unwrap();
    assert_eq!(tcp.idle_timeout, None);
    let cluster = named(&mesh, tcp.pick_cluster(u64::MAX).unwrap());
    assert_eq!(&*cluster.service_name, "d1");
    let picked = cluster.pick(|| 0, &[], 5).unwrap();
    let tunnel = picked.tunnel.as_ref().unwrap();
    assert_eq!(tunnel.address, "10.244.0.1:15008".parse().unwrap());
    assert_eq!(&*tunnel.authority, "10.244.0.1:8080");
    assert_eq!(tunnel.identities, [IDENTITY]);
    let workload = mesh.workload(picked.address.ip()).unwrap();
    assert_eq!(workload.principal.as_deref(), Some(IDENTITY));
    assert!(mesh.workload_as(picked.address.ip(), "spiffe://other/ns/shop/sa/app").is_none());
    assert_eq!(mesh.destinations().len(), 3);
    assert_eq!(mesh.clusters().len(), 3);
    assert!(find(&Mesh::empty(), "10.0.0.2:80").is_none());
}

#[test]
fn an_equal_value_keeps_its_arc() {
    let mut compiler = Compiler::new("mesh");
    let before = compiler.compile(&shop(20)).unwrap();
    // Other allocations, equal values, one of them changed.
    let mut changed = shop(20);
    Arc::make_mut(&mut changed.destinations[7]).port = Some(81);
    let after = compiler.compile(&changed).unwrap();
    for (number, (old, new)) in before.destinations().zip(after.destinations()).enumerate() {
        assert_eq!(Arc::ptr_eq(old, new), number != 7, "destination {number}");
    }
    for old in before.clusters() {
        assert!(Arc::ptr_eq(old, named(&after, &old.name)));
    }
    assert!(find(&before, "10.0.0.7:80").is_some());
    assert!(find(&after, "10.0.0.7:80").is_none());
    assert!(find(&after, "10.0.0.7:81").is_some());
}

#[test]
fn order_does_not_matter_for_sharing() {
    let mut compiler = Compiler::new("mesh");
    let mut resources = shop(10);
    let before = compiler.compile(&resources).unwrap();
    resources.destinations.reverse();
    resources.clusters.reverse();
    resources.endpoints.rotate_left(3);
    let after = compiler.compile(&resources).unwrap();
    assert!(
        before
            .destinations()
            .zip(after.destinations().collect::<Vec<_>>().into_iter().rev())
            .all(|(old, new)| Arc::ptr_eq(old, new))
    );
    assert!(before.clusters().all(|old| Arc::ptr_eq(old, named(&after, &old.name))));
}

#[test]
fn new_endpoints_touch_one_cluster_only() {
    let mut compiler = Compiler::new("mesh");
    let before = compiler.compile(&shop(5)).unwrap();
    let kept = Arc::clone(named(&before, "c2").pick(|| 0, &[], 0).unwrap());
    let in_flight = kept.begin();
    let pool = kept.state.extension(|| String::from("pool")) as *const String;

    let mut changed = shop(5);
    changed.endpoints[2] = Arc::new(
        serde_json::from_value(endpoints(2, &["10.244.0.9:8080", "10.244.0.1:8080"])).unwrap(),
    );
    let after = compiler.compile(&changed).unwrap();
    assert!(
        before.destinations().zip(after.destinations()).all(|(old, new)| Arc::ptr_eq(old, new))
    );
    for old in before.clusters() {
        let new = named(&after, &old.name);
        assert_eq!(Arc::ptr_eq(old, new), &*old.name != "c2");
        assert!(Arc::ptr_eq(&old.state, &new.state));
    }
    let [fresh, survivor] = named(&after, "c2").endpoints.all() else { panic!("two endpoints") };
    assert!(Arc::ptr_eq(&survivor.state, &kept.state));
    assert_eq!((survivor.state.active(), fresh.state.active()), (1, 0));
    assert!(std::ptr::eq(survivor.state.extension(String::new), pool));
    assert_ne!(fresh.id(), survivor.id());
    // The idle one is preferred.
    assert_eq!(named(&after, "c2").pick(|| u64::MAX, &[], 0).unwrap().id(), fresh.id());
    drop(in_flight);
    assert_eq!(survivor.state.active(), 0);
}

#[test]
fn a_state_lives_as_long_as_somebody_holds_it() {
    let mut compiler = Compiler::new("mesh");
    let id = |mesh: &Mesh| named(mesh, "c0").endpoints.all()[0].id();
    let first = compiler.compile(&shop(1)).unwrap();
    let in_flight = first.cluster("c0").unwrap().endpoints.all()[0].begin();
    let before = id(&first);
    drop(first);
    compiler.compile(&Resources::default()).unwrap();
    let again = compiler.compile(&shop(1)).unwrap();
    assert_eq!(id(&again), before, "held by what is in flight");
    drop((in_flight, again));
    compiler.compile(&Resources::default()).unwrap();
    assert_ne!(id(&compiler.compile(&shop(1)).unwrap()), before, "held by nobody");
}

#[test]
fn what_makes_an_endpoint_another_one() {
    let base = json!({
        "clusters": [{"name": "c"}],
        "endpoints": [{"cluster": "c", "endpoints": [
            {"address": "10.0.0.1:80", "identities": [IDENTITY, "spiffe://a/ns/b/sa/c"]}
        ]}],
    });
    for (pointer, value, same) in [
        ("/clusters/0/connect_timeout", json!("1s"), true),
        ("/clusters/0/lb", json!("random"), true),
        ("/endpoints/0/endpoints/0/weight", json!(5), true),
        ("/endpoints/0/endpoints/0/health", json!("draining"), true),
        ("/endpoints/0/endpoints/0/identities", json!(["spiffe://a/ns/b/sa/c", IDENTITY]), true),
        ("/endpoints/0/endpoints/0/identities", json!([IDENTITY]), false),
        ("/endpoints/0/endpoints/0/tunnel_address", json!("10.0.0.9:15008"), false),
        ("/endpoints/0/endpoints/0/address", json!("10.0.0.1:81"), false),
        ("/clusters/0/protocol", json!("http2"), false),
        ("/clusters/0/tls", json!({"sni": "app"}), false),
    ] {
        let mut compiler = Compiler::new("mesh");
        let before = compiler.compile(&resources(base.clone())).unwrap();
        let mut changed = base.clone();
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        changed.pointer_mut(parent).unwrap()[field] = value;
        let after = compiler.compile(&resources(changed)).unwrap();
        let id = |mesh: &Mesh| named(mesh, "c").endpoints.all()[0].id();
        assert_eq!(id(&before) == id(&after), same, "{pointer}");
    }
}

#[test]
fn round_robin_goes_on_after_a_push() {
    let mut compiler = Compiler::new("mesh");
    let mut shop = shop(1);
    Arc::make_mut(&mut shop.clusters[0]).lb = spec::LbPolicy::RoundRobin;
    let before = compiler.compile(&shop).unwrap();
    let first = named(&before, "c0").pick(|| 0, &[], 0).unwrap().id();
    Arc::make_mut(&mut shop.clusters[0]).connect_timeout = std::time::Duration::from_secs(1);
    let after = compiler.compile(&shop).unwrap();
    assert_ne!(named(&after, "c0").pick(|| 0, &[], 0).unwrap().id(), first);
}

#[test]
fn a_refused_push_changes_nothing() {
    let mut compiler = Compiler::new("mesh");
    let before = compiler.compile(&shop(5)).unwrap();
    let mut bad = shop(5);
    Arc::make_mut(&mut bad.destinations[0]).hosts.push("*.example".to_owned());
    assert_eq!(compiler.compile(&bad).unwrap_err().len(), 1);
    let after = compiler.compile(&shop(5)).unwrap();
    assert!(
        before.destinations().zip(after.destinations()).all(|(old, new)| Arc::ptr_eq(old, new))
    );
}

#[test]
fn errors_have_paths() {
    let seen = errors(json!({
        "destinations": [
            destination(0),
            {"name": "", "port": 0},
            {"name": "d0", "addresses": ["10.9.9.9"], "tcp": {"clusters": [{"name": "c0"}]}},
            {"name": "d3", "addresses": ["10.0.0.0", "10.0.0.0/8"], "port": 80,
             "hosts": ["", "*.example", "10.0.0.1", "a.example:80", "a b"],
             "tcp": {"clusters": []}},
            {"name": "d4", "addresses": ["10.0.0.0"], "hosts": ["D0.shop.svc.cluster.local"], "port": 80,
             "tcp": {"clusters": [{"name": "c0", "weight": 0}, {"name": ""}]}},
            {"name": "d5", "addresses": ["10.5.0.0/16"],
             "http": {"routes": {"virtual_hosts": []}, "upgrades": ["web socket"], "server": "a\nb"}},
        ],
        "clusters": [
            {"name": "c0"},
            {"name": "c0"},
            {"name": "", "connect_timeout": "0s", "idle_timeout": "0", "tls": {}},
            {"name": "c3", "tls": {"sni": "", "sans": [""], "cert_file": "a"}},
        ],
        "endpoints": [
            {"cluster": "c0", "endpoints": [
                {"address": "10.0.0.1:0", "weight": 0, "identities": ["app"]},
                {"address": "10.0.0.1:80", "transport": "plain", "identities": [IDENTITY], "tunnel_address": "10.0.0.1:15008"},
                {"address": "10.0.0.2:80", "transport": "plain"},
                {"address": "10.0.0.2:80", "transport": "plain"},
            ]},
            {"cluster": "c0", "endpoints": []},
        ],
        "workloads": [{"name": "a"}, {"name": ""}, {"name": "a"}],
    }));
    let expected = [
        "clusters[1].name: clusters[0] is named `c0` already",
        "clusters[2].connect_timeout: must be more than 0",
        "clusters[2].idle_timeout: must be more than 0",
        "clusters[2].name: is empty",
        "clusters[2].tls: needs `sni` or `sans`: nothing could be verified",
        "clusters[3].tls.sans[0]: is empty",
        "clusters[3].tls.sni: is empty",
        "clusters[3].tls: has only one of `cert_file` and `key_file`: a client certificate needs both",
        "destinations[1].name: is empty",
        "destinations[1].port: 0 is no port; leave it out for every port",
        "destinations[1]: needs `addresses` or `hosts`: nothing could name it",
        "destinations[1]: needs `http` or `tcp`: nothing could be done with its bytes",
        "destinations[2].name: destinations[0] is named `d0` already",
        "destinations[3].addresses[0]: 10.0.0.0 with port 80 belongs to `d0` already",
        "destinations[3].hosts[0]: is empty",
        "destinations[3].hosts[1]: `*.example` has a wildcard; CONNECT names whole hosts",
        "destinations[3].hosts[2]: `10.0.0.1` is an address; it belongs in `addresses`",
        "destinations[3].hosts[3]: `a.example:80` has a port; it belongs in `port`",
        "destinations[3].hosts[4]: `a b` is no host name",
        "destinations[3].tcp.clusters: need one with a weight of 1 or more",
        "destinations[4].addresses[0]: 10.0.0.0 with port 80 belongs to `d0` already",
        "destinations[4].hosts[0]: `D0.shop.svc.cluster.local` with port 80 belongs to `d0` already",
        "destinations[4].tcp.clusters[1].name: is empty",
        "destinations[5].http.server: must be visible text, as for a header value",
        "destinations[5].http.upgrades[0]: `web socket` is no protocol name such as `websocket`",
        "endpoints[0].endpoints[0].address: nothing answers at `10.0.0.1:0`",
        "endpoints[0].endpoints[0].identities[0]: `app` does not begin with spiffe://",
        "endpoints[0].endpoints[0].weight: must be 1 or more; leave the endpoint out instead",
        "endpoints[0].endpoints[1].identities: cannot be verified with `transport: plain`",
        "endpoints[0].endpoints[1].tunnel_address: is not used with `transport: plain`",
        "endpoints[0].endpoints[3]: 10.0.0.2:80 is there twice",
        "endpoints[1].cluster: endpoints[0] is for `c0` already",
        "workloads[1].name: is empty",
        "workloads[2].name: workloads[0] is named `a` in this namespace and cluster already",
    ];
    let mut sorted = seen.clone();
    sorted.sort();
    assert_eq!(sorted, expected);
}

#[test]
fn errors_deep_in_routes_have_paths() {
    let seen = errors(json!({"destinations": [destination(0), {
        "name": "web", "hosts": ["web.example"], "port": 80,
        "http": {
            "filters": [{"rbac": {"policies": {"p": {
                "permissions": [{"path": {"regex": "("}}], "principals": ["any"]}}}}],
            "routes": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
                {"match": {"path": {"prefix": "/"}}, "route": {"cluster": "c0"}},
                {"match": {"path": {"regex": "/a("}}, "route": {"cluster": "c0", "retry": {"on": ["sometimes"]}}},
            ]}]},
        },
    }]}));
    assert_eq!(seen.len(), 3, "{seen:#?}");
    let has = |start: &str| {
        assert!(seen.iter().any(|error| error.starts_with(start)), "no {start} in {seen:#?}");
    };
    has("destinations[1].http.filters[0].rbac.policies");
    has("destinations[1].http.routes.virtual_hosts[0].routes[1].match.path.regex: ");
    has(
        "destinations[1].http.routes.virtual_hosts[0].routes[1].route.retry.on[0]: `sometimes` is no retry condition",
    );
}

#[test]
fn warnings_do_not_refuse() {
    let with_warnings = json!({
        "destinations": [{
            "name": "web", "hosts": ["web.example"], "port": 80,
            "http": {"routes": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
                {"match": {"path": {"prefix": "/a"}}, "route": {"cluster": "gone", "mirrors": [{"cluster": "shadow"}]}},
                {"match": {"path": {"prefix": "/"}}, "route": {"weighted_clusters": [
                    {"name": "there", "weight": 1}, {"name": "canary", "weight": 1}, {"name": "gone", "weight": 1}]}},
            ]}]}},
            "tcp": {"clusters": [{"name": "there"}, {"name": "tcp-gone"}]},
        }],
        "clusters": [{"name": "there"}],
        "endpoints": [
            {"cluster": "elsewhere", "endpoints": []},
            {"cluster": "there", "endpoints": [{"address": "10.0.0.1:80"}]},
        ],
    });
    let mut compiler = Compiler::new("mesh");
    let mesh = compiler.compile(&resources(with_warnings.clone())).unwrap();
    let routes = "destinations[0].http.routes.virtual_hosts[0].routes";
    let expected = [
        "endpoints[0].cluster: there is no cluster `elsewhere`: its endpoints are not used".to_owned(),
        "endpoints[1].endpoints[0]: 10.0.0.1:80 has no `identities`: nobody could be trusted there, so it gets no requests".to_owned(),
        format!("{routes}[0].route.cluster: there is no cluster `gone`: what is sent there fails"),
        format!("{routes}[0].route.mirrors[0].cluster: there is no cluster `shadow`: what is sent there fails"),
        format!("{routes}[1].route.weighted_clusters[1].name: there is no cluster `canary`: what is sent there fails"),
        "destinations[0].tcp.clusters[1].name: there is no cluster `tcp-gone`: what is sent there fails".to_owned(),
    ];
    assert_eq!(mesh.warnings(), expected);
    let there = named(&mesh, "there");
    assert_eq!(there.endpoints.all().len(), 1);
    assert_eq!(there.endpoints.all()[0].health, spec::Health::Unhealthy);
    assert!(there.pick(|| 0, &[], 5).is_none());

    // The same again, then with the clusters that were missing: destinations stay as they are.
    assert_eq!(compiler.compile(&resources(with_warnings.clone())).unwrap().warnings(), expected);
    let mut repaired = with_warnings;
    repaired["clusters"] = json!([{"name": "there"}, {"name": "gone"}, {"name": "shadow"},
        {"name": "canary"}, {"name": "tcp-gone"}, {"name": "elsewhere"}]);
    let after = compiler.compile(&resources(repaired)).unwrap();
    assert_eq!(after.warnings().len(), 1);
    assert!(Arc::ptr_eq(after.destinations().next().unwrap(), mesh.destinations().next().unwrap()));
}

#[test]
fn lossy_fails_closed_where_it_must() {
    let mut bad = shop(4);
    Arc::make_mut(&mut bad.destinations[1]).tcp.as_mut().unwrap().clusters.clear();
    Arc::make_mut(&mut bad.destinations[3]).addresses = bad.destinations[2].addresses.clone();
    Arc::make_mut(&mut bad.clusters[2]).tls = Some(spec::UpstreamTls::default());
    Arc::make_mut(&mut bad.endpoints[0]).endpoints[0].weight = 0;

    let mut compiler = Compiler::new("mesh");
    assert_eq!(compiler.compile(&bad).unwrap_err().len(), 4);
    let mesh = compiler.compile_lossy(&bad);
    let broken = find(&mesh, "10.0.0.1:80").unwrap();
    assert_eq!(&*broken.name, "d1");
    assert_eq!(broken.broken.as_deref(), Some("tcp.clusters: need one with a weight of 1 or more"));
    assert_eq!(broken.refusal(), broken.broken.as_ref());
    assert!(broken.http.is_none() && broken.tcp.as_ref().unwrap().pick_cluster(0).is_none());
    assert_eq!(&*find(&mesh, "10.0.0.2:80").unwrap().name, "d2", "the first that claims it");
    assert!(mesh.cluster("c2").is_none());
    assert_eq!(named(&mesh, "c0").endpoints.all().len(), 1);
    assert!(find(&mesh, "10.0.0.0:80").unwrap().broken.is_none());
    // Four errors, and d2 whose cluster is missing.
    assert_eq!(mesh.warnings().len(), 5, "{:#?}", mesh.warnings());

    // What is broken is not compiled again either, and is repaired alone.
    let again = compiler.compile_lossy(&bad);
    assert!(mesh.destinations().zip(again.destinations()).all(|(old, new)| Arc::ptr_eq(old, new)));
    assert_eq!(again.warnings(), mesh.warnings());
    assert_eq!(compiler.compile(&bad).unwrap_err().len(), 4);
    let repaired = compiler.compile(&shop(4)).unwrap();
    assert!(find(&repaired, "10.0.0.1:80").unwrap().broken.is_none());
    assert!(Arc::ptr_eq(
        find(&mesh, "10.0.0.0:80").unwrap(),
        find(&repaired, "10.0.0.0:80").unwrap()
    ));
    assert_eq!(
        named(&mesh, "c0").endpoints.all()[0].id(),
        named(&repaired, "c0").endpoints.all()[1].id()
    );
}

#[test]
fn errors_are_bounded() {
    let wrong =
        |number: usize| json!({"name": format!("d{number}"), "port": 0, "addresses": ["10.0.0.1"]});
    let seen = errors(json!({"destinations": (0..1000).map(wrong).collect::<Vec<_>>()}));
    assert_eq!(seen.len(), 1001);
    assert!(seen[1000].contains("more are not listed"), "{}", seen[1000]);
}

#[test]
fn a_large_mesh_with_one_change_is_cheap() {
    let mut compiler = Compiler::new("mesh");
    let mut resources = shop(10_000);
    let before = compiler.compile(&resources).unwrap();
    let pod = resources.endpoints[5000].endpoints[0].clone();
    Arc::make_mut(&mut resources.endpoints[5000]).endpoints = vec![pod];
    let start = std::time::Instant::now();
    let endpoints = compiler.compile(&resources).unwrap();
    let for_endpoints = start.elapsed();
    Arc::make_mut(&mut resources.destinations[5000]).port = Some(81);
    let start = std::time::Instant::now();
    let after = compiler.compile(&resources).unwrap();
    let for_destination = start.elapsed();
    let start = std::time::Instant::now();
    compiler.compile(&resources).unwrap();
    println!(
        "one endpoint set: {for_endpoints:?}, one destination: {for_destination:?}, nothing: {:?}",
        start.elapsed()
    );
    let same =
        before.destinations().zip(after.destinations()).filter(|(old, new)| Arc::ptr_eq(old, new));
    assert_eq!(same.count(), 9999);
    assert_eq!(
        before.clusters().filter(|old| Arc::ptr_eq(old, named(&endpoints, &old.name))).count(),
        9999
    );
}

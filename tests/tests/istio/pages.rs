//! The admin pages of a running waypoint, in Envoy's shapes, and `cairn explain`.

use super::mesh::Mesh;
use super::pod::Waypoint;
use cairn_test_support::istiod::shapes;
use cairn_test_support::process::{Cairn, drive};
use cairn_test_support::wait::{eventually, eventually_async};
use serde_json::Value;
use std::net::SocketAddr;
use tokio::net::TcpStream;

async fn json(waypoint: &Waypoint, path: &str) -> Value {
    waypoint.admin(path).await.json()
}

fn names<'a>(list: &'a Value, pointer: &str) -> Vec<&'a str> {
    let list = list.as_array().unwrap_or_else(|| panic!("no list: {list:#}"));
    list.iter()
        .map(|one| one.pointer(pointer).and_then(Value::as_str).unwrap_or_default())
        .collect()
}

fn section<'a>(dump: &'a Value, name: &str) -> &'a Value {
    let url = format!("type.googleapis.com/envoy.admin.v3.{name}");
    let sections = dump["configs"].as_array().unwrap();
    sections
        .iter()
        .find(|section| section["@type"] == url.as_str())
        .unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn the_dump_has_what_istiod_sent() {
    drive(async {
        let mesh = Mesh::with(&["app", "other"]).await;
        let (pod, waypoint) = mesh.waypoint().await;
        let dump = json(&waypoint, "/config_dump").await;
        let node = &section(&dump, "BootstrapConfigDump")["bootstrap"]["node"];
        assert_eq!(node["id"], "waypoint~10.244.1.10~waypoint-1.plain~plain.svc.cluster.local");
        assert_eq!(
            node["metadata"]["LABELS"]["gateway.networking.k8s.io/gateway-name"],
            "waypoint"
        );
        let clusters = &section(&dump, "ClustersConfigDump")["dynamic_active_clusters"];
        let clusters = names(clusters, "/cluster/name");
        for name in [
            "connect_originate",
            "encap",
            "main_internal",
            &shapes::name("app"),
            &shapes::name("other"),
        ] {
            assert!(clusters.contains(&name), "{name} in {clusters:?}");
        }
        let listeners = &section(&dump, "ListenersConfigDump")["dynamic_listeners"];
        let mut found = names(listeners, "/name");
        found.sort_unstable();
        assert_eq!(
            found,
            [
                "connect_originate",
                "connect_terminate",
                "inner_connect_originate",
                "main_internal",
                "outer_connect_originate"
            ]
        );
        let main = listeners
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["name"] == "main_internal")
            .unwrap();
        let chains = &main["active_state"]["listener"]["filter_chains"];
        assert_eq!(names(chains, "/name"), [shapes::name("app"), shapes::name("other")]);
        // Every Any is printed by its fields.
        let manager = &chains[0]["filters"][0]["typed_config"];
        assert_eq!(manager["route_config"]["virtual_hosts"][0]["domains"][0], "*");
        for name in ["RoutesConfigDump", "ScopedRoutesConfigDump", "EcdsConfigDump"] {
            section(&dump, name);
        }
        let secrets = section(&dump, "SecretsConfigDump");
        let mut secret_names = names(&secrets["dynamic_active_secrets"], "/name");
        secret_names.sort_unstable();
        assert_eq!(secret_names, ["ROOTCA", "default"]);
        // Endpoints only on demand.
        let all = json(&waypoint, "/config_dump?include_eds=true").await;
        let endpoints = &section(&all, "EndpointsConfigDump")["dynamic_endpoint_configs"];
        let sets = names(endpoints, "/endpoint_config/cluster_name");
        assert!(sets.contains(&shapes::name("app").as_str()), "{sets:?}");
        assert!(!dump.to_string().contains("EndpointsConfigDump"));
        // No key anywhere.
        let kept = std::fs::read_to_string(pod.path("etc/istio/proxy/cairn-identity.pem")).unwrap();
        let (_, key) = kept.split_once("BEGIN PRIVATE KEY-----\n").unwrap();
        let key = key.lines().next().unwrap();
        for path in [
            "/config_dump?include_eds=true",
            "/certs",
            "/stats",
            "/server_info",
            "/clusters",
            "/unsupported",
        ] {
            let page = waypoint.admin(path).await.text();
            assert!(!page.contains(key) && !page.contains("PRIVATE KEY"), "{path}");
        }
        let redacted = secrets.to_string();
        assert!(redacted.contains("W3JlZGFjdGVkXQ=="), "[redacted], as Envoy has it: {redacted}");
    });
}

#[test]
fn parts_of_the_dump_can_be_asked_for() {
    drive(async {
        let mesh = Mesh::with(&["app", "other"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let part =
            json(&waypoint, "/config_dump?resource=dynamic_active_clusters&name_regex=.*app.*")
                .await;
        assert_eq!(names(&part["configs"], "/cluster/name"), [shapes::name("app")]);
        let part = json(&waypoint, "/config_dump?resource=dynamic_listeners").await;
        assert_eq!(part["configs"].as_array().unwrap().len(), 5);
        assert_eq!(
            waypoint.page("admin", "GET", "/config_dump?resource=nonsense").await.status,
            404
        );
        assert_eq!(waypoint.page("admin", "GET", "/config_dump?name_regex=(").await.status, 400);
    });
}

#[test]
fn clusters_certificates_and_numbers() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client(&waypoint).await;
        for _ in 0..3 {
            assert_eq!(mesh.get(&client, "app", "/").await.status, 200);
        }
        let app = shapes::name("app");
        let clusters = json(&waypoint, "/clusters?format=json").await;
        let statuses = clusters["cluster_statuses"].as_array().unwrap();
        let status = statuses.iter().find(|one| one["name"] == app.as_str()).unwrap();
        let host = &status["host_statuses"][0];
        assert_eq!(host["health_status"]["eds_health_status"], "HEALTHY");
        let stats = host["stats"].as_array().unwrap();
        let total = stats.iter().find(|stat| stat["name"] == "rq_total").unwrap();
        assert_eq!(total["value"].as_str().unwrap(), "3");
        let text = waypoint.admin("/clusters").await.text();
        assert!(text.contains(&format!("{app}::")) && text.contains("::rq_total::3\n"), "{text}");

        let certs = json(&waypoint, "/certs").await;
        let leaf = &certs["certificates"][0]["cert_chain"][0];
        assert_eq!(leaf["subject_alt_names"][0]["uri"], super::mesh::waypoint_id());
        assert_eq!(leaf["serial_number"].as_str().map(str::is_empty), Some(false));
        let info = json(&waypoint, "/server_info").await;
        assert_eq!(info["state"].as_str().unwrap_or("LIVE"), "LIVE");
        assert_eq!(info["node"]["cluster"], "waypoint.plain");
        let stats = waypoint.admin("/stats").await.text();
        assert!(stats.contains("control_plane.connected_state: 1\n"), "{stats}");
        assert!(stats.contains("server.live: 1\n"), "{stats}");
        let stats = json(&waypoint, "/stats?format=json&filter=lds.update_success").await;
        assert_eq!(stats["stats"].as_array().unwrap().len(), 1);
        assert!(
            waypoint
                .admin("/stats?format=prometheus")
                .await
                .text()
                .contains("istio_requests_total")
        );
        let listeners = waypoint.admin("/listeners").await.text();
        assert!(listeners.contains("connect_terminate::"), "{listeners}");
        let listeners = json(&waypoint, "/listeners?format=json").await;
        assert!(names(&listeners["listener_statuses"], "/name").contains(&"connect_terminate"));
        for page in ["/", "/help", "/ready", "/logging", "/unsupported", "/stats/prometheus"] {
            assert!(!waypoint.admin(page).await.text().is_empty(), "{page}");
        }
        assert_eq!(waypoint.page("admin", "GET", "/nothing").await.status, 404);
    });
}

#[test]
fn what_changes_something() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        let (_pod, mut waypoint) = mesh.waypoint().await;
        for page in ["/healthcheck/fail", "/healthcheck/ok", "/quitquitquit", "/drain_listeners"] {
            assert_eq!(waypoint.page("admin", "GET", page).await.status, 405, "{page}");
        }
        let post = async |page: &str| {
            let answer = waypoint.page("admin", "POST", page).await;
            assert_eq!(answer.status, 200, "{page}: {}", answer.text());
        };
        post("/healthcheck/fail").await;
        let probe = waypoint.probe().await;
        assert_eq!(
            (probe.status, probe.text().as_str()),
            (503, "failed by POST /healthcheck/fail\n")
        );
        assert_eq!(waypoint.page("admin", "GET", "/ready").await.status, 503);
        post("/healthcheck/ok").await;
        assert_eq!(waypoint.probe().await.status, 200);

        post("/logging?level=debug").await;
        assert!(
            waypoint.admin("/logging").await.text().contains("cairn_xds: debug")
                || waypoint.admin("/logging").await.text().contains("cairn: debug")
        );
        mesh.push_listener();
        waypoint.says("istiod sent").await;
        assert_eq!(waypoint.page("admin", "POST", "/logging?rbac=loud").await.status, 400);

        // Those that are open go on; no new ones come.
        let client = mesh.client(&waypoint).await;
        let tunnel = client.hbone.open(&mesh.vip("app")).await.unwrap();
        let mut open = cairn_test_support::http1::Http1::new(tunnel);
        post("/drain_listeners").await;
        let address = waypoint.hbone().await;
        eventually_async("nobody is let in", async || TcpStream::connect(address).await.is_err())
            .await;
        assert_eq!(open.get("/").await.unwrap().status, 200);
        drop((open, client));
        post("/quitquitquit").await;
        assert!(waypoint.cairn.wait().await.success());
    });
}

/// Pages are read from elsewhere, at the ports that are for that; what changes something is not done for others.
#[test]
fn from_elsewhere_nothing_is_changed() {
    drive(async {
        let Some(elsewhere) = own_address() else {
            eprintln!("skipped: this machine has no address but loopback");
            return;
        };
        let mesh = Mesh::with(&["app"]).await;
        let mut pod = mesh.pod();
        pod.listen_on("0.0.0.0");
        let mut waypoint = pod.start();
        waypoint.ready().await;
        let ask = async |door: &str, method: &str, path: &str| {
            let port = waypoint.address(&format!("{door} pages")).await.port();
            let stream = TcpStream::connect(SocketAddr::new(elsewhere, port)).await.unwrap();
            cairn_test_support::http1::Http1::new(stream)
                .request(method, path, &[], b"")
                .await
                .unwrap()
                .status
        };
        assert_eq!(ask("metrics", "GET", "/stats/prometheus").await, 200);
        assert_eq!(ask("health", "GET", "/healthz/ready").await, 200);
        assert_eq!(ask("metrics", "POST", "/quitquitquit").await, 403);
        for page in ["/config_dump", "/certs", "/logging"] {
            assert_eq!(ask("metrics", "GET", page).await, 404, "{page}");
        }
        // Nor for a web page that a browser on this machine shows.
        let admin = waypoint.address("admin pages").await;
        assert!(admin.ip().is_loopback());
        let stream = TcpStream::connect(admin).await.unwrap();
        let origin = [("origin", "https://evil.example")];
        let mut http = cairn_test_support::http1::Http1::new(stream);
        let answer = http.request("POST", "/quitquitquit", &origin, b"").await.unwrap();
        assert_eq!(answer.status, 403);
        assert!(waypoint.cairn.is_running());
    });
}

/// The address from which this machine would send; nothing is sent.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

async fn explained(words: &[&str]) -> (Option<i32>, String) {
    let mut command = Cairn::start(words);
    let code = command.wait().await.code();
    eventually("it has printed", || !command.output().is_empty()).await;
    (code, command.output().join("\n"))
}

#[test]
fn explain_asks_the_running_proxy() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let admin = waypoint.address("admin pages").await.to_string();
        let target = mesh.vip("app");
        let (code, text) = explained(&["explain", &target, "GET", "/", "--admin", &admin]).await;
        assert_eq!(code, Some(0), "{text}");
        for part in [shapes::name("app").as_str(), "127.0.1.1:8080", "sa/app", "default"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let (code, text) = explained(&["explain", "192.0.2.1:80", "--admin", &admin]).await;
        assert_eq!(code, Some(3), "{text}");
        assert!(text.contains("destination: none"), "{text}");
    });
}

/// The recording's layered policy, an ordinary chain, and a chain that fails closed.
#[test]
fn explain_reads_captures() {
    drive(async {
        let ask = async |theme: &str, words: &[&str]| {
            let captures = shapes::captures().join(theme);
            let captures = ["--captures", captures.to_str().unwrap(), "--json"];
            let (code, text) = explained(&[&["explain"], words, &captures].concat()).await;
            let answer: Value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            (code, answer)
        };
        let client = ["--from", "spiffe://cluster.local/ns/plain/sa/client"];
        let plain = [&["10.96.77.45:80", "GET", "/reviews"][..], &client].concat();
        let (code, answer) = ask("plain", &plain).await;
        let app = "inbound-vip|80|http|app.plain.svc.cluster.local";
        assert_eq!(code, Some(0), "{answer:#}");
        assert_eq!(answer["destination"]["name"], app);
        assert_eq!(answer["chain"], "http");
        assert!(answer["route"]["route"].as_str().unwrap().contains("default"), "{answer:#}");
        assert_eq!(answer["clusters"][0]["name"], app);
        let endpoints = names(&answer["clusters"][0]["endpoints"], "/address");
        assert_eq!(endpoints, ["10.244.1.11:8080", "10.244.1.12:8080"]);
        assert!(
            answer["clusters"][0]["endpoints"][0]["via"]
                .as_str()
                .unwrap()
                .contains("ns/plain/sa/app")
        );

        // A policy in front of tunnels: everybody but the client is refused.
        let host = "app.plain.svc.cluster.local:80";
        let (code, answer) =
            ask("multi-network", &[&[host, "GET", "/"][..], &client].concat()).await;
        assert_eq!(
            (code, &answer["connection"][0]["verdict"]),
            (Some(0), &Value::from("allowed")),
            "{answer:#}"
        );
        let stranger = [host, "GET", "/", "--from", "spiffe://cluster.local/ns/plain/sa/x"];
        let (code, answer) = ask("multi-network", &stranger).await;
        assert_eq!(code, Some(3), "{answer:#}");
        let step = &answer["connection"][0];
        assert_eq!(
            (&step["verdict"], &step["policy"]),
            (&"denied".into(), &"ns[plain]-policy[l4]-rule[0]".into())
        );

        let (code, answer) = ask("authorization", &["10.96.52.149:80", "GET", "/admin"]).await;
        assert_eq!(code, Some(3), "{answer:#}");
        assert_eq!(
            answer["destination"]["name"],
            "inbound-vip|80|http|app.authz.svc.cluster.local"
        );
        assert!(answer["outcome"].as_str().unwrap().starts_with("503: HTTP filter"), "{answer:#}");
        assert!(answer["notes"].to_string().contains("deny-app"), "{answer:#}");
        let (code, answer) = ask("authorization", &["10.96.51.1:3306"]).await;
        assert_eq!((code, answer["chain"].as_str()), (Some(3), Some("tcp")), "{answer:#}");
        let inside = ["10.96.51.1:3306", "--from", "spiffe://cluster.local/ns/authz/sa/client"];
        let (code, answer) = ask("authorization", &inside).await;
        assert_eq!(code, Some(0), "{answer:#}");
        assert!(answer["filters"].to_string().contains("deny-all-tcp"), "{answer:#}");
    });
}

#![allow(clippy::unwrap_used, clippy::panic)]

use super::super::server::{self, LONG};
use super::*;
use crate::cli::LogFormat;
use crate::explain::captures;
use crate::logging::Logging;
use crate::ready::Readiness;
use arc_swap::ArcSwap;
use cairn_identity::Identity;
use cairn_identity::dev::DevCa;
use cairn_proto::envoy::envoy::config::core::v3::Node;
use cairn_proto::envoy::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use cairn_proto::prost::Message;
use cairn_proxy::{InstanceConfig, Limits, MeshInstance};
use cairn_router::compile::Compiler;
use cairn_telemetry::Telemetry;
use cairn_xds::feed::Kind;
use cairn_xds::store::Store;
use cairn_xds::translate::{Settings, Translator};
use parking_lot::Mutex;
use prost_reflect::{DynamicMessage, ReflectMessage, Value as Field};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use types::Types;

const CAPTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/captures");
const THEMES: [&str; 12] = [
    "authorization",
    "destination-rule",
    "egress",
    "extensions",
    "gateway-api",
    "multi-network",
    "plain",
    "proxy-config",
    "shared",
    "telemetry",
    "virtualservice",
    "workload",
];

struct Waypoint {
    at: SocketAddr,
    readiness: Arc<Readiness>,
    done: Arc<Mutex<Vec<String>>>,
}

/// What istiod sent in a theme, served as a waypoint would.
fn view(theme: &str, done: &Arc<Mutex<Vec<String>>>) -> AdminView {
    let store = Arc::new(Store::new());
    let mut translator = Translator::new(Settings::default());
    for (file, kind) in captures::FILES {
        let Some((_, bytes)) = captures::read(&Path::new(CAPTURES).join(theme), file).unwrap()
        else {
            continue;
        };
        let answer = DeltaDiscoveryResponse::decode(bytes.as_slice()).unwrap();
        let update = captures::update(kind, answer);
        store.apply(&update);
        translator.apply(update).unwrap();
    }
    let resources = translator.resources();
    let ca = DevCa::new("cluster.local").unwrap();
    let id = ca.id(theme, "waypoint").unwrap();
    let identity = Identity::fixed(ca.issue(&id, Duration::from_secs(7200)).unwrap());
    let config = InstanceConfig {
        name: "waypoint".to_owned(),
        listen: "127.0.0.1:15008".parse().unwrap(),
        limits: Limits::default(),
    };
    let instance = MeshInstance::new(config, identity, Telemetry::new(1));
    instance.publish(Compiler::new("waypoint").compile_lossy(&resources));
    let unsupported = translator.unsupported();
    let note = |what: &'static str| {
        let done = Arc::clone(done);
        move || done.lock().push(what.to_owned())
    };
    let health = Arc::clone(done);
    AdminView {
        node: node(theme),
        started: Started::now(),
        store,
        instance,
        resources: Arc::new(ArcSwap::from_pointee(resources)),
        listeners: vec![
            Bound {
                name: "connect_terminate".to_owned(),
                address: "0.0.0.0:15008".parse().unwrap(),
            },
            Bound { name: "admin".to_owned(), address: "127.0.0.1:15000".parse().unwrap() },
        ],
        readiness: Arc::new(Readiness::waiting_for(["cds".to_owned()])),
        logging: Logging::start(LogFormat::Text, "off").unwrap(),
        stats: Box::new(|| vec![("control_plane.connected_state".to_owned(), 1)]),
        unsupported: Box::new(move || unsupported.clone()),
        degraded: Box::new(Vec::new),
        actions: Actions {
            fail_health: Box::new(move |fail| health.lock().push(format!("fail {fail}"))),
            drain_listeners: Box::new(note("drain")),
            quit: Box::new(note("quit")),
        },
    }
}

fn node(theme: &str) -> Node {
    let json = std::fs::read(Path::new(CAPTURES).join(theme).join("node.json")).unwrap();
    let mut json = serde_json::Deserializer::from_slice(&json);
    let types = Types::load();
    let message = types.message("envoy.config.core.v3.Node").unwrap();
    let message = DynamicMessage::deserialize(message, &mut json).unwrap();
    Node::decode(message.encode_to_vec().as_slice()).unwrap()
}

async fn start(theme: &str) -> Waypoint {
    let done = Arc::default();
    let view = view(theme, &done);
    let readiness = Arc::clone(&view.readiness);
    let pages = Arc::new(EnvoyPages::new(view));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(server::serve(listener, LONG, move |request| {
        pages.answer(request).unwrap_or_else(server::not_found)
    }));
    Waypoint { at, readiness, done }
}

/// Status and body. HTTP/1.0, so that the body is as it is.
async fn ask(at: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let request = format!("{method} {path} HTTP/1.0\r\nhost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

async fn get(at: SocketAddr, path: &str) -> String {
    let (status, body) = ask(at, "GET", path).await;
    assert_eq!(status, 200, "{path}: {body}");
    body
}

async fn get_json(at: SocketAddr, path: &str) -> Value {
    serde_json::from_str(&get(at, path).await).unwrap()
}

/// JSON that a reader of `name` understands, field by field.
fn parse(name: &str, json: &Value) -> DynamicMessage {
    let types = Types::load();
    let message = types.message(name).unwrap();
    DynamicMessage::deserialize(message, json.clone())
        .unwrap_or_else(|error| panic!("{name}: {error} in {json:#}"))
}

fn section<'a>(dump: &'a Value, name: &str) -> &'a Value {
    let url = format!("type.googleapis.com/envoy.admin.v3.{name}");
    let configs = dump["configs"].as_array().unwrap();
    configs.iter().find(|config| config["@type"] == url.as_str()).unwrap()
}

fn list<'a>(value: &'a Value, name: &str) -> &'a Vec<Value> {
    value[name].as_array().unwrap_or_else(|| panic!("no {name} in {value}"))
}

#[tokio::test]
async fn every_capture_is_a_dump_that_a_strict_reader_takes() {
    for theme in THEMES {
        let waypoint = start(theme).await;
        let dump = get_json(waypoint.at, "/config_dump?include_eds=true").await;
        parse("envoy.admin.v3.ConfigDump", &dump);
        for name in [
            "BootstrapConfigDump",
            "ClustersConfigDump",
            "EcdsConfigDump",
            "EndpointsConfigDump",
            "ListenersConfigDump",
            "RoutesConfigDump",
            "ScopedRoutesConfigDump",
            "SecretsConfigDump",
        ] {
            section(&dump, name);
        }
    }
}

#[test]
fn what_is_printed_is_all_that_was_received() {
    for theme in THEMES {
        let view = view(theme, &Arc::default());
        let types = Types::load();
        for kind in Kind::ALL {
            view.store.each(kind, |name, _, type_url, body, _| {
                let message = types.decode(type_url, &body).unwrap();
                no_unknown(&types, &message, name);
                let any = print::PrintedAny::new(&types, type_url, &body);
                let json = serde_json::to_value(any).unwrap();
                let parsed = parse("google.protobuf.Any", &json);
                let body = parsed.get_field_by_name("value").unwrap().as_bytes().unwrap().clone();
                let again = print::PrintedAny::new(&types, type_url, &body);
                assert_eq!(serde_json::to_value(again).unwrap(), json, "{theme} {name}");
            });
        }
    }
}

/// Every field, also inside of `Any`, has a name.
fn no_unknown(types: &Types, message: &DynamicMessage, at: &str) {
    assert_eq!(message.unknown_fields().count(), 0, "{at}");
    if message.descriptor().full_name() == "google.protobuf.Any" {
        let url = message.get_field_by_name("type_url").unwrap();
        let value = message.get_field_by_name("value").unwrap();
        let inner = types.decode(url.as_str().unwrap(), value.as_bytes().unwrap());
        no_unknown(types, &inner.unwrap_or_else(|error| panic!("{at}: {error}")), at);
        return;
    }
    for (field, value) in message.fields() {
        let at = format!("{at}.{}", field.name());
        match value {
            Field::Message(inner) => no_unknown(types, inner, &at),
            Field::List(items) => {
                items.iter().filter_map(Field::as_message).for_each(|i| no_unknown(types, i, &at));
            }
            Field::Map(items) => {
                items
                    .values()
                    .filter_map(Field::as_message)
                    .for_each(|i| no_unknown(types, i, &at));
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn sections_hold_what_istiod_sent() {
    let waypoint = start("virtualservice").await;
    let dump = get_json(waypoint.at, "/config_dump").await;
    let clusters = list(section(&dump, "ClustersConfigDump"), "dynamic_active_clusters");
    let names: Vec<&str> =
        clusters.iter().map(|c| c["cluster"]["name"].as_str().unwrap()).collect();
    assert!(names.iter().any(|name| name.starts_with("inbound-vip|")), "{names:?}");
    let first = &clusters[0];
    assert_eq!(first["cluster"]["@type"], "type.googleapis.com/envoy.config.cluster.v3.Cluster");
    assert!(first["last_updated"].as_str().unwrap().ends_with('Z'), "{first}");
    let listeners = list(section(&dump, "ListenersConfigDump"), "dynamic_listeners");
    let names: BTreeSet<&str> = listeners.iter().map(|l| l["name"].as_str().unwrap()).collect();
    assert!(names.contains("main_internal") && names.contains("connect_terminate"), "{names:?}");
    for listener in listeners {
        assert_eq!(listener["name"], listener["active_state"]["listener"]["name"]);
    }
    let routes = list(section(&dump, "RoutesConfigDump"), "static_route_configs");
    assert!(routes.iter().any(|route| {
        route["route_config"]["name"].as_str().is_some_and(|name| name.starts_with("inbound-vip|"))
    }));
    assert!(!list(&routes[0]["route_config"], "virtual_hosts").is_empty());
    assert!(dump["configs"].as_array().unwrap().iter().all(|config| {
        config["@type"] != "type.googleapis.com/envoy.admin.v3.EndpointsConfigDump"
    }));
    let node = &section(&dump, "BootstrapConfigDump")["bootstrap"]["node"];
    assert_eq!(node["metadata"]["ISTIO_VERSION"], "1.32.0");
    assert!(node["id"].as_str().unwrap().starts_with("waypoint~"), "{node}");
}

#[tokio::test]
async fn secrets_are_shown_without_keys() {
    use base64::Engine;
    let waypoint = start("workload").await;
    let dump = get_json(waypoint.at, "/config_dump?resource=dynamic_active_secrets").await;
    let secrets = list(&dump, "configs");
    let names: Vec<&str> = secrets.iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["default", "ROOTCA"]);
    let certificate = &secrets[0]["secret"]["tls_certificate"];
    assert_eq!(certificate["private_key"]["inline_bytes"], "W3JlZGFjdGVkXQ==");
    let roots = &secrets[1]["secret"]["validation_context"]["trusted_ca"]["inline_bytes"];
    for inline in [&certificate["certificate_chain"]["inline_bytes"], roots] {
        let pem = base64::prelude::BASE64_STANDARD.decode(inline.as_str().unwrap()).unwrap();
        let mut pem = pem.as_slice();
        let certificates: Vec<_> = rustls_pki_types::pem::PemObject::pem_reader_iter(&mut pem)
            .collect::<Result<Vec<rustls_pki_types::CertificateDer<'_>>, _>>()
            .unwrap();
        assert!(!certificates.is_empty());
    }
}

#[tokio::test]
async fn one_section_and_one_name_can_be_asked_for() {
    let waypoint = start("gateway-api").await;
    let dump = get_json(waypoint.at, "/config_dump?resource=dynamic_listeners").await;
    parse("envoy.admin.v3.ConfigDump", &dump);
    let kind = "type.googleapis.com/envoy.admin.v3.ListenersConfigDump.DynamicListener";
    assert!(list(&dump, "configs").iter().all(|config| config["@type"] == kind));
    let path = "/config_dump?resource=dynamic_listeners&name_regex=main_.*";
    let dump = get_json(waypoint.at, path).await;
    assert_eq!(list(&dump, "configs").len(), 1);
    // The whole name has to match.
    let path = "/config_dump?resource=dynamic_listeners&name_regex=main";
    assert_eq!(list(&get_json(waypoint.at, path).await, "configs").len(), 0);
    let path = "/config_dump?resource=bootstrap&mask=bootstrap";
    assert_eq!(list(&get_json(waypoint.at, path).await, "configs").len(), 1);
    let (status, body) = ask(waypoint.at, "GET", "/config_dump?resource=nonsense").await;
    assert_eq!(status, 404);
    assert!(body.contains("dynamic_active_clusters"), "{body}");
    assert_eq!(ask(waypoint.at, "GET", "/config_dump?name_regex=(").await.0, 400);
}

#[tokio::test]
async fn clusters_have_envoys_addresses() {
    let waypoint = start("plain").await;
    let json = get_json(waypoint.at, "/clusters?format=json").await;
    parse("envoy.admin.v3.Clusters", &json);
    let hosts = list(&json, "cluster_statuses")
        .iter()
        .filter_map(|cluster| cluster["host_statuses"].as_array())
        .flatten();
    let internal: Vec<&Value> = hosts
        .map(|host| &host["address"]["envoy_internal_address"])
        .filter(|a| a.is_object())
        .collect();
    assert!(!internal.is_empty(), "{json:#}");
    for address in &internal {
        assert_eq!(address["server_listener_name"], "connect_originate");
        assert!(address["endpoint_id"].as_str().unwrap().parse::<SocketAddr>().is_ok());
    }
    let text = get(waypoint.at, "/clusters").await;
    let id = internal[0]["endpoint_id"].as_str().unwrap();
    assert!(text.contains(&format!("::envoy://connect_originate/{id}::health_flags::")), "{text}");
    assert!(text.contains("::added_via_api::true\n"), "{text}");
}

#[tokio::test]
async fn small_pages_have_envoys_shapes() {
    let waypoint = start("workload").await;
    let info = get_json(waypoint.at, "/server_info").await;
    parse("envoy.admin.v3.ServerInfo", &info);
    assert_eq!(info["state"], "INITIALIZING");
    waypoint.readiness.arrived("cds");
    let info = get_json(waypoint.at, "/server_info").await;
    assert_eq!(info["state"].as_str().unwrap_or("LIVE"), "LIVE");
    let listeners = get_json(waypoint.at, "/listeners?format=json").await;
    parse("envoy.admin.v3.Listeners", &listeners);
    let text = get(waypoint.at, "/listeners").await;
    assert_eq!(text, "connect_terminate::0.0.0.0:15008\nadmin::127.0.0.1:15000\n");
    let certs = get_json(waypoint.at, "/certs").await;
    parse("envoy.admin.v3.Certificates", &certs);
    let leaf = &certs["certificates"][0]["cert_chain"][0];
    let uri = &leaf["subject_alt_names"][0]["uri"];
    assert_eq!(*uri, "spiffe://cluster.local/ns/workload/sa/waypoint");
    let help = get(waypoint.at, "/help").await;
    for (_, path, _) in PAGES {
        assert!(help.contains(path), "{path}");
    }
    assert!(get(waypoint.at, "/").await.contains("/config_dump"));
    assert!(get_json(waypoint.at, "/unsupported").await.is_array());
}

#[tokio::test]
async fn numbers_can_be_filtered() {
    let waypoint = start("workload").await;
    let all = get(waypoint.at, "/stats").await;
    assert!(all.contains("control_plane.connected_state: 1\n"), "{all}");
    assert!(all.contains("cluster_manager.active_clusters: "), "{all}");
    let some = get(waypoint.at, "/stats?filter=%5Eserver%5C.&format=json").await;
    let some: Value = serde_json::from_str(&some).unwrap();
    let stats = list(&some, "stats");
    assert!(stats.iter().all(|stat| stat["name"].as_str().unwrap().starts_with("server.")));
    let live = json!({"name": "server.live", "value": 0});
    assert!(stats.contains(&live), "{stats:?}");
    let used = get(waypoint.at, "/stats?usedonly&filter=%5Eserver%5C.live").await;
    assert_eq!(used, "");
    let metrics = get(waypoint.at, "/stats?format=prometheus").await;
    assert!(metrics.contains("# TYPE "), "{metrics}");
    assert_eq!(ask(waypoint.at, "GET", "/stats?filter=(").await.0, 400);
}

#[tokio::test]
async fn what_changes_something_needs_a_post() {
    let waypoint = start("workload").await;
    for path in ["/drain_listeners", "/healthcheck/fail", "/healthcheck/ok", "/quitquitquit"] {
        assert_eq!(ask(waypoint.at, "GET", path).await.0, 405, "{path}");
    }
    assert!(waypoint.done.lock().is_empty());
    for path in
        ["/healthcheck/fail", "/healthcheck/ok", "/drain_listeners?graceful", "/quitquitquit"]
    {
        assert_eq!(ask(waypoint.at, "POST", path).await, (200, "OK\n".to_owned()));
    }
    assert_eq!(*waypoint.done.lock(), ["fail true", "fail false", "drain", "quit"]);
}

#[test]
fn what_changes_something_is_for_this_machine() {
    use super::super::server::Visitor;
    let done = Arc::default();
    let pages = EnvoyPages::new(view("workload", &done));
    let ask = |visitor: Option<&str>| {
        let mut request = http::Request::post("/quitquitquit").body(()).unwrap().into_parts().0;
        request.extensions.extend(http::Extensions::new());
        if let Some(visitor) = visitor {
            request.extensions.insert(Visitor(visitor.parse().unwrap()));
        }
        pages.answer(&request).unwrap().status()
    };
    assert_eq!(ask(Some("10.0.0.1")), StatusCode::FORBIDDEN);
    assert_eq!(ask(None), StatusCode::FORBIDDEN);
    assert!(done.lock().is_empty());
    assert_eq!(ask(Some("::ffff:127.0.0.1")), StatusCode::OK);
    assert_eq!(*done.lock(), ["quit"]);
}

#[tokio::test]
async fn levels_are_shown_and_refused_with_a_reason() {
    let waypoint = start("workload").await;
    let (status, list) = ask(waypoint.at, "POST", "/logging").await;
    assert_eq!(status, 200);
    assert!(list.starts_with("active loggers:\n  cairn: off\n"), "{list}");
    assert_eq!(get(waypoint.at, "/logging").await, list);
    for wrong in ["?rbac=loud", "?nonsense=debug", "?paths=rbac", "?level=a%3Dloud"] {
        let (status, reason) = ask(waypoint.at, "POST", &format!("/logging{wrong}")).await;
        assert_eq!(status, 400, "{wrong}: {reason}");
    }
    let filter = |query| changed("info", &Query::parse(Some(query)).unwrap());
    assert_eq!(filter("level=warning").as_deref(), Ok("warn"));
    assert_eq!(filter("level=info,cairn=debug").as_deref(), Ok("info,cairn=debug"));
    assert_eq!(
        filter("paths=rbac:debug,http2:trace").as_deref(),
        Ok("info,cairn_router=debug,h2=trace")
    );
}

#[tokio::test]
async fn explanations_come_from_the_model_that_serves() {
    let waypoint = start("plain").await;
    let json = get_json(waypoint.at, "/config_dump?resource=dynamic_active_clusters").await;
    assert!(!list(&json, "configs").is_empty());
    let answer = get_json(waypoint.at, "/explain?target=192.0.2.1:80").await;
    assert_eq!(answer["answered"], false);
    assert!(answer["outcome"].as_str().unwrap().contains("404"), "{answer}");
    assert_eq!(ask(waypoint.at, "GET", "/explain?target=nowhere").await.0, 400);
}

//! Access logs as a Telemetry resource asks for them: those of the recording `telemetry`, read from the
//! standard output of the process.

use super::mesh::Mesh;
use super::pod::Waypoint;
use cairn_proto::envoy::envoy::config::accesslog::v3::AccessLog;
use cairn_proto::envoy::envoy::config::accesslog::v3::access_log::ConfigType as LogConfig;
use cairn_proto::envoy::envoy::config::core::v3::data_source::Specifier;
use cairn_proto::envoy::envoy::config::core::v3::substitution_format_string::Format;
use cairn_proto::envoy::envoy::config::core::v3::{DataSource, SubstitutionFormatString};
use cairn_proto::envoy::envoy::config::listener::v3::Listener;
use cairn_proto::envoy::envoy::config::listener::v3::filter::ConfigType;
use cairn_proto::envoy::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use cairn_proto::envoy::envoy::extensions::access_loggers::file::v3::file_access_log::AccessLogFormat;
use cairn_proto::envoy::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use cairn_proto::envoy::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use cairn_proto::prost::Message;
use cairn_test_support::http1::Http1;
use cairn_test_support::istiod::{capture, shapes};
use cairn_test_support::process::drive;
use cairn_test_support::wait::{eventually, eventually_async, within};
use cairn_xds::feed::Kind;
use serde_json::Value;

/// A listener of the recording.
fn recorded(name: &str) -> Listener {
    let all = capture(&shapes::captures().join("telemetry"));
    let listeners = all.into_iter().filter(|(kind, _)| *kind == Kind::Listener);
    let mut resources = listeners.flat_map(|(_, resources)| resources);
    let found = resources.find(|resource| resource.name == name).unwrap();
    Listener::decode(found.resource.unwrap().value.as_slice()).unwrap()
}

/// Text for all requests, JSON for some, records for a collector.
fn logs_of_requests() -> Vec<AccessLog> {
    let filters = recorded("main_internal").filter_chains.into_iter().flat_map(|one| one.filters);
    let managers = filters.filter_map(|filter| match filter.config_type? {
        ConfigType::TypedConfig(config) => {
            HttpConnectionManager::decode(config.value.as_slice()).ok()
        }
        _ => None,
    });
    managers.map(|manager| manager.access_log).find(|logs| logs.len() == 3).unwrap()
}

/// A line of text for everything.
fn text(line: &str) -> AccessLog {
    let source = DataSource {
        specifier: Some(Specifier::InlineString(line.to_owned())),
        ..DataSource::default()
    };
    let format = SubstitutionFormatString {
        format: Some(Format::TextFormatSource(source)),
        ..SubstitutionFormatString::default()
    };
    let file = FileAccessLog {
        path: "/dev/stdout".to_owned(),
        access_log_format: Some(AccessLogFormat::LogFormat(format)),
    };
    AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        filter: None,
        config_type: Some(LogConfig::TypedConfig(shapes::pack(&file))),
    }
}

/// The lines with this in them, once there is one.
async fn lines(waypoint: &Waypoint, text: &str) -> Vec<String> {
    let found = || {
        let output = waypoint.cairn.output().into_iter();
        output.filter(|line| line.contains(text)).collect::<Vec<_>>()
    };
    eventually(&format!("a line with {text}"), || !found().is_empty()).await;
    found()
}

#[test]
fn lines_of_text_and_json_for_whom_they_were_asked() {
    drive(async {
        let mut mesh = Mesh::with(&["app"]).await;
        mesh.edit("app", |manager| manager.access_log = logs_of_requests());
        let (_pod, mut waypoint) = mesh.waypoint().await;
        let client = mesh.client(&waypoint).await;
        mesh.answers(&client, "app", 200).await;
        let get = async |path: &str, log: &str| {
            let tunnel = within("CONNECT", client.hbone.open(&mesh.vip("app"))).await.unwrap();
            let mut http = Http1::new(tunnel);
            let headers = [("user-agent", "test/1"), ("x-log", log)];
            within(path, http.request("GET", path, &headers, b"")).await.unwrap().status
        };
        assert_eq!(get("/quiet?q=1", "no").await, 200);
        assert_eq!(get("/loud", "yes").await, 200);

        let quiet = lines(&waypoint, "/quiet").await;
        assert_eq!(quiet.len(), 1, "{quiet:?}");
        let line = &quiet[0];
        assert!(line.starts_with("[20"), "{line}");
        let (_, line) = line.split_once("] ").unwrap();
        let app = shapes::name("app");
        let pod = format!("{}:8080", cairn_test_support::mesh::pod_ip(0));
        for part in [
            "\"GET /quiet?q=1 HTTP/1.1\" 200 - via_upstream - \"-\" 0 ",
            "\"test/1\"",
            "\"app.test\"",
            &format!("\"{pod}\" {app} - {} 127.0.0.1:", mesh.vip("app")),
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(line.ends_with(" - default"), "{line}");

        let loud = lines(&waypoint, "/loud").await;
        assert_eq!(loud.len(), 2, "{loud:?}");
        let json: Value = loud.iter().find_map(|line| serde_json::from_str(line).ok()).unwrap();
        assert_eq!(json["code"], 200);
        assert_eq!(json["p"], "/loud");
        assert_eq!(json["nested"], Value::Null);
        assert!(json["src"].as_str().is_some_and(|src| src.contains("namespace=plain")), "{json}");

        let written =
            async || waypoint.metric("cairn_access_log_lines_total", &[("log", "stdout")]).await;
        eventually_async("lines are counted", async || written().await >= 4.0).await;
        assert_eq!(
            waypoint.metric("cairn_access_log_dropped_total", &[("log", "stdout")]).await,
            0.0
        );
        // Nothing is lost at the end.
        assert_eq!(get("/last", "no").await, 200);
        waypoint.cairn.terminate();
        waypoint.cairn.wait().await;
        assert_eq!(lines(&waypoint, "/last").await.len(), 1);
    });
}

/// Refused CONNECTs, tunnels for nobody, and tunnels to pods that are not there.
#[test]
fn tunnels_are_logged_by_the_listeners() {
    drive(async {
        let mut mesh = Mesh::with(&["app"]).await;
        let mut terminate = shapes::terminate();
        terminate.access_log = vec![text("listener of tunnels\n")];
        let Some(ConfigType::TypedConfig(config)) =
            &mut terminate.filter_chains[0].filters[0].config_type
        else {
            panic!("{terminate:?}")
        };
        let mut manager = HttpConnectionManager::decode(config.value.as_slice()).unwrap();
        manager.access_log = vec![text(
            "refused %REQ(:METHOD)% %REQ(:AUTHORITY)% %REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\n",
        )];
        *config = shapes::pack(&manager);
        let mut originate = recorded("connect_originate");
        let Some(ConfigType::TypedConfig(config)) =
            &mut originate.filter_chains[0].filters[0].config_type
        else {
            panic!("{originate:?}")
        };
        let mut proxy = TcpProxy::decode(config.value.as_slice()).unwrap();
        let mut log = text("no tunnel %RESPONSE_FLAGS% %UPSTREAM_HOST% %UPSTREAM_CLUSTER%\n");
        log.filter.clone_from(&proxy.access_log[0].filter);
        proxy.access_log = vec![log];
        *config = shapes::pack(&proxy);
        let listeners = [&terminate, &originate].map(shapes::listener_of);
        mesh.istiod.push(Kind::Listener, listeners.to_vec(), &[]);
        mesh.edit("app", |manager| {
            manager.access_log = vec![text("request %RESPONSE_CODE% %RESPONSE_FLAGS%\n")];
        });
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client(&waypoint).await;
        mesh.answers(&client, "app", 200).await;
        assert_eq!(lines(&waypoint, "request 200 -").await.len(), 1);

        assert_eq!(client.status("10.96.9.9:80", "/").await, 404);
        let refused = lines(&waypoint, "refused ").await;
        assert_eq!(refused, ["refused CONNECT 10.96.9.9:80 - 404 NR filter_chain_not_found"]);

        // Nobody listens there.
        let local = std::net::SocketAddr::from(([127, 0, 9, 9], 8080));
        mesh.istiod.push(Kind::Workload, vec![shapes::pod("app-2", "app", local.ip())], &[]);
        let assignment = shapes::assignment("app", &[("app-2", local)]);
        mesh.istiod.push(Kind::Endpoints, vec![assignment], &[]);
        mesh.answers(&client, "app", 503).await;
        let failed = format!("no tunnel UF 127.0.9.9:{} connect_originate", mesh.tunnel_port());
        assert!(lines(&waypoint, "no tunnel").await.contains(&failed));
        assert!(!lines(&waypoint, "request 503 UF").await.is_empty());
        assert!(!waypoint.cairn.output().iter().any(|line| line.contains("listener of tunnels")));
    });
}

/// A reader that does not read costs lines, not requests.
#[test]
fn a_blocked_output_drops_lines_and_counts_them() {
    drive(async {
        let mut mesh = Mesh::with(&["app"]).await;
        let long = "x".repeat(60_000);
        mesh.edit("app", |manager| manager.access_log = vec![text(&format!("long {long}\n"))]);
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client(&waypoint).await;
        waypoint.cairn.hold_stdout(true);
        let dropped =
            async || waypoint.metric("cairn_access_log_dropped_total", &[("log", "stdout")]).await;
        let mut sent = 0.0;
        while dropped().await == 0.0 {
            for _ in 0..20 {
                assert_eq!(mesh.get(&client, "app", "/").await.status, 200);
                sent += 1.0;
            }
            assert!(sent < 2000.0, "nothing is dropped");
        }
        waypoint.cairn.hold_stdout(false);
        let written =
            async || waypoint.metric("cairn_access_log_lines_total", &[("log", "stdout")]).await;
        eventually_async("every line is written or dropped", async || {
            written().await + dropped().await == sent
        })
        .await;
        let output = waypoint.cairn.output();
        let lines = output.iter().filter(|line| line.starts_with("long "));
        assert!(lines.clone().all(|line| line.len() == 5 + long.len()));
        let written = written().await;
        assert!(written > 60.0, "{written}");
        eventually("every written line is read", || {
            let output = waypoint.cairn.output();
            output.iter().filter(|line| line.starts_with("long ")).count() as f64 == written
        })
        .await;
    });
}

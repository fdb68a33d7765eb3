//! Access logs from the configuration's own words, as records for a collector.

use cairn_telemetry::access_log::{LogRecord, LogTransport, LogValue};
use cairn_test_support::app::{Behaviour, TcpApp};
use cairn_test_support::config::{MeshSpec, at, hbone};
use cairn_test_support::h2c::H2c;
use cairn_test_support::stage::{Run, Stage, TCP_VIP, VIP, app_id, client_id};
use cairn_test_support::wait::{drive, eventually, within};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn log(cluster: &str, attributes: &Value) -> Value {
    json!({ "observe": { "access_logs": [{ "to": { "otel": {
        "target": { "cluster": cluster, "authority": "collector", "timeout": "2s",
            "headers": [["x-token", "t"]], "resource": [["log_name", "test"]] },
        "body": "%REQ(:METHOD)% %RESPONSE_CODE%",
        "attributes": attributes,
    } } }] } })
}

/// All records so far, oldest first.
async fn records(run: &Run, count: usize) -> Vec<LogRecord> {
    let otel = run.waypoint.telemetry().access_logs().otel();
    let mut records = Vec::new();
    eventually(&format!("{count} records"), || {
        for queue in otel.queues() {
            assert_eq!(queue.target().transport, LogTransport::Grpc);
            assert_eq!(queue.target().authority, "collector");
            assert_eq!(queue.target().resource, [("log_name".to_owned(), "test".to_owned())]);
            records.extend(queue.take(100));
        }
        records.len() >= count
    })
    .await;
    assert_eq!(records.len(), count, "{records:?}");
    records
}

fn attributes(record: &LogRecord) -> BTreeMap<&str, &str> {
    let text = |(name, value): &'_ (std::sync::Arc<str>, LogValue)| match value {
        LogValue::Text(text) => (name.to_string(), text.clone()),
        other => panic!("{other:?}"),
    };
    let leaked = record.attributes.iter().map(text).map(|(name, text)| {
        let (name, text): (&'static str, &'static str) = (name.leak(), text.leak());
        (name, text)
    });
    leaked.collect()
}

#[test]
fn a_record_for_each_request() {
    drive(async {
        let stage = Stage::new().await;
        let wanted = json!({
            "peer": "%DOWNSTREAM_PEER_URI_SAN%",
            "host": "%UPSTREAM_HOST%",
            "cluster": "%UPSTREAM_CLUSTER%",
            "flags": "%RESPONSE_FLAGS%",
            "details": "%RESPONSE_CODE_DETAILS%",
            "grpc": "%GRPC_STATUS%",
            "trailer": "%TRAILER(grpc-status)%",
            "received": "%BYTES_RECEIVED%",
            "workload": "%FILTER_STATE(upstream_peer:FIELD:workload)%",
        });
        let routes = json!([at(json!({ "prefix": "/" }), "app", json!({}))]);
        let spec = MeshSpec::new()
            .cluster_with("app", json!({ "protocol": "http2" }), vec![stage.endpoint()])
            .http_with(VIP, routes, log("collectors", &wanted))
            .workload(json!({
                "addresses": ["10.1.0.1"], "name": "app-1", "namespace": "shop", "service_account": "app",
                "trust_domain": "cluster.local", "workload_name": "app-v2", "canonical_name": "app",
                "canonical_revision": "v2", "cluster": "Kubernetes",
            }));
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        http.request("POST", "/echo", &[], b"body").await.unwrap();
        let one = records(&run, 1).await;
        assert_eq!(one[0].body, Some(LogValue::Text("POST 200".to_owned())));
        let client = client_id();
        let expected = [
            ("cluster", "app"),
            ("details", "via_upstream"),
            ("flags", "-"),
            ("grpc", "-"),
            ("host", "10.1.0.1:8080"),
            ("peer", client.as_str()),
            ("received", "4"),
            ("trailer", "-"),
            ("workload", "app-v2"),
        ];
        assert_eq!(attributes(&one[0]), BTreeMap::from(expected));

        let h2c: H2c = run.h2c().await;
        h2c.unary("/test.Echo/Unary", &[], b"hello").await.unwrap();
        let two = records(&run, 1).await;
        let grpc = attributes(&two[0]);
        assert_eq!((grpc["grpc"], grpc["trailer"]), ("OK", "0"), "{grpc:?}");
    });
}

#[test]
fn a_record_for_each_connection() {
    drive(async {
        let stage = Stage::new().await;
        let app = TcpApp::new(Behaviour::Echo);
        let pod = stage.pod(&app).await;
        let wanted = json!({
            "sent": "%BYTES_SENT%", "received": "%BYTES_RECEIVED%", "host": "%UPSTREAM_HOST%",
            "type": "%ACCESS_LOG_TYPE%", "local": "%DOWNSTREAM_LOCAL_ADDRESS%", "code": "%RESPONSE_CODE%",
            "protocol": "%PROTOCOL%",
        });
        let mut tcp = json!({ "clusters": [{ "name": "tcp" }] });
        cairn_test_support::config::merge(&mut tcp, log("collectors", &wanted));
        let (address, port) = TCP_VIP.rsplit_once(':').unwrap();
        let spec = MeshSpec::new()
            .cluster("tcp", vec![hbone(&pod, "10.1.0.2:9000", &app_id())])
            .destination(json!({
                "name": "tcp", "addresses": [address], "port": port.parse::<u16>().unwrap(), "tcp": tcp,
            }));
        let run = stage.run(&spec).await;
        let mut tunnel = run.tunnel(TCP_VIP).await;
        tunnel.write_all(b"hello").await.unwrap();
        tunnel.shutdown().await.unwrap();
        let mut back = Vec::new();
        within("the echo", tunnel.read_to_end(&mut back)).await.unwrap();
        let one = records(&run, 1).await;
        assert_eq!(one[0].body, Some(LogValue::Text("- 0".to_owned())));
        let expected = [
            ("code", "0"),
            ("host", "10.1.0.2:9000"),
            ("local", TCP_VIP),
            ("protocol", "-"),
            ("received", "5"),
            ("sent", "5"),
            ("type", "TcpConnectionEnd"),
        ];
        assert_eq!(attributes(&one[0]), BTreeMap::from(expected));
    });
}

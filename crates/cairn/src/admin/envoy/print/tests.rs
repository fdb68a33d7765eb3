#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use cairn_proto::envoy::envoy::config::core::v3::{DataSource, data_source::Specifier};
use cairn_proto::envoy::envoy::extensions::transport_sockets::tls::v3::{
    Secret, TlsCertificate, secret,
};
use cairn_proto::envoy::google::protobuf::Any;
use cairn_proto::prost::Message;
use serde_json::json;

fn any(type_url: &str, value: &[u8]) -> serde_json::Value {
    serde_json::to_value(PrintedAny::new(&Types::load(), type_url, value)).unwrap()
}

fn inline(text: &str) -> Option<DataSource> {
    let specifier = Some(Specifier::InlineString(text.to_owned()));
    Some(DataSource { specifier, ..DataSource::default() })
}

#[test]
fn well_known_types_have_their_own_form() {
    use cairn_proto::prost_types::{Duration, Timestamp};
    let url = "type.googleapis.com/google.protobuf.Duration";
    let ten = Duration { seconds: 10, nanos: 0 }.encode_to_vec();
    assert_eq!(any(url, &ten), json!({"@type": url, "value": "10s"}));
    let url = "type.googleapis.com/google.protobuf.Timestamp";
    let time = Timestamp { seconds: 0, nanos: 500_000_000 }.encode_to_vec();
    assert_eq!(any(url, &time)["value"], "1970-01-01T00:00:00.500Z");
    let never = Timestamp { seconds: i64::MAX, nanos: 0 }.encode_to_vec();
    assert_eq!(any(url, &never)["value"], json!(null));
}

#[test]
fn what_is_not_known_is_printed_as_bytes_wherever_it_is() {
    let url = "type.googleapis.com/made.up.Type";
    assert_eq!(any(url, b"abc"), json!({"@type": url, "value": "YWJj"}));
    let outer = "type.googleapis.com/google.protobuf.Any";
    let inner = Any { type_url: url.to_owned(), value: b"abc".to_vec() };
    let printed = json!({"@type": outer, "value": {"@type": url, "value": "YWJj"}});
    assert_eq!(any(outer, &inner.encode_to_vec()), printed);
    let broken = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    assert_eq!(any(broken, b"\xff"), json!({"@type": broken, "value": "/w=="}));
    assert_eq!(any("", b""), json!({}));
}

#[test]
fn depth_is_bounded() {
    let url = "type.googleapis.com/google.protobuf.Any";
    let mut value = Vec::new();
    for _ in 0..200 {
        value = Any { type_url: url.to_owned(), value }.encode_to_vec();
    }
    let mut printed = &any(url, &value);
    let mut depth = 0;
    while printed["value"].is_object() {
        printed = &printed["value"];
        depth += 1;
    }
    assert_eq!(depth, usize::from(MAX_DEPTH));
    assert!(printed["value"].is_string());
}

#[test]
fn secrets_are_not_printed() {
    let certificate = TlsCertificate {
        certificate_chain: inline("public"),
        private_key: inline("hidden"),
        password: inline("hidden"),
        ..TlsCertificate::default()
    };
    let secret =
        Secret { name: "mine".to_owned(), r#type: Some(secret::Type::TlsCertificate(certificate)) };
    let url = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    let printed = any(url, &secret.encode_to_vec());
    let certificate = &printed["tls_certificate"];
    assert_eq!(certificate["certificate_chain"]["inline_string"], "public");
    assert_eq!(certificate["private_key"]["inline_string"], "[redacted]");
    assert!(!printed.to_string().contains("hidden"), "{printed}");
}

#[test]
fn numbers_enums_and_maps() {
    use cairn_proto::workload::Workload;
    let mut workload = Workload { name: "pod".to_owned(), ..Workload::default() };
    workload.services.insert("b/x".to_owned(), Default::default());
    workload.services.insert("a/x".to_owned(), Default::default());
    workload.addresses.push(vec![10, 0, 0, 1]);
    workload.set_status(cairn_proto::workload::WorkloadStatus::Unhealthy);
    let url = "type.googleapis.com/istio.workload.Workload";
    let printed = any(url, &workload.encode_to_vec());
    assert_eq!(printed["status"], "UNHEALTHY");
    assert_eq!(printed["addresses"], json!(["CgAAAQ=="]));
    assert_eq!(printed["services"].as_object().unwrap().len(), 2);
}

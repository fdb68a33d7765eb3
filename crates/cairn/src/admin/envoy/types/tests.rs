#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use cairn_proto::prost::Message;
use cairn_proto::prost_types::{
    DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet, MessageOptions,
};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/admin/envoy");
const SENSITIVE_OPTION: &str = "udpa.annotations.sensitive";

/// What the sources say: the descriptors without what printing does not need, and the fields with
/// secrets, one a line.
fn sources() -> (Vec<u8>, String) {
    let package = envoy_types();
    let envoy = std::fs::read(package.join("src/generated/types.bin")).unwrap();
    let pool = DescriptorPool::decode(envoy.as_slice()).unwrap();
    let extension = pool.get_extension_by_name(SENSITIVE_OPTION).unwrap();
    let mut secret: Vec<String> = pool
        .all_messages()
        .flat_map(|message| message.fields().collect::<Vec<_>>())
        .filter(|field| field.options().get_extension(&extension).as_bool() == Some(true))
        .map(|field| field.full_name().to_owned())
        .collect();
    secret.sort();
    let secret = secret.iter().fold(String::new(), |mut list, field| {
        writeln!(list, "{field}").unwrap();
        list
    });

    let istio = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/proto");
    let mut include = vec![istio, Path::new(HERE).join("proto")];
    for folder in ["data-plane-api", "googleapis", "protoc-gen-validate", "xds"] {
        include.push(package.join("proto").join(folder));
    }
    let names = ["ip.proto", "workload.proto", "stats.proto", "udpa.proto", "xds.proto"];
    let istio = protox::compile(names, include).unwrap();
    let mut files = FileDescriptorSet::decode(envoy.as_slice()).unwrap().file;
    for file in FileDescriptorSet::decode(istio.encode_to_vec().as_slice()).unwrap().file {
        if !files.iter().any(|known| known.name == file.name) {
            files.push(file);
        }
    }
    files.iter_mut().for_each(reduce_file);
    files.sort_by(|a, b| a.name.cmp(&b.name));
    (FileDescriptorSet { file: files }.encode_to_vec(), secret)
}

/// Where cargo keeps the sources of the crate that the messages come from.
fn envoy_types() -> PathBuf {
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--format-version=1", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .output()
        .unwrap();
    assert!(cargo.status.success(), "{}", String::from_utf8_lossy(&cargo.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&cargo.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let envoy = packages.iter().find(|package| package["name"] == "envoy-types").unwrap();
    Path::new(envoy["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned()
}

fn reduce_file(file: &mut FileDescriptorProto) {
    file.options = None;
    file.service.clear();
    file.extension.clear();
    file.source_code_info = None;
    file.message_type.iter_mut().for_each(reduce_message);
    file.enum_type.iter_mut().for_each(reduce_enum);
}

fn reduce_message(message: &mut DescriptorProto) {
    let map_entry = message.options.as_ref().and_then(|options| options.map_entry);
    message.options = map_entry.map(|map_entry| MessageOptions {
        map_entry: Some(map_entry),
        ..MessageOptions::default()
    });
    message.extension.clear();
    message.reserved_range.clear();
    message.reserved_name.clear();
    for field in &mut message.field {
        field.options = None;
        field.json_name = None;
    }
    for oneof in &mut message.oneof_decl {
        oneof.options = None;
    }
    message.nested_type.iter_mut().for_each(reduce_message);
    message.enum_type.iter_mut().for_each(reduce_enum);
}

fn reduce_enum(kind: &mut EnumDescriptorProto) {
    let alias = kind.options.as_ref().and_then(|options| options.allow_alias);
    kind.options = alias.map(|_| cairn_proto::prost_types::EnumOptions {
        allow_alias: alias,
        ..Default::default()
    });
    kind.reserved_range.clear();
    kind.reserved_name.clear();
    for value in &mut kind.value {
        value.options = None;
    }
}

#[test]
fn the_descriptors_are_those_of_the_sources() {
    let (descriptors, secret) = sources();
    if std::env::var_os("CAIRN_UPDATE_TYPES").is_some() {
        let compressed = miniz_oxide::deflate::compress_to_vec_zlib(&descriptors, 10);
        std::fs::write(format!("{HERE}/types.bin"), compressed).unwrap();
        std::fs::write(format!("{HERE}/sensitive.txt"), &secret).unwrap();
        return;
    }
    let there =
        miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(COMPRESSED, MAX_BYTES).unwrap();
    assert!(
        there == descriptors && SENSITIVE == secret,
        "types.bin and sensitive.txt are not those of envoy-types and crates/proto: \
         CAIRN_UPDATE_TYPES=1 makes them anew"
    );
}

#[test]
fn messages_are_found_while_somebody_holds_them() {
    let types = Types::load();
    assert!(Arc::ptr_eq(&types, &Types::load()));
    for name in [
        "envoy.admin.v3.ConfigDump",
        "envoy.config.listener.v3.Listener",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "google.protobuf.Any",
        "istio.workload.Workload",
        "stats.PluginConfig",
        "udpa.type.v1.TypedStruct",
        "xds.type.v3.TypedStruct",
    ] {
        assert!(types.message(name).is_some(), "{name}");
    }
    assert!(is_sensitive("envoy.extensions.transport_sockets.tls.v3.TlsCertificate.private_key"));
    assert!(!is_sensitive("envoy.config.cluster.v3.Cluster.name"));
}

#[test]
fn what_is_not_known_is_named() {
    let types = Types::load();
    let error = types.decode("type.googleapis.com/made.up.Type", b"").unwrap_err();
    assert_eq!(error.to_string(), "the type `made.up.Type` is not known");
    let error = types.decode("a/envoy.config.cluster.v3.Cluster", b"\xff").unwrap_err();
    assert!(error.to_string().contains("envoy.config.cluster.v3.Cluster"), "{error}");
}

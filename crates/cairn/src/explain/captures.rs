//! Recorded answers of istiod, compiled as the proxy would.

use bytes::Bytes;
use cairn_proto::envoy::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use cairn_proto::prost::Message;
use cairn_router::compile::Compiler;
use cairn_router::model::Mesh;
use cairn_router::spec::Resources;
use cairn_xds::feed::{Kind, Resource, Update};
use cairn_xds::translate::{Settings, Translator};
use serde_json::Value;
use std::fs;
use std::io;
use std::path::Path;

/// Bound of a file in bytes, once it is unpacked.
const MAX_BYTES: usize = 256 << 20;
/// Files of a capture. Each is one `DeltaDiscoveryResponse`.
pub const FILES: [(&str, Kind); 5] = [
    ("cds", Kind::Cluster),
    ("eds", Kind::Endpoints),
    ("lds", Kind::Listener),
    ("workloads", Kind::Workload),
    ("ecds", Kind::ExtensionConfig),
];

/// Reads what is in the directory; the error names the file.
pub fn open(directory: &Path) -> Result<(Mesh, Resources, Vec<String>), String> {
    let settings = Settings { network: network(directory)?, ..Settings::default() };
    let mut translator = Translator::new(settings);
    let mut found = false;
    for (name, kind) in FILES {
        let Some((path, bytes)) = read(directory, name)? else { continue };
        found = true;
        let answer = DeltaDiscoveryResponse::decode(bytes.as_slice())
            .map_err(|error| format!("{path} is no DeltaDiscoveryResponse: {error}"))?;
        translator.apply(update(kind, answer)).map_err(|refused| format!("{path}: {refused}"))?;
    }
    if !found {
        let names: Vec<_> = FILES.iter().map(|(name, _)| format!("{name}.pb")).collect();
        return Err(format!("{} has none of {}", directory.display(), names.join(", ")));
    }
    let unsupported = translator.unsupported();
    let notes = unsupported.iter().map(|one| format!("{} {}: {}", one.kind, one.name, one.reason));
    let resources = translator.resources();
    let mesh = Compiler::new("captures").compile_lossy(&resources);
    Ok((mesh, resources, notes.collect()))
}

/// The network of the node that asked, by its `node.json`; without one it has no name.
fn network(directory: &Path) -> Result<String, String> {
    let path = directory.join("node.json");
    let shown = path.display();
    let node = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(format!("{shown}: {error}")),
    };
    let node: Value =
        serde_json::from_slice(&node).map_err(|error| format!("{shown} is no JSON: {error}"))?;
    let network = node.pointer("/metadata/NETWORK").and_then(Value::as_str);
    Ok(network.unwrap_or_default().to_owned())
}

/// One answer as an update.
pub fn update(kind: Kind, answer: DeltaDiscoveryResponse) -> Update {
    let resource = |resource: cairn_proto::envoy::envoy::service::discovery::v3::Resource| {
        let any = resource.resource.unwrap_or_default();
        Resource {
            name: resource.name,
            version: resource.version,
            type_url: any.type_url,
            body: Bytes::from(any.value),
            aliases: resource.aliases,
        }
    };
    let changed = answer.resources.into_iter().map(resource).collect();
    Update { kind, changed, removed: answer.removed_resources }
}

/// Path and bytes of `NAME.pb` or `NAME.pb.gz`; `None`: neither is there.
pub fn read(directory: &Path, name: &str) -> Result<Option<(String, Vec<u8>)>, String> {
    for suffix in ["pb", "pb.gz"] {
        let path = directory.join(format!("{name}.{suffix}"));
        let shown = path.display().to_string();
        let bytes = match fs::read(&path) {
            Ok(bytes) if bytes.len() <= MAX_BYTES => bytes,
            Ok(_) => return Err(format!("{shown} has more than {MAX_BYTES} bytes")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(format!("{shown}: {error}")),
        };
        let bytes = match suffix {
            "pb" => bytes,
            _ => unpack(&bytes).ok_or_else(|| format!("{shown} is not compressed as gzip does"))?,
        };
        return Ok(Some((shown, bytes)));
    }
    Ok(None)
}

/// The first member of a gzip file (RFC 1952).
fn unpack(bytes: &[u8]) -> Option<Vec<u8>> {
    const HEAD: usize = 10;
    const NAME: u8 = 8;
    let (head, mut rest) = bytes.split_at_checked(HEAD)?;
    let [0x1f, 0x8b, 8, flags, ..] = head else { return None };
    match *flags {
        0 => {}
        NAME => rest = rest.get(rest.iter().position(|byte| *byte == 0)? + 1..)?,
        _ => return None,
    }
    miniz_oxide::inflate::decompress_to_vec_with_limit(rest, MAX_BYTES).ok()
}

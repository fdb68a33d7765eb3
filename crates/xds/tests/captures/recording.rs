//! Reads recorded pushes.

use bytes::Bytes;
use cairn_proto::envoy::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use cairn_proto::prost::Message;
use cairn_xds::feed::{Kind, Resource, Update};
use cairn_xds::translate::{Settings, Translator};
use flate2::read::GzDecoder;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Folders that hold the pushes of one mesh each.
pub const THEMES: [&str; 13] = [
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
    "updates",
    "virtualservice",
    "workload",
];

const FILES: [(&str, Kind); 5] = [
    ("cds", Kind::Cluster),
    ("eds", Kind::Endpoints),
    ("lds", Kind::Listener),
    ("workloads", Kind::Workload),
    ("ecds", Kind::ExtensionConfig),
];

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/captures")
}

/// The updates of a folder, in the order in which Envoy would ask.
pub fn updates(of: &str) -> Vec<Update> {
    let files = FILES.iter().filter_map(|(file, kind)| {
        let path = folder().join(of).join(format!("{file}.pb.gz"));
        path.exists().then(|| read(&path, *kind))
    });
    files.collect()
}

fn read(path: &Path, kind: Kind) -> Update {
    let mut bytes = Vec::new();
    GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    let response = DeltaDiscoveryResponse::decode(Bytes::from(bytes)).unwrap();
    let changed = response.resources.into_iter().map(|resource| {
        let any = resource.resource.unwrap();
        Resource {
            name: resource.name,
            version: resource.version,
            type_url: any.type_url,
            body: any.value.into(),
            aliases: resource.aliases,
        }
    });
    Update { kind, changed: changed.collect(), removed: response.removed_resources }
}

pub fn settings(theme: &str) -> Settings {
    let network = if theme == "multi-network" { "net1" } else { "" };
    Settings { network: network.to_owned(), ..Settings::default() }
}

/// A translator that took in everything of a folder.
pub fn translated(theme: &str) -> Translator {
    let mut translator = Translator::new(settings(theme));
    for update in updates(theme) {
        if let Err(rejected) = translator.apply(update) {
            panic!("{theme}: {rejected}");
        }
    }
    translator
}

//! Whatever the bytes: nothing panics, and what is not known never opens a chain.

use crate::world::any as any_message;
use crate::world::{
    at_app, chain, http_filter, main_internal, manager, network_filter, of_chain, pack, resource,
    translator, update,
};
use cairn_proto::envoy as pb;
use cairn_proto::prost::Message;
use cairn_router::compile::Compiler;
use cairn_xds::feed::{Kind, Update};
use cairn_xds::translate::{Settings, Translator};
use pb::envoy::config::listener::v3::Listener;
use pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use proptest::prelude::*;
use std::io::Read;
use std::path::Path;
use std::sync::LazyLock;

const HCM: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// Recorded resources of all kinds.
static RECORDED: LazyLock<Vec<(Kind, Vec<cairn_xds::feed::Resource>)>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/captures");
    let kinds = [
        ("lds", Kind::Listener),
        ("cds", Kind::Cluster),
        ("eds", Kind::Endpoints),
        ("workloads", Kind::Workload),
    ];
    let mut all = Vec::new();
    for theme in ["authorization", "virtualservice", "destination-rule", "multi-network"] {
        for (file, kind) in kinds {
            let path = folder.join(theme).join(format!("{file}.pb.gz"));
            let mut bytes = Vec::new();
            flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap())
                .read_to_end(&mut bytes)
                .unwrap();
            let response = DeltaDiscoveryResponse::decode(bytes.as_slice()).unwrap();
            let resources = response.resources.into_iter().take(40);
            let resources =
                resources.map(|of| resource(kind, &of.name, of.resource.unwrap().value)).collect();
            all.push((kind, resources));
        }
    }
    all
});

/// A change of bytes.
#[derive(Debug, Clone)]
enum Change {
    Set(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Double(prop::sample::Index, prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (index(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        1 => index().prop_map(Change::Cut),
        2 => (index(), prop::collection::vec(any::<u8>(), 1..12)).prop_map(|(at, of)| Change::Insert(at, of)),
        1 => (index(), index()).prop_map(|(from, to)| Change::Double(from, to)),
    ]
}

fn changed(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        let length = bytes.len();
        if length == 0 {
            break;
        }
        match change {
            Change::Set(at, byte) => bytes[at.index(length)] = *byte,
            Change::Cut(at) => bytes.truncate(at.index(length)),
            Change::Insert(at, of) => {
                let at = at.index(length);
                bytes.splice(at..at, of.iter().copied());
            }
            Change::Double(from, to) => {
                let (from, to) = (from.index(length), to.index(length));
                let part = bytes[from.min(to)..from.max(to)].to_vec();
                bytes.extend(part);
            }
        }
    }
    bytes
}

/// How closed something is: 0 open, 1 some condition or action closed, 2 all closed.
fn closed(translator: &Translator) -> usize {
    let resources = translator.resources();
    let Some(destination) = resources.destinations.first() else { return 2 };
    let http = destination.http.as_ref();
    match http {
        Some(chain) if chain.broken.is_none() => chain.filters.len().min(1),
        _ => 2,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn changed_bytes_do_no_harm(
        which in any::<prop::sample::Index>(),
        resource in any::<prop::sample::Index>(),
        changes in prop::collection::vec(change(), 1..6),
    ) {
        let (kind, recorded) = &RECORDED[which.index(RECORDED.len())];
        let mut resources = recorded.clone();
        let at = resource.index(resources.len());
        let chosen = &mut resources[at];
        chosen.body = changed(chosen.body.to_vec(), &changes).into();
        let mut translator = Translator::new(Settings::default());
        let refused = translator.apply(Update { kind: *kind, changed: resources, removed: vec![] });
        if let Err(refused) = refused {
            prop_assert!(refused.detail.len() < 10_000);
        }
        let resources = translator.resources();
        Compiler::new("mesh").compile_lossy(&resources);
        let _lists = (translator.wanted(), translator.facts(), translator.unsupported(), translator.degraded());
    }

    #[test]
    fn any_bytes_do_no_harm(
        kind in prop::sample::select(Kind::ALL.to_vec()),
        name in prop::sample::select(vec!["main_internal", "connect_terminate", "connect_originate", "x"]),
        body in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut translator = Translator::new(Settings::default());
        let _refused = translator.apply(update(kind, vec![resource(kind, name, body)]));
        Compiler::new("mesh").compile_lossy(&translator.resources());
    }

    /// An unknown filter at any place of a chain closes it; nothing that is put in opens one.
    #[test]
    fn unknown_filters_never_open(
        at in any::<prop::sample::Index>(),
        network in any::<bool>(),
        kind in "[a-z.]{1,20}",
        value in prop::collection::vec(any::<u8>(), 0..20),
        optional in any::<bool>(),
    ) {
        let mut base = manager();
        base.http_filters.insert(0, http_filter("istio.stats", any_message("stats.PluginConfig", vec![])));
        let mut filters = vec![network_filter("hcm", pack(&base))];
        let before = {
            let (translator, _) = of_chain(chain(filters.clone()));
            closed(&translator)
        };
        if network {
            let place = at.index(filters.len() + 1);
            filters.insert(place, network_filter("own", any_message(&kind, value)));
        } else {
            let place = at.index(base.http_filters.len() + 1);
            let mut own = http_filter("own", any_message(&kind, value));
            own.is_optional = optional;
            base.http_filters.insert(place, own);
            filters = vec![network_filter("hcm", pack(&base))];
        }
        let listener = main_internal(vec![chain(filters)], at_app());
        let mut translator = translator();
        let own = resource(Kind::Listener, "main_internal", listener.encode_to_vec());
        let _refused = translator.apply(update(Kind::Listener, vec![own]));
        let after = closed(&translator);
        prop_assert!(after >= before);
        if !optional || network {
            prop_assert_eq!(after, 2);
        }
    }
}

/// Every filter of every recorded chain, and an unknown one at every place: never less closed.
#[test]
fn recorded_chains_with_an_unknown_filter() {
    let unknown = || http_filter("own", any_message("example.Own", vec![]));
    for (kind, resources) in RECORDED.iter().filter(|(kind, _)| *kind == Kind::Listener) {
        let main = resources.iter().find(|of| of.name == "main_internal").unwrap();
        let mut listener = Listener::decode(main.body.clone()).unwrap();
        for chain in &mut listener.filter_chains {
            for filter in &mut chain.filters {
                use pb::envoy::config::listener::v3::filter::ConfigType;
                let Some(ConfigType::TypedConfig(config)) = filter.config_type.as_mut() else {
                    continue;
                };
                if !config.type_url.ends_with(HCM) {
                    continue;
                }
                let mut manager = HttpConnectionManager::decode(config.value.as_slice()).unwrap();
                let place = manager.http_filters.len() / 2;
                manager.http_filters.insert(place, unknown());
                config.value = manager.encode_to_vec();
            }
        }
        let mut translator = translator();
        let own = resource(*kind, "main_internal", listener.encode_to_vec());
        translator.apply(update(*kind, vec![own])).unwrap();
        for destination in &translator.resources().destinations {
            let http = destination.http.as_ref();
            assert!(http.is_none_or(|chain| chain.broken.is_some()), "{}", destination.name);
        }
    }
}

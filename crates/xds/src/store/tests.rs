#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use prost::Message;

use super::snapshot::{Header, Item, Snapshot};
use super::*;
use crate::feed::Wanted;

fn resource(kind: Kind, name: &str, version: &str, body: impl Into<Bytes>) -> Resource {
    Resource {
        name: name.to_owned(),
        version: version.to_owned(),
        type_url: kind.type_url().to_owned(),
        body: body.into(),
        aliases: Vec::new(),
    }
}

fn put(store: &Store, kind: Kind, changed: Vec<Resource>) {
    store.apply(&Update { kind, changed, removed: Vec::new() });
}

fn owner() -> Owner {
    Owner {
        node: "waypoint~10.0.0.1~waypoint-1.shop~shop.svc.cluster.local".to_owned(),
        cluster: "Kubernetes".to_owned(),
        identity: "spiffe://cluster.local/ns/shop/sa/waypoint".to_owned(),
    }
}

fn import(path: &Path) -> Result<Store, ImportError> {
    let store = Store::new();
    store.import(path, &owner(), ImportLimits::default()).map(|_| store)
}

fn all(store: &Store) -> Vec<(Kind, Resource)> {
    Kind::ALL
        .into_iter()
        .flat_map(|kind| {
            store.names(kind).into_iter().map(move |name| (kind, store.get(kind, &name).unwrap()))
        })
        .collect()
}

/// A store with something of each kind.
fn filled() -> Store {
    let store = Store::new();
    for kind in Kind::ALL {
        let changed = (0..5)
            .map(|n| {
                let body = format!("{kind}-{n}/").repeat(n * 40 + 1);
                let mut resource = resource(kind, &format!("{kind}-{n}"), &format!("v{n}"), body);
                if kind == Kind::Workload {
                    resource.aliases = vec![format!("net/10.0.0.{n}")];
                }
                resource
            })
            .collect();
        put(&store, kind, changed);
        store.answered(kind);
    }
    store
}

#[test]
fn holds_what_was_applied_last() {
    let store = Store::new();
    let kind = Kind::Cluster;
    put(&store, kind, vec![resource(kind, "a", "1", "one"), resource(kind, "b", "1", "two")]);
    let before = *store.revision().borrow();
    store.apply(&Update {
        kind,
        changed: vec![resource(kind, "a", "2", "three")],
        removed: vec!["b".to_owned(), "never seen".to_owned()],
    });
    assert!(*store.revision().borrow() > before);
    assert_eq!(store.versions(kind), [("a".to_owned(), "2".to_owned())].into());
    assert_eq!(store.get(kind, "a").unwrap().body, "three");
    assert_eq!((store.len(kind), store.len(Kind::Listener)), (1, 0));
    let mut seen = Vec::new();
    store.each(kind, |name, version, type_url, body, _| {
        seen.push((name.to_owned(), version.to_owned(), type_url.to_owned(), body));
    });
    let url = kind.type_url().to_owned();
    assert_eq!(seen, [("a".to_owned(), "2".to_owned(), url, Bytes::from("three"))]);
}

#[test]
fn what_comes_again_changes_nothing() {
    let store = Store::new();
    let kind = Kind::Cluster;
    put(&store, kind, vec![resource(kind, "a", "1", "one")]);
    let times = |store: &Store| {
        let mut times = Vec::new();
        store.each(kind, |_, _, _, _, at| times.push(at));
        times
    };
    let (revision, before) = (*store.revision().borrow(), times(&store));
    put(&store, kind, vec![resource(kind, "a", "1", "one")]);
    store.apply(&Update { kind, changed: vec![], removed: vec!["unknown".to_owned()] });
    assert_eq!(*store.revision().borrow(), revision);
    assert_eq!(times(&store), before);
    put(&store, kind, vec![resource(kind, "a", "2", "one")]);
    assert_ne!(*store.revision().borrow(), revision);
    assert_eq!(store.get(kind, "a").unwrap().version, "2");
}

#[test]
fn takes_a_fraction_of_what_was_received() {
    let store = Store::new();
    let kind = Kind::Endpoints;
    let clusters = (0..500).map(|n| {
        let body = format!(
            "inbound-vip|80|http|app-{n}.shop.svc.cluster.local locality eu/a endpoint 10.0.{}.{} healthy weight 1",
            n / 250,
            n % 250
        );
        resource(kind, &format!("c{n}"), "", body.repeat(3))
    });
    put(&store, kind, clusters.collect());
    let Footprint { resources, received_bytes, kept_bytes } = store.footprint();
    assert_eq!(resources, 500);
    assert!(kept_bytes * 2 < received_bytes, "{kept_bytes} of {received_bytes}");
}

#[test]
fn a_file_holds_everything_but_keys_and_is_for_the_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = filled();
    store.confirm();
    store.export(&path, &owner()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no other file is left");
    let secret = store.get(Kind::Secret, "sds-4").unwrap().body;
    let bytes = fs::read(&path).unwrap();
    assert!(!bytes.windows(20).any(|window| window == &secret[..20]));

    let read = Store::new();
    let imported = read.import(&path, &owner(), ImportLimits::default()).unwrap();
    assert_eq!(read.len(Kind::Secret), 0);
    store.apply(&Update {
        kind: Kind::Secret,
        changed: Vec::new(),
        removed: store.names(Kind::Secret).into_iter().collect(),
    });
    assert_eq!(all(&read), all(&store));
    assert_eq!(imported.answered.len(), 5);
    assert_eq!(imported.footprint, read.footprint());
    assert_eq!(read.answers(), imported.answered);
    // Written over what is there, also when a killed process left a piece behind.
    fs::write(dir.path().join("store.new"), "half").unwrap();
    read.export(&path, &owner()).unwrap();
    assert_eq!(all(&import(&path).unwrap()), all(&read));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn what_was_imported_is_known_when_it_comes_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    filled().export(&path, &owner()).unwrap();
    let store = import(&path).unwrap();
    let revision = *store.revision().borrow();
    let again = store.get(Kind::Listener, "lds-3").unwrap();
    put(&store, Kind::Listener, vec![again]);
    assert_eq!(*store.revision().borrow(), revision);
}

#[test]
fn says_why_a_file_is_not_used_and_keeps_what_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = filled();
    let held = all(&store);
    let refused = |owner: &Owner, limits: ImportLimits| {
        let error = store.import(&path, owner, limits).unwrap_err();
        assert_eq!(all(&store), held);
        let text = error.to_string();
        assert!(text.contains("store"), "{text} names the file");
        (error, text)
    };
    let limits = ImportLimits::default();
    assert!(matches!(refused(&owner(), limits).0, ImportError::Missing { .. }));

    filled().export(&path, &owner()).unwrap();
    for (what, other) in [
        ("node", Owner { node: "another".to_owned(), ..owner() }),
        ("cluster", Owner { cluster: "another".to_owned(), ..owner() }),
        ("identity", Owner { identity: "another".to_owned(), ..owner() }),
    ] {
        let (error, text) = refused(&other, limits);
        assert!(matches!(error, ImportError::OtherOwner { .. }));
        assert!(text.contains(what) && text.contains("another"), "{text}");
    }
    let small = ImportLimits { max_bytes: 100, ..limits };
    assert!(matches!(refused(&owner(), small).0, ImportError::TooBig { allowed: 100, .. }));

    let good = fs::read(&path).unwrap();
    let cases: [(&str, Vec<u8>); 6] = [
        ("bytes only", good[..30].to_vec()),
        ("cut off", good[..good.len() - 1].to_vec()),
        ("bytes too many", [good.as_slice(), b"x"].concat()),
        ("no file of this kind", [b"X", &good[1..]].concat()),
        ("format version", [&good[..8], &[2], &good[9..]].concat()),
        ("checksum", [&good[..60], &[good[60] ^ 1], &good[61..]].concat()),
    ];
    for (reason, bytes) in cases {
        fs::write(&path, bytes).unwrap();
        let (error, text) = refused(&owner(), limits);
        assert!(matches!(error, ImportError::Damaged { .. }) && text.contains(reason), "{text}");
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(matches!(refused(&owner(), limits).0, ImportError::Unreadable { .. }));
}

/// A file with a right checksum and this content.
fn crafted(path: &Path, change: impl FnOnce(&mut Snapshot)) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let Owner { node, cluster, identity } = owner();
    let written = u64::try_from(now.as_millis()).unwrap();
    let header = Header { node, cluster, identity, written, answered: vec!["cds".to_owned()] };
    let mut snapshot =
        Snapshot { header: Some(header), dictionaries: vec![], entries: vec![item("cds", "a")] };
    change(&mut snapshot);
    fs::write(path, file::wrapped(&snapshot.encode_to_vec())).unwrap();
}

fn item(kind: &str, name: &str) -> Item {
    Item {
        kind: kind.to_owned(),
        name: name.to_owned(),
        length: 4,
        body: Bytes::from_static(b"body"),
        ..Item::default()
    }
}

#[test]
fn a_right_checksum_excuses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    crafted(&path, |_| {});
    assert_eq!(import(&path).unwrap().get(Kind::Cluster, "a").unwrap().body, "body");
    type Change = fn(&mut Snapshot);
    let cases: [(&str, Change); 8] = [
        ("whose it is", |snapshot| snapshot.header = None),
        ("cannot be here", |snapshot| snapshot.entries[0].kind = "sds".to_owned()),
        ("cannot be here", |snapshot| snapshot.entries[0].kind = "unknown".to_owned()),
        ("dictionary", |snapshot| snapshot.entries[0].dictionary = 7),
        ("dictionary", |snapshot| snapshot.dictionaries = vec![Bytes::from(vec![0; 5000])]),
        ("decompressed", |snapshot| snapshot.entries[0].compressed = true),
        ("1 GiB", |snapshot| snapshot.entries[0].length = u64::MAX / 2),
        ("twice", |snapshot| snapshot.entries.push(item("cds", "a"))),
    ];
    for (reason, change) in cases {
        crafted(&path, change);
        let error = import(&path).unwrap_err();
        assert!(matches!(error, ImportError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error}: {reason}");
    }
}

#[test]
fn age_counts_from_when_istiod_was_last_heard() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let hour = 3_600_000;
    crafted(&path, |snapshot| snapshot.header.as_mut().unwrap().written -= 25 * hour);
    let error = import(&path).unwrap_err();
    assert!(matches!(error, ImportError::TooOld { .. }), "{error}");
    let limits = ImportLimits { max_age: Duration::from_secs(26 * 3600), ..Default::default() };
    Store::new().import(&path, &owner(), limits).unwrap();
    crafted(&path, |snapshot| snapshot.header.as_mut().unwrap().written += hour);
    assert!(import(&path).unwrap_err().to_string().contains("in the future"));
}

#[test]
fn replays_in_order_and_says_what_was_refused() {
    struct Log(Vec<(Kind, usize)>);
    impl Consumer for Log {
        fn apply(&mut self, update: Update) -> Result<(), Rejected> {
            self.0.push((update.kind, update.changed.len()));
            match update.kind {
                Kind::Listener => Err(Rejected { detail: "no".to_owned() }),
                _ => Ok(()),
            }
        }
        fn wanted(&self) -> Wanted {
            Wanted::default()
        }
    }
    let store = filled();
    let mut log = Log(Vec::new());
    assert_eq!(store.replay(&mut log).unwrap_err().detail, "no");
    assert_eq!(log.0, Kind::ALL.map(|kind| (kind, 5)));
    store.clear();
    assert!(store.is_empty() && store.answers().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_pushes_is_one_file_and_half_a_configuration_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Arc::new(Store::new());
    let writer = StoreWriter::start(Arc::clone(&store), WriterConfig::new(path.clone(), owner()));
    let mut written = writer.written();
    let push = |n: usize| {
        let name = format!("c{}", n % 7);
        put(&store, Kind::Cluster, vec![resource(Kind::Cluster, &name, &n.to_string(), "body")]);
    };
    for n in 0..50 {
        push(n);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!path.exists(), "the first answers are not in");
    for kind in Kind::ALL {
        store.answered(kind);
    }
    written.changed().await.unwrap();
    for n in 0..40 {
        push(n);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    written.changed().await.unwrap();
    assert_eq!(*written.borrow_and_update(), 2, "4 s of pushes are one file");
    push(1000);
    writer.shutdown().await;
    let last = import(&path).unwrap();
    assert_eq!(last.get(Kind::Cluster, "c6").unwrap().version, "1000");
}

#[tokio::test(start_paused = true)]
async fn a_quiet_file_is_kept_young_and_a_failure_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("there").join("store");
    let store = Arc::new(filled());
    let writer = StoreWriter::start(Arc::clone(&store), WriterConfig::new(path.clone(), owner()));
    let mut written = writer.written();
    put(&store, Kind::Cluster, vec![resource(Kind::Cluster, "x", "1", "body")]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(*written.borrow_and_update(), 0, "the directory is missing");
    fs::create_dir(path.parent().unwrap()).unwrap();
    store.confirm();
    written.changed().await.unwrap();
    assert!(path.exists());
    writer.shutdown().await;
}

fn any_kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![
        Kind::Cluster,
        Kind::Endpoints,
        Kind::Listener,
        Kind::Workload,
        Kind::ExtensionConfig,
    ])
}

fn any_resource() -> impl Strategy<Value = (Kind, Resource)> {
    (
        any_kind(),
        ".{0,12}",
        "[a-z0-9]{0,8}",
        prop::option::of("[a-z./]{1,20}"),
        prop::collection::vec(any::<u8>(), 0..600),
        1usize..20,
        prop::collection::vec("[a-z/0-9.]{0,12}", 0..3),
    )
        .prop_map(|(kind, name, version, type_url, body, times, aliases)| {
            let type_url = type_url.unwrap_or_else(|| kind.type_url().to_owned());
            let body = Bytes::from(body.repeat(times));
            (kind, Resource { name, version, type_url, body, aliases })
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_resources_survive_a_file(resources in prop::collection::vec(any_resource(), 0..20)) {
        let store = Store::new();
        for (kind, resource) in resources {
            put(&store, kind, vec![resource.clone()]);
            prop_assert_eq!(store.get(kind, &resource.name), Some(resource));
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        store.export(&path, &owner()).unwrap();
        let read = import(&path).unwrap();
        prop_assert_eq!(all(&read), all(&store));
        prop_assert_eq!(read.footprint(), store.footprint());
    }

    #[test]
    fn any_damage_is_refused_and_never_panics(
        at in any::<prop::sample::Index>(),
        flip in 1u8..,
        sealed: bool,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        filled().export(&path, &owner()).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        if sealed {
            // With a checksum that is right again, as nobody but an attacker would have it.
            let mut body = bytes.split_off(52);
            let at = at.index(body.len());
            body[at] ^= flip;
            fs::write(&path, file::wrapped(&body)).unwrap();
            if let Ok(store) = import(&path) {
                for kind in Kind::ALL {
                    store.each(kind, |_, _, _, _, _| {});
                }
            }
        } else {
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            fs::write(&path, bytes).unwrap();
            let damaged = matches!(import(&path).unwrap_err(), ImportError::Damaged { .. });
            prop_assert!(damaged);
        }
    }
}

/// What a sibling is told is what a file would hold: taken as a whole, from the same owner, or not at all.
#[test]
fn bytes_are_taken_as_files_are() {
    let store = Store::new();
    put(&store, Kind::Cluster, vec![resource(Kind::Cluster, "a", "1", "body")]);
    store.confirm();
    let bytes = store.to_bytes(&owner());
    let take = |bytes: Vec<u8>, owner: &Owner, limits: ImportLimits| {
        let other = Store::new();
        other.import_bytes(bytes, "a sibling", owner, limits).map(|_| other)
    };
    let taken = take(bytes.clone(), &owner(), ImportLimits::default()).unwrap();
    assert_eq!(all(&taken), all(&store));
    let stranger = Owner { cluster: "other".to_owned(), ..owner() };
    let refused = take(bytes.clone(), &stranger, ImportLimits::default());
    assert!(matches!(refused, Err(ImportError::OtherOwner { what: "cluster", .. })));
    let small = ImportLimits { max_bytes: 10, ..ImportLimits::default() };
    assert!(matches!(take(bytes.clone(), &owner(), small), Err(ImportError::TooBig { .. })));
    for cut in [0, 10, bytes.len() - 1] {
        let refused = take(bytes[..cut].to_vec(), &owner(), ImportLimits::default());
        assert!(matches!(refused, Err(ImportError::Damaged { .. })), "{cut}");
    }
    let mut flipped = bytes;
    *flipped.last_mut().unwrap() ^= 1;
    let refused = take(flipped, &owner(), ImportLimits::default());
    assert!(refused.unwrap_err().to_string().contains("a sibling is damaged"));
}

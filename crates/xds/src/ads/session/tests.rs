#![allow(clippy::unwrap_used, clippy::panic)]

use cairn_identity::istiod::{Istiod, Overrides, Roots};
use cairn_proto::envoy::google::protobuf::Any;
use cairn_proto::workload::ADDRESS_TYPE_URL;

use super::*;

fn config() -> AdsConfig {
    let istiod = Istiod {
        address: "istiod.istio-system.svc:15012".to_owned(),
        server_name: None,
        roots: Roots::Pem(String::new()),
        resolve: Overrides::default(),
        token: None,
        cluster_id: String::new(),
        identity: None,
        plaintext: false,
    };
    let node = Node { id: "waypoint~10.0.0.1~a.b~b.svc".to_owned(), ..Node::default() };
    AdsConfig::new(istiod, node)
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn list(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn held(kind: Kind, names: &[&str]) -> Store {
    let store = Store::new();
    hold(&store, kind, names);
    store
}

fn hold(store: &Store, kind: Kind, names: &[&str]) {
    let changed = names.iter().map(|name| Resource {
        name: (*name).to_owned(),
        version: format!("v-{name}"),
        type_url: kind.type_url().to_owned(),
        body: Bytes::from_static(b"body"),
        aliases: match kind {
            Kind::Workload => vec![format!("net/{name}")],
            _ => Vec::new(),
        },
    });
    store.apply(&Update { kind, changed: changed.collect(), removed: Vec::new() });
}

fn endpoints(names: &[&str]) -> Wanted {
    Wanted { endpoints: set(names), ..Wanted::default() }
}

fn workloads(names: &[&str]) -> Wanted {
    Wanted { workloads: set(names), ..Wanted::default() }
}

fn answer(type_url: &str, names: &[&str], removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        nonce: "nonce-1".to_owned(),
        system_version_info: "7".to_owned(),
        resources: names
            .iter()
            .map(|name| Received {
                name: (*name).to_owned(),
                resource: Some(Any { type_url: type_url.to_owned(), value: vec![1, 2, 3] }),
                ..Received::default()
            })
            .collect(),
        removed_resources: list(removed),
        ..DeltaDiscoveryResponse::default()
    }
}

fn receive(session: &mut Session, kind: Kind, names: &[&str], removed: &[&str]) -> Update {
    session.receive(answer(kind.type_url(), names, removed)).unwrap().update
}

fn names(update: &Update) -> Vec<String> {
    update.changed.iter().map(|resource| resource.name.clone()).collect()
}

fn asked(requests: &[DeltaDiscoveryRequest]) -> Vec<(String, Vec<String>, Vec<String>)> {
    requests
        .iter()
        .map(|request| {
            let kind = Kind::from_type_url(&request.type_url).map_or("address", Kind::label);
            let DeltaDiscoveryRequest {
                resource_names_subscribe, resource_names_unsubscribe, ..
            } = request.clone();
            (kind.to_owned(), resource_names_subscribe, resource_names_unsubscribe)
        })
        .collect()
}

fn row(kind: &str, subscribe: &[&str], unsubscribe: &[&str]) -> (String, Vec<String>, Vec<String>) {
    (kind.to_owned(), list(subscribe), list(unsubscribe))
}

#[test]
fn the_first_requests_ask_for_everything_and_the_first_of_them_says_who_asks() {
    let mut session = Session::new(&config());
    let opened = session.follow(&Wanted::default(), &Store::new());
    assert_eq!(
        asked(&opened.requests),
        [row("cds", &["*"], &[]), row("lds", &["*"], &[]), row("wds", &["*"], &[])]
    );
    let nodes: Vec<bool> = opened.requests.iter().map(|request| request.node.is_some()).collect();
    assert_eq!(nodes, [true, false, false]);
    assert!(opened.requests.iter().all(|request| request.response_nonce.is_empty()));
    assert!(session.follow(&Wanted::default(), &Store::new()).requests.is_empty());
    assert!(session.wants_nothing(Kind::Endpoints));
}

#[test]
fn names_are_subscribed_and_unsubscribed_as_they_are_wanted() {
    let (mut session, store) = (Session::new(&config()), Store::new());
    session.follow(&Wanted::default(), &store);
    let followed = session.follow(&endpoints(&["a", "b"]), &store);
    assert_eq!(asked(&followed.requests), [row("eds", &["a", "b"], &[])]);
    let update = receive(&mut session, Kind::Endpoints, &["a", "b"], &[]);
    store.apply(&update);
    let followed = session.follow(&endpoints(&["b", "c"]), &store);
    assert_eq!(asked(&followed.requests), [row("eds", &["c"], &["a"])]);
    let forgotten: Vec<_> =
        followed.forgotten.into_iter().map(|update| (update.kind, update.removed)).collect();
    assert_eq!(forgotten, [(Kind::Endpoints, list(&["a"]))]);
    // An answer that crossed the request still has it.
    let update = receive(&mut session, Kind::Endpoints, &["a", "b", "c"], &[]);
    assert_eq!(names(&update), ["b", "c"]);
}

#[test]
fn what_the_first_answer_does_not_hold_is_gone_and_later_absent_stays() {
    for kind in [Kind::Cluster, Kind::Listener] {
        let store = held(kind, &["a", "b", "c"]);
        let mut session = Session::new(&config());
        let opened = session.follow(&Wanted::default(), &store);
        assert!(opened.requests.iter().all(|asked| asked.initial_resource_versions.is_empty()));
        let update = receive(&mut session, kind, &["b", "d"], &["c", "never seen"]);
        assert_eq!(names(&update), ["b", "d"]);
        assert_eq!(update.removed, ["a", "c", "c", "never seen"]);
        let update = receive(&mut session, kind, &["d"], &["b"]);
        assert_eq!(update.removed, ["b"]);
    }
}

#[test]
fn endpoints_that_the_first_answer_does_not_hold_are_gone() {
    let store = held(Kind::Endpoints, &["a", "b", "old"]);
    let mut session = Session::new(&config());
    let opened = session.follow(&endpoints(&["a", "b", "new"]), &store);
    assert_eq!(asked(&opened.requests)[1], row("eds", &["a", "b", "new"], &[]));
    assert_eq!(opened.forgotten[0].removed, ["old"], "no cluster wants it");
    let update = receive(&mut session, Kind::Endpoints, &["a"], &[]);
    assert_eq!(update.removed, ["b"]);
    let update = receive(&mut session, Kind::Endpoints, &["new"], &[]);
    assert!(update.removed.is_empty());
}

#[test]
fn workloads_that_are_known_are_said_and_absent_ones_stay() {
    let store = held(Kind::Workload, &["a", "b"]);
    let mut session = Session::new(&config());
    let opened = session.follow(&Wanted::default(), &store);
    let request = opened.requests.last().unwrap();
    assert_eq!(request.resource_names_subscribe, ["*"]);
    let versions: BTreeMap<_, _> = request.initial_resource_versions.clone().into_iter().collect();
    assert_eq!(versions, [("a", "v-a"), ("b", "v-b")].map(|(a, b)| (a.into(), b.into())).into());
    let update = receive(&mut session, Kind::Workload, &["c"], &["b"]);
    assert_eq!((names(&update), update.removed), (list(&["c"]), list(&["b"])));
}

#[test]
fn versions_that_are_too_many_for_a_request_are_left_out_and_then_absent_is_gone() {
    let store = Store::new();
    let long = "x".repeat(1000);
    let many: Vec<String> = (0..4000).map(|n| format!("{long}{n}")).collect();
    hold(&store, Kind::Workload, &many.iter().map(String::as_str).collect::<Vec<_>>());
    let mut session = Session::new(&config());
    let opened = session.follow(&Wanted::default(), &store);
    assert!(opened.requests.last().unwrap().initial_resource_versions.is_empty());
    let update = receive(&mut session, Kind::Workload, &["c"], &[]);
    assert_eq!(update.removed.len(), 4000);
}

#[test]
fn a_missing_workload_is_looked_up_beside_the_wildcard() {
    let (mut session, store) = (Session::new(&config()), Store::new());
    session.follow(&Wanted::default(), &store);
    let followed = session.follow(&workloads(&["net/10.0.0.9"]), &store);
    assert!(followed.requests.is_empty(), "all of them are under way");
    receive(&mut session, Kind::Workload, &["other"], &[]);
    let followed = session.follow(&workloads(&["net/10.0.0.9"]), &store);
    assert_eq!(asked(&followed.requests), [row("address", &["net/10.0.0.9"], &[])]);
    let delivery = session.receive(answer(ADDRESS_TYPE_URL, &["uid"], &[])).unwrap();
    assert_eq!(delivery.update.kind, Kind::Workload);
    assert!(!delivery.counts, "it is not the first answer of Workload");
    store.apply(&delivery.update);
    let followed = session.follow(&Wanted::default(), &store);
    assert_eq!(asked(&followed.requests), [row("address", &[], &["net/10.0.0.9"])]);
    assert!(followed.forgotten.is_empty(), "the wildcard owns it");
}

#[test]
fn on_demand_asks_for_nothing_but_what_is_wanted() {
    let store = Store::new();
    let mut config = config();
    config.workloads = WorkloadScope::OnDemand;
    let mut session = Session::new(&config);
    let opened = session.follow(&Wanted::default(), &store);
    assert_eq!(asked(&opened.requests)[2], row("wds", &["*"], &["*"]), "nothing is not everything");
    let followed = session.follow(&workloads(&["net/a"]), &store);
    assert_eq!(asked(&followed.requests), [row("wds", &["net/a"], &[])]);
    assert_eq!(names(&receive(&mut session, Kind::Workload, &["a"], &[])), ["a"]);
    hold(&store, Kind::Workload, &["a"]);
    let followed = session.follow(&workloads(&["net/b"]), &store);
    assert_eq!(asked(&followed.requests), [row("wds", &["net/b"], &[])], "what came stays");
    // On the next stream, all of it again.
    let mut session = Session::new(&config);
    let opened = session.follow(&workloads(&["net/b"]), &store);
    assert_eq!(asked(&opened.requests)[2], row("wds", &["net/a", "net/b"], &[]));
    assert_eq!(opened.requests[2].initial_resource_versions.len(), 1);
}

#[test]
fn many_names_are_asked_for_in_several_requests() {
    let mut session = Session::new(&config());
    let many: Vec<String> = (0..4000).map(|n| format!("{}{n}", "y".repeat(1000))).collect();
    let wanted = Wanted { endpoints: many.iter().cloned().collect(), ..Wanted::default() };
    let opened = session.follow(&wanted, &Store::new());
    let eds: Vec<_> =
        opened.requests.iter().filter(|r| r.type_url == Kind::Endpoints.type_url()).collect();
    assert!(eds.len() > 1);
    let asked: BTreeSet<&String> =
        eds.iter().flat_map(|request| &request.resource_names_subscribe).collect();
    assert_eq!(asked.len(), 4000);
    for request in eds {
        assert!(request.resource_names_subscribe.iter().map(String::len).sum::<usize>() < 4 << 20);
    }
}

#[test]
fn an_answer_is_acknowledged_by_its_nonce_and_with_nothing_else() {
    let mut session = Session::new(&config());
    session.follow(&Wanted::default(), &Store::new());
    let mut receipts = (0..2).map(|_| {
        let delivery = session.receive(answer(Kind::Cluster.type_url(), &["a"], &[])).unwrap();
        assert_eq!(delivery.version, "7");
        delivery.split().1
    });
    let ack = receipts.next().unwrap().answer(Ok(()));
    let expected = DeltaDiscoveryRequest {
        type_url: Kind::Cluster.type_url().to_owned(),
        response_nonce: "nonce-1".to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    assert_eq!(ack, expected);
    let detail = "ä".repeat(5000);
    let nack = receipts.next().unwrap().answer(Err(&Rejected { detail }));
    let error = nack.error_detail.unwrap();
    assert_eq!(error.code, 3, "INVALID_ARGUMENT");
    assert!(error.message.len() <= MAX_DETAIL_BYTES + 3 && error.message.ends_with("ä…"));
}

#[test]
fn what_was_not_asked_for_is_refused() {
    let mut session = Session::new(&config());
    session.follow(&Wanted::default(), &Store::new());
    for url in ["type.googleapis.com/unknown", Kind::Endpoints.type_url(), ADDRESS_TYPE_URL] {
        let (nack, rejected) = *session.receive(answer(url, &["a"], &[])).unwrap_err();
        assert!(rejected.detail.contains(url));
        assert_eq!((nack.type_url, nack.response_nonce), (url.to_owned(), "nonce-1".to_owned()));
    }
}

#[test]
fn odd_answers() {
    let store = held(Kind::Cluster, &["a"]);
    let mut session = Session::new(&config());
    session.follow(&Wanted::default(), &store);
    let mut odd = answer(Kind::Cluster.type_url(), &["a", "b", "b"], &["b"]);
    odd.resources[0].resource = None;
    odd.resources[2].version = "last".to_owned();
    let update = session.receive(odd).unwrap().update;
    assert_eq!(names(&update), ["b"], "one without a body says only that it is there");
    assert_eq!(update.changed[0].version, "last");
    assert!(update.removed.is_empty(), "what comes along with its removal is there");
}

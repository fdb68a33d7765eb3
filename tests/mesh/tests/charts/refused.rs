//! Values that are wrong are refused before anything is rendered, and the message names the field.

use crate::world::{World, directory, example};

/// Chart, example to start with, `--set`, and what the message must name.
const CASES: [(&str, &str, &str, &[&str]); 43] = [
    ("cairn", "pool.yaml", "mod=pool", &["mod"]),
    ("cairn", "pool.yaml", "mode=other", &["/mode"]),
    ("cairn", "pool.yaml", "image.repository=cairn", &["/image/repository"]),
    ("cairn", "pool.yaml", "image.repository=registry.example/cairn:1.0", &["/image/repository"]),
    ("cairn", "pool.yaml", "image.pullPolicy=Sometimes", &["/image/pullPolicy"]),
    ("cairn", "pool.yaml", "image.tags=1", &["/image", "tags"]),
    ("cairn", "pool.yaml", "fullnameOverride=Cairn", &["/fullnameOverride"]),
    ("cairn", "pool.yaml", "members.platform=gke", &["/members/platform"]),
    ("cairn", "pool.yaml", "members.replicas=two", &["/members/replicas"]),
    ("cairn", "pool.yaml", "members.replicas=0", &["/members/replicas"]),
    ("cairn", "pool.yaml", "members.replica=2", &["/members", "replica"]),
    ("cairn", "pool.yaml", "members.extraArgs={capacity}", &["/members/extraArgs/0"]),
    ("cairn", "pool.yaml", "members.pdb.minReplicas=1", &["/members/pdb"]),
    ("cairn", "swap.yaml", "swap.overlay.platform=aks", &["swap.overlay", "platform aks"]),
    ("cairn", "pool.yaml", "members.resources.request.cpu=2", &["/members/resources", "request"]),
    (
        "cairn",
        "pool.yaml",
        "members.resources.requests.cpu=two",
        &["/members/resources/requests/cpu"],
    ),
    ("cairn", "pool.yaml", "members.spot.platform=cci", &["/members/spot/platform"]),
    ("cairn", "pool.yaml", "members.spot.replicas=2", &["/members/spot", "replicas"]),
    (
        "cairn",
        "pool.yaml",
        "members.terminationGracePeriodSeconds=5",
        &["/members/terminationGracePeriodSeconds"],
    ),
    ("cairn", "pool.yaml", "scaler.by=keda2", &["/scaler/by"]),
    ("cairn", "pool.yaml", "scaler.policy.minimum=2", &["/scaler/policy", "minimum"]),
    ("cairn", "pool.yaml", "scaler.policy.target=60", &["/scaler/policy/target"]),
    ("cairn", "pool.yaml", "scaler.policy.min=300", &["scaler.policy.min", "scaler.policy.max"]),
    ("cairn", "pool.yaml", "scaler.policy.min=1", &["scaler.policy.min", "members.replicas"]),
    ("cairn", "pool-eci.yaml", "members.replicas=100", &["members.replicas", "scaler.policy.max"]),
    ("cairn", "pool.yaml", "pool.name=Pool", &["/pool/name"]),
    ("cairn", "pool.yaml", "pool.tokenSecret.create=false", &["pool.tokenSecret.name"]),
    ("cairn", "pool.yaml", "pool.clusters[0].istiod=null", &["/pool/clusters/0", "istiod"]),
    ("cairn", "pool.yaml", "pool.clusters[0].istiod=istiod.example", &["/pool/clusters/0/istiod"]),
    ("cairn", "pool.yaml", "pool.clusters[1].listen=0.0.0.0", &["/pool/clusters/1/listen"]),
    ("cairn", "pool.yaml", "pool.clusters[1].listen=0.0.0.0:21001", &["pool.clusters", "21001"]),
    ("cairn", "pool.yaml", "pool.clusters[1].listen=0.0.0.0:15020", &["pool.clusters", "15020"]),
    ("cairn", "pool.yaml", "pool.clusters[1].name=east", &["pool.clusters", "east"]),
    ("cairn", "pool.yaml", "pool.clusters[0].sharts={s00}", &["/pool/clusters/0", "sharts"]),
    (
        "cairn",
        "pool.yaml",
        "networkPolicy.monitoringNamespace=A",
        &["/networkPolicy/monitoringNamespace"],
    ),
    ("cairn", "pool.yaml", "monitoring.interval=15", &["/monitoring/interval"]),
    ("cairn", "pool.yaml", "platforms.eci.spotStrategy=Cheap", &["/platforms/eci/spotStrategy"]),
    ("cairn", "swap.yaml", "swap.overlay.platform=gke", &["/swap/overlay", "platform"]),
    ("cairn", "swap.yaml", "swap.overlay.replicas=2", &["/swap/overlay", "replicas"]),
    ("cairn", "swap.yaml", "swap.gateways[0].name=a", &["/swap/gateways/0", "namespace"]),
    ("cairn-join", "labelled.yaml", "port=80", &["/port"]),
    ("cairn-join", "labelled.yaml", "shards={s00,s00}", &["/shards"]),
    ("cairn-join", "labelled.yaml", "nome=edge", &["nome"]),
];

pub async fn all(world: &World) {
    for (chart, start, set, named) in CASES {
        let place = directory(&format!("helm/{chart}"));
        let file = example(chart, start);
        let line = ["template", "a", place.to_str().unwrap(), "--values", &file, "--set", set];
        let said = world.tools.helm(&line).await;
        assert_ne!(said.code, Some(0), "{set} is taken");
        for name in named {
            assert!(said.err.contains(name), "{set}: {name} is not named: {}", said.err);
        }
        assert_eq!(said.out, "", "{set}");
    }
}

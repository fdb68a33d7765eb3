//! `cairn pool` on a real kube-apiserver: install, status, lint and uninstall, and the registrar under exactly the rights
//! that it asks for. One API server is the members' cluster and a user's; a second cluster is away all the time. Members
//! are played on their pods' addresses, entries are made as istiod makes them, and no controller runs.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "registrar/commands.rs"]
mod commands;
#[path = "registrar/entries.rs"]
mod entries;
#[path = "registrar/played.rs"]
mod played;
#[path = "registrar/world.rs"]
mod world;

use cairn_mesh_tests::control::eventually;
use cairn_mesh_tests::harness::{self, Need, Place, Target};
use cairn_mesh_tests::steps::Steps;
use commands::{addresses, foreign_objects, gateway, install_again, lints, status, uninstall};
use entries::{conflict, dead_member, draining, guard, leaks, notice, pods};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::ExitCode;
use world::{MEMBERS, POOL, Registrar, World};

const TARGET: Target = Target {
    name: "registrar",
    steps: 20,
    tmp: env!("CARGO_TARGET_TMPDIR"),
    needs: &[Need::Cairn],
};

fn main() -> ExitCode {
    harness::run(TARGET, all)
}

async fn all(place: Place, mut steps: Steps) -> Steps {
    let Place { program, dir, logs } = &place;
    let mut world = World::start(program, dir, logs).await;
    steps
        .run(
            "objects that are somebody else's are refused, and taken over with --adopt",
            foreign_objects(&world),
        )
        .await;
    steps.run("a second install changes nothing", install_again(&world)).await;
    steps.run("lint reads the cluster", lints(&world)).await;
    world.rights().await;
    for number in 1..=4 {
        world.add(number).await;
    }
    let registrar = world.registrar().await;
    steps
        .run(
            "it leads, with the rights that it asks for, and leaves living members alone",
            starts(&world, &registrar),
        )
        .await;
    steps.run("a cluster that is away is reported, and holds up no other", away(&registrar)).await;
    steps
        .run(
            "objects that were deleted are made again, with their address",
            re_creation(&world, &registrar),
        )
        .await;
    steps.run("tokens and roots are in the members' Secret", tokens(&world)).await;
    steps
        .run(
            "each shard has two members, and a member that comes moves only its own places",
            shards(&mut world, &registrar),
        )
        .await;
    steps
        .run(
            "a member that is new and idle gets more, until it has enough",
            weights(&world, &registrar),
        )
        .await;
    steps.run("status shows members by clusters", status(&world)).await;
    steps
        .run(
            "the entry of a member that does not answer goes after the third probe",
            dead_member(&mut world, &registrar),
        )
        .await;
    steps
        .run("an entry that comes back is reported, and stays", conflict(&mut world, &registrar))
        .await;
    steps
        .run(
            "a member that drains is deregistered at once, one that is not ready is not",
            draining(&mut world, &registrar),
        )
        .await;
    steps
        .run("a pod that ends or is gone takes its entry with it", pods(&mut world, &registrar))
        .await;
    steps
        .run("of two of four that fall silent one is given up", guard(&mut world, &registrar))
        .await;
    steps
        .run(
            "a notice leads to a drain order with the pool's token, until it is taken",
            notice(&mut world, &registrar),
        )
        .await;
    steps
        .run(
            "an entry without a member is swept, unless somebody answers there",
            leaks(&mut world, &registrar),
        )
        .await;
    let registrar = steps.run("what was under way when it was killed is finished by the next; another waits for the Lease", restart(&mut world, registrar)).await;
    steps.run("a right that is missing is named", missing_right(&mut world, &registrar)).await;
    drop(registrar);
    steps.run("uninstall warns, and removes what is the pool's", uninstall(&world)).await;
    steps
}

async fn starts(world: &World, registrar: &Registrar) {
    registrar.until_ready(4).await;
    registrar.rounds(6).await;
    assert_eq!(world.registered(&[1, 2, 3, 4]).await, [1, 2, 3, 4]);
    assert_eq!(registrar.count("cairn_registrar_leader", &[]).await, 1.0);
    assert_eq!(registrar.count("cairn_registrar_entries", &[("cluster", "east")]).await, 4.0);
    let state = registrar.state().await;
    assert_eq!(state["clusters"]["east"]["problems"], json!({}), "its rights suffice");
}

async fn away(registrar: &Registrar) {
    let state = registrar
        .until("it is reported", |state| {
            state["clusters"]["west"]["problems"]["entries"].is_string()
        })
        .await;
    let problem = state["clusters"]["west"]["problems"]["entries"].as_str().unwrap();
    assert!(problem.contains("no answer of the API server"), "{problem}");
    let errors =
        async || registrar.count("cairn_registrar_api_errors_total", &[("cluster", "west")]).await;
    let before = errors().await;
    eventually("it is tried again", async || errors().await > before).await;
    assert_eq!(
        registrar.count("cairn_registrar_api_errors_total", &[("cluster", "east")]).await,
        0.0
    );
}

async fn re_creation(world: &World, registrar: &Registrar) {
    let old = gateway(world, POOL).await.unwrap();
    let kube = &world.api.kube;
    kube.delete(&old).await;
    let group = kube.get("networking.istio.io/v1", "WorkloadGroup", POOL, POOL).await.unwrap();
    kube.delete(&group).await;
    eventually("the Gateway is there again, with its address", async || {
        let found = gateway(world, POOL).await;
        found.is_some_and(|found| {
            found["metadata"]["uid"] != old["metadata"]["uid"]
                && found["status"]["addresses"] == addresses(POOL)
        })
    })
    .await;
    eventually("and the WorkloadGroup", async || {
        kube.get("networking.istio.io/v1", "WorkloadGroup", POOL, POOL).await.is_some()
    })
    .await;
    assert!(registrar.process.printed("is missing, and is made"));
    // One that is somebody else's is let be.
    let mut foreign = gateway(world, "waypoint-pool-s02").await.unwrap();
    kube.delete(&foreign).await;
    foreign["metadata"] = json!({ "name": "waypoint-pool-s02", "namespace": POOL });
    foreign.as_object_mut().unwrap().remove("status");
    kube.apply(&foreign).await;
    let state = registrar
        .until("it is reported", |state| {
            state["clusters"]["east"]["problems"]["foreign"].is_string()
        })
        .await;
    let problem = state["clusters"]["east"]["problems"]["foreign"].as_str().unwrap();
    assert!(problem.contains("Gateway waypoint-pool/waypoint-pool-s02"), "{problem}");
    let left = gateway(world, "waypoint-pool-s02").await.unwrap();
    assert!(left["status"]["addresses"].as_array().is_none_or(Vec::is_empty), "{left}");
    // As a chart has it: Helm sets one of the labels, and the other says whose it is.
    foreign["metadata"]["labels"] = json!({
        "app.kubernetes.io/managed-by": "Helm", "app.kubernetes.io/part-of": "cairn-pool",
    });
    kube.apply(&foreign).await;
    eventually("Helm's Gateway is the pool's and gets its address", async || {
        let found = gateway(world, "waypoint-pool-s02").await.unwrap();
        found["status"]["addresses"] == addresses("waypoint-pool-s02")
    })
    .await;
    kube.delete(&left).await;
    registrar.until("it is made", |state| state["clusters"]["east"]["problems"] == json!({})).await;
    // istiod adds addresses of its own; these stay.
    let mut status = gateway(world, POOL).await.unwrap();
    let added = json!([{ "type": "IPAddress", "value": "10.96.0.200" }]);
    status = json!({
        "apiVersion": status["apiVersion"], "kind": "Gateway",
        "metadata": { "name": POOL, "namespace": POOL }, "status": { "addresses": added },
    });
    kube.apply_status(&status).await;
    // The pool's objects are looked at every ten seconds.
    registrar.rounds(12).await;
    assert_eq!(gateway(world, POOL).await.unwrap()["status"]["addresses"], added);
}

async fn tokens(world: &World) {
    let kube = &world.api.kube;
    let secret = async || kube.get("v1", "Secret", MEMBERS, "waypoint-pool-tokens").await;
    eventually("there is a Secret", async || secret().await.is_some()).await;
    let found = secret().await.unwrap();
    let data = found["data"].as_object().unwrap();
    let keys: Vec<&str> = data.keys().map(String::as_str).collect();
    assert_eq!(keys, ["east.root.pem", "east.token"], "none of the cluster that is away");
    assert_eq!(data["east.root.pem"], "dGhlIHJvb3Q=");
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": { "token": base64(data["east.token"].as_str().unwrap()), "audiences": ["istio-ca"] },
    });
    let place = "/apis/authentication.k8s.io/v1/tokenreviews";
    let (_, answer) =
        kube.call("POST", place, "application/json", review.to_string().as_bytes()).await;
    assert_eq!(answer["status"]["authenticated"], true, "{answer}");
    assert_eq!(
        answer["status"]["user"]["username"],
        "system:serviceaccount:waypoint-pool:waypoint-pool"
    );
    kube.delete(&found).await;
    eventually("a Secret that is deleted comes back", async || secret().await.is_some()).await;
}

/// What standard Base64 stands for.
fn base64(text: &str) -> String {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut bytes) = (0_u32, 0, Vec::new());
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        let value = alphabet.iter().position(|known| *known == byte).unwrap();
        bits = (bits << 6) | u32::try_from(value).unwrap();
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from((bits >> count) & 0xff).unwrap());
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// Members of each shard.
async fn places(world: &World, numbers: &[u8]) -> Vec<BTreeSet<u8>> {
    let mut places = vec![BTreeSet::new(); 3];
    for number in numbers {
        let Some(entry) = world.entry(*number).await else { continue };
        for (shard, place) in places.iter_mut().enumerate() {
            if entry["metadata"]["labels"][format!("waypoint-pool/s{shard:02}")] == "true" {
                place.insert(*number);
            }
        }
    }
    places
}

async fn shards(world: &mut World, registrar: &Registrar) {
    let two_each = |places: &[BTreeSet<u8>]| places.iter().all(|place| place.len() == 2);
    eventually("two members each", async || two_each(&places(world, &[1, 2, 3, 4]).await)).await;
    let before = places(world, &[1, 2, 3, 4]).await;
    world.add(5).await;
    registrar.until_ready(5).await;
    registrar.rounds(4).await;
    let after = places(world, &[1, 2, 3, 4, 5]).await;
    assert!(two_each(&after), "{after:?}");
    for (before, after) in before.iter().zip(&after) {
        let moved: Vec<&u8> = before.difference(after).collect();
        assert_eq!(moved.len(), usize::from(after.contains(&5)), "{before:?} {after:?}");
    }
}

async fn weights(world: &World, registrar: &Registrar) {
    let weight = async |number: u8| world.entry(number).await.unwrap()["spec"]["weight"].clone();
    for number in 1..=5 {
        assert_eq!(weight(number).await, Value::Null, "nobody is new");
    }
    world.members[&5].says(|state| (state.uptime, state.in_flight) = (10.0, 0.0));
    // Its run has had enough already: only another one is new.
    registrar.rounds(3).await;
    assert_eq!(weight(5).await, Value::Null);
    world.members[&5].says(|state| state.instance = "another run");
    eventually("the new one gets more", async || weight(5).await == 3).await;
    world.members[&5].says(|state| state.in_flight = 33.0);
    registrar.rounds(3).await;
    assert_eq!(weight(5).await, 3, "33 is less than 0.85 of 40");
    world.members[&5].says(|state| state.in_flight = 34.0);
    eventually("and has enough", async || weight(5).await == Value::Null).await;
    assert_eq!(weight(1).await, Value::Null);
}

async fn restart(world: &mut World, mut registrar: Registrar) -> Registrar {
    world.add(10).await;
    registrar.until_ready(3).await;
    let other = world.registrar().await;
    let state = other
        .until("it knows who leads", |state| {
            !state["holder"].as_str().unwrap_or_default().is_empty()
        })
        .await;
    assert_eq!(state["leader"], false);
    // Work for whoever leads, and nobody does.
    registrar.process.kill().await;
    world.register(40, "t1").await;
    world.forget(10).await;
    world.api.kube.delete(&gateway(world, "waypoint-pool-s01").await.unwrap()).await;
    other.until_ready(2).await;
    world.until_gone(10).await;
    world.until_gone(40).await;
    eventually("and its Gateway is there", async || {
        gateway(world, "waypoint-pool-s01").await.is_some()
    })
    .await;
    assert_eq!(world.registered(&[1, 2]).await, [1, 2]);
    // One that is told to end gives the Lease up.
    let next = world.registrar().await;
    let mut other = other;
    other.process.terminate();
    assert!(other.process.wait().await.success());
    next.until_ready(2).await;
    next
}

/// Those in the members' cluster.
async fn members_rights(world: &World, registrar: &Registrar) {
    let kube = &world.api.kube;
    const API: &str = "rbac.authorization.k8s.io/v1";
    let role = kube.get(API, "Role", MEMBERS, "cairn-registrar").await.unwrap();
    let with = |wanted: &dyn Fn(&str) -> bool| {
        let mut rules = role["rules"].as_array().unwrap().clone();
        rules.retain(|rule| wanted(rule["resources"][0].as_str().unwrap()));
        json!({
            "apiVersion": API, "kind": "Role",
            "metadata": { "name": "cairn-registrar", "namespace": MEMBERS }, "rules": rules,
        })
    };
    let names = |problem: &Value, verb: &str, resource: &str| {
        let rule = format!("needs `{verb}` on `{resource}` in namespace {MEMBERS}");
        problem.as_str().is_some_and(|problem| problem.contains(&rule))
    };
    kube.apply(&with(&|resource| resource != "pods")).await;
    registrar
        .until("pods and notices are not known", |state| {
            let problem = &state["members_problem"];
            names(problem, "list", "pods") && names(problem, "list", "events")
        })
        .await;
    assert_eq!(registrar.count("cairn_registrar_members_problem", &[]).await, 1.0);
    kube.apply(&with(&|resource| resource != "leases")).await;
    registrar.until("no Lease", |state| names(&state["problem"], "get", "leases")).await;
    eventually("and the log has it", async || registrar.process.printed("the Lease cannot be had"))
        .await;
    kube.apply(&with(&|_| true)).await;
    registrar
        .until("members are known again", |state| {
            state["leader"] == true && state["members_problem"] == Value::Null
        })
        .await;
    eventually("which is counted", async || {
        registrar.count("cairn_registrar_members_problem", &[]).await == 0.0
    })
    .await;
}

async fn missing_right(world: &mut World, registrar: &Registrar) {
    let kube = &world.api.kube;
    const API: &str = "rbac.authorization.k8s.io/v1";
    let role = kube.get(API, "Role", POOL, "cairn-registrar").await.unwrap();
    let mut rules = role["rules"].clone();
    for rule in rules.as_array_mut().unwrap() {
        if rule["resources"] == json!(["workloadentries"]) {
            rule["verbs"] = json!(["list", "patch"]);
        }
    }
    let with = |rules: &Value| {
        json!({
            "apiVersion": API, "kind": "Role",
            "metadata": { "name": "cairn-registrar", "namespace": POOL }, "rules": rules,
        })
    };
    kube.apply(&with(&rules)).await;
    world.register(50, "t1").await;
    let state = registrar
        .until("it is named", |state| {
            let problem = state["clusters"]["east"]["problems"]["entries"].as_str();
            problem.is_some_and(|problem| problem.contains("forbidden"))
        })
        .await;
    let problem = state["clusters"]["east"]["problems"]["entries"].as_str().unwrap();
    assert!(
        problem.contains("needs `delete` on `workloadentries` in namespace waypoint-pool"),
        "{problem}"
    );
    // All that is missing is named, and with the verb that is.
    kube.apply(&with(&json!([]))).await;
    let rule = |verb: &str, resource: &str| {
        format!("needs `{verb}` on `{resource}` in namespace waypoint-pool")
    };
    let names = |state: &Value, part: &str, rules: &[(&str, &str)]| {
        let problem = state["clusters"]["east"]["problems"][part].as_str().unwrap_or_default();
        rules.iter().all(|(verb, resource)| problem.contains(&rule(verb, resource)))
    };
    let objects = [
        ("get", "services"),
        ("get", "serviceaccounts"),
        ("get", "gateways"),
        ("get", "workloadgroups"),
    ];
    registrar
        .until("all rules are named", |state| {
            names(state, "entries", &[("list", "workloadentries")])
                && names(state, "objects", &objects)
                && names(state, "tokens", &[("get", "configmaps")])
        })
        .await;
    let mut rules = role["rules"].clone();
    for rule in rules.as_array_mut().unwrap() {
        if rule["resources"] == json!(["gateways"]) {
            rule["verbs"] = json!(["get", "patch"]);
        } else if rule["resources"] == json!(["serviceaccounts/token"]) {
            rule["verbs"] = json!(["get"]);
        } else if rule["resources"] == json!(["gateways/status"]) {
            rule["verbs"] = json!(["get"]);
        }
    }
    let secret = kube.get("v1", "Secret", MEMBERS, "waypoint-pool-tokens").await.unwrap();
    kube.delete(&secret).await;
    let gone = gateway(world, "waypoint-pool-s00").await.unwrap();
    kube.delete(&gone).await;
    let mut bare = gateway(world, "waypoint-pool-s01").await.unwrap();
    kube.delete(&bare).await;
    let labels = bare["metadata"]["labels"].clone();
    bare["metadata"] = json!({ "name": "waypoint-pool-s01", "namespace": POOL, "labels": labels });
    bare.as_object_mut().unwrap().remove("status");
    kube.apply(&bare).await;
    kube.apply(&with(&rules)).await;
    registrar
        .until("the verb is the one that is missing", |state| {
            names(state, "objects", &[("create", "gateways"), ("patch", "gateways/status")])
                && names(state, "tokens", &[("create", "serviceaccounts/token")])
        })
        .await;
    kube.apply(&with(&role["rules"])).await;
    world.until_gone(50).await;
    members_rights(world, registrar).await;
    registrar
        .until("all is well", |state| state["clusters"]["east"]["problems"] == json!({}))
        .await;
}

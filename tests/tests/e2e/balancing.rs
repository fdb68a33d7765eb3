//! Which cluster and which endpoint a request gets.

use cairn_test_support::config::{MeshSpec, at, hbone, merge, plain, to};
use cairn_test_support::endpoint::Endpoint;
use cairn_test_support::stage::{Run, Stage, VIP, app_id};
use cairn_test_support::wait::{drive, eventually};
use serde_json::{Value, json};
use std::collections::HashMap;

#[test]
fn clusters_are_split_by_weight() {
    drive(async {
        let stage = Stage::new().await;
        let (canary, canary_pod) = stage.backend("canary").await;
        let (never, never_pod) = stage.backend("never").await;
        let split = json!([{
            "match": { "path": { "prefix": "/" } },
            "route": { "timeout": "0s", "weighted_clusters": [
                { "name": "app", "weight": 3 },
                { "name": "canary", "weight": 1 },
                { "name": "never", "weight": 0 },
            ] },
        }]);
        let spec = stage
            .spec()
            .cluster("canary", vec![hbone(&canary_pod, "10.1.0.2:8080", &app_id())])
            .cluster("never", vec![hbone(&never_pod, "10.1.0.3:8080", &app_id())])
            .http(VIP, split);
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        for _ in 0..400 {
            assert_eq!(http.get("/").await.unwrap().status, 200);
        }
        assert_eq!(stage.app.requests() + canary.requests(), 400);
        assert_eq!(never.requests(), 0);
        // 100 are expected; five standard deviations are 43.
        assert!((57..=143).contains(&canary.requests()), "{}", canary.requests());
    });
}

#[test]
fn missing_and_empty_clusters_are_told_apart() {
    drive(async {
        let stage = Stage::new().await;
        let exact = |path: &str| json!({ "exact": path });
        let mut sick = stage.endpoint();
        sick["health"] = json!("unhealthy");
        let mut leaving = stage.endpoint();
        leaving["health"] = json!("draining");
        leaving["address"] = json!("10.1.0.2:8080");
        let spec = stage.spec().cluster("empty", vec![]).cluster("sick", vec![sick, leaving]).http(
            VIP,
            json!([
                at(exact("/missing"), "missing", json!({})),
                at(exact("/missing500"), "missing", json!({ "cluster_not_found_status": 500 })),
                at(exact("/missing404"), "missing", json!({ "cluster_not_found_status": 404 })),
                at(exact("/empty"), "empty", json!({})),
                at(exact("/sick"), "sick", json!({})),
            ]),
        );
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        for (path, status, body) in [
            ("/missing", 503, ""),
            ("/missing500", 500, ""),
            ("/missing404", 404, ""),
            ("/empty", 503, "no healthy upstream"),
            ("/sick", 503, "no healthy upstream"),
        ] {
            let response = http.ask(&format!("GET {path}"), &[]).await;
            assert_eq!((response.status, response.text().as_str()), (status, body), "{path}");
        }
        assert_eq!(stage.app.requests(), 0);
    });
}

/// Three backends behind plain listeners, in the cluster `app` with more fields of the cluster and of each endpoint.
async fn three(cluster: Value, fields: [Value; 3]) -> (Stage, Run, Vec<Endpoint>) {
    let stage = Stage::new().await;
    let mut kept = Vec::new();
    let mut list = Vec::new();
    for (name, more) in ["one", "two", "three"].iter().zip(fields) {
        let listener = Endpoint::plain(&cairn_test_support::backend::Backend::new(name)).await;
        let mut endpoint = plain(listener.addr);
        merge(&mut endpoint, more);
        list.push(endpoint);
        kept.push(listener);
    }
    let spec =
        MeshSpec::new().cluster_with("app", cluster, list).http(VIP, json!([to("app", json!({}))]));
    let run = stage.run(&spec).await;
    (stage, run, kept)
}

/// How many of `count` requests went where.
async fn shares(run: &Run, count: usize) -> HashMap<String, usize> {
    let mut http = run.http().await;
    let mut shares = HashMap::new();
    for _ in 0..count {
        let backend = http.ask("GET /status/200", &[]).await.backend().to_owned();
        *shares.entry(backend).or_default() += 1;
    }
    shares
}

#[test]
fn endpoints_share_by_policy_and_weight() {
    drive(async {
        for policy in ["least_request", "round_robin", "random"] {
            let equal = [json!({}), json!({}), json!({})];
            let (_stage, run, _kept) = three(json!({ "lb": policy }), equal).await;
            let shares = shares(&run, 300).await;
            for name in ["one", "two", "three"] {
                // 100 are expected; five standard deviations of a random draw are 41.
                assert!((59..=141).contains(&shares[name]), "{policy}: {shares:?}");
            }
        }
        for policy in ["least_request", "round_robin", "random"] {
            let weighted = [json!({ "weight": 6 }), json!({ "weight": 3 }), json!({ "weight": 1 })];
            let (_stage, run, _kept) = three(json!({ "lb": policy }), weighted).await;
            let shares = shares(&run, 500).await;
            assert!(
                shares["one"] > shares["two"] && shares["two"] > shares["three"],
                "{policy}: {shares:?}"
            );
            assert!(shares["three"] > 10, "{policy}: {shares:?}");
        }
    });
}

#[test]
fn health_and_priority_decide_who_is_used() {
    drive(async {
        for (fields, wanted) in [
            ([json!({ "health": "unhealthy" }), json!({}), json!({ "health": "draining" })], "two"),
            ([json!({ "priority": 1 }), json!({ "priority": 1 }), json!({})], "three"),
            (
                [
                    json!({ "health": "unhealthy" }),
                    json!({ "priority": 1 }),
                    json!({ "priority": 2 }),
                ],
                "two",
            ),
        ] {
            let (_stage, run, _kept) = three(json!({}), fields.clone()).await;
            let shares = shares(&run, 30).await;
            assert_eq!(shares.get(wanted), Some(&30), "{fields:?}: {shares:?}");
        }
    });
}

#[test]
fn the_less_busy_endpoint_is_preferred() {
    drive(async {
        let stage = Stage::new().await;
        let (other, other_pod) = stage.backend("other").await;
        let only = |endpoint: Value| {
            let both = vec![stage.endpoint(), hbone(&other_pod, "10.1.0.2:8080", &app_id())];
            MeshSpec::new()
                .cluster("app", if endpoint.is_null() { both } else { vec![endpoint] })
                .http(VIP, json!([to("app", json!({}))]))
        };
        let run = stage.run(&only(stage.endpoint())).await;
        let h2c = run.h2c().await;
        let held: Vec<_> = (0..20)
            .map(|_| {
                let h2c = h2c.clone();
                tokio::spawn(async move { h2c.get("/hold?gate=busy").await.unwrap().status })
            })
            .collect();
        eventually("`app` is busy", || stage.app.waiting() == 20).await;
        run.waypoint.apply(&only(Value::Null));
        let before = stage.app.requests();
        let mut http = run.http().await;
        for _ in 0..100 {
            assert_eq!(http.ask("GET /", &[]).await.status, 200);
        }
        // `app` is taken only where both draws fall on it: a quarter.
        let app = stage.app.requests() - before;
        assert!(other.requests() > app, "{} and {app}", other.requests());
        stage.app.release("busy");
        for held in held {
            assert_eq!(held.await.unwrap(), 200);
        }
    });
}

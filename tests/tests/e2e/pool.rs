//! Connections to endpoints: shared, bounded, replaced without a failed request, released.

use cairn_test_support::config::{MeshSpec, all_to, hbone, to};
use cairn_test_support::http1::Http1;
use cairn_test_support::pki::spiffe;
use cairn_test_support::stage::{POD, Run, Stage, VIP, VIP2, app_id};
use cairn_test_support::wait::{drive, eventually, eventually_async, within};
use futures::future::join_all;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Requests in tunnels of their own and in kept ones, all the time.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    async fn start(run: &Run, clients: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let mut tasks = Vec::new();
        for number in 0..clients {
            let mut http = run.http().await;
            let h2c = run.h2c().await;
            let (stop, done) = (stop.clone(), done.clone());
            tasks.push(tokio::spawn(async move {
                let mut failures = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let outcome = match number % 2 {
                        0 => match within("a request", http.request("POST", "/echo", &[], b"x"))
                            .await
                        {
                            Ok(response) if response.status == 200 => None,
                            other => Some(format!("h1 {other:?}")),
                        },
                        _ => match within("a request", h2c.request("POST", "/echo", &[], b"x"))
                            .await
                        {
                            Ok(response) if response.status == 200 => None,
                            other => Some(format!("h2 {other:?}")),
                        },
                    };
                    done.fetch_add(1, Ordering::SeqCst);
                    if let Some(failure) = outcome {
                        failures.push(failure);
                        break;
                    }
                }
                failures
            }));
        }
        Load { stop, done, tasks }
    }

    /// Waits until so many more requests were answered.
    async fn go_on(&self, count: u64) {
        let target = self.done.load(Ordering::SeqCst) + count;
        eventually("the load goes on", || {
            self.done.load(Ordering::SeqCst) >= target
                || self.tasks.iter().all(|task| task.is_finished())
        })
        .await;
    }

    async fn failures(self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        join_all(self.tasks).await.into_iter().flat_map(Result::unwrap).collect()
    }
}

#[test]
fn tunnels_share_a_connection() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        // All at once, with nothing dialled yet.
        let statuses = join_all((0..60).map(|_| async {
            let mut http = run.http().await;
            http.get("/").await.unwrap().status
        }))
        .await;
        assert_eq!(statuses, [200; 60]);
        assert_eq!(stage.pod.connections(), 1);
    });
}

#[test]
fn streams_are_kept_for_the_next_request() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        for _ in 0..20 {
            // Another tunnel each time.
            assert_eq!(run.http().await.get("/").await.unwrap().status, 200);
        }
        assert_eq!((stage.pod.connects().len(), stage.app.connections()), (1, 1));
    });
}

#[test]
fn a_connection_has_at_most_a_hundred_streams() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let second = run.waypoint.connect(&stage.client()).await;
        let held = join_all((0..250).map(|number| {
            let client = if number % 2 == 0 { &run.client } else { &second };
            async move {
                let mut http = Http1::new(client.open(VIP).await.unwrap());
                http.get("/hold?gate=all").await.unwrap().status
            }
        }));
        let release = async {
            eventually("all wait", || stage.app.waiting() == 250).await;
            assert_eq!(stage.pod.connections(), 3);
            let mut streams: HashMap<u64, u32> = HashMap::new();
            for connect in stage.pod.connects() {
                *streams.entry(connect.connection).or_default() += 1;
            }
            assert!(streams.values().all(|count| *count <= 100), "{streams:?}");
            stage.app.release("all");
        };
        let (statuses, ()) = futures::future::join(held, release).await;
        assert_eq!(statuses, [200; 250]);
    });
}

#[test]
fn goaway_fails_no_request() {
    drive(async {
        let stage = Stage::new().await;
        let spec = stage
            .spec()
            .http(VIP, all_to("app"))
            .cluster_with("h2", json!({ "protocol": "http2" }), vec![stage.endpoint()])
            .http(VIP2, all_to("h2"));
        let run = stage.run(&spec).await;
        let load = Load::start(&run, 8).await;
        for round in 1..=10 {
            load.go_on(50).await;
            let before = stage.pod.connections();
            stage.pod.goaway();
            eventually(&format!("connection {round} is replaced"), || {
                stage.pod.connections() > before
            })
            .await;
        }
        load.go_on(50).await;
        assert_eq!(load.failures().await, Vec::<String>::new());
        eventually("the old ones are gone", || stage.pod.open_connections() <= 2).await;
    });
}

#[test]
fn idle_connections_that_died_fail_no_request() {
    drive(async {
        let stage = Stage::new().await;
        let spec = stage
            .spec()
            .http(VIP, all_to("app"))
            .cluster_with("h2", json!({ "protocol": "http2" }), vec![stage.endpoint()])
            .http(VIP2, all_to("h2"));
        let run = stage.run(&spec).await;
        for vip in [VIP, VIP2] {
            let mut http = run.http_to(vip).await;
            for round in 0..10 {
                assert_eq!(http.get("/").await.unwrap().status, 200, "{vip} {round}");
                stage.pod.drop_connections();
                eventually("it is dropped", || stage.pod.open_connections() == 0).await;
            }
            for round in 0..20 {
                assert_eq!(http.get("/").await.unwrap().status, 200, "{vip} {round}");
                // The application closes its keep-alive connection, or sends GOAWAY.
                stage.app.close_idle();
                eventually("it is closed", || stage.app.open_connections() == 0).await;
            }
        }
    });
}

#[test]
fn goaway_inside_the_tunnel_fails_no_request() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec_h2().http(VIP, all_to("app"))).await;
        let load = Load::start(&run, 6).await;
        for _ in 0..10 {
            load.go_on(30).await;
            let before = stage.app.connections();
            stage.app.close_idle();
            eventually("it is replaced", || stage.app.connections() > before).await;
        }
        assert_eq!(load.failures().await, Vec::<String>::new());
    });
}

#[test]
fn an_endpoint_that_restarts_is_used_again() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let mut http = run.http().await;
        assert_eq!(http.get("/").await.unwrap().status, 200);
        for _ in 0..5 {
            stage.pod.stop_listening().await;
            stage.pod.drop_connections();
            eventually("it is down", || stage.pod.open_connections() == 0).await;
            assert_eq!(within("503", http.get("/")).await.unwrap().status, 503);
            stage.pod.listen_again();
            eventually_async("it is back", || async {
                run.http().await.get("/").await.unwrap().status == 200
            })
            .await;
            assert_eq!(http.get("/").await.unwrap().status, 200);
        }
    });
}

#[test]
fn idle_connections_are_released() {
    drive(async {
        let stage = Stage::new().await;
        let cluster = json!({ "idle_timeout": "1s" });
        let spec = MeshSpec::new()
            .cluster_with("app", cluster, vec![stage.endpoint()])
            .http(VIP, all_to("app"))
            .field("limits", json!({ "pool_idle_timeout": "1s" }));
        let run = stage.run(&spec).await;
        assert_eq!(run.http().await.get("/").await.unwrap().status, 200);
        assert_eq!(stage.pod.open_connections(), 1);
        eventually("the application's connection is closed", || stage.app.open_connections() == 0)
            .await;
        eventually("its tunnel is closed", || stage.pod.open_tunnels() == 0).await;
        eventually("the HBONE connection is closed", || stage.pod.open_connections() == 0).await;
        assert_eq!(run.http().await.get("/").await.unwrap().status, 200);
    });
}

#[test]
fn a_busy_connection_is_not_idle() {
    drive(async {
        let stage = Stage::new().await;
        let spec = stage
            .spec()
            .http(VIP, all_to("app"))
            .field("limits", json!({ "pool_idle_timeout": "1s" }));
        let spec = spec
            .cluster_with("brief", json!({ "idle_timeout": "1s" }), vec![stage.endpoint()])
            .http(VIP2, all_to("brief"));
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        http.send("GET /hold?gate=open HTTP/1.1\r\nHost: app.test\r\n\r\n").await.unwrap();
        eventually("it waits", || stage.app.waiting() == 1).await;
        // Another cluster's stream on the same connection comes and goes of old age meanwhile.
        assert_eq!(run.http_to(VIP2).await.get("/").await.unwrap().status, 200);
        eventually("the idle one is released", || stage.pod.open_tunnels() == 1).await;
        stage.app.release("open");
        assert_eq!(http.response().await.unwrap().status, 200);
    });
}

#[test]
fn requests_per_connection_are_bounded() {
    drive(async {
        let stage = Stage::new().await;
        for protocol in ["http1", "http2"] {
            let cluster = json!({ "max_requests_per_connection": 2, "protocol": protocol });
            let spec = MeshSpec::new()
                .cluster_with("app", cluster, vec![stage.endpoint()])
                .http(VIP, all_to("app"));
            let run = stage.run(&spec).await;
            let before = stage.app.connections();
            let mut http = run.http().await;
            for _ in 0..6 {
                assert_eq!(http.get("/").await.unwrap().status, 200);
            }
            assert_eq!(stage.app.connections() - before, 3, "{protocol}");
        }
    });
}

#[test]
fn expected_identities_do_not_share() {
    drive(async {
        let stage = Stage::new().await;
        let spec = stage
            .spec()
            .http(VIP, all_to("app"))
            .cluster("other", vec![hbone(&stage.pod, POD, &spiffe("shop", "other"))])
            .http(VIP2, all_to("other"));
        let run = stage.run(&spec).await;
        assert_eq!(run.http().await.get("/").await.unwrap().status, 200);
        assert_eq!(
            run.http_to(VIP2).await.get("/").await.unwrap().status,
            503,
            "not over the other's connection"
        );
        assert_eq!(run.http().await.get("/").await.unwrap().status, 200);
        assert_eq!(stage.app.requests(), 2);
    });
}

#[test]
fn addresses_behind_one_endpoint_do_not_mix() {
    drive(async {
        let stage = Stage::new().await;
        let spec = stage
            .spec()
            .http(VIP, all_to("app"))
            .cluster("two", vec![hbone(&stage.pod, "10.1.0.1:9090", &app_id())])
            .http(VIP2, all_to("two"));
        let run = stage.run(&spec).await;
        for _ in 0..3 {
            run.http().await.get("/").await.unwrap();
            run.http_to(VIP2).await.get("/").await.unwrap();
        }
        let mut authorities: Vec<String> =
            stage.pod.connects().into_iter().map(|seen| seen.authority).collect();
        authorities.sort();
        assert_eq!(authorities, [POD, "10.1.0.1:9090"]);
        assert_eq!(stage.pod.connections(), 1);
    });
}

#[test]
fn refused_streams_fail_no_request() {
    drive(async {
        let stage = Stage::new().await;
        let retry = json!({ "retry": { "on": ["refused-stream"], "attempts": 2, "backoff": { "base": "1ms" } } });
        let run = stage.run(&stage.spec().http(VIP, json!([to("app", retry)]))).await;
        for _ in 0..5 {
            stage.pod.reject_streams(1);
            stage.app.close_idle();
            eventually("a CONNECT is needed", || stage.app.open_connections() == 0).await;
            assert_eq!(run.http().await.get("/").await.unwrap().status, 200);
        }
    });
}

#[test]
fn a_push_keeps_connections() {
    drive(async {
        let stage = Stage::new().await;
        let spec = stage.spec().http(VIP, all_to("app"));
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        for round in 0..5 {
            assert_eq!(http.get("/").await.unwrap().status, 200);
            run.waypoint
                .apply(&spec.clone().http(&format!("10.97.0.{}:80", round + 1), all_to("app")));
        }
        assert_eq!((stage.pod.connects().len(), stage.pod.connections()), (1, 1));
    });
}

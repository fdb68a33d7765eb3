#![allow(clippy::unwrap_used)]
//! Candidates at an API server that is a value, on a clock that stands still.

use super::*;
use http::{Method, Response, StatusCode};
use kube::client::Body;
use serde_json::{Value, json};
use std::sync::Mutex;

/// Keeps one Lease as the API server does: by versions.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    lease: Option<Value>,
    version: u64,
    away: bool,
    forbids: bool,
    writes: usize,
}

impl Server {
    fn client(&self) -> Client {
        let server = self.clone();
        let service =
            tower::service_fn(move |request: http::Request<Body>| server.clone().answer(request));
        Client::of(kube::Client::new(service, "pool"), "pool")
    }

    async fn answer(self, request: http::Request<Body>) -> Result<Response<Body>, std::io::Error> {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap_or_default();
        if self.0.lock().unwrap().away {
            std::future::pending::<()>().await;
        }
        let mut kept = self.0.lock().unwrap();
        let failure = |code: u16| {
            let reason = match code {
                403 => "Forbidden",
                404 => "NotFound",
                _ => "Conflict",
            };
            let status = json!({ "kind": "Status", "status": "Failure", "code": code, "message": "no", "reason": reason });
            (StatusCode::from_u16(code).unwrap(), status)
        };
        let version_of = |lease: &Value| lease["metadata"]["resourceVersion"].clone();
        let (status, answer) = match (&parts.method, kept.lease.clone()) {
            _ if kept.forbids => failure(403),
            (&Method::GET, Some(lease)) => (StatusCode::OK, lease),
            (&Method::GET, None) => failure(404),
            (&Method::POST, Some(_)) => failure(409),
            (method, old) => {
                let mut lease: Value = serde_json::from_slice(&body).unwrap();
                let known = old.as_ref().map(version_of);
                if *method == Method::PUT && known != Some(version_of(&lease)) {
                    failure(409)
                } else {
                    kept.version += 1;
                    kept.writes += 1;
                    lease["metadata"]["resourceVersion"] = kept.version.to_string().into();
                    kept.lease = Some(lease.clone());
                    (StatusCode::OK, lease)
                }
            }
        };
        let body = Body::from(answer.to_string().into_bytes());
        Ok(Response::builder().status(status).body(body).unwrap())
    }

    fn candidate(&self, identity: &str) -> Election {
        let spec = LeaseSpec {
            namespace: "pool".to_owned(),
            name: "scaler".to_owned(),
            identity: identity.to_owned(),
            duration: Duration::from_secs(15),
        };
        Election::start(&self.client(), spec)
    }

    fn spec(&self) -> Value {
        self.0.lock().unwrap().lease.clone().unwrap()["spec"].clone()
    }
}

/// Lets the clock go on until one of them leads; never more than one does. Returns the seconds.
async fn until_leads(wanted: &Election, others: &[&Election]) -> f64 {
    let start = Instant::now();
    while !wanted.leadership().holds() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let lead = others.iter().filter(|other| other.leadership().holds()).count();
        assert!(lead + usize::from(wanted.leadership().holds()) <= 1, "two lead");
        assert!(
            start.elapsed() < Duration::from_secs(300),
            "nobody leads: {:?}",
            wanted.leadership()
        );
    }
    start.elapsed().as_secs_f64()
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_renews() {
    let server = Server::default();
    let first = server.candidate("first");
    until_leads(&first, &[]).await;
    let second = server.candidate("second");
    for _ in 0..1000 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(first.leadership().holds() && !second.leadership().holds());
    }
    assert_eq!(second.leadership().holder, "first");
    assert!(server.0.lock().unwrap().writes > 20, "it is renewed");
    assert_eq!(server.spec()["leaseTransitions"], 0);
    assert_eq!(server.spec()["leaseDurationSeconds"], 15);
}

#[tokio::test(start_paused = true)]
async fn who_is_killed_is_followed_after_the_duration() {
    let server = Server::default();
    let first = server.candidate("first");
    until_leads(&first, &[]).await;
    let second = server.candidate("second");
    tokio::time::sleep(Duration::from_secs(20)).await;
    drop(first);
    let took = until_leads(&second, &[]).await;
    assert!(
        (12.0..19.0).contains(&took),
        "{took} s, of a duration of 15 s that runs from the last renewal"
    );
    assert_eq!(server.spec()["holderIdentity"], "second");
    assert_eq!(server.spec()["leaseTransitions"], 1);
}

#[tokio::test(start_paused = true)]
async fn who_releases_is_followed_at_once() {
    let server = Server::default();
    let first = server.candidate("first");
    until_leads(&first, &[]).await;
    let second = server.candidate("second");
    tokio::time::sleep(Duration::from_secs(5)).await;
    first.release().await;
    assert_eq!(server.spec()["holderIdentity"], "");
    assert!(until_leads(&second, &[]).await < 3.0);
}

#[tokio::test(start_paused = true)]
async fn who_cannot_renew_stops_before_another_may_start() {
    let server = Server::default();
    let first = server.candidate("first");
    until_leads(&first, &[]).await;
    let second = server.candidate("second");
    tokio::time::sleep(Duration::from_secs(5)).await;
    server.0.lock().unwrap().away = true;
    let gone = Instant::now();
    while first.leadership().holds() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(gone.elapsed() < Duration::from_secs(11), "{:?}", gone.elapsed());
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!first.leadership().holds() && !second.leadership().holds());
    let problem = first.leadership().problem.unwrap().to_string();
    assert!(problem.contains("no answer of the API server"), "{problem}");
    server.0.lock().unwrap().away = false;
    while !first.leadership().holds() && !second.leadership().holds() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(first.leadership().holds() != second.leadership().holds(), "exactly one");
    }
}

#[tokio::test(start_paused = true)]
async fn of_many_at_once_one_leads() {
    let server = Server::default();
    let all: Vec<Election> =
        (0..8).map(|number| server.candidate(&format!("candidate-{number}"))).collect();
    for _ in 0..300 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(all.iter().filter(|election| election.leadership().holds()).count() <= 1);
    }
    assert_eq!(all.iter().filter(|election| election.leadership().holds()).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_missing_right_is_named() {
    let server = Server::default();
    server.0.lock().unwrap().forbids = true;
    let first = server.candidate("first");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let problem = first.leadership().problem.unwrap().to_string();
    assert!(problem.contains("needs `get` on `leases` in namespace pool"), "{problem}");
}

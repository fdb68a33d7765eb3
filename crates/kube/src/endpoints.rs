//! Who is behind a Service, followed as it changes.

use crate::Cause;
use crate::client::{Client, answer};
use crate::error::{Error, Request};
use futures::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Endpoints that are kept of one Service; what is beyond is counted.
pub const MAX_ENDPOINTS: usize = 10_000;
/// Slices of one Service; each has at most 1,000 endpoints, and usually 100.
const MAX_SLICES: usize = 2_000;
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Slices of one page of a list.
const PAGE: u32 = 500;
/// Pause before the list is read again or followed again; after failures it doubles up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The API server is asked to end each watch after 290 s; one that it does not end is broken.
const LONGEST_WATCH: Duration = Duration::from_secs(295);
/// The version from which it was to go on is too old.
const GONE: u16 = 410;

/// A pod, or another address, behind a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Name of the pod; its address where there is none.
    pub name: String,
    /// Unique id of the pod.
    pub uid: Option<String>,
    /// Its first address.
    pub address: IpAddr,
    /// Takes new connections. Unknown counts as ready.
    pub ready: bool,
    /// Answers, though perhaps it is going.
    pub serving: bool,
    /// Is going.
    pub terminating: bool,
    /// Its zone.
    pub zone: Option<String>,
}

/// What is known of a Service's endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// By name; `None`: no list has come yet. While the API server is away the last list stays.
    pub list: Option<Arc<[Endpoint]>>,
    /// Endpoints beyond [`MAX_ENDPOINTS`].
    pub dropped: usize,
    /// What is wrong with the watch at present.
    pub problem: Option<Arc<Error>>,
}

impl Client {
    /// Follows the endpoints of a Service until nobody listens. Where they may be listed and not watched they are
    /// listed again and again, at most 30 s apart, and the problem says so.
    pub fn watch_endpoints(&self, namespace: &str, service: &str) -> watch::Receiver<Endpoints> {
        let (sender, receiver) = watch::channel(Endpoints::default());
        let follower = Follower {
            api: self.api::<EndpointSlice>(namespace),
            labels: format!("{SERVICE_LABEL}={service}"),
            namespace: namespace.to_owned(),
            pause: PAUSE,
        };
        tokio::spawn(async move {
            tokio::select! {
                () = follower.run(&sender) => {}
                () = sender.closed() => {}
            }
        });
        receiver
    }
}

struct Follower {
    api: Api<EndpointSlice>,
    labels: String,
    namespace: String,
    /// Before the next try.
    pause: Duration,
}

impl Follower {
    async fn run(mut self, sender: &watch::Sender<Endpoints>) {
        loop {
            if let Err(error) = self.turn(sender).await {
                sender.send_modify(|state| state.problem = Some(Arc::new(error)));
            }
            tokio::time::sleep(self.pause.mul_f64(rand::random_range(0.8..1.2))).await;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Lists, and then watches for as long as that goes well. A problem lasts until a watch has begun: a list alone
    /// is old at once.
    async fn turn(&mut self, sender: &watch::Sender<Endpoints>) -> Result<(), Error> {
        let (mut slices, mut version) = self.list().await?;
        tell(sender, &slices);
        loop {
            let params = WatchParams::default().labels(&self.labels);
            let begun = self.api.watch(&params, &version);
            let events = answer(|| self.request("watch"), begun).await?;
            let mut events = std::pin::pin!(events);
            sender.send_if_modified(|state| state.problem.take().is_some());
            self.pause = PAUSE;
            loop {
                let event = tokio::time::timeout(LONGEST_WATCH, events.next()).await;
                let event = event.map_err(|_elapsed| {
                    let cause = Cause::Unreachable(format!("not ended within {LONGEST_WATCH:?}"));
                    Error { request: self.request("watch"), cause }
                })?;
                let Some(event) = event else { break };
                match event.map_err(|error| Error::new(self.request("watch"), &error))? {
                    WatchEvent::Added(slice) | WatchEvent::Modified(slice) => {
                        version = slice.metadata.resource_version.clone().unwrap_or_default();
                        keep(&mut slices, slice);
                        tell(sender, &slices);
                    }
                    WatchEvent::Deleted(slice) => {
                        version = slice.metadata.resource_version.unwrap_or_default();
                        slices.remove(&slice.metadata.name.unwrap_or_default());
                        tell(sender, &slices);
                    }
                    WatchEvent::Bookmark(mark) => version = mark.metadata.resource_version,
                    WatchEvent::Error(status) if status.code == GONE => return Ok(()),
                    WatchEvent::Error(status) => {
                        return Err(Error::answered(self.request("watch"), &status));
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// All slices by name, and the version of the list.
    async fn list(&self) -> Result<(BTreeMap<String, EndpointSlice>, String), Error> {
        let mut slices = BTreeMap::new();
        let mut params = ListParams::default().limit(PAGE).labels(&self.labels);
        loop {
            let page = answer(|| self.request("list"), self.api.list(&params)).await?;
            page.items.into_iter().for_each(|slice| keep(&mut slices, slice));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok((slices, page.metadata.resource_version.unwrap_or_default())),
            }
        }
    }

    fn request(&self, verb: &'static str) -> Request {
        Request {
            verb,
            group: "discovery.k8s.io".to_owned(),
            resource: "endpointslices".to_owned(),
            namespace: self.namespace.clone(),
            name: String::new(),
        }
    }
}

fn tell(sender: &watch::Sender<Endpoints>, slices: &BTreeMap<String, EndpointSlice>) {
    let (list, dropped) = merge(slices.values());
    sender.send_modify(|state| {
        state.list = Some(list.into());
        state.dropped = dropped;
    });
}

fn keep(slices: &mut BTreeMap<String, EndpointSlice>, slice: EndpointSlice) {
    let name = slice.metadata.name.clone().unwrap_or_default();
    if slices.len() < MAX_SLICES || slices.contains_key(&name) {
        slices.insert(name, slice);
    }
}

/// One endpoint for each pod: it may stand in two slices while it moves, and in one for each IP
/// family. A ready one counts more, then one of IPv4.
fn merge<'a>(slices: impl Iterator<Item = &'a EndpointSlice>) -> (Vec<Endpoint>, usize) {
    let mut by_pod: BTreeMap<String, Endpoint> = BTreeMap::new();
    let mut dropped = 0;
    for endpoint in slices.flat_map(|slice| slice.endpoints.iter().flatten()) {
        let address = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok());
        let Some(address) = address else { continue }; // slices of type FQDN
        let pod = endpoint.target_ref.as_ref();
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        let found = Endpoint {
            name: pod.and_then(|pod| pod.name.clone()).unwrap_or_else(|| address.to_string()),
            uid: pod.and_then(|pod| pod.uid.clone()),
            address,
            ready,
            serving: conditions.serving.unwrap_or(ready),
            terminating: conditions.terminating.unwrap_or(false),
            zone: endpoint.zone.clone(),
        };
        let rank = |endpoint: &Endpoint| (endpoint.ready, endpoint.address.is_ipv4());
        let full = by_pod.len() >= MAX_ENDPOINTS;
        match by_pod.get_mut(&found.name) {
            Some(known) if rank(&found) > rank(known) => *known = found,
            Some(_) => {}
            None if full => dropped += 1,
            None => drop(by_pod.insert(found.name.clone(), found)),
        }
    }
    (by_pod.into_values().collect(), dropped)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use kube::client::Body;
    use serde_json::{Value, json};
    use std::sync::Mutex;

    fn slice(kind: &str, endpoints: Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "a" }, "addressType": kind, "ports": [], "endpoints": endpoints,
        }))
        .unwrap()
    }

    fn pod(name: &str, address: &str, ready: Option<bool>) -> Value {
        json!({
            "addresses": [address], "conditions": { "ready": ready, "serving": ready }, "zone": "z1",
            "targetRef": { "kind": "Pod", "name": name, "uid": format!("uid-{name}") },
        })
    }

    #[test]
    fn a_pod_is_one_endpoint_in_however_many_slices() {
        let slices = [
            slice(
                "IPv6",
                json!([pod("a", "fd00::1", Some(true)), pod("b", "fd00::2", Some(true))]),
            ),
            slice(
                "IPv4",
                json!([pod("a", "10.0.0.1", Some(true)), pod("b", "10.0.0.2", Some(false))]),
            ),
            slice("FQDN", json!([{ "addresses": ["a.example"] }])),
            slice("IPv4", json!([{ "addresses": ["10.0.0.9"], "conditions": {} }])),
        ];
        let (found, dropped) = merge(slices.iter());
        let seen: Vec<(&str, String, bool)> = found
            .iter()
            .map(|endpoint| (endpoint.name.as_str(), endpoint.address.to_string(), endpoint.ready))
            .collect();
        assert_eq!(
            seen,
            [
                ("10.0.0.9", "10.0.0.9".to_owned(), true),
                ("a", "10.0.0.1".to_owned(), true),
                ("b", "fd00::2".to_owned(), true),
            ]
        );
        assert_eq!(dropped, 0);
        assert_eq!(found[1].uid.as_deref(), Some("uid-a"));
        assert_eq!(found[1].zone.as_deref(), Some("z1"));
    }

    #[test]
    fn a_bound_holds() {
        let many: Vec<Value> = (0..MAX_ENDPOINTS + 5)
            .map(|number| pod(&format!("p{number}"), "10.0.0.1", None))
            .collect();
        let (found, dropped) = merge([slice("IPv4", many.into())].iter());
        assert_eq!((found.len(), dropped), (MAX_ENDPOINTS, 5));
    }

    /// What the API server answers to lists and to watches: status and body.
    #[derive(Default)]
    struct Answers {
        list: Option<(u16, String)>,
        watch: Option<(u16, String)>,
        asked: Vec<String>,
    }

    fn refusal(code: u16, message: &str) -> Option<(u16, String)> {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": "Forbidden", "code": code,
        });
        Some((code, status.to_string()))
    }

    fn list(slices: &[&EndpointSlice]) -> Option<(u16, String)> {
        let list = json!({
            "kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1",
            "metadata": { "resourceVersion": "7" }, "items": slices,
        });
        Some((200, list.to_string()))
    }

    fn event(kind: &str, object: Value) -> Option<(u16, String)> {
        Some((200, format!("{}\n", json!({ "type": kind, "object": object }))))
    }

    /// A client of such a server; a question without an answer hangs.
    fn played(answers: &Arc<Mutex<Answers>>) -> Client {
        let answers = Arc::clone(answers);
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let query = request.uri().query().unwrap_or_default().to_owned();
            let mut answers = answers.lock().unwrap();
            let answer = match query.contains("watch=true") {
                true => answers.watch.clone(),
                false => answers.list.clone(),
            };
            answers.asked.push(query);
            async move {
                let Some((status, body)) = answer else { return std::future::pending().await };
                let body = Body::from(body.into_bytes());
                Ok::<_, tower::BoxError>(http::Response::builder().status(status).body(body)?)
            }
        });
        Client::of(kube::Client::new(service, "pool"), "pool")
    }

    async fn until(
        receiver: &mut watch::Receiver<Endpoints>,
        wanted: impl Fn(&Endpoints) -> bool,
    ) -> Endpoints {
        receiver.wait_for(|state| wanted(state)).await.unwrap().clone()
    }

    fn problem(state: &Endpoints) -> String {
        state.problem.as_ref().map_or_else(String::new, ToString::to_string)
    }

    #[tokio::test(start_paused = true)]
    async fn rights_that_are_missing_are_named_until_they_are_there() {
        let answers = Arc::new(Mutex::new(Answers::default()));
        answers.lock().unwrap().list = refusal(403, "no");
        let mut receiver = played(&answers).watch_endpoints("pool", "waypoint");
        let state = until(&mut receiver, |state| state.problem.is_some()).await;
        let rule = |verb: &str| format!("needs `{verb}` on `endpointslices` in namespace pool");
        assert!(problem(&state).contains(&rule("list")), "{}", problem(&state));
        assert_eq!(state.list, None);

        let (one, two) = (
            slice("IPv4", json!([pod("a", "10.0.0.1", None)])),
            slice("IPv4", json!([pod("a", "10.0.0.1", None), pod("b", "10.0.0.2", None)])),
        );
        let count = |state: &Endpoints| state.list.as_ref().map(|list| list.len());
        {
            let mut answers = answers.lock().unwrap();
            answers.list = list(&[&one]);
            answers.watch = refusal(403, "no");
        }
        let state = until(&mut receiver, |state| problem(state).contains(&rule("watch"))).await;
        assert_eq!(count(&state), Some(1));
        // Without the right it is listed again and again, and the problem is the same all the time.
        answers.lock().unwrap().list = list(&[&two]);
        let state = until(&mut receiver, |state| count(state) == Some(2)).await;
        assert!(problem(&state).contains(&rule("watch")), "{}", problem(&state));

        answers.lock().unwrap().watch = None;
        answers.lock().unwrap().list = list(&[&one]);
        until(&mut receiver, |state| count(state) == Some(1)).await;
        answers.lock().unwrap().watch = event("MODIFIED", json!(two));
        let state = until(&mut receiver, |state| state.problem.is_none()).await;
        assert!(count(&state) >= Some(1));
        until(&mut receiver, |state| count(state) == Some(2)).await;
        let asked = answers.lock().unwrap().asked.join("\n");
        assert!(asked.contains("labelSelector=kubernetes.io%2Fservice-name%3Dwaypoint"), "{asked}");
        assert!(asked.contains("resourceVersion=7"), "{asked}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_stays_while_the_watch_fails_and_a_version_that_is_gone_is_no_problem() {
        let answers = Arc::new(Mutex::new(Answers::default()));
        let one = slice("IPv4", json!([pod("a", "10.0.0.1", Some(true))]));
        {
            let mut answers = answers.lock().unwrap();
            answers.list = list(&[&one]);
            answers.watch = event(
                "ERROR",
                json!({ "code": 410, "status": "Failure", "message": "old", "reason": "Expired" }),
            );
        }
        let mut receiver = played(&answers).watch_endpoints("pool", "waypoint");
        until(&mut receiver, |state| state.list.is_some()).await;
        while answers.lock().unwrap().asked.len() < 6 {
            tokio::time::sleep(PAUSE).await;
            assert_eq!(problem(&receiver.borrow()), "");
        }
        answers.lock().unwrap().watch = event(
            "ERROR",
            json!({ "code": 500, "status": "Failure", "message": "broken", "reason": "InternalError" }),
        );
        let state = until(&mut receiver, |state| state.problem.is_some()).await;
        assert!(problem(&state).contains("watch endpointslices in namespace pool: status 500"));
        assert_eq!(state.list.unwrap().len(), 1);
        answers.lock().unwrap().watch = event("DELETED", json!(one));
        let gone =
            until(&mut receiver, |state| state.list.as_ref().is_some_and(|list| list.is_empty()))
                .await;
        assert_eq!(problem(&gone), "");
    }
}

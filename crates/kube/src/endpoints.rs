//! Who is behind a Service, followed as it changes.

use crate::Cause;
use crate::client::Client;
use crate::error::{Error, Request, chain};
use futures::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// Endpoints that are kept of one Service; what is beyond is counted.
pub const MAX_ENDPOINTS: usize = 10_000;
/// Slices of one Service; each has at most 1,000 endpoints, and usually 100.
const MAX_SLICES: usize = 2_000;
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

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
    /// Follows the endpoints of a Service until nobody listens.
    pub fn watch_endpoints(&self, namespace: &str, service: &str) -> watch::Receiver<Endpoints> {
        let (sender, receiver) = watch::channel(Endpoints::default());
        let api = self.api::<EndpointSlice>(namespace);
        let config = watcher::Config::default().labels(&format!("{SERVICE_LABEL}={service}"));
        let namespace = namespace.to_owned();
        tokio::spawn(async move {
            tokio::select! {
                () = follow(watcher(api, config).default_backoff(), &namespace, &sender) => {}
                () = sender.closed() => {}
            }
        });
        receiver
    }
}

async fn follow(
    events: impl futures::Stream<Item = watcher::Result<Event<EndpointSlice>>>,
    namespace: &str,
    sender: &watch::Sender<Endpoints>,
) {
    let mut events = std::pin::pin!(events);
    let mut slices = BTreeMap::new();
    let mut listed = BTreeMap::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => {
                listed.clear();
                continue;
            }
            Ok(Event::InitApply(slice)) => {
                keep(&mut listed, slice);
                continue;
            }
            Ok(Event::InitDone) => slices = std::mem::take(&mut listed),
            Ok(Event::Apply(slice)) => keep(&mut slices, slice),
            Ok(Event::Delete(slice)) => {
                slices.remove(&slice.metadata.name.unwrap_or_default());
            }
            Err(error) => {
                let error = failed(&error, namespace);
                sender.send_modify(|state| state.problem = Some(Arc::new(error)));
                continue;
            }
        }
        let (list, dropped) = merge(slices.values());
        sender.send_replace(Endpoints { list: Some(list.into()), dropped, problem: None });
    }
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

fn failed(error: &watcher::Error, namespace: &str) -> Error {
    let request = |verb| Request {
        verb,
        group: "discovery.k8s.io".to_owned(),
        resource: "endpointslices".to_owned(),
        namespace: namespace.to_owned(),
        name: String::new(),
    };
    match error {
        watcher::Error::InitialListFailed(error) => Error::new(request("list"), error),
        watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
            Error::new(request("watch"), error)
        }
        watcher::Error::WatchError(status) => Error::answered(request("watch"), status),
        other => Error { request: request("watch"), cause: Cause::Unreadable(chain(other)) },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

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

    #[tokio::test]
    async fn a_list_stays_while_the_watch_fails() {
        let (sender, receiver) = watch::channel(Endpoints::default());
        let one = slice("IPv4", json!([pod("a", "10.0.0.1", Some(true))]));
        let events = vec![
            Ok(Event::Init),
            Ok(Event::InitApply(one.clone())),
            Ok(Event::InitDone),
            Err(watcher::Error::NoResourceVersion),
        ];
        follow(futures::stream::iter(events), "pool", &sender).await;
        let state = receiver.borrow().clone();
        assert_eq!(state.list.unwrap().len(), 1);
        assert!(state.problem.unwrap().to_string().contains("endpointslices in namespace pool"));
        follow(
            futures::stream::iter(vec![Ok(Event::Apply(one.clone())), Ok(Event::Delete(one))]),
            "pool",
            &sender,
        )
        .await;
        assert_eq!(receiver.borrow().list.as_ref().unwrap().len(), 0);
    }
}

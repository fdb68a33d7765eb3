//! The discovery service: one task per stream, as istiod has it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use cairn_proto::envoy::envoy::config::core::v3::Node;
use cairn_proto::envoy::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use cairn_proto::envoy::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use cairn_proto::envoy::google::protobuf::value::Kind as ValueKind;
use cairn_proto::envoy::google::protobuf::{Any, Value};
use cairn_proto::prost::Message;
use cairn_proto::tonic::{Request, Response, Status, Streaming, async_trait};
use cairn_proto::workload::{ADDRESS_TYPE_URL, Address, Workload, address};
use cairn_xds::feed::Kind;
use futures::Stream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;

use super::record::Asked;
use super::registration::{Entry, Registered};
use super::world::{Caller, Event, Shared, World};

/// So many answers may be unread.
const MAX_UNREAD: usize = 1024;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
pub(super) struct Discovery {
    pub shared: Arc<Shared>,
}

#[async_trait]
impl AggregatedDiscoveryService for Discovery {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("a waypoint speaks the delta protocol"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
        let identity =
            self.shared.authenticate(&caller, request.metadata(), "authentication failure")?;
        if let Some(status) = self.shared.world.lock().unwrap().refuse.clone() {
            return Err(status);
        }
        let number = {
            let mut record = self.shared.record.lock().unwrap();
            record.streams.push(identity.clone());
            record.streams.len() - 1
        };
        let (out, mut answers) = mpsc::channel(MAX_UNREAD);
        let talk = Talk {
            shared: Arc::clone(&self.shared),
            number,
            identity,
            watches: BTreeMap::new(),
            held: Vec::new(),
            out,
            introduced: false,
            registered: None,
        };
        tokio::spawn(talk.run(request.into_inner()));
        let answers = futures::stream::poll_fn(move |cx| answers.poll_recv(cx));
        Ok(Response::new(Box::pin(answers)))
    }
}

/// One stream.
struct Talk {
    shared: Arc<Shared>,
    number: usize,
    identity: String,
    watches: BTreeMap<String, Watch>,
    held: Vec<(Kind, DeltaDiscoveryResponse)>,
    out: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    introduced: bool,
    /// Of a stream that registers: dropped with it.
    registered: Option<Registered>,
}

/// What a client wants of one type.
#[derive(Default)]
struct Watch {
    wildcard: bool,
    names: BTreeSet<String>,
    nonce: String,
}

/// The stream is over; an error is what the client is told.
type Over = Option<Status>;

impl Talk {
    async fn run(mut self, mut requests: Streaming<DeltaDiscoveryRequest>) {
        let mut events = self.shared.events();
        let over = loop {
            let step = tokio::select! {
                biased;
                request = requests.message() => match request {
                    Ok(Some(request)) => self.request(request),
                    Ok(None) | Err(_) => Err(None),
                },
                event = events.recv() => match event {
                    Ok(event) => self.event(event),
                    Err(RecvError::Closed) => Err(None),
                    Err(RecvError::Lagged(_)) => Err(Some(Status::internal("too slow"))),
                },
                () = self.out.closed() => Err(None),
            };
            if let Err(over) = step {
                break over;
            }
        };
        if let Some(status) = over {
            // The client may be gone already.
            let _ = self.out.send(Err(status)).await;
        }
    }

    fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Over> {
        let asked = Asked {
            stream: self.number,
            type_url: request.type_url.clone(),
            subscribe: request.resource_names_subscribe.clone(),
            unsubscribe: request.resource_names_unsubscribe.clone(),
            versions: request.initial_resource_versions.clone().into_iter().collect(),
            nonce: request.response_nonce.clone(),
            error: request.error_detail.as_ref().map(|e| (e.code, e.message.clone())),
        };
        self.shared.record.lock().unwrap().requests.push(asked.clone());
        if !self.introduced {
            let node =
                request.node.ok_or(Some(Status::invalid_argument("missing node information")))?;
            self.introduce(node)?;
        }
        let Asked { type_url, subscribe, unsubscribe, versions, nonce, error, .. } = asked;
        if error.is_some() {
            return Ok(());
        }
        let Some(watch) = self.watches.get_mut(&type_url) else {
            let mut watch = Watch::default();
            watch.names.extend(subscribe.iter().chain(versions.keys()).cloned());
            for name in &unsubscribe {
                watch.names.remove(name);
            }
            watch.wildcard = watch.names.remove("*") || subscribe.is_empty();
            self.watches.insert(type_url.clone(), watch);
            self.respond(&type_url, &subscribe, &versions);
            if type_url == Kind::Cluster.type_url() {
                self.force_endpoints();
            }
            return Ok(());
        };
        if !nonce.is_empty() && nonce != watch.nonce {
            return Ok(());
        }
        let before = watch.names.clone();
        watch.names.extend(subscribe.iter().cloned());
        for name in &unsubscribe {
            watch.names.remove(name);
        }
        let changed = watch.names != before;
        if nonce.is_empty() != changed {
            let violation = format!("{type_url}: nonce {nonce:?}, +{subscribe:?} -{unsubscribe:?}");
            self.shared.record.lock().unwrap().violations.push(violation);
        }
        if changed && !subscribe.is_empty() {
            self.respond(&type_url, &subscribe, &versions);
        }
        Ok(())
    }

    /// istiod (`xds/auth.go`): namespace and account of the node must be the caller's.
    fn introduce(&mut self, node: Node) -> Result<(), Over> {
        self.introduced = true;
        let text = |name: &str| -> String {
            let value = node.metadata.as_ref().and_then(|metadata| metadata.fields.get(name));
            match value {
                Some(Value { kind: Some(ValueKind::StringValue(text)) }) => text.clone(),
                _ => String::new(),
            }
        };
        let (namespace, account) = (text("NAMESPACE"), text("SERVICE_ACCOUNT"));
        let matches = self.identity.contains(&format!("/ns/{namespace}/sa/"))
            && (account.is_empty() || self.identity.ends_with(&format!("/sa/{account}")));
        let group = text("AUTO_REGISTER_GROUP");
        let address = text("INSTANCE_IPS").split(',').next().and_then(|ip| ip.parse().ok());
        let known = node.id.starts_with("waypoint~") && node.id.split('~').count() == 4;
        self.shared.record.lock().unwrap().nodes.push(node);
        if !known {
            return Err(Some(Status::invalid_argument(
                "invalid node type (valid types: [sidecar router waypoint ztunnel])",
            )));
        }
        if !matches {
            return Err(Some(Status::permission_denied(format!(
                "authorization failed: no identities ([{}]) matched {namespace}/{account}",
                self.identity
            ))));
        }
        if let Some(address) = address.filter(|_| !group.is_empty()) {
            let entry = Entry { group, namespace, account, address };
            self.registered = Some(Registered::begin(&self.shared, &entry));
        }
        Ok(())
    }

    /// Answers a request of a client.
    fn respond(
        &mut self,
        type_url: &str,
        subscribed: &[String],
        versions: &BTreeMap<String, String>,
    ) {
        let Some(watch) = self.watches.get(type_url) else { return };
        let world = self.shared.world.lock().unwrap();
        let lookup = type_url == ADDRESS_TYPE_URL;
        let Some(kind) = Kind::from_type_url(type_url).or(lookup.then_some(Kind::Workload)) else {
            return;
        };
        let mut removed: BTreeSet<String> = BTreeSet::new();
        let mut resources: Vec<Resource> = Vec::new();
        if watch.wildcard {
            resources.extend(world.all(kind).cloned());
            removed.extend(subscribed.iter().chain(versions.keys()).cloned());
        } else {
            removed.extend(subscribed.iter().cloned());
            for name in subscribed {
                resources.extend(find(&world, kind, name));
            }
        }
        drop(world);
        removed.remove("*");
        for resource in &resources {
            removed.remove(&resource.name);
            for alias in aliases(kind, resource) {
                removed.remove(&alias);
            }
        }
        let mut removed: Vec<String> = removed.into_iter().collect();
        if kind == Kind::Workload {
            resources.retain(|one| {
                one.version.is_empty() || versions.get(&one.name) != Some(&one.version)
            });
        }
        if kind == Kind::ExtensionConfig {
            removed.clear();
        }
        if lookup {
            resources = resources.into_iter().map(as_address).collect();
        }
        self.send(kind, type_url, resources, removed);
    }

    /// istiod pushes EDS after each first CDS request if EDS was asked for before.
    fn force_endpoints(&mut self) {
        let type_url = Kind::Endpoints.type_url();
        if let Some(watch) = self.watches.get(type_url) {
            let names: Vec<String> = watch.names.iter().cloned().collect();
            self.respond(type_url, &names, &BTreeMap::new());
        }
    }

    fn event(&mut self, event: Event) -> Result<(), Over> {
        match event {
            Event::Push { kind, changed, removed } => self.push(kind, &changed, &removed),
            Event::Release(kind) => {
                let (released, held) =
                    std::mem::take(&mut self.held).into_iter().partition(|(of, _)| *of == kind);
                self.held = held;
                let released: Vec<(Kind, DeltaDiscoveryResponse)> = released;
                for (_, response) in released {
                    self.put(response);
                }
            }
            Event::End(status) => return Err(Some(status)),
            Event::Finish => return Err(None),
        }
        Ok(())
    }

    fn push(&mut self, kind: Kind, changed: &[Resource], removed: &[String]) {
        let lookup = (kind == Kind::Workload).then_some(ADDRESS_TYPE_URL);
        for type_url in [Some(kind.type_url()), lookup].into_iter().flatten() {
            let Some(watch) = self.watches.get(type_url) else { continue };
            let watched = |resource: &&Resource| {
                watch.wildcard
                    || watch.names.contains(&resource.name)
                    || aliases(kind, resource).iter().any(|alias| watch.names.contains(alias))
            };
            let mut resources: Vec<Resource> = changed.iter().filter(watched).cloned().collect();
            let removed: Vec<String> = removed
                .iter()
                .filter(|name| watch.wildcard || watch.names.contains(*name))
                .filter(|_| kind != Kind::ExtensionConfig)
                .cloned()
                .collect();
            if resources.is_empty() && removed.is_empty() {
                continue;
            }
            if type_url == ADDRESS_TYPE_URL {
                resources = resources.into_iter().map(as_address).collect();
            }
            self.send(kind, type_url, resources, removed);
        }
    }

    fn send(
        &mut self,
        kind: Kind,
        type_url: &str,
        resources: Vec<Resource>,
        removed_resources: Vec<String>,
    ) {
        let nonce = self.shared.nonce();
        let response = DeltaDiscoveryResponse {
            system_version_info: format!("version-of-{nonce}"),
            type_url: type_url.to_owned(),
            resources,
            removed_resources,
            nonce,
            ..DeltaDiscoveryResponse::default()
        };
        if self.shared.world.lock().unwrap().held.contains(&kind) {
            self.held.push((kind, response));
        } else {
            self.put(response);
        }
    }

    fn put(&mut self, response: DeltaDiscoveryResponse) {
        if let Some(watch) = self.watches.get_mut(&response.type_url) {
            watch.nonce.clone_from(&response.nonce);
        }
        // A client that is gone, or reads nothing, gets nothing.
        let _ = self.out.try_send(Ok(response));
    }
}

fn find(world: &World, kind: Kind, name: &str) -> Vec<Resource> {
    match world.get(kind, name) {
        Some(resource) => vec![resource.clone()],
        None => world
            .all(kind)
            .filter(|resource| aliases(kind, resource).iter().any(|alias| alias == name))
            .map(|resource| Resource { aliases: aliases(kind, resource), ..resource.clone() })
            .collect(),
    }
}

/// `network/ip` of each address of a workload.
fn aliases(kind: Kind, resource: &Resource) -> Vec<String> {
    let Some(body) = resource.resource.as_ref().filter(|_| kind == Kind::Workload) else {
        return Vec::new();
    };
    let Ok(workload) = Workload::decode(body.value.as_slice()) else { return Vec::new() };
    let address = |bytes: &[u8]| -> Option<IpAddr> {
        <[u8; 4]>::try_from(bytes)
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
            .ok()
    };
    workload
        .addresses
        .iter()
        .filter_map(|bytes| address(bytes))
        .map(|address| format!("{}/{address}", workload.network))
        .collect()
}

/// The same workload as `istio.workload.Address`.
fn as_address(mut resource: Resource) -> Resource {
    if let Some(body) = &resource.resource
        && let Ok(workload) = Workload::decode(body.value.as_slice())
    {
        let address = Address { r#type: Some(address::Type::Workload(workload)) };
        let type_url = ADDRESS_TYPE_URL.to_owned();
        resource.resource = Some(Any { type_url, value: address.encode_to_vec() });
    }
    resource
}

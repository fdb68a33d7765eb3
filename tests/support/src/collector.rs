//! A collector of spans and logs: OpenTelemetry by gRPC, and what any backend got by HTTP.

use crate::backend::Recorded;
use cairn_proto::opentelemetry::proto::collector::logs::v1 as logs;
use cairn_proto::opentelemetry::proto::collector::trace::v1 as trace;
use cairn_proto::opentelemetry::proto::common::v1::{KeyValue, any_value::Value};
use cairn_proto::prost::Message;
use cairn_proto::tonic::service::Routes;
use cairn_proto::tonic::{self, Request, Response, Status};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use logs::logs_service_server::{LogsService, LogsServiceServer};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tower::ServiceExt;
use trace::trace_service_server::{TraceService, TraceServiceServer};

/// A span as a collector sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// 16 or 32 hexadecimal digits.
    pub trace: String,
    /// 16 hexadecimal digits.
    pub id: String,
    /// 16 hexadecimal digits, or nothing.
    pub parent: String,
    /// Its name.
    pub name: String,
    /// `server` or `client`.
    pub kind: &'static str,
    /// Attributes or tags.
    pub tags: BTreeMap<String, String>,
    /// Names of events or annotations.
    pub events: Vec<String>,
    /// `service.name`, or the name of the local endpoint.
    pub service: String,
    /// Other attributes of the resource.
    pub resource: BTreeMap<String, String>,
    /// It is marked as failed.
    pub failed: bool,
    /// Nanoseconds that it took.
    pub nanos: u64,
}

impl Seen {
    /// A tag, or nothing.
    pub fn tag(&self, name: &str) -> &str {
        self.tags.get(name).map_or("", String::as_str)
    }
}

/// A gRPC server of its own port; clones are the same one.
#[derive(Clone)]
pub struct Collector {
    /// Where it listens, in plaintext.
    pub addr: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    spans: Mutex<Vec<Seen>>,
    logs: Mutex<Vec<logs::ResourceLogs>>,
    metadata: Mutex<Vec<tonic::metadata::MetadataMap>>,
    calls: AtomicU64,
    refusing: AtomicBool,
}

#[derive(Clone)]
struct Service(Arc<State>);

impl State {
    fn call<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.metadata.lock().unwrap().push(request.metadata().clone());
        match self.refusing.load(Ordering::SeqCst) {
            true => Err(Status::resource_exhausted("told to")),
            false => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<trace::ExportTraceServiceRequest>,
    ) -> Result<Response<trace::ExportTraceServiceResponse>, Status> {
        self.0.call(&request)?;
        self.0.spans.lock().unwrap().extend(of_otlp(request.into_inner()));
        Ok(Response::new(trace::ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Service {
    async fn export(
        &self,
        request: Request<logs::ExportLogsServiceRequest>,
    ) -> Result<Response<logs::ExportLogsServiceResponse>, Status> {
        self.0.call(&request)?;
        self.0.logs.lock().unwrap().extend(request.into_inner().resource_logs);
        Ok(Response::new(logs::ExportLogsServiceResponse::default()))
    }
}

impl Collector {
    /// Listens on a port of its own.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let routes = Routes::new(TraceServiceServer::new(Service(state.clone())))
            .add_service(LogsServiceServer::new(Service(state.clone())));
        tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                let routes = routes.clone();
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let routes = routes.clone();
                    async move {
                        let answer = routes.oneshot(request.map(tonic::body::Body::new)).await;
                        Ok::<_, Infallible>(answer.unwrap())
                    }
                });
                tokio::spawn(async move {
                    let server = http2::Builder::new(TokioExecutor::new());
                    let _over = server.serve_connection(TokioIo::new(io), service).await;
                });
            }
        });
        Collector { addr, state }
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Seen> {
        self.state.spans.lock().unwrap().clone()
    }

    /// All logs so far.
    pub fn logs(&self) -> Vec<logs::ResourceLogs> {
        self.state.logs.lock().unwrap().clone()
    }

    /// Calls so far, refused ones with them.
    pub fn calls(&self) -> u64 {
        self.state.calls.load(Ordering::SeqCst)
    }

    /// A field of the last call's metadata.
    pub fn metadata(&self, name: &str) -> Option<String> {
        let all = self.state.metadata.lock().unwrap();
        Some(all.last()?.get(name)?.to_str().unwrap().to_owned())
    }

    /// From here on every call is refused, or no longer.
    pub fn refuse(&self, refuse: bool) {
        self.state.refusing.store(refuse, Ordering::SeqCst);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |attribute: KeyValue| match attribute.value.unwrap().value {
        Some(Value::StringValue(text)) => (attribute.key, text),
        other => panic!("no text: {other:?}"),
    };
    let count = attributes.len();
    let map: BTreeMap<_, _> = attributes.into_iter().map(text).collect();
    assert_eq!(map.len(), count, "an attribute comes twice");
    map
}

/// The spans of an OTLP message.
pub fn of_otlp(request: trace::ExportTraceServiceRequest) -> Vec<Seen> {
    let mut seen = Vec::new();
    for all in request.resource_spans {
        let mut resource = texts(all.resource.unwrap_or_default().attributes);
        let service = resource.remove("service.name").unwrap_or_default();
        for span in all.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            seen.push(Seen {
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                name: span.name,
                kind: match span.kind {
                    2 => "server",
                    3 => "client",
                    other => panic!("kind {other}"),
                },
                tags: texts(span.attributes),
                events: span.events.into_iter().map(|event| event.name).collect(),
                service: service.clone(),
                resource: resource.clone(),
                failed: span.status.is_some_and(|status| status.code == 2),
                nanos: span.end_time_unix_nano - span.start_time_unix_nano,
            });
        }
    }
    seen
}

/// The spans of an OTLP message by HTTP.
pub fn of_otlp_http(request: &Recorded) -> Vec<Seen> {
    assert_eq!(request.headers.get("content-type"), Some("application/x-protobuf"));
    of_otlp(trace::ExportTraceServiceRequest::decode(request.body.clone()).unwrap())
}

/// The spans of a message in Zipkin's JSON.
pub fn of_zipkin(request: &Recorded) -> Vec<Seen> {
    assert_eq!(request.headers.get("content-type"), Some("application/json"));
    let list: Vec<serde_json::Value> = serde_json::from_slice(&request.body).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    list.iter()
        .map(|span| {
            let tags: BTreeMap<String, String> = span["tags"]
                .as_object()
                .unwrap()
                .iter()
                .map(|(name, value)| (name.clone(), text(value)))
                .collect();
            Seen {
                trace: text(&span["traceId"]),
                id: text(&span["id"]),
                parent: text(&span["parentId"]),
                name: text(&span["name"]),
                kind: if span["kind"] == "SERVER" { "server" } else { "client" },
                failed: tags.get("error").is_some_and(|error| error == "true"),
                tags,
                events: span["annotations"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|event| text(&event["value"]))
                    .collect(),
                service: text(&span["localEndpoint"]["serviceName"]),
                resource: BTreeMap::new(),
                nanos: span["duration"].as_u64().unwrap() * 1000,
            }
        })
        .collect()
}

//! A waypoint in this process, started through the product's public door.

use crate::app::App;
use crate::config::MeshSpec;
use crate::hbone_client::{ConnectFailure, HboneClient};
use crate::metrics::{Sample, parse, sum};
use crate::pki::{Cert, CertDir, uris};
use cairn_hbone::Tunnel;
use cairn_identity::TrustDomains;
use cairn_identity::files::{self, FileSource, FileWatch};
pub use cairn_proxy::{
    DrainPlan, Drained, InFlight, Limits, MeshInstance, Overload, OverloadConfig,
};
use cairn_proxy::{InstanceConfig, Placement, Running, Workers, listen};
use cairn_router::compile::Compiler;
use cairn_telemetry::Telemetry;
use cairn_xds::{Config, Format, MeshConfig, parse_bytes};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often certificate files are looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Workers and metrics, which all meshes of a process share.
#[derive(Clone)]
pub struct Process {
    workers: Arc<Workers>,
    telemetry: Arc<Telemetry>,
}

/// One mesh that is served on an ephemeral port of 127.0.0.1.
pub struct Waypoint {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Who it is: the URI SAN of its first certificate.
    pub id: String,
    name: String,
    process: Process,
    certs: CertDir,
    watch: FileWatch,
    instance: Arc<MeshInstance>,
    compiler: Mutex<Compiler>,
    running: Running,
}

impl Process {
    /// With so many worker threads; tunnels stay on the thread of their connection.
    pub fn start(threads: usize) -> Self {
        Self::start_placed(threads, Placement::Local)
    }

    /// With tunnels on all threads in turn.
    pub fn start_spread(threads: usize) -> Self {
        Self::start_placed(threads, Placement::Spread)
    }

    fn start_placed(threads: usize, placement: Placement) -> Self {
        let workers = Arc::new(Workers::start(threads, placement).unwrap());
        Process { workers, telemetry: Telemetry::new(threads) }
    }

    /// The metrics page.
    pub fn metrics(&self) -> Vec<Sample> {
        parse(&self.telemetry.render(false))
    }

    /// Serves one more mesh.
    pub async fn add(&self, certs: CertDir, spec: &MeshSpec) -> Waypoint {
        self.add_tuned(certs, spec, |_| {}, |_| {}).await
    }

    /// Serves one more mesh, with bounds that no configuration sets, and prepared before it listens.
    pub async fn add_tuned(
        &self,
        certs: CertDir,
        spec: &MeshSpec,
        tune: impl FnOnce(&mut Limits),
        prepare: impl FnOnce(&MeshInstance),
    ) -> Waypoint {
        let MeshConfig { name, listen: address, trust_domains, limits: bounds, .. } = &config(spec);
        let source = FileSource {
            cert: certs.cert(),
            key: certs.key(),
            roots: certs.roots(),
            trust_domains: match trust_domains.as_slice() {
                [] => None,
                domains => Some(TrustDomains::new(domains.iter().cloned()).unwrap()),
            },
        };
        let identity = files::load(&source).await.unwrap();
        let watch = files::watch(source, identity.clone(), LOOK);
        let mut limits = limits(bounds);
        tune(&mut limits);
        let settings = InstanceConfig { name: name.clone(), listen: *address, limits };
        let instance = MeshInstance::new(settings, identity, self.telemetry.clone());
        prepare(&instance);
        let leaf = CertificateDer::from_pem_file(certs.cert()).unwrap();
        let mut compiler = Compiler::new(name);
        publish(&instance, &mut compiler, spec);
        let running = listen(instance.clone(), &self.workers).await.unwrap();
        Waypoint {
            addr: running.local_addr,
            id: uris(&leaf).pop().unwrap(),
            name: name.clone(),
            process: self.clone(),
            certs,
            watch,
            instance,
            compiler: Mutex::new(compiler),
            running,
        }
    }
}

/// What the file source makes of it.
fn config(spec: &MeshSpec) -> MeshConfig {
    let nowhere =
        json!({ "files": { "cert": "/nowhere", "key": "/nowhere", "roots": "/nowhere" } });
    let mesh = spec.mesh(json!({ "listen": "127.0.0.1:0", "identity": nowhere }));
    let text = json!({ "meshes": [mesh] }).to_string();
    match parse_bytes(Format::Json, text.as_bytes()) {
        Ok(Config { mut meshes, .. }) => meshes.pop().unwrap(),
        Err(errors) => panic!("the configuration is refused: {errors:#?}"),
    }
}

fn publish(instance: &MeshInstance, compiler: &mut Compiler, spec: &MeshSpec) {
    match compiler.compile(config(spec).resources()) {
        Ok(mesh) => drop(instance.publish(mesh)),
        Err(errors) => panic!("the resources are refused: {errors:#?}"),
    }
}

/// What is wrong with it, as one text; empty when nothing is.
pub fn refusal(spec: &MeshSpec) -> String {
    match Compiler::new("test").compile(config(spec).resources()) {
        Ok(_) => String::new(),
        Err(errors) => format!("{errors:?}"),
    }
}

/// The bounds that tests set.
fn limits(configured: &cairn_xds::Limits) -> Limits {
    fn set<T, U>(place: &mut T, value: Option<U>, convert: impl FnOnce(U) -> T) {
        if let Some(value) = value {
            *place = convert(value);
        }
    }
    let configured = configured.clone();
    let mut limits = Limits::default();
    set(&mut limits.max_connections, configured.max_connections, |n| n);
    set(&mut limits.max_request_head, configured.max_request_headers_kib, |n| n as usize * 1024);
    set(&mut limits.max_request_headers, configured.max_request_headers, |n| n as usize);
    set(&mut limits.max_response_head, configured.max_response_headers_kib, |n| n as usize * 1024);
    set(&mut limits.max_response_headers, configured.max_response_headers, |n| n as usize);
    set(&mut limits.request_head_timeout, configured.request_head_timeout, |t| t);
    set(&mut limits.detect_timeout, configured.detection_timeout, |t| t);
    set(&mut limits.http_idle_timeout, configured.http_idle_timeout, |t| t);
    set(&mut limits.tcp_idle_timeout, configured.tcp_idle_timeout, |t| t);
    set(&mut limits.max_inner_streams, configured.max_inner_streams, |n| n);
    set(&mut limits.max_requests_in_flight, configured.max_requests_in_flight, |n| n);
    set(&mut limits.max_replay, configured.max_replay, |n| n);
    set(&mut limits.max_mirrors, configured.max_mirrors, |n| n);
    set(&mut limits.max_idle_per_endpoint, configured.max_idle_per_endpoint, |n| n);
    set(&mut limits.max_upstream_streams, configured.max_upstream_streams, |n| n as usize);
    set(&mut limits.terminator.handshake_timeout, configured.handshake_timeout, |t| t);
    set(&mut limits.terminator.keepalive_interval, configured.keepalive_interval, |t| t);
    set(&mut limits.terminator.keepalive_timeout, configured.keepalive_timeout, |t| t);
    set(&mut limits.max_requests_in_flight, configured.max_requests_in_flight, |n| n);
    let originator = &mut limits.originator;
    set(&mut originator.max_connections_per_peer, configured.pool_max_connections, |n| n as usize);
    set(&mut originator.keepalive_interval, configured.keepalive_interval, |t| t);
    set(&mut originator.keepalive_timeout, configured.keepalive_timeout, |t| t);
    set(&mut originator.max_streams_per_connection, configured.pool_max_streams, |n| n as usize);
    set(&mut originator.idle_timeout, configured.pool_idle_timeout, |t| t);
    limits
}

impl Waypoint {
    /// In a process of its own with one worker.
    pub async fn start(cert: &Cert, spec: &MeshSpec) -> Self {
        Self::start_on(CertDir::plain(cert), spec, 1).await
    }

    /// In a process of its own, with certificates that the test will change.
    pub async fn start_on(certs: CertDir, spec: &MeshSpec, workers: usize) -> Self {
        Process::start(workers).add(certs, spec).await
    }

    /// Its certificate files.
    pub fn certs(&mut self) -> &mut CertDir {
        &mut self.certs
    }

    /// Sets of certificate files that were refused.
    pub fn refused_reloads(&self) -> u64 {
        self.watch.status().refused
    }

    /// Makes `spec` what it serves.
    pub fn apply(&self, spec: &MeshSpec) {
        publish(&self.instance, &mut self.compiler.lock().unwrap(), spec);
    }

    /// Compiles `spec`, and gives what will make it what is served.
    pub fn publication(&self, spec: &MeshSpec) -> impl Fn() + Send + Sync + 'static {
        let compiled = self.compiler.lock().unwrap().compile(config(spec).resources());
        let mesh =
            compiled.unwrap_or_else(|errors| panic!("the resources are refused: {errors:#?}"));
        let instance = self.instance.clone();
        move || drop(instance.publish(mesh.clone()))
    }

    /// Is told of addresses whose identity is missing.
    pub fn ask_for_identities(&self, ask: impl Fn(IpAddr) + Send + Sync + 'static) {
        self.instance.set_identity_wait(Arc::new(ask));
    }

    /// What is counted and logged.
    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.process.telemetry
    }

    /// Serves CONNECTs for `authority` by an application of this process.
    pub fn serve_locally(&self, authority: &str, app: impl Into<App>) {
        let app = app.into();
        let handler = move |tunnel: Tunnel| {
            let app = app.clone();
            tokio::spawn(async move { app.serve(tunnel.stream).await });
        };
        self.instance.add_local(authority, Arc::new(handler));
    }

    /// A client that must be accepted.
    pub async fn connect(&self, cert: &Cert) -> HboneClient {
        self.try_connect(cert)
            .await
            .unwrap_or_else(|failure| panic!("{} is refused: {failure:?}", cert.id))
    }

    /// A client.
    pub async fn try_connect(&self, cert: &Cert) -> Result<HboneClient, ConnectFailure> {
        HboneClient::connect(self.addr, cert, &self.id).await
    }

    /// A metric of this mesh: the sum of all its series that have these labels.
    pub fn counter(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let mut all = vec![("mesh", self.name.as_str())];
        all.extend_from_slice(labels);
        sum(&self.metrics(), name, &all) as u64
    }

    /// One of Istio's metrics, which do not name the mesh: the sum of all series that have these labels.
    pub fn istio(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        sum(&self.metrics(), name, labels) as u64
    }

    /// The metrics page.
    pub fn metrics(&self) -> Vec<Sample> {
        self.process.metrics()
    }

    /// The mesh.
    pub fn instance(&self) -> &Arc<MeshInstance> {
        &self.instance
    }

    /// What is served.
    pub fn running(&self) -> &Running {
        &self.running
    }

    /// Drains for up to `limit`; returns how much had to be cut.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.running.drain(limit).await.cut
    }
}

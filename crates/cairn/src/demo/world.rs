//! Everything that the demo runs: certificates, pods, the waypoint, clients.

use super::backend::Backend;
use super::client::Client;
use super::pod::Pod;
use super::scenes::service;
use crate::admin::Admin;
use crate::certs::{IdentityFiles, write_identity};
use crate::failure::Failure;
use crate::fleet::{Fleet, NewMesh, StartError};
use crate::load::{Configured, LoadSettings};
use crate::logging::Logging;
use crate::ready::Readiness;
use crate::terminal::say;
use cairn_identity::dev::{DevCa, IssueOptions};
use cairn_identity::{Identity, SpiffeId};
use cairn_proxy::{Placement, Workers};
use cairn_router::spec::Resources;
use cairn_telemetry::Telemetry;
use cairn_xds::{Format, IdentityConfig, MeshConfig};
use std::collections::HashMap;
use std::fmt::Display;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// What the waypoint runs.
const CONFIG: &[u8] = include_bytes!("../../../../config/demo.yaml");
/// Threads of the waypoint.
const WORKERS: usize = 2;

/// Pods by the addresses that the configuration gives them.
mod pod {
    use std::net::{IpAddr, Ipv4Addr};

    pub const V1: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 11));
    pub const V2: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 12));
    pub const BROKEN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 13));
    pub const GONE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 14));
}

/// The running demo. Certificate files are removed when it is dropped.
pub struct World {
    /// HBONE of the waypoint.
    pub waypoint: SocketAddr,
    /// Who the waypoint is.
    pub waypoint_id: SpiffeId,
    /// Who the pods are.
    pub app_id: SpiffeId,
    /// A client that may.
    pub web: Client,
    /// A client that may not.
    pub visitor: Client,
    /// The application that answers 503.
    pub broken: Arc<Backend>,
    /// Admin pages.
    pub admin: SocketAddr,
    /// Metrics.
    pub metrics: SocketAddr,
    /// Told when `/quitquitquit` was asked for.
    pub quit: Arc<Notify>,
    v1: SocketAddr,
    web_files: IdentityFiles,
    visitor_files: IdentityFiles,
    _files: TempDir,
    _fleet: Fleet,
}

/// How a pod is reached past the waypoint.
pub struct PodAddress {
    /// Its HBONE.
    pub tunnel: SocketAddr,
    /// What CONNECT has to name.
    pub authority: String,
}

impl World {
    /// Starts everything and says so on standard output.
    pub async fn start(logging: Logging) -> Result<World, Failure> {
        let config = configured()?;
        let waypoint_id = waypoint_id(&config)?;
        let ca = DevCa::new(waypoint_id.trust_domain()).map_err(failed("the CA"))?;
        let issuer = Issuer { files: directory()?, ca };
        say!("A CA that nobody else trusts, and certificates in {}", issuer.files.path().display());

        let app_id = issuer.id("shop", "app")?;
        let app = issuer.issue(&app_id)?.0;
        let mut tunnels = HashMap::new();
        let start = |ip: IpAddr, version, broken| {
            let (app, waypoint, config) = (app.clone(), waypoint_id.clone(), &config);
            async move {
                let listener = bind_near(wished(config.resources(), ip)).await?;
                Pod::start(listener, ip, app, waypoint, Backend::new(version, broken))
            }
        };
        let v1 = start(pod::V1, "v1", false).await.map_err(failed("pod v1"))?;
        let v2 = start(pod::V2, "v2", false).await.map_err(failed("pod v2"))?;
        let broken = start(pod::BROKEN, "v1", true).await.map_err(failed("the broken pod"))?;
        let gone = free_address().await.map_err(failed("a free port"))?;
        for (ip, tunnel, what) in [
            (pod::V1, v1.tunnel, "app v1, gRPC echo, TCP echo"),
            (pod::V2, v2.tunnel, "app v2"),
            (pod::BROKEN, broken.tunnel, "app v1, answers 503 to everything"),
            (pod::GONE, gone, "gone: nobody listens here"),
        ] {
            say!("Pod {ip}, HBONE at {tunnel}: {what}");
            tunnels.insert(ip, tunnel);
        }

        let telemetry = Telemetry::new(WORKERS);
        let workers = Workers::start(WORKERS, Placement::default()).map_err(failed("threads"))?;
        let delays = workers.delays();
        let mut fleet = Fleet::new(workers, Arc::clone(&telemetry));
        let identity = issuer.issue(&waypoint_id)?.0;
        let new = |listen: SocketAddr| {
            let mut config = config.clone();
            config.listen = listen;
            let resources = placed(config.resources(), &tunnels);
            NewMesh { config, resources, identity: identity.clone(), watch: None }
        };
        let started = match fleet.start(new(config.listen)).await {
            Err(StartError::Listen(_)) => fleet.start(new(loopback(0))).await,
            started => started,
        };
        let waypoint = started.map_err(failed("the waypoint"))?;
        say!("Waypoint, HBONE at {waypoint}: {waypoint_id}");

        let quit = Arc::new(Notify::new());
        let readiness = Arc::new(Readiness::waiting_for([]));
        let load = Configured {
            settings: LoadSettings::default(),
            workers: WORKERS,
            delays,
            readiness: Arc::clone(&readiness),
            roster: fleet.roster(),
        };
        let load = load.reporter(&telemetry);
        tokio::spawn(Arc::clone(&load).run());
        let admin = Arc::new(Admin {
            readiness,
            load,
            telemetry,
            roster: fleet.roster(),
            logging,
            quit: Arc::clone(&quit),
        });
        let pages = bind_near(Some(loopback(15000))).await.map_err(failed("admin pages"))?;
        let scrapes = bind_near(Some(loopback(15020))).await.map_err(failed("metrics"))?;
        let admin_address = pages.local_addr().map_err(failed("admin pages"))?;
        let metrics_address = scrapes.local_addr().map_err(failed("metrics"))?;
        tokio::spawn(admin.serve_admin(pages));
        tokio::spawn(admin.serve_metrics(scrapes));

        let (web, web_files) = issuer.issue(&issuer.id("shop", "web")?)?;
        let (visitor, visitor_files) = issuer.issue(&issuer.id("guests", "visitor")?)?;
        let (web, visitor) = (Client::new(web), Client::new(visitor));
        say!("Client, allowed: {}", web.id);
        say!("Client, refused: {}", visitor.id);

        Ok(World {
            waypoint,
            waypoint_id,
            app_id,
            web,
            visitor,
            broken: broken.backend,
            admin: admin_address,
            metrics: metrics_address,
            quit,
            v1: v1.tunnel,
            web_files,
            visitor_files,
            _files: issuer.files,
            _fleet: fleet,
        })
    }

    /// How the pod of v1 is reached past the waypoint.
    pub fn pod_address(&self) -> PodAddress {
        PodAddress { tunnel: self.v1, authority: SocketAddr::new(pod::V1, 8080).to_string() }
    }

    /// A line for a shell that sends one request as the client that may.
    pub fn curl_line(&self) -> String {
        self.curl(&self.web_files)
    }

    /// The same as the client that may not.
    pub fn refused_curl_line(&self) -> String {
        self.curl(&self.visitor_files)
    }

    fn curl(&self, files: &IdentityFiles) -> String {
        let cairn = std::env::args().next().unwrap_or_else(|| "cairn".to_owned());
        let words = [
            format!("{} curl http://{}/hello", shell_word(&cairn), service::APP_HOST),
            format!("--waypoint {} --to {}", self.waypoint, service::APP),
            format!("--expect {}", self.waypoint_id),
            format!("--cert {}", shell_word(&files.cert.to_string_lossy())),
            format!("--key {}", shell_word(&files.key.to_string_lossy())),
            format!("--roots {}", shell_word(&files.roots.to_string_lossy())),
        ];
        words.join(" \\\n    ")
    }
}

/// Issues identities, in memory for the demo and as files for `cairn curl`.
struct Issuer {
    ca: DevCa,
    files: TempDir,
}

impl Issuer {
    fn id(&self, namespace: &str, account: &str) -> Result<SpiffeId, Failure> {
        self.ca.id(namespace, account).map_err(failed("an identity"))
    }

    fn issue(&self, id: &SpiffeId) -> Result<(Identity, IdentityFiles), Failure> {
        let bundle =
            self.ca.issue_pem(id, IssueOptions::default()).map_err(failed("a certificate"))?;
        let files =
            write_identity(self.files.path(), id, &bundle).map_err(failed("certificates"))?;
        let credentials = bundle.credentials().map_err(failed("a certificate"))?;
        Ok((Identity::fixed(credentials), files))
    }
}

fn failed<E: Display>(what: &str) -> impl Fn(E) -> Failure {
    move |error| Failure::new(format!("{what}: {error}"))
}

/// The one mesh of the demo's configuration.
fn configured() -> Result<MeshConfig, Failure> {
    let config = cairn_xds::parse_bytes(Format::Yaml, CONFIG)
        .map_err(|errors| crate::check::broken(&errors))?;
    config.meshes.into_iter().next().ok_or_else(|| Failure::new("config/demo.yaml has no mesh"))
}

fn waypoint_id(config: &MeshConfig) -> Result<SpiffeId, Failure> {
    match &config.identity {
        IdentityConfig::Dev(dev) => Ok(dev.id.clone()),
        IdentityConfig::Files(_) => Err(Failure::new("config/demo.yaml needs a `dev` identity")),
    }
}

/// Readable for its owner only; removed when it is dropped.
fn directory() -> Result<TempDir, Failure> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("cairn-demo-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
    builder.tempdir().map_err(failed("a directory for certificates"))
}

/// Where the configuration would like the pod's HBONE to be.
fn wished(resources: &Resources, ip: IpAddr) -> Option<SocketAddr> {
    let mut endpoints = resources.endpoints.iter().flat_map(|set| &set.endpoints);
    endpoints.find(|endpoint| endpoint.address.ip() == ip).and_then(|found| found.tunnel_address)
}

/// The resources with the pods' HBONE where it really is.
fn placed(resources: &Resources, tunnels: &HashMap<IpAddr, SocketAddr>) -> Resources {
    let mut placed = resources.clone();
    for set in &mut placed.endpoints {
        for endpoint in &mut Arc::make_mut(set).endpoints {
            if let Some(tunnel) = tunnels.get(&endpoint.address.ip()) {
                endpoint.tunnel_address = Some(*tunnel);
            }
        }
    }
    placed
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Listens where it is wished, or else on any free port of loopback.
async fn bind_near(wish: Option<SocketAddr>) -> io::Result<TcpListener> {
    if let Some(wish) = wish
        && let Ok(listener) = TcpListener::bind(wish).await
    {
        return Ok(listener);
    }
    TcpListener::bind(loopback(0)).await
}

/// An address where nobody listens.
async fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind(loopback(0)).await?.local_addr()
}

/// Quoted where a shell would take it apart.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_knows_every_pod_and_takes_their_addresses() {
        let config = configured().unwrap();
        let tunnels: HashMap<_, _> = [pod::V1, pod::V2, pod::BROKEN, pod::GONE]
            .into_iter()
            .enumerate()
            .map(|(index, ip)| (ip, loopback(20_000 + index as u16)))
            .collect();
        assert!(tunnels.keys().all(|ip| wished(config.resources(), *ip).is_some()));
        let placed = placed(config.resources(), &tunnels);
        for endpoint in placed.endpoints.iter().flat_map(|set| &set.endpoints) {
            assert_eq!(endpoint.tunnel_address, tunnels.get(&endpoint.address.ip()).copied());
        }
        assert_eq!(waypoint_id(&config).unwrap().service_account(), "waypoint");
    }

    #[test]
    fn shell_words_survive_a_shell() {
        assert_eq!(shell_word("/tmp/a-b.pem"), "/tmp/a-b.pem");
        assert_eq!(shell_word("/tmp/it's"), r"'/tmp/it'\''s'");
        assert_eq!(shell_word(""), "''");
    }

    #[tokio::test]
    async fn a_taken_port_is_no_obstacle() {
        let taken = TcpListener::bind(loopback(0)).await.unwrap();
        let address = taken.local_addr().unwrap();
        assert_ne!(bind_near(Some(address)).await.unwrap().local_addr().unwrap(), address);
    }
}

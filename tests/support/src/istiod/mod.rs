//! An istiod of its own making: discovery and certificate authority on one TLS port, with the faults that a real one has
//! on bad days.
//!
//! It answers as istiod's delta server does (`pilot/pkg/xds/delta.go`, `workload.go`): everything for a wildcard, EDS for
//! subscribed names alone, unchanged workloads left out when their versions are known, stale nonces ignored. What clients
//! said is on [record](FakeIstiod::record).

mod authority;
mod discovery;
mod record;
mod registration;
mod resources;
mod server;
pub mod shapes;
mod world;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cairn_identity::istiod::{Istiod, Overrides, Roots};
use cairn_proto::envoy::envoy::config::core::v3::Node;
use cairn_proto::envoy::envoy::service::discovery::v3::Resource;
use cairn_proto::prost::Message;
use cairn_proto::tonic::Status;
use cairn_proto::workload::Workload;
use cairn_xds::feed::Kind;
use tempfile::TempDir;

use crate::wait::eventually;
use server::Server;
use world::{Event, Shared};

pub use authority::CaFault;
pub use record::{Asked, Record, Signed};
pub use resources::{assignment, capture, cluster, garbage, listener, node, resource, workload};

/// The name that its certificate has.
pub const NAME: &str = "istiod.istio-system.svc";
/// The token that is accepted from the start, for [`IDENTITY`].
pub const TOKEN: &str = "a-token-of-the-waypoint";
/// Whom [`TOKEN`] belongs to.
pub const IDENTITY: &str = "spiffe://cluster.local/ns/shop/sa/waypoint";
/// The only cluster whose tokens can be judged.
pub const CLUSTER: &str = "Kubernetes";

/// A running istiod, or a stopped one.
pub struct FakeIstiod {
    shared: Arc<Shared>,
    address: SocketAddr,
    server: Option<Server>,
    files: TempDir,
}

impl FakeIstiod {
    /// Starts one on a free port of the loopback address, without resources.
    pub async fn start() -> Self {
        let shared = Arc::new(Shared::new());
        let server =
            Server::start(SocketAddr::from(([127, 0, 0, 1], 0)), Arc::clone(&shared)).await;
        let fake = FakeIstiod {
            address: server.address(),
            server: Some(server),
            shared,
            files: tempfile::tempdir().unwrap(),
        };
        fake.write_token(TOKEN);
        fake.write_roots();
        fake
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How a client of `shop/waypoint` reaches it: by its name, with the token of [`FakeIstiod::token_file`].
    pub fn istiod(&self) -> Istiod {
        let name = format!("{NAME}:15012");
        Istiod {
            resolve: Overrides::parse(&format!("{name}={}", self.address)).unwrap(),
            address: name,
            server_name: None,
            roots: Roots::File(self.roots_file()),
            token: Some(self.token_file()),
            cluster_id: CLUSTER.to_owned(),
            identity: None,
            plaintext: false,
        }
    }

    // The exchange.

    /// What it has of a kind from now on; clients get all of it, and the names that are gone.
    pub fn set(&self, kind: Kind, resources: Vec<Resource>) {
        let kept: BTreeSet<String> = resources.iter().map(|one| one.name.clone()).collect();
        let removed: Vec<String> = {
            let world = self.shared.world.lock().unwrap();
            world.names(kind).into_iter().filter(|name| !kept.contains(name)).collect()
        };
        self.change(kind, resources, removed);
    }

    /// Changes some of a kind; clients get these alone.
    pub fn push(&self, kind: Kind, changed: Vec<Resource>, removed: &[&str]) {
        self.change(kind, changed, removed.iter().map(|name| (*name).to_owned()).collect());
    }

    /// Sends resources that it does not keep: a later client gets what there was before.
    pub fn push_once(&self, kind: Kind, changed: Vec<Resource>) {
        self.shared.announce(Event::Push { kind, changed, removed: Vec::new() });
    }

    /// Changes what later clients get, and tells nobody: as when a push is lost with its stream.
    pub fn set_silently(&self, kind: Kind, resources: Vec<Resource>) {
        self.shared.world.lock().unwrap().replace(kind, resources);
    }

    /// Says that these are gone, which they are not: who asks for them gets them.
    pub fn remove_once(&self, kind: Kind, names: &[&str]) {
        let removed = names.iter().map(|name| (*name).to_owned()).collect();
        self.shared.announce(Event::Push { kind, changed: Vec::new(), removed });
    }

    fn change(&self, kind: Kind, changed: Vec<Resource>, removed: Vec<String>) {
        self.shared.world.lock().unwrap().change(kind, changed.clone(), &removed);
        self.shared.announce(Event::Push { kind, changed, removed });
    }

    /// Takes over all that a directory of `{cds,lds,eds,ecds,workloads}.pb`, perhaps with `.gz`, holds.
    pub fn load_capture(&self, directory: &Path) {
        for (kind, resources) in capture(directory) {
            self.set(kind, resources);
        }
    }

    /// Lets answers of a kind wait until [`FakeIstiod::release`]: a slow istiod.
    pub fn hold(&self, kind: Kind) {
        self.shared.world.lock().unwrap().held.insert(kind);
    }

    /// Sends what was held.
    pub fn release(&self, kind: Kind) {
        self.shared.world.lock().unwrap().held.remove(&kind);
        self.shared.announce(Event::Release(kind));
    }

    /// What clients said so far.
    pub fn record(&self) -> Record {
        self.shared.record.lock().unwrap().clone()
    }

    /// Waits until the record shows something.
    ///
    /// # Panics
    /// After the deadline of tests, with `what`.
    pub async fn seen(&self, what: &str, mut condition: impl FnMut(&Record) -> bool) {
        eventually(what, || condition(&self.record())).await;
    }

    // Members that register.

    /// Entries that there are, as `namespace/group-address`, in their order.
    pub fn entries(&self) -> Vec<String> {
        let world = self.shared.world.lock().unwrap();
        let names = world.names(Kind::Workload).into_iter();
        names
            .filter_map(|name| name.split_once("/WorkloadEntry/").map(|(_, name)| name.to_owned()))
            .collect()
    }

    /// Addresses of the entries that there are, with their weights, as a ztunnel takes them: who has none has 1.
    pub fn weighted_entries(&self) -> Vec<(IpAddr, u32)> {
        let world = self.shared.world.lock().unwrap();
        let entries = world.all(Kind::Workload).filter(|one| one.name.contains("/WorkloadEntry/"));
        let found = entries.filter_map(|one| {
            let workload = Workload::decode(one.resource.as_ref()?.value.as_slice()).ok()?;
            let bytes = workload.addresses.first()?.as_slice();
            let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
            let address = v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()?;
            Some((address, workload.capacity.unwrap_or(1)))
        });
        found.collect()
    }

    /// How many entries are of streams that are open, and not of the grace period after one.
    pub fn registered(&self) -> usize {
        let world = self.shared.world.lock().unwrap();
        world.registered.values().filter(|streams| **streams > 0).count()
    }

    /// Somebody deletes an entry: its stream stays open, and only another one makes it again.
    pub fn delete_entry(&self, namespace: &str, group: &str, address: IpAddr) {
        self.push(Kind::Workload, Vec::new(), &[&registration::uid(namespace, group, address)]);
    }

    /// Entries stay for so long after their stream.
    pub fn registration_grace(&self, grace: Duration) {
        self.shared.world.lock().unwrap().registration_grace = grace;
    }

    // Who may come.

    /// Where the token of [`FakeIstiod::istiod`] is.
    pub fn token_file(&self) -> PathBuf {
        self.files.path().join("istio-token")
    }

    /// Puts another token into the file, as kubelet does.
    pub fn write_token(&self, token: &str) {
        let fresh = self.files.path().join("istio-token.new");
        std::fs::write(&fresh, token).unwrap();
        std::fs::rename(fresh, self.token_file()).unwrap();
    }

    /// Accepts a token, for this identity.
    pub fn accept_token(&self, token: &str, identity: &str) {
        let mut world = self.shared.world.lock().unwrap();
        world.tokens.insert(token.to_owned(), identity.to_owned());
    }

    /// Accepts a token no longer.
    pub fn refuse_token(&self, token: &str) {
        self.shared.world.lock().unwrap().tokens.remove(token);
    }

    /// Whether certificates are asked for and trusted; else they are refused as those of another mesh.
    pub fn accept_certificates(&self, accept: bool) {
        self.shared.world.lock().unwrap().certificates = accept;
    }

    // Bad days.

    /// New streams end at once with this status, until it is none.
    pub fn refuse_streams(&self, status: Option<Status>) {
        self.shared.world.lock().unwrap().refuse = status;
    }

    /// Ends all streams with this status.
    pub fn reset_streams(&self, status: Status) {
        self.shared.announce(Event::End(status));
    }

    /// Ends all streams without an error, as at the end of a connection's age.
    pub fn end_streams(&self) {
        self.shared.announce(Event::Finish);
    }

    /// Cuts all connections.
    pub fn close_connections(&self) {
        if let Some(server) = &self.server {
            server.close_connections();
        }
    }

    /// Says GOAWAY on all connections, then ends their streams.
    pub fn go_away(&self) {
        if let Some(server) = &self.server {
            server.go_away();
        }
        self.end_streams();
    }

    /// Is gone: nothing listens, all connections are cut.
    pub async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop().await;
        }
    }

    /// Is there again, on the same port, with the same resources.
    pub async fn start_again(&mut self) {
        self.stop().await;
        self.server = Some(Server::start(self.address, Arc::clone(&self.shared)).await);
    }

    // The certificate authority.

    /// Where the roots are that its own certificate leads to.
    pub fn roots_file(&self) -> PathBuf {
        self.files.path().join("root-cert.pem")
    }

    /// All roots of the mesh, PEM.
    pub fn roots_pem(&self) -> String {
        self.shared.authority.lock().unwrap().roots_pem()
    }

    fn write_roots(&self) {
        let fresh = self.files.path().join("root-cert.pem.new");
        std::fs::write(&fresh, self.roots_pem()).unwrap();
        std::fs::rename(fresh, self.roots_file()).unwrap();
    }

    /// Signs with another root from now on, and hands out both.
    pub fn rotate_root(&self) {
        self.shared.authority.lock().unwrap().rotate();
        self.write_roots();
    }

    /// Hands out the newest root alone, and has its own certificate from it.
    pub fn drop_old_roots(&self) {
        self.shared.authority.lock().unwrap().drop_old_roots();
        self.write_roots();
    }

    /// So many certificates are between a leaf and its root from now on.
    pub fn intermediates(&self, count: usize) {
        self.shared.authority.lock().unwrap().set_intermediates(count);
    }

    /// Certificates are valid for so long whatever is asked for; `None`: as asked for.
    pub fn validity(&self, validity: Option<Duration>) {
        self.shared.authority.lock().unwrap().validity = validity;
    }

    /// What goes wrong when a certificate is asked for.
    pub fn ca_fault(&self, fault: CaFault) {
        self.shared.authority.lock().unwrap().fault = fault;
    }

    /// A certificate of the mesh: leaf first, then its intermediates, PEM; and its key, PEM.
    pub fn issue(&self, identity: &str) -> (String, String) {
        self.shared.authority.lock().unwrap().issue(identity)
    }

    /// A node of `shop/waypoint`.
    pub fn node(&self) -> Node {
        node("shop", "waypoint")
    }
}

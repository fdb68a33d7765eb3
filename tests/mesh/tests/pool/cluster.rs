//! One cluster that uses the pool: the pool's objects, two tenants, and who calls them.

use cairn_mesh_tests::control::{PATIENCE, eventually};
use cairn_mesh_tests::crowd::{Aim, Crowd, Speaks};
use cairn_mesh_tests::harness::Place;
use cairn_mesh_tests::hbone::{Client, Failure};
use cairn_mesh_tests::lab::{Lab, Service};
use cairn_mesh_tests::member::Access;
use cairn_mesh_tests::objects;
use cairn_mesh_tests::site::Site;
use cairn_mesh_tests::view::{NoPick, Pick, Seen};
use cairn_mesh_tests::ztunnel::Ztunnel;
use cairn_pool::UserCluster;
use cairn_test_support::http1::Response;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// What tells the two apart.
pub struct Plan {
    /// In the names of logs and backends.
    pub name: &'static str,
    /// Of its addresses: `127.0.<number>.1`, members' port 21000 + number.
    pub number: u8,
    /// First two bytes of its pods' addresses.
    pub pods: &'static str,
    /// The second tenant, behind the VIP that the other cluster's second tenant has.
    pub second: (&'static str, &'static str),
}

pub const A: Plan = Plan { name: "a", number: 1, pods: "10.244", second: ("pay", "api") };
pub const B: Plan = Plan { name: "b", number: 2, pods: "10.245", second: ("crm", "desk") };

/// A running cluster.
pub struct Cluster {
    pub lab: Lab,
    pub user: UserCluster,
    pub ztunnel: Arc<Ztunnel>,
    pub access: Access,
    /// Pods of `shop` that call.
    pub clients: Vec<Client>,
    /// `shop/app`, of two pods.
    pub app: Service,
    /// The second tenant's service, of one pod.
    pub second: Service,
    plan: &'static Plan,
}

impl Cluster {
    /// Control plane, the pool's objects, tenants; no member.
    pub async fn start(place: &Place, plan: &'static Plan) -> Self {
        let site = Site::numbered(plan.name, plan.number);
        let dir = place.dir.join(plan.name);
        let lab = Lab::start_at(site, &place.program, &dir, &place.logs).await;
        let user = UserCluster::new(21000 + u16::from(plan.number));
        for object in cairn_pool::objects::all(&user) {
            lab.plane.kube.apply(&object).await;
        }
        lab.plane.kube.apply_status(&cairn_pool::objects::gateway_status(&user)).await;
        let ztunnel = Arc::new(Ztunnel::start(&lab.plane).await);
        let access = Access::give(&lab.plane, &user, &dir).await;
        let (namespace, name) = plan.second;
        let service = |namespace: &'static str, name: &'static str, vip: &'static str| Service {
            namespace,
            name,
            vip,
            selector: vec![("app", name)],
        };
        let app = service("shop", "app", "10.96.10.1");
        let second = service(namespace, name, "10.96.10.2");
        let clients = Vec::new();
        let mut cluster = Cluster { lab, user, ztunnel, access, clients, app, second, plan };
        cluster.tenants().await;
        cluster
    }

    async fn tenants(&mut self) {
        let Cluster { lab, user, app, second, plan, .. } = self;
        let using = [
            ("istio.io/dataplane-mode", "ambient"),
            ("istio.io/use-waypoint", user.name.as_str()),
            ("istio.io/use-waypoint-namespace", user.namespace.as_str()),
        ];
        let mut last = 10;
        for (service, count) in [(&*app, 2), (&*second, 1)] {
            lab.plane.kube.apply(&objects::namespace(service.namespace, &using)).await;
            let mut names = Vec::new();
            for number in 1..=count {
                last += 1;
                let name = format!("{}-{}-{number}", plan.name, service.name);
                let ip = format!("{}.1.{last}", plan.pods);
                let labels = [("app", service.name)];
                lab.add_pod(service.namespace, &name, service.name, &ip, &labels).await;
                names.push(name);
            }
            let ready: Vec<(&str, bool)> = names.iter().map(|name| (name.as_str(), true)).collect();
            lab.serve(service, &ready).await;
        }
        self.clients = self.new_clients().await;
    }

    /// Clients with certificates as istiod signs them at this moment.
    pub async fn new_clients(&mut self) -> Vec<Client> {
        let mut clients = Vec::new();
        for (name, last) in [("buyer", 31), ("other", 32)] {
            let ip = format!("{}.1.{last}", self.plan.pods);
            clients.push(self.lab.add_client("shop", name, &ip).await);
        }
        clients
    }

    /// VIP and port.
    pub fn vip(service: &Service) -> SocketAddr {
        service.authority().parse().unwrap()
    }

    /// Names of a service's backends.
    pub fn backends(&self, service: &Service) -> BTreeSet<String> {
        let count = if service.name == self.app.name { 2 } else { 1 };
        (1..=count).map(|number| format!("{}-{}-{number}", self.plan.name, service.name)).collect()
    }

    /// What a crowd asks for.
    pub fn aim(&self, service: &Service) -> Aim {
        Aim {
            vip: Self::vip(service),
            host: service.host(),
            backends: self.backends(service),
            requests: 20,
        }
    }

    /// Both clients, each with a connection of each protocol.
    pub fn crowd(&self) -> Crowd {
        let speaks = [Speaks::Http1, Speaks::Http2];
        Crowd::start(&self.ztunnel, &self.clients, self.aim(&self.app), &speaks)
    }

    /// The same clients with connections that last until they are told to go: several each, so that every member
    /// has some.
    pub fn lasting(&self) -> Crowd {
        let aim = Aim { requests: usize::MAX, ..self.aim(&self.app) };
        let speaks = [Speaks::Http1, Speaks::Http2].repeat(4);
        Crowd::start(&self.ztunnel, &self.clients, aim, &speaks)
    }

    /// The members behind the waypoint, as ztunnel sees them.
    pub fn members(&self) -> BTreeSet<Seen> {
        self.ztunnel.members(Self::vip(&self.app))
    }

    /// Waits until ztunnel has exactly these members.
    pub async fn until_members(&self, wanted: &[SocketAddr]) {
        self.ztunnel.until_members(Self::vip(&self.app), wanted).await;
    }

    /// ztunnel's choice for a connection to `service`.
    pub fn pick(&self, service: &Service) -> Result<Pick, NoPick> {
        self.ztunnel.pick(self.clients[0].ip(), Self::vip(service))
    }

    /// One `GET` of a client through a certain member, in a tunnel and on a connection of its own.
    pub async fn ask(
        &self,
        client: &Client,
        member: &Seen,
        service: &Service,
        path: &str,
    ) -> Result<Response, Failure> {
        let connection = client.connect_to(member.at, &member.id).await?;
        let host = service.host();
        connection.get(&service.authority(), path, &[("Host", &host)]).await
    }

    /// Waits until the client's requests are answered as `wanted` says, three times in a row by every member.
    pub async fn everywhere(
        &self,
        what: &str,
        (client, service, path): (&Client, &Service, &str),
        wanted: impl Fn(&Response) -> bool,
    ) {
        let members = self.members();
        assert!(!members.is_empty(), "{what}: there is no member");
        for member in members {
            let (start, mut in_a_row) = (Instant::now(), 0);
            while in_a_row < 3 {
                let answer = self.ask(client, &member, service, path).await;
                in_a_row = if answer.as_ref().is_ok_and(&wanted) { in_a_row + 1 } else { 0 };
                assert!(start.elapsed() < PATIENCE, "{what}: {} says {answer:?}", member.at);
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        }
    }

    /// The WorkloadEntry of that member.
    pub async fn entry(&self, member: SocketAddr) -> Option<serde_json::Value> {
        let UserCluster { namespace, name, .. } = &self.user;
        let name = format!("{name}-{}", member.ip());
        let api = "networking.istio.io/v1";
        self.lab.plane.kube.get(api, "WorkloadEntry", namespace, &name).await
    }

    /// When istiod took the registration of that member, as it says.
    pub async fn registered(&self, member: SocketAddr) -> Option<String> {
        let entry = self.entry(member).await?;
        let at = entry.pointer("/metadata/annotations/istio.io~1connectedAt")?;
        at.as_str().map(str::to_owned)
    }

    /// Waits until both pods of `shop/app` answer through every member.
    pub async fn works(&self) {
        for backend in self.backends(&self.app) {
            let what = format!("{backend} answers");
            let client = &self.clients[0];
            for member in self.members() {
                eventually(&format!("{what} through {}", member.at), async || {
                    let answer = self.ask(client, &member, &self.app, "/").await;
                    answer.is_ok_and(|answer| answer.status == 200 && answer.backend() == backend)
                })
                .await;
            }
        }
    }
}

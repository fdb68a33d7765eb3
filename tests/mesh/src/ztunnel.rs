//! What a cluster's ztunnels are told: a delta stream of `istio.workload.Address` from that cluster's istiod. Without
//! istiod the last view holds.

use crate::ads::{Proxy, Stream};
use crate::control::{ControlPlane, eventually};
use crate::grpc::Caller;
use crate::objects;
use crate::view::{NoPick, Pick, Seen, View};
use cairn_proto::prost::Message;
use cairn_proto::workload::{ADDRESS_TYPE_URL, Address};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Before the stream is opened again; ztunnel begins with 10 ms and doubles it.
const PAUSE: Duration = Duration::from_millis(100);

/// A live view of one cluster; it ends when this is dropped.
pub struct Ztunnel {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    state: Mutex<State>,
}

#[derive(Clone)]
struct State {
    caller: Caller,
    view: View,
    /// Streams whose first answer has come.
    streams: u64,
    /// Answers of all streams.
    answers: u64,
    connected: bool,
}

impl Drop for Ztunnel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Ztunnel {
    /// Connects as `istio-system/ztunnel`, and waits for the first answer.
    ///
    /// # Panics
    /// When there is none.
    pub async fn start(plane: &ControlPlane) -> Self {
        plane.kube.apply(&objects::service_account("istio-system", "ztunnel")).await;
        let caller = plane.caller("istio-system", "ztunnel").await;
        let state =
            State { caller, view: View::default(), streams: 0, answers: 0, connected: false };
        let shared = Arc::new(Shared { state: Mutex::new(state) });
        let task = tokio::spawn(follow(shared.clone()));
        let ztunnel = Ztunnel { shared, task };
        eventually("istiod answers ztunnel", async || ztunnel.streams() > 0).await;
        ztunnel
    }

    /// What it knows at this moment.
    pub fn view(&self) -> View {
        self.shared.state().view.clone()
    }

    /// Streams whose first answer has come: one more after each restart of istiod.
    pub fn streams(&self) -> u64 {
        self.shared.state().streams
    }

    /// Answers of istiod, of all streams.
    pub fn answers(&self) -> u64 {
        self.shared.state().answers
    }

    /// A stream is open, and has been answered.
    pub fn is_connected(&self) -> bool {
        self.shared.state().connected
    }

    /// From the next stream on, another root, token or trust domain.
    pub fn trust(&self, caller: Caller) {
        self.shared.state().caller = caller;
    }

    /// Chooses a member for a connection from `source` to `vip`.
    ///
    /// # Errors
    /// Why there is none.
    pub fn pick(&self, source: IpAddr, vip: SocketAddr) -> Result<Pick, NoPick> {
        self.shared.state().view.pick(source, vip)
    }

    /// Members of the waypoint of the service that has this VIP; empty without one.
    pub fn members(&self, vip: SocketAddr) -> BTreeSet<Seen> {
        self.shared.state().view.members(vip)
    }

    /// Waits until exactly these members are behind that VIP's waypoint; returns how long it took.
    ///
    /// # Panics
    /// When they are not.
    pub async fn until_members(&self, vip: SocketAddr, wanted: &[SocketAddr]) -> Duration {
        let wanted: BTreeSet<SocketAddr> = wanted.iter().copied().collect();
        let what = format!("ztunnel's members for {vip} are {wanted:?}");
        eventually(&what, async || {
            self.members(vip).into_iter().map(|seen| seen.at).collect::<BTreeSet<_>>() == wanted
        })
        .await
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

async fn follow(shared: Arc<Shared>) {
    loop {
        // Whatever ends the stream, the view stays and the next one goes on from it.
        let _ended = stream(&shared).await;
        shared.state().connected = false;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn stream(shared: &Shared) -> Result<(), String> {
    let (caller, held) = {
        let state = shared.state();
        (state.caller.clone(), state.view.names())
    };
    let proxy = Proxy {
        kind: "ztunnel",
        name: "ztunnel-x1",
        namespace: "istio-system",
        account: "ztunnel",
        ip: "10.244.0.2",
        labels: &[("app", "ztunnel")],
        group: None,
        locality: None,
    };
    let mut stream = Stream::open(&caller, proxy.node(&caller), ADDRESS_TYPE_URL, held).await?;
    let mut first = true;
    loop {
        let answer = stream.next().await?;
        let mut state = shared.state();
        state.view.remove(&answer.removed_resources);
        for resource in answer.resources {
            let any = resource.resource.ok_or("a resource without content")?;
            let address = Address::decode(any.value.as_slice()).map_err(|e| e.to_string())?;
            state.view.put(resource.name, address);
        }
        state.answers += 1;
        state.streams += u64::from(first);
        state.connected = true;
        first = false;
    }
}

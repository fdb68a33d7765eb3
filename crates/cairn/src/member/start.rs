//! The start of a membership: certificate, what siblings know, configuration, port. Each is waited for as long as it takes,
//! and what is missing is to be seen.

use super::cluster::{CERTIFICATE, Course, Scarce, Serving};
use super::node;
use super::sibling::{self, Question};
use crate::admin::{Actions, AdminView, Bound, EnvoyPages};
use crate::istiod::{self, Before, Control, Exchange, Feeder};
use crate::ready::Step;
use arc_swap::ArcSwap;
use cairn_identity::ca::{CaClient, CaConfig, RunningCa};
use cairn_identity::istiod::{Istiod, Roots};
use cairn_identity::{Identity, SpiffeId};
use cairn_pool::config::ISTIOD_NAME;
use cairn_proto::envoy::envoy::config::core::v3 as core;
use cairn_proxy::{InstanceConfig, Limits, MeshInstance, NodeInfo};
use cairn_router::spec::Resources;
use cairn_xds::ads::{AdsConfig, AdsStatus};
use cairn_xds::store::{Imported, Owner, Store};
use cairn_xds::translate::{EndpointIdentity, Settings, Translator};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

impl Course {
    pub(super) fn istiod(&self, identity: Option<Identity>) -> Istiod {
        let name = self.cluster.server_name.clone().unwrap_or_else(|| ISTIOD_NAME.to_owned());
        Istiod {
            address: self.cluster.istiod.clone(),
            server_name: Some(name),
            roots: Roots::File(self.cluster.root_file.clone()),
            resolve: self.house.resolve.clone(),
            token: self.cluster.token_file.clone(),
            cluster_id: self.cluster.cluster_id.clone().unwrap_or_default(),
            identity,
            plaintext: false,
        }
    }

    /// Certificate, configuration, port. Waits for each as long as it takes.
    pub(super) async fn start(&self) -> Serving {
        let readiness = &self.status.readiness;
        let (identity, ca) = self.certificate().await;
        readiness.arrived(CERTIFICATE);
        self.house.readiness.reached(Step::Certificate);
        let node = node::asking(&self.cluster, &self.house.pool, &self.house.who);
        let instance = self.instance(&identity, &node);
        let _set_once = self.parts.instance.set(Arc::clone(&instance));
        let owner = sibling::owner(&self.cluster.name, &identity);
        let told = self.ask_siblings(&identity, &owner).await;
        let (store, before) = match told {
            Some((store, imported)) => {
                self.status.warm();
                (store, Before::Told(imported))
            }
            None => (Arc::new(Store::new()), Before::Nothing),
        };
        let feeder = self.feeder();
        let resources: Arc<ArcSwap<Resources>> = Arc::default();
        let control = loop {
            let exchange = Exchange {
                ads: AdsConfig::new(self.istiod(Some(identity.clone())), node.clone()),
                feeder: feeder.clone(),
                instance: Arc::clone(&instance),
                resources: Arc::clone(&resources),
                store: Arc::clone(&store),
                before: match &before {
                    Before::Told(imported) => Before::Told(imported.clone()),
                    Before::Nothing | Before::Kept(..) => Before::Nothing,
                },
            };
            match Control::start(exchange).await {
                Ok(control) => break control,
                Err(error) => tracing::error!(cluster = self.cluster.name, %error, "no thread"),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        let _set_once = self.parts.ads.set(control.ads.clone());
        let (asking, wants) = (feeder.clone(), Arc::clone(&control.wants));
        instance.set_identity_wait(Arc::new(move |address| {
            if asking.ask(address) {
                wants.notify_one();
            }
        }));
        self.follow_connection(control.ads.clone());
        let _set_once = self.parts.sources.set(istiod::Sources {
            mesh: Some(self.cluster.name.clone()),
            identity: identity.clone(),
            ca: Some(ca.subscribe()),
            ads: control.ads.clone(),
            store: Arc::clone(&store),
            published: control.published.clone(),
            feeder: feeder.clone(),
        });
        let view = self.view(&control, &store, resources, (&node, &instance));
        let _set_once = self.parts.pages.set(EnvoyPages::new(view));
        istiod::configured(&control, &feeder, &self.cluster.istiod, readiness).await;
        self.house.readiness.reached(Step::Config);
        let running = istiod::listen(&instance, &self.house.workers, readiness).await;
        if self.house.pool.warm_start {
            sibling::tell(&instance, store, owner);
        }
        let course = self.house.readiness.course();
        tracing::info!(
            cluster = self.cluster.name,
            address = %running.local_addr,
            warm = control.warm,
            first = course.ready.is_none(),
            "could serve"
        );
        Serving { identity, instance, control, running, _ca: ca }
    }

    async fn certificate(&self) -> (Identity, RunningCa) {
        let (cluster, pool) = (&self.cluster, &self.house.pool);
        let account = cluster.service_account(pool);
        let id = loop {
            match SpiffeId::new(&cluster.trust_domain, cluster.namespace(pool), account) {
                Ok(id) => break id,
                Err(error) => {
                    let reason = format!("no identity: {error}; correct pool.yaml");
                    self.status.readiness.still_missing(CERTIFICATE, &reason);
                }
            }
            tokio::time::sleep(Duration::from_secs(60)).await;
        };
        let wait = |reason: String| {
            tracing::warn!(cluster = cluster.name, "{reason}");
            self.status.readiness.still_missing(CERTIFICATE, &reason);
        };
        CaClient::start(CaConfig::new(self.istiod(None), id), wait).await
    }

    fn instance(&self, identity: &Identity, node: &core::Node) -> Arc<MeshInstance> {
        let config = InstanceConfig {
            name: self.cluster.name.clone(),
            listen: self.cluster.listen,
            limits: Limits {
                max_connection_age: Some(self.house.max_connection_age),
                ..Limits::of_pool()
            },
        };
        let telemetry = Arc::clone(&self.house.telemetry);
        let instance = MeshInstance::new(config, identity.clone(), telemetry);
        instance.set_overload(Arc::clone(&self.house.overload));
        let [_, zone, _] = node::place(&self.cluster, &self.house.who).unwrap_or_default();
        instance.set_node(NodeInfo {
            id: node.id.clone(),
            cluster: node.cluster.clone(),
            zone,
            address: Some(self.address()),
        });
        let mut memory = self.house.memory.clone();
        memory.mark_changed();
        let weak = Arc::downgrade(&instance);
        tokio::spawn(async move {
            while memory.changed().await.is_ok() {
                let Some(instance) = weak.upgrade() else { return };
                let Scarce { refuse, end } = *memory.borrow_and_update();
                instance.refuse_tunnels(refuse);
                instance.end_keep_alive(end);
            }
        });
        instance
    }

    pub(super) fn address(&self) -> IpAddr {
        node::address(&self.cluster, &self.house.who)
    }

    fn feeder(&self) -> Feeder {
        let network = self.cluster.network.clone().unwrap_or_default();
        let translator = Translator::new(Settings {
            trust_domain: self.cluster.trust_domain.clone(),
            network: network.clone(),
            endpoint_identity: EndpointIdentity::Workload,
            loopback_endpoints: self.house.loopback_endpoints,
        });
        Feeder::new(translator, &network)
    }

    async fn ask_siblings(
        &self,
        identity: &Identity,
        owner: &Owner,
    ) -> Option<(Arc<Store>, Imported)> {
        if !self.house.pool.warm_start {
            return None;
        }
        let question = Question {
            identity: identity.clone(),
            siblings: self.house.siblings.clone(),
            own: self.address(),
            port: self.cluster.advertised_port(),
            owner: owner.clone(),
            max_age: self.cluster.max_stale().unwrap_or_default(),
        };
        question.ask().await
    }

    /// Shows whether there is a stream to istiod, for as long as there is somebody who keeps one up.
    fn follow_connection(&self, mut ads: watch::Receiver<AdsStatus>) {
        let status = Arc::clone(&self.status);
        tokio::spawn(async move {
            loop {
                status.connected(ads.borrow_and_update().connected);
                if ads.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    fn view(
        &self,
        control: &Control,
        store: &Arc<Store>,
        resources: Arc<ArcSwap<Resources>>,
        (node, instance): (&core::Node, &Arc<MeshInstance>),
    ) -> AdminView {
        let (ads, published) = (control.ads.clone(), control.published.clone());
        let (unsupported, degraded) = (control.published.clone(), control.published.clone());
        let quit = Arc::clone(&self.house.quit);
        AdminView {
            node: node.clone(),
            started: self.house.started,
            store: Arc::clone(store),
            instance: Arc::clone(instance),
            resources,
            listeners: vec![Bound {
                name: "connect_terminate".to_owned(),
                address: self.cluster.listen,
            }],
            readiness: Arc::clone(&self.status.readiness),
            logging: self.house.logging.clone(),
            stats: Box::new(move || istiod::envoy_stats(&ads.borrow(), &published.borrow())),
            unsupported: Box::new(move || unsupported.borrow().unsupported.to_vec()),
            degraded: Box::new(move || degraded.borrow().degraded.to_vec()),
            actions: Actions {
                fail_health: Box::new(|_| {}),
                drain_listeners: Box::new(|| {}),
                quit: Box::new(move || quit.notify_one()),
            },
        }
    }
}

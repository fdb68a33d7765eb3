//! The configuration's own thread: the exchange with istiod, the translation, the file for a warm start.
//!
//! It runs at a lower priority than the threads that requests run on: a push of megabytes waits for a
//! request, never the other way round.

use super::feeder::Feeder;
use super::publisher::{Published, Publisher};
use arc_swap::ArcSwap;
use cairn_proxy::MeshInstance;
use cairn_router::spec::Resources;
use cairn_xds::ads::{AdsClient, AdsConfig, AdsStatus};
use cairn_xds::feed::Kind;
use cairn_xds::store::{
    ImportError, ImportLimits, Imported, Owner, Store, StoreWriter, WriterConfig,
};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};

/// The kinds without which nothing is served. EDS counts as answered where no cluster wants it.
pub const NEEDED: [Kind; 4] = [Kind::Cluster, Kind::Listener, Kind::Endpoints, Kind::Workload];

/// How much nicer than others the thread is (`nice`, 0 to 19).
const NICENESS: i32 = 10;
/// How long the last file may take at the end.
const LAST_FILE: Duration = Duration::from_secs(2);

/// What the exchange is begun with.
pub struct Exchange {
    /// Whom to ask, as whom, for what.
    pub ads: AdsConfig,
    /// Takes what comes.
    pub feeder: Feeder,
    /// Serves what comes of it.
    pub instance: Arc<MeshInstance>,
    /// What the snapshot is compiled from, for those who look.
    pub resources: Arc<ArcSwap<Resources>>,
    /// What was accepted.
    pub store: Arc<Store>,
    /// What is known before istiod answers.
    pub before: Before,
}

/// What is known before istiod answers.
pub enum Before {
    /// Nothing.
    Nothing,
    /// What the file has that an earlier start has kept, and whose it is. It is kept for the next start.
    Kept(PathBuf, Owner),
    /// What the store has already.
    Told(Imported),
}

/// A running exchange.
pub struct Control {
    /// How the exchange is doing.
    pub ads: watch::Receiver<AdsStatus>,
    /// What was published.
    pub published: watch::Receiver<Published>,
    /// Told when the feeder wants something else.
    pub wants: Arc<Notify>,
    /// What was kept by an earlier start is served.
    pub warm: bool,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

/// What the thread tells once it runs.
struct Begun {
    ads: watch::Receiver<AdsStatus>,
    published: watch::Receiver<Published>,
    wants: Arc<Notify>,
    warm: bool,
}

impl Control {
    /// Begins: first what an earlier start has kept, then istiod.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub async fn start(exchange: Exchange) -> io::Result<Control> {
        let (tell, told) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        // Its threads inherit the niceness of the one that starts them.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("cairn-config")
            .build()?;
        let thread =
            std::thread::Builder::new().name("cairn-config".to_owned()).spawn(move || {
                give_way();
                runtime.block_on(exchange.run(tell, stopped));
                runtime.shutdown_background();
            })?;
        let begun = told.await.map_err(|_| io::Error::other("the configuration's thread ended"))?;
        let Begun { ads, published, wants, warm } = begun;
        Ok(Control { ads, published, wants, warm, stop, thread })
    }

    /// Ends the exchange; what was accepted is kept for the next start.
    pub async fn shutdown(self) {
        drop(self.stop);
        let joined = tokio::task::spawn_blocking(move || self.thread.join());
        // Whoever ends does not wait long for a disk.
        let _late_or_panicked = tokio::time::timeout(LAST_FILE, joined).await;
    }
}

impl Exchange {
    async fn run(self, tell: oneshot::Sender<Begun>, stopped: oneshot::Receiver<()>) {
        let Exchange { ads, mut feeder, instance, resources, store, before } = self;
        let mut publisher = Publisher::new(feeder.clone(), instance, resources);
        let published = publisher.watch();
        // What makes a fresh start fail must not make every start fail.
        let warm = catch_unwind(AssertUnwindSafe(|| {
            let imported = before.imported(&store)?;
            replay(&store, &imported, before.what(), &mut feeder).then(|| publisher.publish())
        }));
        let warm = warm.unwrap_or_else(|_| {
            tracing::error!("no warm start: kept configuration could not be used, it is forgotten");
            store.clear();
            feeder.start_afresh();
            publisher.start_afresh();
            None
        });
        let warm = warm.is_some();
        let ads = AdsClient::start(ads, Box::new(feeder), Arc::clone(&store));
        let writer = match before {
            Before::Kept(path, owner) => {
                Some(StoreWriter::start(Arc::clone(&store), WriterConfig::new(path, owner)))
            }
            Before::Nothing | Before::Told(_) => None,
        };
        let begun = Begun { ads: ads.changed(), published, wants: ads.wants(), warm };
        // Whoever started it may have been told to end in the meantime.
        let _nobody_waits = tell.send(begun);
        tokio::select! {
            () = publisher.run() => {}
            _ = stopped => {}
        }
        ads.shutdown().await;
        if let Some(writer) = writer {
            writer.shutdown().await;
        }
    }
}

impl Before {
    /// In words.
    fn what(&self) -> &'static str {
        match self {
            Before::Nothing => "nothing",
            Before::Kept(..) => "kept configuration",
            Before::Told(_) => "what a sibling has told",
        }
    }

    /// What the store then has, if it has anything.
    fn imported(&self, store: &Store) -> Option<Imported> {
        match self {
            Before::Nothing => None,
            Before::Told(imported) => Some(imported.clone()),
            Before::Kept(path, owner) => match store.import(path, owner, ImportLimits::default()) {
                Ok(imported) => Some(imported),
                Err(error @ ImportError::Missing { .. }) => {
                    tracing::info!(%error, "no warm start");
                    None
                }
                Err(error) => {
                    tracing::warn!(%error, "no warm start");
                    None
                }
            },
        }
    }
}

/// Takes in what the store has. `true`: there is all that is needed to serve.
fn replay(store: &Store, imported: &Imported, what: &str, feeder: &mut Feeder) -> bool {
    if let Err(rejected) = store.replay(feeder) {
        tracing::warn!(%rejected, "{what} was refused in part");
    }
    let age = imported.written.elapsed().unwrap_or_default();
    let whole = NEEDED.iter().all(|kind| imported.answered.contains(kind));
    tracing::info!(
        age_s = age.as_secs(),
        resources = imported.footprint.resources,
        whole,
        "warm start from {what}"
    );
    whole
}

/// Lets threads that serve requests go first.
fn give_way() {
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::debug!(%error, "the configuration's thread keeps its priority");
    }
}

//! The task that keeps a stream up.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cairn_identity::istiod::DialError;
use cairn_proto::envoy::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use cairn_proto::envoy::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use cairn_proto::tonic::{Code, Request, Status, Streaming};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use super::backoff::Waits;
use super::config::{AdsConfig, MAX_ANSWER_BYTES};
use super::intake::{Intake, Taken};
use super::session::{Followed, Session, shortened};
use super::status::AdsStatus;
use crate::feed::{Consumer, Kind, Rejected};
use crate::store::Store;

/// Most requests that istiod may leave unread before the stream counts as stuck.
const MAX_UNREAD: usize = 1024;
/// How long a stream that istiod has ended is read to its end.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Most bytes of a reason in a log line or status.
const MAX_REASON_BYTES: usize = 512;

/// Starts clients.
#[derive(Debug)]
pub struct AdsClient;

/// A running client. Dropped, it ends at once.
#[derive(Debug)]
pub struct Ads {
    status: watch::Receiver<AdsStatus>,
    wants: Arc<Notify>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl AdsClient {
    /// Starts a client on the current runtime.
    ///
    /// `store` holds what was accepted, and says what is known when a stream begins. One that was imported must have been
    /// given to `consumer` before ([`Store::replay`]).
    ///
    /// The consumer is called on threads that may block, by one at a time.
    pub fn start(config: AdsConfig, consumer: Box<dyn Consumer>, store: Arc<Store>) -> Ads {
        let (status, statuses) = watch::channel(AdsStatus::default());
        let wants = Arc::new(Notify::new());
        let (stop, stopped) = oneshot::channel();
        let client = Client {
            waits: Waits::new(config.backoff),
            intake: Intake::new(consumer, Arc::clone(&store)),
            wants: Arc::clone(&wants),
            config,
            store,
            status,
        };
        let task = tokio::spawn(async move {
            tokio::select! {
                () = client.run() => {}
                _ = stopped => {}
            }
        });
        Ads { status: statuses, wants, stop: Some(stop), task }
    }
}

impl Ads {
    /// How it is doing.
    pub fn status(&self) -> AdsStatus {
        self.status.borrow().clone()
    }

    /// Follows how it is doing.
    pub fn changed(&self) -> watch::Receiver<AdsStatus> {
        self.status.clone()
    }

    /// To be called when [`Consumer::wanted`] changed by other means than an update: it is asked again.
    pub fn want_changed(&self) {
        self.wants.notify_one();
    }

    /// What [`Ads::want_changed`] does, for somebody else to hold.
    pub fn wants(&self) -> Arc<Notify> {
        Arc::clone(&self.wants)
    }

    /// Ends the stream and the task. An answer that is being taken in is taken in to its end.
    pub async fn shutdown(mut self) {
        drop(self.stop.take());
        if let Err(error) = (&mut self.task).await
            && error.is_panic()
        {
            tracing::error!("the ADS client panicked");
        }
    }
}

impl Drop for Ads {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Client {
    config: AdsConfig,
    intake: Intake,
    store: Arc<Store>,
    status: watch::Sender<AdsStatus>,
    wants: Arc<Notify>,
    waits: Waits,
}

/// An open stream.
struct Stream {
    session: Session,
    out: mpsc::Sender<DeltaDiscoveryRequest>,
}

/// Why a stream ended.
enum End {
    Dial(DialError),
    Status(Status),
    Closed,
    Stuck,
}

impl Client {
    async fn run(mut self) {
        loop {
            let mut since = None;
            let end = self.stream(&mut since).await;
            let lived = since.map(|since: Instant| since.elapsed());
            let wait = self.waits.after(lived, rand::random());
            self.note(&end, lived, wait);
            tokio::time::sleep(wait).await;
        }
    }

    /// One stream from dial to end. `since` says when istiod first answered on it.
    async fn stream(&mut self, since: &mut Option<Instant>) -> End {
        match self.open(since).await {
            Ok(end) | Err(end) => end,
        }
    }

    async fn open(&mut self, since: &mut Option<Instant>) -> Result<End, End> {
        let channel = self.config.istiod.channel().await.map_err(End::Dial)?;
        let metadata = self.config.istiod.metadata().await.map_err(End::Dial)?;
        let (out, requests) = mpsc::channel(MAX_UNREAD);
        let mut stream = Stream { session: Session::new(&self.config), out };
        self.follow(&mut stream).await?;
        let mut request = Request::new(ReceiverStream::new(requests));
        *request.metadata_mut() = metadata;
        let mut client = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(MAX_ANSWER_BYTES);
        let response = client.delta_aggregated_resources(request).await.map_err(End::Status)?;
        *since = Some(Instant::now());
        self.status.send_modify(|status| {
            status.connected = true;
            status.streams += 1;
        });
        tracing::info!(
            istiod = self.config.istiod.address,
            node = self.config.node.id,
            "istiod answers"
        );
        self.converse(&mut stream, response.into_inner()).await
    }

    async fn converse(
        &mut self,
        stream: &mut Stream,
        mut answers: Streaming<DeltaDiscoveryResponse>,
    ) -> Result<End, End> {
        match self.exchange(stream, &mut answers).await {
            Err(End::Closed) => Ok(last_word(answers).await),
            end => end,
        }
    }

    async fn exchange(
        &mut self,
        stream: &mut Stream,
        answers: &mut Streaming<DeltaDiscoveryResponse>,
    ) -> Result<End, End> {
        loop {
            tokio::select! {
                answer = answers.message() => match answer {
                    Ok(Some(response)) => self.answer(stream, response).await?,
                    Ok(None) => return Ok(End::Closed),
                    Err(status) => return Ok(End::Status(status)),
                },
                () = self.wants.notified() => self.follow(stream).await?,
            }
        }
    }

    async fn answer(
        &mut self,
        stream: &mut Stream,
        response: DeltaDiscoveryResponse,
    ) -> Result<(), End> {
        let delivery = match stream.session.receive(response) {
            Ok(delivery) => delivery,
            Err(refusal) => {
                let (nack, rejected) = *refusal;
                self.refused(None, &rejected);
                return stream.send(nack);
            }
        };
        let (kind, counts, version) =
            (delivery.update.kind, delivery.counts, delivery.version.clone());
        let (update, receipt) = delivery.split();
        tracing::debug!(
            %kind,
            version,
            changed = update.changed.len(),
            removed = update.removed.len(),
            "istiod sent"
        );
        let Taken { result, wanted } = self.intake.take(update).await;
        stream.send(receipt.answer(result.as_ref().map(|_| ())))?;
        match &result {
            Ok(()) => self.accepted(kind, version),
            Err(rejected) => self.refused(Some(kind), rejected),
        }
        let followed = stream.session.follow(&wanted, &self.store);
        self.carry_out(stream, followed).await?;
        // Nothing but refused resources is no answer: there is nothing to serve by.
        if counts && (result.is_ok() || self.store.len(kind) > 0) {
            self.first_answer(kind);
        }
        if kind == Kind::Cluster && stream.session.wants_nothing(Kind::Endpoints) {
            self.first_answer(Kind::Endpoints);
        }
        Ok(())
    }

    async fn follow(&mut self, stream: &mut Stream) -> Result<(), End> {
        let wanted = self.intake.wanted().await;
        let followed = stream.session.follow(&wanted, &self.store);
        self.carry_out(stream, followed).await
    }

    async fn carry_out(&mut self, stream: &mut Stream, followed: Followed) -> Result<(), End> {
        let Followed { requests, forgotten } = followed;
        for request in requests {
            stream.send(request)?;
        }
        for update in forgotten {
            let kind = update.kind;
            let Taken { result, .. } = self.intake.take(update).await;
            if let Err(rejected) = result {
                tracing::warn!(%kind, reason = rejected.detail, "resources that are not needed could not be dropped");
            }
        }
        Ok(())
    }

    fn first_answer(&self, kind: Kind) {
        self.store.answered(kind);
        self.status.send_if_modified(|status| status.initial.insert(kind));
    }

    fn accepted(&self, kind: Kind, version: String) {
        self.status.send_modify(|status| {
            let kind = status.kinds.entry(kind).or_default();
            kind.acks += 1;
            kind.version = version;
            kind.last_answer = Some(SystemTime::now());
        });
    }

    /// `kind` is none for an answer to nothing that was asked.
    fn refused(&self, kind: Option<Kind>, rejected: &Rejected) {
        let reason = shortened(&rejected.detail, MAX_REASON_BYTES);
        let label = kind.map_or("unknown", Kind::label);
        tracing::warn!(kind = label, reason, "refused what istiod sent, the last good one stays");
        self.status.send_modify(|status| {
            if let Some(kind) = kind {
                let kind = status.kinds.entry(kind).or_default();
                kind.nacks += 1;
                kind.last_answer = Some(SystemTime::now());
            }
            status.last_nack = Some(reason);
        });
    }

    fn note(&self, end: &End, lived: Option<Duration>, wait: Duration) {
        let reason = shortened(&end.reason(), MAX_REASON_BYTES);
        let lived = lived.unwrap_or_default().as_secs_f64();
        let (istiod, node) = (&self.config.istiod.address, &self.config.node.id);
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        // At most one line per wait, and the wait grows.
        tracing::warn!(
            istiod,
            node,
            reason,
            lived,
            wait_ms,
            "no stream to istiod, what is known stays in use"
        );
        self.status.send_modify(|status| {
            status.connected = false;
            status.reconnects += 1;
            status.last_error = Some(reason);
            status.last_error_at = Some(SystemTime::now());
        });
    }
}

impl Stream {
    fn send(&self, request: DeltaDiscoveryRequest) -> Result<(), End> {
        self.out.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => End::Stuck,
            mpsc::error::TrySendError::Closed(_) => End::Closed,
        })
    }
}

impl End {
    fn reason(&self) -> String {
        match self {
            End::Dial(error) => error.to_string(),
            End::Closed => "istiod closed the stream".to_owned(),
            End::Stuck => "istiod does not read what is sent".to_owned(),
            End::Status(status) => match DialError::within(status) {
                Some(error) => error.to_string(),
                None => of_status(status),
            },
        }
    }
}

/// Why istiod has ended a stream to which nothing can be sent any more: it says so behind all that it sent before.
async fn last_word(mut answers: Streaming<DeltaDiscoveryResponse>) -> End {
    let last = async {
        loop {
            match answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return End::Closed,
                Err(status) => return End::Status(status),
            }
        }
    };
    tokio::time::timeout(LAST_WORD, last).await.unwrap_or(End::Closed)
}

fn of_status(status: &Status) -> String {
    let code = status.code();
    let mut reason = format!("{code:?}: {}", status.message());
    let mut source = status.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !reason.contains(&text) {
            reason.push_str(": ");
            reason.push_str(&text);
        }
        source = error.source();
    }
    let hint = match code {
        Code::Unauthenticated => {
            "; check that the token has the audience istio-ca, is not expired, and is of this cluster (CLUSTER_ID)"
        }
        Code::PermissionDenied => {
            "; the token's namespace and service account must be those of the node (NAMESPACE, SERVICE_ACCOUNT)"
        }
        Code::InvalidArgument => "; istiod does not accept the node, see its log",
        Code::OutOfRange => "; the answer is larger than what is taken",
        _ => "",
    };
    reason.push_str(hint);
    reason
}

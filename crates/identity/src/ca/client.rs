//! The identity that istiod gives us, kept fresh.

use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use tokio::task::{AbortHandle, spawn_blocking};

use super::CaConfig;
use super::backoff::{Backoff, renewal};
use super::error::CaError;
use super::issue::{Issued, issue};
use super::kept::{Kept, KeptError};
use super::status::CaStatus;
use crate::credentials::{Credentials, IdentityError};
use crate::identity::Identity;

/// How long is slept at once: a clock that is set, or a machine that was suspended, is noticed after it.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Gets the first certificate.
#[derive(Clone, Copy, Debug)]
pub struct CaClient;

/// The renewal of an identity. Dropping it ends the renewal; the identity stays as it is.
#[must_use = "dropping it ends the renewal"]
#[derive(Debug)]
pub struct RunningCa {
    task: AbortHandle,
    status: watch::Receiver<CaStatus>,
}

impl CaClient {
    /// Asks until there is a certificate, then renews it in a task of its own. Must be called within a tokio runtime.
    ///
    /// What was kept from an earlier start and is still good is used at once, and renewed at once in the background,
    /// because the roots may be others now. Each failure before the first certificate is told to `on_wait`, with the
    /// reason and the time of the next try; after that failures are logged. This never gives up: what it waits for is for
    /// the caller to show. It may be dropped at any time.
    pub async fn start(config: CaConfig, on_wait: impl Fn(String)) -> (Identity, RunningCa) {
        let (sender, status) = watch::channel(CaStatus::default());
        let kept = config.keep_in.clone().map(Kept::new);
        let mut signer = Signer { config, kept, status: sender, backoff: Backoff::default() };
        let (credentials, renew_at) = match signer.load().await {
            Some(credentials) => (credentials, SystemTime::now()),
            None => signer.first(on_wait).await,
        };
        let identity = Identity::new(credentials, signer.config.accepted());
        signer.config.istiod.identity = Some(identity.clone());
        let task = tokio::spawn(signer.run(identity.clone(), renew_at));
        (identity, RunningCa { task: task.abort_handle(), status })
    }
}

impl RunningCa {
    /// How the requests went so far.
    pub fn status(&self) -> CaStatus {
        self.status.borrow().clone()
    }

    /// The same, to wait for a change.
    pub fn subscribe(&self) -> watch::Receiver<CaStatus> {
        self.status.clone()
    }
}

impl Drop for RunningCa {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Signer {
    config: CaConfig,
    kept: Option<Kept>,
    status: watch::Sender<CaStatus>,
    backoff: Backoff,
}

impl Signer {
    async fn first(&mut self, on_wait: impl Fn(String)) -> (Credentials, SystemTime) {
        loop {
            match self.request().await {
                Ok(issued) => {
                    let renew_at = self.in_use(&issued.credentials);
                    self.keep(&issued).await;
                    tracing::info!(
                        id = %issued.credentials.id,
                        serial = issued.credentials.serial,
                        ca = self.config.istiod.address,
                        "certificate issued"
                    );
                    return (issued.credentials, renew_at);
                }
                Err(error) => {
                    let pause = self.failed(&error.to_string(), error.may_pass());
                    on_wait(format!(
                        "no certificate yet: {error}; next try in {:.1} s",
                        pause.as_secs_f64()
                    ));
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Renews for ever.
    async fn run(mut self, identity: Identity, mut due: SystemTime) {
        let mut complaint = Complaint::default();
        loop {
            sleep_until(due).await;
            let renewed = match self.request().await {
                Ok(issued) => {
                    self.renew(&identity, issued).await.map_err(|error| (error.to_string(), false))
                }
                Err(error) => Err((error.to_string(), error.may_pass())),
            };
            due = match renewed {
                Ok(renew_at) => {
                    complaint = Complaint::default();
                    renew_at
                }
                Err((reason, may_pass)) => {
                    let pause = self.failed(&reason, may_pass);
                    complaint.tell(&reason, &identity.current());
                    SystemTime::now() + pause
                }
            };
        }
    }

    async fn renew(
        &mut self,
        identity: &Identity,
        issued: Issued,
    ) -> Result<SystemTime, IdentityError> {
        identity.publish(issued.credentials.clone())?;
        let renew_at = self.in_use(&issued.credentials);
        let current = identity.current();
        tracing::info!(
            id = %current.id,
            serial = current.serial,
            generation = current.generation,
            roots = current.roots().len(),
            "certificate renewed"
        );
        self.keep(&issued).await;
        Ok(renew_at)
    }

    /// One request, counted.
    async fn request(&self) -> Result<Issued, CaError> {
        let begin = Instant::now();
        let result = issue(&self.config).await;
        self.status.send_modify(|status| {
            status.requests += 1;
            status.waited += begin.elapsed();
        });
        result
    }

    /// Counts a failure and tells how long to wait.
    fn failed(&mut self, reason: &str, may_pass: bool) -> Duration {
        let pause = self.backoff.next(may_pass);
        self.status.send_modify(|status| {
            status.failed += 1;
            status.last_error = Some(reason.to_owned());
            status.next_request = Some(SystemTime::now() + pause);
        });
        pause
    }

    /// Counts a certificate and tells when to renew it.
    fn in_use(&mut self, credentials: &Credentials) -> SystemTime {
        self.backoff.reset();
        let renew_at = renewal(
            credentials.not_before,
            credentials.not_after,
            self.config.grace_ratio,
            SystemTime::now(),
        );
        self.status.send_modify(|status| {
            status.signed += 1;
            status.last_error = None;
            status.not_after = Some(credentials.not_after);
            status.serial = Some(credentials.serial.clone());
            status.next_request = Some(renew_at);
            status.kept = false;
        });
        renew_at
    }

    /// What was kept from an earlier start.
    async fn load(&self) -> Option<Credentials> {
        let kept = self.kept.clone()?;
        let id = self.config.id.clone();
        let loaded = spawn_blocking(move || kept.load(&id, SystemTime::now())).await.ok()?;
        match loaded {
            Ok(credentials) => {
                let credentials = credentials?;
                tracing::info!(
                    id = %credentials.id,
                    serial = credentials.serial,
                    "the certificate of an earlier start is still good and in use"
                );
                self.status.send_modify(|status| {
                    status.not_after = Some(credentials.not_after);
                    status.serial = Some(credentials.serial.clone());
                    status.kept = true;
                });
                Some(credentials)
            }
            Err(error) => {
                tracing::warn!(%error, "no certificate of an earlier start");
                None
            }
        }
    }

    async fn keep(&self, issued: &Issued) {
        let Some(kept) = self.kept.clone() else { return };
        let (credentials, key) = (issued.credentials.clone(), issued.key.clone_key());
        let Ok(stored) = spawn_blocking(move || kept.store(&credentials, &key)).await else {
            return;
        };
        let failure = stored.err().map(|error: KeptError| error.to_string());
        let known = self.status.borrow().keeping_failed == failure;
        if !known {
            if let Some(reason) = &failure {
                tracing::warn!(reason, "the certificate is not kept for the next start");
            }
            self.status.send_modify(|status| status.keeping_failed = failure);
        }
    }
}

/// What has been said of an outage, so that a long one does not fill the log.
#[derive(Default)]
struct Complaint {
    reason: String,
    times: u64,
}

impl Complaint {
    /// Says a reason when it is new, and again after twice as many tries as the last time.
    fn tell(&mut self, reason: &str, current: &Credentials) {
        if self.reason != reason {
            *self = Self { reason: reason.to_owned(), times: 0 };
        }
        self.times += 1;
        if !self.times.is_power_of_two() {
            return;
        }
        let serial = current.serial.as_str();
        match current.check_validity(SystemTime::now()) {
            Ok(()) => tracing::warn!(
                reason,
                serial,
                tries = self.times,
                "no new certificate, the one in use is still valid"
            ),
            Err(error) => tracing::error!(
                reason,
                serial,
                tries = self.times,
                %error,
                "no new certificate, peers refuse the one in use"
            ),
        }
    }
}

async fn sleep_until(due: SystemTime) {
    while let Ok(left) = due.duration_since(SystemTime::now())
        && !left.is_zero()
    {
        tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
    }
}

//! The end of a membership: nobody is sent here any more, everybody has heard it, what is in flight is over.

use super::cluster::{Course, Ending, Serving};
use super::state::{Phase, Registered};
use cairn_proxy::DrainPlan;
use std::time::{Duration, Instant};

impl Course {
    /// Accepts until everybody has heard, finishes, and closes.
    pub(super) async fn leave(&self, serving: Serving, ending: Ending, was_known: bool) {
        let began = Instant::now();
        let Ending { accept, confirmed, spread, limit } = ending;
        self.status.enter(Phase::Deregistering);
        self.status.registered(Registered::No, None);
        if was_known {
            let unknown = self.unknown(&serving, confirmed);
            let _everybody_has_heard = tokio::time::timeout(accept.min(limit), unknown).await;
        }
        self.status.enter(Phase::Finishing);
        let left = limit.saturating_sub(began.elapsed());
        let cut = serving.running.drain_by(DrainPlan { spread, limit: left }).await.cut;
        self.status.cut(cut);
        tracing::info!(cluster = self.cluster.name, cut, took = ?began.elapsed(), "drained");
        serving.control.shutdown().await;
    }

    /// Resolves a while after istiod has told everybody that we are gone.
    async fn unknown(&self, serving: &Serving, confirmed: Duration) {
        while self.is_known(serving) || !serving.control.ads.borrow().connected {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tracing::info!(cluster = self.cluster.name, "istiod shows that the entry is gone");
        tokio::time::sleep(confirmed).await;
    }
}

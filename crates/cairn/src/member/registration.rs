//! The stream by which istiod knows that a member is there: as long as it is open, there is a WorkloadEntry.
//!
//! It asks for the least that istiod answers at all: extensions, of which there are none.

use cairn_identity::istiod::Istiod;
use cairn_proto::envoy::envoy::config::core::v3::Node;
use cairn_xds::ads::{Ads, AdsClient, AdsConfig, AdsStatus, Backoff};
use cairn_xds::feed::{Consumer, Kind, Rejected, Update, Wanted};
use cairn_xds::store::Store;
use std::sync::Arc;
use std::time::Duration;

/// How long to wait for the first retry after somebody took the entry away, and at most.
const FIRST_WAIT: Duration = Duration::from_secs(30);
const LONGEST_WAIT: Duration = Duration::from_secs(30 * 60);
/// After so long in peace the next time is the first.
const IN_PEACE: Duration = Duration::from_secs(10 * 60);
/// Waits between streams: istiod forgets an entry 10 s after its stream ended, so that a retry must come sooner.
const BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(4),
    healthy: Duration::from_secs(10),
};

/// An open registration. Dropped, it is withdrawn: istiod deletes the entry after its grace period.
pub struct Registration {
    ads: Ads,
}

/// How long to stay away after somebody took the entry away: whoever it was has a reason.
#[derive(Debug, Default)]
pub struct StayAway {
    next: Option<Duration>,
}

/// Wants the extensions, and takes whatever comes.
struct Nothing;

impl Registration {
    /// Opens it.
    pub fn open(istiod: Istiod, node: Node) -> Registration {
        let config = AdsConfig {
            kinds: [Kind::ExtensionConfig].into(),
            backoff: BACKOFF,
            ..AdsConfig::new(istiod, node)
        };
        Registration { ads: AdsClient::start(config, Box::new(Nothing), Arc::new(Store::new())) }
    }

    /// How the stream is doing.
    pub fn status(&self) -> AdsStatus {
        self.ads.status()
    }

    /// Ends the stream in an orderly way.
    pub async fn withdraw(self) {
        self.ads.shutdown().await;
    }
}

impl StayAway {
    /// The entry is gone after it was there for `lasted`: how long to stay away.
    pub fn after(&mut self, lasted: Duration) -> Duration {
        let wait = if lasted >= IN_PEACE { FIRST_WAIT } else { self.next.unwrap_or(FIRST_WAIT) };
        self.next = Some((wait * 2).min(LONGEST_WAIT));
        wait
    }
}

impl Consumer for Nothing {
    fn apply(&mut self, _update: Update) -> Result<(), Rejected> {
        Ok(())
    }

    fn wanted(&self) -> Wanted {
        Wanted { extension_configs: ["*".to_owned()].into(), ..Wanted::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_taken_away_again_and_again_stays_away_longer() {
        let mut away = StayAway::default();
        let seconds = |secs| Duration::from_secs(secs);
        let waits: Vec<u64> = (0..8).map(|_| away.after(seconds(60)).as_secs()).collect();
        assert_eq!(waits, [30, 60, 120, 240, 480, 960, 1800, 1800]);
        assert_eq!(away.after(IN_PEACE), seconds(30));
        assert_eq!(away.after(seconds(1)), seconds(60));
    }
}

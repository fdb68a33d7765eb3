//! A member that carries more than its share gives connections away, so that clients choose anew.
//!
//! ztunnel chooses a member for each connection of an application, and connections live long: a member that is new
//! stays idle without this. The fleet's mean is the scaler's, and is told to whoever shows the pool's token.

use super::roster::Roster;
use crate::load::Reporter;
use bytes::Bytes;
use cairn_autoscale::FleetMean;
use cairn_proxy::MeshInstance;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};

/// How often the mean is asked for.
const ASK: Duration = Duration::from_secs(2);
/// How long the answer may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// A mean that is older is none.
const FRESH_SECONDS: f64 = 15.0;
/// Largest answer.
const MOST_BYTES: usize = 64 << 10;
/// More than so many times its share is too much.
const TOO_MUCH: f64 = 1.15;
/// Giving away ends at so many times the share.
const ENOUGH: f64 = 1.05;
/// Too much for so long is not chance.
const FOR: Duration = Duration::from_secs(10);
/// Share of its own connections that a member gives away in a second: what is given away lands anywhere, so that of a
/// fleet that has doubled half of it comes back, and it takes 37 s until nobody carries too much.
const SHARE_PER_SECOND: f64 = 0.03;

/// Asks, compares, gives away.
pub struct Balance {
    /// The scaler's page.
    pub url: String,
    /// File with the pool's token.
    pub token: PathBuf,
    /// What this member carries.
    pub load: Arc<Reporter>,
    /// Its meshes.
    pub roster: Arc<Roster>,
}

/// Decides how many connections to give away.
#[derive(Debug, Default)]
struct Surplus {
    since: Option<Instant>,
    giving: bool,
    /// Parts of a connection that are owed.
    owed: f64,
}

impl Surplus {
    /// With so many connections where the share is `share`, `passed` after the last look.
    fn look(&mut self, own: f64, share: f64, now: Instant, passed: Duration) -> usize {
        if share <= 0.0 || own <= share * ENOUGH {
            *self = Surplus::default();
            return 0;
        }
        if own > share * TOO_MUCH {
            let since = *self.since.get_or_insert(now);
            self.giving |= now.saturating_duration_since(since) >= FOR;
        } else if !self.giving {
            self.since = None;
        }
        if !self.giving {
            return 0;
        }
        let most = own - share * ENOUGH;
        self.owed += (own * SHARE_PER_SECOND * passed.as_secs_f64()).min(most);
        // Whole connections; what is left is owed at the next look.
        let whole = self.owed.floor().max(0.0);
        self.owed -= whole;
        whole as usize
    }
}

impl Balance {
    /// For ever.
    pub async fn run(self) {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(PATIENCE));
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let mut surplus = Surplus::default();
        let mut tick = tokio::time::interval(ASK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said: Option<String> = None;
        loop {
            tick.tick().await;
            let mean = tokio::time::timeout(PATIENCE, self.ask(&client)).await;
            let mean = mean.unwrap_or_else(|_| Err("no answer in time".to_owned()));
            let mean = match mean {
                Ok(mean) => {
                    said = None;
                    mean
                }
                Err(reason) => {
                    if said.as_ref() != Some(&reason) {
                        tracing::warn!(url = self.url, reason, "nothing is rebalanced");
                        said = Some(reason);
                    }
                    surplus = Surplus::default();
                    continue;
                }
            };
            let report = self.load.report();
            // Of one member there is nobody to give to.
            if report.draining || mean.counted < 2 || mean.age_seconds > FRESH_SECONDS {
                surplus = Surplus::default();
                continue;
            }
            let share = mean.tunnels * report.capacity.size();
            let own = report.connections.tunnels as f64;
            let give = surplus.look(own, share, Instant::now(), ASK);
            if give > 0 {
                let given = self.give(give);
                tracing::info!(
                    own,
                    share,
                    given,
                    "carries more than its share, gives connections away"
                );
            }
        }
    }

    async fn ask(&self, client: &Client<HttpConnector, Empty<Bytes>>) -> Result<FleetMean, String> {
        let token = tokio::fs::read_to_string(&self.token).await;
        let token = token.map_err(|error| format!("{}: {error}", self.token.display()))?;
        let request = Request::get(&self.url)
            .header(header::AUTHORIZATION, format!("Bearer {}", token.trim()))
            .body(Empty::new())
            .map_err(|error| error.to_string())?;
        let answer = client.request(request).await.map_err(|error| error.to_string())?;
        if answer.status() != http::StatusCode::OK {
            return Err(format!("the scaler answers {}", answer.status()));
        }
        let body = Limited::new(answer.into_body(), MOST_BYTES).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        serde_json::from_slice(&body).map_err(|error| error.to_string())
    }

    /// From each mesh by what it has.
    fn give(&self, count: usize) -> usize {
        let all = self.roster.all();
        let meshes: Vec<&Arc<MeshInstance>> =
            all.iter().filter_map(|(_, parts)| parts.instance.get()).collect();
        let tunnels = |mesh: &MeshInstance| mesh.counters().tunnels.get();
        let sum: u64 = meshes.iter().map(|mesh| tunnels(mesh)).sum();
        let mut given = 0;
        for mesh in meshes {
            let part = (count as u64 * tunnels(mesh)).div_ceil(sum.max(1));
            let part = usize::try_from(part).unwrap_or(usize::MAX).min(count - given);
            given += mesh.shed(part);
        }
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(surplus: &mut Surplus, own: f64, share: f64, count: u32, now: &mut Instant) -> usize {
        let mut given = 0;
        for _ in 0..count {
            *now += ASK;
            given += surplus.look(own, share, *now, ASK);
        }
        given
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_carries_too_much_for_long_gives_away() {
        let (mut surplus, mut now) = (Surplus::default(), Instant::now());
        assert_eq!(looks(&mut surplus, 114.0, 100.0, 20, &mut now), 0, "within the bounds");
        assert_eq!(looks(&mut surplus, 200.0, 100.0, 5, &mut now), 0, "not for long yet");
        assert!(looks(&mut surplus, 200.0, 100.0, 2, &mut now) > 0);
        // 6 % of 200 in two seconds.
        assert_eq!(surplus.look(200.0, 100.0, now + ASK, ASK), 12);
        assert_eq!(looks(&mut surplus, 105.0, 100.0, 5, &mut now), 0, "that is enough");
        assert_eq!(looks(&mut surplus, 200.0, 100.0, 5, &mut now), 0, "it begins anew");
        assert_eq!(
            looks(&mut surplus, 50.0, 0.0, 20, &mut now),
            0,
            "without a share nothing is known"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn four_members_become_eight_within_a_minute() {
        // 2000 connections on four members; what is given away lands anywhere.
        let mut own: Vec<f64> = vec![500.0, 500.0, 500.0, 500.0, 0.0, 0.0, 0.0, 0.0];
        let mut all: Vec<Surplus> = own.iter().map(|_| Surplus::default()).collect();
        let mut now = Instant::now();
        for _ in 0..30 {
            now += ASK;
            let mean = own.iter().sum::<f64>() / own.len() as f64;
            let mut given = 0.0;
            for (surplus, own) in all.iter_mut().zip(own.iter_mut()) {
                let give = surplus.look(*own, mean, now, ASK) as f64;
                *own -= give;
                given += give;
            }
            for own in &mut own {
                *own += given / 8.0;
            }
        }
        let most = own.iter().copied().fold(0.0, f64::max);
        assert!(most <= 250.0 * TOO_MUCH, "{own:?}");
    }
}

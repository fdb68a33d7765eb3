//! One recorded push with both proxies, from start to verdict.

use crate::explained::{self, Case};
use cairn_differential_tests::ask::{Answer, Clients, TAG};
use cairn_differential_tests::compare::{Outcome, compare};
use cairn_differential_tests::draft::Draft;
use cairn_differential_tests::generate::generate;
use cairn_differential_tests::meet::clients;
use cairn_differential_tests::pods::Pods;
use cairn_differential_tests::proxies::Proxies;
use cairn_differential_tests::push::{Edit, Push};
use cairn_test_support::backend::Recorded;
use cairn_test_support::istiod::FakeIstiod;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// So many requests in a theme.
const REQUESTS: usize = 300;
/// Mirrored requests may arrive after the answer.
const GRACE: Duration = Duration::from_millis(500);
/// So many differences are printed in full.
const SHOWN: usize = 40;

/// A push, and how it is edited.
pub struct Theme {
    /// For the report.
    pub title: &'static str,
    folder: &'static str,
    namespace: &'static str,
    edit: Edit,
}

/// All that are tried.
pub const THEMES: [Theme; 5] = [
    theme("virtualservice", "virtualservice", "vs", Edit::AsPushed),
    theme("gateway-api", "gateway-api", "gwapi", Edit::AsPushed),
    theme("authorization", "authorization", "authz", Edit::AsPushed),
    theme("authorization by remote.ip", "authorization", "authz", Edit::RemoteIp),
    theme("plain", "plain", "plain", Edit::AsPushed),
];

const fn theme(
    title: &'static str,
    folder: &'static str,
    namespace: &'static str,
    edit: Edit,
) -> Theme {
    Theme { title, folder, namespace, edit }
}

/// How it went.
#[derive(Default)]
pub struct Tally {
    pub requests: usize,
    /// Requests that reached a backend through Envoy.
    pub forwarded: usize,
    pub equal: usize,
    pub explained: usize,
    pub unexplained: usize,
}

/// Asks both proxies everything; `used` counts how often each rule explained something.
pub async fn run(
    theme: &Theme,
    n: u8,
    seed: u64,
    envoy: &Path,
    dir: &Path,
    used: &mut [usize],
) -> Tally {
    let dir = dir.join(n.to_string());
    std::fs::create_dir_all(&dir).unwrap();
    let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/captures");
    let push = Push::read(&captures.join(theme.folder), theme.edit);
    let istiod = FakeIstiod::start().await;
    let pods = Pods::start(&push, &istiod).await;
    let proxies = Proxies::start(&push, &istiod, (theme.namespace, n), envoy, &dir).await;
    let drafts = generate(&push, REQUESTS, seed + u64::from(n));
    let mut to_envoy = Clients::new(proxies.envoy, &proxies.id, &istiod, clients());
    let mut to_cairn = Clients::new(proxies.cairn, &proxies.id, &istiod, clients());
    let mut answers: Vec<(Answer, Answer)> = Vec::new();
    for (n, draft) in drafts.iter().enumerate() {
        let (e, c) = (tag(n, 'e'), tag(n, 'c'));
        answers.push(tokio::join!(to_envoy.ask(draft, &e), to_cairn.ask(draft, &c)));
    }
    tokio::time::sleep(GRACE).await;
    let mut received = by_tag(&pods);
    let mut tally = Tally::default();
    for (n, (draft, (envoy, cairn))) in drafts.iter().zip(answers).enumerate() {
        let mut outcome = |answer, side| Outcome {
            answer,
            received: received.remove(&tag(n, side)).unwrap_or_default(),
        };
        let (envoy, cairn) = (outcome(envoy, 'e'), outcome(cairn, 'c'));
        judge(theme.title, draft, (&envoy, &cairn), &mut tally, used);
    }
    drop((proxies, pods));
    tokio::time::sleep(Duration::from_millis(100)).await;
    tally
}

fn tag(n: usize, side: char) -> String {
    format!("{n:04}{side}")
}

fn judge(
    title: &str,
    draft: &Draft,
    (envoy, cairn): (&Outcome, &Outcome),
    tally: &mut Tally,
    used: &mut [usize],
) {
    tally.requests += 1;
    tally.forwarded += usize::from(!envoy.received.is_empty());
    let differences = compare(&draft.method, envoy, cairn);
    if differences.is_empty() {
        tally.equal += 1;
        return;
    }
    let mut strange = Vec::new();
    for difference in &differences {
        match explained::find(&Case { title, difference, draft, envoy, cairn }) {
            Some(rule) => used[rule] += 1,
            None => strange.push(difference),
        }
    }
    if strange.is_empty() {
        tally.explained += 1;
        return;
    }
    tally.unexplained += 1;
    if tally.unexplained <= SHOWN {
        println!("\n{draft}");
        for difference in strange {
            println!("  != {}", difference.what);
            println!("     Envoy: {}", difference.envoy);
            println!("     Cairn: {}", difference.cairn);
        }
    }
}

/// What backends got, by the request's tag and in the order of clusters.
fn by_tag(pods: &Pods) -> BTreeMap<String, Vec<(String, Recorded)>> {
    let mut all: BTreeMap<String, Vec<(String, Recorded)>> = BTreeMap::new();
    for (cluster, seen) in pods.received() {
        let tag = seen.headers.get(TAG).unwrap_or_default().to_owned();
        all.entry(tag).or_default().push((cluster, seen));
    }
    all
}

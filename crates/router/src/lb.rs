//! Choosing an endpoint.
//!
//! Which endpoints are candidates is settled when the set is compiled: the healthy ones of the
//! lowest priority that has any (no panic mode and no spilling over, as istiod configures a
//! waypoint). What is left for each request is a draw:
//!
//! - **Least request**: two are drawn, the less busy one is taken. With equal weights the two are
//!   different ones and the fewer active requests win. With differing weights each is drawn in
//!   proportion to its weight and the lower `active / weight` wins; idle endpoints thus get exactly
//!   their share, busy ones level out at it. (Envoy switches to a deadline queue over
//!   `weight / (active + 1)` there, which needs a lock.)
//! - **Round robin**: in turn. With differing weights the turn is an interleaved list in which each
//!   endpoint stands in proportion to its weight; it has at most [`MAX_TURN`] entries plus one per
//!   endpoint, weights are rounded where they need more.
//! - **Random**: drawn in proportion to the weights.

use crate::endpoint::Endpoint;
use crate::spec::LbPolicy;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Entries of a weighted turn, apart from the one that every endpoint gets at least.
pub const MAX_TURN: usize = 4096;

/// The candidates and how one of them is drawn.
#[derive(Debug)]
pub(crate) struct Balancer {
    candidates: Box<[Arc<Endpoint>]>,
    choice: Choice,
}

#[derive(Debug)]
enum Choice {
    LeastRequest(Draw),
    Random(Draw),
    Turn(Turn),
}

/// Drawn by chance.
#[derive(Debug)]
enum Draw {
    Even,
    /// Sums of the weights up to and including each candidate.
    ByWeight(Box<[u64]>),
}

/// Taken in turn.
#[derive(Debug)]
enum Turn {
    Even,
    /// Positions among the candidates.
    Listed(Box<[u32]>),
}

impl Balancer {
    pub(crate) fn new(endpoints: &[Arc<Endpoint>], policy: LbPolicy) -> Self {
        let healthy = || endpoints.iter().filter(|endpoint| endpoint.is_healthy());
        let priority = healthy().map(|endpoint| endpoint.priority).min();
        let candidates: Box<[_]> =
            healthy().filter(|endpoint| Some(endpoint.priority) == priority).cloned().collect();
        let weights: Vec<u32> = candidates.iter().map(|endpoint| endpoint.weight.max(1)).collect();
        let choice = match policy {
            LbPolicy::LeastRequest => Choice::LeastRequest(Draw::new(&weights)),
            LbPolicy::Random => Choice::Random(Draw::new(&weights)),
            LbPolicy::RoundRobin => Choice::Turn(Turn::new(&weights)),
        };
        Balancer { candidates, choice }
    }

    pub(crate) fn candidates(&self) -> &[Arc<Endpoint>] {
        &self.candidates
    }

    /// See [`Cluster::pick`](crate::cluster::Cluster::pick).
    pub(crate) fn pick(
        &self,
        cursor: &AtomicU64,
        mut random: impl FnMut() -> u64,
        tried: &[u64],
        attempts: u32,
    ) -> Option<&Arc<Endpoint>> {
        let fresh = |endpoint: &Arc<Endpoint>| !tried.contains(&endpoint.id());
        let mut drawn = self.draw(cursor, &mut random)?;
        for _ in 0..attempts {
            if fresh(drawn) {
                return Some(drawn);
            }
            drawn = self.draw(cursor, &mut random)?;
        }
        if attempts == 0 || fresh(drawn) {
            return Some(drawn);
        }
        let start = below(random(), self.candidates.len());
        let (before, after) = self.candidates.split_at_checked(start)?;
        after.iter().chain(before).find(|endpoint| fresh(endpoint)).or(Some(drawn))
    }

    /// `None` only without candidates.
    fn draw(&self, cursor: &AtomicU64, random: &mut impl FnMut() -> u64) -> Option<&Arc<Endpoint>> {
        let candidates = &self.candidates;
        let count = candidates.len();
        if count <= 1 {
            return candidates.first();
        }
        match &self.choice {
            Choice::Random(draw) => candidates.get(draw.one(random(), count)),
            Choice::Turn(turn) => {
                candidates.get(turn.at(cursor.fetch_add(1, Ordering::Relaxed), count))
            }
            Choice::LeastRequest(draw) => {
                let (first, second) = draw.two(random(), random(), count);
                let (first, second) = (candidates.get(first)?, candidates.get(second)?);
                Some(if busier(first, second) { second } else { first })
            }
        }
    }
}

/// `active / weight` of `one` is higher than that of `other`.
fn busier(one: &Endpoint, other: &Endpoint) -> bool {
    let load = |endpoint: &Endpoint, weight: u32| {
        u64::from(endpoint.state.active()) * u64::from(weight.max(1))
    };
    load(one, other.weight) > load(other, one.weight)
}

impl Draw {
    fn new(weights: &[u32]) -> Self {
        if even(weights) {
            return Draw::Even;
        }
        let sums = weights.iter().scan(0_u64, |sum, weight| {
            *sum += u64::from(*weight);
            Some(*sum)
        });
        Draw::ByWeight(sums.collect())
    }

    fn one(&self, random: u64, count: usize) -> usize {
        match self {
            Draw::Even => below(random, count),
            Draw::ByWeight(sums) => {
                let total = sums.last().copied().unwrap_or(0);
                let point = scale(random, total);
                sums.partition_point(|sum| *sum <= point)
            }
        }
    }

    /// Two different ones with equal weights; otherwise perhaps the same one twice.
    fn two(&self, random: u64, other: u64, count: usize) -> (usize, usize) {
        let first = self.one(random, count);
        let second = match self {
            Draw::Even => (first + 1 + below(other, count - 1)) % count,
            Draw::ByWeight(_) => self.one(other, count),
        };
        (first, second)
    }
}

impl Turn {
    fn new(weights: &[u32]) -> Self {
        if even(weights) {
            return Turn::Even;
        }
        let divisor = weights.iter().fold(0, |divisor, weight| greatest_divisor(divisor, *weight));
        let sum: u64 = weights.iter().map(|weight| u64::from(weight / divisor)).sum();
        let most = MAX_TURN as u64;
        let entries = |weight: u32| {
            let share = u64::from(weight / divisor);
            if sum <= most { share } else { (share * most / sum).max(1) }
        };
        // The k-th of n entries of an endpoint belongs at (2k + 1) / 2n of the round.
        let mut places: Vec<(u64, u64, u32)> = weights
            .iter()
            .zip(0_u32..)
            .flat_map(|(weight, position)| {
                let count = entries(*weight);
                (0..count).map(move |k| (2 * k + 1, count, position))
            })
            .collect();
        places.sort_by(|a, b| (a.0 * b.1).cmp(&(b.0 * a.1)).then(a.2.cmp(&b.2)));
        Turn::Listed(places.into_iter().map(|(_, _, position)| position).collect())
    }

    fn at(&self, cursor: u64, count: usize) -> usize {
        match self {
            Turn::Even => remainder(cursor, count),
            Turn::Listed(list) => {
                list.get(remainder(cursor, list.len())).map_or(0, |position| *position as usize)
            }
        }
    }
}

fn even(weights: &[u32]) -> bool {
    weights.windows(2).all(|pair| matches!(pair, [one, other] if one == other))
}

/// Spreads `random` evenly over `0..bound`; 0 if `bound` is 0.
fn scale(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

fn below(random: u64, bound: usize) -> usize {
    scale(random, bound as u64) as usize
}

fn remainder(cursor: u64, count: usize) -> usize {
    cursor.checked_rem(count as u64).unwrap_or(0) as usize
}

fn greatest_divisor(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::cluster::ClusterState;
    use crate::endpoint::{ActiveGuard, EndpointState};
    use crate::spec::{Health, Locality};
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    /// Weight, priority and health of each.
    fn endpoints(of: &[(u32, u32, Health)]) -> Vec<Arc<Endpoint>> {
        let cluster = Arc::new(ClusterState::new(0));
        let endpoint = |(id, (weight, priority, health)): (u64, &(u32, u32, Health))| {
            Arc::new(Endpoint {
                address: ([10, 0, 0, 1], 8000 + id as u16).into(),
                tunnel: None,
                weight: *weight,
                priority: *priority,
                health: *health,
                locality: Arc::new(Locality::default()),
                state: Arc::new(EndpointState::new(id, Arc::clone(&cluster))),
            })
        };
        (0..).zip(of).map(endpoint).collect()
    }

    fn weighted(weights: &[u32]) -> Vec<Arc<Endpoint>> {
        endpoints(&weights.iter().map(|w| (*w, 0, Health::Healthy)).collect::<Vec<_>>())
    }

    /// How often each was picked in `rounds`.
    fn counts(balancer: &Balancer, ids: usize, rounds: usize) -> Vec<usize> {
        let mut rng = StdRng::seed_from_u64(7);
        let cursor = AtomicU64::new(0);
        let mut counts = vec![0; ids];
        for _ in 0..rounds {
            let picked = balancer.pick(&cursor, || rng.random(), &[], 0).unwrap();
            counts[picked.id() as usize] += 1;
        }
        counts
    }

    fn assert_near(counts: &[usize], expected: &[usize], slack: usize) {
        for (count, expected) in counts.iter().zip(expected) {
            assert!(count.abs_diff(*expected) <= slack, "{counts:?} is not near {expected:?}");
        }
    }

    #[test]
    fn nobody_without_healthy_endpoints() {
        for policy in [LbPolicy::LeastRequest, LbPolicy::RoundRobin, LbPolicy::Random] {
            let cursor = AtomicU64::new(0);
            let none = Balancer::new(&[], policy);
            assert!(none.pick(&cursor, || 0, &[], 5).is_none());
            let ill = endpoints(&[(1, 0, Health::Unhealthy), (1, 0, Health::Draining)]);
            assert!(Balancer::new(&ill, policy).pick(&cursor, || 0, &[], 5).is_none());
        }
    }

    #[test]
    fn lowest_priority_with_a_healthy_endpoint() {
        let of = endpoints(&[
            (1, 0, Health::Unhealthy),
            (1, 2, Health::Healthy),
            (1, 1, Health::Healthy),
            (1, 1, Health::Draining),
            (1, 1, Health::Healthy),
        ]);
        let balancer = Balancer::new(&of, LbPolicy::Random);
        let ids: Vec<u64> = balancer.candidates().iter().map(|endpoint| endpoint.id()).collect();
        assert_eq!(ids, [2, 4]);
    }

    #[test]
    fn shares_follow_weights() {
        let equal = weighted(&[1, 1, 1, 1]);
        let differing = weighted(&[1, 2, 5]);
        for policy in [LbPolicy::LeastRequest, LbPolicy::RoundRobin, LbPolicy::Random] {
            let seen = counts(&Balancer::new(&equal, policy), 4, 8000);
            assert_near(&seen, &[2000; 4], 200);
            let seen = counts(&Balancer::new(&differing, policy), 3, 8000);
            assert_near(&seen, &[1000, 2000, 5000], 200);
        }
    }

    #[test]
    fn round_robin_is_exact_and_interleaved() {
        let balancer = Balancer::new(&weighted(&[10, 10, 10]), LbPolicy::RoundRobin);
        assert_eq!(counts(&balancer, 3, 300), [100, 100, 100]);
        let of = weighted(&[30, 10]);
        let balancer = Balancer::new(&of, LbPolicy::RoundRobin);
        let cursor = AtomicU64::new(0);
        let turn: Vec<u64> =
            (0..8).map(|_| balancer.pick(&cursor, || 0, &[], 0).unwrap().id()).collect();
        assert_eq!(turn, [0, 0, 1, 0, 0, 0, 1, 0]);
    }

    #[test]
    fn less_busy_of_two() {
        let of = weighted(&[1, 1]);
        let balancer = Balancer::new(&of, LbPolicy::LeastRequest);
        let _busy = of[0].begin();
        assert_eq!(counts(&balancer, 2, 100), [0, 100]);
        // Two in flight at weight 3 are less than one at weight 1.
        let of = weighted(&[1, 3]);
        let balancer = Balancer::new(&of, LbPolicy::LeastRequest);
        let _busy = (of[0].begin(), of[1].begin(), of[1].begin());
        let seen = counts(&balancer, 2, 1600);
        assert_near(&seen, &[100, 1500], 60);
    }

    #[test]
    fn least_request_levels_out() {
        let of = weighted(&[1; 10]);
        let balancer = Balancer::new(&of, LbPolicy::LeastRequest);
        let mut rng = StdRng::seed_from_u64(3);
        let cursor = AtomicU64::new(0);
        let guards: Vec<ActiveGuard> = (0..1000)
            .map(|_| balancer.pick(&cursor, || rng.random(), &[], 0).unwrap().begin())
            .collect();
        for endpoint in &of {
            assert!(endpoint.state.active().abs_diff(100) <= 6, "{}", endpoint.state.active());
        }
        drop(guards);
        assert!(of.iter().all(|endpoint| endpoint.state.active() == 0));
    }

    #[test]
    fn tried_ones_are_avoided() {
        for policy in [LbPolicy::LeastRequest, LbPolicy::RoundRobin, LbPolicy::Random] {
            let of = weighted(&[1000, 1, 1]);
            let balancer = Balancer::new(&of, policy);
            let mut rng = StdRng::seed_from_u64(11);
            let cursor = AtomicU64::new(0);
            for _ in 0..200 {
                let picked = balancer.pick(&cursor, || rng.random(), &[0, 2], 5).unwrap();
                assert_eq!(picked.id(), 1);
                assert!(balancer.pick(&cursor, || rng.random(), &[0, 1, 2], 5).is_some());
            }
            // Without further draws the first one stands, tried or not.
            assert!(balancer.pick(&cursor, || rng.random(), &[0], 0).is_some());
        }
    }

    proptest! {
        #[test]
        fn turn_is_bounded_and_holds_everybody(weights in prop::collection::vec(1_u32.., 1..200)) {
            if let Turn::Listed(list) = Turn::new(&weights) {
                prop_assert!(list.len() <= MAX_TURN + weights.len());
                for position in 0..weights.len() as u32 {
                    prop_assert!(list.contains(&position));
                }
            }
        }

        #[test]
        fn small_turns_are_exact(weights in prop::collection::vec(1_u32..20, 2..20)) {
            if let Turn::Listed(list) = Turn::new(&weights) {
                let times = |p: usize| list.iter().filter(|at| **at as usize == p).count() as u32;
                let unit = weights[0] / times(0);
                for (position, weight) in weights.iter().enumerate() {
                    prop_assert_eq!(times(position) * unit, *weight);
                }
            }
        }

        #[test]
        fn any_random_number_picks(
            weights in prop::collection::vec(1_u32.., 1..20),
            numbers in prop::collection::vec(any::<u64>(), 1..20),
        ) {
            for policy in [LbPolicy::LeastRequest, LbPolicy::RoundRobin, LbPolicy::Random] {
                let balancer = Balancer::new(&weighted(&weights), policy);
                let cursor = AtomicU64::new(numbers[0]);
                for extreme in [0, u64::MAX] {
                    prop_assert!(balancer.pick(&cursor, || extreme, &[0], 3).is_some());
                }
                let mut turn = numbers.iter().cycle();
                let mut random = || *turn.next().unwrap();
                for _ in 0..numbers.len() {
                    prop_assert!(balancer.pick(&cursor, &mut random, &[0], 3).is_some());
                }
            }
        }
    }
}

//! Which members serve which shard: rendezvous hashing.
//!
//! Each member has a rank in each shard, by a hash of both; the first ones serve it. So a member that comes or goes
//! moves nothing but its own places, and who starts anew comes to the same places.

use super::entry::Entry;
use crate::objects::shard_label;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Members that a shard has at least, where there are so many.
pub const LEAST: usize = 2;
/// A shard has this part of all members, where that is more.
pub const PART: usize = 4;

/// Labels of an entry that are to change: `true` is added, `false` taken away.
pub type Change = BTreeMap<String, bool>;

/// The members of each shard, in the order of `shards`.
pub fn places(shards: &[String], members: &BTreeSet<IpAddr>) -> Vec<BTreeSet<IpAddr>> {
    let count = (members.len() / PART).max(LEAST);
    let of = |shard: &String| {
        let mut ranked: Vec<(u64, IpAddr)> =
            members.iter().map(|member| (rank(shard, *member), *member)).collect();
        ranked.sort_unstable_by(|one, other| other.cmp(one));
        ranked.into_iter().take(count).map(|(_, member)| member).collect()
    };
    shards.iter().map(of).collect()
}

/// FNV-1a over both, with its bits mixed (splitmix64), so that names that differ in one digit are far apart.
fn rank(shard: &str, member: IpAddr) -> u64 {
    let text = format!("{shard}/{member}");
    let mut hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    for multiplier in [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb] {
        hash = (hash ^ (hash >> 29)).wrapping_mul(multiplier);
    }
    hash ^ (hash >> 32)
}

/// What is to change of the labels of `entries`, in their order. Of a shard a member is taken away only when all that
/// are to serve it do: no shard is ever left without one.
pub fn changes(
    gateway: &str,
    shards: &[String],
    entries: &[Entry],
    members: &BTreeSet<IpAddr>,
) -> Vec<Change> {
    let mut changes = vec![Change::new(); entries.len()];
    if members.is_empty() {
        return changes;
    }
    for (shard, places) in shards.iter().zip(places(shards, members)) {
        let label = shard_label(gateway, shard);
        let has = |entry: &Entry| entry.labels.get(&label).is_some_and(|value| value == "true");
        let placed = |entry: &Entry| entry.address.is_some_and(|address| places.contains(&address));
        let all_serve = entries.iter().filter(|entry| placed(entry)).all(has);
        for (entry, change) in entries.iter().zip(&mut changes) {
            match (placed(entry), has(entry)) {
                (true, false) => drop(change.insert(label.clone(), true)),
                (false, true) if all_serve => drop(change.insert(label.clone(), false)),
                _ => {}
            }
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(numbers: impl Iterator<Item = u8>) -> BTreeSet<IpAddr> {
        numbers.map(|number| IpAddr::from([10, 8, 0, number])).collect()
    }

    fn shards(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("s{number:02}")).collect()
    }

    #[test]
    fn a_quarter_of_the_members_and_two_at_least() {
        for (count, wanted) in [(0, 0), (1, 1), (2, 2), (7, 2), (8, 2), (12, 3), (100, 25)] {
            let places = places(&shards(16), &members(0..count));
            assert!(places.iter().all(|place| place.len() == wanted), "{count}: {places:?}");
        }
    }

    #[test]
    fn every_member_serves_about_as_much() {
        let places = places(&shards(64), &members(0..16));
        for member in members(0..16) {
            let served = places.iter().filter(|place| place.contains(&member)).count();
            assert!((6..=28).contains(&served), "{member} serves {served} of 64 by a mean of 16");
        }
    }

    #[test]
    fn who_comes_or_goes_moves_only_its_own_places() {
        let shards = shards(32);
        let before = places(&shards, &members(0..10));
        for gone in 0..10 {
            let left = members((0..10).filter(|number| *number != gone));
            let gone = IpAddr::from([10, 8, 0, gone]);
            for (before, after) in before.iter().zip(places(&shards, &left)) {
                let moved = before.difference(&after).count();
                assert_eq!(
                    moved,
                    usize::from(before.contains(&gone)),
                    "{gone}: {before:?} {after:?}"
                );
            }
        }
    }

    #[test]
    fn a_shard_always_has_somebody_who_serves() {
        let shards = shards(8);
        let entry = |number: u8| Entry {
            name: format!("e{number}"),
            address: Some(IpAddr::from([10, 8, 0, number])),
            ..Entry::default()
        };
        let mut entries: Vec<Entry> = (0..8).map(entry).collect();
        let serve = |entries: &[Entry], shard: &str| {
            let label = shard_label("p", shard);
            entries.iter().filter(|entry| entry.labels.contains_key(&label)).count()
        };
        let apply = |entries: &mut Vec<Entry>, changes: &[Change], only: Option<bool>| {
            for (entry, change) in entries.iter_mut().zip(changes) {
                for (label, add) in
                    change.iter().filter(|(_, add)| only.is_none_or(|only| only == **add))
                {
                    match add {
                        true => drop(entry.labels.insert(label.clone(), "true".to_owned())),
                        false => drop(entry.labels.remove(label)),
                    }
                }
            }
        };
        // The members of each stage; in between every change of a stage may fail but those that take away.
        for stage in [
            members(0..2),
            members(2..8),
            members(0..8),
            members(5..6),
            members(0..0),
            members(1..4),
        ] {
            for only in [Some(false), Some(true), Some(false), None] {
                let next = changes("p", &shards, &entries, &stage);
                apply(&mut entries, &next, only);
                if only != Some(false) || serve(&entries, "s00") > 0 {
                    assert!(
                        shards.iter().all(|shard| serve(&entries, shard) > 0),
                        "{stage:?} {entries:?}"
                    );
                }
            }
            let last = changes("p", &shards, &entries, &stage);
            assert!(last.iter().all(Change::is_empty), "it comes to an end: {stage:?} {last:?}");
        }
    }
}

//! Admission by paused time, by threads, and by chance.

#![allow(clippy::unwrap_used)]

use super::*;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use proptest::prelude::*;

fn overload(capacity: u32) -> Arc<Overload> {
    Overload::new(OverloadConfig { line: 8, waiting: 12, ..OverloadConfig::new(capacity) })
}

/// Takes room at once, so many times; how often it was there.
fn take(share: &Arc<Share>, times: usize) -> usize {
    (0..times).filter(|_| share.take(REQUEST)).count()
}

/// So many that wait.
fn wait(share: &Arc<Share>, times: usize) -> Vec<BoxFuture<'static, Result<(), Refused>>> {
    let wait = |_| {
        let share = Arc::clone(share);
        let mut waits = async move { share.wait().await }.boxed();
        assert_eq!((&mut waits).now_or_never(), None);
        waits
    };
    (0..times).map(wait).collect()
}

/// What those that have an answer were told.
fn answers(waits: &mut Vec<BoxFuture<'static, Result<(), Refused>>>) -> Vec<Result<(), Refused>> {
    let mut answers = Vec::new();
    waits.retain_mut(|wait| match wait.now_or_never() {
        Some(answer) => {
            answers.push(answer);
            false
        }
        None => true,
    });
    answers
}

#[tokio::test(start_paused = true)]
async fn alone_a_tenant_has_everything() {
    let all = overload(10);
    let shop = all.share();
    assert_eq!(take(&shop, 20), 10);
    let reading = all.reading();
    assert_eq!((reading.in_flight, reading.waiting, reading.active_tenants), (10.0, 0, 1));
    let mut waits = wait(&shop, 2);
    shop.release(REQUEST);
    assert_eq!(answers(&mut waits), [Ok(())]);
    assert!(!shop.take(REQUEST), "those that wait come first");
    (0..10).for_each(|_| shop.release(REQUEST));
    assert_eq!(answers(&mut waits), [Ok(())]);
    shop.release(REQUEST);
    assert_eq!(all.reading().in_flight, 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_greedy_neighbour_takes_nothing_from_a_share() {
    let all = overload(10);
    let (shop, bank) = (all.share(), all.share());
    assert_eq!(take(&bank, 1), 1);
    assert_eq!(take(&shop, 50), 5, "half of all is the most");
    let mut waits = wait(&shop, 8);
    assert_eq!(take(&bank, 4), 4, "at once, past those that wait");
    tokio::time::advance(Duration::from_millis(500)).await;
    // It looks again when somebody ends.
    bank.release(REQUEST);
    assert_eq!(answers(&mut waits), vec![Err(Refused::Delay); 8]);
    assert_eq!(take(&bank, 1), 1);
}

#[tokio::test(start_paused = true)]
async fn whoever_was_alone_makes_room_as_it_ends() {
    let all = overload(10);
    let (shop, bank) = (all.share(), all.share());
    assert_eq!(take(&shop, 20), 10);
    let mut greedy = wait(&shop, 3);
    assert_eq!(take(&bank, 1), 0);
    let mut modest = wait(&bank, 5);
    for count in 1..=5 {
        shop.release(REQUEST);
        assert_eq!(answers(&mut modest), [Ok(())], "{count}");
        assert!(answers(&mut greedy).is_empty(), "they came before, and are beyond their share");
    }
    shop.release(REQUEST);
    assert_eq!(answers(&mut greedy), [Ok(())]);
}

#[tokio::test(start_paused = true)]
async fn those_beyond_their_share_are_served_in_turn() {
    let all = overload(10);
    let tenants: Vec<_> = (0..4).map(|_| all.share()).collect();
    let (idle, busy) = tenants.split_last().unwrap();
    assert_eq!(take(idle, 1), 1);
    let held: Vec<_> = busy.iter().map(|share| take(share, 9)).collect();
    // Each had its share of the tenants that were there when it came.
    assert_eq!(held, [5, 3, 1]);
    let mut waits: Vec<_> = busy.iter().map(|share| wait(share, 3)).collect();
    for (share, held) in busy.iter().zip(held) {
        (0..held).for_each(|_| share.release(REQUEST));
    }
    // A share is 2.5 requests: two of each, and beyond that until eight are under way.
    let mut served: Vec<_> = waits.iter_mut().map(|waits| answers(waits).len()).collect();
    served.sort_unstable();
    assert_eq!(served, [2, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn within_its_share_a_request_waits_for_a_second_at_most() {
    let all = overload(2);
    let (shop, bank) = (all.share(), all.share());
    assert_eq!(take(&shop, 3), 2);
    let mut waits = wait(&bank, 1);
    tokio::time::advance(Duration::from_millis(990)).await;
    all.serve_at(all.now());
    assert!(answers(&mut waits).is_empty());
    tokio::time::advance(Duration::from_millis(10)).await;
    assert_eq!(waits.pop().unwrap().await, Err(Refused::Timeout));
    assert_eq!(all.reading().waiting, 0);
}

/// Nobody ends and nobody comes: they look themselves.
#[tokio::test(start_paused = true)]
async fn a_standing_line_is_refused_by_its_own_clock() {
    let all = overload(4);
    let (shop, bank) = (all.share(), all.share());
    assert_eq!((take(&bank, 1), take(&shop, 9)), (1, 2));
    let begun = Instant::now();
    let told = join_all(wait(&shop, 5)).await;
    assert_eq!(told, vec![Err(Refused::Delay); 5]);
    assert!(begun.elapsed() < Duration::from_millis(300), "of virtual time: {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn lines_are_short_and_those_within_their_share_get_in() {
    let all = overload(4);
    let (shop, bank, cafe) = (all.share(), all.share(), all.share());
    assert_eq!(take(&shop, 9), 4);
    let mut greedy = wait(&shop, 8);
    assert_eq!(shop.wait().await, Err(Refused::Full));
    let mut more = wait(&bank, 4);
    assert_eq!(all.reading().waiting, 12);
    let mut modest = wait(&cafe, 1);
    assert_eq!(answers(&mut greedy), [Err(Refused::Full)], "it makes room");
    assert_eq!((answers(&mut more), answers(&mut modest)), (vec![], vec![]));
    assert_eq!(all.reading().waiting, 12);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_the_line_takes_nothing() {
    let all = overload(2);
    let shop = all.share();
    assert_eq!(take(&shop, 2), 2);
    let mut waits = wait(&shop, 3);
    drop(waits.remove(0));
    shop.release(REQUEST);
    // Granted, and gone before it was taken.
    drop(waits.remove(0));
    assert_eq!(answers(&mut waits), [Ok(())]);
    (0..2).for_each(|_| shop.release(REQUEST));
    let reading = all.reading();
    assert_eq!((reading.in_flight, reading.waiting), (0.0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_tenant_is_active_for_some_seconds_more() {
    let all = overload(10);
    let (shop, bank) = (all.share(), all.share());
    assert_eq!(take(&bank, 1), 1);
    bank.release(REQUEST);
    assert_eq!(take(&shop, 20), 5, "room is kept for the other one");
    let mut active = Vec::new();
    for _ in 0..3 {
        tokio::time::advance(MEMORY).await;
        all.look_after();
        active.push(all.reading().active_tenants);
    }
    assert_eq!(active, [2, 1, 1]);
    assert_eq!(take(&shop, 20), 5);
    assert_eq!(take(&bank, 1), 0);
    assert_eq!(all.reading().active_tenants, 2);
}

#[test]
fn opaque_connections_weigh_a_tenth() {
    let all = overload(1);
    let shop = all.share();
    assert_eq!((0..20).filter(|_| shop.take(1)).count(), 10);
    assert!(!shop.take(REQUEST));
}

/// Whatever the order on however many threads: nothing is lost, and the capacity is kept.
#[test]
fn threads_agree() {
    let all = Overload::new(OverloadConfig {
        max_wait: Duration::from_secs(60),
        ..OverloadConfig::new(3)
    });
    let run = |share: Arc<Share>| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            for _ in 0..2000 {
                if share.take(REQUEST) || share.wait().await.is_ok() {
                    tokio::task::yield_now().await;
                    share.release(REQUEST);
                }
            }
        });
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let share = all.share();
            for _ in 0..2 {
                let share = Arc::clone(&share);
                scope.spawn(move || run(share));
            }
        }
    });
    let reading = all.reading();
    assert_eq!((reading.in_flight, reading.waiting), (0.0, 0));
}

/// How many of the first tenant wait.
fn of_first(waiting: &[(usize, u64, Answer)]) -> u64 {
    waiting.iter().filter(|(of, ..)| *of == 0).count() as u64
}

proptest! {
    /// Any order of arrivals, ends and pauses: the capacity is kept, a tenant that never wants more than its share is
    /// refused only after the longest wait, and all get an answer.
    #[test]
    fn shares_hold(
        steps in prop::collection::vec((0_u8..6, 0_usize..3, 0_u64..40_000), 1..300),
    ) {
        let all = overload(6);
        let tenants: Vec<_> = (0..3).map(|_| all.share()).collect();
        for share in &tenants {
            share.take(REQUEST);
            share.release(REQUEST);
        }
        let modest = &tenants[0];
        let (mut now, mut held) = (0, vec![0_u64; 3]);
        let mut waiting: Vec<(usize, u64, Answer)> = Vec::new();
        for (what, number, passed) in steps {
            now += passed;
            let share = &tenants[number];
            match what {
                // The first one has two at most, which is its share.
                0..=2 if number > 0 || held[0] + of_first(&waiting) <= 1 => {
                    if share.take(REQUEST) {
                        held[number] += 1;
                    } else if let Ok(answer) = share.stand(now) {
                        waiting.push((number, now, answer));
                    } else {
                        prop_assert!(number > 0, "refused within its share");
                    }
                }
                3 | 4 if held[number] > 0 => {
                    held[number] -= 1;
                    share.subtract(REQUEST);
                    all.serve_at(now);
                }
                _ => all.serve_at(now),
            }
            let mut fault = None;
            waiting.retain_mut(|(number, since, answer)| match answer.try_recv() {
                Ok(Ok(permit)) => {
                    permit.keep();
                    held[*number] += 1;
                    false
                }
                Ok(Err(why)) => {
                    if *number == 0 && !(why == Refused::Timeout && now - *since >= 1_000_000) {
                        fault = Some(why);
                    }
                    false
                }
                Err(_) => true,
            });
            prop_assert_eq!(fault, None);
            prop_assert!(held.iter().sum::<u64>() <= 6);
            prop_assert!(held[0] <= 2 && modest.used.load(Ordering::SeqCst) == held[0] * REQUEST);
            let idle = held.iter().sum::<u64>() == 0;
            prop_assert!(!idle || waiting.is_empty(), "room, and somebody waits");
        }
        for (share, held) in tenants.iter().zip(&held) {
            share.subtract(held * REQUEST);
        }
        all.serve_at(now + 2_000_000);
        for (.., mut answer) in waiting {
            prop_assert!(answer.try_recv().is_ok());
        }
    }
}

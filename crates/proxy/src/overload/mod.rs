//! Admission of requests when there is not room for all: shares of tenants, and short lines.
//!
//! One [`Overload`] is shared by the meshes of a process. A tenant is a namespace of destinations of one mesh, and
//! it is active while it has something under way and for some seconds after. While there is room, admission is a
//! few additions without a lock: what is under way of all and of the tenant, as in `load` in tenths of a request.
//! What does not fit waits in its tenant's line ([`queue`]); who ends, who comes and who has waited for an
//! interval looks whether somebody's turn has come. Tenants within their share go first, and are refused only
//! after the longest wait of all.

mod queue;
mod room;

pub(crate) use queue::Refused;

use crate::load::REQUEST;
use parking_lot::Mutex;
use queue::{Bounds, Queue};
use room::Room;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long a tenant without anything under way stays active: this long, up to twice.
const MEMORY: Duration = Duration::from_secs(5);

/// Between two looks at who has waited for too long, microseconds: all lines are looked at.
const JUDGE: u64 = 1_000;

/// Bounds of an [`Overload`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverloadConfig {
    /// Requests under way at once, of all meshes; an opaque connection counts as a tenth of one. At least 1.
    pub capacity: u32,
    /// A wait that is no sign of trouble (CoDel: `target`).
    pub target: Duration,
    /// For how long waits of a tenant beyond its share have to be longer until they are cut (CoDel: `interval`).
    pub interval: Duration,
    /// The longest wait.
    pub max_wait: Duration,
    /// Requests of one tenant that wait.
    pub line: usize,
    /// Requests that wait.
    pub waiting: usize,
}

impl OverloadConfig {
    /// The defaults for a capacity: 10 ms, 100 ms, 1 s, 256 and 1,024.
    pub fn new(capacity: u32) -> Self {
        OverloadConfig {
            capacity,
            target: Duration::from_millis(10),
            interval: Duration::from_millis(100),
            max_wait: Duration::from_secs(1),
            line: 256,
            waiting: 1024,
        }
    }
}

/// What an [`Overload`] has under way.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct OverloadReading {
    /// Requests that there is room for.
    pub capacity: f64,
    /// Requests under way, and a tenth for each opaque connection.
    pub in_flight: f64,
    /// Requests that wait.
    pub waiting: usize,
    /// Tenants among which the capacity is shared.
    pub active_tenants: usize,
}

/// A number on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Apart<T>(T);

/// Admits the requests of a process.
#[derive(Debug)]
pub struct Overload {
    capacity: u64,
    /// How often those that wait look themselves.
    look: Duration,
    start: Instant,
    used: Apart<AtomicU64>,
    waiting: Apart<AtomicUsize>,
    active: AtomicUsize,
    slow: Mutex<Slow>,
}

/// What is behind the lock.
#[derive(Debug)]
struct Slow {
    queue: Queue<Ticket>,
    /// The active ones.
    tenants: Vec<Arc<Share>>,
    /// When it was looked at which are active.
    looked: u64,
    /// When it was looked at who has waited for too long.
    judged: u64,
}

/// What one tenant has under way.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Share {
    overload: Arc<Overload>,
    used: AtomicU64,
    waiting: AtomicUsize,
    active: AtomicBool,
    /// Something was asked for since activity was looked at.
    touched: AtomicBool,
}

#[derive(Debug)]
struct Ticket {
    share: Arc<Share>,
    answer: oneshot::Sender<Result<Permit, Refused>>,
}

/// Room for a request that was granted and not taken yet.
#[derive(Debug)]
struct Permit(Option<Arc<Share>>);

/// Comes to who waits.
type Answer = oneshot::Receiver<Result<Permit, Refused>>;

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Overload {
    /// With nothing under way.
    pub fn new(config: OverloadConfig) -> Arc<Self> {
        let OverloadConfig { capacity, target, interval, max_wait, line, waiting } = config;
        let bounds = Bounds {
            target: micros(target),
            interval: micros(interval),
            max_wait: micros(max_wait),
            line,
            all: waiting,
        };
        Arc::new(Overload {
            capacity: u64::from(capacity.max(1)) * REQUEST,
            look: interval.min(max_wait).max(Duration::from_millis(1)),
            start: Instant::now(),
            used: Apart::default(),
            waiting: Apart::default(),
            active: AtomicUsize::new(0),
            slow: Mutex::new(Slow {
                queue: Queue::new(bounds),
                tenants: Vec::new(),
                looked: 0,
                judged: 0,
            }),
        })
    }

    /// What is under way.
    pub fn reading(&self) -> OverloadReading {
        OverloadReading {
            capacity: self.capacity as f64 / REQUEST as f64,
            in_flight: self.used.0.load(Ordering::Relaxed) as f64 / REQUEST as f64,
            waiting: self.waiting.0.load(Ordering::Relaxed),
            active_tenants: self.active.load(Ordering::Relaxed),
        }
    }

    fn now(&self) -> u64 {
        micros(self.start.elapsed())
    }

    /// The share of one more tenant, which is not active.
    pub(crate) fn share(self: &Arc<Self>) -> Arc<Share> {
        Arc::new(Share {
            overload: Arc::clone(self),
            used: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            active: AtomicBool::new(false),
            touched: AtomicBool::new(false),
        })
    }

    fn room(&self, used: u64, own: u64) -> Room {
        let active = self.active.load(Ordering::Relaxed) as u64;
        Room { capacity: self.capacity, used, own, active }
    }

    /// Room as it would be with one more request of a tenant.
    fn room_with(&self, share: &Share) -> Room {
        self.room(
            self.used.0.load(Ordering::SeqCst) + REQUEST,
            share.used.load(Ordering::SeqCst) + REQUEST,
        )
    }

    /// Whether a tenant wants more than its share, with what waits.
    fn is_over(&self, share: &Share) -> bool {
        let waiting = share.waiting.load(Ordering::Relaxed) as u64 * REQUEST;
        !self.room(0, share.used.load(Ordering::SeqCst) + waiting).is_within_share()
    }

    /// Forgets tenants that have had nothing under way for some seconds. Cheap, to be called from time to time.
    pub(crate) fn look_after(&self) {
        self.look_after_at(self.now());
    }

    fn look_after_at(&self, now: u64) {
        let mut slow = self.slow.lock();
        if now < slow.looked + micros(MEMORY) {
            return;
        }
        slow.looked = now;
        slow.tenants.retain(|share| {
            let stays = share.touched.swap(false, Ordering::Relaxed)
                || share.used.load(Ordering::SeqCst) > 0
                || share.waiting.load(Ordering::Relaxed) > 0;
            share.active.store(stays, Ordering::Relaxed);
            stays
        });
        self.active.store(slow.tenants.len(), Ordering::Relaxed);
        self.serve(&mut slow, now);
    }

    /// Lets in whose turn has come, and refuses who has waited for too long.
    fn serve(&self, slow: &mut Slow, now: u64) {
        if now >= slow.judged + JUDGE {
            slow.judged = now;
            for (ticket, why) in slow.queue.judge(now, |ticket| self.is_over(&ticket.share)) {
                ticket.answer(Err(why));
            }
        }
        let within = |ticket: &Ticket| {
            let room = self.room_with(&ticket.share);
            room.fits() && room.is_within_share()
        };
        let fits = |ticket: &Ticket| self.room_with(&ticket.share).fits();
        while self.used.0.load(Ordering::SeqCst) + REQUEST <= self.capacity {
            let next = slow.queue.pop(now, within).or_else(|| slow.queue.pop(now, fits));
            let Some(ticket) = next else { break };
            self.used.0.fetch_add(REQUEST, Ordering::SeqCst);
            ticket.share.used.fetch_add(REQUEST, Ordering::SeqCst);
            let permit = Permit(Some(Arc::clone(&ticket.share)));
            ticket.answer(Ok(permit));
        }
        self.waiting.0.store(slow.queue.len(), Ordering::SeqCst);
    }

    fn serve_at(&self, now: u64) {
        self.serve(&mut self.slow.lock(), now);
    }
}

impl Ticket {
    /// Hands over the answer. Who has gone takes nothing: the lock is held, so the room is given back in place.
    fn answer(self, answer: Result<Permit, Refused>) {
        self.share.waiting.fetch_sub(1, Ordering::Relaxed);
        if let Err(Ok(mut permit)) = self.answer.send(answer)
            && let Some(share) = permit.0.take()
        {
            share.subtract(REQUEST);
        }
    }
}

impl Share {
    fn touch(self: &Arc<Self>) {
        if !self.touched.load(Ordering::Relaxed) {
            self.touched.store(true, Ordering::Relaxed);
        }
        if !self.active.load(Ordering::Relaxed) {
            let mut slow = self.overload.slow.lock();
            if !self.active.swap(true, Ordering::Relaxed) {
                slow.tenants.push(Arc::clone(self));
                self.overload.active.store(slow.tenants.len(), Ordering::Relaxed);
            }
        }
    }

    /// Takes room of `weight` tenths of a request if there is any, without a wait; it is to be [released](Self::release).
    pub(crate) fn take(self: &Arc<Self>, weight: u64) -> bool {
        let overload = &*self.overload;
        self.touch();
        let used = overload.used.0.fetch_add(weight, Ordering::SeqCst) + weight;
        let own = self.used.fetch_add(weight, Ordering::SeqCst) + weight;
        let room = overload.room(used, own);
        let first = || {
            // Those that wait come first, except that who is within its share waits only behind its own.
            overload.waiting.0.load(Ordering::SeqCst) == 0
                || (room.is_within_share() && self.waiting.load(Ordering::Relaxed) == 0)
        };
        if room.fits() && first() {
            return true;
        }
        self.subtract(weight);
        false
    }

    fn subtract(&self, weight: u64) {
        self.overload.used.0.fetch_sub(weight, Ordering::SeqCst);
        self.used.fetch_sub(weight, Ordering::SeqCst);
    }

    /// Gives room back; whose turn has come gets it.
    pub(crate) fn release(&self, weight: u64) {
        self.subtract(weight);
        if self.overload.waiting.0.load(Ordering::SeqCst) > 0 {
            self.overload.serve_at(self.overload.now());
        }
    }

    /// Puts a request at the end of the line.
    fn stand(self: &Arc<Self>, now: u64) -> Result<Answer, Refused> {
        let overload = &*self.overload;
        let (answer, answered) = oneshot::channel();
        let mut slow = overload.slow.lock();
        let ticket = Ticket { share: Arc::clone(self), answer };
        let key = Arc::as_ptr(self) as usize;
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if let Err(ticket) = slow.queue.push(key, now, ticket) {
            // Who is within its share does not pay for those who are not.
            let evicted = if overload.is_over(self) {
                None
            } else {
                slow.queue.evict(|other| overload.is_over(&other.share))
            };
            let Some(evicted) = evicted else {
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                return Err(Refused::Full);
            };
            evicted.answer(Err(Refused::Full));
            if slow.queue.push(key, now, ticket).is_err() {
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                return Err(Refused::Full);
            }
        }
        // Said before looking for room, so that either this or who gives room back sees the other.
        overload.waiting.0.store(slow.queue.len(), Ordering::SeqCst);
        overload.serve(&mut slow, now);
        Ok(answered)
    }

    /// Waits for room for a request, which is to be [released](Self::release).
    pub(crate) async fn wait(self: &Arc<Self>) -> Result<(), Refused> {
        let overload = &*self.overload;
        let mut answered = self.stand(overload.now())?;
        loop {
            match tokio::time::timeout(overload.look, &mut answered).await {
                Ok(Ok(Ok(permit))) => {
                    permit.keep();
                    return Ok(());
                }
                Ok(Ok(Err(why))) => return Err(why),
                // Nobody answers any more: it cannot happen while the line is there.
                Ok(Err(_)) => return Err(Refused::Timeout),
                Err(_) => overload.serve_at(overload.now()),
            }
        }
    }
}

impl Permit {
    /// The room is kept, and released by whoever has it.
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(share) = self.0.take() {
            share.release(REQUEST);
        }
    }
}

#[cfg(test)]
mod tests;

//! What this process says of its load: `/load` as JSON, `cairn_load_*` for Prometheus.
//!
//! The proxy counts, the control groups say what there is, readiness says how the start went; here
//! they become one [`LoadReport`]. `docs/autoscaling.md` describes each field.

mod began;
mod capacity;
mod metrics;
mod tenants;

pub use began::Began;
pub use capacity::{LoadSettings, capacities};

use crate::cgroup::Cpu;
use crate::fleet::Roster;
use crate::ready::{Course, NotReady, Readiness};
use crate::waypoint::{Used, memory_limit};
use cairn_autoscale::load::{ClusterLoad, OTHER, SCHEMA_MINOR, SCHEMA_VERSION};
use cairn_autoscale::{
    Capacity, ColdStart, Connections, LoadReport, Queue, Queues, Shed, TenantLoad,
};
use cairn_proxy::{Delays, LoadReading, MeshInstance, Reading};
use cairn_telemetry::{Telemetry, Writer};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tenants::Recent;

/// Every so many measurements of delay, what tenants have done is remembered: 5 s.
const REMEMBER_EVERY: u32 = 100;

/// Where the numbers of a report come from.
pub struct Sources {
    /// When the process began.
    pub began: Began,
    /// Unique name, another one after a restart.
    pub instance: String,
    /// Region, zone, subzone, where they are known.
    pub locality: Option<[String; 3]>,
    /// Whether traffic is welcome, and how the start went.
    pub readiness: Arc<Readiness>,
    /// The meshes that are served at this moment.
    pub meshes: Box<dyn Fn() -> Vec<Arc<MeshInstance>> + Send + Sync>,
    /// Seconds since istiod's last answer, by type of resource.
    pub answers: Box<dyn Fn() -> BTreeMap<String, f64> + Send + Sync>,
    /// The clusters of a pool's member.
    pub clusters: Box<dyn Fn() -> Vec<ClusterLoad> + Send + Sync>,
    /// How late tasks run.
    pub delays: Delays,
    /// CPU time.
    pub cpu: Cpu,
    /// What there is.
    pub capacity: Capacity,
    /// Tenants that have a row of their own.
    pub tenants: usize,
    /// Zone where no locality is known, or another one than that.
    pub zone: Option<String>,
}

/// Makes reports.
pub struct Reporter {
    sources: Sources,
    memory: Used,
    seen: Mutex<Seen>,
    recent: Mutex<Recent>,
}

/// Every mesh that was served. What one has done counts on after it is gone.
#[derive(Default)]
struct Seen {
    there: Vec<Arc<MeshInstance>>,
    gone: Sums,
}

/// One mesh at one moment.
struct Look {
    instance: Arc<MeshInstance>,
    load: LoadReading,
    sums: Sums,
}

/// Numbers of meshes that add up. Only totals are kept of meshes that are gone.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    in_flight_seconds: f64,
    received: u64,
    sent: u64,
    requests: u64,
    shed: Shed,
    overflows: u64,
    handshakes: u64,
    connection_waits: Queue,
    endpoint_waits: Queue,
}

/// A process that files configure.
pub struct Configured {
    /// What was said of what it can do.
    pub settings: LoadSettings,
    /// Threads that serve.
    pub workers: usize,
    /// Their delays.
    pub delays: Delays,
    /// Whether traffic is welcome.
    pub readiness: Arc<Readiness>,
    /// Its meshes.
    pub roster: Arc<Roster>,
}

impl Configured {
    /// What reports its load.
    pub fn reporter(self, telemetry: &Telemetry) -> Arc<Reporter> {
        let Configured { settings, workers, delays, readiness, roster } = self;
        let cpu = Cpu::find(Path::new("/"));
        let sources = Sources {
            began: Began::of_process(),
            instance: instance_name(None),
            locality: None,
            readiness,
            meshes: Box::new(move || {
                roster.entries().iter().map(|entry| Arc::clone(&entry.instance)).collect()
            }),
            answers: Box::new(BTreeMap::new),
            clusters: Box::new(Vec::new),
            delays,
            capacity: capacities(&settings, &cpu, workers, memory_limit(None)),
            cpu,
            tenants: settings.tenants(),
            zone: settings.config.zone,
        };
        Reporter::new(sources, telemetry)
    }
}

impl Reporter {
    /// Adds `cairn_load_*` to each scrape.
    pub fn new(sources: Sources, telemetry: &Telemetry) -> Arc<Self> {
        let reporter = Arc::new(Reporter {
            sources,
            memory: Used::default(),
            seen: Mutex::default(),
            recent: Mutex::default(),
        });
        let weak = Arc::downgrade(&reporter);
        telemetry.register(Box::new(move |writer: &mut Writer| {
            if let Some(reporter) = weak.upgrade() {
                metrics::write(&reporter.report(), writer);
            }
        }));
        reporter
    }

    /// Measures for as long as it is polled.
    pub async fn run(self: Arc<Self>) {
        let mut tick = tokio::time::interval(Delays::INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for round in 0_u32.. {
            tick.tick().await;
            self.sources.delays.measure();
            if round.is_multiple_of(REMEMBER_EVERY) {
                let looks = self.look();
                self.recent.lock().remember(&looks, Instant::now());
            }
        }
    }

    /// All numbers of one moment.
    pub fn report(&self) -> LoadReport {
        let looks = self.look();
        let cpu_seconds_total = self.sources.cpu.seconds();
        // After everything was read: what has begun by now is in it.
        let moment = Instant::now();
        let mut sums = self.seen.lock().gone;
        let mut in_flight = 0.0;
        let mut connections = Connections::default();
        for look in &looks {
            let totals = look.load.totals(&look.load.sum(), moment);
            in_flight += totals.in_flight;
            sums.add(&look.sums);
            sums.in_flight_seconds += totals.in_flight_seconds;
            sums.requests += totals.requests;
            queue(&mut sums.connection_waits, &look.load, &look.load.connection_waits, moment);
            queue(&mut sums.endpoint_waits, &look.load, &look.load.endpoint_waits, moment);
            open(&mut connections, &look.instance);
        }
        let published = looks.iter().filter_map(|look| look.instance.published_at()).max();
        let age = |since: Instant| moment.saturating_duration_since(since).as_secs_f64();
        let delay = self.sources.delays.summary();
        let Sources { began, instance, locality, zone, readiness, answers, cpu, capacity, .. } =
            &self.sources;
        let zone = zone.as_ref().or(locality.as_ref().map(|[_, zone, _]| zone));
        let Shed { connections: refused, tunnels, requests } = sums.shed;
        let ready = readiness.check();
        LoadReport {
            version: SCHEMA_VERSION,
            minor: SCHEMA_MINOR,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            instance: instance.clone(),
            zone: zone.cloned().unwrap_or_default(),
            locality: locality.as_ref().map(|parts| parts.join("/")).unwrap_or_default(),
            uptime_seconds: began.until(moment).as_secs_f64(),
            ready: ready.is_ok(),
            draining: ready == Err(NotReady::Draining),
            capacity: *capacity,
            in_flight,
            in_flight_seconds_total: sums.in_flight_seconds,
            cpu_seconds_total,
            cpu_source: cpu.source().to_owned(),
            received_bytes_total: sums.received,
            sent_bytes_total: sums.sent,
            requests_total: sums.requests,
            shed_total: refused + tunnels + requests,
            shed: sums.shed,
            overflows_total: sums.overflows,
            queues: Queues { connection: sums.connection_waits, endpoint: sums.endpoint_waits },
            connections,
            handshakes_total: sums.handshakes,
            executor_delay_p50_milliseconds: milliseconds(delay.p50),
            executor_delay_p99_milliseconds: milliseconds(delay.p99),
            executor_delay_max_milliseconds: milliseconds(delay.max),
            memory_bytes: self.memory.look().unwrap_or_default(),
            cold_start: self.cold_start(),
            config_age_seconds: published.map_or(0.0, age),
            config_answer_age_seconds: answers(),
            clusters: (self.sources.clusters)(),
            tenants: self.tenants(&looks, moment),
        }
    }

    /// As JSON in one line.
    pub fn json(&self) -> String {
        let mut text = serde_json::to_string(&self.report())
            .unwrap_or_else(|error| serde_json::json!({ "error": error.to_string() }).to_string());
        text.push('\n');
        text
    }

    /// Looks at all meshes that are there; of those that went, their totals are kept.
    fn look(&self) -> Vec<Look> {
        let mut seen = self.seen.lock();
        for instance in (self.sources.meshes)() {
            if !seen.there.iter().any(|known| Arc::ptr_eq(known, &instance)) {
                seen.there.push(instance);
            }
        }
        let looks: Vec<Look> = seen.there.iter().map(Look::at).collect();
        // Two of ours refer to it: nothing can happen to it any more.
        let (gone, there): (Vec<_>, Vec<_>) =
            looks.into_iter().partition(|look| Arc::strong_count(&look.instance) == 2);
        for look in gone {
            seen.there.retain(|known| !Arc::ptr_eq(known, &look.instance));
            let moment = Instant::now();
            let totals = look.load.totals(&look.load.sum(), moment);
            let mut sums = look.sums;
            sums.in_flight_seconds = totals.in_flight_seconds;
            sums.requests = totals.requests;
            queue(&mut sums.connection_waits, &look.load, &look.load.connection_waits, moment);
            queue(&mut sums.endpoint_waits, &look.load, &look.load.endpoint_waits, moment);
            seen.gone.add(&sums);
        }
        there
    }

    fn cold_start(&self) -> Option<ColdStart> {
        let Course { certificate, config, ready } = self.sources.readiness.course();
        let since = |moment: Option<Instant>| {
            moment.map_or(0.0, |moment| milliseconds(self.sources.began.until(moment)))
        };
        ready.is_some().then(|| ColdStart {
            certificate_milliseconds: since(certificate),
            config_milliseconds: since(config),
            ready_milliseconds: since(ready),
        })
    }

    /// The busiest, and one row for the rest if there is any.
    fn tenants(&self, looks: &[Look], moment: Instant) -> Vec<TenantLoad> {
        let mut rows = self.recent.lock().busiest(looks, moment);
        let rest = rows.split_off(rows.len().min(self.sources.tenants));
        let mut other = TenantLoad {
            mesh: OTHER.to_owned(),
            namespace: OTHER.to_owned(),
            ..TenantLoad::default()
        };
        let nothing = other.clone();
        for row in &rest {
            tenants::add(&mut other, row);
        }
        for look in looks {
            tenants::add(&mut other, &tenants::row(look, "", &look.load.other, moment));
        }
        if other != nothing {
            rows.push(other);
        }
        rows
    }
}

impl Look {
    fn at(instance: &Arc<MeshInstance>) -> Look {
        let (received, sent) = instance.bytes();
        let counters = instance.counters();
        let handshakes = instance.terminator_counters();
        let failed: u64 = handshakes.handshake_failures().map(|(_, count)| count).sum();
        let sums = Sums {
            received,
            sent,
            shed: Shed {
                connections: counters.connections_shed.get(),
                tunnels: counters.tunnels_shed.get(),
                requests: counters.requests_shed.get(),
            },
            overflows: counters.overflows.get(),
            handshakes: handshakes.handshakes.load(Ordering::Relaxed) + failed,
            ..Sums::default()
        };
        Look { instance: Arc::clone(instance), load: instance.load(), sums }
    }
}

impl Sums {
    fn add(&mut self, other: &Sums) {
        let Sums {
            in_flight_seconds,
            received,
            sent,
            requests,
            shed: Shed { connections, tunnels, requests: refused },
            overflows,
            handshakes,
            connection_waits,
            endpoint_waits,
        } = other;
        self.in_flight_seconds += in_flight_seconds;
        self.received += received;
        self.sent += sent;
        self.requests += requests;
        self.shed.connections += connections;
        self.shed.tunnels += tunnels;
        self.shed.requests += refused;
        self.overflows += overflows;
        self.handshakes += handshakes;
        for (mine, theirs) in [
            (&mut self.connection_waits, connection_waits),
            (&mut self.endpoint_waits, endpoint_waits),
        ] {
            mine.waiting += theirs.waiting;
            mine.waits_total += theirs.waits_total;
            mine.wait_seconds_total += theirs.wait_seconds_total;
        }
    }
}

fn queue(queue: &mut Queue, load: &LoadReading, reading: &Reading, moment: Instant) {
    let totals = load.totals(reading, moment);
    queue.waiting += totals.in_flight;
    queue.waits_total += totals.requests;
    queue.wait_seconds_total += totals.in_flight_seconds;
}

fn open(connections: &mut Connections, instance: &MeshInstance) {
    let counters = instance.counters();
    let outgoing = instance.originator_counters();
    let opened = outgoing.connections_opened.load(Ordering::Relaxed);
    let closed = outgoing.connections_closed.load(Ordering::Relaxed);
    let (idle, http2) = instance.pooled();
    connections.hbone += counters.connections.get();
    connections.tunnels += counters.tunnels.get();
    connections.streams += counters.streams.get();
    connections.upstream += opened.saturating_sub(closed) + (idle + http2) as u64;
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// A name for this process: the pod's, and something that a restart does not have again.
pub fn instance_name(pod: Option<&str>) -> String {
    let host = || std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty());
    let name = pod.map(str::to_owned).or_else(host).unwrap_or_else(|| "cairn".to_owned());
    // Of a name that is longer than any pod's, the beginning.
    let name: String = name.chars().take(253).collect();
    format!("{name}-{:08x}", rand::random::<u32>())
}

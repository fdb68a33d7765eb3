//! The report as tables, before anybody decides what they look like.

use super::numbers::{count, figure, kib, mib, percent, ratio, time};
use super::{
    Change, MemoryReport, PushReport, PushRun, Report, ScaleReport, ScaleRun, StormRun,
    TrafficReport,
};

/// A heading, a table under it, and what is to be said about it.
pub struct Section {
    /// Heading.
    pub title: &'static str,
    /// Names of the columns. The first holds names, the others figures.
    pub columns: Vec<String>,
    /// As many cells in each as there are columns.
    pub rows: Vec<Vec<String>>,
    /// Below the table.
    pub notes: Vec<String>,
}

const NONE: &str = "-";

/// All sections that there is something to say in.
pub fn sections(report: &Report) -> Vec<Section> {
    let names = names(report);
    let mut sections = vec![cpu(report, &names), latency(report, &names)];
    sections.extend(hot(report));
    sections.push(start(report, &names));
    sections.push(scale(report, &names));
    sections.push(changes(report, &names));
    sections.push(memory(report));
    sections.extend(
        report.push.iter().flat_map(|report| [push(report, &names), storm(report, &names)]),
    );
    sections.push(micro(report));
    sections.retain(|section| !section.rows.is_empty());
    sections
}

/// Contenders in order.
pub fn names(report: &Report) -> Vec<&str> {
    report.about.contenders.iter().map(|(name, _)| name.as_str()).collect()
}

/// The first contender, and the one that it is compared with.
pub fn pair<'a>(names: &[&'a str]) -> Option<(&'a str, &'a str)> {
    let first = names.first()?;
    let other = names.iter().find(|name| **name == "envoy").or_else(|| names.get(1))?;
    (first != other).then_some((*first, *other))
}

fn or_none(text: Option<String>) -> String {
    text.unwrap_or_else(|| NONE.to_owned())
}

fn columns(first: &[&str], names: &[&str], kinds: &[&str], last: &[&str]) -> Vec<String> {
    let owned = |text: &&str| (*text).to_owned();
    let of_names =
        kinds.iter().flat_map(|kind| names.iter().map(move |name| format!("{name} {kind}")));
    first.iter().map(owned).chain(of_names).chain(last.iter().map(owned)).collect()
}

fn cpu(report: &Report, names: &[&str]) -> Section {
    let row = |scenario: &TrafficReport| {
        let mut row = vec![scenario.name.clone()];
        for name in names {
            row.push(or_none(scenario.median(name, |run| run.cpu_per_request).map(figure)));
        }
        let share = pair(names).and_then(|(of, to)| scenario.ratio(of, to));
        row.push(or_none(share.map(ratio)));
        row.push(or_none(scenario.goal.map(ratio)));
        for name in names {
            row.push(or_none(scenario.median(name, |run| run.per_second).map(figure)));
        }
        for name in names {
            row.push(or_none(scenario.median(name, |run| run.rss as f64).map(mib)));
        }
        let errors = names.iter().flat_map(|name| {
            scenario
                .errors(name)
                .into_iter()
                .map(move |(kind, count)| format!("{name}: {kind} {count}"))
        });
        row.push(errors.collect::<Vec<_>>().join(", "));
        row
    };
    let mut columns = vec!["scenario".to_owned()];
    columns.extend(names.iter().map(|name| format!("{name} µs CPU/req")));
    columns.extend(["ratio".to_owned(), "goal".to_owned()]);
    columns.extend(names.iter().map(|name| format!("{name} req/s")));
    columns.extend(names.iter().map(|name| format!("{name} MiB")));
    columns.push("errors".to_owned());
    let about =
        report.traffic.iter().map(|scenario| format!("{}: {}.", scenario.name, scenario.about));
    Section {
        title: "CPU time of the proxy per request",
        columns,
        rows: report.traffic.iter().map(row).collect(),
        notes: about.collect(),
    }
}

fn latency(report: &Report, names: &[&str]) -> Section {
    let row = |scenario: &TrafficReport| {
        let mut row = vec![scenario.name.clone()];
        let quantiles: [fn(&super::Run) -> f64; 4] = [
            |run| run.latency.p50,
            |run| run.latency.p90,
            |run| run.latency.p99,
            |run| run.latency.p999,
        ];
        for quantile in quantiles {
            for name in names {
                row.push(or_none(scenario.median(name, quantile).map(time)));
            }
        }
        row
    };
    Section {
        title: "Latency",
        columns: columns(&["scenario"], names, &["p50", "p90", "p99", "p99.9"], &[]),
        rows: report.traffic.iter().map(row).collect(),
        notes: vec![
            "Closed loops run as fast as answers come, so these are latencies of a saturated proxy; \
             `open-…` and `single` show what a client sees."
                .to_owned(),
        ],
    }
}

fn hot(report: &Report) -> Option<Section> {
    let hot = report.hot.as_ref()?;
    let rows = hot
        .per_second
        .iter()
        .map(|(name, [one, two])| vec![name.clone(), figure(*one), figure(*two), ratio(two / one)]);
    Some(Section {
        title: "One hot connection",
        columns: ["", "req/s, one core", "req/s, two cores", "gain (goal 1.7)"]
            .map(str::to_owned)
            .to_vec(),
        rows: rows.collect(),
        notes: vec![format!("{}.", hot.about)],
    })
}

fn start(report: &Report, names: &[&str]) -> Section {
    let row = |scale: &ScaleReport| {
        let mut row = vec![services(scale)];
        let figures: [fn(&ScaleRun) -> f64; 3] = [
            |run| run.ready_ms * 1e3,
            |run| run.first_answer_ms * 1e3,
            |run| run.start_cpu_ms * 1e3,
        ];
        for wanted in figures {
            for name in names {
                row.push(or_none(scale.median(name, wanted).map(time)));
            }
        }
        row
    };
    Section {
        title: "Start",
        columns: columns(&["services"], names, &["exec to ready", "exec to first 200", "CPU"], &[]),
        rows: report.scale.iter().map(row).collect(),
        notes: vec![
            "Each service has 10 routes. Goals for the first 200: 20 ms with one service, 60 ms with \
             1,000. It includes the client's TLS handshake and CONNECT."
                .to_owned(),
        ],
    }
}

/// A figure of a run.
type Reading = fn(&ScaleRun) -> f64;
/// How a figure is written.
type Writing = fn(f64) -> String;
/// One kind of change in a run.
type ChangeOf = fn(&ScaleRun) -> Change;

fn scale(report: &Report, names: &[&str]) -> Section {
    let row = |scale: &ScaleReport| {
        let mut row = vec![services(scale)];
        let figures: [(Reading, Writing); 4] = [
            (|run| run.idle_rss as f64, mib),
            (|run| run.busy_rss as f64, mib),
            (|run| run.cpu_per_request, figure),
            (|run| run.idle_cpu, figure),
        ];
        for (wanted, written) in figures {
            for name in names {
                row.push(or_none(scale.median(name, wanted).map(written)));
            }
        }
        row
    };
    let kinds = ["idle MiB", "busy MiB", "µs CPU/req", "idle ms CPU/s"];
    Section {
        title: "Many services",
        columns: columns(&["services"], names, &kinds, &[]),
        rows: report.scale.iter().map(row).collect(),
        notes: vec![
            "Goals for idle memory: 12 MiB with one service, 40 MiB with 1,000.".to_owned(),
        ],
    }
}

fn changes(report: &Report, names: &[&str]) -> Section {
    let mut rows = Vec::new();
    for scale in &report.scale {
        let kinds: [(&str, ChangeOf); 2] =
            [("endpoint", |run| run.endpoint_change), ("route", |run| run.route_change)];
        for (kind, change) in kinds {
            let mut row = vec![format!("{}, one {kind}", services(scale))];
            let figures: [fn(Change) -> f64; 3] = [
                |change| change.cpu_ms * 1e3,
                |change| change.until_used_ms * 1e3,
                |change| change.slowest,
            ];
            for wanted in figures {
                for name in names {
                    row.push(or_none(scale.median(name, |run| wanted(change(run))).map(time)));
                }
            }
            for name in names {
                row.push(or_none(scale.median(name, |run| run.p99_before).map(time)));
            }
            rows.push(row);
        }
    }
    let kinds = ["CPU", "until used", "slowest request", "p99 before"];
    Section {
        title: "Changes while 1,000 requests per second pass",
        columns: columns(&["services"], names, &kinds, &[]),
        rows,
        notes: vec![
            "CPU is what an idle proxy uses more for the change. The service that changes gets no load, \
             unless there is only one. Cairn looks at its files once a second; Envoy is told by the kernel. \
             A route of Envoy's is a push of all listeners, as istiod does it. Goal: at most 5 ms of CPU for \
             an endpoint of 10,000 services, and no request slower than the p99 before."
                .to_owned(),
        ],
    }
}

fn memory(report: &Report) -> Section {
    let row = |memory: &MemoryReport| {
        let MemoryReport {
            contender,
            base,
            connection,
            connection_with_tunnel,
            parked_tunnel,
            busy_tunnel,
        } = memory;
        vec![
            contender.clone(),
            mib(*base as f64),
            kib(*connection),
            kib(*connection_with_tunnel),
            kib(*parked_tunnel),
            kib(*busy_tunnel),
        ]
    };
    let columns = [
        "",
        "base MiB",
        "KiB per connection",
        "KiB per connection with a tunnel",
        "KiB per parked tunnel",
        "KiB per busy tunnel",
    ];
    Section {
        title: "Memory",
        columns: columns.map(str::to_owned).to_vec(),
        rows: report.memory.iter().map(row).collect(),
        notes: vec![
            "Resident memory, by opening 1,000 of each. A parked tunnel has had a request and waits for \
             the next; a busy one waits for an answer. Goals: 36 KiB per connection with a tunnel, 4 KiB \
             per parked tunnel."
                .to_owned(),
        ],
    }
}

/// A figure of a recorded push, and how it is written.
type PushFigure = (&'static str, fn(&PushRun) -> f64, Writing, &'static str);

fn millis(millis: f64) -> String {
    time(millis * 1e3)
}

fn push(report: &PushReport, names: &[&str]) -> Section {
    let figures: [PushFigure; 12] = [
        ("exec to ready", |run| run.ready_ms, millis, NONE),
        ("CPU up to then", |run| run.ready_cpu_ms, millis, NONE),
        ("exec to ready, warm, istiod silent", |run| run.warm_ready_ms, millis, NONE),
        ("snapshot of everything", |run| run.compile_ms, millis, "150 ms"),
        ("idle MiB", |run| run.idle_rss as f64, mib, "40"),
        ("idle MiB after all changes", |run| run.changed_rss as f64, mib, NONE),
        ("endpoint: CPU", |run| run.endpoint_change.cpu_ms, millis, "1 ms"),
        ("endpoint: CPU, written down", |run| run.endpoint_change.kept_cpu_ms, millis, NONE),
        ("endpoint: until used", |run| run.endpoint_change.until_used_ms, millis, NONE),
        ("route: CPU", |run| run.route_change.cpu_ms, millis, "60 ms"),
        ("route: CPU, written down", |run| run.route_change.kept_cpu_ms, millis, NONE),
        ("route: until used", |run| run.route_change.until_used_ms, millis, NONE),
    ];
    let there = names.iter().filter(|name| report.recorded.contains_key(**name));
    let names: Vec<&str> = there.copied().collect();
    let row = |(what, figure, written, goal): PushFigure| {
        let mut row = vec![what.to_owned()];
        row.extend(names.iter().map(|name| or_none(report.median(name, figure).map(written))));
        row.push(goal.to_owned());
        row
    };
    let services = report.recorded.values().flatten().next().map_or(0, |run| run.services);
    Section {
        title: "Istiod's push",
        columns: columns(&[&[""], names.as_slice()].concat(), &[], &[], &["goal"]),
        rows: figures.into_iter().map(row).collect(),
        notes: vec![
            format!(
                "What istiod was recorded to send to a waypoint for {} services with 10 routes each, by \
                 an istiod of the tests over TLS. It is in the process of this program, and what it needs to \
                 send is part of the times. A route that changes comes with the listener of all services, \
                 8.3 MB.",
                count(services),
            ),
            "CPU is what an idle waypoint uses more for the change. Some seconds after a change it writes \
             down what to start with the next time. Cairn alone: Envoy's figures with as many services are in \
             the tables about many services."
                .to_owned(),
        ],
    }
}

fn storm(report: &PushReport, names: &[&str]) -> Section {
    let failed = |run: &StormRun| {
        let errors = run.errors.iter().map(|(kind, count)| format!("{kind} {count}"));
        let errors = errors.collect::<Vec<_>>().join(", ");
        if errors.is_empty() { "0".to_owned() } else { errors }
    };
    let cells = |run: &StormRun| {
        [
            count(run.requests),
            failed(run),
            time(run.p99_before),
            time(run.p99_during),
            time(run.slowest_before),
            time(run.slowest_during),
            count(run.pushes),
            count(run.acked),
            count(run.nacked),
            count(run.snapshots),
            time(run.cpu_per_push_ms * 1e3),
            mib(run.rss_first_half as f64),
            mib(run.rss_second_half as f64),
        ]
    };
    let columns = [
        "",
        "requests",
        "failed",
        "p99 before",
        "p99 during",
        "slowest before",
        "slowest during",
        "pushes",
        "ACK",
        "NACK",
        "snapshots",
        "CPU per push",
        "MiB after half",
        "MiB after all",
    ];
    let row = |name: &&str| {
        let run = report.storm.get(*name)?;
        Some([(*name).to_owned()].into_iter().chain(cells(run)).collect())
    };
    let (services, seconds) =
        report.storm.values().next().map_or((0, 0.0), |run| (run.services, run.seconds));
    Section {
        title: "A storm of istiod's pushes while 1,000 requests per second pass",
        columns: columns.map(str::to_owned).to_vec(),
        rows: names.iter().filter_map(row).collect(),
        notes: vec![format!(
            "A mesh of {services} services. In {seconds:.0} s istiod alternately moves an endpoint to another pod \
             and changes the timeout of a route, with which the listener of all services comes again; all \
             services get load. CPU per push is what the waypoint uses over what the requests need. Cairn alone."
        )],
    }
}

fn micro(report: &Report) -> Section {
    let rows =
        report.micro.iter().map(|part| vec![part.name.clone(), time(part.nanoseconds / 1_000.0)]);
    Section {
        title: "Parts",
        columns: ["", "median"].map(str::to_owned).to_vec(),
        rows: rows.collect(),
        notes: vec!["The last `cargo bench -p benches` before this report.".to_owned()],
    }
}

fn services(scale: &ScaleReport) -> String {
    count(u64::from(scale.services))
}

/// How noisy it was, in a sentence.
pub fn noise(report: &Report) -> String {
    let noise = &report.about.noise;
    let apart = if report.about.placement.is_apart() {
        "The proxy had a core of its own"
    } else {
        "The proxy shared the only core with load generator and backend"
    };
    if report.traffic.is_empty() {
        return format!(
            "{apart}. How noisy the machine was is not known: that is told by traffic scenarios."
        );
    }
    format!(
        "{apart}. Within the windows other processes used {} of the machine's CPU time and the hypervisor \
         took {}; the proxy could run and had no core {} of the time. CPU per request of the rounds lay \
         {} apart (median over scenarios; at worst {}).",
        percent(noise.foreign),
        percent(noise.stolen),
        percent(noise.waited),
        percent(noise.spread),
        percent(noise.worst_spread),
    )
}

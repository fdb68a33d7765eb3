//! The report as tables, before anybody decides what they look like.

use super::numbers::{figure, kib, mib, percent, ratio, time};
use super::{Change, MemoryReport, Report, ScaleReport, ScaleRun, TrafficReport};

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
    figure(f64::from(scale.services)).trim_end_matches(".00").trim_end_matches(".0").to_owned()
}

/// How noisy it was, in a sentence.
pub fn noise(report: &Report) -> String {
    let noise = &report.about.noise;
    let apart = if report.about.placement.is_apart() {
        "The proxy had a core of its own"
    } else {
        "The proxy shared the only core with load generator and backend"
    };
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

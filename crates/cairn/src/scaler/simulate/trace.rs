//! Reads traces: CSV, or a recording of what instances said of their load.

use crate::failure::Failure;
use cairn_autoscale::fleet::{Fleet, TenantCaps};
use cairn_autoscale::simulate::{MAX_SECONDS, MAX_UNITS, Trace, TraceError};
use cairn_autoscale::{LoadReport, load};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// Bytes of a trace at most.
const MAX_BYTES: u64 = 256 * 1024 * 1024;
/// Members of a recording at most.
const MAX_INSTANCES: usize = 1000;

const CSV: &str = "\
A trace has a line `second,units` for each change of the load, seconds from 0 on:
  0,1.5
  600,12
Lines that are empty or begin with # are skipped.";

const RECORDING: &str = "\
A recording has one answer of :15020/load in each line, the earlier before the later. With several
members each line needs a field `second` with the time that all clocks agree on:
  curl -s http://MEMBER:15020/load | jq -c --argjson now \"$(date +%s)\" '. + {second: $now}'";

/// One line of a recording.
#[derive(Deserialize)]
struct Line {
    second: Option<f64>,
    #[serde(flatten)]
    report: LoadReport,
}

/// Reads a file of either form; one that begins with `{` is a recording.
pub fn read(file: &Path) -> Result<Trace, Failure> {
    let fails = |message: String| Failure::new(format!("{}: {message}", file.display()));
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(|error| fails(error.to_string()))?;
    opened
        .take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|error| fails(error.to_string()))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(fails("is larger than 256 MiB".to_owned())
            .hint("Cut it, or write a line for each change only."));
    }
    let (trace, hint) = if text.trim_start().starts_with('{') {
        (recording(&text), RECORDING)
    } else {
        (Trace::parse(&text), CSV)
    };
    trace.map_err(|error| {
        let message = if error.line == 0 { error.message } else { error.to_string() };
        fails(message).hint(hint)
    })
}

/// Replays the reports into a fleet; its demand is the trace.
fn recording(text: &str) -> Result<Trace, TraceError> {
    let mut reports: Vec<(usize, f64, LoadReport)> = Vec::new();
    let mut instances = std::collections::BTreeSet::new();
    let mut clock = false;
    for (number, line) in text.lines().enumerate() {
        let fails = |message: String| TraceError { line: number + 1, message };
        if line.trim().is_empty() {
            continue;
        }
        let Line { second, report } =
            serde_json::from_str(line).map_err(|error| fails(format!("is no report: {error}")))?;
        if report.version != load::SCHEMA_VERSION {
            let known = load::SCHEMA_VERSION;
            return Err(fails(format!("has version {}, not {known}", report.version)));
        }
        report.check().map_err(|error| fails(error.to_string()))?;
        if reports.is_empty() {
            clock = second.is_some();
        }
        if second.is_some() != clock {
            return Err(fails("`second` has to be in all lines or in none".to_owned()));
        }
        instances.insert(report.instance.clone());
        if instances.len() > MAX_INSTANCES {
            return Err(fails(format!("is of more than {MAX_INSTANCES} instances")));
        }
        if !clock && instances.len() > 1 {
            return Err(fails("is of another instance, and there is no `second`".to_owned()));
        }
        let at = second.unwrap_or(report.uptime_seconds);
        if !at.is_finite() || at < 0.0 {
            return Err(fails("its time must be 0 or more".to_owned()));
        }
        if reports.last().is_some_and(|(_, last, _)| at < *last) {
            return Err(fails("is earlier than the line before".to_owned()));
        }
        reports.push((number + 1, at, report));
    }
    demand(reports)
}

/// A poll ends where one of its instances comes again.
fn demand(reports: Vec<(usize, f64, LoadReport)>) -> Result<Trace, TraceError> {
    let Some(begin) = reports.first().map(|(_, at, _)| *at) else {
        return Err(TraceError { line: 0, message: "there is no report in it".to_owned() });
    };
    let mut fleet = Fleet::default();
    let mut units = Vec::new();
    let mut reports = reports.into_iter().peekable();
    while let Some((line, at, report)) = reports.next() {
        let since = at - begin;
        if since > MAX_SECONDS as f64 {
            return Err(TraceError { line, message: "is later than two weeks".to_owned() });
        }
        let mut poll = BTreeMap::from([(report.instance.clone(), report)]);
        let another = |next: &(usize, f64, LoadReport), poll: &BTreeMap<String, LoadReport>| {
            !poll.contains_key(&next.2.instance)
        };
        while let Some((_, _, report)) = reports.next_if(|next| another(next, &poll)) {
            poll.insert(report.instance.clone(), report);
        }
        let answers = poll.iter().map(|(name, report)| (name.as_str(), Some(report.clone())));
        fleet.poll(Duration::from_secs_f64(since), answers);
        let now = fleet.demand(&TenantCaps::default()).units;
        if !(0.0..=MAX_UNITS).contains(&now) {
            return Err(TraceError { line, message: format!("makes {now} units") });
        }
        // A report is of the time before it. At most two weeks: the cast loses nothing.
        units.resize(units.len().max(since as usize + 1), now);
    }
    Ok(Trace { units })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn line(second: Option<u64>, instance: &str, uptime: f64, in_flight_seconds: f64) -> String {
        let mut line = serde_json::json!({
            "version": 1, "instance": instance, "uptime_seconds": uptime, "ready": true,
            "capacity": { "in_flight": 100.0 }, "in_flight_seconds_total": in_flight_seconds,
        });
        if let Some(second) = second {
            line["second"] = second.into();
        }
        line.to_string()
    }

    #[test]
    fn a_recording_is_the_demand_of_its_members() {
        let text = [
            line(Some(1000), "a", 5.0, 0.0),
            line(Some(1000), "b", 50.0, 100.0),
            line(Some(1002), "a", 7.0, 100.0),
            line(Some(1003), "b", 52.0, 400.0),
            line(Some(1004), "a", 9.0, 200.0),
            line(Some(1004), "b", 54.0, 500.0),
        ];
        let trace = recording(&text.join("\n")).unwrap();
        let units = trace.units;
        assert_eq!(units.len(), 5);
        // a: 50 of 100, then again; b: 150, then 50.
        assert!((units[2] - 2.0).abs() < 1e-9 && (units[1] - 2.0).abs() < 1e-9, "{units:?}");
        assert!((units[4] - 1.0).abs() < 1e-9, "{units:?}");
    }

    #[test]
    fn lines_that_cannot_be_read_are_named() {
        let good = line(None, "a", 1.0, 0.0);
        for (text, number, words) in [
            ("{}".to_owned(), 1, "version 0"),
            (format!("{good}\n{{\"version\":1,\"instance\":3}}"), 2, "no report"),
            (format!("{good}\n{}", line(Some(1), "a", 2.0, 0.0)), 2, "all lines or in none"),
            (format!("{good}\n{}", line(None, "b", 2.0, 0.0)), 2, "another instance"),
            (format!("{good}\n\n{}", line(None, "a", 0.5, 0.0)), 3, "earlier"),
            (line(None, "a", -1.0, 0.0), 1, "0 or more"),
            (format!("{good}\n{}", line(None, "a", 1e9, 0.0)), 2, "two weeks"),
        ] {
            let error = recording(&text).unwrap_err();
            assert_eq!(error.line, number, "{error}");
            assert!(error.message.contains(words), "{error}");
        }
    }
}

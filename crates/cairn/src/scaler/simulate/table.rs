//! What came of a simulation, in numbers.

use super::Race;
use cairn_autoscale::simulate::Outcome;
use serde_json::json;
use std::fmt::Write;
use std::time::Duration;

const HEADS: [&str; 6] = ["who", "overloaded", "longest", "instance-hours", "most", "changes"];

fn cells(name: &str, outcome: &Outcome) -> [String; HEADS.len()] {
    let (up, down) = outcome.changes();
    [
        name.to_owned(),
        format!("{} s", outcome.overloaded_seconds),
        format!("{} s", outcome.longest_overload()),
        format!("{:.2}", outcome.instance_hours),
        outcome.most().to_string(),
        format!("{up} up, {down} down"),
    ]
}

/// One trace, for people.
pub fn text(race: &Race, cold_start: Duration) -> String {
    let seconds = race.runs.first().map_or(0, |(_, outcome)| outcome.moments.len());
    let mut text =
        format!("{}: {seconds} s, cold start {} s\n\n", race.name, cold_start.as_secs_f64());
    let rows: Vec<_> = race.runs.iter().map(|(name, outcome)| cells(name, outcome)).collect();
    let mut widths = HEADS.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    for row in std::iter::once(&HEADS.map(str::to_owned)).chain(&rows) {
        let mut line = String::new();
        for (place, (cell, width)) in row.iter().zip(widths).enumerate() {
            // Writing to a String cannot fail.
            let _ = match place {
                0 => write!(line, "  {cell:<width$}"),
                _ => write!(line, "  {cell:>width$}"),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// All traces in one table.
pub fn markdown(races: &[Race]) -> String {
    let mut text = String::from("| trace |");
    for head in HEADS {
        let _ = write!(text, " {head} |");
    }
    text.push_str("\n|---|---|--:|--:|--:|--:|---|\n");
    for race in races {
        for (name, outcome) in &race.runs {
            let _ = writeln!(text, "| {} | {} |", race.name, cells(name, outcome).join(" | "));
        }
    }
    text
}

/// All traces, for programs.
pub fn json(races: &[Race]) -> String {
    let races: Vec<_> = races
        .iter()
        .map(|race| {
            let runs: Vec<_> = race
                .runs
                .iter()
                .map(|(name, outcome)| {
                    let (up, down) = outcome.changes();
                    json!({
                        "who": name,
                        "overloaded_seconds": outcome.overloaded_seconds,
                        "longest_overload_seconds": outcome.longest_overload(),
                        "instance_hours": outcome.instance_hours,
                        "most_members": outcome.most(),
                        "changes_up": up,
                        "changes_down": down,
                    })
                })
                .collect();
            json!({ "trace": race.name, "runs": runs })
        })
        .collect();
    format!("{:#}\n", serde_json::Value::from(races))
}

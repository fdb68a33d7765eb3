//! `cairn scaler simulate` as a process, and what docs/autoscaling.md shows of it.
//!
//! `CAIRN_UPDATE_GOLDEN=1` writes the traces, the pictures and the table again.

#![allow(clippy::unwrap_used, clippy::panic)]

use cairn_autoscale::simulate::Trace;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const NAMES: [&str; 3] = ["burst", "diurnal", "sawtooth"];
/// What stands around the table in the page.
const TABLE: (&str, &str) = ("<!-- simulated -->\n", "<!-- end of simulated -->\n");

fn workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn simulate(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cairn"));
    command.args(["scaler", "simulate"]).args(args).current_dir(workspace(""));
    command.output().unwrap()
}

fn good(args: &[&str]) -> String {
    let output = simulate(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn golden(path: &Path, wanted: &str) {
    if std::env::var_os("CAIRN_UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, wanted).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    let different = found.lines().zip(wanted.lines()).position(|(found, wanted)| found != wanted);
    assert!(
        found == wanted,
        "{} differs from line {} on: CAIRN_UPDATE_GOLDEN=1 writes it again",
        path.display(),
        different.unwrap_or(0) + 1
    );
}

/// A trace as a file: a line every five seconds where the value has changed, and one at the end.
fn csv(name: &str, rule: &str, trace: &Trace) -> String {
    let mut text = format!("# {name}: {rule}\n# second,units\n");
    let mut last = String::new();
    let end = trace.units.len() - 1;
    for (second, units) in trace.units.iter().enumerate() {
        let value = format!("{units:.2}");
        let due = second.is_multiple_of(5) || name == "burst";
        if second == end || due && value != last {
            writeln!(text, "{second},{value}").unwrap();
            last = value;
        }
    }
    text
}

#[test]
fn traces_follow_their_rules() {
    for (name, rule, trace) in [
        ("burst", "1.5 units; 12 from second 608 to 1207", Trace::burst()),
        (
            "diurnal",
            "6 - 5 cos(2 pi t / 7200) + 0.4 sin(t / 37) units, a day in two hours",
            Trace::diurnal(),
        ),
        ("sawtooth", "1.5 + (t mod 300) / 30 units", Trace::sawtooth()),
    ] {
        golden(&workspace("config/traces").join(format!("{name}.csv")), &csv(name, rule, &trace));
    }
}

#[test]
fn the_page_shows_what_is_simulated() {
    traces_follow_their_rules();
    let files = NAMES.map(|name| format!("config/traces/{name}.csv"));
    let dir = tempfile::tempdir().unwrap();
    let svg = dir.path().join("scaler.svg");
    let mut args = vec!["--format", "markdown", "--svg", svg.to_str().unwrap()];
    args.extend(files.iter().flat_map(|file| ["--trace", file.as_str()]));
    let table = good(&args);
    for name in NAMES {
        let drawn = dir.path().join(format!("scaler-{name}.svg"));
        let drawn = std::fs::read_to_string(drawn).unwrap();
        golden(&workspace("docs/img").join(format!("scaler-{name}.svg")), &drawn);
    }
    let file = workspace("docs/autoscaling.md");
    let page = std::fs::read_to_string(&file).unwrap();
    let (before, rest) = page.split_once(TABLE.0).expect("the page has a place for the table");
    let (_, after) = rest.split_once(TABLE.1).expect("the page has a place for the table");
    golden(&file, &format!("{before}{}{table}{}{after}", TABLE.0, TABLE.1));
}

#[test]
fn a_burst_is_over_two_seconds_after_a_cold_start() {
    for cold in [5, 15, 30, 60] {
        let args = ["--trace", "config/traces/burst.csv", "--format", "json", "--cold-start"];
        let told = good(&[&args[..], &[format!("{cold}s").as_str()]].concat());
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        let seconds = |who: usize| {
            told[0]["runs"][who]["overloaded_seconds"].as_u64().unwrap_or_else(|| panic!("{told}"))
        };
        assert!(seconds(0) <= cold + 2, "{told}");
        assert!((1..4).all(|who| seconds(who) > seconds(0)), "{told}");
    }
}

#[test]
fn text_is_plain_where_nobody_looks() {
    let text = good(&["--trace", "config/traces/burst.csv"]);
    assert!(text.starts_with("burst: 1800 s, cold start 15 s\n"), "{text}");
    assert!(text.contains("instance-hours") && text.contains("HPA on CPU"), "{text}");
    assert!(!text.contains('\x1b') && text.contains('▲') && text.contains('━'), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn what_cannot_be_read_is_told_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.csv");
    let path = file.to_str().unwrap();
    for (text, words, remedy) in [
        ("0,1\n5;2\n", "trace.csv: line 2: is not `seconds,units`", "600,12"),
        ("", "trace.csv: there is no point in the trace", "600,12"),
        ("{\"version\":7}\n", "trace.csv: line 1: has version 7, not 1", "curl"),
    ] {
        std::fs::write(&file, text).unwrap();
        let output = simulate(&["--trace", path]);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains(words) && told.contains(remedy), "{told}");
    }
    let output = simulate(&["--trace", "nowhere.csv"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("nowhere.csv: No such file"));
    std::fs::write(&file, "0,1\n").unwrap();
    let output = simulate(&["--trace", path, "--policy", "min=9,max=3"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("`max` must not be less than"));
}

//! The report, and the way to it, on a terminal.

use super::Report;
use super::tables::{Section, noise, sections};
use crate::load::Line;
use std::io::{IsTerminal, Write, stderr};

impl Report {
    /// Prints all tables.
    pub fn print(&self) {
        for section in sections(self) {
            print_section(&section);
        }
        println!("\n{}", noise(self));
        for what in &self.left_out {
            println!("not run: {what}");
        }
    }
}

fn print_section(section: &Section) {
    let Section { title, columns, rows, notes: _ } = section;
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(index, column)| {
            let cells = rows.iter().filter_map(|row| row.get(index));
            cells.chain([column]).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    println!("\n{title}");
    let print = |cells: &[String]| {
        let cells = cells.iter().zip(&widths).enumerate().map(|(index, (cell, width))| {
            if index == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        println!("  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
    };
    print(columns);
    rows.iter().for_each(|row| print(row));
}

/// Shows what is going on, on standard error.
#[derive(Debug)]
pub struct Progress {
    live: bool,
    what: String,
}

impl Progress {
    /// For one step.
    pub fn of(what: impl Into<String>) -> Progress {
        let progress = Progress { live: stderr().is_terminal(), what: what.into() };
        if progress.live {
            progress.show("")
        } else {
            eprintln!("{}", progress.what)
        }
        progress
    }

    /// Shows a line of the load generator.
    pub fn line(&self, line: &Line) {
        if let Line::Progress { stage, requests, failed } = line
            && self.live
        {
            let failed = if *failed > 0 { format!(", {failed} failed") } else { String::new() };
            self.show(&format!("{stage}: {requests}/s{failed}"));
        }
    }

    /// Ends the step with what came out.
    pub fn done(self, outcome: &str) {
        if self.live {
            eprintln!("\r\x1b[K{}: {outcome}", self.what);
        } else {
            eprintln!("  {outcome}");
        }
    }

    fn show(&self, state: &str) {
        eprint!("\r\x1b[K{} {state}", self.what);
        let _nobody_may_look = stderr().flush();
    }
}

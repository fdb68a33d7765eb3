//! The report as Markdown.

use super::Report;
use super::tables::{Section, names, noise, pair, sections};
use std::fmt::Write as _;

impl Report {
    /// A page with all tables.
    pub fn to_markdown(&self) -> String {
        let about = &self.about;
        let machine = &about.machine;
        let mut page = String::from("# Performance\n\n");
        // Writing to a String does not fail.
        let _ = writeln!(
            page,
            "The last report of `benches compare`. [benches/README.md](../benches/README.md) says how it is \
             made and how to read it; figures of different machines cannot be compared, ratios can.\n"
        );
        let mut fact = |name: &str, value: &str| {
            let _ = writeln!(page, "- {name}: {value}");
        };
        fact("date", &about.date);
        fact("command", &format!("`{}`", about.command));
        fact(
            "machine",
            &format!(
                "{}, {} cores, {} MiB, Linux {}",
                machine.processor, machine.cores, machine.memory_mib, machine.kernel
            ),
        );
        for (name, version) in &about.contenders {
            fact(name, version);
        }
        fact("commit", &about.commit);
        fact(
            "measured",
            &format!("{} rounds, windows of {} s, medians", about.rounds, about.window),
        );
        fact("noise", &noise(self));
        if let Some((of, to)) = pair(&names(self)) {
            let _ = writeln!(page, "\nRatios are {of} / {to}: below 1, {of} needs less.");
        }
        for section in sections(self) {
            section_to_markdown(&section, &mut page);
        }
        if !self.left_out.is_empty() {
            page.push_str("\n## Not run\n\n");
            for what in &self.left_out {
                let _ = writeln!(page, "- {what}");
            }
        }
        page
    }
}

fn section_to_markdown(section: &Section, page: &mut String) {
    let Section { title, columns, rows, notes } = section;
    let _ = writeln!(page, "\n## {title}\n");
    let _ = writeln!(page, "| {} |", columns.join(" | "));
    let align = columns.iter().enumerate().map(|(index, _)| if index == 0 { "---" } else { "--:" });
    let _ = writeln!(page, "|{}|", align.collect::<Vec<_>>().join("|"));
    for row in rows {
        let _ = writeln!(page, "| {} |", row.join(" | "));
    }
    match notes.as_slice() {
        [] => {}
        [note] => {
            let _ = writeln!(page, "\n{note}");
        }
        notes => {
            page.push('\n');
            for note in notes {
                let _ = writeln!(page, "- {note}");
            }
        }
    }
}

//! Members over time, on a terminal.
//!
//! One plot for each contestant, all of the same scale. What is needed is an area, what was asked for
//! a line over it; a mark below tells when the fleet was overloaded. A column is a span of time: of
//! what is needed and asked for it has the most.

use super::Race;
use cairn_autoscale::simulate::{Moment, Outcome};
use std::fmt::Write;
use std::io::{IsTerminal, stdout};

/// Rows of a plot.
const ROWS: usize = 8;
/// Columns of the axis.
const MARGIN: usize = 7;
/// Where the width is not known.
const WIDTH: usize = 80;
const MAX_WIDTH: usize = 200;

const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Where it is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    columns: usize,
    colours: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Ink {
    None,
    Area,
    Line,
    Alarm,
}

/// A span of time.
#[derive(Debug, Clone, Copy, Default)]
struct Span {
    units: f64,
    desired: u32,
    overloaded: bool,
}

impl Screen {
    /// The terminal; anything else has 80 columns and no colours.
    pub fn of_stdout() -> Self {
        let terminal = stdout().is_terminal();
        let size = if terminal { rustix::termios::tcgetwinsize(stdout()).ok() } else { None };
        let columns = size.map_or(WIDTH, |size| usize::from(size.ws_col));
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Screen { columns: columns.clamp(40, MAX_WIDTH), colours: terminal && !plain }
    }

    fn paint(self, text: &str, ink: Ink) -> String {
        let code = match ink {
            Ink::None => return text.to_owned(),
            Ink::Area => "34",
            Ink::Line => "1;32",
            Ink::Alarm => "1;31",
        };
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// All contestants of one trace.
pub fn draw(race: &Race, screen: &Screen) -> String {
    let most = race.runs.iter().map(|(_, outcome)| peak(outcome)).fold(1.0, f64::max).ceil();
    let mut text = String::new();
    for (name, outcome) in &race.runs {
        let legend = format!(
            "{} needed  {} asked for  {} overloaded",
            screen.paint("█", Ink::Area),
            screen.paint("━", Ink::Line),
            screen.paint("▲", Ink::Alarm)
        );
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\n{name}   {legend}");
        text.push_str(&one(outcome, most, screen));
    }
    text
}

fn peak(outcome: &Outcome) -> f64 {
    let units = outcome.moments.iter().map(|moment| moment.units).fold(0.0, f64::max);
    units.max(f64::from(outcome.most()))
}

fn one(outcome: &Outcome, most: f64, screen: &Screen) -> String {
    let spans = spans(&outcome.moments, screen.columns - MARGIN - 1);
    let mut text = String::new();
    for row in (0..ROWS).rev() {
        let top = (row + 1) as f64 / ROWS as f64 * most;
        let label = if row + 1 == ROWS || row + 1 == ROWS / 2 {
            format!("{:>1$}┤", format!("{top:.0}"), MARGIN - 1)
        } else {
            format!("{:>1$}", "│", MARGIN)
        };
        text.push_str(&label);
        for span in &spans {
            let (glyph, ink) = cell(span, row, most);
            let mut buffer = [0; 4];
            text.push_str(&screen.paint(glyph.encode_utf8(&mut buffer), ink));
        }
        text = text.trim_end().to_owned();
        text.push('\n');
    }
    let mut marks: String = format!("{:>1$}", "└", MARGIN);
    for span in &spans {
        marks.push_str(&if span.overloaded {
            screen.paint("▲", Ink::Alarm)
        } else {
            "─".into()
        });
    }
    let end = clock(outcome.moments.len());
    let _ = writeln!(text, "{marks}");
    let _ = writeln!(text, "{:>1$}{end:>2$}", "0", MARGIN + 1, spans.len().saturating_sub(1));
    text
}

/// What a column has in a row.
fn cell(span: &Span, row: usize, most: f64) -> (char, Ink) {
    let height = |value: f64| value / most * ROWS as f64;
    let line = height(f64::from(span.desired)).ceil() as usize;
    if span.desired > 0 && line == row + 1 {
        return ('━', Ink::Line);
    }
    let filled = ((height(span.units) - row as f64) * 8.0).round().clamp(0.0, 8.0) as usize;
    match filled.checked_sub(1).and_then(|eighths| BLOCKS.get(eighths)) {
        Some(block) => (*block, Ink::Area),
        None => (' ', Ink::None),
    }
}

fn spans(moments: &[Moment], columns: usize) -> Vec<Span> {
    let columns = columns.min(moments.len()).max(1);
    let begin = |column: usize| column * moments.len() / columns;
    (0..columns)
        .map(|column| {
            let moments = moments.get(begin(column)..begin(column + 1)).unwrap_or_default();
            moments.iter().fold(Span::default(), |span, moment| Span {
                units: span.units.max(moment.units),
                desired: span.desired.max(moment.desired),
                overloaded: span.overloaded || moment.overloaded(),
            })
        })
        .collect()
}

/// `95 s`, `30 min`, `2 h`.
pub(super) fn clock(seconds: usize) -> String {
    let (unit, name) = match seconds {
        ..120 => (1, "s"),
        120..7200 => (60, "min"),
        _ => (3600, "h"),
    };
    if seconds.is_multiple_of(unit) {
        format!("{} {name}", seconds / unit)
    } else {
        format!("{:.1} {name}", seconds as f64 / unit as f64)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn outcome() -> Outcome {
        let moment = |units, desired, ready| Moment { units, desired, ready };
        let moments = [vec![moment(4.0, 6, 6); 20], vec![moment(8.0, 8, 6); 20]].concat();
        Outcome { moments, overloaded_seconds: 20, instance_hours: 1.0 }
    }

    #[test]
    fn a_plot_has_area_line_and_alarm() {
        let screen = Screen { columns: 48, colours: false };
        let text = one(&outcome(), 8.0, &screen);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], format!("     8┤{}{}", " ".repeat(20), "━".repeat(20)));
        assert_eq!(lines[2], format!("      │{}{}", "━".repeat(20), "█".repeat(20)));
        assert_eq!(lines[3], format!("      │{}{}", " ".repeat(20), "█".repeat(20)));
        assert_eq!(lines[4], format!("     4┤{}", "█".repeat(40)));
        assert_eq!(lines[8], format!("      └{}{}", "─".repeat(20), "▲".repeat(20)));
        assert_eq!(lines[9], format!("       0{:>39}", "40 s"));
        assert!(!text.contains('\x1b'));
        let colours = one(&outcome(), 8.0, &Screen { columns: 48, colours: true });
        assert!(colours.contains("\x1b[1;31m▲"));
    }

    #[test]
    fn it_is_as_wide_as_the_screen() {
        for columns in [40, 80, 200] {
            let mut outcome = outcome();
            outcome.moments = outcome.moments.repeat(100);
            let text = one(&outcome, 8.0, &Screen { columns, colours: false });
            assert_eq!(text.lines().map(|line| line.chars().count()).max(), Some(columns - 1));
        }
    }
}

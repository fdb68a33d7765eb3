//! Members over time, as a picture that can be read in light and in dark.
//!
//! One panel for each contestant, all of the same scales. The same simulation makes the same bytes.

use super::Race;
use super::plot::clock;
use cairn_autoscale::simulate::{Moment, Outcome};
use std::fmt::Write;
use std::time::Duration;

const WIDTH: usize = 900;
const LEFT: usize = 46;
const RIGHT: usize = 30;
const HEAD: usize = 80;
const PANEL: usize = 112;
/// Between panels, with the next one's name.
const GAP: usize = 34;
const FOOT: usize = 34;
/// Columns of a panel: one for each pixel.
const COLUMNS: usize = WIDTH - LEFT - RIGHT;

const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#3b4252}\
.title{font-size:15px;font-weight:600}.name{font-weight:600}.tick{font-size:11px;fill:#667085}\
.back{fill:#fff}.grid{stroke:#d8dee9;stroke-width:1}\
.needed{fill:#7aa7d9;fill-opacity:.55}.desired{fill:none;stroke:#127a43;stroke-width:2}\
.ready{fill:none;stroke:#c05f00;stroke-width:1.5;stroke-dasharray:4 3}.over{fill:#d92d20;fill-opacity:.28}\
@media(prefers-color-scheme:dark){text{fill:#d8dee9}.tick{fill:#98a2b3}.back{fill:#14181f}\
.grid{stroke:#343b48}.needed{fill:#4f86c6}.desired{stroke:#4ade80}.ready{stroke:#fdba74}\
.over{fill:#f97066;fill-opacity:.4}}";

/// Seconds between marks of the time axis, and numbers between those of the other.
const TIMES: [usize; 16] = [
    10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400, 172_800,
    259_200,
];

/// What a column has: what was needed and asked for at most, what was ready at least.
#[derive(Debug, Clone, Copy)]
struct Column {
    units: f64,
    desired: u32,
    ready: u32,
    overloaded: bool,
}

/// The whole picture.
pub fn draw(race: &Race, cold_start: Duration) -> String {
    let height = HEAD + race.runs.len() * (PANEL + GAP) - GAP + FOOT;
    let seconds = race.runs.first().map_or(0, |(_, outcome)| outcome.moments.len());
    let most = race
        .runs
        .iter()
        .flat_map(|(_, outcome)| &outcome.moments)
        .map(|moment| moment.units.max(f64::from(moment.desired.max(moment.ready))))
        .fold(1.0, f64::max);
    let step = step(most);
    let top = (most / step).ceil() * step;
    let name = escape(&race.name);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\" aria-label=\"{name}: members over time\">\n\
         <style>{STYLE}</style>\n<rect class=\"back\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
         <text class=\"title\" x=\"{LEFT}\" y=\"24\">{name}: members over time, cold start {} s</text>\n",
        cold_start.as_secs_f64()
    );
    text.push_str(&legend());
    for (number, (who, outcome)) in race.runs.iter().enumerate() {
        let y = HEAD + number * (PANEL + GAP);
        panel(&mut text, y, who, outcome, (top, step));
    }
    let bottom = HEAD + race.runs.len() * (PANEL + GAP) - GAP;
    let every = TIMES.iter().find(|every| seconds / **every <= 8).unwrap_or(&TIMES[15]);
    for at in (0..=seconds).step_by(*every) {
        let x = LEFT + at * COLUMNS / seconds.max(1);
        let label = if at == 0 { "0".to_owned() } else { clock(at) };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "<text class=\"tick\" x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
            bottom + 18
        );
    }
    text.push_str("</svg>\n");
    text
}

fn legend() -> String {
    let y = 44;
    let line = y - 4;
    let mut text = String::new();
    let entries: [(&str, &str, usize); 4] = [
        ("needed", "needed", 0),
        ("desired", "asked for", 90),
        ("ready", "ready", 190),
        ("over", "overloaded: needed exceeds ready", 262),
    ];
    for (class, words, offset) in entries {
        let x = LEFT + offset;
        let _ = match class {
            "needed" | "over" => write!(
                text,
                "<rect class=\"{class}\" x=\"{x}\" y=\"{}\" width=\"20\" height=\"11\"/>",
                y - 9
            ),
            _ => write!(text, "<path class=\"{class}\" d=\"M{x} {line}h20\"/>"),
        };
        let _ = writeln!(text, "<text x=\"{}\" y=\"{y}\">{words}</text>", x + 26);
    }
    text
}

fn panel(text: &mut String, y: usize, who: &str, outcome: &Outcome, (top, step): (f64, f64)) {
    let bottom = y + PANEL;
    let height = |value: f64| bottom as f64 - value / top * PANEL as f64;
    let columns = columns(&outcome.moments);
    let (hours, seconds) = (outcome.instance_hours, outcome.overloaded_seconds);
    let _ = writeln!(
        text,
        "<text class=\"name\" x=\"{LEFT}\" y=\"{0}\">{who}</text>\
         <text x=\"{1}\" y=\"{0}\" text-anchor=\"end\">overloaded {seconds} s, {hours:.2} instance-hours</text>",
        y - 7,
        WIDTH - RIGHT
    );
    let mut value = 0.0;
    while value <= top {
        let at = height(value);
        let _ = writeln!(
            text,
            "<path class=\"grid\" d=\"M{LEFT} {at:.1}h{COLUMNS}\"/>\
             <text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
            LEFT - 6,
            at + 4.0
        );
        value += step;
    }
    for (from, to) in spells(&columns) {
        let _ = writeln!(
            text,
            "<rect class=\"over\" x=\"{}\" y=\"{y}\" width=\"{}\" height=\"{PANEL}\"/>",
            LEFT + from * COLUMNS / columns.len(),
            (((to - from) * COLUMNS) / columns.len()).max(1)
        );
    }
    let area = steps(&columns, |column| height(column.units));
    let _ = writeln!(text, "<path class=\"needed\" d=\"{area}V{bottom}H{LEFT}Z\"/>");
    let ready = steps(&columns, |column| height(f64::from(column.ready)));
    let _ = writeln!(text, "<path class=\"ready\" d=\"{ready}\"/>");
    let desired = steps(&columns, |column| height(f64::from(column.desired)));
    let _ = writeln!(text, "<path class=\"desired\" d=\"{desired}\"/>");
}

/// A line of steps, without points that change nothing.
fn steps(columns: &[Column], height: impl Fn(&Column) -> f64) -> String {
    let mut path = String::new();
    let mut last = String::new();
    for (place, column) in columns.iter().enumerate() {
        let x = LEFT + place * COLUMNS / columns.len();
        let y = format!("{:.1}", height(column));
        if place == 0 {
            let _ = write!(path, "M{x} {y}");
        } else if y != last {
            let _ = write!(path, "H{x}V{y}");
        }
        last = y;
    }
    let _ = write!(path, "H{}", LEFT + COLUMNS);
    path
}

fn columns(moments: &[Moment]) -> Vec<Column> {
    let count = COLUMNS.min(moments.len());
    let begin = |column: usize| column * moments.len() / count;
    (0..count)
        .filter_map(|column| {
            let moments = moments.get(begin(column)..begin(column + 1))?;
            let none = Column { units: 0.0, desired: 0, ready: u32::MAX, overloaded: false };
            Some(moments.iter().fold(none, |column, moment| Column {
                units: column.units.max(moment.units),
                desired: column.desired.max(moment.desired),
                ready: column.ready.min(moment.ready),
                overloaded: column.overloaded || moment.overloaded(),
            }))
        })
        .collect()
}

/// Columns from and to which it was overloaded without a pause.
fn spells(columns: &[Column]) -> Vec<(usize, usize)> {
    let mut spells: Vec<(usize, usize)> = Vec::new();
    for (place, _) in columns.iter().enumerate().filter(|(_, column)| column.overloaded) {
        match spells.last_mut() {
            Some((_, end)) if *end == place => *end = place + 1,
            _ => spells.push((place, place + 1)),
        }
    }
    spells
}

/// A round number that parts an axis into at most five.
fn step(most: f64) -> f64 {
    let mut scale = 1.0;
    loop {
        for factor in [1.0, 2.0, 5.0] {
            if most / (factor * scale) <= 5.0 {
                return factor * scale;
            }
        }
        scale *= 10.0;
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn race(name: &str, seconds: usize) -> Race {
        let moments: Vec<Moment> = (0..seconds)
            .map(|second| Moment {
                units: if second % 100 < 10 { 9.0 } else { 2.0 },
                desired: 6,
                ready: 5,
            })
            .collect();
        let outcome = Outcome { moments, overloaded_seconds: 7, instance_hours: 1.5 };
        Race { name: name.to_owned(), runs: vec![("cairn", outcome.clone()), ("HPA", outcome)] }
    }

    #[test]
    fn a_picture_says_what_it_shows() {
        let text = draw(&race("a<b&\"c\"", 300), Duration::from_secs(15));
        assert!(text.contains("a&lt;b&amp;&quot;c&quot;: members over time, cold start 15 s"));
        assert_eq!(text.matches("class=\"needed\" d=").count(), 2);
        assert_eq!(text.matches("class=\"over\" x=").count(), 1 + 2 * 3, "legend and three spells");
        assert_eq!(text.matches("overloaded 7 s, 1.50 instance-hours").count(), 2);
        assert!(text.contains("prefers-color-scheme:dark"));
    }

    #[test]
    fn its_size_does_not_grow_with_the_trace() {
        assert!(draw(&race("long", 200_000), Duration::ZERO).len() < 100_000);
        assert!(draw(&race("short", 1), Duration::ZERO).ends_with("</svg>\n"));
        assert!(draw(&race("none", 0), Duration::ZERO).ends_with("</svg>\n"));
    }

    #[test]
    fn steps_of_an_axis_are_round() {
        for (most, wanted) in [(1.0, 1.0), (5.0, 1.0), (9.0, 2.0), (23.0, 5.0), (1e6, 200_000.0)] {
            assert_eq!(step(most), wanted, "{most}");
        }
    }
}

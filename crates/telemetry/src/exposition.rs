//! The two text formats: Prometheus 0.0.4 and OpenMetrics 1.0.

use std::fmt::{Display, Write as _};
use std::io;

use crate::labels::{push_escaped, push_label};

/// What a family is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// Bytes that are gathered before they go on.
const PIECE: usize = 64 * 1024;

/// A text under construction. Families follow one another; a family's samples follow its head.
pub(crate) struct Exposition<'a> {
    out: String,
    sink: &'a mut dyn io::Write,
    /// The first failure of the sink; nothing goes there after it.
    failed: io::Result<()>,
    openmetrics: bool,
}

impl<'a> Exposition<'a> {
    pub(crate) fn new(openmetrics: bool, sink: &'a mut dyn io::Write) -> Self {
        Exposition { out: String::with_capacity(2 * PIECE), sink, failed: Ok(()), openmetrics }
    }

    pub(crate) fn openmetrics(&self) -> bool {
        self.openmetrics
    }

    /// Begins a family. `base` is its name without the `_total` that a counter's sample ends with.
    pub(crate) fn family(&mut self, base: &str, kind: Kind, help: &str) {
        // OpenMetrics names a counter's family without the suffix, Prometheus with it.
        let suffix = if kind == Kind::Counter && !self.openmetrics { "_total" } else { "" };
        self.push(format_args!("# HELP {base}{suffix} "));
        self.help(help);
        self.push(format_args!("\n# TYPE {base}{suffix} {}\n", kind.as_str()));
    }

    /// One line: `labels` as [`push_label`] makes them, without braces.
    pub(crate) fn sample(&mut self, base: &str, suffix: &str, labels: &str, value: impl Display) {
        self.out.push_str(base);
        self.out.push_str(suffix);
        if !labels.is_empty() {
            self.push(format_args!("{{{labels}}}"));
        }
        self.push(format_args!(" {value}\n"));
        self.go_on(PIECE);
    }

    /// One line of a histogram's bucket: `le` follows the other labels.
    pub(crate) fn bucket(&mut self, base: &str, labels: &str, le: &str, count: u64) {
        self.out.push_str(base);
        self.out.push_str("_bucket{");
        self.out.push_str(labels);
        if !labels.is_empty() {
            self.out.push(',');
        }
        self.push(format_args!("le=\"{le}\"}} {count}\n"));
        self.go_on(PIECE);
    }

    pub(crate) fn finish(mut self) -> io::Result<()> {
        if self.openmetrics {
            self.out.push_str("# EOF\n");
        }
        self.go_on(0);
        self.failed
    }

    /// Hands on what has been gathered, if it is so much.
    fn go_on(&mut self, at_least: usize) {
        if self.out.len() >= at_least {
            if self.failed.is_ok() {
                self.failed = self.sink.write_all(self.out.as_bytes());
            }
            self.out.clear();
        }
    }

    fn help(&mut self, help: &str) {
        if self.openmetrics {
            push_escaped(&mut self.out, help);
            return;
        }
        for c in help.chars() {
            match c {
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                c => self.out.push(c),
            }
        }
    }

    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        self.out.write_fmt(text).expect("writing to a String cannot fail");
    }
}

/// `NaN`, `+Inf`, `-Inf` as both formats spell them; every other number as Rust prints it.
pub(crate) fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else {
        value.to_string()
    }
}

/// Renders `labels` for [`Exposition::sample`]; `None` if a name is not one that both formats take, or comes twice.
pub(crate) fn labels(pairs: &[(&str, &str)]) -> Option<String> {
    let mut out = String::new();
    for (i, (name, value)) in pairs.iter().enumerate() {
        let twice = pairs.iter().take(i).any(|(earlier, _)| earlier == name);
        if twice || !is_label_name(name) {
            return None;
        }
        push_label(&mut out, name, value);
    }
    Some(out)
}

/// `[a-zA-Z_][a-zA-Z0-9_]*`, without the names that Prometheus keeps to itself (`__…`, `le`, `quantile`).
pub(crate) fn is_label_name(name: &str) -> bool {
    is_name(name, |c| c == '_') && !name.starts_with("__") && !matches!(name, "le" | "quantile")
}

/// `[a-zA-Z_:][a-zA-Z0-9_:]*`
pub(crate) fn is_metric_name(name: &str) -> bool {
    is_name(name, |c| matches!(c, '_' | ':'))
}

fn is_name(name: &str, extra: impl Fn(char) -> bool) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || extra(c))
        && name.chars().all(|c| c.is_ascii_alphanumeric() || extra(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "_a", "a:b", ":a", "cairn_x_1"] {
            assert!(is_metric_name(good), "{good}");
        }
        for bad in ["", "1a", "a-b", "a b", "é", "a\n"] {
            assert!(!is_metric_name(bad), "{bad}");
        }
        assert_eq!(labels(&[("a", "1"), ("b_2", "x\"y")]).as_deref(), Some(r#"a="1",b_2="x\"y""#));
        for bad in ["", "1", "a:b", "le", "quantile", "__name__", "a}"] {
            assert_eq!(labels(&[(bad, "")]), None, "{bad}");
        }
        assert_eq!(labels(&[("a", "1"), ("a", "2")]), None);
    }

    #[test]
    fn numbers() {
        assert_eq!(number(1.0), "1");
        assert_eq!(number(0.25), "0.25");
        assert_eq!(number(f64::NAN), "NaN");
        assert_eq!(number(f64::INFINITY), "+Inf");
        assert_eq!(number(f64::NEG_INFINITY), "-Inf");
    }

    #[test]
    fn heads_differ_between_the_formats() {
        let text = |openmetrics| {
            let mut written = Vec::new();
            let mut e = Exposition::new(openmetrics, &mut written);
            e.family("x", Kind::Counter, "a \"b\" \\ c\nd");
            e.sample("x", "_total", "", 1);
            assert!(e.finish().is_ok());
            String::from_utf8_lossy(&written).into_owned()
        };
        assert_eq!(
            text(false),
            "# HELP x_total a \"b\" \\\\ c\\nd\n# TYPE x_total counter\nx_total 1\n"
        );
        assert_eq!(
            text(true),
            "# HELP x a \\\"b\\\" \\\\ c\\nd\n# TYPE x counter\nx_total 1\n# EOF\n"
        );
    }
}

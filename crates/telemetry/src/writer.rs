//! Plain counters and gauges that other crates add to a scrape.

use std::collections::BTreeMap;

use crate::exposition::{Exposition, Kind, is_metric_name, labels, number};
use crate::families;

/// Takes the samples of collectors and groups them into families, whatever order they come in.
///
/// A sample that fits no valid family is left out and counted in `cairn_telemetry_samples_rejected_total`, so that one
/// wrong name never spoils the scrape. That happens to a name that is not `[a-zA-Z_:][a-zA-Z0-9_:]*` or is one of
/// Istio's metrics of this crate, to a name that is used as counter and as gauge, to a gauge whose name ends like a
/// sample of another kind (`_total`, `_bucket`, `_count`, `_sum`, `_created`), to a counter whose name without `_total`
/// ends so, to a label name that is not
/// `[a-zA-Z_][a-zA-Z0-9_]*`, is reserved (`__…`, `le`, `quantile`) or comes twice.
///
/// Samples with the same name and labels are added up, so that collectors of several workers or meshes may report the
/// same series. The help text of the first one counts. Values of labels are cut at
/// [`MAX_LABEL_VALUE_BYTES`](crate::MAX_LABEL_VALUE_BYTES).
#[derive(Debug, Default)]
pub struct Writer {
    /// By name, without a counter's `_total`.
    families: BTreeMap<String, Family>,
    rejected: u64,
}

#[derive(Debug)]
struct Family {
    help: String,
    samples: Samples,
}

/// By rendered labels.
#[derive(Debug)]
enum Samples {
    Counter(BTreeMap<String, u64>),
    /// A counter of something that is no whole number.
    Amount(BTreeMap<String, f64>),
    Gauge(BTreeMap<String, f64>),
}

/// Endings that would make a family's line look like a sample of another family.
const SUFFIXES: [&str; 5] = ["_total", "_bucket", "_count", "_sum", "_created"];

impl Writer {
    /// A sample of a counter, which only grows. `name` ends with `_total`, which is added where it is missing.
    pub fn counter(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: u64) {
        let base = name.strip_suffix("_total").unwrap_or(name);
        let Some((family, labels)) =
            self.family(base, help, labels, || Samples::Counter(BTreeMap::new()))
        else {
            return;
        };
        if let Samples::Counter(samples) = &mut family.samples {
            let sum = samples.entry(labels).or_default();
            *sum = sum.wrapping_add(value);
        } else {
            self.rejected += 1;
        }
    }

    /// A sample of a counter that is no whole number, such as seconds; otherwise as [`Self::counter`].
    pub fn amount(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: f64) {
        let base = name.strip_suffix("_total").unwrap_or(name);
        let Some((family, labels)) =
            self.family(base, help, labels, || Samples::Amount(BTreeMap::new()))
        else {
            return;
        };
        if let Samples::Amount(samples) = &mut family.samples {
            *samples.entry(labels).or_default() += value;
        } else {
            self.rejected += 1;
        }
    }

    /// A sample of a gauge, in base units (seconds, bytes, a ratio from 0 to 1).
    pub fn gauge(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: f64) {
        let Some((family, labels)) =
            self.family(name, help, labels, || Samples::Gauge(BTreeMap::new()))
        else {
            return;
        };
        if let Samples::Gauge(samples) = &mut family.samples {
            *samples.entry(labels).or_default() += value;
        } else {
            self.rejected += 1;
        }
    }

    /// Samples left out so far.
    pub(crate) fn rejected(&self) -> u64 {
        self.rejected
    }

    pub(crate) fn render(&self, out: &mut Exposition<'_>) {
        for (name, Family { help, samples }) in &self.families {
            match samples {
                Samples::Counter(samples) => {
                    out.family(name, Kind::Counter, help);
                    for (labels, value) in samples {
                        out.sample(name, "_total", labels, value);
                    }
                }
                Samples::Amount(samples) => {
                    out.family(name, Kind::Counter, help);
                    for (labels, value) in samples {
                        out.sample(name, "_total", labels, number(*value));
                    }
                }
                Samples::Gauge(samples) => {
                    out.family(name, Kind::Gauge, help);
                    for (labels, value) in samples {
                        out.sample(name, "", labels, number(*value));
                    }
                }
            }
        }
    }

    /// The family of a sample and its rendered labels, if both are valid; a rejected sample is counted here.
    fn family(
        &mut self,
        base: &str,
        help: &str,
        pairs: &[(&str, &str)],
        empty: fn() -> Samples,
    ) -> Option<(&mut Family, String)> {
        let valid = is_metric_name(base)
            && !families::NAMES.contains(&base)
            && !SUFFIXES.iter().any(|suffix| base.ends_with(suffix));
        let labels = valid.then(|| labels(pairs)).flatten();
        let Some(labels) = labels else {
            self.rejected += 1;
            return None;
        };
        let family = self
            .families
            .entry(base.to_owned())
            .or_insert_with(|| Family { help: help.to_owned(), samples: empty() });
        Some((family, labels))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn text(writer: &Writer) -> String {
        let mut text = Vec::new();
        let mut out = Exposition::new(false, &mut text);
        writer.render(&mut out);
        out.finish().unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn groups_into_families_and_adds_up() {
        let mut writer = Writer::default();
        writer.counter("cairn_b_total", "B.", &[("mesh", "one")], 1);
        writer.gauge("cairn_a_bytes", "A.", &[], 1.5);
        writer.counter("cairn_b", "another help", &[("mesh", "two")], 2);
        writer.counter("cairn_b_total", "B.", &[("mesh", "one")], 3);
        writer.gauge("cairn_a_bytes", "A.", &[], 2.0);
        assert_eq!(
            text(&writer),
            "# HELP cairn_a_bytes A.\n# TYPE cairn_a_bytes gauge\ncairn_a_bytes 3.5\n\
             # HELP cairn_b_total B.\n# TYPE cairn_b_total counter\n\
             cairn_b_total{mesh=\"one\"} 4\ncairn_b_total{mesh=\"two\"} 2\n"
        );
        assert_eq!(writer.rejected(), 0);
    }

    #[test]
    fn leaves_out_and_counts_what_is_not_valid() {
        let mut writer = Writer::default();
        let bad: [(&str, &[(&str, &str)]); 9] = [
            ("", &[]),
            ("_total", &[]),
            ("a b_total", &[]),
            ("istio_requests_total", &[]),
            ("istio_tcp_sent_bytes", &[]),
            ("a_total_total", &[]),
            ("a_sum_total", &[]),
            ("a_total", &[("le", "1")]),
            ("a_total", &[("x", "1"), ("x", "2")]),
        ];
        for (name, labels) in bad {
            writer.counter(name, "", labels, 1);
        }
        assert_eq!((text(&writer).as_str(), writer.rejected()), ("", 9));
        for name in ["a_total", "a_bucket", "a_created", "istio_request_duration_milliseconds"] {
            writer.gauge(name, "", &[], 1.0);
        }
        assert_eq!((text(&writer).as_str(), writer.rejected()), ("", 13));
    }

    #[test]
    fn amounts_are_counters_with_fractions() {
        let mut writer = Writer::default();
        writer.amount("cairn_x_seconds_total", "X.", &[], 1.5);
        writer.amount("cairn_x_seconds_total", "X.", &[], 0.25);
        writer.counter("cairn_x_seconds_total", "X.", &[], 1);
        assert_eq!(writer.rejected(), 1);
        let expected = "# HELP cairn_x_seconds_total X.\n# TYPE cairn_x_seconds_total counter\n\
                        cairn_x_seconds_total 1.75\n";
        assert_eq!(text(&writer), expected);
    }

    #[test]
    fn a_name_has_one_kind() {
        let mut writer = Writer::default();
        writer.gauge("a", "", &[], 1.0);
        writer.counter("a_total", "", &[], 1);
        writer.counter("b_total", "", &[], 1);
        writer.gauge("b", "", &[], 1.0);
        assert_eq!(writer.rejected(), 2);
        assert_eq!(
            text(&writer),
            "# HELP a \n# TYPE a gauge\na 1\n# HELP b_total \n# TYPE b_total counter\nb_total 1\n"
        );
    }
}

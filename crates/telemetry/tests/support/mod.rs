//! A strict reader of both text formats, written after their grammars and not after the writer.

use std::collections::{BTreeMap, BTreeSet};

/// Names and unescaped values, in the order of the line.
pub type Labels = Vec<(String, String)>;

/// One line that is not a comment.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Full name with its suffix.
    pub name: String,
    /// What stands between the braces.
    pub labels: Labels,
    /// Value as written.
    pub value: f64,
}

impl Sample {
    /// Value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        let (_, value) = self.labels.iter().find(|(n, _)| n == name)?;
        Some(value)
    }
}

/// A whole exposition, valid in itself.
#[derive(Debug, Default)]
pub struct Scrape {
    /// Kind by the name in the `TYPE` line.
    pub kinds: BTreeMap<String, String>,
    /// All samples, in order.
    pub samples: Vec<Sample>,
}

impl Scrape {
    /// The samples of a name.
    pub fn named(&self, name: &str) -> Vec<&Sample> {
        self.samples.iter().filter(|s| s.name == name).collect()
    }

    /// The sum of a name over all labels.
    pub fn sum(&self, name: &str) -> f64 {
        self.named(name).iter().map(|s| s.value).sum()
    }

    /// Reads and checks; the error says which line is wrong.
    pub fn parse(text: &str, openmetrics: bool) -> Result<Scrape, String> {
        let body = if openmetrics {
            text.strip_suffix("# EOF\n").ok_or("no # EOF at the end")?
        } else {
            text
        };
        if !body.is_empty() && !body.ends_with('\n') {
            return Err("the last line has no end".into());
        }
        let mut scrape = Scrape::default();
        let mut family: Option<(String, String)> = None;
        let mut helped: Option<String> = None;
        let mut seen = BTreeSet::new();
        for line in body.split_terminator('\n') {
            let fail = |why: &str| Err(format!("{why}: {line:?}"));
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let Some((name, help)) = rest.split_once(' ') else {
                    return fail("HELP without text");
                };
                unescape(help, openmetrics).map_err(|why| format!("{why}: {line:?}"))?;
                helped = Some(name.to_owned());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let Some((name, kind)) = rest.split_once(' ') else {
                    return fail("TYPE without kind");
                };
                if helped.as_deref() != Some(name) {
                    return fail("TYPE does not follow its HELP");
                }
                if !["counter", "gauge", "histogram"].contains(&kind) {
                    return fail("unknown kind");
                }
                if scrape.kinds.insert(name.into(), kind.into()).is_some() {
                    return fail("family comes twice");
                }
                family = Some((name.into(), kind.into()));
            } else {
                let sample = sample(line).map_err(|why| format!("{why}: {line:?}"))?;
                let Some((base, kind)) = &family else {
                    return fail("sample without a family");
                };
                let suffixes: &[&str] = match kind.as_str() {
                    "counter" if openmetrics => &["_total"],
                    "histogram" => &["_bucket", "_sum", "_count"],
                    _ => &[""],
                };
                if !suffixes.iter().any(|s| sample.name == format!("{base}{s}")) {
                    return fail("sample of another family");
                }
                let mut labels = sample.labels.clone();
                labels.sort();
                if labels.windows(2).any(|w| w[0].0 == w[1].0) {
                    return fail("label comes twice");
                }
                if !seen.insert((sample.name.clone(), labels)) {
                    return fail("series comes twice");
                }
                scrape.samples.push(sample);
            }
        }
        scrape.check_histograms()?;
        Ok(scrape)
    }

    fn check_histograms(&self) -> Result<(), String> {
        for (base, _) in self.kinds.iter().filter(|(_, kind)| *kind == "histogram") {
            let mut by_series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
            for bucket in self.named(&format!("{base}_bucket")) {
                let le = bucket.label("le").ok_or("bucket without le")?;
                let le = le.parse().map_err(|_| format!("le {le:?}"))?;
                let rest = bucket.labels.iter().filter(|(n, _)| n != "le").cloned().collect();
                by_series.entry(rest).or_default().push((le, bucket.value));
            }
            for (labels, buckets) in by_series {
                if !buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1) {
                    return Err(format!("buckets out of order: {buckets:?}"));
                }
                let counts = self.named(&format!("{base}_count"));
                let count = counts.iter().find(|s| s.labels == labels).ok_or("no count")?;
                if buckets.last() != Some(&(f64::INFINITY, count.value)) {
                    return Err(format!("+Inf is not the count: {buckets:?}"));
                }
            }
        }
        Ok(())
    }
}

fn is_name(name: &str, colon: bool) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colon && c == ':');
    name.chars().all(good) && name.starts_with(|c: char| good(c) && !c.is_ascii_digit())
}

fn unescape(text: &str, quotes: bool) -> Result<String, &'static str> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('\\') => out.push('\\'),
                Some('n') => out.push('\n'),
                Some('"') if quotes => out.push('"'),
                _ => return Err("wrong escape"),
            },
            '"' if quotes => return Err("bare quote"),
            c => out.push(c),
        }
    }
    Ok(out)
}

fn sample(line: &str) -> Result<Sample, &'static str> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, mut rest) = line.split_at(end);
    if !is_name(name, true) {
        return Err("wrong name");
    }
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, after) = rest.split_once("=\"").ok_or("label without a value")?;
            if !is_name(label, false) {
                return Err("wrong label name");
            }
            let mut escaped = false;
            let end = after
                .find(|c| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                })
                .ok_or("value without an end")?;
            let (value, after) = after.split_at(end);
            labels.push((label.to_owned(), unescape(value, true)?));
            let after = &after[1..];
            if let Some(next) = after.strip_prefix(',') {
                rest = next;
            } else {
                rest = after.strip_prefix('}').ok_or("labels without an end")?;
                break;
            }
        }
    }
    let value = rest.strip_prefix(' ').ok_or("no space before the value")?;
    if value.contains(' ') {
        return Err("more than a value");
    }
    let value = value.parse().map_err(|_| "wrong value")?;
    Ok(Sample { name: name.to_owned(), labels, value })
}

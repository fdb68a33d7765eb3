//! What a chain changes of the standard metrics. Istio: `metrics` of `stats.PluginConfig`.
//!
//! Changes are said per metric, and metrics of one kind (requests, messages, connections) that are changed in the same
//! way share a series: a [`Rules`] holds for each kind the groups of metrics that do.

use std::hash::{Hash, Hasher};

use crate::labels::{LabelSet, STANDARD};

/// A metric of Istio's that can be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Metric {
    /// `istio_requests_total`
    Requests,
    /// `istio_request_duration_milliseconds`
    RequestDuration,
    /// `istio_request_bytes`
    RequestBytes,
    /// `istio_response_bytes`
    ResponseBytes,
    /// `istio_request_messages_total`
    RequestMessages,
    /// `istio_response_messages_total`
    ResponseMessages,
    /// `istio_tcp_connections_opened_total`
    ConnectionsOpened,
    /// `istio_tcp_connections_closed_total`
    ConnectionsClosed,
    /// `istio_tcp_sent_bytes_total`
    SentBytes,
    /// `istio_tcp_received_bytes_total`
    ReceivedBytes,
}

impl Metric {
    /// All of them, with their names in `stats.PluginConfig`: without `istio_`.
    pub const ALL: [(Metric, &'static str); 10] = [
        (Metric::Requests, "requests_total"),
        (Metric::RequestDuration, "request_duration_milliseconds"),
        (Metric::RequestBytes, "request_bytes"),
        (Metric::ResponseBytes, "response_bytes"),
        (Metric::RequestMessages, "request_messages_total"),
        (Metric::ResponseMessages, "response_messages_total"),
        (Metric::ConnectionsOpened, "tcp_connections_opened_total"),
        (Metric::ConnectionsClosed, "tcp_connections_closed_total"),
        (Metric::SentBytes, "tcp_sent_bytes_total"),
        (Metric::ReceivedBytes, "tcp_received_bytes_total"),
    ];

    /// The metric of this name, without `istio_`.
    pub fn named(name: &str) -> Option<Metric> {
        Metric::ALL.iter().find(|(_, known)| *known == name).map(|(metric, _)| *metric)
    }

    const fn kind(self) -> LabelSet {
        match self {
            Metric::Requests
            | Metric::RequestDuration
            | Metric::RequestBytes
            | Metric::ResponseBytes => LabelSet::Http,
            Metric::RequestMessages | Metric::ResponseMessages => LabelSet::Messages,
            Metric::ConnectionsOpened
            | Metric::ConnectionsClosed
            | Metric::SentBytes
            | Metric::ReceivedBytes => LabelSet::Tcp,
        }
    }

    pub(crate) const fn mask(self) -> Metrics {
        Metrics(1 << self as u16)
    }
}

/// A set of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Metrics(u16);

impl Metrics {
    pub(crate) const ALL: Metrics = Metrics(u16::MAX);

    pub(crate) const fn from_bits(bits: u16) -> Metrics {
        Metrics(bits)
    }

    pub(crate) const fn bits(self) -> u16 {
        self.0
    }

    pub(crate) const fn has(self, metric: Metric) -> bool {
        self.0 & metric.mask().0 != 0
    }
}

/// What becomes of the labels of one or several metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Change {
    /// Standard labels: `None` is left out, a number is the dimension that takes its place.
    standard: Vec<(Box<str>, Option<usize>)>,
    /// Further labels and their dimensions, behind the standard ones.
    added: Vec<(Box<str>, usize)>,
}

/// What becomes of a standard label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Kept,
    Removed,
    Dimension(usize),
}

impl Change {
    pub(crate) fn of(&self, label: &str) -> Fate {
        match self.standard.iter().find(|(name, _)| &**name == label) {
            None => Fate::Kept,
            Some((_, None)) => Fate::Removed,
            Some((_, Some(dimension))) => Fate::Dimension(*dimension),
        }
    }

    pub(crate) fn added(&self) -> impl Iterator<Item = (&str, usize)> {
        self.added.iter().map(|(name, dimension)| (&**name, *dimension))
    }

    fn set(&mut self, label: &str, to: Option<usize>) {
        match self.standard.iter_mut().find(|(name, _)| &**name == label) {
            Some((_, fate)) => *fate = to,
            None => self.standard.push((label.into(), to)),
        }
    }

    fn add(&mut self, label: &str, dimension: usize) {
        match self.added.iter_mut().find(|(name, _)| &**name == label) {
            Some((_, known)) => *known = dimension,
            None => self.added.push((label.into(), dimension)),
        }
    }
}

/// Metrics of one kind that are changed in the same way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Group {
    pub(crate) metrics: Metrics,
    pub(crate) change: Change,
}

/// What a chain changes. Made when the configuration is compiled, and shared.
#[derive(Debug, Default)]
pub struct Rules {
    http: Vec<Group>,
    messages: Vec<Group>,
    tcp: Vec<Group>,
    fingerprint: u64,
}

impl PartialEq for Rules {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
            && self.http == other.http
            && self.messages == other.messages
            && self.tcp == other.tcp
    }
}

impl Rules {
    pub(crate) fn groups(&self, kind: LabelSet) -> &[Group] {
        match kind {
            LabelSet::Http => &self.http,
            LabelSet::Messages => &self.messages,
            LabelSet::Tcp => &self.tcp,
        }
    }

    /// Equal rules have the same.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

/// Collects changes in their order: later ones replace earlier ones of the same metric and label.
#[derive(Debug)]
pub struct RulesBuilder {
    changes: [Option<Change>; Metric::ALL.len()],
}

impl Default for RulesBuilder {
    fn default() -> Self {
        RulesBuilder { changes: std::array::from_fn(|_| Some(Change::default())) }
    }
}

impl RulesBuilder {
    /// The metric is not counted.
    pub fn drop(&mut self, metric: Metric) {
        if let Some(change) = self.changes.get_mut(metric as usize) {
            *change = None;
        }
    }

    /// A metric, or all of them, loses a standard label; others are not there anyway.
    pub fn remove(&mut self, metric: Option<Metric>, label: &str) {
        if STANDARD.contains(&label) {
            self.each(metric, |change| change.set(label, None));
        }
    }

    /// A label of a metric, or of all of them, is the value of a dimension, by its number in the event's `dimensions`.
    ///
    /// A standard label keeps its place, another one comes behind them.
    pub fn dimension(&mut self, metric: Option<Metric>, label: &str, dimension: usize) {
        if STANDARD.contains(&label) {
            self.each(metric, |change| change.set(label, Some(dimension)));
        } else {
            self.each(metric, |change| change.add(label, dimension));
        }
    }

    fn each(&mut self, metric: Option<Metric>, change: impl Fn(&mut Change)) {
        for ((of, _), known) in Metric::ALL.iter().zip(&mut self.changes) {
            if metric.is_none_or(|metric| metric == *of)
                && let Some(known) = known
            {
                change(known);
            }
        }
    }

    /// The rules.
    pub fn build(self) -> Rules {
        let mut rules = Rules::default();
        for ((metric, _), change) in Metric::ALL.iter().zip(self.changes) {
            let Some(change) = change else { continue };
            let groups = match metric.kind() {
                LabelSet::Http => &mut rules.http,
                LabelSet::Messages => &mut rules.messages,
                LabelSet::Tcp => &mut rules.tcp,
            };
            match groups.iter_mut().find(|group| group.change == change) {
                Some(group) => {
                    group.metrics = Metrics(group.metrics.0 | metric.mask().0);
                }
                None => groups.push(Group { metrics: metric.mask(), change }),
            }
        }
        let mut hasher = std::hash::DefaultHasher::new();
        (&rules.http, &rules.messages, &rules.tcp).hash(&mut hasher);
        rules.fingerprint = hasher.finish();
        rules
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_metrics() {
        for (i, (metric, name)) in Metric::ALL.into_iter().enumerate() {
            assert_eq!(metric as usize, i);
            assert_eq!(Metric::named(name), Some(metric));
        }
        assert_eq!(Metric::named("istio_requests_total"), None);
    }

    #[test]
    fn metrics_that_are_changed_alike_share_a_group() {
        let mut builder = RulesBuilder::default();
        builder.drop(Metric::RequestBytes);
        builder.remove(Some(Metric::Requests), "source_app");
        let rules = builder.build();
        let [custom, plain] = rules.http.as_slice() else { panic!("{rules:?}") };
        assert_eq!(custom.metrics, Metric::Requests.mask());
        assert_eq!(custom.change.of("source_app"), Fate::Removed);
        assert!(plain.metrics.has(Metric::RequestDuration));
        assert!(plain.metrics.has(Metric::ResponseBytes));
        assert!(!plain.metrics.has(Metric::RequestBytes));
        assert_eq!(plain.change, Change::default());
        assert_eq!((rules.messages.len(), rules.tcp.len()), (1, 1));
    }

    #[test]
    fn later_changes_replace_earlier_ones() {
        let mut builder = RulesBuilder::default();
        builder.dimension(None, "source_app", 0);
        builder.remove(Some(Metric::Requests), "source_app");
        builder.dimension(None, "host", 1);
        builder.dimension(Some(Metric::Requests), "host", 2);
        builder.remove(None, "host"); // Envoy: only standard labels can be removed
        let rules = builder.build();
        let of = |metric: Metric| {
            let group = rules.http.iter().find(|group| group.metrics.has(metric)).unwrap();
            let added: Vec<_> = group.change.added().collect();
            (group.change.of("source_app"), added)
        };
        assert_eq!(of(Metric::Requests), (Fate::Removed, vec![("host", 2)]));
        assert_eq!(of(Metric::ResponseBytes), (Fate::Dimension(0), vec![("host", 1)]));
    }

    #[test]
    fn equal_rules_are_equal_wherever_they_are() {
        let build = |label| {
            let mut builder = RulesBuilder::default();
            builder.remove(None, label);
            builder.build()
        };
        assert_eq!(build("source_app"), build("source_app"));
        assert_eq!(build("source_app").fingerprint(), build("source_app").fingerprint());
        assert_ne!(build("source_app"), build("source_version"));
    }
}

//! Istio's metrics as families of an exposition.

use std::sync::Arc;

use crate::exposition::{Exposition, Kind, number};
use crate::rules::Metric;
use crate::series::{
    ConnectionCells, ConnectionTotals, HistogramTotals, MessageCells, MessageTotals, RequestCells,
    RequestTotals,
};
use crate::store::Series;

/// Names of the families, without a counter's `_total`: nobody else may use them.
pub(crate) const NAMES: [&str; 10] = [
    "istio_requests",
    "istio_request_duration_milliseconds",
    "istio_request_bytes",
    "istio_response_bytes",
    "istio_request_messages",
    "istio_response_messages",
    "istio_tcp_connections_opened",
    "istio_tcp_connections_closed",
    "istio_tcp_sent_bytes",
    "istio_tcp_received_bytes",
];

/// A family whose samples are in `T`.
struct Family<T, F> {
    metric: Metric,
    help: &'static str,
    field: fn(&T) -> F,
}

impl<T, F> Family<T, F> {
    fn name(&self) -> &'static str {
        NAMES.get(self.metric as usize).copied().unwrap_or_default()
    }
}

pub(crate) fn requests(out: &mut Exposition<'_>, all: &[Arc<Series<RequestCells>>]) {
    let totals: Vec<_> = all
        .iter()
        .map(|series| {
            let mut totals = RequestTotals::default();
            series.for_each(|cells| totals.add(cells));
            (&**series, totals)
        })
        .collect();
    let requests = Family::<RequestTotals, u64> {
        metric: Metric::Requests,
        help: "Requests that are over.",
        field: |totals| totals.requests,
    };
    counter(out, &requests, &totals);
    // A sum of durations is in microseconds.
    let histograms: [(Family<RequestTotals, HistogramTotals>, f64); 3] = [
        (
            Family {
                metric: Metric::RequestDuration,
                help: "From the first byte of the request to the last of the reply.",
                field: |totals| totals.duration,
            },
            1000.0,
        ),
        (
            Family {
                metric: Metric::RequestBytes,
                help: "Bytes of requests, with their heads.",
                field: |totals| totals.request_bytes,
            },
            1.0,
        ),
        (
            Family {
                metric: Metric::ResponseBytes,
                help: "Bytes of responses, with their heads.",
                field: |totals| totals.response_bytes,
            },
            1.0,
        ),
    ];
    for (family, scale) in &histograms {
        histogram(out, family, *scale, &totals);
    }
}

pub(crate) fn messages(out: &mut Exposition<'_>, all: &[Arc<Series<MessageCells>>]) {
    let totals: Vec<_> = all
        .iter()
        .map(|series| {
            let mut totals = MessageTotals::default();
            series.for_each(|cells| totals.add(cells));
            (&**series, totals)
        })
        .collect();
    let families: [Family<MessageTotals, u64>; 2] = [
        Family {
            metric: Metric::RequestMessages,
            help: "gRPC messages read from clients.",
            field: |totals| totals.requests,
        },
        Family {
            metric: Metric::ResponseMessages,
            help: "gRPC messages sent to clients.",
            field: |totals| totals.responses,
        },
    ];
    for family in &families {
        counter(out, family, &totals);
    }
}

pub(crate) fn connections(out: &mut Exposition<'_>, all: &[Arc<Series<ConnectionCells>>]) {
    let totals: Vec<_> = all
        .iter()
        .map(|series| {
            let mut totals = ConnectionTotals::default();
            series.for_each(|cells| totals.add(cells));
            (&**series, totals)
        })
        .collect();
    let families: [Family<ConnectionTotals, u64>; 4] = [
        Family {
            metric: Metric::ConnectionsOpened,
            help: "TCP connections that began.",
            field: |totals| totals.opened,
        },
        Family {
            metric: Metric::ConnectionsClosed,
            help: "TCP connections that are over.",
            field: |totals| totals.closed,
        },
        Family {
            metric: Metric::SentBytes,
            help: "Bytes sent to clients of TCP connections.",
            field: |totals| totals.sent_bytes,
        },
        Family {
            metric: Metric::ReceivedBytes,
            help: "Bytes read from clients of TCP connections.",
            field: |totals| totals.received_bytes,
        },
    ];
    for family in &families {
        counter(out, family, &totals);
    }
}

/// The series that have a family's metric; begins the family if there is one.
fn members<'a, C, T, F>(
    out: &mut Exposition<'_>,
    family: &Family<T, F>,
    kind: Kind,
    all: &'a [(&'a Series<C>, T)],
) -> impl Iterator<Item = (&'a Series<C>, &'a T)> + use<'a, C, T, F>
where
    C: crate::series::Cells,
{
    let metric = family.metric;
    if all.iter().any(|(series, _)| series.has(metric)) {
        out.family(family.name(), kind, family.help);
    }
    all.iter()
        .filter(move |(series, _)| series.has(metric))
        .map(|(series, totals)| (*series, totals))
}

fn counter<C: crate::series::Cells, T>(
    out: &mut Exposition<'_>,
    family: &Family<T, u64>,
    all: &[(&Series<C>, T)],
) {
    for (series, totals) in members(out, family, Kind::Counter, all) {
        out.sample(family.name(), "_total", &series.labels, (family.field)(totals));
    }
}

fn histogram<C: crate::series::Cells, T>(
    out: &mut Exposition<'_>,
    family: &Family<T, HistogramTotals>,
    scale: f64,
    all: &[(&Series<C>, T)],
) {
    let name = family.name();
    for (series, totals) in members(out, family, Kind::Histogram, all) {
        let totals = (family.field)(totals);
        for (bucket, cumulative) in totals.cumulative() {
            let le = if out.openmetrics() { bucket.openmetrics } else { bucket.text };
            out.bucket(name, &series.labels, le, cumulative);
        }
        out.bucket(name, &series.labels, "+Inf", totals.count());
        out.sample(name, "_sum", &series.labels, number(totals.sum as f64 / scale));
        out.sample(name, "_count", &series.labels, totals.count());
    }
}

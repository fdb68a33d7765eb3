//! What the proxy did, counted and told.
//!
//! The proxy builds one [`RequestEvent`] at the end of each request and one [`ConnectionEvent`] at the end of each TCP
//! connection, and hands it to [`Telemetry`], which turns it into Istio's standard metrics. This crate knows nothing of
//! how requests are proxied; it takes values.
//!
//! # The series store
//!
//! - A **shard** belongs to one worker thread. Its index, from the labels' values to the numbers, sits behind a mutex
//!   that only this worker takes: neither another worker nor a scrape does. So it is never contended, and its cache
//!   line stays with the core. The numbers themselves are atomics that the scrape reads.
//! - Recording an event whose series the shard knows allocates nothing and formats nothing: the event's fields are
//!   hashed and compared as they are, `Arc`s by address first.
//! - The first event of a series in a shard renders the labels and takes the registry's lock once. Two shards (or two
//!   events that differ only beyond the bounds of a label) with the same rendered labels share one series.
//! - The number of series is bounded, in all and per tenant ([`Settings::series_limit`],
//!   [`Settings::tenant_series_limit`]); what comes later is added to a series whose labels are `other` except the
//!   destination's namespace, so that sums stay right.
//! - A series that nothing happened to for long leaves ([`Settings::series_idle`]): it stays exposed as it is for a
//!   grace period, then it is gone, and comes back from 0. Prometheus' `rate()` is right through all of this.
//! - A chain may change what is counted and by which labels ([`Rules`]). The labels of a metric follow from the
//!   event, the rules and the values of the chain's own dimensions; equal labels are one series, whoever made them.
//!
//! # Metrics
//!
//! | name | kind | labels |
//! |---|---|---|
//! | `istio_requests_total` | counter | Istio's, HTTP |
//! | `istio_request_duration_milliseconds` | histogram | Istio's, HTTP |
//! | `istio_request_bytes`, `istio_response_bytes` | histogram | Istio's, HTTP; heads and bodies |
//! | `istio_request_messages_total`, `istio_response_messages_total` | counter | Istio's, without the outcome; gRPC |
//! | `istio_tcp_connections_opened_total` | counter | Istio's, TCP |
//! | `istio_tcp_connections_closed_total` | counter | Istio's, TCP |
//! | `istio_tcp_sent_bytes_total` | counter | Istio's, TCP; bytes sent to the client |
//! | `istio_tcp_received_bytes_total` | counter | Istio's, TCP; bytes read from the client |
//! | `istio_build` | gauge, always 1 | `component="proxy"`, `tag` = version |
//! | `cairn_telemetry_series` | gauge | `family` = `requests`, `messages`, `connections` |
//! | `cairn_telemetry_series_limit`, `cairn_telemetry_tenant_series_limit` | gauge | |
//! | `cairn_telemetry_series_removed_total` | counter | `family`: series that left |
//! | `cairn_telemetry_series_dropped_total` | counter | `family`: label sets refused a series of their own |
//! | `cairn_access_log_lines_total` | counter | `log` = `stdout`, `stderr`, `otlp` |
//! | `cairn_access_log_dropped_total` | counter | `log`: lines and records that were dropped |
//! | `cairn_telemetry_samples_rejected_total` | counter | samples of collectors that fit no valid family |
//!
//! Other crates' counters are added by [`Telemetry::register`].

#![forbid(unsafe_code)]

pub mod access_log;
mod budget;
mod event;
pub mod export;
mod exposition;
mod families;
mod flags;
mod key;
mod labels;
mod rules;
mod series;
mod store;
mod telemetry;
pub mod trace;
mod writer;

pub use event::{
    ConnectionEvent, Protocol, RequestEvent, SecurityPolicy, ServiceLabels, Timings, WorkloadLabels,
};
pub use flags::ResponseFlags;
pub use labels::{MAX_LABEL_VALUE_BYTES, is_free_label, is_standard_label};
pub use rules::{Metric, Rules, RulesBuilder};
pub use telemetry::{Settings, ShardHandle, Telemetry};
pub use writer::Writer;

//! The instance's counters as `cairn_*` metrics. `docs/telemetry.md` lists them.

use crate::instance::MeshInstance;
use cairn_hbone::{OriginatorCounters, TerminatorCounters};
use cairn_telemetry::Writer;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

/// Adds the instance's counters to every scrape for as long as the instance lives.
pub(crate) fn register(instance: &Arc<MeshInstance>) {
    instance.telemetry().register_of(instance, write);
}

fn write(instance: &MeshInstance, writer: &mut Writer) {
    let mesh = [("mesh", instance.name())];
    for (name, help, grows, value) in instance.counters().snapshot() {
        if grows {
            writer.counter(name, help, &mesh, value);
        } else {
            writer.gauge(name, help, &mesh, value as f64);
        }
    }
    let (idle, open) = instance.pooled();
    writer.gauge(
        "cairn_upstream_http1_idle",
        "Idle HTTP/1.1 connections to endpoints.",
        &mesh,
        idle as f64,
    );
    writer.gauge(
        "cairn_upstream_http2_open",
        "HTTP/2 connections to endpoints.",
        &mesh,
        open as f64,
    );
    let expiry = instance
        .identity()
        .current()
        .not_after
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64());
    writer.gauge(
        "cairn_certificate_expiry_timestamp_seconds",
        "When our certificate expires, seconds since the epoch.",
        &mesh,
        expiry,
    );
    instance.exports().write(instance.name(), writer);
    instance.log_counts().write(instance.name(), writer);
    incoming(instance, writer);
    outgoing(instance, writer);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn incoming(instance: &MeshInstance, writer: &mut Writer) {
    let mesh = [("mesh", instance.name())];
    let counters: &TerminatorCounters = instance.terminator_counters();
    for (name, help, counter) in [
        (
            "cairn_handshakes_total",
            "TLS and HTTP/2 handshakes of clients that were completed.",
            &counters.handshakes,
        ),
        ("cairn_connects_total", "Well-formed CONNECTs, whatever the answer.", &counters.connects),
        (
            "cairn_connects_malformed_total",
            "Requests on HBONE connections that are no good CONNECT.",
            &counters.connects_malformed,
        ),
        (
            "cairn_connects_refused_total",
            "CONNECTs answered with another status than 200.",
            &counters.connects_refused,
        ),
        ("cairn_tunnels_opened_total", "CONNECTs answered with 200.", &counters.tunnels_opened),
        ("cairn_floods_total", "Client connections cut because they flooded.", &counters.floods),
        (
            "cairn_keepalive_timeouts_total",
            "Client connections cut because a PING was not answered.",
            &counters.keepalive_timeouts,
        ),
    ] {
        writer.counter(name, help, &mesh, get(counter));
    }
    for (reason, count) in counters.handshake_failures() {
        writer.counter(
            "cairn_handshake_failures_total",
            "Handshakes of clients that failed, by reason.",
            &[("mesh", instance.name()), ("reason", reason)],
            count,
        );
    }
}

fn outgoing(instance: &MeshInstance, writer: &mut Writer) {
    let mesh = [("mesh", instance.name())];
    let counters: &OriginatorCounters = instance.originator_counters();
    for (name, help, counter) in [
        (
            "cairn_upstream_hbone_connections_opened_total",
            "HBONE connections to endpoints that were established.",
            &counters.connections_opened,
        ),
        (
            "cairn_upstream_hbone_connections_closed_total",
            "HBONE connections to endpoints that are over.",
            &counters.connections_closed,
        ),
        (
            "cairn_upstream_tunnels_opened_total",
            "Tunnels to endpoints that were opened.",
            &counters.tunnels_opened,
        ),
        (
            "cairn_upstream_connects_refused_total",
            "CONNECTs that an endpoint refused.",
            &counters.connects_refused,
        ),
        (
            "cairn_upstream_connects_retried_total",
            "CONNECTs sent again because their connection went away.",
            &counters.connects_retried,
        ),
        (
            "cairn_upstream_idle_released_total",
            "HBONE connections to endpoints released because nobody used them.",
            &counters.idle_released,
        ),
    ] {
        writer.counter(name, help, &mesh, get(counter));
    }
    for (reason, count) in counters.dial_failures() {
        writer.counter(
            "cairn_upstream_dial_failures_total",
            "HBONE connections to endpoints that failed, by reason.",
            &[("mesh", instance.name()), ("reason", reason)],
            count,
        );
    }
}

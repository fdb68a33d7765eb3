//! A report for Prometheus. `docs/telemetry.md` lists the series.

use cairn_autoscale::{Capacity, Connections, LoadReport, Queue, Queues, Shed, TenantLoad};
use cairn_telemetry::Writer;

/// Writes what counters of the proxy do not have already.
pub fn write(report: &LoadReport, writer: &mut Writer) {
    writer.gauge(
        "cairn_load_in_flight",
        "Requests in flight, and a tenth for each opaque connection.",
        &[],
        report.in_flight,
    );
    writer.amount(
        "cairn_load_in_flight_seconds_total",
        "Integral of cairn_load_in_flight over time: its rate is the exact average.",
        &[],
        report.in_flight_seconds_total,
    );
    writer.amount(
        "cairn_load_cpu_seconds_total",
        "CPU time used of what the capacity for it bounds.",
        &[("source", &report.cpu_source)],
        report.cpu_seconds_total,
    );
    for (direction, bytes) in
        [("received", report.received_bytes_total), ("sent", report.sent_bytes_total)]
    {
        let help = "Bytes on the wire, of clients and endpoints.";
        writer.counter("cairn_load_bytes_total", help, &[("direction", direction)], bytes);
    }
    writer.counter(
        "cairn_load_requests_total",
        "Requests that are over.",
        &[],
        report.requests_total,
    );
    let Shed { connections, tunnels, requests } = report.shed;
    for (reason, count) in
        [("connections", connections), ("tunnels", tunnels), ("requests", requests)]
    {
        let help = "Refused for lack of room, by what it was.";
        writer.counter("cairn_load_shed_total", help, &[("reason", reason)], count);
    }
    let Queues { connection, endpoint } = &report.queues;
    for (queue, Queue { waiting, waits_total, wait_seconds_total }) in
        [("connection", connection), ("endpoint", endpoint)]
    {
        let labels = [("queue", queue)];
        let help = "Requests and connections that wait.";
        writer.gauge("cairn_load_waiting", help, &labels, *waiting);
        let help = "Waits that are over.";
        writer.counter("cairn_load_waits_total", help, &labels, *waits_total);
        let help = "What waits took so far, those that are not over included.";
        writer.amount("cairn_load_wait_seconds_total", help, &labels, *wait_seconds_total);
    }
    let Connections { hbone, tunnels, streams, upstream } = report.connections;
    for (kind, count) in
        [("hbone", hbone), ("tunnel", tunnels), ("stream", streams), ("upstream", upstream)]
    {
        let help = "What is open, by kind.";
        writer.gauge("cairn_load_connections", help, &[("kind", kind)], count as f64);
    }
    for (quantile, value) in [
        ("0.5", report.executor_delay_p50_milliseconds),
        ("0.99", report.executor_delay_p99_milliseconds),
        ("1", report.executor_delay_max_milliseconds),
    ] {
        writer.gauge(
            "cairn_load_executor_delay_seconds",
            "How long tasks waited for their worker in the last 10 s.",
            &[("part", quantile)],
            value / 1000.0,
        );
    }
    writer.gauge("cairn_load_memory_bytes", "Memory in use.", &[], report.memory_bytes as f64);
    capacity(&report.capacity, writer);
    let flag = |flag| if flag { 1.0 } else { 0.0 };
    writer.gauge("cairn_load_ready", "1 while traffic is welcome.", &[], flag(report.ready));
    let help = "1 while what is in flight is finished and nothing else.";
    writer.gauge("cairn_load_draining", help, &[], flag(report.draining));
    if let Some(start) = &report.cold_start {
        for (step, milliseconds) in [
            ("certificate", start.certificate_milliseconds),
            ("config", start.config_milliseconds),
            ("ready", start.ready_milliseconds),
        ] {
            let help = "From the start of the process to this step.";
            let labels = [("step", step)];
            writer.gauge("cairn_load_cold_start_seconds", help, &labels, milliseconds / 1000.0);
        }
    }
    let help = "Since the configuration changed.";
    writer.gauge("cairn_load_config_age_seconds", help, &[], report.config_age_seconds);
    for tenant in &report.tenants {
        write_tenant(tenant, writer);
    }
}

fn capacity(capacity: &Capacity, writer: &mut Writer) {
    let Capacity { in_flight, cpu, bytes_per_second, connections, memory_bytes, units } = *capacity;
    for (what, value) in [
        ("in_flight", in_flight),
        ("cpu", cpu),
        ("bytes_per_second", bytes_per_second),
        ("connections", connections),
        ("memory_bytes", memory_bytes as f64),
        ("units", units),
    ] {
        let help = "What the instance can do; absent where it is not known.";
        if value > 0.0 {
            writer.gauge("cairn_load_capacity", help, &[("of", what)], value);
        }
    }
}

fn write_tenant(tenant: &TenantLoad, writer: &mut Writer) {
    let TenantLoad {
        mesh,
        namespace,
        in_flight,
        in_flight_seconds_total,
        requests_total,
        shed_total,
        bytes_total,
    } = tenant;
    let labels = [("mesh", mesh.as_str()), ("namespace", namespace.as_str())];
    let help = "In flight, of the busiest tenants and of all others (*).";
    writer.gauge("cairn_load_tenant_in_flight", help, &labels, *in_flight);
    let help = "Integral of cairn_load_tenant_in_flight over time.";
    writer.amount(
        "cairn_load_tenant_in_flight_seconds_total",
        help,
        &labels,
        *in_flight_seconds_total,
    );
    let help = "Requests of a tenant that are over.";
    writer.counter("cairn_load_tenant_requests_total", help, &labels, *requests_total);
    let help = "Requests of a tenant that were refused for lack of room.";
    writer.counter("cairn_load_tenant_shed_total", help, &labels, *shed_total);
    let help = "Bytes of a tenant, both ways.";
    writer.counter("cairn_load_tenant_bytes_total", help, &labels, *bytes_total);
}

//! Reads a report that another process has written.
//!
//! Fields that are not known are left alone and missing ones get their default, so that versions can
//! be mixed; what is known has to make sense, because one member's nonsense would scale a fleet.

use super::{
    Capacity, ClusterLoad, ColdStart, LoadReport, MAX_REPORT_BYTES, Queue, Queues, SCHEMA_VERSION,
    TenantLoad,
};

/// Tenants of one report; more are refused.
const MAX_TENANTS: usize = 10_000;
/// Clusters of one report; more are refused.
const MAX_CLUSTERS: usize = 1_000;
/// Bytes of a name; more are refused.
const MAX_NAME_BYTES: usize = 512;

/// Why a report is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct ReportError {
    /// Path of the field, such as `tenants[2].in_flight`; `.`: the whole.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

fn wrong(field: impl Into<String>, message: impl Into<String>) -> ReportError {
    ReportError { field: field.into(), message: message.into() }
}

impl LoadReport {
    /// Reads JSON.
    ///
    /// # Errors
    /// No JSON, another version of the schema, more than [`MAX_REPORT_BYTES`], and fields with values
    /// that they cannot have: a negative or infinite number, a name that is too long.
    pub fn parse(json: &[u8]) -> Result<LoadReport, ReportError> {
        if json.len() > MAX_REPORT_BYTES {
            return Err(wrong(".", format!("longer than {MAX_REPORT_BYTES} bytes")));
        }
        let mut reader = serde_json::Deserializer::from_slice(json);
        let report: LoadReport = serde_path_to_error::deserialize(&mut reader)
            .map_err(|error| wrong(error.path().to_string(), error.inner().to_string()))?;
        reader.end().map_err(|error| wrong(".", error.to_string()))?;
        report.check()?;
        Ok(report)
    }

    /// Whether all of it makes sense.
    ///
    /// # Errors
    /// See [`Self::parse`].
    pub fn check(&self) -> Result<(), ReportError> {
        let LoadReport {
            version,
            minor: _,
            build,
            instance,
            zone,
            locality,
            uptime_seconds,
            ready: _,
            draining: _,
            capacity,
            in_flight,
            in_flight_seconds_total,
            cpu_seconds_total,
            cpu_source,
            received_bytes_total: _,
            sent_bytes_total: _,
            requests_total: _,
            shed_total: _,
            shed: _,
            overflows_total: _,
            queues: Queues { connection, endpoint },
            connections: _,
            handshakes_total: _,
            executor_delay_p50_milliseconds,
            executor_delay_p99_milliseconds,
            executor_delay_max_milliseconds,
            memory_bytes: _,
            cold_start,
            config_age_seconds,
            config_answer_age_seconds,
            clusters,
            tenants,
        } = self;
        if *version != SCHEMA_VERSION {
            let message = format!("{version} is not {SCHEMA_VERSION}, which is what is understood");
            return Err(wrong("version", message));
        }
        if instance.is_empty() {
            return Err(wrong("instance", "must not be empty"));
        }
        for (field, text) in [
            ("build", build),
            ("instance", instance),
            ("zone", zone),
            ("locality", locality),
            ("cpu_source", cpu_source),
        ] {
            name(field, text)?;
        }
        for (field, value) in [
            ("uptime_seconds", *uptime_seconds),
            ("in_flight", *in_flight),
            ("in_flight_seconds_total", *in_flight_seconds_total),
            ("cpu_seconds_total", *cpu_seconds_total),
            ("executor_delay_p50_milliseconds", *executor_delay_p50_milliseconds),
            ("executor_delay_p99_milliseconds", *executor_delay_p99_milliseconds),
            ("executor_delay_max_milliseconds", *executor_delay_max_milliseconds),
            ("config_age_seconds", *config_age_seconds),
        ] {
            amount(field, value)?;
        }
        let Capacity { in_flight, cpu, bytes_per_second, connections, memory_bytes: _, units } =
            *capacity;
        for (field, value) in [
            ("capacity.in_flight", in_flight),
            ("capacity.cpu", cpu),
            ("capacity.bytes_per_second", bytes_per_second),
            ("capacity.connections", connections),
            ("capacity.units", units),
        ] {
            amount(field, value)?;
        }
        for (field, queue) in [("queues.connection", connection), ("queues.endpoint", endpoint)] {
            let Queue { waiting, waits_total: _, wait_seconds_total } = *queue;
            amount(&format!("{field}.waiting"), waiting)?;
            amount(&format!("{field}.wait_seconds_total"), wait_seconds_total)?;
        }
        if let Some(start) = cold_start {
            let ColdStart { certificate_milliseconds, config_milliseconds, ready_milliseconds } =
                *start;
            amount("cold_start.certificate_milliseconds", certificate_milliseconds)?;
            amount("cold_start.config_milliseconds", config_milliseconds)?;
            amount("cold_start.ready_milliseconds", ready_milliseconds)?;
        }
        for (kind, age) in config_answer_age_seconds {
            amount(&format!("config_answer_age_seconds.{kind}"), *age)?;
        }
        if clusters.len() > MAX_CLUSTERS {
            return Err(wrong("clusters", format!("more than {MAX_CLUSTERS}")));
        }
        for (index, cluster) in clusters.iter().enumerate() {
            let ClusterLoad {
                name: cluster_name,
                phase,
                ready: _,
                registered: _,
                istiod_connected: _,
                config_age_seconds,
                in_flight,
            } = cluster;
            let field = |name: &str| format!("clusters[{index}].{name}");
            name(&field("name"), cluster_name)?;
            name(&field("phase"), phase)?;
            amount(&field("config_age_seconds"), *config_age_seconds)?;
            amount(&field("in_flight"), *in_flight)?;
        }
        if tenants.len() > MAX_TENANTS {
            return Err(wrong("tenants", format!("more than {MAX_TENANTS}")));
        }
        for (index, tenant) in tenants.iter().enumerate() {
            let TenantLoad {
                mesh,
                namespace,
                in_flight,
                in_flight_seconds_total,
                requests_total: _,
                shed_total: _,
                bytes_total: _,
            } = tenant;
            let field = |name: &str| format!("tenants[{index}].{name}");
            name(&field("mesh"), mesh)?;
            name(&field("namespace"), namespace)?;
            amount(&field("in_flight"), *in_flight)?;
            amount(&field("in_flight_seconds_total"), *in_flight_seconds_total)?;
        }
        Ok(())
    }
}

fn amount(field: &str, value: f64) -> Result<(), ReportError> {
    if value.is_finite() && value >= 0.0 {
        Ok(())
    } else {
        Err(wrong(field, format!("{value} is no amount: it must be 0 or more")))
    }
}

fn name(field: &str, text: &str) -> Result<(), ReportError> {
    if text.len() <= MAX_NAME_BYTES {
        Ok(())
    } else {
        Err(wrong(field, format!("longer than {MAX_NAME_BYTES} bytes")))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn refused(json: &str) -> ReportError {
        LoadReport::parse(json.as_bytes()).unwrap_err()
    }

    #[test]
    fn fields_may_be_missing_and_unknown_and_the_minor_version_newer() {
        let text = r#"{"version":1,"minor":99,"instance":"a","in_flight":3,"new":{"x":-1}}"#;
        let report = LoadReport::parse(text.as_bytes()).unwrap();
        assert_eq!((report.in_flight, report.capacity.size(), report.minor), (3.0, 1.0, 99));
    }

    #[test]
    fn nonsense_is_refused_with_its_field() {
        for (fields, field) in [
            (r#""in_flight":-1"#, "in_flight"),
            (r#""requests_total":-1"#, "requests_total"),
            (r#""requests_total":1.5"#, "requests_total"),
            (r#""in_flight":"many""#, "in_flight"),
            (r#""in_flight":1e999"#, "in_flight"),
            (r#""capacity":{"cpu":-0.5}"#, "capacity.cpu"),
            (r#""capacity":{"connections":null}"#, "capacity.connections"),
            (
                r#""queues":{"endpoint":{"wait_seconds_total":-1}}"#,
                "queues.endpoint.wait_seconds_total",
            ),
            (r#""cold_start":{"ready_milliseconds":-3}"#, "cold_start.ready_milliseconds"),
            (r#""config_answer_age_seconds":{"cds":-3}"#, "config_answer_age_seconds.cds"),
            (r#""tenants":[{},{"in_flight":-3}]"#, "tenants[1].in_flight"),
            (r#""tenants":[{"shed_total":-3}]"#, "tenants[0].shed_total"),
        ] {
            let error = refused(&format!(r#"{{"version":1,"instance":"a",{fields}}}"#));
            assert_eq!(error.field, field, "{error}");
        }
        let mut report = LoadReport {
            version: SCHEMA_VERSION,
            instance: "a".to_owned(),
            uptime_seconds: f64::NAN,
            ..LoadReport::default()
        };
        assert_eq!(report.check().unwrap_err().field, "uptime_seconds");
        report.uptime_seconds = 1.0;
        report.zone = "z".repeat(513);
        assert_eq!(report.check().unwrap_err().field, "zone");
    }

    #[test]
    fn another_version_nobody_and_no_report_are_refused() {
        assert_eq!(refused(r#"{"version":2,"instance":"a"}"#).field, "version");
        assert_eq!(refused(r#"{"instance":"a"}"#).field, "version");
        assert_eq!(refused(r#"{"version":1}"#).field, "instance");
        assert_eq!(refused("").field, ".");
        assert_eq!(refused(r#"{"version":1,"instance":"a"} x"#).field, ".");
        assert_eq!(refused("[1]").field, "instance", "fields in order are a report's, too");
        assert_eq!(refused(&" ".repeat(MAX_REPORT_BYTES + 1)).field, ".");
    }

    /// A key that is added here is added to `docs/autoscaling.md`, with a new minor version.
    #[test]
    fn the_schema_has_these_keys() {
        let report = LoadReport {
            version: SCHEMA_VERSION,
            instance: "a".to_owned(),
            zone: "z".to_owned(),
            locality: "r/z/s".to_owned(),
            cold_start: Some(ColdStart::default()),
            config_answer_age_seconds: [("cds".to_owned(), 1.0)].into(),
            tenants: vec![TenantLoad::default()],
            ..LoadReport::default()
        };
        let mut keys = Vec::new();
        collect("", &serde_json::to_value(&report).unwrap(), &mut keys);
        let golden: Vec<&str> = include_str!("keys.txt").lines().collect();
        assert_eq!(keys, golden, "\n{}\n", keys.join("\n"));
    }

    fn collect(path: &str, value: &Value, keys: &mut Vec<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| {
                let dot = if path.is_empty() { "" } else { "." };
                collect(&format!("{path}{dot}{key}"), value, keys);
            }),
            Value::Array(list) => {
                list.iter().for_each(|value| collect(&format!("{path}[]"), value, keys));
            }
            _ => keys.push(path.to_owned()),
        }
    }

    /// With few enough digits that serde_json reads them as they were.
    fn amounts() -> impl Strategy<Value = f64> {
        let some = (0_u64..1 << 40).prop_map(|eighths| eighths as f64 / 8.0);
        prop_oneof![Just(0.0), some, Just(f64::NAN), Just(-1.0), Just(f64::INFINITY)]
    }

    proptest! {
        /// What is written is read as it was; what may not be written is refused.
        #[test]
        fn reports_come_back(
            in_flight in amounts(),
            integral in amounts(),
            cpu in amounts(),
            bytes in any::<u64>(),
            namespace in ".{0,20}",
            ready in any::<bool>(),
        ) {
            let report = LoadReport {
                version: SCHEMA_VERSION,
                instance: "a".to_owned(),
                in_flight,
                received_bytes_total: bytes,
                ready,
                capacity: Capacity { cpu, ..Capacity::default() },
                tenants: vec![TenantLoad {
                    namespace,
                    in_flight_seconds_total: integral,
                    ..TenantLoad::default()
                }],
                ..LoadReport::default()
            };
            let good = [in_flight, integral, cpu].iter().all(|value| value.is_finite() && *value >= 0.0);
            prop_assert_eq!(report.check().is_ok(), good);
            let text = serde_json::to_vec(&report).unwrap();
            match LoadReport::parse(&text) {
                Ok(read) => prop_assert!(good && read == report),
                Err(error) => prop_assert!(!good, "{}", error),
            }
        }

        /// Whatever comes, there is a report that makes sense, or an error with a field.
        #[test]
        fn anything_is_a_report_or_an_error(text in ".{0,200}", number in any::<i64>()) {
            let with = json!({"version": 1, "instance": text, "in_flight": number, "shed_total": number});
            for text in [text.into_bytes(), serde_json::to_vec(&with).unwrap()] {
                match LoadReport::parse(&text) {
                    Ok(report) => prop_assert!(report.check().is_ok()),
                    Err(error) => prop_assert!(!error.field.is_empty()),
                }
            }
        }
    }
}

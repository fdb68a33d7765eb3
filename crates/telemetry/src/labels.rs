//! Istio's standard labels: their names, order, values and defaults, as an Envoy waypoint exports them.

use crate::event::{ServiceLabels, WorkloadLabels};
use crate::key::KeyRef;

/// Longest value of a label in bytes, before escaping; what is longer is cut at the last whole character.
pub const MAX_LABEL_VALUE_BYTES: usize = 256;

/// Value of every label, except the reporter, of the series that takes what exceeds the bound.
const OVERFLOW: &str = "other";
const UNKNOWN: &str = "unknown";
const LATEST: &str = "latest";

/// Which of Istio's two label sets a family has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LabelSet {
    /// All labels.
    Http,
    /// Without the HTTP status and the gRPC status.
    Tcp,
}

impl LabelSet {
    fn has(self, name: &str) -> bool {
        match self {
            LabelSet::Http => true,
            LabelSet::Tcp => !matches!(name, "response_code" | "grpc_response_status"),
        }
    }

    /// The labels of a series, `name="value",…` without braces.
    pub(crate) fn render(self, key: &KeyRef<'_>) -> String {
        let code = key.outcome.response_code.to_string();
        let grpc = key.outcome.grpc_status.map(|s| s.to_string()).unwrap_or_default();
        let flags = key.outcome.flags.to_string();
        let mut out = String::with_capacity(1024);
        for (name, value) in pairs(key, &code, &grpc, &flags) {
            if self.has(name) {
                push_label(&mut out, name, value);
            }
        }
        out
    }

    /// The labels of the series that takes what exceeds the bound.
    pub(crate) fn render_overflow(self) -> String {
        let nothing = KeyRef::of_request(&crate::RequestEvent::default());
        let mut out = String::with_capacity(1024);
        for (name, value) in pairs(&nothing, "", "", "") {
            if self.has(name) {
                let value = if name == "reporter" { value } else { OVERFLOW };
                push_label(&mut out, name, value);
            }
        }
        out
    }
}

/// Names and values in the order in which Envoy's waypoint exports them.
fn pairs<'a>(
    key: &KeyRef<'a>,
    response_code: &'a str,
    grpc_status: &'a str,
    flags: &'a str,
) -> [(&'static str, &'a str); 25] {
    let source = |field: fn(&WorkloadLabels) -> &str| key.source.map_or("", |w| field(w));
    let destination = |field: fn(&WorkloadLabels) -> &str| key.destination.map_or("", |w| field(w));
    let service = |field: fn(&ServiceLabels) -> &str| key.service.map_or("", |s| field(s));
    // The proved identity says better than an address where the client runs.
    let source_namespace =
        namespace_of(key.source_principal).unwrap_or_else(|| source(|w| &w.namespace));
    [
        ("reporter", "waypoint"),
        ("source_workload", or_unknown(source(|w| &w.workload))),
        ("source_canonical_service", or_unknown(source(|w| &w.canonical_service))),
        ("source_canonical_revision", or(source(|w| &w.canonical_revision), LATEST)),
        ("source_workload_namespace", or_unknown(source_namespace)),
        ("source_principal", or_unknown(key.source_principal)),
        ("source_app", or_unknown(source(|w| &w.app))),
        ("source_version", or_unknown(source(|w| &w.version))),
        ("source_cluster", or_unknown(source(|w| &w.cluster))),
        ("destination_workload", or_unknown(destination(|w| &w.workload))),
        ("destination_workload_namespace", or_unknown(destination(|w| &w.namespace))),
        ("destination_principal", or_unknown(destination(|w| &w.principal))),
        ("destination_app", or_unknown(destination(|w| &w.app))),
        ("destination_version", or_unknown(destination(|w| &w.version))),
        ("destination_service", or_unknown(service(|s| &s.host))),
        ("destination_canonical_service", or_unknown(destination(|w| &w.canonical_service))),
        ("destination_canonical_revision", or_unknown(destination(|w| &w.canonical_revision))),
        ("destination_service_name", or_unknown(service(|s| &s.name))),
        ("destination_service_namespace", or_unknown(service(|s| &s.namespace))),
        ("destination_cluster", or_unknown(destination(|w| &w.cluster))),
        ("request_protocol", key.outcome.protocol.as_str()),
        ("response_code", response_code),
        ("grpc_response_status", grpc_status),
        ("response_flags", flags),
        ("connection_security_policy", key.outcome.security.as_str()),
    ]
}

fn or<'a>(value: &'a str, default: &'a str) -> &'a str {
    if value.is_empty() { default } else { value }
}

fn or_unknown(value: &str) -> &str {
    or(value, UNKNOWN)
}

/// The namespace in `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
fn namespace_of(principal: &str) -> Option<&str> {
    let (_, path) = principal.strip_prefix("spiffe://")?.split_once('/')?;
    let (namespace, _) = path.strip_prefix("ns/")?.split_once('/')?;
    (!namespace.is_empty()).then_some(namespace)
}

/// Appends `name="value"`, with a comma before it if `out` holds a label already; the value is bounded and escaped.
pub(crate) fn push_label(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() {
        out.push(',');
    }
    out.push_str(name);
    out.push_str("=\"");
    push_escaped(out, bounded(value));
    out.push('"');
}

/// Appends `text` so that it can stand between quotes: `\`, `"` and line feed are escaped, as both formats ask.
pub(crate) fn push_escaped(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

/// The longest beginning of `value` that is within the bound and ends with a whole character.
fn bounded(value: &str) -> &str {
    value.get(..value.floor_char_boundary(MAX_LABEL_VALUE_BYTES)).unwrap_or(value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::event::{ConnectionEvent, RequestEvent};
    use std::sync::Arc;

    #[test]
    fn missing_values_have_envoys_defaults() {
        let labels = LabelSet::Http.render(&KeyRef::of_request(&RequestEvent::default()));
        assert!(labels.starts_with("reporter=\"waypoint\",source_workload=\"unknown\","));
        assert!(labels.contains(",source_canonical_revision=\"latest\","));
        assert!(labels.contains(",destination_canonical_revision=\"unknown\","));
        assert!(
            labels.contains(",response_code=\"0\",grpc_response_status=\"\",response_flags=\"-\",")
        );
        assert!(labels.ends_with(",connection_security_policy=\"unknown\""));
    }

    #[test]
    fn tcp_has_no_status() {
        let labels = LabelSet::Tcp.render(&KeyRef::of_connection(&ConnectionEvent::default()));
        assert!(labels.contains("request_protocol=\"tcp\",response_flags=\"-\","));
        assert!(!labels.contains("response_code"));
        assert!(!labels.contains("grpc"));
    }

    #[test]
    fn the_proved_namespace_goes_before_the_known_one() {
        let source = Arc::new(WorkloadLabels {
            namespace: "by-address".into(),
            ..WorkloadLabels::default()
        });
        let namespace = |principal| {
            let event = RequestEvent {
                source: Some(&source),
                source_principal: principal,
                ..RequestEvent::default()
            };
            let labels = LabelSet::Http.render(&KeyRef::of_request(&event));
            let (_, rest) = labels.split_once("source_workload_namespace=\"").unwrap();
            rest.split('"').next().unwrap().to_owned()
        };
        assert_eq!(namespace("spiffe://cluster.local/ns/shop/sa/web"), "shop");
        for principal in
            ["", "spiffe://", "spiffe://td", "spiffe://td/ns//sa/x", "spiffe://td/other/x"]
        {
            assert_eq!(namespace(principal), "by-address", "{principal}");
        }
    }

    #[test]
    fn overflow_is_other_everywhere_but_in_the_reporter() {
        let labels = LabelSet::Tcp.render_overflow();
        assert_eq!(labels.matches("=\"other\"").count(), 22);
        assert!(labels.starts_with("reporter=\"waypoint\",source_workload=\"other\","));
    }

    #[test]
    fn values_are_escaped_and_cut_at_a_character() {
        let mut out = String::new();
        push_label(&mut out, "a", "x\\y\"z\n");
        push_label(&mut out, "b", "");
        assert_eq!(out, r#"a="x\\y\"z\n",b="""#);

        let mut out = String::new();
        push_label(&mut out, "a", &format!("{}€", "x".repeat(MAX_LABEL_VALUE_BYTES - 1)));
        assert_eq!(out, format!("a=\"{}\"", "x".repeat(MAX_LABEL_VALUE_BYTES - 1)));
    }
}

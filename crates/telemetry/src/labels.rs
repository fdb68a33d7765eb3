//! Istio's standard labels: their names, order, values and defaults, as an Envoy waypoint exports them.

use crate::event::{ServiceLabels, WorkloadLabels};
use crate::key::KeyRef;
use crate::rules::{Change, Fate};

/// Longest value of a label in bytes, before escaping; what is longer is cut at the last whole character.
pub const MAX_LABEL_VALUE_BYTES: usize = 256;

/// Value of every label, except the reporter, of the series that takes what exceeds the bound.
const OVERFLOW: &str = "other";
const REPORTER: &str = "waypoint";
const UNKNOWN: &str = "unknown";
const LATEST: &str = "latest";

/// Names of the standard labels, in the order in which Envoy's waypoint exports them.
pub(crate) const STANDARD: [&str; 25] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service_name",
    "destination_service_namespace",
    "destination_cluster",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
];

/// Whether a label can be added to Istio's metrics: a name that both formats take and that no standard label has.
pub fn is_free_label(name: &str) -> bool {
    crate::exposition::is_label_name(name) && !STANDARD.contains(&name)
}

/// Whether a label is one of Istio's standard ones.
pub fn is_standard_label(name: &str) -> bool {
    STANDARD.contains(&name)
}

/// Which of Istio's label sets a family has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LabelSet {
    /// All labels.
    Http,
    /// Who talks to whom: Envoy reports messages before it knows how the request ends.
    Messages,
    /// Without the HTTP status and the gRPC status.
    Tcp,
}

impl LabelSet {
    fn has(self, name: &str) -> bool {
        match self {
            LabelSet::Http => true,
            LabelSet::Messages => {
                name == "reporter"
                    || name.starts_with("source_")
                    || name.starts_with("destination_")
            }
            LabelSet::Tcp => !matches!(name, "response_code" | "grpc_response_status"),
        }
    }

    /// The labels of a series, `name="value",…` without braces.
    pub(crate) fn render(self, key: &KeyRef<'_>, change: &Change) -> String {
        let code = key.outcome.response_code.to_string();
        let grpc = key.outcome.grpc_status.map(|s| s.to_string()).unwrap_or_default();
        let flags = key.outcome.flags.to_string();
        let dimension = |number| key.dimensions.get(number).map_or(UNKNOWN, String::as_str);
        let mut out = String::with_capacity(1024);
        let values = values(key, &code, &grpc, &flags);
        for (name, value) in STANDARD.into_iter().zip(values).filter(|(name, _)| self.has(name)) {
            match change.of(name) {
                Fate::Kept => push_label(&mut out, name, value),
                Fate::Removed => {}
                Fate::Dimension(number) => push_label(&mut out, name, dimension(number)),
            }
        }
        for (name, number) in change.added() {
            push_label(&mut out, name, dimension(number));
        }
        out.shrink_to_fit();
        out
    }

    /// The labels of a series that takes what exceeds a bound: of one namespace, or of whatever there is.
    pub(crate) fn render_overflow(self, namespace: Option<&str>) -> String {
        let mut out = String::with_capacity(1024);
        for name in STANDARD.into_iter().filter(|name| self.has(name)) {
            let value = match (name, namespace) {
                ("reporter", _) => REPORTER,
                ("destination_service_namespace", Some(namespace)) => or_unknown(namespace),
                _ => OVERFLOW,
            };
            push_label(&mut out, name, value);
        }
        out
    }
}

/// Values of [`STANDARD`], in its order.
fn values<'a>(
    key: &KeyRef<'a>,
    response_code: &'a str,
    grpc_status: &'a str,
    flags: &'a str,
) -> [&'a str; STANDARD.len()] {
    let source = |field: fn(&WorkloadLabels) -> &str| key.source.map_or("", |w| field(w));
    let destination = |field: fn(&WorkloadLabels) -> &str| key.destination.map_or("", |w| field(w));
    let service = |field: fn(&ServiceLabels) -> &str| key.service.map_or("", |s| field(s));
    // The proved identity says better than an address where the client runs.
    let source_namespace =
        namespace_of(key.source_principal).unwrap_or_else(|| source(|w| &w.namespace));
    [
        REPORTER,
        or_unknown(source(|w| &w.workload)),
        or_unknown(source(|w| &w.canonical_service)),
        or(source(|w| &w.canonical_revision), LATEST),
        or_unknown(source_namespace),
        or_unknown(key.source_principal),
        or_unknown(source(|w| &w.app)),
        or_unknown(source(|w| &w.version)),
        or_unknown(source(|w| &w.cluster)),
        or_unknown(destination(|w| &w.workload)),
        or_unknown(destination(|w| &w.namespace)),
        or_unknown(destination(|w| &w.principal)),
        or_unknown(destination(|w| &w.app)),
        or_unknown(destination(|w| &w.version)),
        or_unknown(service(|s| &s.host)),
        or_unknown(destination(|w| &w.canonical_service)),
        or_unknown(destination(|w| &w.canonical_revision)),
        or_unknown(service(|s| &s.name)),
        or_unknown(service(|s| &s.namespace)),
        or_unknown(destination(|w| &w.cluster)),
        key.outcome.protocol.as_str(),
        response_code,
        grpc_status,
        flags,
        key.outcome.security.as_str(),
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
        let labels = LabelSet::Http
            .render(&KeyRef::of_request(&RequestEvent::default()), &Change::default());
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
        let labels = LabelSet::Tcp
            .render(&KeyRef::of_connection(&ConnectionEvent::default()), &Change::default());
        assert!(labels.contains("request_protocol=\"tcp\",response_flags=\"-\","));
        assert!(!labels.contains("response_code"));
        assert!(!labels.contains("grpc"));
    }

    #[test]
    fn messages_say_who_and_not_how_it_ended() {
        let labels = LabelSet::Messages
            .render(&KeyRef::of_messages(&RequestEvent::default()), &Change::default());
        assert_eq!(labels.matches('=').count(), 20);
        assert!(labels.starts_with("reporter=\"waypoint\",source_workload=\"unknown\","));
        assert!(labels.ends_with(",destination_cluster=\"unknown\""));
    }

    #[test]
    fn changes_remove_replace_and_add() {
        let mut builder = crate::RulesBuilder::default();
        builder.remove(None, "source_app");
        builder.dimension(None, "response_code", 0);
        builder.dimension(None, "host", 1);
        builder.dimension(None, "late", 7);
        let rules = builder.build();
        let dimensions = ["2xx".to_owned(), "a\"b".to_owned()];
        let event = RequestEvent { dimensions: &dimensions, ..RequestEvent::default() };
        let group = rules.groups(LabelSet::Http).first().unwrap();
        let labels = LabelSet::Http.render(&KeyRef::of_request(&event), &group.change);
        assert!(!labels.contains("source_app"));
        assert!(labels.contains("request_protocol=\"http\",response_code=\"2xx\",grpc_"));
        assert!(labels.ends_with(",host=\"a\\\"b\",late=\"unknown\""), "{labels}");
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
            let labels = LabelSet::Http.render(&KeyRef::of_request(&event), &Change::default());
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
        let labels = LabelSet::Tcp.render_overflow(None);
        assert_eq!(labels.matches("=\"other\"").count(), 22);
        assert!(labels.starts_with("reporter=\"waypoint\",source_workload=\"other\","));
        let labels = LabelSet::Tcp.render_overflow(Some("shop"));
        assert_eq!(labels.matches("=\"other\"").count(), 21);
        assert!(labels.contains(",destination_service_namespace=\"shop\","));
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

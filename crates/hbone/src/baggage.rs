//! The W3C `baggage` header as ztunnel fills it: a description of the source workload. Telemetry only, never trusted.

/// The most members of a baggage that are looked at; the rest is ignored.
const MAX_MEMBERS: usize = 64;

/// What a CONNECT's `baggage` says of the workload that opened it.
///
/// The sender writes it, so it must not enter a policy decision; the peer's identity comes from its certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceWorkload {
    /// `k8s.cluster.name`
    pub cluster: Option<String>,
    /// `k8s.namespace.name`
    pub namespace: Option<String>,
    /// The `<type>` of `k8s.<type>.name`: `deployment`, `pod`, `job`, `cronjob` and so on.
    pub workload_type: Option<String>,
    /// The value of `k8s.<type>.name`.
    pub workload: Option<String>,
    /// `service.name`, Istio's canonical service.
    pub service: Option<String>,
    /// `service.version`, Istio's canonical revision.
    pub revision: Option<String>,
    /// `cloud.region`
    pub region: Option<String>,
    /// `cloud.availability_zone`
    pub zone: Option<String>,
}

impl SourceWorkload {
    /// Reads a baggage header: `key=value` members between commas, properties after `;` ignored, values
    /// percent-decoded (W3C Baggage section 3.3). A malformed member is skipped; the first of equal keys counts; at
    /// most 64 members are looked at.
    pub fn parse(baggage: &str) -> Self {
        let mut found = Self::default();
        for member in baggage.split(',').take(MAX_MEMBERS) {
            let pair = member.split_once(';').map_or(member, |(pair, _)| pair);
            let Some((key, value)) = pair.split_once('=') else {
                continue;
            };
            let Some(value) = percent_decode(value.trim_matches([' ', '\t'])) else {
                continue;
            };
            if !value.is_empty() {
                found.put(key.trim_matches([' ', '\t']), value);
            }
        }
        found
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn put(&mut self, key: &str, value: String) {
        let field = match key {
            "k8s.cluster.name" => &mut self.cluster,
            "k8s.namespace.name" => &mut self.namespace,
            "service.name" => &mut self.service,
            "service.version" => &mut self.revision,
            "cloud.region" => &mut self.region,
            "cloud.availability_zone" => &mut self.zone,
            other => {
                let kind = other.strip_prefix("k8s.").and_then(|rest| rest.strip_suffix(".name"));
                if let Some(kind) = kind.filter(|kind| is_workload_type(kind))
                    && self.workload.is_none()
                {
                    self.workload_type = Some(kind.to_owned());
                    self.workload = Some(value);
                }
                return;
            }
        };
        field.get_or_insert(value);
    }
}

fn is_workload_type(kind: &str) -> bool {
    matches!(
        kind,
        "deployment" | "pod" | "job" | "cronjob" | "statefulset" | "daemonset" | "replicaset"
    )
}

/// `None` for a broken escape and for bytes that are not UTF-8.
fn percent_decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let high = hex(bytes.next()?)?;
        let low = hex(bytes.next()?)?;
        decoded.push(high << 4 | low);
    }
    String::from_utf8(decoded).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn as_ztunnel_sends_it() {
        let workload = SourceWorkload::parse(
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=client,\
             service.name=client,service.version=v1,cloud.region=r1,cloud.availability_zone=z1",
        );
        let text = |s: &str| Some(s.to_owned());
        assert_eq!(
            workload,
            SourceWorkload {
                cluster: text("Kubernetes"),
                namespace: text("default"),
                workload_type: text("deployment"),
                workload: text("client"),
                service: text("client"),
                revision: text("v1"),
                region: text("r1"),
                zone: text("z1"),
            }
        );
    }

    #[test]
    fn escapes_properties_and_white_space() {
        let workload = SourceWorkload::parse(
            " service.name = a%20b%2Cc ;ttl=3 ,service.name=second, k8s.pod.name=p;x, broken, service.version=%zz,\
             cloud.region=%ff,k8s.node.name=n,=,k8s.cluster.name=",
        );
        assert_eq!(workload.service.as_deref(), Some("a b,c"));
        assert_eq!(workload.workload.as_deref(), Some("p"));
        assert_eq!(workload.workload_type.as_deref(), Some("pod"));
        assert_eq!(workload.revision, None);
        assert_eq!(workload.region, None);
        assert_eq!(workload.cluster, None);
    }

    #[test]
    fn members_are_bounded() {
        let baggage = format!("{}service.name=late", "x=y,".repeat(MAX_MEMBERS));
        assert!(SourceWorkload::parse(&baggage).is_empty());
    }

    proptest! {
        #[test]
        fn never_panics(text in any::<String>()) {
            let _ = SourceWorkload::parse(&text);
        }

        #[test]
        fn near_misses_never_panic(text in "(k8s\\.(pod|cluster)\\.name|service\\.name|[%=;, a-f0-9]){0,20}") {
            let _ = SourceWorkload::parse(&text);
        }

        #[test]
        fn encoded_values_come_back(value in "[^\\p{C}]{1,30}") {
            let encoded: String = value.bytes().map(|b| format!("%{b:02X}")).collect();
            let workload = SourceWorkload::parse(&format!("service.name={encoded}"));
            prop_assert_eq!(workload.service, Some(value));
        }
    }
}

//! Istio's `ProxyConfig` as the pod has it: PROXY_CONFIG, and the annotation `proxy.istio.io/config`
//! over it.
//!
//! The whole of it goes to istiod in the node's metadata; only a few fields mean something here.

use super::yaml;
use cairn_router::spec::duration;
use serde_json::{Map, Value};
use std::time::Duration;

/// The fields, in JSON's names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProxyConfig(Map<String, Value>);

/// Why a text is no `ProxyConfig`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place} cannot be used: {reason}; it must be a ProxyConfig in JSON or YAML")]
pub struct ProxyConfigError {
    /// The variable or annotation.
    pub place: &'static str,
    /// What is wrong.
    pub reason: String,
}

impl ProxyConfig {
    /// What the variable says, and over it field by field what the annotation says.
    pub fn of(variable: &str, annotation: &str) -> Result<ProxyConfig, ProxyConfigError> {
        let mut fields = read("PROXY_CONFIG", variable)?;
        for (name, value) in read("the annotation proxy.istio.io/config", annotation)? {
            // Istio: metadata is merged, everything else replaced.
            match (fields.get_mut(&name), value) {
                (Some(Value::Object(before)), Value::Object(after)) if name == "proxyMetadata" => {
                    before.extend(after);
                }
                (_, value) => {
                    fields.insert(name, value);
                }
            }
        }
        Ok(ProxyConfig(fields))
    }

    /// Where istiod is.
    pub fn discovery_address(&self) -> Option<&str> {
        self.0.get("discoveryAddress").and_then(Value::as_str).filter(|address| !address.is_empty())
    }

    /// Worker threads; 0: one for each CPU.
    pub fn concurrency(&self) -> Option<u16> {
        self.0.get("concurrency").and_then(Value::as_u64).and_then(|number| number.try_into().ok())
    }

    /// How long a drain lasts at most.
    pub fn termination_drain_duration(&self) -> Option<Duration> {
        let text = self.0.get("terminationDrainDuration")?.as_str()?;
        duration::parse(text).ok()
    }

    /// Variables that are set for the proxy where they are not set otherwise.
    pub fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        let metadata = self.0.get("proxyMetadata").and_then(Value::as_object);
        metadata
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)))
    }

    /// All fields, for the node's metadata.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }
}

fn read(place: &'static str, text: &str) -> Result<Map<String, Value>, ProxyConfigError> {
    let wrong = |reason: String| ProxyConfigError { place, reason };
    let value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(_) => yaml::parse(text).map_err(wrong)?,
    };
    match value {
        Value::Object(fields) => Ok(fields),
        Value::Null => Ok(Map::new()),
        _ => Err(wrong("it is no mapping".to_owned())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn json_and_yaml_are_read() {
        let rendered = "{\"proxyMetadata\":{\"ISTIO_META_ENABLE_HBONE\":\"true\"},\"image\":{\"imageType\":\"distroless\"}}\n\n";
        let config = ProxyConfig::of(rendered, "").unwrap();
        assert_eq!(config.discovery_address(), None);
        let variables: Vec<_> = config.variables().collect();
        assert_eq!(variables, [("ISTIO_META_ENABLE_HBONE", "true")]);

        let yaml = "discoveryAddress: istiod-canary.istio-system.svc:15012\nconcurrency: 3\n\
                    terminationDrainDuration: 12s\n";
        let config = ProxyConfig::of(yaml, "").unwrap();
        assert_eq!(config.discovery_address(), Some("istiod-canary.istio-system.svc:15012"));
        assert_eq!(config.concurrency(), Some(3));
        assert_eq!(config.termination_drain_duration(), Some(Duration::from_secs(12)));
        assert_eq!(ProxyConfig::of("", "").unwrap(), ProxyConfig::default());
    }

    #[test]
    fn the_annotation_wins_and_metadata_is_merged() {
        let config = ProxyConfig::of(
            r#"{"concurrency": 1, "proxyMetadata": {"A": "1", "B": "1"}, "statusPort": 15020}"#,
            "concurrency: 2\nproxyMetadata:\n  B: '2'\n  C: '2'\n",
        )
        .unwrap();
        assert_eq!(config.concurrency(), Some(2));
        assert_eq!(config.variables().collect::<Vec<_>>(), [("A", "1"), ("B", "2"), ("C", "2")]);
        assert!(config.fields().contains_key("statusPort"));
    }

    #[test]
    fn mistakes_name_the_place() {
        let error = ProxyConfig::of("[1]", "").unwrap_err().to_string();
        assert!(error.contains("PROXY_CONFIG") && error.contains("mapping"), "{error}");
        let error = ProxyConfig::of("", "a: [").unwrap_err().to_string();
        assert!(error.contains("proxy.istio.io/config"), "{error}");
    }
}

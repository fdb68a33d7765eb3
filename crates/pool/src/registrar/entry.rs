//! A WorkloadEntry that istiod made for a member.

use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Annotation with the WorkloadGroup by which it was registered.
pub const GROUP: &str = "istio.io/autoRegistrationGroup";
/// Annotation with the time at which the member's stream was opened.
pub const CONNECTED_AT: &str = "istio.io/connectedAt";

/// What matters of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// `metadata.name`.
    pub name: String,
    /// `spec.address`; `None`: no IP address.
    pub address: Option<IpAddr>,
    /// When its stream was opened, as istiod wrote it: another time is another stream.
    pub connected_at: String,
    /// `spec.weight`; 0 and none are the same.
    pub weight: u64,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
}

impl Entry {
    /// Reads it; `None`: it was not registered by this WorkloadGroup, and is nobody's business here.
    pub fn read(object: &Value, group: &str) -> Option<Entry> {
        let metadata = &object["metadata"];
        if metadata["annotations"][GROUP] != group {
            return None;
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let labels = metadata["labels"].as_object().into_iter().flatten();
        Some(Entry {
            name: text(&metadata["name"]),
            address: object["spec"]["address"].as_str().and_then(|address| address.parse().ok()),
            connected_at: text(&metadata["annotations"][CONNECTED_AT]),
            weight: object["spec"]["weight"].as_u64().unwrap_or(0),
            labels: labels.map(|(key, value)| (key.clone(), text(value))).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_entries_of_the_group_are_read() {
        let object = json!({
            "metadata": {
                "name": "waypoint-pool-10.8.3.17", "labels": { "a": "b" },
                "annotations": { GROUP: "waypoint-pool", CONNECTED_AT: "t1" },
            },
            "spec": { "address": "10.8.3.17", "weight": 3 },
        });
        let read = Entry::read(&object, "waypoint-pool");
        let wanted = Entry {
            name: "waypoint-pool-10.8.3.17".to_owned(),
            address: "10.8.3.17".parse().ok(),
            connected_at: "t1".to_owned(),
            weight: 3,
            labels: [("a".to_owned(), "b".to_owned())].into(),
        };
        assert_eq!(read, Some(wanted));
        assert_eq!(Entry::read(&object, "other"), None);
        assert_eq!(
            Entry::read(&json!({ "metadata": { "name": "by-hand" } }), "waypoint-pool"),
            None
        );
    }
}

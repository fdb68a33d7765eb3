//! The `scale` subresource: how many replicas there are to be.

use crate::client::{Client, answer};
use crate::error::{Error, Request};
use kube::api::{Patch, PatchParams};
use kube::core::ApiResource;
use std::fmt;

/// Something that can be scaled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// API group; empty for the core group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Plural: `deployments`.
    pub resource: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// A text that names nothing scalable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` names nothing that can be scaled; write deployments/NAME, statefulsets/NAME, or \
     RESOURCE.VERSION.GROUP/NAME, for example rollouts.v1alpha1.argoproj.io/NAME"
)]
pub struct TargetError(String);

/// What the subresource says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scale {
    /// Replicas that there are to be (`spec.replicas`).
    pub wanted: u32,
    /// Replicas that there are (`status.replicas`).
    pub present: u32,
    /// Version of the object, for [`Client::set_scale`].
    pub resource_version: String,
}

impl Target {
    /// Reads `deployments/NAME`, `statefulsets/NAME`, `replicasets/NAME` (also in the singular) or
    /// `RESOURCE.VERSION.GROUP/NAME`.
    ///
    /// # Errors
    ///
    /// Any other text.
    pub fn parse(text: &str, namespace: &str) -> Result<Self, TargetError> {
        let fails = || TargetError(text.to_owned());
        let (kind, name) = text.split_once('/').ok_or_else(fails)?;
        if name.is_empty() || name.contains('/') {
            return Err(fails());
        }
        let (resource, version, group) = match kind {
            "deployment" | "deployments" | "deployments.apps" => ("deployments", "v1", "apps"),
            "statefulset" | "statefulsets" | "statefulsets.apps" => ("statefulsets", "v1", "apps"),
            "replicaset" | "replicasets" | "replicasets.apps" => ("replicasets", "v1", "apps"),
            other => {
                let (resource, rest) = other.split_once('.').ok_or_else(fails)?;
                let (version, group) = rest.split_once('.').ok_or_else(fails)?;
                if resource.is_empty() || group.is_empty() || !version.starts_with('v') {
                    return Err(fails());
                }
                (resource, version, group)
            }
        };
        Ok(Target {
            group: group.to_owned(),
            version: version.to_owned(),
            resource: resource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    fn request(&self, verb: &'static str) -> Request {
        Request {
            verb,
            group: self.group.clone(),
            resource: format!("{}/scale", self.resource),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }

    fn api_resource(&self) -> ApiResource {
        let api_version = match self.group.is_empty() {
            true => self.version.clone(),
            false => format!("{}/{}", self.group, self.version),
        };
        ApiResource {
            group: self.group.clone(),
            version: self.version.clone(),
            api_version,
            // Stands in no URL.
            kind: String::new(),
            plural: self.resource.clone(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Target { group: _, version: _, resource, namespace, name } = self;
        write!(f, "{resource}/{name} in namespace {namespace}")
    }
}

impl Client {
    /// How many replicas there are to be, and are.
    ///
    /// # Errors
    ///
    /// The API server's, or none came in time.
    pub async fn scale(&self, target: &Target) -> Result<Scale, Error> {
        let api = self.dynamic(&target.namespace, &target.api_resource());
        let found = answer(|| target.request("get"), api.get_scale(&target.name)).await?;
        Ok(Scale::from(found))
    }

    /// Asks for `replicas`, if the object is still the one of `resource_version`.
    ///
    /// # Errors
    ///
    /// [`Cause::Conflict`](crate::Cause::Conflict) when somebody else changed it; else as
    /// [`Client::scale`].
    pub async fn set_scale(
        &self,
        target: &Target,
        replicas: u32,
        resource_version: &str,
    ) -> Result<Scale, Error> {
        let api = self.dynamic(&target.namespace, &target.api_resource());
        let patch = Patch::Merge(serde_json::json!({
            "metadata": { "resourceVersion": resource_version },
            "spec": { "replicas": replicas },
        }));
        let params = PatchParams::default();
        let call = api.patch_scale(&target.name, &params, &patch);
        Ok(Scale::from(answer(|| target.request("patch"), call).await?))
    }
}

impl From<k8s_openapi::api::autoscaling::v1::Scale> for Scale {
    fn from(found: k8s_openapi::api::autoscaling::v1::Scale) -> Self {
        let count = |replicas: i32| u32::try_from(replicas).unwrap_or(0);
        Scale {
            wanted: found.spec.and_then(|spec| spec.replicas).map_or(0, count),
            present: found.status.map_or(0, |status| count(status.replicas)),
            resource_version: found.metadata.resource_version.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_named_as_kubectl_names_them() {
        let parse =
            |text| Target::parse(text, "pool").map(|target| (target.resource, target.group));
        let of = |resource: &str, group: &str| Ok((resource.to_owned(), group.to_owned()));
        assert_eq!(parse("deployments/a"), of("deployments", "apps"));
        assert_eq!(parse("statefulset/a"), of("statefulsets", "apps"));
        assert_eq!(parse("rollouts.v1alpha1.argoproj.io/a"), of("rollouts", "argoproj.io"));
        for wrong in ["a", "deployments/", "pods/a", "rollouts.argoproj.io/a", "deployments/a/b"] {
            let text = parse(wrong).unwrap_err().to_string();
            assert!(text.contains(wrong) && text.contains("deployments/NAME"), "{text}");
        }
    }
}

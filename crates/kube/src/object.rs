//! Objects of any kind as JSON: read, listed, applied, patched and deleted.
//!
//! Nothing is watched and nothing is kept: whoever asks gets what the API server has.

use crate::client::{Client, answer};
use crate::error::{Cause, Error, Request};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{ApiResource, DynamicObject};
use serde_json::Value;

/// Objects of one list that are read; a longer list is an error.
pub const MAX_LISTED: usize = 50_000;
/// Objects of one page of a list.
const PAGE: u32 = 500;

/// A kind of objects, and where the API server has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// As `kind` has it.
    pub kind: &'static str,
    /// Plural in lower case.
    pub plural: &'static str,
    /// Its objects are of namespaces.
    pub namespaced: bool,
}

/// Which objects of a list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Selection<'a> {
    /// Namespace; empty for all.
    pub namespace: &'a str,
    /// As `kubectl --selector` takes it; empty for all.
    pub labels: &'a str,
    /// As `kubectl --field-selector` takes it; empty for all.
    pub fields: &'a str,
}

/// Of which object a deletion may be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Version {
    /// `metadata.uid`.
    pub uid: Option<String>,
    /// `metadata.resourceVersion`.
    pub resource_version: Option<String>,
}

impl Kind {
    fn resource(&self) -> ApiResource {
        let api_version = match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        };
        ApiResource {
            group: self.group.to_owned(),
            version: self.version.to_owned(),
            api_version,
            kind: self.kind.to_owned(),
            plural: self.plural.to_owned(),
        }
    }

    fn request(&self, verb: &'static str, namespace: &str, name: &str) -> Request {
        Request {
            verb,
            group: self.group.to_owned(),
            resource: self.plural.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl Version {
    /// The one that this object has.
    pub fn of(object: &Value) -> Self {
        let text = |name: &str| object["metadata"][name].as_str().map(str::to_owned);
        Version { uid: text("uid"), resource_version: text("resourceVersion") }
    }
}

impl Client {
    fn objects(&self, kind: &Kind, namespace: &str) -> Api<DynamicObject> {
        let resource = kind.resource();
        if kind.namespaced && !namespace.is_empty() {
            Api::namespaced_with(self.inner.clone(), namespace, &resource)
        } else {
            Api::all_with(self.inner.clone(), &resource)
        }
    }

    /// The object, if there is one.
    ///
    /// # Errors
    /// The API server's, or none came in time.
    pub async fn object(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, Error> {
        let request = || kind.request("get", namespace, name);
        let api = self.objects(kind, namespace);
        let found = answer(request, api.get_opt(name)).await?;
        let json = found.map(serde_json::to_value).transpose();
        json.map_err(|error| unreadable(request(), &error))
    }

    /// All objects of a selection.
    ///
    /// # Errors
    /// As [`Client::object`]; more than [`MAX_LISTED`] of them.
    pub async fn list(&self, kind: &Kind, of: Selection<'_>) -> Result<Vec<Value>, Error> {
        let request = || kind.request("list", of.namespace, "");
        let api = self.objects(kind, of.namespace);
        let mut params = ListParams::default().limit(PAGE).labels(of.labels).fields(of.fields);
        let mut all = Vec::new();
        loop {
            let page = answer(request, api.list(&params)).await?;
            for mut object in page.items {
                // Items of a list have no kind of their own.
                object.types.get_or_insert_with(|| kube::core::TypeMeta {
                    api_version: kind.resource().api_version,
                    kind: kind.kind.to_owned(),
                });
                let json = serde_json::to_value(object);
                all.push(json.map_err(|error| unreadable(request(), &error))?);
            }
            if all.len() > MAX_LISTED {
                let reason = format!("more than {MAX_LISTED} objects");
                return Err(Error { request: request(), cause: Cause::Unreadable(reason) });
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok(all),
            }
        }
    }

    /// Server-side apply; `force` takes fields over that others manage. Makes the object where there is none.
    ///
    /// # Errors
    /// [`Cause::Conflict`] when somebody else manages one of the fields; else as [`Client::object`].
    pub async fn apply(
        &self,
        kind: &Kind,
        object: &Value,
        manager: &str,
        force: bool,
    ) -> Result<Value, Error> {
        let (namespace, name) = place(object);
        let request = || kind.request("patch", namespace, name);
        let params = params(manager, force);
        let api = self.objects(kind, namespace);
        let applied = answer(request, api.patch(name, &params, &Patch::Apply(object))).await?;
        serde_json::to_value(applied).map_err(|error| unreadable(request(), &error))
    }

    /// Server-side apply of the status alone.
    ///
    /// # Errors
    /// As [`Client::apply`].
    pub async fn apply_status(
        &self,
        kind: &Kind,
        object: &Value,
        manager: &str,
    ) -> Result<(), Error> {
        let (namespace, name) = place(object);
        let resource = format!("{}/status", kind.plural);
        let request =
            || Request { resource: resource.clone(), ..kind.request("patch", namespace, name) };
        let params = params(manager, false);
        let api = self.objects(kind, namespace);
        answer(request, api.patch_status(name, &params, &Patch::Apply(object))).await.map(drop)
    }

    /// A merge patch (RFC 7396): fields that are null are removed.
    ///
    /// # Errors
    /// [`Cause::NotFound`] when there is no such object; else as [`Client::object`].
    pub async fn merge(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        change: &Value,
    ) -> Result<(), Error> {
        let request = || kind.request("patch", namespace, name);
        let api = self.objects(kind, namespace);
        let (params, patch) = (PatchParams::default(), Patch::Merge(change));
        answer(request, api.patch(name, &params, &patch)).await.map(drop)
    }

    /// Deletes the object, if it is still of that version. Who is gone is deleted.
    ///
    /// # Errors
    /// [`Cause::Conflict`] when it is of another version; else as [`Client::object`].
    pub async fn delete(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        version: &Version,
    ) -> Result<(), Error> {
        let request = || kind.request("delete", namespace, name);
        let Version { uid, resource_version } = version.clone();
        let preconditions = (uid.is_some() || resource_version.is_some())
            .then_some(Preconditions { uid, resource_version });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        match answer(request, self.objects(kind, namespace).delete(name, &params)).await {
            Ok(_) => Ok(()),
            Err(error) if error.cause == Cause::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A token of a service account for an audience, and when it runs out (RFC 3339).
    ///
    /// # Errors
    /// As [`Client::object`].
    pub async fn service_account_token(
        &self,
        namespace: &str,
        account: &str,
        audience: &str,
        seconds: u32,
    ) -> Result<(String, String), Error> {
        let kind = Kind {
            group: "",
            version: "v1",
            kind: "ServiceAccount",
            plural: "serviceaccounts",
            namespaced: true,
        };
        let request = || Request {
            resource: "serviceaccounts/token".to_owned(),
            ..kind.request("create", namespace, account)
        };
        let asked = serde_json::json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": { "audiences": [audience], "expirationSeconds": seconds },
        });
        let api = self.objects(&kind, namespace);
        let params = PostParams::default();
        let call = api.create_subresource::<Value, Value>("token", account, &params, &asked);
        let given = answer(request, call).await?;
        let text = |name: &str| given["status"][name].as_str().map(str::to_owned);
        match (text("token"), text("expirationTimestamp")) {
            (Some(token), Some(until)) => Ok((token, until)),
            _ => {
                let cause = Cause::Unreadable("no token in it".to_owned());
                Err(Error { request: request(), cause })
            }
        }
    }
}

fn params(manager: &str, force: bool) -> PatchParams {
    let params = PatchParams::apply(manager);
    if force { params.force() } else { params }
}

fn place(object: &Value) -> (&str, &str) {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
    (text("namespace"), text("name"))
}

fn unreadable(request: Request, error: &serde_json::Error) -> Error {
    Error { request, cause: Cause::Unreadable(error.to_string()) }
}

/// When that is, in seconds from now; less than 0: it was. `None`: no time as RFC 3339 has it.
pub fn seconds_until(time: &str) -> Option<f64> {
    use k8s_openapi::jiff::Timestamp;
    let time: Timestamp = time.parse().ok()?;
    Some(time.duration_since(Timestamp::now()).as_secs_f64())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use http::{Request as HttpRequest, Response};
    use kube::client::Body;
    use std::sync::{Arc, Mutex};

    const ENTRIES: Kind = Kind {
        group: "networking.istio.io",
        version: "v1",
        kind: "WorkloadEntry",
        plural: "workloadentries",
        namespaced: true,
    };

    /// Answers each request with the next of `answers`; keeps what was asked.
    fn played(answers: Vec<(u16, Value)>) -> (Client, Arc<Mutex<Vec<String>>>) {
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (seen, answers) = (Arc::clone(&asked), Arc::new(Mutex::new(answers)));
        let service = tower::service_fn(move |request: HttpRequest<Body>| {
            let (seen, answers) = (Arc::clone(&seen), Arc::clone(&answers));
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let body = String::from_utf8_lossy(&body).into_owned();
                seen.lock().unwrap().push(format!("{} {} {body}", parts.method, parts.uri));
                let (status, body) = answers.lock().unwrap().remove(0);
                let answer = Response::builder().status(status);
                Ok::<_, tower::BoxError>(
                    answer.body(Body::from(body.to_string().into_bytes())).unwrap(),
                )
            }
        });
        (Client::of(kube::Client::new(service, "pool"), "pool"), asked)
    }

    fn entry(name: &str) -> Value {
        serde_json::json!({ "metadata": { "name": name, "uid": "u" }, "spec": { "address": "10.8.0.1" } })
    }

    #[tokio::test]
    async fn a_list_is_read_to_its_end_and_its_items_have_their_kind() {
        let page = |next: &str, name: &str| {
            serde_json::json!({
                "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntryList",
                "metadata": { "continue": next }, "items": [entry(name)],
            })
        };
        let (client, asked) = played(vec![(200, page("more", "a")), (200, page("", "b"))]);
        let of = Selection { namespace: "pool", labels: "a=b", fields: "" };
        let all = client.list(&ENTRIES, of).await.unwrap();
        let names: Vec<&str> =
            all.iter().filter_map(|one| one["metadata"]["name"].as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(all[0]["kind"], "WorkloadEntry");
        let asked = asked.lock().unwrap().clone();
        assert!(asked[0].contains("/namespaces/pool/workloadentries?"), "{asked:?}");
        assert!(asked[0].contains("labelSelector=a%3Db"), "{asked:?}");
        assert!(asked[1].contains("continue=more"), "{asked:?}");
    }

    #[tokio::test]
    async fn a_deletion_is_of_the_version_that_was_seen() {
        let status = |code: u16, reason: &str| {
            (
                code,
                serde_json::json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "message": "m", "reason": reason, "code": code,
                }),
            )
        };
        let (client, asked) = played(vec![status(409, "Conflict"), status(404, "NotFound")]);
        let version =
            Version::of(&serde_json::json!({"metadata": {"uid": "u", "resourceVersion": "7"}}));
        let error = client.delete(&ENTRIES, "pool", "a", &version).await.unwrap_err();
        assert_eq!(error.cause, Cause::Conflict);
        client.delete(&ENTRIES, "pool", "a", &Version::default()).await.unwrap();
        let asked = asked.lock().unwrap().clone();
        assert!(asked[0].contains(r#""resourceVersion":"7""#), "{asked:?}");
        assert!(asked[0].contains(r#""uid":"u""#), "{asked:?}");
        assert!(!asked[1].contains("preconditions"), "{asked:?}");
    }

    #[tokio::test]
    async fn each_call_that_is_forbidden_names_its_rule_and_the_object() {
        let status = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "no", "reason": "Forbidden", "code": 403,
        });
        let (client, _) = played(vec![(403, status); 9]);
        let mut object = entry("a");
        object["metadata"]["namespace"] = "pool".into();
        let (of, version) =
            (Selection { namespace: "pool", ..Selection::default() }, Version::default());
        let target = crate::Target::parse("deployments/a", "pool").unwrap();
        let entries = "workloadentries";
        let errors = [
            ("get", entries, client.object(&ENTRIES, "pool", "a").await.map(drop)),
            ("list", entries, client.list(&ENTRIES, of).await.map(drop)),
            ("patch", entries, client.apply(&ENTRIES, &object, "m", false).await.map(drop)),
            ("patch", "workloadentries/status", client.apply_status(&ENTRIES, &object, "m").await),
            ("patch", entries, client.merge(&ENTRIES, "pool", "a", &object).await),
            ("delete", entries, client.delete(&ENTRIES, "pool", "a", &version).await),
            (
                "create",
                "serviceaccounts/token",
                client.service_account_token("pool", "a", "istio-ca", 600).await.map(drop),
            ),
            ("get", "deployments/scale", client.scale(&target).await.map(drop)),
            ("patch", "deployments/scale", client.set_scale(&target, 2, "1").await.map(drop)),
        ];
        for (verb, resource, error) in errors {
            let text = error.unwrap_err().to_string();
            let rule = format!("needs `{verb}` on `{resource}` in namespace pool");
            assert!(text.contains(&rule), "{text}");
            let name = if verb == "list" { "" } else { " a" };
            assert!(
                text.starts_with(&format!("{verb} {resource}{name} in namespace pool")),
                "{text}"
            );
        }
    }

    #[test]
    fn times_are_read() {
        assert!(seconds_until("2026-11-22T20:00:41.878415124Z").is_some());
        assert!(seconds_until("2020-01-01T00:00:00Z").unwrap() < 0.0);
        assert_eq!(seconds_until("yesterday"), None);
    }
}

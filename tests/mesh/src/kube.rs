//! The Kubernetes API, as its administrator: server-side apply, and little else.

use crate::control::eventually;
use crate::manifest::{documents, path};
use cairn_test_support::http1::Http1;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const APPLY: &str = "application/apply-patch+yaml";
const DEFINITION: &str = "CustomResourceDefinition";

/// A client; each call has a connection of its own.
#[derive(Clone)]
pub struct Kube {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
}

/// To which object a token is bound: it is void when that is gone.
#[derive(Debug, Clone)]
pub struct Bound {
    /// `Pod` or `Secret`.
    pub kind: &'static str,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
}

impl Kube {
    /// Of the API server at this address.
    pub fn new(address: SocketAddr, tls: Arc<ClientConfig>) -> Self {
        Kube { address, tls }
    }

    /// One request: the status and the JSON of the answer; 0 and the reason when there is none.
    pub async fn call(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, Value) {
        match self.try_call(method, path, kind, body).await {
            Ok(answer) => answer,
            Err(error) => (0, Value::String(error.to_string())),
        }
    }

    async fn try_call(
        &self,
        method: &str,
        path: &str,
        kind: &str,
        body: &[u8],
    ) -> std::io::Result<(u16, Value)> {
        let tcp = TcpStream::connect(self.address).await?;
        let name = ServerName::IpAddress(self.address.ip().into());
        let tls = TlsConnector::from(self.tls.clone()).connect(name, tcp).await?;
        let host = self.address.to_string();
        let mut headers =
            vec![("Host", host.as_str()), ("Accept", "application/json"), ("Connection", "close")];
        if !body.is_empty() {
            headers.push(("Content-Type", kind));
        }
        let response = Http1::new(tls).request(method, path, &headers, body).await?;
        let value = serde_json::from_slice(&response.body)
            .unwrap_or_else(|_| Value::String(response.text()));
        Ok((response.status, value))
    }

    /// Server-side apply; returns what is stored. Fields that are no longer given are removed.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn apply(&self, object: &Value) -> Value {
        self.apply_at(object, "").await
    }

    /// Server-side apply in which an unknown field is an error: the status and the answer.
    pub async fn apply_strictly(&self, object: &Value) -> (u16, Value) {
        let query = place(object, "") + "?fieldManager=strict&force=true&fieldValidation=Strict";
        self.call("PATCH", &query, APPLY, object.to_string().as_bytes()).await
    }

    /// As [`Kube::apply`]; nothing where the namespace is being deleted.
    ///
    /// # Panics
    /// When the server refuses for another reason.
    pub async fn apply_where_it_may(&self, object: &Value) -> Option<Value> {
        let place = place(object, "?fieldManager=lab&force=true");
        let (status, answer) =
            self.call("PATCH", &place, APPLY, object.to_string().as_bytes()).await;
        match status {
            200 | 201 => Some(answer),
            403 | 404 if answer.to_string().contains("NamespaceTerminating") => None,
            _ => panic!("{place}: {status}: {answer}"),
        }
    }

    /// As [`Kube::apply`], for the status alone.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn apply_status(&self, object: &Value) -> Value {
        self.apply_at(object, "/status").await
    }

    async fn apply_at(&self, object: &Value, subresource: &str) -> Value {
        self.patch(&place(object, subresource), &object.to_string()).await
    }

    async fn patch(&self, place: &str, text: &str) -> Value {
        let query = format!("{place}?fieldManager=lab&force=true");
        let (status, answer) = self.call("PATCH", &query, APPLY, text.as_bytes()).await;
        assert!(matches!(status, 200 | 201), "{place}: {status}: {answer}");
        answer
    }

    /// Applies all documents whose kind `wanted` accepts; returns how many.
    ///
    /// # Panics
    /// When the server refuses one.
    pub async fn apply_all(&self, yaml: &str, wanted: impl Fn(&str) -> bool) -> usize {
        let mut count = 0;
        for document in documents(yaml) {
            if wanted(&document.kind) {
                let place = path(
                    &document.api_version,
                    &document.kind,
                    &document.namespace,
                    &document.name,
                );
                self.patch(&place, &document.text).await;
                count += 1;
            }
        }
        count
    }

    /// Applies all definitions of a directory, and waits until their kinds are served.
    ///
    /// # Panics
    /// When the server refuses one, or does not serve it.
    pub async fn define(&self, directory: &Path) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            let names: Vec<String> =
                documents(&text).into_iter().map(|document| document.name).collect();
            let count = self.apply_all(&text, |kind| kind == DEFINITION).await;
            assert_eq!(count, names.len(), "only definitions are in {}", directory.display());
            for name in names {
                eventually(&format!("the API server serves {name}"), async || {
                    self.serves(&name).await
                })
                .await;
            }
        }
    }

    /// Whether this definition is established, and its kind served.
    async fn serves(&self, name: &str) -> bool {
        let definition = self.get("apiextensions.k8s.io/v1", DEFINITION, "", name).await;
        let Some(spec) = definition.map(|definition| definition["spec"].clone()) else {
            return false;
        };
        let text = |pointer: &str| spec.pointer(pointer).and_then(Value::as_str).unwrap_or("");
        let group = format!("/apis/{}/{}", text("/group"), text("/versions/0/name"));
        let (_, answer) = self.call("GET", &group, "", b"").await;
        let mut kinds = answer["resources"].as_array().into_iter().flatten();
        kinds.any(|kind| kind["name"] == text("/names/plural"))
    }

    /// An object, if it is there.
    pub async fn get(
        &self,
        api_version: &str,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Option<Value> {
        let place = path(api_version, kind, namespace, name);
        let (status, answer) = self.call("GET", &place, "", b"").await;
        (status == 200).then_some(answer)
    }

    /// Deletes what [`Kube::apply`] has made, at once.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn delete(&self, object: &Value) {
        let place = place(object, "?gracePeriodSeconds=0");
        let (status, answer) = self.call("DELETE", &place, "", b"").await;
        assert!(matches!(status, 200 | 202), "{place}: {status}: {answer}");
    }

    /// A token of this service account for this audience.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn token(
        &self,
        namespace: &str,
        account: &str,
        audience: &str,
        bound: Option<&Bound>,
    ) -> String {
        let place = path("v1", "ServiceAccount", namespace, account) + "/token";
        let mut request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": { "audiences": [audience], "expirationSeconds": 43200 },
        });
        if let Some(Bound { kind, name, uid }) = bound {
            request["spec"]["boundObjectRef"] =
                json!({ "apiVersion": "v1", "kind": kind, "name": name, "uid": uid });
        }
        let body = request.to_string();
        let (status, answer) = self.call("POST", &place, "application/json", body.as_bytes()).await;
        assert_eq!(status, 201, "{place}: {answer}");
        answer["status"]["token"].as_str().unwrap().to_owned()
    }
}

/// Path of an object, and what stands behind it.
fn place(object: &Value, rest: &str) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or("");
    let path = path(
        text("/apiVersion"),
        text("/kind"),
        text("/metadata/namespace"),
        text("/metadata/name"),
    );
    path + rest
}

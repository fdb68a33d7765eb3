//! How the API server is reached.

use crate::error::{Error, Request, chain};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Config, api::Api, api::DynamicObject, core::NamespaceResourceScope, core::Resource};
use std::path::PathBuf;
use std::time::Duration;

/// How long one request may take; watches are no such requests.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the API server is, and as whom we come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// As the pod's service account.
    InCluster,
    /// As a kubeconfig says, by its current context.
    Kubeconfig(PathBuf),
    /// By address. Token and CA are read again when they change.
    Explicit {
        /// `https://host:port`.
        url: String,
        /// File with a bearer token.
        token: PathBuf,
        /// PEM file with the CA.
        ca: PathBuf,
    },
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[error("no access to the Kubernetes API: {0}")]
pub struct AccessError(String);

/// A client of one API server. Cloning is cheap.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: kube::Client,
    namespace: String,
}

impl Client {
    /// Prepares a client; the API server is not called yet. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// Files that are missing or cannot be read, an address that is none.
    pub async fn new(access: &Access) -> Result<Self, AccessError> {
        let config = match access {
            Access::InCluster => Config::incluster().map_err(|error| {
                AccessError(format!("{}; outside of a pod give a kubeconfig", chain(&error)))
            })?,
            Access::Kubeconfig(file) => {
                let read =
                    Kubeconfig::read_from(file).map_err(|error| AccessError(chain(&error)))?;
                Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.map_err(
                    |error| AccessError(format!("{}: {}", file.display(), chain(&error))),
                )?
            }
            Access::Explicit { url, token, ca } => {
                let url = url
                    .parse()
                    .map_err(|error| AccessError(format!("`{url}` is no address: {error}")))?;
                for file in [token, ca] {
                    std::fs::metadata(file)
                        .map_err(|error| AccessError(format!("{}: {error}", file.display())))?;
                }
                let mut config = Config::new(url);
                config.root_cert_file = Some(ca.clone());
                config.auth_info.token_file = Some(token.display().to_string());
                config
            }
        };
        let namespace = config.default_namespace.clone();
        let inner = kube::Client::try_from(config).map_err(|error| AccessError(chain(&error)))?;
        Ok(Client { inner, namespace })
    }

    /// Namespace of the pod or of the kubeconfig's context.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    #[cfg(test)]
    pub(crate) fn of(inner: kube::Client, namespace: &str) -> Self {
        Client { inner, namespace: namespace.to_owned() }
    }

    pub(crate) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.inner.clone(), namespace)
    }

    pub(crate) fn dynamic(
        &self,
        namespace: &str,
        resource: &kube::core::ApiResource,
    ) -> Api<DynamicObject> {
        Api::namespaced_with(self.inner.clone(), namespace, resource)
    }
}

/// The answer to one request, within [`REQUEST_TIMEOUT`].
pub(crate) async fn answer<T>(
    request: impl FnOnce() -> Request,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, Error> {
    match tokio::time::timeout(REQUEST_TIMEOUT, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::new(request(), &error)),
        Err(_elapsed) => Err(Error {
            request: request(),
            cause: crate::Cause::Unreachable(format!("not within {REQUEST_TIMEOUT:?}")),
        }),
    }
}

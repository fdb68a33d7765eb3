//! Where the pod's files are.

use std::path::{Path, PathBuf};

/// The pod's paths below a root: `/`, or `CAIRN_ROOT` for tests and odd set-ups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    root: PathBuf,
}

/// Which file proves istiod (Istio's agent: `PILOT_CERT_PROVIDER`).
const MESH_ROOTS: &str = "var/run/secrets/istio/root-cert.pem";
const CLUSTER_ROOTS: &str = "var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
const CUSTOM_ROOTS: &str = "etc/certs/root-cert.pem";

impl Paths {
    /// Below this directory.
    pub fn below(root: impl Into<PathBuf>) -> Self {
        Paths { root: root.into() }
    }

    /// A path that somebody wrote, absolute or not, below the root.
    pub fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Token of the service account for istiod.
    pub fn token(&self) -> PathBuf {
        self.at("var/run/secrets/tokens/istio-token")
    }

    /// Roots that istiod's certificate leads to, by `PILOT_CERT_PROVIDER`: `kubernetes` is the
    /// cluster's CA, `custom` what the operator mounts, everything else the mesh's.
    pub fn istiod_roots(&self, provider: &str) -> PathBuf {
        self.at(match provider {
            "kubernetes" => CLUSTER_ROOTS,
            "custom" => CUSTOM_ROOTS,
            _ => MESH_ROOTS,
        })
    }

    /// Certificate, key and roots that somebody else provides instead of the mesh's CA.
    pub fn credentials(&self) -> PathBuf {
        self.at("var/run/secrets/workload-spiffe-credentials")
    }

    /// In memory; outlives the container, not the pod.
    pub fn memory(&self) -> PathBuf {
        self.at("etc/istio/proxy")
    }

    /// On disk; outlives the container, not the pod.
    pub fn data(&self) -> PathBuf {
        self.at("var/lib/istio/data")
    }

    /// The pod's labels.
    pub fn labels(&self) -> PathBuf {
        self.at("etc/istio/pod/labels")
    }

    /// The pod's annotations.
    pub fn annotations(&self) -> PathBuf {
        self.at("etc/istio/pod/annotations")
    }

    /// The root itself.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

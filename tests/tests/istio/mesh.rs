//! The small mesh, with the waypoint's pod in it.

use super::pod::{Pod, Waypoint};
use cairn_test_support::mesh;
use std::ops::{Deref, DerefMut};

pub use cairn_test_support::mesh::{Client, waypoint_id};

/// The mesh.
pub struct Mesh(mesh::Mesh);

impl Deref for Mesh {
    type Target = mesh::Mesh;

    fn deref(&self) -> &mesh::Mesh {
        &self.0
    }
}

impl DerefMut for Mesh {
    fn deref_mut(&mut self) -> &mut mesh::Mesh {
        &mut self.0
    }
}

impl Mesh {
    /// Istiod with what every waypoint gets, and these services.
    pub async fn with(services: &[&str]) -> Self {
        Mesh(mesh::Mesh::with(services).await)
    }

    /// The waypoint's pod as rendered, in this mesh.
    pub fn pod(&self) -> Pod {
        let mut pod = Pod::new();
        pod.join(&self.istiod);
        pod.set("CAIRN_LOOPBACK_ENDPOINTS", "on");
        pod
    }

    /// Starts it and waits until it is ready.
    pub async fn waypoint(&self) -> (Pod, Waypoint) {
        let pod = self.pod();
        let mut waypoint = pod.start();
        waypoint.ready().await;
        (pod, waypoint)
    }

    /// A client of the mesh, connected to the waypoint.
    pub async fn client(&self, waypoint: &Waypoint) -> Client {
        self.client_as(waypoint, "client").await
    }

    /// A client with a service account.
    pub async fn client_as(&self, waypoint: &Waypoint, account: &str) -> Client {
        Client::connect(waypoint.hbone().await, &self.cert(account)).await
    }
}

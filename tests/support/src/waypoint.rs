//! A waypoint in this process.
use crate::config::MeshSpec;
use crate::hbone_client::{ConnectFailure, HboneClient};
use crate::metrics::Sample;
use crate::pki::{Cert, CertDir};
use std::net::SocketAddr;
use std::time::Duration;

/// Stub.
pub struct Waypoint { /// a
 pub addr: SocketAddr, /// b
 pub id: String }
#[allow(missing_docs, clippy::unimplemented, clippy::unused_async)]
impl Waypoint {
    pub async fn start(_cert: &Cert, _spec: &MeshSpec) -> Self { unimplemented!() }
    pub async fn start_on(_certs: CertDir, _spec: &MeshSpec, _workers: usize) -> Self { unimplemented!() }
    pub fn certs(&mut self) -> &mut CertDir { unimplemented!() }
    pub fn apply(&self, _spec: &MeshSpec) { unimplemented!() }
    pub async fn connect(&self, _cert: &Cert) -> HboneClient { unimplemented!() }
    pub async fn try_connect(&self, _cert: &Cert) -> Result<HboneClient, ConnectFailure> { unimplemented!() }
    pub fn counter(&self, _name: &str, _labels: &[(&str, &str)]) -> u64 { unimplemented!() }
    pub fn metrics(&self) -> Vec<Sample> { unimplemented!() }
    pub async fn drain(&self, _limit: Duration) -> usize { unimplemented!() }
}

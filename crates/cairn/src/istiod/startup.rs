//! What a start waits for after the certificate: istiod's first answers, and the port for tunnels.

use super::control::{Control, NEEDED};
use super::feeder::Feeder;
use crate::ready::Readiness;
use crate::waypoint::ports;
use cairn_proxy::{MeshInstance, Running, Workers};
use cairn_xds::ads::AdsStatus;
use cairn_xds::feed::Kind;
use std::sync::Arc;
use std::time::Duration;

/// What readiness calls the port for tunnels.
pub const TUNNELS: &str = "port 15008";
/// What readiness calls the listener without which there are no tunnels.
pub const TERMINATE: &str = "listener connect_terminate";
/// How often a port that is taken is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What readiness calls the first answer about a kind.
pub fn label(kind: Kind) -> &'static str {
    match kind {
        Kind::Cluster => "clusters (CDS)",
        Kind::Listener => "listeners (LDS)",
        Kind::Endpoints => "endpoints (EDS)",
        Kind::Workload => "workloads (Workload)",
        Kind::ExtensionConfig => "extensions (ECDS)",
        Kind::Secret => "secrets (SDS)",
    }
}

/// Everything that a start waits for besides the certificate.
pub fn awaited() -> impl Iterator<Item = &'static str> {
    NEEDED.into_iter().map(label).chain([TERMINATE, TUNNELS])
}

/// Waits until there is a configuration to serve by: istiod's first answers, or what an earlier start
/// has kept.
pub async fn configured(control: &Control, feeder: &Feeder, istiod: &str, readiness: &Readiness) {
    if control.warm {
        for kind in NEEDED {
            readiness.arrived(label(kind));
        }
    } else {
        answered(control, istiod, readiness).await;
    }
    let revision = feeder.revision();
    let mut published = control.published.clone();
    let why = "istiod's listeners do not have it, so nothing is let in";
    loop {
        {
            let published = published.borrow_and_update();
            if published.revision >= revision {
                match &published.facts.terminate {
                    None => readiness.still_missing(TERMINATE, why),
                    Some(terminate) => match &terminate.broken {
                        None => break,
                        Some(reason) => {
                            let why =
                                format!("it is not understood, so nothing is let in: {reason}");
                            readiness.still_missing(TERMINATE, &why);
                        }
                    },
                }
            }
        }
        if published.changed().await.is_err() {
            // The configuration's thread has ended, and nothing comes any more.
            std::future::pending::<()>().await;
        }
    }
    readiness.arrived(TERMINATE);
}

/// Waits for the first answer about each kind; what is missing is told to `readiness`.
async fn answered(control: &Control, istiod: &str, readiness: &Readiness) {
    let mut ads = control.ads.clone();
    loop {
        let status = ads.borrow_and_update().clone();
        let missing = status.missing(&NEEDED);
        for kind in NEEDED {
            if missing.contains(&kind) {
                readiness.still_missing(label(kind), &reason(&status, istiod));
            } else {
                readiness.arrived(label(kind));
            }
        }
        if missing.is_empty() {
            return;
        }
        if ads.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn reason(status: &AdsStatus, istiod: &str) -> String {
    match &status.last_error {
        _ if status.connected => format!("{istiod} has not answered yet"),
        Some(error) => format!("no stream to {istiod}: {error}"),
        None => format!("asking {istiod}"),
    }
}

/// Opens the port for tunnels; one that is taken is tried again.
pub async fn listen(
    instance: &Arc<MeshInstance>,
    workers: &Workers,
    readiness: &Readiness,
) -> Running {
    loop {
        match cairn_proxy::listen(Arc::clone(instance), workers).await {
            Ok(running) => {
                let address = running.local_addr;
                tracing::info!(%address, mesh = instance.name(), "accepting HBONE");
                readiness.arrived(TUNNELS);
                return running;
            }
            Err(error) => readiness.still_missing(TUNNELS, &error.to_string()),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Says it when istiod's listener is somewhere else than we are.
pub fn compare_addresses(control: &Control, instance: &MeshInstance) {
    let facts = Arc::clone(&control.published.borrow().facts);
    let Some(terminate) = &facts.terminate else { return };
    if let Some(reason) = &terminate.broken {
        tracing::error!(
            reason,
            "no tunnel is let in: the listener connect_terminate is not understood"
        );
    }
    let wanted = ports::tunnels(&terminate.addresses);
    let port = wanted.map(|wanted| wanted.port());
    if port.is_some_and(|port| port != ports::HBONE) {
        tracing::warn!(?wanted, listens = %instance.listen(), "istiod's listener has another address");
    }
}

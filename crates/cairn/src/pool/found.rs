//! The members, as they are found and as they answer.

use super::args::MembersArgs;
use crate::failure::Failure;
use crate::members::{PollError, Poller, Source};
use cairn_kube::{Access, Client};
use cairn_pool::registrar::{Answer, Probe, Seen};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// What says on a member's page of readiness that it drains.
const DRAINING: &str = "draining";

/// Asks members.
#[derive(Clone)]
pub struct Prober {
    /// Asks.
    pub poller: Poller,
    /// Port of `/load` and `/drain`.
    pub load_port: u16,
    /// Port of `/healthz/ready`.
    pub health_port: u16,
}

impl Prober {
    /// Where its `/load` and `/drain` are.
    pub fn pages(&self, address: IpAddr) -> String {
        SocketAddr::new(address, self.load_port).to_string()
    }

    /// Asks one member for both pages. An answer that makes no sense is one, too: somebody is there.
    pub async fn probe(&self, address: IpAddr) -> Probe {
        let health = SocketAddr::new(address, self.health_port).to_string();
        let pages = self.pages(address);
        let (ready, report) = tokio::join!(self.poller.ready(&health), self.poller.report(&pages));
        let silent =
            |error: &PollError| matches!(error, PollError::Late | PollError::Connection(_));
        if ready.as_ref().is_err_and(silent) && report.as_ref().is_err_and(silent) {
            return Probe::Fails;
        }
        let says = |(status, text): &(u16, String)| *status == 503 && text.starts_with(DRAINING);
        let mut answer = Answer {
            ready: ready.as_ref().is_ok_and(|(status, _)| *status == 200),
            draining: ready.as_ref().is_ok_and(says),
            ..Answer::default()
        };
        if let Ok(report) = report {
            answer.draining |= report.draining;
            answer.ready |= ready.is_err() && report.ready;
            answer.instance = report.instance;
            answer.uptime = Some(report.uptime_seconds);
            answer.in_flight = Some(report.in_flight);
            answer.load = Some(report.in_flight / report.capacity.size());
            answer.config_age = Some(report.config_age_seconds);
        }
        Probe::Answers(answer)
    }
}

/// Where members come from.
pub struct Found {
    source: Source,
    /// They are pods.
    pub are_pods: bool,
}

impl Found {
    /// As the arguments say; `client`: of the members' cluster.
    ///
    /// # Errors
    /// A Service, and nobody to ask about it.
    pub fn of(args: &MembersArgs, client: Option<(&Client, &str)>) -> Result<Found, Failure> {
        match (&args.service, client) {
            (Some(service), Some((client, namespace))) => {
                let source =
                    Source::Service(client.watch_endpoints(namespace, service), args.load_port);
                Ok(Found { source, are_pods: true })
            }
            (Some(service), None) => {
                Err(Failure::new(format!("--service {service}: no API server to ask")))
            }
            (None, _) => {
                let address = |ip: &IpAddr| SocketAddr::new(*ip, args.load_port).to_string();
                let members: Vec<String> = args.members.iter().map(address).collect();
                Ok(Found { source: Source::fixed(&members), are_pods: false })
            }
        }
    }

    /// Those of now, and why there are no newer ones.
    pub fn now(&self) -> (Option<Vec<Seen>>, Option<String>) {
        let roster = self.source.roster();
        let seen = |member: &crate::members::Member| {
            let address = member.authority.parse::<SocketAddr>().ok()?.ip();
            // An endpoint that is no pod has its address for a name.
            let is_pod = self.are_pods && member.name != address.to_string();
            let name = if self.are_pods { member.name.clone() } else { address.to_string() };
            Some(Seen { name, address, is_pod })
        };
        let members =
            roster.members.map(|members: Arc<[_]>| members.iter().filter_map(seen).collect());
        (members, roster.problem)
    }
}

/// The members' cluster, and their namespace there.
pub async fn pool_client(args: &MembersArgs) -> Result<(Client, String), Failure> {
    let access = match &args.kubeconfig {
        Some(file) => Access::Kubeconfig(file.clone()),
        None => Access::InCluster,
    };
    let client = Client::new(&access).await.map_err(|error| {
        Failure::new(format!("the members' cluster: {error}")).hint("--kubeconfig FILE")
    })?;
    let namespace = args.namespace.clone().unwrap_or_else(|| client.namespace().to_owned());
    Ok((client, namespace))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers every connection with this; nothing for `None`, and goes on listening.
    async fn page(answer: Option<&'static str>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let Some(answer) = answer else {
                    held.push(stream);
                    continue;
                };
                let _head = stream.read(&mut [0; 4096]).await;
                let _gone = stream.write_all(answer.as_bytes()).await;
            }
        });
        port
    }

    const READY: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nready\n";
    const DRAINS: &str =
        "HTTP/1.1 503 x\r\nContent-Length: 9\r\nConnection: close\r\n\r\ndraining\n";
    const WAITS: &str =
        "HTTP/1.1 503 x\r\nContent-Length: 16\r\nConnection: close\r\n\r\nwaiting for you\n";
    const LOAD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 62\r\nConnection: close\r\n\r\n\
                        {\"version\":1,\"instance\":\"i\",\"uptime_seconds\":7,\"in_flight\":4}\n";

    #[tokio::test]
    async fn silence_is_a_failure_and_a_refusal_is_none() {
        let refused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let mut pages = Vec::new();
        for answer in [Some(READY), Some(DRAINS), Some(WAITS), Some(LOAD), None] {
            pages.push(page(answer).await);
        }
        let [ready, drains, waits, load, hangs] = pages[..] else { unreachable!() };
        // Readiness, load; whether it answers, is ready, drains, and its uptime.
        for (health_port, load_port, wanted) in [
            (ready, load, Some((true, false, Some(7.0)))),
            (drains, load, Some((false, true, Some(7.0)))),
            (waits, load, Some((false, false, Some(7.0)))),
            (ready, refused, Some((true, false, None))),
            (waits, waits, Some((false, false, None))),
            (hangs, load, Some((false, false, Some(7.0)))),
            (refused, refused, None),
            (hangs, hangs, None),
            (hangs, refused, None),
        ] {
            let poller = Poller::new(Duration::from_millis(300));
            let prober = Prober { poller, load_port, health_port };
            let got = match prober.probe(IpAddr::from([127, 0, 0, 1])).await {
                Probe::Answers(answer) => Some((answer.ready, answer.draining, answer.uptime)),
                Probe::Fails => None,
            };
            assert_eq!(got, wanted, "{health_port} {load_port} of {pages:?}");
        }
    }
}

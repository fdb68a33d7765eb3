//! Single requests: is it there yet, and does it do what it should?

use crate::bed::Bed;
use crate::load::http1::{Reply, get};
use crate::load::{Failure, Lane, Lanes};
use crate::process::Process;
use crate::world::{
    FORBIDDEN_PREFIX, Protocol, REVISION_HEADER, REVISION_PATH, ROUTES, Service, WAYPOINT, World,
};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use std::time::{Duration, Instant};

/// How long a change may take until it is seen.
const CHANGE_LIMIT: Duration = Duration::from_secs(120);

/// A client with one connection.
pub struct Probe {
    lane: Lane,
}

impl Probe {
    /// To a proxy; the connection is opened by the first request.
    pub fn new(bed: &Bed, proxy: &Process) -> Result<Probe> {
        Ok(Probe { lane: Lanes::new(bed.client(), proxy.hbone(), WAYPOINT)?.lane() })
    }

    /// One request in a tunnel of its own.
    pub async fn get(
        &self,
        service: &Service,
        path: &str,
        headers: &str,
    ) -> Result<Reply, Failure> {
        let mut stream = self.lane.open(&service.address().to_string()).await?;
        let reply = get(&mut stream, path, headers).await;
        let _peer_may_have_gone = stream.writer().finish();
        reply
    }

    /// Asks again and again until the first 200; tells how long that took from the start of the proxy.
    pub async fn first_answer(&self, proxy: &mut Process, service: &Service) -> Result<Duration> {
        loop {
            if let Ok(reply) = self.get(service, REVISION_PATH, "").await
                && reply.status == 200
            {
                return proxy.check_alive();
            }
            proxy.check_alive()?;
            tokio::task::yield_now().await;
        }
    }

    /// Whether routes and policies do what they should: both proxies have to do the same work.
    pub async fn check(&self, world: &World) -> Result<()> {
        for service in &world.services {
            let echoes = match service.protocol {
                Protocol::Http1 => self.check_http1(service).await,
                // The load of this scenario fails where it does not work.
                Protocol::Http2 => Ok(()),
                Protocol::Tcp => self.check_echo(service).await,
            };
            echoes.with_context(|| format!("{} does not work", service.inbound_name()))?;
        }
        Ok(())
    }

    async fn check_http1(&self, service: &Service) -> Result<()> {
        let expect = async |path: &str, headers: &str, status: u16| -> Result<Reply> {
            let reply = self.get(service, path, headers).await;
            let reply = reply.map_err(|failure| anyhow::anyhow!("{path}: {}", failure.kind()))?;
            ensure!(reply.status == status, "{path}: status {}, not {status}", reply.status);
            Ok(reply)
        };
        for route in &ROUTES {
            let header = match route.header {
                Some((name, value)) if !name.starts_with(':') => format!("{name}: {value}\r\n"),
                _ => String::new(),
            };
            let reply = expect(route.sample, &header, 200).await?;
            let revision = route.shows_revision.then(|| service.revision.to_string());
            let shown = reply.header(REVISION_HEADER);
            ensure!(shown == revision.as_deref(), "{}: took another route", route.sample);
        }
        let forbidden = format!("{FORBIDDEN_PREFIX}/users");
        expect(&forbidden, "", 403).await?;
        let dotted = format!("/x/..{FORBIDDEN_PREFIX}/users");
        expect(&dotted, "", 403).await.map(drop)
    }

    async fn check_echo(&self, service: &Service) -> Result<()> {
        let failed = |failure: Failure| anyhow::anyhow!("{}", failure.kind().to_owned());
        let mut stream = self.lane.open(&service.address().to_string()).await.map_err(failed)?;
        stream.writer().write_chunk(Bytes::from_static(b"echo")).await?;
        let chunk = stream.reader().chunk().await.context("the tunnel was closed")??;
        ensure!(chunk == "echo", "something else comes back");
        Ok(())
    }

    /// Asks every few milliseconds until `seen` holds for an answer.
    pub async fn until(
        &self,
        service: &Service,
        seen: impl Fn(&Reply) -> bool,
    ) -> Result<Duration> {
        let since = Instant::now();
        let path = format!("{REVISION_PATH}?who");
        while since.elapsed() < CHANGE_LIMIT {
            if let Ok(reply) = self.get(service, &path, "").await
                && seen(&reply)
            {
                return Ok(since.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        anyhow::bail!("the change is not in use after {CHANGE_LIMIT:?}")
    }
}

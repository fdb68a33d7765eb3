//! Bytes through tunnels: both ends in one thread, over loopback and mTLS.

#![allow(missing_docs, clippy::unwrap_used)] // made by Criterion's macros; a benchmark may panic

use benches::world::{CLIENT, POD, TRUST_DOMAIN};
use bytes::Bytes;
use cairn_hbone::{
    Connect, ConnectHeaders, Drain, Originator, OriginatorConfig, OriginatorCounters, Terminator,
    TerminatorConfig, TerminatorCounters, TunnelStream,
};
use cairn_identity::dev::DevCa;
use cairn_identity::{ExpectedPeers, Identity, SpiffeId};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const AUTHORITY: &str = "10.244.0.10:9000";

struct Ends {
    originator: Originator,
    server: SocketAddr,
    expected: ExpectedPeers,
}

fn identity(authority: &DevCa, id: &str) -> Identity {
    let id = SpiffeId::parse(id).unwrap();
    Identity::fixed(authority.issue(&id, Duration::from_secs(3600)).unwrap())
}

async fn echo(connect: Connect) {
    let mut stream = connect.accept().unwrap().stream;
    while let Some(Ok(chunk)) = stream.reader().chunk().await {
        if stream.writer().write_chunk(chunk).await.is_err() {
            return;
        }
    }
}

impl Ends {
    async fn open() -> Ends {
        let authority = DevCa::new(TRUST_DOMAIN).unwrap();
        let terminator = Terminator::new(
            identity(&authority, POD),
            TerminatorConfig::default(),
            Arc::new(TerminatorCounters::default()),
        );
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let server = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let drain = Drain::new();
            while let Ok((tcp, peer)) = listener.accept().await {
                let (terminator, watch) = (terminator.clone(), drain.watch());
                tokio::spawn(async move {
                    let on_connect = |connect| drop(tokio::spawn(echo(connect)));
                    let _how_it_ended = terminator.serve(tcp, peer, watch, on_connect).await;
                });
            }
        });
        let originator = Originator::new(
            identity(&authority, CLIENT),
            OriginatorConfig::default(),
            Arc::new(OriginatorCounters::default()),
        );
        Ends { originator, server, expected: ExpectedPeers::parse([POD]).unwrap() }
    }

    async fn tunnel(&self) -> TunnelStream {
        let headers = ConnectHeaders::default();
        let tunnel = self.originator.connect(self.server, &self.expected, AUTHORITY, &headers);
        tunnel.await.unwrap()
    }
}

/// There and back, `count` times.
async fn exchange(stream: &mut TunnelStream, payload: &Bytes, count: u64) {
    for _ in 0..count {
        stream.writer().write_chunk(payload.clone()).await.unwrap();
        let mut left = payload.len();
        while left > 0 {
            left -= stream.reader().chunk().await.unwrap().unwrap().len();
        }
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn round_trip(criterion: &mut Criterion) {
    let runtime = runtime();
    let ends = runtime.block_on(Ends::open());
    let mut group = criterion.benchmark_group("tunnel, there and back");
    for (bytes, tunnels) in [(64, 1), (64, 32), (16 << 10, 1), (64 << 10, 8)] {
        let payload = Bytes::from(vec![b'x'; bytes]);
        let mut open: Vec<_> = (0..tunnels).map(|_| runtime.block_on(ends.tunnel())).collect();
        group.throughput(Throughput::Bytes(bytes as u64));
        let id = BenchmarkId::new(format!("{bytes} bytes"), format!("{tunnels} tunnels"));
        group.bench_function(id, |bencher| {
            bencher.iter_custom(|iterations| {
                let each = iterations.div_ceil(tunnels);
                let started = Instant::now();
                open = runtime.block_on(async {
                    let mut all = JoinSet::new();
                    for mut stream in std::mem::take(&mut open) {
                        let payload = payload.clone();
                        all.spawn(async move {
                            exchange(&mut stream, &payload, each).await;
                            stream
                        });
                    }
                    all.join_all().await
                });
                // Rounded up to a multiple of the tunnels, and here back again.
                started.elapsed().mul_f64(iterations as f64 / (each * tunnels) as f64)
            });
        });
    }
    group.finish();
}

fn connect(criterion: &mut Criterion) {
    let runtime = runtime();
    let ends = runtime.block_on(Ends::open());
    let mut group = criterion.benchmark_group("tunnel");
    group.bench_function("CONNECT", |bencher| {
        bencher.iter(|| drop(runtime.block_on(ends.tunnel())));
    });
    group.bench_function("TLS and CONNECT", |bencher| {
        bencher.iter(|| {
            drop(runtime.block_on(ends.tunnel()));
            ends.originator.close_idle();
        });
    });
    group.finish();
}

criterion_group!(benches, round_trip, connect);
criterion_main!(benches);

//! A member of a pool that says what it is told to: `GET /load`, scripted.

use crate::wire::Wire;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// How a member answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// With its report.
    Report,
    /// Never, on an open connection.
    Hang,
    /// With 200 and no JSON.
    Garbage,
    /// With 200 and a body that does not end.
    Endless,
    /// With 500.
    Status500,
    /// With a report of the next schema.
    NextSchema,
    /// By closing each connection.
    Close,
}

/// What a member does.
#[derive(Debug, Clone)]
pub struct Work {
    /// Requests in flight, of 100 that it can have.
    pub in_flight: f64,
    /// HBONE connections.
    pub connections: u64,
    /// Takes traffic.
    pub ready: bool,
    /// Finishes what it has.
    pub draining: bool,
    /// What it has refused.
    pub shed: u64,
    /// Milliseconds from exec to ready.
    pub cold_start: f64,
    /// Requests in flight by namespace, of mesh `m`.
    pub tenants: Vec<(&'static str, f64)>,
    /// Size beside the reference member.
    pub units: f64,
}

impl Default for Work {
    fn default() -> Self {
        Work {
            in_flight: 0.0,
            connections: 0,
            ready: true,
            draining: false,
            shed: 0,
            cold_start: 500.0,
            tenants: Vec::new(),
            units: 1.0,
        }
    }
}

/// A running member; it is gone when this is dropped.
pub struct Member {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

struct State {
    name: String,
    manner: Manner,
    work: Work,
    start: Instant,
    /// Integral of the requests in flight until `since`.
    integral: f64,
    since: Instant,
    polls: usize,
    connections: usize,
}

impl State {
    /// Counts what was in flight until now.
    fn count(&mut self) {
        let now = Instant::now();
        self.integral += self.work.in_flight * (now - self.since).as_secs_f64();
        self.since = now;
    }

    fn report(&mut self) -> Value {
        self.count();
        let work = &self.work;
        let tenants: Vec<Value> = work
            .tenants
            .iter()
            .map(|(name, in_flight)| json!({ "mesh": "m", "namespace": name, "in_flight": in_flight }))
            .collect();
        json!({
            "version": if self.manner == Manner::NextSchema { 2 } else { 1 },
            "instance": self.name,
            "zone": "z1",
            "uptime_seconds": self.start.elapsed().as_secs_f64(),
            "ready": work.ready,
            "draining": work.draining,
            "capacity": { "in_flight": 100.0 * work.units, "units": work.units },
            "in_flight": work.in_flight,
            "in_flight_seconds_total": self.integral,
            "shed_total": work.shed,
            "connections": { "hbone": work.connections, "tunnels": 2 * work.connections, "upstream": 1 },
            "cold_start": { "ready_milliseconds": work.cold_start },
            "tenants": tenants,
            "of_a_later_version": { "is": "no harm" },
        })
    }
}

impl Member {
    /// Starts one on loopback.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn start(name: &str, work: Work) -> Self {
        Self::start_at((IpAddr::from([127, 0, 0, 1]), 0).into(), name, work).await
    }

    /// Starts one at this address.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn start_at(address: SocketAddr, name: &str, work: Work) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let now = Instant::now();
        let state = Arc::new(Mutex::new(State {
            name: name.to_owned(),
            manner: Manner::Report,
            work,
            start: now,
            integral: 0.0,
            since: now,
            polls: 0,
            connections: 0,
        }));
        let task = tokio::spawn(accept(listener, Arc::clone(&state)));
        Member { address, state, task }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers so from here on.
    pub fn behaves(&self, manner: Manner) {
        self.state.lock().unwrap().manner = manner;
    }

    /// Does that from here on.
    pub fn works(&self, change: impl FnOnce(&mut Work)) {
        let mut state = self.state.lock().unwrap();
        state.count();
        change(&mut state.work);
    }

    /// Times that it was asked.
    pub fn polls(&self) -> usize {
        self.state.lock().unwrap().polls
    }

    /// Connections that were made.
    pub fn connections(&self) -> usize {
        self.state.lock().unwrap().connections
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>) {
    let mut open = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        state.lock().unwrap().connections += 1;
        open.spawn(serve(stream, Arc::clone(&state)));
    }
}

async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut wire = Wire::new(stream);
    while let Ok(Some(line)) = wire.line().await {
        if wire.fields().await.is_err() {
            return;
        }
        let (manner, report) = {
            let mut state = state.lock().unwrap();
            state.polls += 1;
            (state.manner, state.report().to_string())
        };
        let answer = |status: &str, body: &str| {
            format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        };
        let answer = match manner {
            _ if !line.starts_with("GET /load ") => answer("404 Not Found", ""),
            Manner::Report | Manner::NextSchema => answer("200 OK", &report),
            Manner::Hang => return std::future::pending().await,
            Manner::Garbage => answer("200 OK", "<html>no report"),
            Manner::Status500 => answer("500 Internal Server Error", &report),
            Manner::Close => return,
            Manner::Endless => {
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                let mut sent = wire.send(head.as_bytes()).await;
                let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
                while sent.is_ok() {
                    sent = wire.send(chunk.as_bytes()).await;
                }
                return;
            }
        };
        if wire.send(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

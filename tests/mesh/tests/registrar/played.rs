//! A member of the pool, played: readiness, load and drain on a pod's address.

use cairn_test_support::wire::Wire;
use serde_json::json;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// What it says.
#[derive(Debug, Clone)]
pub struct State {
    /// Name of this run of it.
    pub instance: &'static str,
    /// Seconds since its start.
    pub uptime: f64,
    /// Requests in flight.
    pub in_flight: f64,
    /// 503 with this text instead of 200.
    pub not_ready: Option<&'static str>,
    /// Does not answer on open connections.
    pub hangs: bool,
    /// Status of the answer to a drain order.
    pub drain_status: u16,
    /// Drain orders: what each shows for authorization.
    pub drains: Vec<String>,
}

/// A running member; it is dead when this is dropped.
pub struct Played {
    state: Arc<Mutex<State>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Played {
    /// On the two ports of a member.
    pub async fn start(ip: &str) -> Played {
        let state = Arc::new(Mutex::new(State {
            instance: "run",
            uptime: 1000.0,
            in_flight: 40.0,
            not_ready: None,
            hangs: false,
            drain_status: 200,
            drains: Vec::new(),
        }));
        let mut tasks = Vec::new();
        for port in [15020, 15021] {
            let address: SocketAddr = format!("{ip}:{port}").parse().unwrap();
            let listener = TcpListener::bind(address).await.unwrap();
            tasks.push(tokio::spawn(accept(listener, Arc::clone(&state))));
        }
        Played { state, tasks }
    }

    /// Says so from here on.
    pub fn says(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// What it says.
    pub fn state(&self) -> State {
        self.state.lock().unwrap().clone()
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>) {
    let mut open = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        open.spawn(serve(stream, Arc::clone(&state)));
    }
}

async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut wire = Wire::new(stream);
    while let Ok(Some(line)) = wire.line().await {
        let Ok(fields) = wire.fields().await else { return };
        let (status, body) = {
            let mut state = state.lock().unwrap();
            let draining = state.not_ready == Some("draining");
            match line.split(' ').take(2).collect::<Vec<_>>()[..] {
                _ if state.hangs => (0, String::new()),
                ["GET", "/healthz/ready"] => match state.not_ready {
                    Some(reason) => (503, format!("{reason}\n")),
                    None => (200, "ready\n".to_owned()),
                },
                ["GET", "/load"] => {
                    let report = json!({
                        "version": 1, "instance": state.instance, "uptime_seconds": state.uptime,
                        "ready": state.not_ready.is_none(), "draining": draining,
                        "in_flight": state.in_flight, "config_age_seconds": 5.0,
                    });
                    (200, report.to_string())
                }
                ["POST", "/drain"] => {
                    let shown = fields.get("authorization").unwrap_or_default().to_owned();
                    state.drains.push(shown);
                    (state.drain_status, String::new())
                }
                _ => (404, String::new()),
            }
        };
        if status == 0 {
            return std::future::pending().await;
        }
        let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        if wire.send(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

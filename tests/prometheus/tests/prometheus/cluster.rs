//! An API server that is played: it has nothing, takes everything, and gives tokens and a Lease to who asks.

use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Starts it, and writes a kubeconfig for it.
pub async fn start(kubeconfig: &Path) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    std::fs::write(kubeconfig, config(address).to_string()).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
}

fn config(address: SocketAddr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "played",
        "clusters": [{ "name": "played", "cluster": { "server": format!("http://{address}") } }],
        "users": [{ "name": "played", "user": { "token": "a-token" } }],
        "contexts": [{ "name": "played", "context": { "cluster": "played", "user": "played" } }],
    })
}

/// One request of a connection, which ends with it.
async fn answer(mut stream: TcpStream) {
    let mut read = Vec::new();
    let end = loop {
        if stream.read_buf(&mut read).await.is_ok_and(|count| count == 0) {
            return;
        }
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.map_or(0, |length| length.trim().parse().unwrap());
    while read.len() < end + length {
        if stream.read_buf(&mut read).await.is_ok_and(|count| count == 0) {
            return;
        }
    }
    let mut words = head.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split('?').next().unwrap_or_default();
    let (status, body) = of(method, path, serde_json::from_slice(&read[end..]).ok());
    let text = body.to_string();
    let page = format!(
        "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{text}",
        text.len()
    );
    let _gone = stream.write_all(page.as_bytes()).await;
}

fn of(method: &str, path: &str, sent: Option<Value>) -> (u16, Value) {
    let after = path.split_once("/namespaces/").map_or("", |(_, after)| after);
    let is_list = after.split('/').count() == 2;
    match (method, sent) {
        _ if path.ends_with("/scale") => {
            let metadata = json!({ "name": "waypoint", "resourceVersion": "1" });
            let replicas = json!({ "replicas": 2 });
            let kind = json!({
                "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata,
                "spec": replicas, "status": replicas,
            });
            (200, kind)
        }
        ("post", _) if path.ends_with("/token") => {
            let status = json!({ "token": "t", "expirationTimestamp": "2999-01-01T00:00:00Z" });
            (201, json!({ "kind": "TokenRequest", "metadata": {}, "status": status }))
        }
        ("get", _) if is_list => {
            (200, json!({ "apiVersion": "v1", "kind": "List", "metadata": {}, "items": [] }))
        }
        ("post" | "put" | "patch", Some(object)) => (200, object),
        _ => {
            let status = json!({
                "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
                "message": "there is none", "reason": "NotFound", "code": 404,
            });
            (404, status)
        }
    }
}

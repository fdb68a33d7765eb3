//! `cairn proxy` as a process: start, requests through `cairn curl`, reload, signals.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const WAYPOINT: &str = "spiffe://cluster.local/ns/shop/sa/waypoint";
const SERVICE: &str = "10.96.0.10:80";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
/// Nothing here takes longer, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running `cairn proxy` with a plain backend.
struct Proxy {
    dir: TempDir,
    child: Child,
    log: Log,
    curl: Curl,
    admin: SocketAddr,
    health: SocketAddr,
    backend: SocketAddr,
}

/// The process' log lines, as JSON.
struct Log {
    lines: mpsc::Receiver<serde_json::Value>,
    /// Came while another was waited for.
    passed: RefCell<Vec<serde_json::Value>>,
}

impl Log {
    fn of(child: &mut Child) -> Log {
        let stderr = child.stderr.take().unwrap();
        let (sender, lines) = mpsc::sync_channel(1024);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(serde_json::Value::String(line));
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Log { lines, passed: RefCell::default() }
    }

    /// Waits for a line with this in its message; each line is found once.
    fn wait(&self, message: &str) -> serde_json::Value {
        let until = Instant::now() + PATIENCE;
        let wanted = |line: &serde_json::Value| {
            line["message"].as_str().is_some_and(|found| found.contains(message))
        };
        let mut passed = self.passed.borrow_mut();
        if let Some(index) = passed.iter().position(wanted) {
            return passed.remove(index);
        }
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if wanted(&line) => return line,
                Ok(line) => passed.push(line),
                Err(_) => panic!("no line with `{message}` in {passed:?}"),
            }
        }
    }

    fn address(&self, message: &str) -> SocketAddr {
        self.wait(message)["address"].as_str().unwrap().parse().unwrap()
    }
}

/// `cairn curl` to a running proxy.
struct Curl {
    certs: PathBuf,
    hbone: SocketAddr,
}

impl Curl {
    /// As `web`, to the service, which is expected at the right waypoint.
    fn get(&self, more: &[&str]) -> Output {
        self.get_as(WAYPOINT, SERVICE, more)
    }

    fn get_as(&self, expect: &str, to: &str, more: &[&str]) -> Output {
        self.get_url("http://app.shop/hello", expect, to, more)
    }

    fn get_url(&self, url: &str, expect: &str, to: &str, more: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_cairn"))
            .current_dir(&self.certs)
            .args(["curl", url, "--to", to, "--expect", expect])
            .args(["--cert", "shop.web.cert.pem", "--key", "shop.web.key.pem"])
            .args(["--roots", "roots.pem", "--waypoint", &self.hbone.to_string()])
            .args(more)
            .output()
            .unwrap()
    }
}

impl Proxy {
    fn start() -> Proxy {
        Proxy::start_with("")
    }

    /// With more at the top of the configuration.
    fn start_with(top: &str) -> Proxy {
        let dir = tempfile::tempdir().unwrap();
        issue(dir.path());
        let backend = backend();
        write_config(dir.path(), backend, "/");
        let file = dir.path().join("mesh.yaml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("{top}{text}")).unwrap();
        let mut child = spawn(dir.path());
        let log = Log::of(&mut child);
        let admin = log.address("admin pages");
        let health = log.address("health pages");
        let hbone = log.address("HBONE");
        let curl = Curl { certs: dir.path().join("certs"), hbone };
        Proxy { dir, child, log, curl, admin, health, backend }
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    fn exit_code(&mut self) -> Option<i32> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            pause();
        }
        panic!("it does not end");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It has ended by itself where a test got that far.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_cairn"))
        .current_dir(dir)
        .args(["proxy", "--config", "mesh.yaml", "--workers", "1", "--log-format", "json"])
        .args(["--admin", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--health", "127.0.0.1:0"])
        .args(["--drain-limit", "20s"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn issue(dir: &Path) {
    let status = Command::new(env!("CARGO_BIN_EXE_cairn"))
        .current_dir(dir)
        .args(["certs", "issue", "--out", "certs", WAYPOINT, WEB])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}

fn write_config(dir: &Path, backend: SocketAddr, prefix: &str) {
    let text = format!(
        "meshes:
  - name: mesh
    listen: 127.0.0.1:0
    identity:
      files:
        cert: certs/shop.waypoint.cert.pem
        key: certs/shop.waypoint.key.pem
        roots: certs/roots.pem
    destinations:
      - name: app
        addresses: [10.96.0.10]
        port: 80
        http:
          routes:
            virtual_hosts:
              - name: app
                domains: ['*']
                routes:
                  - match: {{ path: {{ prefix: {prefix} }} }}
                    route: {{ cluster: app }}
    clusters:
      - name: app
    endpoints:
      - cluster: app
        endpoints:
          - {{ address: '{backend}', transport: plain }}
"
    );
    let part = dir.join("mesh.part");
    std::fs::write(&part, text).unwrap();
    std::fs::rename(part, dir.join("mesh.yaml")).unwrap();
}

/// Answers every request with its path, and one for `/slow` after a while.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || answer(stream));
        }
    });
    address
}

fn answer(mut stream: TcpStream) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let path = head.split(' ').nth(1).unwrap().to_owned();
        if path == "/slow" {
            slow();
        }
        let body = format!("backend saw {path}");
        let length = body.len();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a thread of a test, without a runtime")]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}

#[expect(clippy::disallowed_methods, reason = "a thread of a test, without a runtime")]
fn slow() {
    std::thread::sleep(Duration::from_millis(1500));
}

/// Status and body.
fn page(at: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(at).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn curl_shows_every_step_and_its_exit_codes_tell_them_apart() {
    let proxy = Proxy::start();
    let output = proxy.curl.get(&[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    let connect = format!("CONNECT 10.96.0.10:80 at {}: 200\nHTTP/1.1 200 OK\n", proxy.curl.hbone);
    assert!(text.starts_with(&connect), "{text}");
    assert!(
        text.contains("server: istio-envoy\n") && text.ends_with("backend saw /hello"),
        "{text}"
    );

    let output = proxy.curl.get(&["--silent", "--h2c"]);
    assert_eq!(stdout(&output), "backend saw /hello", "{}", stderr(&output));
    let output = proxy.curl.get(&["--fail", "-X", "GET", "--upgrade", "websocket"]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "a refused upgrade is an answer: {}",
        stdout(&output)
    );

    let output = proxy.curl.get_as(WAYPOINT, "10.96.0.99:80", &[]);
    assert_eq!(output.status.code(), Some(6), "{}", stderr(&output));
    assert!(stderr(&output).contains("404"), "{}", stderr(&output));
    let wrong = "spiffe://cluster.local/ns/shop/sa/other";
    let output = proxy.curl.get_as(wrong, SERVICE, &[]);
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert!(stderr(&output).contains(wrong), "{}", stderr(&output));
}

#[test]
fn a_change_is_published_and_a_mistake_keeps_the_last_good_one() {
    let proxy = Proxy::start();
    assert!(proxy.curl.get(&[]).status.success());

    write_config(proxy.dir.path(), proxy.backend, "/other");
    proxy.log.wait("configuration published");
    assert!(
        stdout(&proxy.curl.get(&[])).contains("HTTP/1.1 404"),
        "no route leads to /hello any more"
    );

    let good = std::fs::read_to_string(proxy.dir.path().join("mesh.yaml")).unwrap();
    std::fs::write(proxy.dir.path().join("mesh.yaml"), good.replace("port: 80", "port: x"))
        .unwrap();
    let line = proxy.log.wait("mesh.yaml:");
    assert!(line["message"].as_str().unwrap().contains("port"), "{line}");
    proxy.log.wait("last good one stays");
    assert!(stdout(&proxy.curl.get(&[])).contains("HTTP/1.1 404"));

    write_config(proxy.dir.path(), proxy.backend, "/");
    proxy.log.wait("configuration published");
    assert!(stdout(&proxy.curl.get(&[])).contains("HTTP/1.1 200"));
    assert!(page(proxy.admin, "GET", "/clusters").1.contains("app::"));
}

#[test]
fn meshes_come_and_go_while_others_run() {
    let proxy = Proxy::start();
    let file = proxy.dir.path().join("mesh.yaml");
    let one = std::fs::read_to_string(&file).unwrap();
    let second = "  - name: second
    listen: 127.0.0.1:0
    identity: { dev: { id: 'spiffe://other/ns/a/sa/b' } }
";
    std::fs::write(&file, format!("{one}{second}")).unwrap();
    let line = proxy.log.wait("HBONE");
    assert_eq!(line["mesh"], "second");
    let config: serde_json::Value =
        serde_json::from_str(&page(proxy.admin, "GET", "/config").1).unwrap();
    assert_eq!(config["meshes"].as_array().unwrap().len(), 2);
    assert!(page(proxy.admin, "GET", "/clusters").1.contains("mesh/app::"));

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let third = second.replace("second", "third");
    let third = third.replace("127.0.0.1:0", &taken.local_addr().unwrap().to_string());
    std::fs::write(&file, format!("{one}{third}")).unwrap();
    assert_eq!(proxy.log.wait("mesh removed")["mesh"], "second");
    assert_eq!(proxy.log.wait("waiting")["mesh"], "third");
    assert_eq!(page(proxy.health, "GET", "/healthz/ready").0, 200, "the others are ready");
    drop(taken);
    assert_eq!(proxy.log.wait("HBONE")["mesh"], "third");
    assert!(proxy.curl.get(&[]).status.success());

    std::fs::write(&file, one.replace("listen: 127.0.0.1:0", "listen: 127.0.0.1:1")).unwrap();
    assert_eq!(proxy.log.wait("after a restart")["field"], "listen");
    assert!(proxy.curl.get(&[]).status.success());
}

#[test]
fn sigterm_finishes_what_is_in_flight_and_exits_0() {
    let mut proxy = Proxy::start();
    assert_eq!(page(proxy.health, "GET", "/healthz/ready"), (200, "ready\n".to_owned()));
    let output = std::thread::scope(|scope| {
        let curl = &proxy.curl;
        let request =
            scope.spawn(|| curl.get_url("http://app.shop/slow", WAYPOINT, SERVICE, &["--silent"]));
        let busy = |clusters: &str| clusters.lines().any(|line| line.ends_with("rq_active::1"));
        let until = Instant::now() + PATIENCE;
        while !busy(&page(proxy.admin, "GET", "/clusters").1) {
            assert!(Instant::now() < until, "the request does not arrive");
            pause();
        }
        proxy.signal("-TERM");
        proxy.log.wait("draining");
        request.join().unwrap()
    });
    assert_eq!(stdout(&output), "backend saw /slow", "{}", stderr(&output));
    assert_eq!(proxy.exit_code(), Some(0));
}

#[test]
fn quitquitquit_ends_it() {
    let mut proxy = Proxy::start();
    assert_eq!(page(proxy.admin, "POST", "/quitquitquit").0, 200);
    assert_eq!(proxy.exit_code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut proxy = Proxy::start_with("drain: { grace: 10m }\n");
    proxy.signal("-TERM");
    proxy.log.wait("draining");
    assert_eq!(page(proxy.health, "GET", "/healthz/ready"), (503, "draining\n".to_owned()));
    assert!(proxy.curl.get(&[]).status.success(), "during the grace time everything is served");
    proxy.signal("-INT");
    assert_eq!(proxy.exit_code(), Some(1));
}

#[test]
fn a_certificate_that_is_not_there_yet_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    write_config(dir.path(), backend(), "/");
    let mut child = spawn(dir.path());
    let log = Log::of(&mut child);
    let health = log.address("health pages");
    log.wait("waiting");
    let (status, body) = page(health, "GET", "/healthz/ready");
    assert_eq!(status, 503);
    assert!(body.contains("mesh mesh") && body.contains("shop.waypoint"), "{body}");
    issue(dir.path());
    let hbone = log.address("HBONE");
    assert_eq!(page(health, "GET", "/healthz/ready").0, 200);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_ne!(hbone.port(), 0);
}

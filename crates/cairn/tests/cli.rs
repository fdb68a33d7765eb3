//! The binary through its front door.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn cairn(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cairn")).args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn config(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config").join(name)
}

#[test]
fn version_and_help() {
    let output = cairn(&["version"]);
    assert!(output.status.success());
    assert_eq!(stdout(&output), format!("cairn {}\n", env!("CARGO_PKG_VERSION")));
    let help = stdout(&cairn(&["--help"]));
    for command in ["demo", "proxy", "check", "curl", "certs", "version"] {
        assert!(help.contains(command), "{command} in {help}");
    }
    assert!(stdout(&cairn(&["curl", "--help"])).contains("Exit codes"));
}

#[test]
fn the_shipped_configurations_are_valid() {
    for entry in std::fs::read_dir(config("")).unwrap() {
        let path = entry.unwrap().path();
        // Recorded loads, for `cairn scaler simulate`.
        if path.ends_with("traces") {
            continue;
        }
        let output = cairn(&["check", path.to_str().unwrap()]);
        assert!(output.status.success(), "{}: {}", path.display(), stderr(&output));
        assert!(stdout(&output).contains("mesh"), "{}", stdout(&output));
    }
}

#[test]
fn a_broken_configuration_is_explained_by_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let good = std::fs::read_to_string(config("minimal.yaml")).unwrap();
    for (name, from, to, word) in [
        ("type.yaml", "port: 80", "port: eighty", "port"),
        ("field.yaml", "hosts:", "hots:", "hots"),
        ("regex.yaml", "{ prefix: / }", "{ regex: '(' }", "regex"),
    ] {
        let path = dir.path().join(name);
        let line = good.lines().position(|line| line.contains(from)).unwrap() + 1;
        std::fs::write(&path, good.replace(from, to)).unwrap();
        let output = cairn(&["check", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        let text = stderr(&output);
        assert!(text.contains(&format!("{name}:{line}:")), "{text}");
        assert!(text.contains(word), "{text}");
    }
    let output = cairn(&["check", "/does/not/exist.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/does/not/exist.yaml"));
}

#[test]
fn certificates_are_issued_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    let id = "spiffe://cluster.local/ns/shop/sa/web";
    let output = cairn(&["certs", "issue", "--out", out, "--ttl", "1h", id]);
    assert!(output.status.success(), "{}", stderr(&output));
    let cert = dir.path().join("shop.web.cert.pem");
    let shown = stdout(&cairn(&["certs", "show", cert.to_str().unwrap()]));
    assert!(shown.contains(id), "{shown}");
    let output = cairn(&["certs", "issue", "--out", out, "web"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("spiffe://"));
}

#[test]
fn curl_names_a_waypoint_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let id = "spiffe://cluster.local/ns/shop/sa/web";
    assert!(cairn(&["certs", "issue", "--out", dir.path().to_str().unwrap(), id]).status.success());
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = cairn(&[
        "curl",
        "http://app.shop/",
        "--waypoint",
        &free.to_string(),
        "--expect",
        id,
        "--cert",
        &file("shop.web.cert.pem"),
        "--key",
        &file("shop.web.key.pem"),
        "--roots",
        &file("roots.pem"),
    ]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    assert!(stderr(&output).contains(&free.to_string()));
}

#[cfg(unix)]
#[test]
fn a_cluster_gets_what_the_pool_needs_and_its_mistakes_are_found() {
    let install = cairn(&["pool", "install", "--port", "21001", "--prefer-close"]);
    assert!(install.status.success(), "{}", stderr(&install));
    let text = stdout(&install);
    let documents = text.split("\n---\n").count();
    assert_eq!(documents, 5, "{text}");
    for line in ["  gatewayClassName: istio-waypoint", "      hbone: 21001", "--subresource=status"]
    {
        assert!(text.contains(line), "{line} in {text}");
    }
    let taken = cairn(&["pool", "install", "--port", "15008"]);
    assert_eq!(taken.status.code(), Some(1));
    assert!(stderr(&taken).contains("port 15008"), "{}", stderr(&taken));

    let dir = tempfile::tempdir().unwrap();
    let objects = dir.path().join("objects.json");
    let write = |text: &str| std::fs::write(&objects, text).unwrap();
    let lint = || cairn(&["pool", "lint", "--port", "21001", objects.to_str().unwrap()]);
    write(r#"{"kind": "List", "items": []}"#);
    let empty = lint();
    assert_eq!(empty.status.code(), Some(3), "{}", stderr(&empty));
    assert!(stdout(&empty).contains("error [no-gateway] Gateway waypoint-pool/waypoint-pool"));
    assert!(stderr(&empty).contains("3 errors, 0 warnings"));
    for bad in ["", "{", "[1]", "7"] {
        write(bad);
        let refused = lint();
        assert_eq!(refused.status.code(), Some(1), "{bad}");
        assert!(stderr(&refused).contains("kubectl get -o json"), "{}", stderr(&refused));
    }
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    use std::process::Stdio;
    let mut child = Command::new(env!("CARGO_BIN_EXE_cairn"))
        .args(["demo", "--once"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_demo_is_as_expected() {
    let output = cairn(&["demo", "--once"]);
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("All as expected.") && !text.contains("FAILED"), "{text}");
}

fn grows_and_shrinks(kind: &str) -> String {
    let output = cairn(&["demo", kind, "--once"]);
    let text = stdout(&output);
    assert!(output.status.success(), "{text}\n{}", stderr(&output));
    assert!(text.contains(" 0 failed; at most 8 members, 3 at the end, 0 tunnels cut"), "{text}");
    assert!(text.ends_with("All as expected.\n"), "{text}");
    text
}

#[test]
fn the_fleet_of_the_demo_grows_and_shrinks_and_loses_nothing() {
    grows_and_shrinks("--scale");
}

#[test]
fn the_pool_of_the_demo_serves_two_clusters_with_equal_addresses() {
    let text = grows_and_shrinks("--pool");
    for cluster in ["east", "west"] {
        let begin = format!("{cluster}: ");
        let line = text.lines().find(|line| line.trim_start().starts_with(&begin)).unwrap();
        assert!(line.contains("answered by its own service, 0 failed or by another's"), "{line}");
    }
}

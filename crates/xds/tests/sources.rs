//! Files and directories: merging, reloading, and the way back from a compiled field to its file.
#![allow(clippy::unwrap_used, clippy::panic)]

use cairn_router::compile::Compiler;
use cairn_xds::{Config, FileError, FileSource};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const IDENTITY: &str = "identity: {dev: {id: spiffe://td/ns/n/sa/s}}";

/// A file with the mesh `a` and one destination per name.
fn mesh(destinations: &[&str]) -> String {
    format!("meshes:\n- name: a\n  {IDENTITY}\n{}", list(destinations))
}

/// A file that adds destinations to the mesh `a`.
fn addition(destinations: &[&str]) -> String {
    format!("meshes:\n- name: a\n{}", list(destinations))
}

fn list(destinations: &[&str]) -> String {
    let mut text = String::from("  destinations:\n");
    for name in destinations {
        text.push_str(&format!("  - name: {name}\n    hosts: [{name}]\n    port: 80\n"));
        text.push_str("    tcp: {clusters: [{name: c}]}\n");
    }
    text
}

fn names(config: &Config) -> Vec<&str> {
    config
        .meshes
        .iter()
        .flat_map(|m| &m.resources().destinations)
        .map(|d| d.name.as_str())
        .collect()
}

fn open(path: impl Into<PathBuf>) -> (FileSource, Arc<Config>) {
    let (source, config) = FileSource::open(path).unwrap_or_else(|errors| panic!("{}", errors[0]));
    (source.interval(Duration::from_millis(2)), config)
}

fn refused(path: impl Into<PathBuf>) -> Vec<FileError> {
    match FileSource::open(path) {
        Ok(_) => panic!("accepted"),
        Err(errors) => errors,
    }
}

/// As editors and ConfigMaps do it: a new file in place of the old one.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

#[test]
fn a_directory_is_merged_in_the_order_of_names() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    file("20-b.yml", &addition(&["b1", "b2"]));
    file("10-a.yaml", &mesh(&["a1"]));
    file("30-c.json", r#"{"workers": 3, "meshes": [{"name": "a", "clusters": [{"name": "c"}]}]}"#);
    file("40-commented-out.yaml", "# nothing yet\n");
    file(".hidden.yaml", "broken: [");
    file("notes.txt", "broken: [");
    fs::create_dir(dir.path().join("sub.yaml")).unwrap();
    let (_, config) = open(dir.path());
    assert_eq!(names(&config), ["a1", "b1", "b2"]);
    assert_eq!(config.workers, 3);
    assert_eq!(config.meshes.len(), 1);
    assert_eq!(config.meshes[0].resources().clusters.len(), 1);
}

#[test]
fn what_two_files_set_names_both() {
    let dir = TempDir::new().unwrap();
    let (first, second) = (dir.path().join("1.yaml"), dir.path().join("2.yaml"));
    let both =
        |text: &str| format!("{text}meshes:\n- name: a\n  {IDENTITY}\n  listen: 127.0.0.1:0\n");
    fs::write(&first, both("workers: 1\n")).unwrap();
    fs::write(&second, both("workers: 1\n\n")).unwrap();
    let shown: Vec<String> = refused(dir.path()).iter().map(ToString::to_string).collect();
    let expected = |place: &str, field: &str| {
        format!(
            "{}:{place}: {field}: {} sets this as well; expected in one file only",
            second.display(),
            first.display()
        )
    };
    assert_eq!(
        shown,
        [
            expected("1:10", "workers"),
            expected("6:11", "meshes[0].listen"),
            expected("5:13", "meshes[0].identity"),
        ]
    );
}

#[test]
fn every_broken_file_is_named() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("1.yaml"), "workers: x\n").unwrap();
    fs::write(dir.path().join("2.json"), "{\n").unwrap();
    symlink("nowhere", dir.path().join("3.yaml")).unwrap();
    let errors = refused(dir.path());
    let files: Vec<_> =
        errors.iter().map(|e| e.file.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(files, ["1.yaml", "2.json", "3.yaml"]);
    assert!(errors[2].to_string().contains("3.yaml: cannot be read: "), "{}", errors[2]);
}

#[test]
fn what_is_no_configuration_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("empty")).unwrap();
    fs::write(path("a.toml"), "").unwrap();
    fs::File::create(path("big.yaml"))
        .unwrap()
        .set_len(cairn_xds::file::MAX_YAML_BYTES + 1)
        .unwrap();
    for (name, message) in [
        ("missing.yaml", "cannot be read: No such file"),
        ("empty", "no file in this directory ends with .yaml, .yml or .json"),
        ("a.toml", "expected a name that ends with .yaml, .yml or .json"),
        ("big.yaml", "more than 16 MiB of YAML: split the file, or write JSON"),
    ] {
        let shown = refused(path(name))[0].to_string();
        assert!(shown.contains(name) && shown.contains(message), "{shown}");
    }
    let special = refused("/dev/null");
    assert!(special[0].message.contains("expected a regular file"), "{}", special[0]);
}

#[tokio::test]
async fn a_change_is_seen() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cairn.yaml");
    fs::write(&path, mesh(&["one"])).unwrap();
    let (mut source, first) = open(&path);
    replace(&path, &mesh(&["two"]));
    let second = source.changed().await.unwrap();
    assert_eq!(names(&second), ["two"]);
    assert_eq!(names(&first), ["one"]);
    assert!(Arc::ptr_eq(source.config(), &second));
}

/// Same length, within one tick of the file system's clock: stat says nothing.
#[tokio::test]
async fn a_quick_second_write_is_not_missed() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cairn.yaml");
    fs::write(&path, mesh(&["d00"])).unwrap();
    let (mut source, _) = open(&path);
    for round in 1..30 {
        let name = format!("d{round:02}");
        fs::write(&path, mesh(&[&name])).unwrap();
        // In-place writes may be read half: whatever comes, this comes.
        loop {
            if let Ok(config) = source.changed().await
                && names(&config) == [name.as_str()]
            {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_broken_file_keeps_the_last_good_one() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cairn.yaml");
    fs::write(&path, mesh(&["one"])).unwrap();
    let (mut source, first) = open(&path);

    replace(&path, &mesh(&["one"]).replace("port: 80", "port: http"));
    let errors = source.changed().await.unwrap_err();
    assert_eq!(errors.len(), 1);
    let shown = errors[0].to_string();
    let expected = "cairn.yaml:7:11: meshes[0].destinations[0].port: found `http`, expected an integer from 0 to 65535";
    assert!(shown.ends_with(expected), "{shown}");
    assert!(Arc::ptr_eq(source.config(), &first));

    // Reported once: the next result is that of the next content.
    replace(&path, "meshes: [\n");
    let errors = source.changed().await.unwrap_err();
    assert!(errors[0].message.contains("no valid YAML"), "{}", errors[0]);
    fs::remove_file(&path).unwrap();
    let errors = source.changed().await.unwrap_err();
    assert!(errors[0].message.contains("cannot be read"), "{}", errors[0]);
    assert!(Arc::ptr_eq(source.config(), &first));

    // The old bytes: healed, and the same value.
    replace(&path, &mesh(&["one"]));
    assert!(Arc::ptr_eq(&source.changed().await.unwrap(), &first));
    replace(&path, &mesh(&["two"]));
    assert_eq!(names(&source.changed().await.unwrap()), ["two"]);
}

#[tokio::test]
async fn a_change_that_says_the_same_keeps_the_value() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cairn.yaml");
    fs::write(&path, mesh(&["one"])).unwrap();
    let (mut source, first) = open(&path);
    replace(&path, &format!("# a comment\n\n{}", mesh(&["one"])));
    assert!(Arc::ptr_eq(&source.changed().await.unwrap(), &first));
    // Positions are those of the new text.
    let error = source.explain("a", "destinations[0].port", "x");
    assert_eq!(error.position.unwrap().line, 9);
}

#[tokio::test]
async fn kubernetes_swaps_are_seen() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    for (version, name) in [("..1", "one"), ("..2", "two")] {
        fs::create_dir(path(version)).unwrap();
        fs::write(path(version).join("cairn.yaml"), mesh(&[name])).unwrap();
    }
    symlink("..1", path("..data")).unwrap();
    symlink("..data/cairn.yaml", path("cairn.yaml")).unwrap();
    for root in [path("cairn.yaml"), dir.path().to_owned()] {
        let (mut source, first) = open(root);
        assert_eq!(names(&first), ["one"]);
        symlink("..2", path("..tmp")).unwrap();
        fs::rename(path("..tmp"), path("..data")).unwrap();
        assert_eq!(names(&source.changed().await.unwrap()), ["two"]);
        symlink("..1", path("..tmp")).unwrap();
        fs::rename(path("..tmp"), path("..data")).unwrap();
        assert_eq!(names(&source.changed().await.unwrap()), ["one"]);
    }
}

#[tokio::test]
async fn unchanged_files_keep_their_values() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("1.yaml"), mesh(&["one", "other"])).unwrap();
    fs::write(path("2.yaml"), addition(&["two"])).unwrap();
    let (mut source, first) = open(dir.path());
    let mut compiler = Compiler::new("a");
    let compiled = compiler.compile(first.meshes[0].resources()).unwrap();

    fs::write(path("3.yaml.tmp"), addition(&["three"])).unwrap();
    fs::rename(path("3.yaml.tmp"), path("3.yaml")).unwrap();
    let second = source.changed().await.unwrap();
    assert_eq!(names(&second), ["one", "other", "two", "three"]);
    let again = compiler.compile(second.meshes[0].resources()).unwrap();
    let (before, after) = (first.meshes[0].resources(), second.meshes[0].resources());
    for index in 0..3 {
        assert!(Arc::ptr_eq(&before.destinations[index], &after.destinations[index]));
    }
    for (before, after) in compiled.destinations().zip(again.destinations()) {
        assert!(Arc::ptr_eq(before, after));
    }

    fs::remove_file(path("2.yaml")).unwrap();
    let third = source.changed().await.unwrap();
    assert_eq!(names(&third), ["one", "other", "three"]);
    assert!(Arc::ptr_eq(&after.destinations[3], &third.meshes[0].resources().destinations[2]));
}

#[tokio::test]
async fn a_dropped_wait_loses_nothing() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cairn.yaml");
    fs::write(&path, mesh(&["one"])).unwrap();
    let (mut source, _) = open(&path);
    replace(&path, &mesh(&["two"]));
    let config = loop {
        tokio::select! {
            biased;
            result = source.changed() => break result.unwrap(),
            () = tokio::task::yield_now() => {}
        }
    };
    assert_eq!(names(&config), ["two"]);
}

#[test]
fn errors_of_the_compiler_lead_back_to_the_file() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("1.yaml"), mesh(&["one", "two"])).unwrap();
    let bad = addition(&["three", "four"]).replace("hosts: [four]", "hosts: [x, '*.four']");
    fs::write(
        path("2.yaml"),
        format!("meshes:\n- name: b\n  {IDENTITY}\n  listen: 127.0.0.1:0\n{}", &bad[8..]),
    )
    .unwrap();
    let (source, config) = open(dir.path());
    let errors = Compiler::new("a").compile(config.meshes[0].resources()).unwrap_err();
    let explain = |field: &str| source.explain("a", field, "wrong");
    let shown = source.explain("a", &errors[0].path, &errors[0].message).to_string();
    let expected =
        format!("{}:12:16: meshes[1].destinations[1].hosts[1]: ", path("2.yaml").display());
    assert!(shown.starts_with(&expected), "{shown}");

    // Fields of the first file, of no entry, of nothing.
    assert_eq!(
        explain("destinations[1].port").to_string(),
        format!("{}:11:11: meshes[0].destinations[1].port: wrong", path("1.yaml").display())
    );
    assert_eq!(explain("destinations[9]").position.unwrap().line, 5);
    assert_eq!(explain("…").position.unwrap().line, 2);
    let unknown = source.explain("c", "destinations[0]", "wrong").to_string();
    assert_eq!(unknown, format!("{}: destinations[0]: wrong", dir.path().display()));

    // A text that has changed meanwhile has no positions.
    fs::write(path("1.yaml"), "# gone\n").unwrap();
    assert_eq!(explain("destinations[1].port").position, None);
}

#[test]
fn json_errors_of_the_compiler_lead_back_as_well() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cairn.json");
    let text = r#"{"meshes": [{"name": "a", "identity": {"dev": {"id": "spiffe://td/ns/n/sa/s"}},
 "destinations": [
  {"name": "d", "hosts": ["d"], "connection": {"rbac": [{"policies": {
   "a.b[0]": {"permissions": [{"path": {"regex":
    "("}}], "principals": ["any"]}}}]}, "tcp": {"clusters": [{"name": "c"}]}}]}]}"#;
    fs::write(&path, text).unwrap();
    let (source, config) = open(&path);
    let errors = Compiler::new("a").compile(config.meshes[0].resources()).unwrap_err();
    let error = source.explain("a", &errors[0].path, &errors[0].message);
    assert_eq!(error.position.unwrap().line, 5, "{error}");
    assert!(
        error
            .field
            .starts_with("meshes[0].destinations[0].connection.rbac[0].policies[\"a.b[0]\"]"),
        "{error}"
    );
}

#[test]
fn a_summary_says_what_is_there() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cairn.yaml");
    let text = format!(
        "admin: {{address: '0.0.0.0:15000'}}\n{}- name: b\n  listen: 0.0.0.0:15009\n  identity: {{files: {{cert: c.pem, key: k.pem, roots: r.pem}}}}\n",
        mesh(&["one", "two"])
    );
    fs::write(&path, text).unwrap();
    let (_, config) = open(&path);
    assert_eq!(
        cairn_xds::summary(&config),
        "2 meshes, a thread per core
mesh `a` on 0.0.0.0:15008
  identity: spiffe://td/ns/n/sa/s (throw-away authority)
  destinations: 2 (2 TCP)
  routes: 0 in 0 virtual hosts
  clusters: 0
  endpoints: 0
  workloads: 0
mesh `b` on 0.0.0.0:15009
  identity: c.pem
  destinations: 0
  routes: 0 in 0 virtual hosts
  clusters: 0
  endpoints: 0
  workloads: 0
warning: admin.address 0.0.0.0:15000 is not on loopback: whoever reaches it can stop the proxy
warning: mesh `a`: nobody outside this process trusts a `dev` identity
warning: mesh `b` has no destination: every CONNECT gets 404
"
    );
}

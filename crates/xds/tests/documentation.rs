//! The examples of docs/config.md are what the parser and the compiler accept.
#![allow(clippy::unwrap_used, clippy::panic)]

use cairn_router::compile::Compiler;
use cairn_xds::{Config, Format, parse_bytes};

struct Example {
    line: usize,
    /// `yaml complete`, `yaml mesh`, ...
    kind: String,
    text: String,
}

fn documentation() -> String {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/config.md");
    std::fs::read_to_string(file).unwrap()
}

fn examples(page: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut open = false;
    for (index, line) in page.lines().enumerate() {
        // An example may stand in a list item.
        match line.trim_start().strip_prefix("```") {
            Some(_) if open => open = false,
            Some(kind) => {
                open = true;
                let kind = kind.trim().to_owned();
                examples.push(Example { line: index + 1, kind, text: String::new() });
            }
            None if open => examples.last_mut().unwrap().text.extend([line, "\n"]),
            None => {}
        }
    }
    assert!(!open, "a code block has no end");
    examples
}

fn indented(text: &str, columns: usize) -> String {
    text.lines().map(|line| format!("{:columns$}{line}\n", "")).collect()
}

const MESH: &str = "meshes:\n- name: example\n";
const IDENTITY: &str = "  identity: {dev: {id: spiffe://cluster.local/ns/shop/sa/waypoint}}\n";

/// A file around an example that is a part of one. `None`: no example of a configuration.
fn complete(example: &Example) -> Option<(Format, String)> {
    let Example { kind, text, .. } = example;
    let destination = "  destinations:\n  - name: x\n    addresses: [10.0.0.1]\n    http:\n";
    let routes = "routes: {virtual_hosts: []}\n";
    let text = match kind.as_str() {
        "text" => return None,
        "json complete" => return Some((Format::Json, text.clone())),
        "yaml complete" => text.clone(),
        "yaml top" => format!("{text}{MESH}{IDENTITY}"),
        "yaml mesh" => format!("{MESH}{IDENTITY}{}", indented(text, 2)),
        "yaml identity" => format!("{MESH}{}", indented(text, 2)),
        "yaml routes" => {
            format!("{MESH}{IDENTITY}{destination}      routes:\n{}", indented(text, 8))
        }
        "yaml filters" => {
            let filters = indented(text, 6);
            format!("{MESH}{IDENTITY}{destination}      {routes}      filters:\n{filters}")
        }
        other => panic!("docs/config.md:{}: `{other}` is no kind of example", example.line),
    };
    Some((Format::Yaml, text))
}

fn parsed() -> Vec<(Example, Config)> {
    let mut parsed = Vec::new();
    for example in examples(&documentation()) {
        if let Some((format, text)) = complete(&example) {
            match parse_bytes(format, text.as_bytes()) {
                Ok(config) => parsed.push((example, config)),
                Err(errors) => {
                    panic!("docs/config.md:{}: {}\n{text}", example.line, errors[0]);
                }
            }
        }
    }
    parsed
}

#[test]
fn every_example_is_accepted() {
    let parsed = parsed();
    let complete = parsed.iter().filter(|(example, _)| example.kind.ends_with("complete"));
    assert!(complete.count() >= 3);
    assert!(parsed.len() >= 12, "only {} examples", parsed.len());
    for (example, config) in &parsed {
        for mesh in &config.meshes {
            if let Err(errors) = Compiler::new(&mesh.name).compile(mesh.resources()) {
                panic!("docs/config.md:{}: {}", example.line, errors[0]);
            }
        }
    }
}

#[test]
fn complete_examples_compile_without_a_warning() {
    for (example, config) in parsed() {
        if example.kind.ends_with("complete") {
            for mesh in &config.meshes {
                let compiled = Compiler::new(&mesh.name).compile(mesh.resources()).unwrap();
                assert_eq!(compiled.warnings(), [""; 0], "docs/config.md:{}", example.line);
            }
        }
    }
}

/// A field that serde knows and the page does not is a field that nobody finds.
#[test]
fn every_field_is_on_the_page() {
    let page = documentation();
    let mut missing = Vec::new();
    for (place, fields) in known_fields() {
        for field in fields {
            let named = [
                format!("`{field}`"),
                format!(".{field}`"),
                format!("{field}, "),
                format!(", {field}"),
            ];
            if !named.iter().any(|text| page.contains(text.as_str())) {
                missing.push(format!("`{field}` of {place}"));
            }
        }
    }
    assert!(missing.is_empty(), "docs/config.md does not describe {}", missing.join(", "));
}

/// Asks the parser: its message about an unknown field names all that it knows.
fn known_fields() -> Vec<(&'static str, Vec<String>)> {
    let places = [
        ("the top level", "nothing: 1\n"),
        ("drain", "drain: {nothing: 1}\n"),
        ("admin", "admin: {nothing: 1}\n"),
        ("a mesh", "meshes: [{nothing: 1}]\n"),
        ("files", "meshes: [{identity: {files: {nothing: 1}}}]\n"),
        ("limits", "meshes: [{limits: {nothing: 1}}]\n"),
        ("a destination", "meshes: [{destinations: [{nothing: 1}]}]\n"),
        ("http", "meshes: [{destinations: [{http: {nothing: 1}}]}]\n"),
        ("tcp", "meshes: [{destinations: [{tcp: {nothing: 1}}]}]\n"),
        (
            "a virtual host",
            "meshes: [{destinations: [{http: {routes: {virtual_hosts: [{nothing: 1}]}}}]}]\n",
        ),
        (
            "a route",
            "meshes: [{destinations: [{http: {routes: {virtual_hosts: [{routes: [{nothing: 1}]}]}}}]}]\n",
        ),
        (
            "route",
            "meshes: [{destinations: [{http: {routes: {virtual_hosts: [{routes: [{route: {nothing: 1}}]}]}}}]}]\n",
        ),
        (
            "retry",
            "meshes: [{destinations: [{http: {routes: {virtual_hosts: [{routes: [{route: {retry: {nothing: 1}}}]}]}}}]}]\n",
        ),
        (
            "redirect",
            "meshes: [{destinations: [{http: {routes: {virtual_hosts: [{routes: [{redirect: {nothing: 1}}]}]}}}]}]\n",
        ),
        ("a cluster", "meshes: [{clusters: [{nothing: 1}]}]\n"),
        ("tls", "meshes: [{clusters: [{tls: {nothing: 1}}]}]\n"),
        ("an endpoint", "meshes: [{endpoints: [{endpoints: [{nothing: 1}]}]}]\n"),
        ("a workload", "meshes: [{workloads: [{nothing: 1}]}]\n"),
    ];
    places
        .into_iter()
        .map(|(place, text)| {
            let errors = parse_bytes(Format::Yaml, text.as_bytes()).unwrap_err();
            let message = &errors[0].message;
            let (_, list) =
                message.split_once("expected").unwrap_or_else(|| panic!("{place}: {message}"));
            let fields: Vec<String> =
                list.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            assert!(fields.len() > 1, "{place}: {message}");
            (place, fields)
        })
        .collect()
}

#[test]
fn the_sample_files_are_accepted() {
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config");
    for entry in std::fs::read_dir(samples).unwrap() {
        let path = entry.unwrap().path();
        let Some(format) = Format::of(&path) else { continue };
        let config = parse_bytes(format, &std::fs::read(&path).unwrap())
            .unwrap_or_else(|errors| panic!("{}: {}", path.display(), errors[0]));
        for mesh in &config.meshes {
            let compiled = Compiler::new(&mesh.name).compile(mesh.resources());
            compiled.unwrap_or_else(|errors| panic!("{}: {}", path.display(), errors[0]));
        }
    }
}

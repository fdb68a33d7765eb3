//! Every mistake is found at its line, with its field and what was expected.
#![allow(clippy::unwrap_used, clippy::panic)]

use cairn_xds::{Format, parse_bytes};

/// Text, `line:column`, field, part of the message.
type Case<'a> = (&'a str, &'a str, &'a str, &'a str);

fn check(format: Format, cases: &[Case<'_>]) {
    let mut wrong = Vec::new();
    for (text, position, field, message) in cases {
        let shown = match parse_bytes(format, text.as_bytes()) {
            Err(errors) => errors[0].to_string(),
            Ok(_) => "accepted".to_owned(),
        };
        let expected = match *field {
            "" => format!("<input>:{position}: "),
            field => format!("<input>:{position}: {field}: "),
        };
        if !shown.starts_with(&expected) || !shown.contains(message) {
            let text: String = text.chars().take(400).collect();
            wrong.push(format!("expected {expected}{message}\n   found {shown}\n{text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// A mesh with these lines after its identity, which is line 3.
fn mesh(lines: &str) -> String {
    format!("meshes:\n- name: a\n  identity: {{dev: {{id: spiffe://td/ns/n/sa/s}}}}\n{lines}")
}

#[test]
fn yaml_types_and_names() {
    let route = |lines: &str| {
        mesh(&format!(
            "  destinations:\n  - name: d\n    http:\n      routes:\n        virtual_hosts:\n        - name: v\n          \
             domains: ['*']\n          routes:\n{lines}"
        ))
    };
    check(
        Format::Yaml,
        &[
            // Names.
            ("worker: 1\n", "1:1", "worker", "unknown field `worker`, expected one of `workers`"),
            (&mesh("  listenn: x\n"), "4:3", "meshes[0].listenn", "unknown field"),
            ("meshes:\n- listen: 1.2.3.4:5\n", "2:3", "meshes[0]", "missing field `name`"),
            ("meshes:\n- name: a\n", "2:3", "meshes[0].identity", "missing: expected `{files:"),
            ("a: 1\na: 2\n", "2:1", "", "the key `a` is there twice"),
            // Types.
            ("workers: many\n", "1:10", "workers", "found `many`, expected an integer from 0 to"),
            ("workers: '2'\n", "1:10", "workers", "found the string \"2\", expected an integer"),
            ("workers: -1\n", "1:10", "workers", "found `-1`"),
            ("load: {bandwidth: 1GB}\n", "1:19", "load.bandwidth", "1.5Gbit"),
            ("load: {cpu: 0}\n", "1:13", "load.cpu", "above 0"),
            ("load: {tenants: 1001}\n", "1:17", "load.tenants", "1000"),
            ("load: {inflight: 1}\n", "1:8", "load.inflight", "unknown field"),
            ("meshes: {}\n", "1:9", "meshes", "found a map, expected a list"),
            ("meshes:\n", "1:7", "meshes", "found nothing, expected a list"),
            (
                "meshes: [a]\n",
                "1:10",
                "meshes[0]",
                "found `a`, expected a map with fields of `name`",
            ),
            ("- a\n", "1:1", "", "found a list, expected a map with fields of `workers`"),
            (
                "drain:\n  limit: 30\n",
                "2:10",
                "drain.limit",
                "`30` is no duration; write for example",
            ),
            ("admin: {health: 15021}\n", "1:17", "admin.health", "invalid socket address"),
            (&mesh("  listen: here\n"), "4:11", "meshes[0].listen", "invalid socket address"),
            (&mesh("  trust_domains: td\n"), "4:18", "meshes[0].trust_domains", "expected a list"),
            (
                &mesh("  clusters:\n  - name: c\n    connect_timeout: soon\n"),
                "6:22",
                "meshes[0].clusters[0].connect_timeout",
                "`soon` is no duration",
            ),
            (
                &mesh("  clusters:\n  - name:\n"),
                "5:9",
                "meshes[0].clusters[0].name",
                "found nothing, expected a string",
            ),
            (
                &mesh("  clusters:\n  - {name: c}\n  - {name: d, lb: fair}\n"),
                "6:19",
                "meshes[0].clusters[1].lb",
                "unknown variant `fair`, expected one of `least_request`",
            ),
            (
                &mesh("  destinations:\n  - {name: d, port: 70000}\n"),
                "5:21",
                "meshes[0].destinations[0].port",
                "found `70000`, expected an integer from 0 to 65535",
            ),
            (
                &mesh("  destinations:\n  - {name: d, addresses: [10.0.0.0/40]}\n"),
                "5:27",
                "meshes[0].destinations[0].addresses[0]",
                "`10.0.0.0/40` is neither an IP address nor a network",
            ),
            // Choices.
            (
                "meshes:\n- name: a\n  identity: {file: {}}\n",
                "3:14",
                "meshes[0].identity",
                "unknown variant `file`, expected `files` or `dev`",
            ),
            (
                "meshes:\n- name: a\n  identity: dev\n",
                "3:13",
                "meshes[0].identity",
                "`dev` needs a value: write `{dev: ...}`",
            ),
            (
                "meshes:\n- name: a\n  identity: {dev: {id: x}, files: {}}\n",
                "3:13",
                "meshes[0].identity",
                "found a map with 2 keys, expected exactly one of `files`, `dev`",
            ),
            (
                "meshes:\n- name: a\n  identity: {dev: {id: http://td}}\n",
                "3:24",
                "meshes[0].identity.dev.id",
                "must start with spiffe://",
            ),
            (
                "meshes:\n- name: a\n  identity:\n    files: {cert: a, key: b}\n",
                "4:12",
                "meshes[0].identity.files",
                "missing field `roots`",
            ),
            (
                "meshes:\n- name: a\n  identity: [dev]\n",
                "3:13",
                "meshes[0].identity",
                "found a list, expected one of `files`, `dev`",
            ),
            (
                &route("          - match: {path: /x}\n"),
                "12:27",
                "meshes[0].destinations[0].http.routes.virtual_hosts[0].routes[0].match.path",
                "unknown variant `/x`, expected one of `exact`, `prefix`",
            ),
            (
                &route("          - match: {path: {exact: [x]}}\n"),
                "12:35",
                "meshes[0].destinations[0].http.routes.virtual_hosts[0].routes[0].match.path.exact",
                "found a list, expected a string",
            ),
            (
                &route(
                    "          - match:\n              path: {prefix: /}\n              case_sensitive: yes\n",
                ),
                "14:31",
                "meshes[0].destinations[0].http.routes.virtual_hosts[0].routes[0].match.case_sensitive",
                "found `yes`, expected `true` or `false`",
            ),
            // A key that is no plain name is quoted.
            (
                &mesh(
                    "  destinations:\n  - name: d\n    connection:\n      rbac:\n      - policies:\n          ns[a].b:\n            \
                     permissions: [all]\n",
                ),
                "10:27",
                "meshes[0].destinations[0].connection.rbac[0].policies[\"ns[a].b\"].permissions[0]",
                "unknown variant `all`, expected one of `any`",
            ),
            (
                &mesh(
                    "  destinations:\n  - name: d\n    connection:\n      rbac:\n      - policies:\n          a: {permissions: \
                     [], principals: []}\n          a: {permissions: [], principals: []}\n",
                ),
                "10:11",
                "",
                "the key `a` is there twice",
            ),
        ],
    );
}

#[test]
fn values_that_make_no_sense() {
    let limits = |line: &str| mesh(&format!("  limits:\n    {line}\n"));
    check(
        Format::Yaml,
        &[
            ("# nothing\n", "1:1", "meshes", "no mesh: expected at least one"),
            ("", "1:1", "meshes", "no mesh"),
            ("---\n", "2:1", "meshes", "no mesh"),
            ("meshes: []\n", "1:9", "meshes", "no mesh"),
            ("workers: 2000\n", "1:10", "workers", "found 2000, expected 0 to 1024"),
            ("drain: {limit: 48h}\n", "1:16", "drain.limit", "expected 0s to 86400s"),
            ("meshes:\n- name: A_b\n", "2:9", "meshes[0].name", "`A_b` is no name of a mesh"),
            (
                &mesh("  trust_domains: [ok, a/b]\n"),
                "4:23",
                "meshes[0].trust_domains[1]",
                "`a/b` is no trust domain",
            ),
            (
                &limits("handshake_timeout: 0s"),
                "5:24",
                "meshes[0].limits.handshake_timeout",
                "expected 100ms to 300s",
            ),
            (
                &limits("max_concurrent_streams: 50"),
                "5:29",
                "meshes[0].limits.max_concurrent_streams",
                "expected 200, which cannot be changed: ztunnel",
            ),
            (
                &limits("{initial_stream_window: 200000, initial_connection_window: 100000}"),
                "5:64",
                "meshes[0].limits.initial_connection_window",
                "less than `initial_stream_window`",
            ),
            (
                &mesh("- name: b\n  identity: {dev: {id: spiffe://td/ns/n/sa/s}}\n"),
                "4:3",
                "meshes[1].listen",
                "0.0.0.0:15008 is taken by the mesh `a`",
            ),
            (
                &mesh("  listen: 127.0.0.1:15020\n"),
                "4:11",
                "meshes[0].listen",
                "taken by `admin.metrics` (0.0.0.0:15020)",
            ),
            (&mesh("- name: a\n"), "4:9", "meshes[1].name", "this file has a mesh `a` already"),
        ],
    );
}

#[test]
fn everything_that_is_out_of_range_is_found_at_once() {
    let text =
        mesh("  limits: {max_replay: 99999999, max_request_headers: 0}\n  trust_domains: ['']\n");
    let errors = parse_bytes(Format::Yaml, text.as_bytes()).unwrap_err();
    let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "meshes[0].trust_domains[0]",
            "meshes[0].limits.max_request_headers",
            "meshes[0].limits.max_replay"
        ]
    );
}

#[test]
fn yaml_syntax() {
    check(
        Format::Yaml,
        &[
            ("meshes: [\n", "2:1", "", "no valid YAML"),
            ("a: 1\n  b: 2\n", "2:4", "", "no valid YAML"),
            ("a: 1\n---\nb: 2\n", "2:1", "", "a second document"),
            ("workers: !u 1\n", "1:10", "", "the tag `!u` is not understood"),
            ("meshes: !mesh []\n", "1:9", "", "the tag `!mesh` is not understood"),
            ("workers: *x\n", "1:10", "", "no valid YAML"),
            (
                "meshes: &a [*a]\n",
                "1:13",
                "",
                "an alias cannot stand inside the value that it names",
            ),
            ("<<: {workers: 1}\n", "1:1", "[\"<<\"]", "unknown field `<<`"),
        ],
    );
    let errors = parse_bytes(Format::Yaml, b"workers: 1\n# \xff\n").unwrap_err();
    assert_eq!(errors[0].to_string(), "<input>:2:3: no valid UTF-8");
}

#[test]
fn json_says_field_and_place_too() {
    check(
        Format::Json,
        &[
            ("{\n  \"worker\": 1\n}", "2:3", "worker", "unknown field `worker`"),
            (
                "{\n\t\"workers\": \"2\"}",
                "2:13",
                "workers",
                "found the string \"2\", expected an integer",
            ),
            (
                "{\"meshes\": [\n{\"name\": 7}]}",
                "2:10",
                "meshes[0].name",
                "found `7`, expected a string",
            ),
            (
                "{\"meshes\": [{\"name\": \"a\",\n \"identity\": {\"dev\": {\"id\": \"x\"}}}]}",
                "2:29",
                "meshes[0].identity.dev.id",
                "must start with spiffe://",
            ),
            (
                "{\"meshes\": [{\"name\": \"ä\u{1f600}\\ud83d\\ude00\", \"x\": 1}]}",
                "1:40",
                "meshes[0].x",
                "unknown field `x`",
            ),
            ("{\"workers\": 5000}", "1:13", "workers", "found 5000, expected 0 to 1024"),
            ("{\"workers\": 1,\n \"workers\": 2}", "2:2", "", "the key `workers` is there twice"),
            (
                "{\"workers\": 1,\n \"w\\u006frkers\": 2}",
                "2:2",
                "",
                "the key `workers` is there twice",
            ),
            ("{\"workers\": 1,}", "1:15", "", "no valid JSON: trailing comma"),
            ("{\"workers\": 1} x", "1:16", "", "no valid JSON: trailing characters"),
            ("", "1:1", "", "no valid JSON"),
            ("{}", "1:1", "meshes", "no mesh"),
        ],
    );
}

/// Two policies of one name: none may be lost silently.
#[test]
fn json_maps_with_a_key_twice_are_refused() {
    let policy = "\"p\": {\"permissions\": [\"any\"], \"principals\": [\"any\"]}";
    let json = |policies: &str| {
        format!(
            "{{\"meshes\": [{{\"name\": \"a\", \"identity\": {{\"dev\": {{\"id\": \"spiffe://td/ns/n/sa/s\"}}}},\
             \"destinations\": [{{\"name\": \"d\", \"connection\": {{\"rbac\": [{{\"policies\": {{\n{policies}}}}}]}}}}]}}]}}"
        )
    };
    assert!(parse_bytes(Format::Json, json(policy).as_bytes()).is_ok());
    let errors =
        parse_bytes(Format::Json, json(&format!("{policy},\n {policy}")).as_bytes()).unwrap_err();
    assert_eq!(errors[0].to_string(), "<input>:3:2: the key `p` is there twice in one object");
}

#[test]
fn aliases_are_values_but_no_bombs() {
    let text = mesh(
        "  clusters:\n  - &c {name: c, connect_timeout: &t 3s}\n  - {name: d, connect_timeout: *t}\n",
    );
    let config = parse_bytes(Format::Yaml, text.as_bytes()).unwrap();
    let clusters = &config.meshes[0].resources().clusters;
    assert_eq!(clusters[0].connect_timeout, clusters[1].connect_timeout);

    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..40 {
        let list = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{list}]\n"));
    }
    check(
        Format::Yaml,
        &[(&bomb, "6:25", "", "the aliases of this file stand for more than 8 MiB")],
    );

    let long = "x".repeat(1 << 20);
    let text = format!("a: &a {long}\nb: [{}]\n", ["*a"; 10].join(", "));
    check(Format::Yaml, &[(&text, "2:33", "", "stand for more than 8 MiB")]);
}

#[test]
fn depth_is_bounded() {
    let deep = |levels: usize| {
        let (open, close) = ("{not: ".repeat(levels), "}".repeat(levels));
        let policies = format!("{{p: {{permissions: [{open}any{close}], principals: [any]}}}}");
        mesh(&format!(
            "  destinations:\n  - {{name: d, connection: {{rbac: [{{policies: {policies}}}]}}}}\n"
        ))
    };
    assert!(parse_bytes(Format::Yaml, deep(80).as_bytes()).is_ok());
    let errors = parse_bytes(Format::Yaml, deep(120).as_bytes()).unwrap_err();
    assert!(
        errors[0].message.contains("more than 100 lists and maps inside each other"),
        "{}",
        errors[0]
    );
    for text in ["[".repeat(5000), "- ".repeat(5000), "{\"a\":".repeat(5000), "? ".repeat(5000)] {
        assert!(parse_bytes(Format::Yaml, text.as_bytes()).is_err());
        assert!(parse_bytes(Format::Json, text.as_bytes()).is_err());
    }
    // An alias cannot lead deeper than what is written out.
    let mut chain = String::from("a0: &a0 [x]\n");
    for level in 1..120 {
        chain.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
    }
    check(Format::Yaml, &[(&chain, "100:6", "", "more than 100 lists and maps")]);
}

/// All on one line: finding the place must not cost a look at the whole text for each value.
#[test]
fn a_long_line_of_json_is_no_trap() {
    let clusters: Vec<String> = (0..20_000).map(|n| format!("{{\"name\":\"c{n}\"}}")).collect();
    let text =
        format!("{{\"meshes\":[{{\"name\":\"a\",\"clusters\":[{},7]}}]}}", clusters.join(","));
    let place = format!("1:{}", text.len() - "7]}]}".len() + 1);
    check(
        Format::Json,
        &[(&text, &place, "meshes[0].clusters[20000]", "found `7`, expected a map")],
    );
}

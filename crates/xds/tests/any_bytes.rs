//! No bytes make the parser panic or hang, and YAML and JSON of the same value mean the same.
#![allow(clippy::unwrap_used, clippy::panic)]

use cairn_xds::{Config, Format, parse_bytes};
use proptest::prelude::*;

const YAML: &str = include_str!("../../../config/demo.yaml");

/// The values of the demo as JSON.
fn demo_json() -> String {
    let config = parse_bytes(Format::Yaml, YAML.as_bytes()).unwrap();
    serde_json::to_string(&config).unwrap()
}

fn try_both(bytes: &[u8]) {
    for format in [Format::Yaml, Format::Json] {
        if let Err(errors) = parse_bytes(format, bytes) {
            assert!(!errors.is_empty());
            for error in errors {
                assert!(!error.message.is_empty());
                assert!(error.position.is_some(), "{error}");
            }
        }
    }
}

#[test]
fn yaml_and_json_mean_the_same() {
    let yaml = parse_bytes(Format::Yaml, YAML.as_bytes()).unwrap();
    let json = demo_json();
    assert_eq!(parse_bytes(Format::Json, json.as_bytes()).unwrap(), yaml);
    // JSON is YAML.
    assert_eq!(parse_bytes(Format::Yaml, json.as_bytes()).unwrap(), yaml);
}

#[test]
fn texts_that_have_broken_parsers() {
    for text in [
        "{---",
        "--- ...",
        "...",
        "%YAML 1.2",
        "%",
        "?",
        "-",
        ":",
        "- - -\n-",
        "{? : }",
        "[a: b]",
        "&a",
        "*",
        "&a *a",
        "!",
        "!<>",
        "|",
        ">\n",
        "|9\n x",
        "\"\\u",
        "\"\\x0",
        "'",
        "\"",
        "@",
        "`",
        "\t",
        "- \t- a",
        "\u{feff}",
        "\u{feff}meshes: []",
        "a:\n\t- b",
        "{a: [}",
        "[{]}",
        "a: &x\nb: *x",
        "\0",
        "a\0b: 1",
        "{\"a\":1e999}",
        "{\"a\":-0}",
        "\"\\ud800\"",
        "[1,2",
        "nul",
        "{\"\":{\"\":{}}}",
        "1e5",
        "-",
        "0x",
        "0o9",
        "meshes: [{name: a, identity: {dev: {id: \"spiffe://a/ns/b/sa/c\"}}, clusters: [{}]}]",
    ] {
        try_both(text.as_bytes());
    }
}

/// Replaces, removes or doubles a piece of a valid text.
fn mutated(text: String) -> impl Strategy<Value = Vec<u8>> {
    let length = text.len();
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..4),
        proptest::sample::select(vec![
            "[", "]", "{", "}", ": ", "- ", "\n", "  ", "\t", "\"", "'", "&a ", "*a ", "!t ",
            "---\n", "# ", ",", "null", "1e9", "-1", "true", "|\n", "? ", "%", "\\",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ];
    let change = (0..length, 0..40_usize, piece, any::<bool>());
    proptest::collection::vec(change, 1..5).prop_map(move |changes| {
        let mut bytes = text.clone().into_bytes();
        for (at, removed, piece, doubled) in changes {
            let at = at.min(bytes.len());
            let end = (at + removed).min(bytes.len());
            let old: Vec<u8> = bytes[at..end].to_vec();
            let new: Vec<u8> = if doubled { [&old[..], &piece, &old].concat() } else { piece };
            bytes.splice(at..end, new);
        }
        bytes
    })
}

fn accepted(format: Format, bytes: &[u8]) -> Option<Config> {
    parse_bytes(format, bytes).ok()
}

proptest! {
    #[test]
    fn arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        try_both(&bytes);
    }

    #[test]
    fn arbitrary_text(text in "[-\\[\\]{}:,&*!|>'\"%@`#?a-c0-1 \n\t\\\\~.<=]{0,80}") {
        try_both(text.as_bytes());
    }

    #[test]
    fn mutated_yaml(bytes in mutated(YAML.to_owned())) {
        try_both(&bytes);
    }

    /// What JSON accepts, YAML accepts as the same value, unless it is YAML's to refuse.
    #[test]
    fn mutated_json(bytes in mutated(demo_json())) {
        try_both(&bytes);
        if let (Some(json), Some(yaml)) = (accepted(Format::Json, &bytes), accepted(Format::Yaml, &bytes)) {
            prop_assert_eq!(json, yaml);
        }
    }
}

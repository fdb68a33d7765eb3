#![allow(clippy::unwrap_used, clippy::panic)]

use super::super::captures;
use super::super::question::Words;
use super::*;
use std::path::Path;

const CAPTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/captures");
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/explain/engine/golden");
const WEB: Option<&str> = Some("spiffe://cluster.local/ns/authz/sa/web");

fn ask(theme: &str, words: &Words<'_>) -> Explanation {
    let (mesh, resources, _) = captures::open(&Path::new(CAPTURES).join(theme)).unwrap();
    explain(&mesh, &resources, &Question::parse(words).unwrap())
}

/// Compares with the text in the file; `CAIRN_UPDATE_GOLDEN=1` writes it.
fn golden(name: &str, theme: &str, words: Words<'_>) {
    let answer = ask(theme, &words);
    let json = serde_json::to_string(&answer).unwrap();
    let again: Explanation = serde_json::from_str(&json).unwrap();
    assert_eq!(answer.to_string(), again.to_string(), "JSON says the same");
    let path = Path::new(GOLDEN).join(format!("{name}.txt"));
    if std::env::var_os("CAIRN_UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, answer.to_string()).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        answer.to_string() == expected,
        "{}: CAIRN_UPDATE_GOLDEN=1 accepts\n{answer}\ninstead of\n{expected}",
        path.display()
    );
}

fn words<'a>(target: &'a str, method: &'a str, path: &'a str) -> Words<'a> {
    Words { target: Some(target), method: Some(method), path: Some(path), ..Words::default() }
}

#[test]
fn a_plain_service() {
    golden("plain", "plain", words("10.96.77.45:80", "GET", "/"));
}

#[test]
fn a_service_without_endpoints() {
    golden("empty", "plain", words("10.96.143.30:80", "GET", "/"));
}

#[test]
fn an_opaque_port() {
    golden("opaque", "plain", Words { target: Some("10.96.208.193:3306"), ..Words::default() });
}

#[test]
fn a_port_that_nobody_has() {
    golden("unknown-port", "plain", words("10.96.77.45:81", "GET", "/"));
}

#[test]
fn a_workload_by_its_address() {
    golden("workload", "workload", words("10.244.1.118:8080", "GET", "/"));
}

#[test]
fn policies_that_let_in_and_that_refuse() {
    let from = |words| Words { from: WEB, source_ip: Some("10.244.1.9"), ..words };
    golden("allowed", "authorization", from(words("10.96.52.149:80", "GET", "/public/x")));
    golden("denied", "authorization", from(words("10.96.52.149:80", "GET", "/admin/x")));
    golden("no-identity", "authorization", words("10.96.52.149:80", "GET", "/public/x"));
    let tcp = Words { target: Some("10.96.51.1:3306"), ..Words::default() };
    golden("tcp-denied", "authorization", from(tcp));
}

#[test]
fn routes_in_their_order() {
    let exact = Words {
        headers: vec!["host: app", "x-exact: 1", "end-user: alice"],
        ..words("10.96.197.185:80", "GET", "/exact?q=1")
    };
    golden("route-exact", "virtualservice", exact);
    golden("route-redirect", "virtualservice", words("10.96.197.185:80", "GET", "/go/x"));
    golden("route-teapot", "virtualservice", words("10.96.197.185:80", "GET", "/teapot"));
    golden("route-fault", "virtualservice", words("10.96.197.185:80", "GET", "/fault"));
    golden("route-rewrite", "virtualservice", words("10.96.197.185:80", "GET", "/old/x?y=z"));
    golden("route-last", "virtualservice", words("10.96.197.185:80", "POST", "/%61/../b"));
}

#[test]
fn what_the_engine_says_is_what_is_printed() {
    let (mesh, resources, _) = captures::open(&Path::new(CAPTURES).join("virtualservice")).unwrap();
    let paths = ["/exact", "/alt/x", "/old/1", "/rx/2", "/go", "/teapot", "/cors", "/nothing"];
    for path in paths {
        let question = Question::parse(&words("10.96.197.185:80", "GET", path)).unwrap();
        let answer = explain(&mesh, &resources, &question);
        let target = TargetRef::Addr("10.96.197.185:80".parse().unwrap());
        let chain = mesh.destination(&target).unwrap().http.clone().unwrap();
        let mut request = Request::new(question.request.as_ref().unwrap(), "10.96.197.185:80");
        assert!(request.normalise(&chain).is_ok());
        let found = chain.routes.find(&request.view()).unwrap();
        let routed = answer.route.unwrap();
        let shown = routed.route.unwrap();
        assert!(shown.contains(&*found.route.name), "{path}: {shown}");
        // Whatever stands before it does not match.
        assert!(!routed.passed_over.iter().any(|line| line.ends_with(": matches")), "{path}");
    }
}

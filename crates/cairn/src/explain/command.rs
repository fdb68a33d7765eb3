//! The command: asks a running proxy, a configuration or captured answers.

use super::answer::Explanation;
use super::question::{Question, Words};
use super::{captures, engine, json};
use crate::check::broken;
use crate::cli::ExplainArgs;
use crate::failure::Failure;
use crate::terminal;
use cairn_router::compile::Compiler;
use cairn_xds::FileSource;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Of the answer, in bytes.
const MAX_ANSWER: u64 = 16 << 20;
/// For a dial, and between two pieces of the answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Exit code when nothing would answer the request.
const REFUSED: u8 = 3;

/// Prints the explanation.
pub fn run(args: &ExplainArgs) -> Result<ExitCode, Failure> {
    let words = Words {
        target: Some(&args.target),
        method: args.method.as_deref(),
        path: args.path.as_deref(),
        headers: args.headers.iter().map(String::as_str).collect(),
        from: args.from.as_deref(),
        source_ip: args.source_ip.as_deref(),
        mesh: args.mesh.as_deref(),
    };
    let question = Question::parse(&words).map_err(Failure::new)?;
    let answer = match (&args.captures, &args.config) {
        (Some(directory), _) => from_captures(directory, &question)?,
        (None, Some(path)) => from_config(path, &question)?,
        (None, None) => from_proxy(args.admin, &words)?,
    };
    terminal::text(if args.json { json(&answer) } else { answer.to_string() });
    Ok(if answer.answered { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) })
}

fn from_captures(directory: &Path, question: &Question) -> Result<Explanation, Failure> {
    let (mesh, resources, unsupported) = captures::open(directory).map_err(Failure::new)?;
    let mut answer = engine::explain(&mesh, &resources, question);
    let concerned = |line: &&String| {
        let name = answer.destination.as_ref().map_or("", |found| found.name.as_str());
        let names = answer.clusters.iter().map(|cluster| cluster.name.as_str()).chain([name]);
        names.filter(|name| !name.is_empty()).any(|name| line.contains(name))
    };
    let notes: Vec<_> = unsupported.iter().filter(concerned).cloned().collect();
    answer.notes.extend(notes);
    Ok(answer)
}

fn from_config(path: &Path, question: &Question) -> Result<Explanation, Failure> {
    let (_, config) = FileSource::open(path).map_err(|errors| broken(&errors))?;
    let mut meshes = config.meshes.iter();
    let mesh = match &question.mesh {
        Some(name) => meshes.find(|mesh| mesh.name == *name),
        None => meshes.next(),
    };
    let mesh = mesh.ok_or_else(|| {
        let names: Vec<&str> = config.meshes.iter().map(|mesh| mesh.name.as_str()).collect();
        Failure::new("there is no such mesh").hint(format!("there are: {}", names.join(", ")))
    })?;
    let compiled = Compiler::new(&mesh.name).compile_lossy(mesh.resources());
    Ok(engine::explain(&compiled, mesh.resources(), question))
}

fn from_proxy(admin: SocketAddr, words: &Words<'_>) -> Result<Explanation, Failure> {
    let query: Vec<String> =
        words.pairs().iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
    let answer = fetch(admin, &format!("/explain?{}", query.join("&"))).map_err(|error| {
        Failure::new(format!("the admin pages at {admin} do not answer: {error}"))
            .hint("--admin IP:PORT names another place; --config and --captures need no proxy")
    })?;
    let unclear = || Failure::new(format!("the admin pages at {admin} gave no explanation"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(unclear)?;
    if head.split(' ').nth(1) != Some("200") {
        return Err(unclear().hint(body.trim_end()));
    }
    serde_json::from_str(body).map_err(|error| unclear().hint(error))
}

/// Head and body of an answer. HTTP/1.0, so that the body is as it is until the end.
fn fetch(admin: SocketAddr, target: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {target} HTTP/1.0\r\nhost: {admin}\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
    Ok(answer)
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

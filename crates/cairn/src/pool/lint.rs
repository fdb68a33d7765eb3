//! `cairn pool lint`: of files, or of a cluster as it is.

use super::args::LintArgs;
use super::cluster::{self, ENTRY, GATEWAY, GROUP, NAMESPACE, POD, POLICY, SERVICE, SERVICE_ENTRY};
use super::install::user_cluster;
use super::{WRONG, asking, clusters, read_config};
use crate::failure::Failure;
use crate::terminal::{error_line, say};
use cairn_pool::{Finding, Severity, lint};
use serde_json::Value;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

/// Largest file of objects that is read.
const LARGEST: u64 = 256 << 20;

/// Looks, and says what is wrong.
pub fn run(args: &LintArgs) -> Result<ExitCode, Failure> {
    let findings = match &args.config {
        Some(file) => asking(of_cluster(file, args.in_config.as_slice()))?,
        None => of_files(args)?,
    };
    for finding in &findings {
        say!("{finding}");
    }
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    let warnings = findings.len() - errors;
    error_line(format_args!("{errors} errors, {warnings} warnings"));
    Ok(if errors > 0 { ExitCode::from(WRONG) } else { ExitCode::SUCCESS })
}

fn of_files(args: &LintArgs) -> Result<Vec<Finding>, Failure> {
    let cluster = user_cluster(&args.cluster)?;
    let mut all = Vec::new();
    for path in &args.objects {
        all.extend(read(path)?);
    }
    Ok(lint::lint(&cluster, &args.trust_domain, &all))
}

async fn of_cluster(file: &Path, name: &[String]) -> Result<Vec<Finding>, Failure> {
    let config = read_config(file)?;
    let mut findings = Vec::new();
    for cluster in clusters(&config, name)? {
        let client = cluster::client(cluster).await?;
        let kinds = [&GATEWAY, &SERVICE, &NAMESPACE, &POD, &GROUP, &ENTRY, &POLICY, &SERVICE_ENTRY];
        let all = cluster::all(&client, &kinds).await;
        let all = all.map_err(|error| cluster::of(cluster, &error))?;
        findings.extend(lint::of(cluster, &config.pool, &all));
    }
    Ok(findings)
}

/// Objects of a file, or of standard input.
fn read(path: &Path) -> Result<Vec<Value>, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(format!("{}: {error}", path.display()))
            .hint("kubectl get -o json makes such a file; see cairn pool lint --help")
    };
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        io::stdin().take(LARGEST + 1).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes))
    };
    read.map_err(|error| failed(&error))?;
    if bytes.len() as u64 > LARGEST {
        return Err(failed(&format_args!("more than {} MiB", LARGEST >> 20)));
    }
    let mut objects = Vec::new();
    for object in serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>() {
        let object = object.map_err(|error| failed(&error))?;
        if object["kind"].as_str().is_none() {
            return Err(failed(&"has a value that is no object of Kubernetes: it has no `kind`"));
        }
        objects.push(object);
    }
    if objects.is_empty() {
        return Err(failed(&"has no objects"));
    }
    Ok(objects)
}

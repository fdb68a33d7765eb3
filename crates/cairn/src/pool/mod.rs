//! `cairn pool`: members, what a user's cluster needs to use them, and what is wrong there.

mod args;

pub use args::{PoolArgs, PoolCommand};

use crate::failure::Failure;
use crate::member;
use crate::terminal::{self, error_line, say};
use args::{ClusterArgs, LintArgs};
use cairn_pool::{Severity, UserCluster, UserClusterError, lint, objects, print};
use serde_json::Value;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

/// Largest file of objects that is read.
const LARGEST: u64 = 256 << 20;
/// Exit code of `lint` when traffic fails or is not policed.
const WRONG: u8 = 3;

/// Does what is asked.
pub fn run(args: &PoolArgs) -> Result<ExitCode, Failure> {
    match &args.command {
        PoolCommand::Install(args) => install(args),
        PoolCommand::Member(args) => member::run(args),
        PoolCommand::Lint(args) => look(args),
    }
}

fn user_cluster(args: &ClusterArgs) -> Result<UserCluster, Failure> {
    let cluster = UserCluster {
        namespace: args.namespace.clone(),
        name: args.name.clone(),
        service_account: args.service_account.clone(),
        domain: args.domain.clone(),
        allowed: args.allow.clone(),
        prefer_close: args.prefer_close,
        ..UserCluster::new(args.port)
    };
    cluster.check().map_err(|error: UserClusterError| Failure::new(error))?;
    Ok(cluster)
}

fn install(args: &ClusterArgs) -> Result<ExitCode, Failure> {
    let cluster = user_cluster(args)?;
    say!("# What a cluster needs whose namespaces use the pool `{}`.", cluster.name);
    say!("# Members listen for this cluster, and for no other, on port {}.", cluster.port);
    say!("#");
    say!(
        "# Until the Gateway has an address, whoever uses it has no waypoint, and no L7 policy holds. Once, after this:"
    );
    say!(
        "#   echo '{}' |\n#     kubectl apply --server-side --subresource=status --field-manager cairn-pool -f -",
        objects::gateway_status(&cluster)
    );
    say!("# A namespace then uses the pool by these labels:");
    say!(
        "#   kubectl label namespace NAMESPACE istio.io/use-waypoint={} istio.io/use-waypoint-namespace={}",
        cluster.name,
        cluster.namespace
    );
    terminal::text(print::yaml(&objects::all(&cluster)));
    Ok(ExitCode::SUCCESS)
}

fn look(args: &LintArgs) -> Result<ExitCode, Failure> {
    let cluster = user_cluster(&args.cluster)?;
    let mut all = Vec::new();
    for path in &args.objects {
        all.extend(read(path)?);
    }
    let findings = lint(&cluster, &args.trust_domain, &all);
    for finding in &findings {
        say!("{finding}");
    }
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    let warnings = findings.len() - errors;
    error_line(format_args!("{errors} errors, {warnings} warnings"));
    Ok(if errors > 0 { ExitCode::from(WRONG) } else { ExitCode::SUCCESS })
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

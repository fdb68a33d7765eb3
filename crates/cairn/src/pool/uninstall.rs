//! `cairn pool uninstall`: takes the pool's objects away, and says before what that does to whom.

use super::args::UninstallArgs;
use super::cluster::{self, NAMESPACE, SERVICE, SERVICE_ENTRY, kind_of, place, title};
use super::{WRONG, asking, clusters, read_config};
use crate::failure::Failure;
use crate::terminal::{error_line, say};
use cairn_kube::Version;
use cairn_pool::config::{Cluster, Pool};
use cairn_pool::{lint, objects};
use std::process::ExitCode;

/// Warns, and removes with `--yes`.
pub fn run(args: &UninstallArgs) -> Result<ExitCode, Failure> {
    let config = read_config(&args.config.config)?;
    let named = clusters(&config, &args.config.clusters)?;
    asking(async {
        for cluster in named {
            remove(cluster, &config.pool, args.yes).await?;
        }
        Ok(())
    })?;
    if !args.yes {
        error_line("nothing was removed; --yes does it");
        return Ok(ExitCode::from(WRONG));
    }
    Ok(ExitCode::SUCCESS)
}

async fn remove(cluster: &Cluster, pool: &Pool, yes: bool) -> Result<(), Failure> {
    let client = cluster::client(cluster).await?;
    let failed = |error: cairn_kube::Error| cluster::of(cluster, &error);
    let asking =
        cluster::all(&client, &[&NAMESPACE, &SERVICE, &SERVICE_ENTRY]).await.map_err(failed)?;
    for user in lint::users(cluster, pool, &asking) {
        say!(
            "{}: {user} uses the pool: it falls back to plain L4, and no L7 policy holds for it",
            cluster.name
        );
    }
    let mut all = objects::of(cluster, pool);
    // What uses others goes before these.
    all.reverse();
    for object in all {
        let Some(kind) = kind_of(&object) else { continue };
        let (namespace, name) = place(&object);
        let Some(found) = client.object(kind, namespace, name).await.map_err(failed)? else {
            continue;
        };
        let name_of = title(&object);
        let note = objects::kept_elsewhere(&found).map(|note| format!(" ({note})"));
        let note = note.unwrap_or_default();
        if *kind == NAMESPACE {
            say!("{}: {name_of}: stays, for it may hold what is not the pool's", cluster.name);
        } else if !objects::is_ours(&found) {
            say!("{}: {name_of}: stays, for it is not the pool's", cluster.name);
        } else if yes {
            client.delete(kind, namespace, name, &Version::of(&found)).await.map_err(failed)?;
            say!("{}: {name_of}: removed{note}", cluster.name);
        } else {
            say!("{}: {name_of}: would be removed{note}", cluster.name);
        }
    }
    Ok(())
}

//! `cairn pool install`: the objects that a user's cluster needs, printed or applied.

use super::args::{ClusterArgs, InstallArgs};
use super::cluster::{self, GATEWAY, kind_of, place, title};
use super::{asking, clusters, read_config};
use crate::failure::Failure;
use crate::terminal::{self, say};
use cairn_kube::{Cause, Client};
use cairn_pool::config::{Cluster, Pool};
use cairn_pool::objects::{self, FIELD_MANAGER};
use cairn_pool::{PoolConfig, UserCluster, UserClusterError, print, rbac};
use serde_json::Value;
use std::process::ExitCode;

/// Prints or applies.
pub fn run(args: &InstallArgs) -> Result<ExitCode, Failure> {
    let Some(file) = &args.config else {
        by_hand(&user_cluster(&args.cluster)?);
        return Ok(ExitCode::SUCCESS);
    };
    let config = read_config(file)?;
    let named = clusters(&config, &args.clusters)?;
    if args.rbac {
        print_rights(&config, &named, args.members_namespace.as_deref());
    } else if args.apply {
        asking(async {
            for cluster in named {
                apply(cluster, &config.pool, args.adopt).await?;
            }
            Ok(())
        })?;
    } else {
        print_objects(&config, &named);
    }
    Ok(ExitCode::SUCCESS)
}

/// The cluster that flags describe.
pub fn user_cluster(args: &ClusterArgs) -> Result<UserCluster, Failure> {
    let port = args.port.ok_or_else(|| Failure::new("give --port, or --config"))?;
    let cluster = UserCluster {
        namespace: args.namespace.clone(),
        name: args.name.clone(),
        service_account: args.service_account.clone(),
        domain: args.domain.clone(),
        allowed: args.allow.clone(),
        prefer_close: args.prefer_close,
        ..UserCluster::new(port)
    };
    cluster.check().map_err(|error: UserClusterError| Failure::new(error))?;
    Ok(cluster)
}

fn by_hand(cluster: &UserCluster) {
    say!("# What a cluster needs whose namespaces use the pool `{}`.", cluster.name);
    say!("# Members listen for this cluster, and for no other, on port {}.", cluster.port);
    say!("#");
    how_to_use(cluster, &[objects::gateway_status(cluster)]);
    terminal::text(print::yaml(&objects::all(cluster)));
}

fn how_to_use(cluster: &UserCluster, statuses: &[Value]) {
    say!(
        "# Until the Gateway has an address, whoever uses it has no waypoint, and no L7 policy holds. Once, after this:"
    );
    for status in statuses {
        say!(
            "#   echo '{status}' |\n#     kubectl apply --server-side --subresource=status --field-manager {FIELD_MANAGER} -f -"
        );
    }
    say!("# A namespace then uses the pool by these labels:");
    say!(
        "#   kubectl label namespace NAMESPACE istio.io/use-waypoint={} istio.io/use-waypoint-namespace={}",
        cluster.name,
        cluster.namespace
    );
}

fn print_objects(config: &PoolConfig, named: &[&Cluster]) {
    for (number, cluster) in named.iter().enumerate() {
        if number > 0 {
            say!("---");
        }
        let user = cluster.user_cluster(&config.pool);
        say!(
            "# Cluster {}: members listen for it, and for no other, on port {}.",
            cluster.name,
            user.port
        );
        say!("#");
        how_to_use(&user, &objects::statuses(cluster, &config.pool));
        terminal::text(print::yaml(&objects::of(cluster, &config.pool)));
    }
}

fn print_rights(config: &PoolConfig, named: &[&Cluster], members: Option<&str>) {
    for cluster in named {
        say!(
            "# Cluster {}: what the registrar may do there, after cairn pool install.",
            cluster.name
        );
        terminal::text(print::yaml(&rbac::user_cluster(cluster, &config.pool)));
        say!("---");
    }
    say!("# The cluster of the members: what the registrar may do there.");
    let namespace = members.unwrap_or(&config.pool.name);
    terminal::text(print::yaml(&rbac::pool_cluster(namespace, &config.pool)));
}

/// Applies all of them, or none where one is somebody else's.
async fn apply(cluster: &Cluster, pool: &Pool, adopt: bool) -> Result<(), Failure> {
    let client = cluster::client(cluster).await?;
    let failed = |error: cairn_kube::Error| cluster::of(cluster, &error);
    let wanted = objects::of(cluster, pool);
    let mut before = Vec::new();
    for object in &wanted {
        before.push(found(&client, object).await.map_err(failed)?);
    }
    let foreign: Vec<String> =
        before.iter().flatten().filter(|found| !objects::is_ours(found)).map(title).collect();
    if !foreign.is_empty() && !adopt {
        let message = format!("{}: not the pool's: {}", cluster.name, foreign.join(", "));
        return Err(Failure::new(message).hint(
            "nothing was applied. Take other names in the file, or let the pool have them with --adopt: \
             what they say then is overwritten",
        ));
    }
    for (object, before) in wanted.iter().zip(&before) {
        let Some(kind) = kind_of(object) else { continue };
        let applied = client.apply(kind, object, FIELD_MANAGER, adopt).await.map_err(|error| {
            let conflict = error.cause == Cause::Conflict;
            let failure = failed(error);
            let keeper = before.as_ref().and_then(objects::kept_elsewhere);
            match (conflict, keeper) {
                (true, Some(keeper)) => failure.hint(format!(
                    "{keeper}, and what it says is changed there; --adopt takes its fields over"
                )),
                (true, None) => failure
                    .hint("somebody else manages some of its fields; --adopt takes them over"),
                (false, _) => failure,
            }
        })?;
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        let what = match before {
            None => "made",
            Some(before) if version(before) == version(&applied) => "as it was",
            Some(_) => "changed",
        };
        say!("{}: {}: {what}", cluster.name, title(object));
    }
    for status in objects::statuses(cluster, pool) {
        give_address(&client, cluster, &status).await?;
    }
    Ok(())
}

/// Gives a Gateway its address where it has none.
async fn give_address(client: &Client, cluster: &Cluster, status: &Value) -> Result<(), Failure> {
    let failed = |error: cairn_kube::Error| cluster::of(cluster, &error);
    let gateway = found(client, status).await.map_err(failed)?;
    if gateway.as_ref().is_some_and(objects::lacks_address) {
        client.apply_status(&GATEWAY, status, FIELD_MANAGER).await.map_err(failed)?;
        say!("{}: {}: has its address", cluster.name, title(status));
    }
    Ok(())
}

/// What has the object's name.
async fn found(client: &Client, object: &Value) -> Result<Option<Value>, cairn_kube::Error> {
    let Some(kind) = kind_of(object) else { return Ok(None) };
    let (namespace, name) = place(object);
    client.object(kind, namespace, name).await
}

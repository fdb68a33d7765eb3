//! Tokens with which members start: one for each cluster, in a Secret of the members' cluster.
//!
//! A member needs one only until istiod has signed its first certificate.

use super::super::cluster::{CONFIG_MAP, SECRET};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cairn_kube::{Client, Error, seconds_until};
use cairn_pool::config::{Cluster, Pool};
use cairn_pool::objects::{self, FIELD_MANAGER};
use cairn_pool::rbac::{ROOT_CONFIG_MAP, tokens_secret};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// What istiod asks of a token.
const AUDIENCE: &str = "istio-ca";
/// How long a token is to hold, in seconds.
const LIFETIME: u32 = 3600;
/// Key of the ConfigMap with the root of the mesh.
const ROOT: &str = "root-cert.pem";

/// Keeps one cluster's part of the Secret.
pub struct Tokens {
    /// The members' cluster, and their namespace there.
    client: (Client, String),
    given: Option<Given>,
}

struct Given {
    root: String,
    due: Instant,
}

/// Whether a token is to be replaced that was minted then and runs out then: at half of its time.
pub fn due(minted: Instant, lifetime: Duration) -> Instant {
    minted + lifetime / 2
}

impl Tokens {
    /// Writes to this cluster and namespace.
    pub fn new(client: (Client, String)) -> Self {
        Tokens { client, given: None }
    }

    /// Mints again, whatever was given.
    pub fn forget(&mut self) {
        self.given = None;
    }

    /// Mints and writes where it is due; returns when the token runs out.
    pub async fn keep(
        &mut self,
        cluster: &Client,
        config: &Cluster,
        pool: &Pool,
    ) -> Result<Option<Instant>, Error> {
        let (members, namespace) = &self.client;
        let secret = tokens_secret(pool);
        let (token_key, root_key) =
            (format!("{}.token", config.name), format!("{}.root.pem", config.name));
        let there = config.namespace(pool);
        let root = cluster.object(&CONFIG_MAP, there, ROOT_CONFIG_MAP).await?;
        let root = root.and_then(|map| map["data"][ROOT].as_str().map(str::to_owned));
        let root = root.unwrap_or_default();
        let kept = match &self.given {
            Some(given) if given.root == root && Instant::now() < given.due => {
                let found = members.object(&SECRET, namespace, &secret).await?;
                found.is_some_and(|found| found["data"][&token_key].is_string())
            }
            _ => false,
        };
        if kept {
            return Ok(None);
        }
        let minted = Instant::now();
        let account = config.service_account(pool);
        let (token, until) =
            cluster.service_account_token(there, account, AUDIENCE, LIFETIME).await?;
        let seconds = seconds_until(&until).unwrap_or(0.0).max(0.0);
        let lifetime = Duration::from_secs_f64(seconds);
        let mut data = json!({ token_key: STANDARD.encode(token) });
        // istiod writes the ConfigMap; until it has, members have the root from elsewhere.
        if !root.is_empty() {
            data[&root_key] = Value::from(STANDARD.encode(&root));
        }
        let object = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {
                "name": secret, "namespace": namespace, "labels": objects::labels(),
            },
            "data": data,
        });
        // Each cluster manages its own keys, and takes none away.
        let manager = format!("{FIELD_MANAGER}-tokens-{}", config.name);
        members.apply(&SECRET, &object, &manager, true).await?;
        tracing::info!(cluster = config.name, secret, until, "token for members that start");
        self.given = Some(Given { root, due: due(minted, lifetime) });
        Ok(Some(minted + lifetime))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_is_replaced_at_half_of_its_time() {
        let now = Instant::now();
        for (lifetime, after) in [(3600, 1800), (600, 300), (0, 0)] {
            assert_eq!(due(now, Duration::from_secs(lifetime)), now + Duration::from_secs(after));
        }
    }
}

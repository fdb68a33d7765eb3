//! Certificates of one run, by an authority that is thrown away with it.

use crate::world::{CLIENT, POD, TRUST_DOMAIN, WAYPOINT};
use anyhow::{Context, Result};
use cairn_identity::dev::{DevCa, IssueOptions};
use cairn_identity::{Credentials, Identity, SpiffeId};
use std::fs;
use std::path::{Path, PathBuf};

/// Where the files are.
#[derive(Debug, Clone)]
pub struct Certs {
    /// Of the proxy.
    pub waypoint: Files,
    /// Of the load generator.
    pub client: Files,
    /// Of the backend.
    pub pod: Files,
}

/// One identity as PEM files.
#[derive(Debug, Clone)]
pub struct Files {
    /// The chain.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Who is trusted.
    pub roots: PathBuf,
}

impl Certs {
    /// Issues all of them into `dir`.
    pub fn issue(dir: &Path) -> Result<Certs> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let authority = DevCa::new(TRUST_DOMAIN)?;
        let issue = |name: &str, id: &str| -> Result<Files> {
            let bundle = authority.issue_pem(&SpiffeId::parse(id)?, IssueOptions::default())?;
            Files::write(dir, name, &bundle.cert_chain, &bundle.key, &bundle.roots)
        };
        Ok(Certs {
            waypoint: issue("waypoint", WAYPOINT)?,
            client: issue("client", CLIENT)?,
            pod: issue("pod", POD)?,
        })
    }
}

impl Files {
    /// Writes what one identity has: `name.cert.pem` and so on.
    pub fn write(dir: &Path, name: &str, cert: &str, key: &str, roots: &str) -> Result<Files> {
        let write = |kind: &str, text: &str| -> Result<PathBuf> {
            let path = dir.join(format!("{name}.{kind}.pem"));
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path)
        };
        Ok(Files {
            cert: write("cert", cert)?,
            key: write("key", key)?,
            roots: write("roots", roots)?,
        })
    }

    /// Reads them back.
    pub fn identity(&self) -> Result<Identity> {
        let read =
            |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let credentials =
            Credentials::from_pem(&read(&self.cert)?, &read(&self.key)?, &read(&self.roots)?)?;
        Ok(Identity::fixed(credentials))
    }
}

//! Credentials of PEM files, read again whenever their contents change.
//!
//! The three files are one set. Where they are symlinks, as in a Kubernetes volume (`tls.crt -> ..data/tls.crt`,
//! `..data -> ..2025_01_01`), the paths are resolved before and after reading: when they lead elsewhere afterwards a swap
//! was under way and the set is read again. Files that are written in place may be seen half-way, so a changed set is
//! looked at only when two readings in a row found the same; what does not fit together then is refused.
//!
//! Files are polled, not watched: inotify misses swaps on network and overlay file systems, and three small files a
//! second cost nothing.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::MissedTickBehavior;

use crate::credentials::{Credentials, IdentityError, MaterialPart};
use crate::identity::Identity;
use crate::spiffe::TrustDomains;

/// How often [`watch()`] looks at the files, unless told otherwise.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);
/// Shortest interval between two looks.
const MIN_INTERVAL: Duration = Duration::from_millis(10);
/// Largest file in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// How often a set is read before a swap under way is left to the next look.
const READ_ATTEMPTS: usize = 3;

/// Where the identity is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSource {
    /// PEM: the workload's certificate first, then its intermediates.
    pub cert: PathBuf,
    /// PEM: the private key as PKCS#8, SEC1 or PKCS#1, not encrypted.
    pub key: PathBuf,
    /// PEM: the roots that peers must lead to.
    pub roots: PathBuf,
    /// Trust domains whose clients are accepted; `None`: the trust domain of the certificate read at start.
    pub trust_domains: Option<TrustDomains>,
}

/// What is wrong with the files. `Display` names the file and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A file cannot be read.
    #[error("{}: {error}; the file must exist and be readable for this process", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A file is not a regular file, or larger than 1 MiB.
    #[error("{}: it must be a regular file of at most {MAX_FILE_BYTES} bytes", path.display())]
    Unsuitable {
        /// The file.
        path: PathBuf,
    },
    /// The files were swapped each time they were read.
    #[error("{}: the files are being replaced all the time; leave them alone for a moment", path.display())]
    Moving {
        /// The certificate file.
        path: PathBuf,
    },
    /// The contents cannot be used.
    #[error("{}: {error}; {}", path.display(), error.remedy())]
    Content {
        /// The file to look at first.
        path: PathBuf,
        /// What is wrong.
        error: IdentityError,
    },
}

/// How the reloads went so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReloadStatus {
    /// Sets of files that came into use, the first load not counted.
    pub reloaded: u64,
    /// Sets of files that were refused. One that stays is counted once.
    pub refused: u64,
    /// What is wrong with the files as they are; `None` when they are the ones in use.
    pub problem: Option<String>,
}

/// A running watch of files. Dropping it ends the watch; the identity stays as it is.
#[must_use = "dropping it ends the watch"]
#[derive(Debug)]
pub struct FileWatch {
    task: AbortHandle,
    status: watch::Receiver<ReloadStatus>,
}

impl FileWatch {
    /// How the reloads went so far.
    pub fn status(&self) -> ReloadStatus {
        self.status.borrow().clone()
    }

    /// The same, to wait for a change.
    pub fn subscribe(&self) -> watch::Receiver<ReloadStatus> {
        self.status.clone()
    }
}

impl Drop for FileWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads the files and makes an identity of them.
///
/// # Errors
/// [`FileError`] when a file cannot be read or the set cannot be used: damaged, empty, key and certificate of different
/// issues, outside its validity, without a workload's id, or refused by its own roots.
pub async fn load(source: &FileSource) -> Result<Identity, FileError> {
    let reader = Arc::new(source.clone());
    let set = read_in_background(&reader).await?;
    let content = |error| source.content_error(error);
    let credentials = set.credentials().map_err(content)?;
    credentials.check(SystemTime::now()).map_err(content)?;
    let trust_domains = match &source.trust_domains {
        Some(trust_domains) => trust_domains.clone(),
        None => TrustDomains::of(&credentials.id),
    };
    Ok(Identity::new(credentials, trust_domains))
}

/// Looks at the files every `interval` (at least 10 ms) from now on and publishes a set that is new and good, and that
/// two looks in a row found the same, to `identity`. A bad set is logged once with the reason and changes nothing. Must be called within a tokio runtime.
pub fn watch(source: FileSource, identity: Identity, interval: Duration) -> FileWatch {
    let (sender, status) = watch::channel(ReloadStatus::default());
    let reloader = Reloader {
        source: Arc::new(source),
        identity,
        status: sender,
        in_use: None,
        seen: None,
        refused: None,
    };
    let task = tokio::spawn(reloader.run(interval.max(MIN_INTERVAL)));
    FileWatch { task: task.abort_handle(), status }
}

/// The contents of the three files, read together.
#[derive(PartialEq, Eq)]
struct FileSet {
    cert: Vec<u8>,
    key: Vec<u8>,
    roots: Vec<u8>,
}

/// A set that was not taken, or none that could be read.
struct Refused {
    set: Option<FileSet>,
    reason: String,
    passes_with_time: bool,
}

struct Reloader {
    source: Arc<FileSource>,
    identity: Identity,
    status: watch::Sender<ReloadStatus>,
    in_use: Option<FileSet>,
    /// What the last reading found, when it was another set than the one in use.
    seen: Option<FileSet>,
    refused: Option<Refused>,
}

impl Reloader {
    async fn run(mut self, interval: Duration) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match read_in_background(&self.source).await {
                Ok(set) => self.look_at(set),
                Err(error) => self.refuse(None, error.to_string(), false),
            }
        }
    }

    fn look_at(&mut self, set: FileSet) {
        if self.in_use.as_ref() == Some(&set) {
            self.settle();
            return;
        }
        if self.seen.as_ref() != Some(&set) {
            self.seen = Some(set);
            return;
        }
        if let Some(refused) = &self.refused
            && refused.set.as_ref() == Some(&set)
            && !refused.passes_with_time
        {
            return;
        }
        let before = self.identity.current();
        let published =
            set.credentials().and_then(|credentials| self.identity.publish(credentials));
        match published {
            Ok(()) => {
                self.in_use = Some(set);
                let current = self.identity.current();
                if current.generation != before.generation {
                    self.status.send_modify(|status| status.reloaded += 1);
                    tracing::info!(
                        id = %current.id,
                        previous_id = %before.id,
                        serial = current.serial,
                        generation = current.generation,
                        "certificate files reloaded"
                    );
                }
                self.settle();
            }
            Err(error) => {
                let passes_with_time = error.passes_with_time();
                let reason = self.source.content_error(error).to_string();
                self.refuse(Some(set), reason, passes_with_time);
            }
        }
    }

    /// The files are those in use.
    fn settle(&mut self) {
        self.seen = None;
        self.refused = None;
        self.status.send_if_modified(|status| status.problem.take().is_some());
    }

    fn refuse(&mut self, set: Option<FileSet>, reason: String, passes_with_time: bool) {
        let known = self
            .refused
            .as_ref()
            .is_some_and(|refused| refused.set == set && refused.reason == reason);
        if known {
            return;
        }
        let current = self.identity.current();
        tracing::warn!(
            reason,
            serial = current.serial,
            generation = current.generation,
            "certificate files refused, the certificate in use stays"
        );
        self.status.send_modify(|status| {
            status.refused += 1;
            status.problem = Some(reason.clone());
        });
        self.refused = Some(Refused { set, reason, passes_with_time });
    }
}

impl FileSource {
    fn content_error(&self, error: IdentityError) -> FileError {
        let path = match error.part() {
            MaterialPart::Chain => &self.cert,
            MaterialPart::Key => &self.key,
            MaterialPart::Roots => &self.roots,
        };
        FileError::Content { path: path.clone(), error }
    }

    /// Where the three paths lead, all symlinks followed.
    fn resolve(&self) -> Result<[PathBuf; 3], FileError> {
        let resolve = |path: &Path| {
            fs::canonicalize(path).map_err(|error| FileError::Read { path: path.to_owned(), error })
        };
        Ok([resolve(&self.cert)?, resolve(&self.key)?, resolve(&self.roots)?])
    }

    fn read(&self) -> Result<FileSet, FileError> {
        for _ in 0..READ_ATTEMPTS {
            let [cert, key, roots] = self.resolve()?;
            let set = FileSet::read(self, &cert, &key, &roots);
            if self.resolve().is_ok_and(|now| now == [cert, key, roots]) {
                return set;
            }
        }
        Err(FileError::Moving { path: self.cert.clone() })
    }
}

impl FileSet {
    fn read(source: &FileSource, cert: &Path, key: &Path, roots: &Path) -> Result<Self, FileError> {
        Ok(Self {
            cert: read_file(&source.cert, cert)?,
            key: read_file(&source.key, key)?,
            roots: read_file(&source.roots, roots)?,
        })
    }

    fn credentials(&self) -> Result<Credentials, IdentityError> {
        Credentials::from_pem(&self.cert, &self.key, &self.roots)
    }
}

impl fmt::Debug for FileSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSet").finish_non_exhaustive()
    }
}

async fn read_in_background(source: &Arc<FileSource>) -> Result<FileSet, FileError> {
    let reader = Arc::clone(source);
    let read = spawn_blocking(move || reader.read()).await;
    read.unwrap_or_else(|error| {
        Err(FileError::Read { path: source.cert.clone(), error: io::Error::other(error) })
    })
}

/// Reads the file at `resolved`, which errors call `path`.
fn read_file(path: &Path, resolved: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |error| FileError::Read { path: path.to_owned(), error };
    let unsuitable = || FileError::Unsuitable { path: path.to_owned() };
    // Opening a pipe would wait for a writer.
    if !fs::metadata(resolved).map_err(failed)?.is_file() {
        return Err(unsuitable());
    }
    let mut bytes = Vec::new();
    let file = File::open(resolved).map_err(failed)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(unsuitable());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::dev::{DevCa, IssueOptions};

    #[test]
    fn a_changed_set_must_be_found_twice() {
        let ca = DevCa::new("td").unwrap();
        let other = DevCa::new("td").unwrap();
        let id = ca.id("default", "waypoint").unwrap();
        let mut bundle = ca.issue_pem(&id, IssueOptions::default()).unwrap();
        bundle.roots += other.root_pem();
        let set = |roots: &str| FileSet {
            cert: bundle.cert_chain.clone().into_bytes(),
            key: bundle.key.clone().into_bytes(),
            roots: roots.as_bytes().to_vec(),
        };
        let mut reloader = Reloader {
            source: Arc::new(FileSource {
                cert: "cert".into(),
                key: "key".into(),
                roots: "roots".into(),
                trust_domains: None,
            }),
            identity: Identity::fixed(bundle.credentials().unwrap()),
            status: watch::Sender::default(),
            in_use: Some(set(&bundle.roots)),
            seen: None,
            refused: None,
        };
        // A bundle that is cut between two roots is good PEM; only the second look can tell.
        reloader.look_at(set(ca.root_pem()));
        assert_eq!(reloader.identity.current().generation, 1);
        reloader.look_at(set(&bundle.roots));
        reloader.look_at(set(ca.root_pem()));
        assert_eq!(reloader.identity.current().generation, 1);
        reloader.look_at(set(ca.root_pem()));
        assert_eq!(reloader.identity.current().generation, 2);
        assert_eq!(reloader.identity.current().roots().len(), 1);
        assert_eq!(reloader.status.borrow().reloaded, 1);
    }
}

//! A store in a file, for a warm start.
//!
//! ```text
//! "CAIRNXDS" | format version, u32 LE | bytes of the rest, u64 LE | SHA-256 of the rest | protobuf
//! ```
//!
//! The checksum finds damage, not malice: whoever can write into the directory is the process itself. What is read is
//! bounded and checked all the same, and a file that is not certainly right is not used.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use prost::Message;

use super::snapshot::{self, Snapshot};
use super::{Footprint, Store};
use crate::feed::Kind;

/// Files that are older are not used, unless set otherwise.
pub const DEFAULT_MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Files that are larger are not read, unless set otherwise. In bytes.
pub const DEFAULT_MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;
/// So far ahead the clock of a writer may have been.
const MAX_SKEW: Duration = Duration::from_secs(300);

const MAGIC: &[u8; 8] = b"CAIRNXDS";
const FORMAT: u32 = 1;
const PREFIX_BYTES: usize = 8 + 4 + 8 + 32;

/// Whose resources a file holds. Those of another proxy are never used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The node's id, as istiod knows it.
    pub node: String,
    /// The node's cluster id (`CLUSTER_ID`).
    pub cluster: String,
    /// The SPIFFE id that the proxy serves as.
    pub identity: String,
}

/// What a file may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportLimits {
    /// Older files are refused.
    pub max_age: Duration,
    /// Larger files are refused, in bytes.
    pub max_bytes: u64,
}

impl Default for ImportLimits {
    fn default() -> Self {
        ImportLimits { max_age: DEFAULT_MAX_AGE, max_bytes: DEFAULT_MAX_FILE_BYTES }
    }
}

/// What came out of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// When the control plane was last heard before it was written.
    pub written: SystemTime,
    /// Kinds that it holds all of.
    pub answered: BTreeSet<Kind>,
    /// How much it holds.
    pub footprint: Footprint,
}

/// Why a file is not used. The proxy then begins without it, as on its first start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// There is none.
    #[error("there is no {}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("{} cannot be read: {reason}; check the rights of the directory", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// It is larger than allowed.
    #[error("{} has {bytes} bytes, {allowed} are allowed; it is not used", path.display())]
    TooBig {
        /// The file.
        path: PathBuf,
        /// How large it is.
        bytes: u64,
        /// How large it may be.
        allowed: u64,
    },
    /// Its content is damaged, or of another format.
    #[error("{} is damaged: {reason}; it is not used and will be written anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It belongs to somebody else.
    #[error("{} belongs to another proxy, its {what} is {found:?} and not {expected:?}; it is not used", path.display())]
    OtherOwner {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// What it has.
        found: String,
        /// What it should have.
        expected: String,
    },
    /// It is too old.
    #[error("{} is as of {} s ago, {} s are allowed; it is not used", path.display(), age.as_secs(), allowed.as_secs())]
    TooOld {
        /// The file.
        path: PathBuf,
        /// How old it is.
        age: Duration,
        /// How old it may be.
        allowed: Duration,
    },
}

/// Why a file was not written. The one that was there before is whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} cannot be written: {reason}; a warm start needs a directory that is writable", path.display())]
pub struct ExportError {
    /// The file.
    pub path: PathBuf,
    /// What the system says.
    pub reason: String,
}

impl Store {
    /// Writes everything but secrets: into a file beside it that only its owner may read, which then takes its place.
    /// Blocks the thread.
    ///
    /// # Errors
    /// [`ExportError`]; a file that was there is whole.
    pub fn export(&self, path: &Path, owner: &Owner) -> Result<(), ExportError> {
        let shelves = self.shelves.lock().clone();
        let body = Snapshot::of(&shelves, owner).encode_to_vec();
        drop(shelves);
        write(path, &body)
            .map_err(|error| ExportError { path: path.to_owned(), reason: error.to_string() })
    }

    /// What [`Store::export`] would write, for another process of the same owner. Blocks the thread.
    pub fn to_bytes(&self, owner: &Owner) -> Vec<u8> {
        let shelves = self.shelves.lock().clone();
        let body = Snapshot::of(&shelves, owner).encode_to_vec();
        drop(shelves);
        let mut bytes = wrap(&body);
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Takes the place of what is held with the content of a file that was written for the same owner. Blocks the thread.
    ///
    /// # Errors
    /// [`ImportError`]; what is held stays then.
    pub fn import(
        &self,
        path: &Path,
        owner: &Owner,
        limits: ImportLimits,
    ) -> Result<Imported, ImportError> {
        let bytes = read(path, limits.max_bytes)?;
        self.take(bytes, path, owner, limits)
    }

    /// Takes the place of what is held with what another process of the same owner had ([`Store::to_bytes`]); `from`
    /// names it in errors. Blocks the thread.
    ///
    /// # Errors
    /// [`ImportError`]; what is held stays then.
    pub fn import_bytes(
        &self,
        bytes: Vec<u8>,
        from: &str,
        owner: &Owner,
        limits: ImportLimits,
    ) -> Result<Imported, ImportError> {
        let from = Path::new(from);
        if bytes.len() as u64 > limits.max_bytes {
            let (bytes, allowed) = (bytes.len() as u64, limits.max_bytes);
            return Err(ImportError::TooBig { path: from.to_owned(), bytes, allowed });
        }
        self.take(bytes, from, owner, limits)
    }

    fn take(
        &self,
        bytes: Vec<u8>,
        path: &Path,
        owner: &Owner,
        limits: ImportLimits,
    ) -> Result<Imported, ImportError> {
        let damaged = |reason: String| ImportError::Damaged { path: path.to_owned(), reason };
        let body = unwrap(bytes).map_err(damaged)?;
        let snapshot = Snapshot::decode(body)
            .map_err(|error| damaged(format!("it does not decode: {error}")))?;
        let header = snapshot
            .header
            .as_ref()
            .ok_or_else(|| damaged("it does not say whose it is".to_owned()))?;
        let Owner { node, cluster, identity } = owner;
        for (what, found, expected) in [
            ("node", &header.node, node),
            ("cluster", &header.cluster, cluster),
            ("identity", &header.identity, identity),
        ] {
            if found != expected {
                let (found, expected) = (found.clone(), expected.clone());
                return Err(ImportError::OtherOwner {
                    path: path.to_owned(),
                    what,
                    found,
                    expected,
                });
            }
        }
        let written = snapshot::time(header.written);
        match SystemTime::now().duration_since(written) {
            Ok(age) if age > limits.max_age => {
                let (path, allowed) = (path.to_owned(), limits.max_age);
                return Err(ImportError::TooOld { path, age, allowed });
            }
            Err(ahead) if ahead.duration() > MAX_SKEW => {
                let ahead = ahead.duration().as_secs();
                return Err(damaged(format!("it is as of {ahead} s in the future")));
            }
            _ => {}
        }
        let shelves = snapshot.shelves(|body| self.digest(body)).map_err(damaged)?;
        let answered = shelves.answered.clone();
        *self.shelves.lock() = shelves;
        self.revision.send_modify(|revision| *revision += 1);
        Ok(Imported { written, answered, footprint: self.footprint() })
    }
}

fn wrap(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PREFIX_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
    bytes.extend_from_slice(ring::digest::digest(&ring::digest::SHA256, body).as_ref());
    bytes
}

fn unwrap(bytes: Vec<u8>) -> Result<Bytes, String> {
    let (prefix, body) = bytes
        .split_at_checked(PREFIX_BYTES)
        .ok_or_else(|| format!("it has {} bytes only", bytes.len()))?;
    if prefix.get(..8) != Some(MAGIC.as_slice()) {
        return Err("it is no file of this kind".to_owned());
    }
    let expected = wrap(body);
    if prefix.get(8..12) != expected.get(8..12) {
        return Err("it has another format version".to_owned());
    }
    if prefix.get(12..20) != expected.get(12..20) {
        return Err("it was cut off, or has bytes too many".to_owned());
    }
    if prefix != expected {
        return Err("the checksum is wrong".to_owned());
    }
    Ok(Bytes::from(bytes).slice(PREFIX_BYTES..))
}

fn read(path: &Path, max_bytes: u64) -> Result<Vec<u8>, ImportError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => ImportError::Missing { path: path.to_owned() },
        _ => ImportError::Unreadable { path: path.to_owned(), reason: error.to_string() },
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        let reason = "it is no regular file".to_owned();
        return Err(ImportError::Unreadable { path: path.to_owned(), reason });
    }
    let too_big = |bytes| ImportError::TooBig { path: path.to_owned(), bytes, allowed: max_bytes };
    if metadata.len() > max_bytes {
        return Err(too_big(metadata.len()));
    }
    let mut bytes = Vec::new();
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > max_bytes {
        return Err(too_big(bytes.len() as u64));
    }
    Ok(bytes)
}

fn write(path: &Path, body: &[u8]) -> io::Result<()> {
    let mut name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it names no file"))?
        .to_owned();
    name.push(".new");
    let fresh = path.with_file_name(name);
    // What a process that was killed left behind; also makes sure that the mode below holds.
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(&wrap(body))?;
        file.write_all(body)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    })();
    if written.is_err() {
        // Best effort: the error that counts is the first one.
        let _ = fs::remove_file(&fresh);
    }
    written
}

#[cfg(test)]
pub(super) fn wrapped(body: &[u8]) -> Vec<u8> {
    let mut bytes = wrap(body);
    bytes.extend_from_slice(body);
    bytes
}

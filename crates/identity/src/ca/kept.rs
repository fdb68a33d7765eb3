//! Key, chain and roots on a file system in memory, so that a restarted process has its certificate at once.
//!
//! It is one file, put in place by a rename, so that its parts are always of one issue; only this user can read it. A
//! directory on a disk is refused: a key that was written there may be read long after it was deleted.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::credentials::{Credentials, IdentityError};
use crate::spiffe::SpiffeId;

/// The file's name in its directory.
const NAME: &str = "cairn-identity.pem";
/// What it is called until it is complete.
const UNFINISHED: &str = ".cairn-identity.pem.new";
/// The first line; the number changes when the form does.
const HEADER: &str = "Cairn identity 1";
const KEY: &str = "== key";
const ROOTS: &str = "== roots";
/// Largest file in bytes.
const MAX_BYTES: u64 = 4 * 1024 * 1024;
/// Only this user may read it.
const MODE: u32 = 0o600;
/// `statfs` of a tmpfs and of a ramfs (Linux: `include/uapi/linux/magic.h`).
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
/// Base64 characters in a line of PEM (RFC 7468, section 2).
const LINE: usize = 64;

/// Why nothing is kept, or what was kept is not used. `Display` names the path and what to do.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// The directory is not in memory.
    #[error("{}: it is not in memory; mount a tmpfs there (emptyDir with medium: Memory), keys are not written to disks", .0.display())]
    NotInMemory(PathBuf),
    /// The system refused.
    #[error("{}: {error}; this user must be able to write there", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Others could read the file, or it is not a file.
    #[error("{}: it is not a regular file that only its owner can read; it is not used", .0.display())]
    Exposed(PathBuf),
    /// The file has another form.
    #[error("{}: it is damaged or of another version; it is not used", .0.display())]
    Form(PathBuf),
    /// The certificate in it is for another identity.
    #[error("{}: it is the certificate of {found}; it is not used", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// Whom it names.
        found: SpiffeId,
    },
    /// The contents cannot be used, mostly because the certificate has ended.
    #[error("{}: {error}; it is not used", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: IdentityError,
    },
}

/// The place where one identity is kept.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    directory: PathBuf,
}

impl Kept {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// What was kept for `id`, when it is still good; `None` when nothing was kept.
    pub(super) fn load(
        &self,
        id: &SpiffeId,
        now: SystemTime,
    ) -> Result<Option<Credentials>, KeptError> {
        let path = self.directory.join(NAME);
        let failed = |error| KeptError::Io { path: path.clone(), error };
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
            Ok(metadata) => {
                let private = metadata.permissions().mode() & 0o077 == 0;
                if !metadata.is_file() || !private {
                    return Err(KeptError::Exposed(path));
                }
            }
        }
        let mut text = String::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text))
            .map_err(failed)?;
        let parts = text.strip_prefix(HEADER).and_then(|rest| rest.split_once(KEY)).and_then(
            |(chain, rest)| rest.split_once(ROOTS).map(|(key, roots)| (chain, key, roots)),
        );
        let Some((chain, key, roots)) = parts else { return Err(KeptError::Form(path)) };
        let content = |error| KeptError::Content { path: path.clone(), error };
        let credentials = Credentials::from_pem(chain.as_bytes(), key.as_bytes(), roots.as_bytes())
            .map_err(content)?;
        if credentials.id != *id {
            return Err(KeptError::Identity { path, found: credentials.id });
        }
        credentials.check(now).map_err(content)?;
        Ok(Some(credentials))
    }

    /// Keeps `credentials` in place of what was kept before.
    pub(super) fn store(
        &self,
        credentials: &Credentials,
        key: &PrivateKeyDer<'static>,
    ) -> Result<(), KeptError> {
        if !in_memory(&self.directory)? {
            return Err(KeptError::NotInMemory(self.directory.clone()));
        }
        let unfinished = self.directory.join(UNFINISHED);
        let written = write_private(&unfinished, &text(credentials, key))
            .and_then(|()| fs::rename(&unfinished, self.directory.join(NAME)));
        written.map_err(|error| {
            // It may hold a key; when it cannot be removed either, the error that is reported says where it is.
            let _ = fs::remove_file(&unfinished);
            KeptError::Io { path: unfinished, error }
        })
    }
}

fn in_memory(directory: &Path) -> Result<bool, KeptError> {
    let found = rustix::fs::statfs(directory)
        .map_err(|error| KeptError::Io { path: directory.to_owned(), error: error.into() })?;
    Ok(u64::try_from(found.f_type).is_ok_and(|kind| IN_MEMORY.contains(&kind)))
}

/// Writes a file that did not exist before, so that nobody has opened it and no link leads elsewhere.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(path)?;
    file.set_permissions(Permissions::from_mode(MODE))?;
    file.write_all(text.as_bytes())
}

fn text(credentials: &Credentials, key: &PrivateKeyDer<'static>) -> String {
    let mut text = format!("{HEADER}\n");
    let certificates = |text: &mut String, list: &[CertificateDer<'_>]| {
        for certificate in list {
            push_pem(text, "CERTIFICATE", certificate);
        }
    };
    certificates(&mut text, credentials.chain());
    text.push_str(KEY);
    text.push('\n');
    let label = match key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    push_pem(&mut text, label, key.secret_der());
    text.push_str(ROOTS);
    text.push('\n');
    certificates(&mut text, credentials.roots());
    text
}

fn push_pem(text: &mut String, label: &str, der: &[u8]) {
    let encoded = STANDARD.encode(der);
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII, so every index is a character's.
        let (line, after) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(&format!("-----END {label}-----\n"));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use std::time::Duration;

    use rustls_pki_types::pem::PemObject;
    use tempfile::TempDir;

    use super::*;
    use crate::dev::{DevCa, IssueOptions};

    const HOUR: Duration = Duration::from_secs(3600);

    /// A directory in memory; every Linux has one here.
    fn memory() -> TempDir {
        TempDir::new_in("/dev/shm").unwrap()
    }

    fn issued(ca: &DevCa, name: &str) -> (Credentials, PrivateKeyDer<'static>) {
        let id = ca.id("shop", name).unwrap();
        let options = IssueOptions { ttl: HOUR, ..IssueOptions::default() };
        let bundle = ca.intermediate().unwrap().issue_pem(&id, options).unwrap();
        let key = PrivateKeyDer::from_pem_slice(bundle.key.as_bytes()).unwrap();
        (bundle.credentials().unwrap(), key)
    }

    #[test]
    fn kept_and_loaded() {
        let directory = memory();
        let kept = Kept::new(directory.path().to_owned());
        let ca = DevCa::new("td").unwrap();
        let (credentials, key) = issued(&ca, "waypoint");
        let now = SystemTime::now();
        assert!(kept.load(&credentials.id, now).unwrap().is_none());
        kept.store(&credentials, &key).unwrap();
        let loaded = kept.load(&credentials.id, now).unwrap().unwrap();
        assert_eq!(loaded.chain(), credentials.chain());
        assert_eq!(loaded.roots(), credentials.roots());
        assert_eq!(loaded.chain().len(), 2);

        let (next, next_key) = issued(&ca, "waypoint");
        kept.store(&next, &next_key).unwrap();
        assert_eq!(kept.load(&next.id, now).unwrap().unwrap().serial, next.serial);
        let names: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, [NAME]);
        let mode = fs::metadata(directory.path().join(NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
    }

    #[test]
    fn not_used_when_not_ours_or_over() {
        let directory = memory();
        let kept = Kept::new(directory.path().to_owned());
        let ca = DevCa::new("td").unwrap();
        let (credentials, key) = issued(&ca, "waypoint");
        kept.store(&credentials, &key).unwrap();
        let now = SystemTime::now();
        let other = ca.id("shop", "other").unwrap();
        assert!(matches!(kept.load(&other, now), Err(KeptError::Identity { .. })));
        let later = kept.load(&credentials.id, now + 2 * HOUR);
        assert!(
            matches!(later, Err(KeptError::Content { error: IdentityError::Expired(_), .. })),
            "{later:?}"
        );

        let path = directory.path().join(NAME);
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(kept.load(&credentials.id, now), Err(KeptError::Exposed(_))));
        fs::set_permissions(&path, Permissions::from_mode(MODE)).unwrap();
        let whole = fs::read(&path).unwrap();
        for part in 0..16 {
            fs::write(&path, &whole[..whole.len() * part / 16]).unwrap();
            assert!(kept.load(&credentials.id, now).is_err(), "{part}");
        }
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(kept.load(&credentials.id, now), Err(KeptError::Io { .. })));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        assert!(matches!(kept.load(&credentials.id, now), Err(KeptError::Exposed(_))));
    }

    #[test]
    fn never_on_a_disk_and_never_through_a_link() {
        let ca = DevCa::new("td").unwrap();
        let (credentials, key) = issued(&ca, "waypoint");
        let disk = TempDir::new().unwrap();
        // Where temporary files are in memory there is no disk to try it on.
        if !in_memory(disk.path()).unwrap() {
            let error = Kept::new(disk.path().to_owned()).store(&credentials, &key).unwrap_err();
            assert!(matches!(error, KeptError::NotInMemory(_)), "{error}");
            assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
        }

        let directory = memory();
        let elsewhere = directory.path().join("elsewhere");
        fs::write(&elsewhere, "").unwrap();
        std::os::unix::fs::symlink(&elsewhere, directory.path().join(UNFINISHED)).unwrap();
        Kept::new(directory.path().to_owned()).store(&credentials, &key).unwrap();
        assert_eq!(fs::read(&elsewhere).unwrap(), b"");

        let absent = Kept::new(directory.path().join("absent"));
        assert!(matches!(absent.store(&credentials, &key), Err(KeptError::Io { .. })));
        assert!(absent.load(&credentials.id, SystemTime::now()).unwrap().is_none());
    }
}

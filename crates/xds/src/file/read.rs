//! Finds and reads the files, and tells whether they have changed.
//!
//! Polling instead of inotify: Kubernetes swaps symlinks, network file systems send no events, and
//! a stat per second costs nothing. A file is read again when its stat has changed, or when it was
//! written so recently that a second write might have left the stat as it was.

use super::document::Document;
use super::error::FileError;
use super::parse::Format;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes of one YAML file, at most.
pub const MAX_YAML_BYTES: u64 = 16 << 20;
/// Bytes of one JSON file, at most.
pub const MAX_JSON_BYTES: u64 = 64 << 20;
/// Bytes of all files of a directory together, at most.
pub const MAX_TOTAL_BYTES: u64 = 256 << 20;
/// Files of a directory, at most.
pub const MAX_FILES: usize = 1024;

/// The coarsest clock of the file systems that are met: a stat says nothing about changes within
/// so long after the last one.
const CLOCK_STEP: Duration = Duration::from_secs(2);

/// How often files are read again when they change while they are read.
const ATTEMPTS: usize = 3;

/// All files as they were at one look.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub files: Vec<SeenFile>,
}

/// A file as it was at one look.
#[derive(Debug, Clone)]
pub(super) struct SeenFile {
    pub path: PathBuf,
    stamp: Option<Stamp>,
    pub content: Content,
    /// Read at this look.
    pub bytes: Option<Arc<[u8]>>,
    /// What they say, if it has been parsed; its values are shared with the configuration.
    pub document: Option<Arc<Document>>,
}

/// What was in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Bytes { hash: u64, length: usize },
    Unreadable { message: String },
}

/// What stat says. Any write, rename or symlink swap changes one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// The last change was long enough ago when this was taken.
    settled: bool,
}

impl Seen {
    /// Reads what may have changed since `previous`.
    pub fn look(root: &Path, previous: &Seen) -> Seen {
        let mut seen = Seen::read(root, previous);
        for _ in 1..ATTEMPTS {
            // What nothing was read of cannot have been read by halves.
            if !seen.has_read() || seen.is_current(root) {
                break;
            }
            seen = Seen::read(root, &seen);
        }
        seen
    }

    /// Whether both hold the same bytes under the same names.
    pub fn same_content(&self, other: &Seen) -> bool {
        self.files.len() == other.files.len()
            && self
                .files
                .iter()
                .zip(&other.files)
                .all(|(a, b)| a.path == b.path && a.content == b.content)
    }

    /// A file of this look.
    pub fn file(&self, path: &Path) -> Option<&SeenFile> {
        let index = self.files.binary_search_by(|file| file.path.as_path().cmp(path)).ok()?;
        self.files.get(index)
    }

    fn read(root: &Path, previous: &Seen) -> Seen {
        let paths = match list(root) {
            Ok(paths) => paths,
            Err(message) => {
                let content = Content::Unreadable { message };
                let file = SeenFile {
                    path: root.to_owned(),
                    stamp: None,
                    content,
                    bytes: None,
                    document: None,
                };
                return Seen { files: vec![file] };
            }
        };
        let mut left = MAX_TOTAL_BYTES;
        let files =
            paths.into_iter().map(|path| SeenFile::read(path, previous, &mut left)).collect();
        Seen { files }
    }

    fn has_read(&self) -> bool {
        self.files.iter().any(|file| file.bytes.is_some())
    }

    /// Whether the files are still what was read: otherwise half of a change may have been read.
    fn is_current(&self, root: &Path) -> bool {
        let Ok(paths) = list(root) else {
            return self.files.iter().all(|file| file.stamp.is_none());
        };
        paths.len() == self.files.len()
            && paths.iter().zip(&self.files).all(|(path, file)| {
                let stamp = Stamp::of(path).ok();
                *path == file.path
                    && stamp.map(Stamp::unsettled) == file.stamp.map(Stamp::unsettled)
            })
    }
}

impl SeenFile {
    /// Reads a file unless it is certainly what it was. Takes its length from `left`.
    fn read(path: PathBuf, previous: &Seen, left: &mut u64) -> SeenFile {
        let stamp = match Stamp::of(&path) {
            Ok(stamp) => stamp,
            Err(message) => {
                let content = Content::Unreadable { message };
                return SeenFile { path, stamp: None, content, bytes: None, document: None };
            }
        };
        let before = previous.file(&path);
        if let Some(before) = before
            && before.stamp == Some(stamp)
            && stamp.settled
            && let Content::Bytes { length, .. } = &before.content
            && let Some(rest) = left.checked_sub(*length as u64)
        {
            *left = rest;
            return before.clone();
        }
        match read(&path, *left) {
            Ok(bytes) => {
                *left -= bytes.len() as u64;
                let content = Content::of(&bytes);
                let document = before
                    .filter(|before| before.content == content)
                    .and_then(|before| before.document.clone());
                SeenFile { path, stamp: Some(stamp), content, bytes: Some(bytes), document }
            }
            Err(message) => {
                let content = Content::Unreadable { message };
                SeenFile { path, stamp: Some(stamp), content, bytes: None, document: None }
            }
        }
    }

    /// The bytes of this look, or those that are there now.
    pub fn bytes(&self) -> Result<Arc<[u8]>, FileError> {
        match &self.bytes {
            Some(bytes) => Ok(Arc::clone(bytes)),
            None => read(&self.path, MAX_TOTAL_BYTES)
                .map_err(|message| FileError::whole(&self.path, message)),
        }
    }
}

impl Content {
    /// Identifies bytes.
    pub fn of(bytes: &[u8]) -> Content {
        let mut hasher = DefaultHasher::new();
        hasher.write(bytes);
        Content::Bytes { hash: hasher.finish(), length: bytes.len() }
    }
}

impl Stamp {
    /// Follows symlinks. Fails for what is no regular file.
    fn of(path: &Path) -> Result<Stamp, String> {
        let data = fs::metadata(path).map_err(|e| unreadable(&e))?;
        if !data.is_file() {
            return Err("expected a regular file".to_owned());
        }
        let changed = (data.ctime(), data.ctime_nsec());
        let age = SystemTime::now()
            .duration_since(UNIX_EPOCH + Duration::from_secs(u64::try_from(changed.0).unwrap_or(0)))
            .unwrap_or(Duration::ZERO);
        Ok(Stamp {
            device: data.dev(),
            inode: data.ino(),
            length: data.len(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed,
            settled: age > CLOCK_STEP,
        })
    }

    fn unsettled(self) -> Stamp {
        Stamp { settled: false, ..self }
    }
}

/// Reads a whole file.
pub(super) fn read(path: &Path, left: u64) -> Result<Arc<[u8]>, String> {
    let (name, limit) = match Format::of(path) {
        Some(Format::Yaml) => ("YAML", MAX_YAML_BYTES),
        Some(Format::Json) => ("JSON", MAX_JSON_BYTES),
        None => return Err("expected a name that ends with .yaml, .yml or .json".to_owned()),
    };
    let file = fs::File::open(path).map_err(|e| unreadable(&e))?;
    let bound = limit.min(left);
    let mut bytes = Vec::new();
    file.take(bound + 1).read_to_end(&mut bytes).map_err(|e| unreadable(&e))?;
    if bytes.len() as u64 <= bound {
        return Ok(bytes.into());
    }
    Err(if bound == limit {
        format!("more than {} MiB of {name}: split the file, or write JSON", limit >> 20)
    } else {
        format!("more than {} MiB in all files together", MAX_TOTAL_BYTES >> 20)
    })
}

/// The files that `root` stands for: itself, or what is in it, by name. Hidden files, other
/// extensions and directories are left out.
fn list(root: &Path) -> Result<Vec<PathBuf>, String> {
    let data = fs::metadata(root).map_err(|e| unreadable(&e))?;
    if !data.is_dir() {
        return Ok(vec![root.to_owned()]);
    }
    let mut paths = Vec::new();
    for entry in fs::read_dir(root).map_err(|e| unreadable(&e))? {
        let entry = entry.map_err(|e| unreadable(&e))?;
        let path = entry.path();
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if hidden || Format::of(&path).is_none() || is_dir(&entry, &path) {
            continue;
        }
        paths.push(path);
        if paths.len() > MAX_FILES {
            return Err(format!("more than {MAX_FILES} files"));
        }
    }
    if paths.is_empty() {
        return Err("no file in this directory ends with .yaml, .yml or .json".to_owned());
    }
    paths.sort();
    Ok(paths)
}

/// Follows symlinks. The listing itself knows what most entries are.
fn is_dir(entry: &fs::DirEntry, path: &Path) -> bool {
    match entry.file_type() {
        Ok(kind) if !kind.is_symlink() => kind.is_dir(),
        _ => path.is_dir(),
    }
}

fn unreadable(error: &io::Error) -> String {
    format!("cannot be read: {error}")
}

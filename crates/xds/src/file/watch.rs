//! Follows a file or directory and keeps the last good configuration.

use super::config::Config;
use super::error::{FileError, Problem};
use super::merge::{Origins, Part, merge};
use super::parse::{self, Format};
use super::read::{self, Content, Seen, SeenFile};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// A configuration on disk: a YAML or JSON file, or a directory of such files.
///
/// The last good [`Config`] stays until a better one is there. Files with unchanged bytes are not
/// parsed again, and a configuration that says the same as before is the same `Arc`.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    interval: Duration,
    seen: Arc<Seen>,
    good: Good,
    ticks: Option<Interval>,
    /// A look that is under way.
    look: Option<JoinHandle<Look>>,
}

/// The last configuration that had nothing wrong with it.
#[derive(Debug)]
struct Good {
    config: Arc<Config>,
    origins: Origins,
    /// By the index that `origins` names.
    files: Vec<(PathBuf, Content)>,
}

/// What a look has found.
#[derive(Debug)]
struct Look {
    seen: Seen,
    /// `None`: the same bytes as before.
    outcome: Option<Result<Good, Vec<FileError>>>,
}

impl FileSource {
    /// Time between two looks unless [`FileSource::interval`] says otherwise.
    pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);

    /// Reads a file or a directory (its `.yaml`, `.yml` and `.json` files by name, without
    /// subdirectories). Blocks while reading.
    ///
    /// # Errors
    /// Everything that is wrong with the files; of mistakes in syntax or type only the first of
    /// each file is found.
    pub fn open(path: impl Into<PathBuf>) -> Result<(FileSource, Arc<Config>), Vec<FileError>> {
        let path = path.into();
        let Look { seen, outcome } = Look::at(&path, &Seen::default());
        let good = match outcome {
            Some(outcome) => outcome?,
            None => return Err(vec![FileError::whole(&path, "no file was found")]),
        };
        let config = Arc::clone(&good.config);
        let source = FileSource {
            path,
            interval: Self::DEFAULT_INTERVAL,
            seen: Arc::new(seen),
            good,
            ticks: None,
            look: None,
        };
        Ok((source, config))
    }

    /// Looks every `interval` from now on; at least 1 ms.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval.max(Duration::from_millis(1));
        self.ticks = None;
        self
    }

    /// The last good configuration.
    pub fn config(&self) -> &Arc<Config> {
        &self.good.config
    }

    /// Waits until the bytes of the files change, and yields the configuration that they hold: the
    /// same `Arc` as before if it says the same. Cancel-safe: nothing is lost when the future is
    /// dropped. Files are read on the blocking pool.
    ///
    /// # Errors
    /// Everything that is wrong with the new bytes, once; [`FileSource::config`] stays what it was,
    /// and the next change is awaited as before.
    pub async fn changed(&mut self) -> Result<Arc<Config>, Vec<FileError>> {
        loop {
            let handle = match &mut self.look {
                Some(handle) => handle,
                None => {
                    let ticks = self.ticks.get_or_insert_with(|| {
                        let mut ticks = interval_at(Instant::now() + self.interval, self.interval);
                        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                        ticks
                    });
                    ticks.tick().await;
                    let (path, seen) = (self.path.clone(), Arc::clone(&self.seen));
                    self.look.insert(tokio::task::spawn_blocking(move || Look::at(&path, &seen)))
                }
            };
            let look = handle.await;
            self.look = None;
            let Look { seen, outcome } = match look {
                Ok(look) => look,
                Err(error) => {
                    let message = format!("looking for changes failed: {error}");
                    return Err(vec![FileError::whole(&self.path, message)]);
                }
            };
            self.seen = Arc::new(seen);
            match outcome {
                None => {}
                Some(Err(errors)) => return Err(errors),
                Some(Ok(good)) => {
                    let same = good.config == self.good.config;
                    let config = if same { Arc::clone(&self.good.config) } else { good.config };
                    self.good = Good { config: Arc::clone(&config), ..good };
                    return Ok(config);
                }
            }
        }
    }

    /// Says where in the files a field of the last good configuration is. `path` is relative to the
    /// resources of `mesh`, as the router's compiler reports it: `destinations[3].http.routes`.
    /// Reads the file again, and leaves the position out if it has changed meanwhile.
    pub fn explain(&self, mesh: &str, path: &str, message: &str) -> FileError {
        let Good { config: _, origins, files } = &self.good;
        let found =
            origins.find(mesh, path).and_then(|(file, field)| Some((files.get(file)?, field)));
        let Some(((file, content), field)) = found else {
            let error = FileError::whole(&self.path, message);
            return FileError { field: path.to_owned(), ..error };
        };
        let problem = Problem::of_field(field, message);
        let bytes = read::read(file, read::MAX_TOTAL_BYTES).ok();
        let bytes = bytes.filter(|bytes| Content::of(bytes) == *content);
        locate(file, bytes.as_deref(), vec![problem])
            .pop()
            .unwrap_or_else(|| FileError::whole(file, message))
    }
}

impl Look {
    fn at(path: &Path, previous: &Seen) -> Look {
        let mut seen = Seen::look(path, previous);
        let outcome = (!seen.same_content(previous)).then(|| Good::of(&mut seen));
        for file in &mut seen.files {
            file.bytes = None;
        }
        Look { seen, outcome }
    }
}

impl Good {
    /// Parses what is not parsed, and merges. Leaves documents in `seen` for the next time.
    fn of(seen: &mut Seen) -> Result<Good, Vec<FileError>> {
        let mut errors = Vec::new();
        for file in &mut seen.files {
            if let Err(wrong) = parse(file) {
                errors.extend(wrong);
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let part = |file: &SeenFile| {
            let document = Arc::clone(file.document.as_ref()?);
            Some(Part { file: file.path.clone(), document })
        };
        let parts: Vec<Part> = seen.files.iter().filter_map(part).collect();
        match merge(parts) {
            Ok((config, origins)) => {
                let files = seen
                    .files
                    .iter()
                    .map(|file| (file.path.clone(), file.content.clone()))
                    .collect();
                Ok(Good { config: Arc::new(config), origins, files })
            }
            Err(conflicts) => Err(conflicts
                .into_iter()
                .flat_map(|conflict| {
                    let file = seen.files.get(conflict.file);
                    let path = file.map_or(Path::new(""), |file| &file.path);
                    let bytes = file.and_then(|file| file.bytes().ok());
                    locate(path, bytes.as_deref(), vec![conflict.problem])
                })
                .collect()),
        }
    }
}

/// Makes sure that the file's document is there.
fn parse(file: &mut SeenFile) -> Result<(), Vec<FileError>> {
    if let Content::Unreadable { message } = &file.content {
        return Err(vec![FileError::whole(&file.path, message.clone())]);
    }
    if file.document.is_some() {
        return Ok(());
    }
    let bytes = file.bytes().map_err(|error| vec![error])?;
    let format = Format::of(&file.path)
        .ok_or_else(|| vec![FileError::whole(&file.path, "expected .yaml, .yml or .json")])?;
    let document = parse::document(format, &bytes).map_err(|problems| {
        problems.into_iter().map(|p| p.in_file(&file.path)).collect::<Vec<_>>()
    })?;
    file.document = Some(Arc::new(document));
    Ok(())
}

/// Names the file, and the position where the bytes are known.
fn locate(file: &Path, bytes: Option<&[u8]>, problems: Vec<Problem>) -> Vec<FileError> {
    let problems = match (Format::of(file), bytes) {
        (Some(format), Some(bytes)) => parse::located(format, bytes, problems),
        _ => problems,
    };
    problems.into_iter().map(|problem| problem.in_file(file)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn text(workers: usize) -> String {
        format!(
            "workers: {workers}\nmeshes: [{{name: a, identity: {{dev: {{id: 'spiffe://t/ns/n/sa/s'}}}}}}]\n"
        )
    }

    #[test]
    fn the_same_bytes_are_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        fs::write(&path, text(1)).unwrap();
        let first = Look::at(&path, &Seen::default());
        assert!(matches!(first.outcome, Some(Ok(_))));
        assert!(Look::at(&path, &first.seen).outcome.is_none());

        // Written again, and another file with the same bytes.
        fs::write(&path, text(1)).unwrap();
        let touched = Look::at(&path, &first.seen);
        assert!(touched.outcome.is_none());
        fs::write(dir.path().join("new"), text(1)).unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        let moved = Look::at(&path, &touched.seen);
        assert!(moved.outcome.is_none());

        fs::write(&path, text(2)).unwrap();
        let changed = Look::at(&path, &moved.seen);
        assert_eq!(changed.outcome.unwrap().unwrap().config.workers, 2);

        // A broken file is reported once.
        fs::write(&path, "workers: [").unwrap();
        let broken = Look::at(&path, &changed.seen);
        assert!(matches!(broken.outcome, Some(Err(_))));
        assert!(Look::at(&path, &broken.seen).outcome.is_none());
        fs::remove_file(&path).unwrap();
        let gone = Look::at(&path, &broken.seen);
        assert!(matches!(gone.outcome, Some(Err(_))));
        assert!(Look::at(&path, &gone.seen).outcome.is_none());
    }
}

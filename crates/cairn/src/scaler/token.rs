//! The pool's token, as the file has it now.

use arc_swap::ArcSwapOption;
use http::request::Parts;
use http::{HeaderValue, header};
use ring::digest::{SHA256, digest};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use subtle::ConstantTimeEq;
use tokio::io::AsyncReadExt;

/// How often the file is read.
const INTERVAL: Duration = Duration::from_secs(1);
/// Longest token in bytes.
const MAX_BYTES: u64 = 4096;

/// Who shows it is of the pool. Without a file nobody is; while the file cannot be read or is empty,
/// nobody is.
#[derive(Debug, Clone, Default)]
pub struct PoolToken {
    /// Digest, so that comparing takes the same time for any length.
    digest: Arc<ArcSwapOption<[u8; 32]>>,
    file: Option<PathBuf>,
}

impl PoolToken {
    /// Reads the file, and again while the token exists.
    pub async fn follow(file: &Path) -> Self {
        let token = PoolToken { digest: Arc::default(), file: Some(file.to_owned()) };
        let mut problem = None;
        token.take(read(file).await, &mut problem);
        let (followed, file) = (token.clone(), file.to_owned());
        tokio::spawn(async move {
            while Arc::strong_count(&followed.digest) > 1 {
                tokio::time::sleep(INTERVAL).await;
                followed.take(read(&file).await, &mut problem);
            }
        });
        token
    }

    /// Whether there is to be one at all.
    pub fn is_configured(&self) -> bool {
        self.file.is_some()
    }

    /// Whether `shown` is the token.
    pub fn is(&self, shown: &[u8]) -> bool {
        let Some(expected) = self.digest.load_full() else { return false };
        expected.as_slice().ct_eq(sha256(shown).as_slice()).into()
    }

    /// Whether a request shows it, as `Authorization: Bearer`.
    pub fn is_shown_by(&self, request: &Parts) -> bool {
        let shown = request.headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        let shown = shown.and_then(|value| match value.split_at_checked(7) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => Some(token),
            _ => None,
        });
        shown.is_some_and(|shown| self.is(shown.trim_ascii()))
    }

    fn take(&self, found: Result<Vec<u8>, String>, before: &mut Option<String>) {
        let problem = match found {
            Ok(token) => {
                self.digest.store(Some(Arc::new(sha256(&token))));
                None
            }
            Err(reason) => {
                self.digest.store(None);
                Some(reason)
            }
        };
        if let Some(reason) = problem.as_ref().filter(|_| problem != *before) {
            tracing::warn!(reason, "the pool's token cannot be used: nobody can show it");
        }
        *before = problem;
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// The token that the file has at this moment.
///
/// # Errors
/// A file that cannot be read, is empty, or longer than a token.
pub async fn read(file: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", file.display());
    let mut token = Vec::new();
    let open = tokio::fs::File::open(file).await.map_err(failed)?;
    open.take(MAX_BYTES + 1).read_to_end(&mut token).await.map_err(failed)?;
    if token.len() as u64 > MAX_BYTES {
        return Err(format!("{}: more than {MAX_BYTES} bytes", file.display()));
    }
    let token = token.trim_ascii();
    if token.is_empty() {
        return Err(format!("{}: is empty", file.display()));
    }
    Ok(token.to_vec())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_file_of_now_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "first\n").unwrap();
        let token = PoolToken::follow(&file).await;
        assert!(
            token.is(b"first") && !token.is(b"firs") && !token.is(b"") && !token.is(b"first\n")
        );
        let until = async |shown: &[u8], wanted: bool| {
            while token.is(shown) != wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        std::fs::write(&file, "second").unwrap();
        until(b"second", true).await;
        assert!(!token.is(b"first"));
        std::fs::write(&file, " \n").unwrap();
        until(b"second", false).await;
        assert!(!token.is(b"") && !token.is(b" \n"), "nobody is of the pool");
        assert!(!PoolToken::default().is(b"") && !PoolToken::default().is_configured());
    }
}

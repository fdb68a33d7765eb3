//! Large pages: written by a thread of their own, in pieces, at the visitor's pace.
//!
//! So many as [`MAX_AT_ONCE`] are made at a time; each holds a few pieces, however large it is. A
//! page that cannot be finished is broken off, so that nobody takes a part for the whole.

use crate::admin::server::{self, Page};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use std::io::{self, Write};
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};

/// Pages that are made at a time.
pub const MAX_AT_ONCE: usize = 2;
/// Bytes of a piece.
const PIECE: usize = 64 * 1024;
/// Pieces that wait for the visitor.
const WAITING: usize = 4;

/// Room for large pages.
#[derive(Clone)]
pub struct Desk(Arc<Semaphore>);

impl Default for Desk {
    fn default() -> Self {
        Desk(Arc::new(Semaphore::new(MAX_AT_ONCE)))
    }
}

impl Desk {
    /// A page that `write` makes. 503 if others are being made.
    pub fn page(
        &self,
        content_type: &'static str,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
    ) -> Page {
        let Ok(room) = Arc::clone(&self.0).try_acquire_owned() else {
            let mut page = server::text(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("{MAX_AT_ONCE} large pages are being made; try again when they are done\n"),
            );
            page.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            return page;
        };
        let (pieces, received) = mpsc::channel(WAITING);
        tokio::task::spawn_blocking(move || {
            let mut out = Pieces { waiting: Vec::with_capacity(PIECE), pieces };
            if let Err(error) = write(&mut out).and_then(|()| out.flush()) {
                // A visitor that has gone does not hear it, and need not.
                let _ = out.pieces.blocking_send(Err(error));
            }
            drop(room);
        });
        server::streamed(content_type, received)
    }
}

struct Pieces {
    waiting: Vec<u8>,
    pieces: mpsc::Sender<io::Result<Bytes>>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.waiting, Vec::with_capacity(PIECE));
        self.pieces
            .blocking_send(Ok(piece.into()))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

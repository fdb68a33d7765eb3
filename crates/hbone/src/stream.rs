//! The two halves of a tunnel: one HTTP/2 stream as a byte stream with half close, reset and back-pressure.
//!
//! Reading hands out the peer's DATA payloads without a copy and gives their flow-control window back as they are
//! taken. Writing waits for the window and for the connection's send buffer, so that a peer that does not read stops
//! its writer instead of filling memory. Small `AsyncWrite` writes are gathered and leave as one DATA frame per flush.
//!
//! END_STREAM is the regular end of a direction. RST_STREAM ends both at once: it is sent by [`TunnelWriter::reset`],
//! and with CANCEL when both halves are dropped before both directions have ended. As with a TCP
//! reset, what was written but is not on the wire yet is lost then. The one exception: a terminator's stream whose
//! writer has finished is still sent to its end, and then reset with NO_ERROR (RFC 9113 section 8.1).

use std::any::Any;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::flood::Wire;

/// The most bytes that small writes gather before they must leave, and the most that is reserved at once of the
/// connection's window, so that one stream does not starve its siblings.
const GATHER_BYTES: usize = 64 * 1024;

/// The first allocation for gathered writes.
const GATHER_START_BYTES: usize = 512;

/// What keeps a tunnel's place taken (a pool slot, a counter) until both halves are gone.
pub(crate) type Hold = Arc<dyn Any + Send + Sync>;

/// A tunnel's bytes, both directions. See the module for its ends.
pub struct TunnelStream {
    reader: TunnelReader,
    writer: TunnelWriter,
}

/// The receiving half.
pub struct TunnelReader {
    recv: RecvStream,
    /// Taken from the stream but not yet by the caller; never more than one DATA frame.
    chunk: Bytes,
    ended: bool,
    /// Of a connection that we have dialled.
    wire: Option<Arc<Wire>>,
    _hold: Hold,
}

/// The sending half.
pub struct TunnelWriter {
    send: SendStream<Bytes>,
    gathered: BytesMut,
    /// A gathered frame that waits for the window.
    leaving: Bytes,
    finished: bool,
    _hold: Hold,
}

/// What [`TunnelReader::probe`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Open, and nothing to read.
    Idle,
    /// There are bytes to read.
    Readable,
    /// The peer ended or reset the stream, or the connection is gone or, after a GOAWAY, going.
    Closed,
}

impl TunnelStream {
    pub(crate) fn new(
        send: SendStream<Bytes>,
        recv: RecvStream,
        hold: Hold,
        wire: Option<Arc<Wire>>,
    ) -> Self {
        Self {
            reader: TunnelReader {
                recv,
                chunk: Bytes::new(),
                ended: false,
                wire,
                _hold: Arc::clone(&hold),
            },
            writer: TunnelWriter {
                send,
                gathered: BytesMut::new(),
                leaving: Bytes::new(),
                finished: false,
                _hold: hold,
            },
        }
    }

    /// Takes the halves apart, for two tasks. The stream is over when both have ended or are dropped.
    pub fn split(self) -> (TunnelReader, TunnelWriter) {
        (self.reader, self.writer)
    }

    /// Puts two halves together again.
    pub fn join(reader: TunnelReader, writer: TunnelWriter) -> Self {
        Self { reader, writer }
    }

    /// The receiving half.
    pub fn reader(&mut self) -> &mut TunnelReader {
        &mut self.reader
    }

    /// The sending half.
    pub fn writer(&mut self) -> &mut TunnelWriter {
        &mut self.writer
    }
}

impl TunnelReader {
    /// The next bytes, as the peer framed them and never empty; `None` after the peer's END_STREAM. The window is given
    /// back as chunks are taken.
    ///
    /// # Errors
    ///
    /// `ConnectionReset` when the peer reset the stream (RST_STREAM with NO_ERROR counts as its end), the
    /// connection's error when that is gone. [`reset_reason`] tells the code.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if !self.chunk.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.chunk))));
        }
        while !self.ended {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(chunk)) if chunk.is_empty() => {}
                Some(Ok(chunk)) => {
                    // The stream may have been closed meanwhile; then there is no window to give back.
                    let _ = self.recv.flow_control().release_capacity(chunk.len());
                    return Poll::Ready(Some(Ok(chunk)));
                }
                Some(Err(error)) if is_clean_reset(&error) => self.ended = true,
                Some(Err(error)) => return Poll::Ready(Some(Err(into_io(error)))),
                None => self.ended = true,
            }
        }
        Poll::Ready(None)
    }

    /// [`TunnelReader::poll_chunk`] as a future; safe to cancel.
    pub async fn chunk(&mut self) -> Option<io::Result<Bytes>> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// Whether the peer's END_STREAM came and all before it has been taken.
    pub fn is_end(&self) -> bool {
        self.chunk.is_empty() && (self.ended || self.recv.is_end_stream())
    }

    /// Looks once, without waiting and without a wake-up later: for a pooled stream before it is used again. What it
    /// found to read stays readable.
    pub fn probe(&mut self) -> Probe {
        if self.wire.as_ref().is_some_and(|wire| wire.is_leaving()) {
            return Probe::Closed;
        }
        match self.poll_chunk(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => Probe::Idle,
            Poll::Ready(Some(Ok(chunk))) => {
                self.chunk = chunk;
                Probe::Readable
            }
            Poll::Ready(Some(Err(_)) | None) => Probe::Closed,
        }
    }
}

impl TunnelWriter {
    /// Sends as much of `data` as the window admits and advances it. Ready when all of it was handed to the
    /// connection; what was gathered by `AsyncWrite` goes first.
    ///
    /// # Errors
    ///
    /// `BrokenPipe` after [`TunnelWriter::finish`] and when the peer reset the stream with NO_ERROR,
    /// `ConnectionReset` when it reset the stream otherwise, the connection's error when that is gone.
    pub fn poll_write_chunk(
        &mut self,
        cx: &mut Context<'_>,
        data: &mut Bytes,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_send_gathered(cx))?;
        self.poll_send(cx, data)
    }

    /// [`TunnelWriter::poll_write_chunk`] as a future. When it is cancelled, a part of `data` may have been sent.
    ///
    /// # Errors
    ///
    /// As [`TunnelWriter::poll_write_chunk`].
    pub async fn write_chunk(&mut self, mut data: Bytes) -> io::Result<()> {
        poll_fn(|cx| self.poll_write_chunk(cx, &mut data)).await
    }

    /// Ends this direction: END_STREAM, on the last frame when there is something gathered. Does nothing the second
    /// time.
    ///
    /// # Errors
    ///
    /// `BrokenPipe` when the stream is closed already.
    pub fn finish(&mut self) -> io::Result<()> {
        if self.finished {
            return Ok(());
        }
        self.finished = true;
        let mut last = std::mem::take(&mut self.leaving);
        let gathered = std::mem::take(&mut self.gathered).freeze();
        if !last.is_empty() && !gathered.is_empty() {
            self.send_now(last, false)?;
            last = gathered;
        } else if last.is_empty() {
            last = gathered;
        }
        self.send_now(last, true)
    }

    /// Ends both directions at once with RST_STREAM. What was not on the wire yet is dropped.
    pub fn reset(&mut self, reason: Reason) {
        self.finished = true;
        self.leaving = Bytes::new();
        self.gathered = BytesMut::new();
        self.send.send_reset(reason);
    }

    /// Ready when the peer reset the stream or the connection is gone: for a writer that has nothing to write and
    /// whose reader nobody polls. A regular end of both directions does not wake it.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match ready!(self.send.poll_reset(cx)) {
            Ok(reason) => Poll::Ready(reset_error(reason)),
            Err(error) => Poll::Ready(into_io(error)),
        }
    }

    fn poll_send_gathered(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if !self.leaving.is_empty() {
                let mut leaving = std::mem::take(&mut self.leaving);
                let sent = self.poll_send(cx, &mut leaving);
                self.leaving = leaving;
                ready!(sent)?;
            }
            if self.gathered.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.leaving = std::mem::take(&mut self.gathered).freeze();
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
        if self.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        while !data.is_empty() {
            self.send.reserve_capacity(data.len().min(GATHER_BYTES));
            // `poll_capacity` answers only to an increase, so what is there already is looked at first.
            let mut capacity = self.send.capacity();
            if capacity == 0 {
                capacity = match ready!(self.send.poll_capacity(cx)) {
                    Some(Ok(capacity)) => capacity,
                    Some(Err(error)) => return Poll::Ready(Err(into_io(error))),
                    None => return Poll::Ready(Err(self.closed_by())),
                };
            }
            let frame = data.split_to(capacity.min(data.len()));
            if !frame.is_empty() {
                self.send_now(frame, false)?;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn send_now(&mut self, data: Bytes, end: bool) -> io::Result<()> {
        self.send.send_data(data, end).map_err(|_| self.closed_by())
    }

    /// Why the stream takes no more data.
    fn closed_by(&mut self) -> io::Error {
        match self.poll_reset(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(error) => error,
            Poll::Pending => io::ErrorKind::BrokenPipe.into(),
        }
    }
}

impl AsyncRead for TunnelReader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let Some(chunk) = ready!(this.poll_chunk(cx)) else {
            return Poll::Ready(Ok(()));
        };
        let mut chunk = chunk?;
        buf.put_slice(&chunk.split_to(chunk.len().min(buf.remaining())));
        this.chunk = chunk;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if !this.leaving.is_empty() || this.gathered.len() >= GATHER_BYTES {
            ready!(this.poll_send_gathered(cx))?;
        }
        if this.gathered.capacity() == 0 {
            this.gathered.reserve(buf.len().clamp(GATHER_START_BYTES, GATHER_BYTES));
        }
        let (taken, _) = buf.split_at(buf.len().min(GATHER_BYTES - this.gathered.len()));
        this.gathered.extend_from_slice(taken);
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send_gathered(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().finish())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut written = 0;
        for buf in bufs.iter().filter(|buf| !buf.is_empty()) {
            match Pin::new(&mut *this).poll_write(cx, buf) {
                Poll::Ready(Ok(n)) => {
                    written += n;
                    if n < buf.len() {
                        break;
                    }
                }
                _ if written > 0 => break,
                other => return other,
            }
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().reader).poll_read(cx, buf)
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().writer).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().writer).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().writer).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().writer).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

impl fmt::Debug for TunnelStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelStream")
            .field("reader", &self.reader)
            .field("writer", &self.writer)
            .finish()
    }
}

impl fmt::Debug for TunnelReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelReader").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl fmt::Debug for TunnelWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelWriter").field("finished", &self.finished).finish_non_exhaustive()
    }
}

/// The RST_STREAM or GOAWAY code behind an error of a tunnel, if that is what it was.
pub fn reset_reason(error: &io::Error) -> Option<Reason> {
    error.get_ref().and_then(|inner| inner.downcast_ref::<h2::Error>()).and_then(h2::Error::reason)
}

/// RST_STREAM with NO_ERROR: the peer wants nothing more, and did not fail (RFC 9113 section 8.1).
fn is_clean_reset(error: &h2::Error) -> bool {
    error.is_reset() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR)
}

fn reset_error(reason: Reason) -> io::Error {
    let kind = match reason {
        Reason::NO_ERROR => io::ErrorKind::BrokenPipe,
        _ => io::ErrorKind::ConnectionReset,
    };
    io::Error::new(kind, h2::Error::from(reason))
}

pub(crate) fn into_io(error: h2::Error) -> io::Error {
    if error.is_io() {
        error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
    } else if error.is_go_away() {
        io::Error::new(io::ErrorKind::ConnectionAborted, error)
    } else {
        io::Error::new(io::ErrorKind::ConnectionReset, error)
    }
}

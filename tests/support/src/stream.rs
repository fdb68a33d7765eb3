//! Bytes over the two halves of an h2 stream.

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// An h2 stream as a byte stream: shutdown is END_STREAM, dropping it before is RST_STREAM.
#[derive(Debug)]
pub struct H2Stream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    chunk: Bytes,
    finished: bool,
}

/// The h2 reason of an error that came out of an [`H2Stream`].
pub fn reason(error: &io::Error) -> Option<h2::Reason> {
    error.get_ref()?.downcast_ref::<h2::Error>()?.reason()
}

fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
    }
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

impl H2Stream {
    /// Of one stream's halves.
    pub fn new(send: SendStream<Bytes>, recv: RecvStream) -> Self {
        H2Stream { send, recv, chunk: Bytes::new(), finished: false }
    }

    /// RST_STREAM.
    pub fn reset(&mut self, reason: h2::Reason) {
        self.finished = true;
        self.send.send_reset(reason);
    }

    /// Completes when the peer resets the stream.
    pub async fn reset_by_peer(&mut self) -> Result<h2::Reason, h2::Error> {
        std::future::poll_fn(|cx| self.send.poll_reset(cx)).await
    }

    /// The halves; bytes that were read but not taken are lost.
    pub fn into_halves(self) -> (SendStream<Bytes>, RecvStream) {
        (self.send, self.recv)
    }
}

impl AsyncRead for H2Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.chunk.is_empty() {
            match ready!(self.recv.poll_data(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                Some(Ok(data)) => self.chunk = data,
            }
        }
        let count = self.chunk.len().min(out.remaining());
        let part = self.chunk.split_to(count);
        out.put_slice(&part);
        let _ = self.recv.flow_control().release_capacity(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for H2Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.send.reserve_capacity(bytes.len().min(1 << 16));
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                Some(Ok(_)) => {}
            }
        }
        let count = self.send.capacity().min(bytes.len());
        let part = Bytes::copy_from_slice(&bytes[..count]);
        self.send.send_data(part, false).map_err(broken)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.finished {
            self.finished = true;
            self.send.send_data(Bytes::new(), true).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}

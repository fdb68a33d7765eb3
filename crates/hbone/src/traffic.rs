//! Bytes on the wire: what sockets read and write, TLS and HTTP/2 framing included.
//!
//! Each thread adds to a place of its own, so that workers do not wait for each other's cache lines.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Places; threads beyond share them.
const PLACES: usize = 16;

/// Bytes that sockets have read and written.
#[derive(Debug, Default)]
pub struct Traffic([Place; PLACES]);

/// Aligned so that two places never share a cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Place {
    received: AtomicU64,
    sent: AtomicU64,
}

/// A socket whose bytes are counted.
#[derive(Debug)]
pub struct Counted<IO> {
    io: IO,
    traffic: Arc<Traffic>,
}

impl Traffic {
    /// Bytes read.
    pub fn received(&self) -> u64 {
        self.0.iter().map(|place| place.received.load(Ordering::Relaxed)).sum()
    }

    /// Bytes written.
    pub fn sent(&self) -> u64 {
        self.0.iter().map(|place| place.sent.load(Ordering::Relaxed)).sum()
    }

    fn place(&self) -> Option<&Place> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static PLACE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % PLACES;
        }
        self.0.get(PLACE.try_with(|place| *place).unwrap_or(0))
    }

    fn add_received(&self, bytes: usize) {
        if let Some(place) = self.place() {
            place.received.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    fn add_sent(&self, written: &Poll<io::Result<usize>>) {
        if let (Some(place), Poll::Ready(Ok(bytes))) = (self.place(), written) {
            place.sent.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
    }
}

impl<IO> Counted<IO> {
    /// Counts into `traffic` from here on.
    pub fn new(io: IO, traffic: Arc<Traffic>) -> Self {
        Self { io, traffic }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Counted<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        self.traffic.add_received(buf.filled().len().saturating_sub(before));
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Counted<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, data);
        self.traffic.add_sent(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, data);
        self.traffic.add_sent(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn both_directions_are_counted() {
        let (near, mut far) = tokio::io::duplex(64);
        let traffic = Arc::<Traffic>::default();
        let mut near = Counted::new(near, Arc::clone(&traffic));
        near.write_all(b"12345").await.unwrap();
        far.write_all(b"123").await.unwrap();
        let mut read = [0; 2];
        near.read_exact(&mut read).await.unwrap();
        assert_eq!((traffic.received(), traffic.sent()), (2, 5));
        near.read_exact(&mut read[..1]).await.unwrap();
        assert_eq!(traffic.received(), 3);
    }

    #[test]
    fn threads_add_up() {
        let traffic = Traffic::default();
        std::thread::scope(|scope| {
            for _ in 0..2 * PLACES {
                scope.spawn(|| traffic.add_received(7));
            }
        });
        assert_eq!(traffic.received(), 7 * 2 * PLACES as u64);
    }
}

//! Byte streams as both sides of the proxy see them: chunks in, chunks out.
//!
//! A tunnel hands over its DATA frames without a copy; a socket is read into a
//! buffer of its own. Nothing is read ahead of what the consumer takes.

use bytes::{Buf, Bytes, BytesMut};
use cairn_hbone::{Probe, TunnelReader, TunnelStream, TunnelWriter};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, ReadHalf, WriteHalf};

/// Bytes read from a socket at once.
const READ_SIZE: usize = 16 * 1024;

/// What a socket or a TLS session over one can do.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for T {}

/// The receiving half.
pub(crate) enum ByteReader {
    /// Of an HBONE tunnel.
    Tunnel(TunnelReader),
    /// Of a socket.
    Socket { io: ReadHalf<Box<dyn Duplex>>, buffer: BytesMut },
}

/// The sending half.
pub(crate) enum ByteWriter {
    /// Of an HBONE tunnel.
    Tunnel(TunnelWriter),
    /// Of a socket.
    Socket(WriteHalf<Box<dyn Duplex>>),
}

/// Splits a tunnel.
pub(crate) fn from_tunnel(stream: TunnelStream) -> (ByteReader, ByteWriter) {
    let (reader, writer) = stream.split();
    (ByteReader::Tunnel(reader), ByteWriter::Tunnel(writer))
}

/// Splits a socket.
pub(crate) fn from_socket(io: impl Duplex + 'static) -> (ByteReader, ByteWriter) {
    let io: Box<dyn Duplex> = Box::new(io);
    let (read, write) = tokio::io::split(io);
    (ByteReader::Socket { io: read, buffer: BytesMut::new() }, ByteWriter::Socket(write))
}

impl ByteReader {
    /// The next bytes; `None` when the peer has finished. Never an empty chunk. Cancel-safe.
    pub(crate) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        match self {
            ByteReader::Tunnel(reader) => reader.poll_chunk(cx),
            ByteReader::Socket { io, buffer } => {
                buffer.reserve(READ_SIZE);
                let read = match tokio_util::io::poll_read_buf(Pin::new(io), cx, buffer) {
                    Poll::Ready(read) => read,
                    Poll::Pending => return Poll::Pending,
                };
                Poll::Ready(match read {
                    Ok(0) => None,
                    Ok(_) => Some(Ok(buffer.split().freeze())),
                    Err(error) => Some(Err(error)),
                })
            }
        }
    }

    /// [`Self::poll_chunk`] as a future.
    pub(crate) async fn chunk(&mut self) -> Option<io::Result<Bytes>> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// Whether an idle connection can still be used: nothing unexpected has arrived and nobody has closed it.
    pub(crate) fn is_idle(&mut self) -> bool {
        match self {
            ByteReader::Tunnel(reader) => matches!(reader.probe(), Probe::Idle),
            ByteReader::Socket { .. } => {
                self.poll_chunk(&mut Context::from_waker(Waker::noop())).is_pending()
            }
        }
    }
}

impl ByteWriter {
    /// Hands all of `chunk` to the transport; pending while flow control or the socket is full.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
    ) -> Poll<io::Result<()>> {
        match self {
            ByteWriter::Tunnel(writer) => writer.poll_write_chunk(cx, chunk),
            ByteWriter::Socket(io) => {
                while !chunk.is_empty() {
                    match Pin::new(&mut *io).poll_write(cx, chunk) {
                        Poll::Ready(Ok(0)) => {
                            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                        }
                        Poll::Ready(Ok(written)) => chunk.advance(written),
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                        Poll::Pending => return Poll::Pending,
                    }
                }
                Pin::new(io).poll_flush(cx)
            }
        }
    }

    /// [`Self::poll_write`] as a future.
    pub(crate) async fn write(&mut self, mut chunk: Bytes) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_write(cx, &mut chunk)).await
    }

    /// Ends our direction: END_STREAM or FIN.
    pub(crate) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            ByteWriter::Tunnel(writer) => Poll::Ready(writer.finish()),
            ByteWriter::Socket(io) => Pin::new(io).poll_shutdown(cx),
        }
    }

    /// [`Self::poll_finish`] as a future.
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_finish(cx)).await
    }
}

/// A stream in front of which bytes that were read for detection are put back.
pub(crate) struct Rewind<S> {
    prefix: Bytes,
    io: S,
}

impl<S> Rewind<S> {
    /// `prefix` is read first.
    pub(crate) fn new(prefix: Bytes, io: S) -> Self {
        Rewind { prefix, io }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewind<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, out);
        }
        let part = self.prefix.len().min(out.remaining());
        out.put_slice(&self.prefix.split_to(part));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewind<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

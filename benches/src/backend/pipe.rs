//! Bytes in chunks, out of a tunnel or a TCP connection.

use bytes::{Bytes, BytesMut};
use cairn_hbone::TunnelStream;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Room for one read of a TCP connection, in bytes.
const READ: usize = 64 << 10;

/// A stream of chunks in both directions.
pub trait Pipe: Send {
    /// The next bytes; `None` at the end.
    fn read(&mut self) -> impl Future<Output = Option<io::Result<Bytes>>> + Send;
    /// Writes all of them.
    fn write(&mut self, bytes: Bytes) -> impl Future<Output = io::Result<()>> + Send;
    /// Ends our direction.
    fn finish(&mut self) -> impl Future<Output = ()> + Send;
}

impl Pipe for TunnelStream {
    async fn read(&mut self) -> Option<io::Result<Bytes>> {
        self.reader().chunk().await
    }

    async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        self.writer().write_chunk(bytes).await
    }

    async fn finish(&mut self) {
        let _peer_may_have_gone = self.writer().finish();
    }
}

/// A TCP connection.
pub struct TcpPipe {
    tcp: TcpStream,
    buffer: BytesMut,
}

impl TcpPipe {
    /// Reads nothing yet.
    pub fn new(tcp: TcpStream) -> TcpPipe {
        TcpPipe { tcp, buffer: BytesMut::new() }
    }
}

impl Pipe for TcpPipe {
    async fn read(&mut self) -> Option<io::Result<Bytes>> {
        self.buffer.reserve(READ);
        match self.tcp.read_buf(&mut self.buffer).await {
            Ok(0) => None,
            Ok(_) => Some(Ok(self.buffer.split().freeze())),
            Err(error) => Some(Err(error)),
        }
    }

    async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        self.tcp.write_all(&bytes).await
    }

    async fn finish(&mut self) {
        let _peer_may_have_gone = self.tcp.shutdown().await;
    }
}

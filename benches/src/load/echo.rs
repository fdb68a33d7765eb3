//! Bytes that come back.

use super::lane::Failure;
use bytes::Bytes;
use cairn_hbone::TunnelStream;

/// A TCP connection in a tunnel.
pub struct Echo {
    stream: TunnelStream,
    payload: Bytes,
}

impl Echo {
    /// Sends `payload` again and again.
    pub fn new(stream: TunnelStream, payload: Bytes) -> Echo {
        Echo { stream, payload }
    }

    /// There and back.
    pub async fn exchange(&mut self) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure::of_io(&error);
        self.stream.writer().write_chunk(self.payload.clone()).await.map_err(failed)?;
        let mut left = self.payload.len();
        while left > 0 {
            let chunk = match self.stream.reader().chunk().await {
                Some(chunk) => chunk.map_err(failed)?,
                None => return Err(Failure::CLOSED),
            };
            left = left
                .checked_sub(chunk.len())
                .ok_or_else(|| Failure::new("more came back than was sent"))?;
        }
        Ok(())
    }

    /// Closes the tunnel as a client does, and waits for the other side to do so too.
    pub async fn close(mut self) {
        let _peer_may_have_gone = self.stream.writer().finish();
        while let Some(Ok(_)) = self.stream.reader().chunk().await {}
    }
}

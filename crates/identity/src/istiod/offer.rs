//! A certificate that was offered to istiod, and what became of it.
//!
//! In TLS 1.3 a server verifies the client's certificate after the client's handshake is done: a refusal is an alert, or
//! merely the end of the connection, in place of the first byte. That is noted at the identity for the next dial.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::credentials::Credentials;
use crate::identity::Identity;

/// One certificate on its way to istiod.
#[derive(Debug)]
pub(super) struct Offer {
    identity: Identity,
    credentials: Arc<Credentials>,
}

impl Offer {
    pub(super) fn new(identity: Identity, credentials: Arc<Credentials>) -> Self {
        Self { identity, credentials }
    }

    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.credentials.certified)
    }

    /// istiod did not take it.
    pub(super) fn refused(&self) {
        self.identity.note_refusal(self.credentials.generation);
    }

    /// Whether this certificate was refused last time. The note is gone with the question, so a refusal that was only a
    /// lost connection costs one dial with the token alone.
    pub(super) fn take_refusal(&self) -> bool {
        self.identity.take_refusal(self.credentials.generation)
    }
}

/// A TLS stream to istiod. Until its first byte has come it is not known what istiod makes of the offer.
#[derive(Debug)]
pub(super) struct Offered {
    stream: TlsStream<TcpStream>,
    offer: Option<Offer>,
}

impl Offered {
    pub(super) fn new(stream: TlsStream<TcpStream>, offer: Option<Offer>) -> Self {
        Self { stream, offer }
    }

    /// The connection ended before the first byte came, or the first byte has come.
    fn settle(&mut self, ended: bool) {
        if let Some(offer) = self.offer.take()
            && ended
        {
            offer.refused();
        }
    }

    /// A write to a connection that the server has closed may fail before the read that would tell.
    fn settle_write<T>(&mut self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if matches!(written, Poll::Ready(Err(_))) {
            self.settle(true);
        }
        written
    }
}

impl AsyncRead for Offered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Poll::Ready(result) = &read {
            self.settle(result.is_err() || buffer.filled().len() == before);
        }
        read
    }
}

impl AsyncWrite for Offered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.settle_write(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = Pin::new(&mut self.stream).poll_flush(cx);
        self.settle_write(written)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.settle_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

//! Pingora's body writer: hands the body to the request's [`crate::outgoing::Outgoing`] and never waits.

use crate::inbound::Inbound;
use async_trait::async_trait;
use bytes::Bytes;
use pingora_core::protocols::http::custom::BodyWrite;
use pingora_error::Result;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

pub(super) struct BodyWriter {
    inbound: Arc<Inbound>,
}

impl BodyWriter {
    pub(super) fn new(inbound: Arc<Inbound>) -> Self {
        BodyWriter { inbound }
    }

    /// Starts writing; what does not fit is written while the client's body waits.
    async fn start_flush(&self) {
        poll_fn(|cx| {
            let _rest_is_flushed_later = self.inbound.poll_flush(cx);
            Poll::Ready(())
        })
        .await;
    }
}

#[async_trait]
impl BodyWrite for BodyWriter {
    async fn write_all_buf(&mut self, data: &mut Bytes) -> Result<()> {
        let data = std::mem::take(data);
        self.inbound.with_outgoing(|outgoing| outgoing.push(data));
        self.start_flush().await;
        Ok(())
    }

    async fn finish(&mut self) -> Result<()> {
        let trailers = self.inbound.trailers();
        self.inbound.with_outgoing(|outgoing| outgoing.finish(trailers));
        self.start_flush().await;
        Ok(())
    }

    async fn cleanup(&mut self) -> Result<()> {
        Ok(())
    }

    fn upgrade_body_writer(&mut self) {
        self.inbound.with_outgoing(crate::outgoing::Outgoing::upgrade);
    }
}

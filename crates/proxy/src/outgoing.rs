//! The request on its way out: written as far as the upstream takes it, never waited for.
//!
//! Pingora's loop cannot read a response while it waits in a body write, so writes
//! never wait: what does not fit stays in [`Outgoing`], and the client's body is not
//! read on until it is gone. Both ends of a stream that is full in both directions
//! keep moving, and one chunk per request is the most that is held.

use crate::framing::BodyEncoder;
use crate::io::ByteWriter;
use bytes::{Buf, Bytes, BytesMut};
use h2::SendStream;
use http::HeaderMap;
use std::collections::VecDeque;
use std::task::{Context, Poll};

/// Where the request goes.
pub(crate) enum Sink {
    /// An HTTP/1 connection.
    H1 { writer: ByteWriter, out: BytesMut, encoder: BodyEncoder },
    /// A stream of an HTTP/2 connection.
    H2(SendStream<Bytes>),
}

/// How far the end of the request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// All was given; the end follows the last pending byte.
    Wanted,
    Sent,
}

/// A request being written.
pub(crate) struct Outgoing {
    sink: Sink,
    pending: VecDeque<Bytes>,
    end: End,
    trailers: Option<Box<HeaderMap>>,
    /// END_STREAM ends an upgraded HTTP/1 stream; a request only ends itself.
    upgraded: bool,
    broken: bool,
}

impl Outgoing {
    /// Writes to `sink`, whose head is encoded; `ended`: there is no body.
    pub(crate) fn new(sink: Sink, ended: bool) -> Self {
        Outgoing {
            sink,
            pending: VecDeque::new(),
            end: match ended {
                true => End::Sent,
                false => End::Open,
            },
            trailers: None,
            upgraded: false,
            broken: false,
        }
    }

    /// From here on bytes are passed as they are.
    pub(crate) fn upgrade(&mut self) {
        if self.upgraded {
            return;
        }
        self.upgraded = true;
        self.end = End::Open;
        if let Sink::H1 { encoder, .. } = &mut self.sink {
            *encoder = BodyEncoder::new(crate::framing::BodyLength::UntilClose);
        }
    }

    /// Adds part of the body. What the framing forbids breaks the request.
    pub(crate) fn push(&mut self, data: Bytes) {
        if self.broken || data.is_empty() || self.end != End::Open {
            return;
        }
        match &mut self.sink {
            Sink::H2(_) => self.pending.push_back(data),
            Sink::H1 { out, encoder, .. } => match encoder.data(out, data) {
                Ok(None) => {}
                Ok(Some(large)) => {
                    let head = out.split().freeze();
                    if !head.is_empty() {
                        self.pending.push_back(head);
                    }
                    self.pending.push_back(large);
                    encoder.after_large(out);
                }
                Err(_) => self.broken = true,
            },
        }
    }

    /// The body is over.
    pub(crate) fn finish(&mut self, trailers: Option<Box<HeaderMap>>) {
        if self.end == End::Open {
            self.end = End::Wanted;
            self.trailers = trailers;
        }
    }

    /// Writes what the upstream takes. `Ready`: nothing is left, or nothing can be written any more.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.broken {
            return Poll::Ready(());
        }
        match self.poll_write(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(()),
            Poll::Ready(Err(())) => {
                self.broken = true;
                self.pending.clear();
                Poll::Ready(())
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
        match &mut self.sink {
            Sink::H1 { writer, out, encoder } => {
                if self.end == End::Wanted {
                    let encoded = encoder.finish(out, self.trailers.take().as_deref());
                    if encoded.is_err() {
                        return Poll::Ready(Err(()));
                    }
                }
                if !out.is_empty() {
                    self.pending.push_back(out.split().freeze());
                }
                while let Some(front) = self.pending.front_mut() {
                    match writer.poll_write(cx, front) {
                        Poll::Ready(Ok(())) => {
                            self.pending.pop_front();
                        }
                        Poll::Ready(Err(_)) => return Poll::Ready(Err(())),
                        Poll::Pending => return Poll::Pending,
                    }
                }
                if self.end == End::Wanted {
                    if self.upgraded {
                        match writer.poll_finish(cx) {
                            Poll::Ready(Ok(())) => {}
                            Poll::Ready(Err(_)) => return Poll::Ready(Err(())),
                            Poll::Pending => return Poll::Pending,
                        }
                    }
                    self.end = End::Sent;
                }
                Poll::Ready(Ok(()))
            }
            Sink::H2(send) => {
                while let Some(front) = self.pending.front_mut() {
                    send.reserve_capacity(front.len());
                    let mut room = send.capacity();
                    if room == 0 {
                        room = match send.poll_capacity(cx) {
                            Poll::Ready(Some(Ok(room))) => room,
                            Poll::Ready(_) => return Poll::Ready(Err(())),
                            Poll::Pending => return Poll::Pending,
                        };
                    }
                    if room == 0 {
                        continue;
                    }
                    let part = front.split_to(room.min(front.len()));
                    let last = !front.has_remaining();
                    let end = last
                        && self.end == End::Wanted
                        && self.trailers.is_none()
                        && self.pending.len() == 1;
                    if send.send_data(part, end).is_err() {
                        return Poll::Ready(Err(()));
                    }
                    if end {
                        self.end = End::Sent;
                    }
                    if last {
                        self.pending.pop_front();
                    }
                }
                if self.end == End::Wanted {
                    let sent = match self.trailers.take() {
                        Some(trailers) => send.send_trailers(*trailers),
                        None => send.send_data(Bytes::new(), true),
                    };
                    self.end = End::Sent;
                    return Poll::Ready(sent.map_err(|_| ()));
                }
                Poll::Ready(Ok(()))
            }
        }
    }

    /// The HTTP/1 writer back, if the whole request was written and the connection can carry another.
    pub(crate) fn into_writer(self) -> Option<(ByteWriter, BytesMut)> {
        match self.sink {
            Sink::H1 { writer, out, .. }
                if self.end == End::Sent
                    && self.pending.is_empty()
                    && out.is_empty()
                    && !self.broken
                    && !self.upgraded =>
            {
                Some((writer, out))
            }
            _ => None,
        }
    }
}

//! A bound on frames that cost work without carrying data.
//!
//! The h2 crate bounds memory: one PING or SETTINGS answer is pending at a time, CONTINUATION frames, refused streams
//! and resets before acceptance are counted. What it does not bound is the rate of PING, SETTINGS, RST_STREAM, PRIORITY
//! and WINDOW_UPDATE frames, each of which makes work for us and nearly none for the sender. The [`Meter`] follows the
//! frame headers of what the peer sends and takes a token for each of those frames. DATA frames with a payload and bytes
//! that we send give tokens back, so busy connections with many short tunnels never run dry, whereas a flood does.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use cairn_identity::PeerRefusal;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// The client's connection preface (RFC 9113 section 3.4) before its first frame, in bytes.
pub(crate) const PREFACE_BYTES: usize = 24;

/// The length of a frame's header (RFC 9113 section 4.1), in bytes.
const FRAME_HEADER_BYTES: usize = 9;

/// So many bytes that we send give one token: a response of one stream pays for the frames that go with it, the answer
/// to a PING does not pay for the PING.
const SENT_BYTES_PER_TOKEN: usize = 32;

/// Bounds against floods, for each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FloodLimits {
    /// Control frames (all but DATA and HEADERS) that may come at once. Above it the connection is cut. Default 2000.
    pub control_frame_burst: u32,
    /// Control frames per second that are admitted on top of those that go with traffic. Default 200.
    pub control_frames_per_second: u32,
    /// Streams that the peer may open and reset before we have looked at them (rapid reset). Above it the connection
    /// ends with ENHANCE_YOUR_CALM. Default 200.
    pub pending_resets: usize,
    /// Streams of one connection that may be refused or reset because of the peer's protocol errors, over the
    /// connection's life. Above it the connection ends with ENHANCE_YOUR_CALM. Default 8192.
    pub faulty_streams: usize,
    /// Memory for the bookkeeping of unread DATA frames below 256 bytes, in bytes. Above it the connection ends with
    /// ENHANCE_YOUR_CALM. Default 8 MiB: a stalled tunnel whose peer has filled its 1 MiB window with frames of 32
    /// bytes is still within it.
    pub small_frame_bytes: usize,
    /// Streams that we reset and remember for [`FloodLimits::remember_resets`], so that late frames on them are ignored.
    /// Default 512.
    pub remembered_resets: usize,
    /// How long they are remembered. Default 5 s.
    pub remember_resets: std::time::Duration,
}

impl Default for FloodLimits {
    fn default() -> Self {
        Self {
            control_frame_burst: 2000,
            control_frames_per_second: 200,
            pending_resets: 200,
            faulty_streams: 8192,
            small_frame_bytes: 8 * 1024 * 1024,
            remembered_resets: 512,
            remember_resets: std::time::Duration::from_secs(5),
        }
    }
}

/// What happens on the wire and the h2 crate does not tell. Written by [`Metered`].
#[derive(Debug, Default)]
pub(crate) struct Wire {
    flooded: AtomicBool,
    settings: AtomicBool,
    leaving: AtomicBool,
    refusal: OnceLock<PeerRefusal>,
}

impl Wire {
    /// The peer sent too many control frames.
    pub(crate) fn is_flooded(&self) -> bool {
        self.flooded.load(Ordering::Relaxed)
    }

    /// The peer's first SETTINGS have come, so its limits are known when h2 has been polled to its end.
    pub(crate) fn has_settings(&self) -> bool {
        self.settings.load(Ordering::Relaxed)
    }

    /// The peer has sent GOAWAY: streams go on, but it wants no more work here.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// TLS failed after the handshake: in TLS 1.3 a client learns here that its certificate was refused.
    pub(crate) fn refusal(&self) -> Option<&PeerRefusal> {
        self.refusal.get()
    }
}

/// A connection's bytes with the peer's frames metered.
pub(crate) struct Metered<IO> {
    io: IO,
    meter: Meter,
    wire: Arc<Wire>,
}

impl<IO> Metered<IO> {
    /// `preface` bytes come before the peer's first frame.
    pub(crate) fn new(io: IO, preface: usize, limits: &FloodLimits, wire: Arc<Wire>) -> Self {
        Self { io, meter: Meter::new(preface, limits), wire }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Metered<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if let Err(error) = ready!(Pin::new(&mut this.io).poll_read(cx, buf)) {
            if let Some(refusal) = tls_refusal(&error) {
                let _ = this.wire.refusal.set(refusal);
            }
            return Poll::Ready(Err(error));
        }
        let (_, received) = buf.filled().split_at(before);
        if this.meter.received(received).is_err() {
            this.wire.flooded.store(true, Ordering::Relaxed);
            return Poll::Ready(Err(io::Error::other("too many control frames")));
        }
        if this.meter.settings == Settings::Complete && !this.wire.has_settings() {
            this.wire.settings.store(true, Ordering::Relaxed);
        }
        if this.meter.leaving && !this.wire.is_leaving() {
            this.wire.leaving.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Metered<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = ready!(Pin::new(&mut this.io).poll_write(cx, buf))?;
        this.meter.sent(sent);
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, bufs))?;
        this.meter.sent(sent);
        Poll::Ready(Ok(sent))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// The TLS error inside an I/O error of tokio-rustls.
pub(crate) fn tls_refusal(error: &io::Error) -> Option<PeerRefusal> {
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        .map(PeerRefusal::from_rustls)
}

#[derive(Debug)]
struct Flooded;

/// How much of the peer's first SETTINGS frame has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settings {
    Expected,
    Begun,
    Complete,
}

/// Follows frame boundaries and keeps the tokens.
#[derive(Debug)]
struct Meter {
    header: [u8; FRAME_HEADER_BYTES],
    header_filled: usize,
    /// Bytes to pass over: the preface, or the rest of a payload.
    skip: usize,
    settings: Settings,
    leaving: bool,
    tokens: u32,
    /// Sent bytes that have not made a token yet.
    sent: usize,
    burst: u32,
    per_second: u32,
    refilled: Instant,
}

impl Meter {
    fn new(preface: usize, limits: &FloodLimits) -> Self {
        Self {
            header: [0; FRAME_HEADER_BYTES],
            header_filled: 0,
            skip: preface,
            settings: Settings::Expected,
            leaving: false,
            tokens: limits.control_frame_burst,
            sent: 0,
            burst: limits.control_frame_burst,
            per_second: limits.control_frames_per_second,
            refilled: Instant::now(),
        }
    }

    fn received(&mut self, mut bytes: &[u8]) -> Result<(), Flooded> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let (skipped, rest) = bytes.split_at(self.skip.min(bytes.len()));
                self.skip -= skipped.len();
                bytes = rest;
                self.settled();
                continue;
            }
            let (_, missing) = self.header.split_at_mut(self.header_filled);
            let (part, rest) = bytes.split_at(missing.len().min(bytes.len()));
            for (to, from) in missing.iter_mut().zip(part) {
                *to = *from;
            }
            self.header_filled += part.len();
            bytes = rest;
            if self.header_filled == FRAME_HEADER_BYTES {
                self.header_filled = 0;
                let [a, b, c, kind, ..] = self.header;
                let length = u32::from_be_bytes([0, a, b, c]) as usize;
                self.skip = length;
                self.frame(kind, length)?;
            }
            self.settled();
        }
        Ok(())
    }

    fn settled(&mut self) {
        if self.skip == 0 && self.settings == Settings::Begun {
            self.settings = Settings::Complete;
        }
    }

    fn frame(&mut self, kind: u8, length: usize) -> Result<(), Flooded> {
        const DATA: u8 = 0;
        const HEADERS: u8 = 1;
        const SETTINGS: u8 = 4;
        const GOAWAY: u8 = 7;
        self.leaving |= kind == GOAWAY;
        if kind == SETTINGS && self.settings == Settings::Expected {
            self.settings = Settings::Begun;
        }
        match kind {
            DATA if length > 0 => self.give(1),
            DATA | HEADERS => {}
            _ => self.take()?,
        }
        Ok(())
    }

    fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
        let tokens = self.sent / SENT_BYTES_PER_TOKEN;
        self.sent %= SENT_BYTES_PER_TOKEN;
        self.give(u32::try_from(tokens).unwrap_or(u32::MAX));
    }

    fn give(&mut self, tokens: u32) {
        self.tokens = self.tokens.saturating_add(tokens).min(self.burst);
    }

    /// The clock is looked at only when the tokens are used up.
    fn take(&mut self) -> Result<(), Flooded> {
        if self.tokens == 0 {
            let now = Instant::now();
            let millis = now.saturating_duration_since(self.refilled).as_millis();
            let earned = millis.saturating_mul(u128::from(self.per_second)) / 1000;
            if earned == 0 {
                return Err(Flooded);
            }
            self.refilled = now;
            self.give(u32::try_from(earned).unwrap_or(u32::MAX));
        }
        self.tokens = self.tokens.checked_sub(1).ok_or(Flooded)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;
    use proptest::prelude::*;

    const PING: u8 = 6;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, 0, 0, 0, 0, 1];
        frame.extend(std::iter::repeat_n(0xff, payload));
        frame
    }

    fn limits(burst: u32, per_second: u32) -> FloodLimits {
        FloodLimits {
            control_frame_burst: burst,
            control_frames_per_second: per_second,
            ..FloodLimits::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_runs_dry_and_time_refills() {
        let mut meter = Meter::new(0, &limits(10, 5));
        let ping = frame(PING, 8);
        for _ in 0..10 {
            meter.received(&ping).unwrap();
        }
        assert!(meter.received(&ping).is_err());
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..5 {
            meter.take().unwrap();
        }
        assert!(meter.take().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn traffic_pays() {
        let mut meter = Meter::new(0, &limits(10, 0));
        for _ in 0..1000 {
            meter.received(&frame(PING, 8)).unwrap();
            meter.received(&frame(0, 1)).unwrap();
        }
        for _ in 0..1000 {
            meter.received(&frame(8, 4)).unwrap();
            meter.sent(64);
        }
        // Headers alone neither cost nor pay, empty DATA neither.
        for _ in 0..10 {
            meter.received(&frame(3, 4)).unwrap();
            meter.received(&frame(1, 20)).unwrap();
            meter.received(&frame(0, 0)).unwrap();
        }
        assert!(meter.received(&frame(3, 4)).is_err());
    }

    #[tokio::test]
    async fn settings_are_seen_when_they_are_complete() {
        for payload in [0, 6, 12] {
            let mut meter = Meter::new(0, &FloodLimits::default());
            let settings = frame(4, payload);
            let (last, most) = settings.split_last().unwrap();
            meter.received(most).unwrap();
            assert_ne!(meter.settings, Settings::Complete);
            meter.received(&[*last]).unwrap();
            assert_eq!(meter.settings, Settings::Complete);
        }
    }

    proptest! {
        #[test]
        fn boundaries_do_not_matter(
            payloads in proptest::collection::vec(0usize..40, 0..20),
            cuts in proptest::collection::vec(1usize..7, 1..20),
        ) {
            let mut bytes = vec![b'x'; PREFACE_BYTES];
            for payload in &payloads {
                bytes.extend(frame(PING, *payload));
            }
            let mut meter = Meter::new(PREFACE_BYTES, &limits(100, 0));
            let mut rest = bytes.as_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (part, after) = rest.split_at((*cut).min(rest.len()));
                meter.received(part).unwrap();
                rest = after;
            }
            prop_assert_eq!(meter.tokens as usize, 100 - payloads.len());
            prop_assert_eq!(meter.skip + meter.header_filled, 0);
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut meter = Meter::new(3, &limits(2, 1));
            let _ = meter.received(&bytes);
        }
    }
}

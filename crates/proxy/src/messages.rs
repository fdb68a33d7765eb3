//! gRPC messages, counted as they pass.
//!
//! A message is a frame of five bytes, a flag and a length, and so many bytes of data (gRPC over HTTP/2:
//! Length-Prefixed-Message). It counts when its first byte passes (Envoy: `Grpc::FrameInspector`). Messages of a call
//! are counted when it is over; those of a stream also in between (Istio: every `tcp_reporting_duration`).

use crate::grpc;
use crate::link::Link;
use cairn_telemetry::{RequestEvent, Rules, SecurityPolicy, ServiceLabels, WorkloadLabels};
use http::StatusCode;
use pingora_http::ResponseHeader;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::task::AbortHandle;

/// Finds the frames of one direction.
#[derive(Debug, Default)]
struct Frames {
    /// Bytes of the current frame's head that have passed.
    head: u8,
    /// The length as far as it has passed, then the data that has not.
    left: u32,
}

impl Frames {
    const HEAD: u8 = 5;

    /// How many messages begin in these bytes.
    fn begun_in(&mut self, mut bytes: &[u8]) -> u64 {
        let mut begun = 0;
        while let Some((first, rest)) = bytes.split_first() {
            if self.head == Self::HEAD {
                let data = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= u32::try_from(data).unwrap_or(self.left);
                bytes = bytes.get(data..).unwrap_or_default();
            } else {
                if self.head == 0 {
                    begun += 1;
                    self.left = 0;
                } else {
                    self.left = self.left << 8 | u32::from(*first);
                }
                self.head += 1;
                bytes = rest;
            }
            if self.head == Self::HEAD && self.left == 0 {
                self.head = 0;
            }
        }
        begun
    }
}

/// Messages of one request.
#[derive(Default)]
pub(crate) struct Messages {
    request: Frames,
    response: Frames,
    /// The response is gRPC, so that its body is messages.
    answered: bool,
    from_client: u64,
    to_client: u64,
    stream: Option<Stream>,
}

/// A stream whose messages are counted while it is open.
struct Stream {
    fresh: Arc<Fresh>,
    reporter: AbortHandle,
}

/// Messages that are not counted yet.
#[derive(Default)]
struct Fresh {
    from_client: AtomicU64,
    to_client: AtomicU64,
}

impl Fresh {
    fn take(&self) -> (u64, u64) {
        (self.from_client.swap(0, Relaxed), self.to_client.swap(0, Relaxed))
    }
}

/// Who talks to whom on a stream.
pub(crate) struct Parties {
    pub(crate) link: Arc<Link>,
    pub(crate) tenant: Arc<str>,
    pub(crate) destination: Option<Arc<WorkloadLabels>>,
    pub(crate) service: Option<Arc<ServiceLabels>>,
    pub(crate) rules: Option<Arc<Rules>>,
    pub(crate) dimensions: Vec<String>,
}

impl Parties {
    fn count(&self, from_client: u64, to_client: u64) {
        let Parties { link, tenant, destination, service, rules, dimensions } = self;
        let event = RequestEvent {
            mesh: link.instance.name(),
            tenant,
            source: Some(&link.source),
            source_principal: link.peer.id.as_str(),
            security: SecurityPolicy::of_tunnel(link.peer.id.as_str(), link.peer.local_id.as_str()),
            destination: destination.as_ref(),
            service: service.as_ref(),
            rules: rules.as_ref(),
            dimensions,
            ..RequestEvent::default()
        };
        link.metrics.record_messages(&event, from_client, to_client);
    }
}

impl Messages {
    /// Bytes of the request's body pass.
    pub(crate) fn request(&mut self, bytes: &[u8]) {
        let begun = self.request.begun_in(bytes);
        self.from_client += begun;
        if let Some(stream) = &self.stream {
            stream.fresh.from_client.fetch_add(begun, Relaxed);
        }
    }

    /// The response's head passes. Envoy: `isGrpcResponseHeader`.
    pub(crate) fn answered(&mut self, head: &ResponseHeader) {
        self.answered = head.status == StatusCode::OK && grpc::is_grpc(&head.headers);
    }

    /// Bytes of the response's body pass.
    pub(crate) fn response(&mut self, bytes: &[u8]) {
        if !self.answered {
            return;
        }
        let begun = self.response.begun_in(bytes);
        self.to_client += begun;
        if let Some(stream) = &self.stream {
            stream.fresh.to_client.fetch_add(begun, Relaxed);
        }
    }

    /// More messages one way than a plain call has, and nobody counts them yet.
    pub(crate) fn is_new_stream(&self) -> bool {
        self.stream.is_none() && (self.from_client > 1 || self.to_client > 1)
    }

    /// Counts what has passed each time that `interval` is over, until the request is.
    pub(crate) fn count_every(&mut self, interval: Duration, parties: Parties) {
        let fresh = Arc::new(Fresh {
            from_client: AtomicU64::new(self.from_client),
            to_client: AtomicU64::new(self.to_client),
        });
        let passed = Arc::clone(&fresh);
        let reporter = tokio::spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                let (from_client, to_client) = passed.take();
                if from_client + to_client > 0 {
                    parties.count(from_client, to_client);
                }
            }
        });
        self.stream = Some(Stream { fresh, reporter: reporter.abort_handle() });
    }

    /// Messages of the request from its beginning: from the client, and to it.
    pub(crate) fn passed(&self) -> (u64, u64) {
        (self.from_client, self.to_client)
    }

    /// Those that were not counted so far; the request is over.
    pub(crate) fn rest(&mut self) -> (u64, u64) {
        match self.stream.take() {
            Some(stream) => {
                stream.reporter.abort();
                stream.fresh.take()
            }
            None => self.passed(),
        }
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        if let Some(stream) = &self.stream {
            stream.reporter.abort();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn frame(length: usize) -> Vec<u8> {
        let mut frame = vec![0];
        frame.extend(u32::try_from(length).unwrap().to_be_bytes());
        frame.extend(std::iter::repeat_n(7, length));
        frame
    }

    #[test]
    fn frames_count_however_they_are_cut() {
        let bytes: Vec<u8> = [0, 1, 300, 0, 70_000].into_iter().flat_map(frame).collect();
        for size in [1, 2, 3, 4, 5, 6, 7, 100, 65_536, bytes.len()] {
            let mut frames = Frames::default();
            let begun: u64 = bytes.chunks(size).map(|chunk| frames.begun_in(chunk)).sum();
            assert_eq!((begun, frames.head), (5, 0), "in pieces of {size}");
        }
    }

    #[test]
    fn a_message_counts_when_it_begins() {
        let mut frames = Frames::default();
        assert_eq!(frames.begun_in(&[]), 0);
        assert_eq!(frames.begun_in(&[0]), 1);
        assert_eq!(frames.begun_in(&[255, 255, 255, 255]), 0);
        assert_eq!(frames.left, u32::MAX);
        assert_eq!(frames.begun_in(&[0; 100_000]), 0);
        assert_eq!(frames.left, u32::MAX - 100_000);
    }

    #[test]
    fn only_a_grpc_response_has_messages() {
        let response = |status: u16, content_type: &str| {
            let mut head = ResponseHeader::build(status, None).unwrap();
            let value = HeaderValue::from_str(content_type).unwrap();
            head.insert_header("content-type", value).unwrap();
            let mut messages = Messages::default();
            messages.request(&frame(3));
            messages.answered(&head);
            messages.response(&[frame(1), frame(2)].concat());
            messages.passed()
        };
        assert_eq!(response(200, "application/grpc"), (1, 2));
        assert_eq!(response(200, "application/grpc+proto"), (1, 2));
        assert_eq!(response(503, "application/grpc"), (1, 0));
        assert_eq!(response(200, "text/plain"), (1, 0));
    }
}

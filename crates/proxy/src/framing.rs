//! HTTP/1 message bodies: how long they are, and chunked coding both ways (RFC 9112 §6, §7).
//!
//! Strict where a lenient reading would let two parties disagree on where a message
//! ends: line ends are CRLF, sizes are plain hexadecimal, nothing else precedes them.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Bytes that the trailers of one message may have.
const MAX_TRAILERS: usize = 16 * 1024;
/// Trailer fields of one message.
const MAX_TRAILER_FIELDS: usize = 64;
/// Bytes of one chunk's extension, which is ignored.
const MAX_EXTENSION: usize = 4 * 1024;

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyLength {
    /// There is none.
    Empty,
    /// So many bytes.
    Sized(u64),
    /// Chunks.
    Chunked,
    /// Until the stream ends: responses, and what follows an upgrade.
    UntilClose,
}

/// What a body's bytes turned out to be.
#[derive(Debug, PartialEq)]
pub(crate) enum Decoded {
    /// Part of the body.
    Data(Bytes),
    /// All of the input was used; more is needed.
    NeedMore,
    /// The body is over; what is left of the input is not part of it.
    End(Option<Box<HeaderMap>>),
}

/// A body that does not follow its coding.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum FramingError {
    /// The chunk's size is no hexadecimal number of up to 16 digits followed by CRLF.
    #[error("invalid chunk size")]
    ChunkSize,
    /// A chunk's data is not followed by CRLF.
    #[error("chunk is not followed by CRLF")]
    ChunkEnd,
    /// A chunk's extension is longer than 4 KiB.
    #[error("chunk extension is too long")]
    Extension,
    /// Trailers are malformed, longer than 16 KiB or more than 64.
    #[error("invalid trailers")]
    Trailers,
    /// The stream ended before the body did.
    #[error("body ended early")]
    Truncated,
}

#[derive(Debug)]
enum State {
    Sized(u64),
    UntilClose,
    Size {
        value: u64,
        digits: u8,
    },
    Extension {
        size: u64,
        length: usize,
    },
    SizeLf {
        size: u64,
    },
    Data(u64),
    DataCr,
    DataLf,
    Trailers(BytesMut),
    Done,
    /// Nothing after an error is to be believed.
    Broken(FramingError),
}

/// Takes a body out of the bytes of a connection.
#[derive(Debug)]
pub(crate) struct BodyDecoder {
    state: State,
}

impl BodyDecoder {
    /// For a body of this length.
    pub(crate) fn new(length: BodyLength) -> Self {
        BodyDecoder {
            state: match length {
                BodyLength::Empty | BodyLength::Sized(0) => State::Done,
                BodyLength::Sized(bytes) => State::Sized(bytes),
                BodyLength::UntilClose => State::UntilClose,
                BodyLength::Chunked => State::Size { value: 0, digits: 0 },
            },
        }
    }

    /// Nothing more belongs to the body.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// The stream has ended. Fine only for a body that ends with it.
    pub(crate) fn end_of_stream(&mut self) -> Result<(), FramingError> {
        match self.state {
            State::Done | State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            _ => {
                self.state = State::Broken(FramingError::Truncated);
                Err(FramingError::Truncated)
            }
        }
    }

    /// Takes the next part out of `input`. After an error every further call gives the same one.
    pub(crate) fn decode(&mut self, input: &mut Bytes) -> Result<Decoded, FramingError> {
        let decoded = self.step(input);
        if let Err(error) = decoded {
            self.state = State::Broken(error);
        }
        decoded
    }

    fn step(&mut self, input: &mut Bytes) -> Result<Decoded, FramingError> {
        loop {
            match &mut self.state {
                State::Done => return Ok(Decoded::End(None)),
                State::Broken(error) => return Err(*error),
                _ if input.is_empty() => return Ok(Decoded::NeedMore),
                State::UntilClose => return Ok(Decoded::Data(std::mem::take(input))),
                State::Sized(left) => {
                    let data = take(input, left);
                    if *left == 0 {
                        self.state = State::Done;
                    }
                    return Ok(Decoded::Data(data));
                }
                State::Size { value, digits } => {
                    let byte = input.get_u8();
                    match (byte as char).to_digit(16) {
                        Some(digit) if *digits < 16 => {
                            *value = (*value << 4) | u64::from(digit);
                            *digits += 1;
                        }
                        Some(_) => return Err(FramingError::ChunkSize),
                        None if *digits == 0 => return Err(FramingError::ChunkSize),
                        None => {
                            let size = *value;
                            self.state = match byte {
                                b'\r' => State::SizeLf { size },
                                b';' | b' ' | b'\t' => State::Extension { size, length: 0 },
                                _ => return Err(FramingError::ChunkSize),
                            };
                        }
                    }
                }
                State::Extension { size, length } => match input.get_u8() {
                    b'\r' => self.state = State::SizeLf { size: *size },
                    b'\n' | 0 => return Err(FramingError::ChunkSize),
                    _ if *length == MAX_EXTENSION => return Err(FramingError::Extension),
                    _ => *length += 1,
                },
                State::SizeLf { size } => {
                    if input.get_u8() != b'\n' {
                        return Err(FramingError::ChunkSize);
                    }
                    self.state = match *size {
                        0 => State::Trailers(BytesMut::new()),
                        size => State::Data(size),
                    };
                }
                State::Data(left) => {
                    let data = take(input, left);
                    if *left == 0 {
                        self.state = State::DataCr;
                    }
                    return Ok(Decoded::Data(data));
                }
                State::DataCr => {
                    if input.get_u8() != b'\r' {
                        return Err(FramingError::ChunkEnd);
                    }
                    self.state = State::DataLf;
                }
                State::DataLf => {
                    if input.get_u8() != b'\n' {
                        return Err(FramingError::ChunkEnd);
                    }
                    self.state = State::Size { value: 0, digits: 0 };
                }
                State::Trailers(lines) => {
                    if lines.len() == MAX_TRAILERS {
                        return Err(FramingError::Trailers);
                    }
                    let byte = input.get_u8();
                    if byte == b'\n' && !lines.ends_with(b"\r") {
                        return Err(FramingError::Trailers);
                    }
                    lines.put_u8(byte);
                    if lines.as_ref() == b"\r\n" || lines.ends_with(b"\r\n\r\n") {
                        let trailers = parse_trailers(lines)?;
                        self.state = State::Done;
                        return Ok(Decoded::End(trailers));
                    }
                }
            }
        }
    }
}

fn take(input: &mut Bytes, left: &mut u64) -> Bytes {
    let part = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
    *left -= part as u64;
    input.split_to(part)
}

/// Fields that would change the framing or routing of a message are dropped (RFC 9110 §6.5.1).
fn parse_trailers(lines: &[u8]) -> Result<Option<Box<HeaderMap>>, FramingError> {
    if lines == b"\r\n" {
        return Ok(None);
    }
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(lines, &mut fields)
    else {
        return Err(FramingError::Trailers);
    };
    let mut trailers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name =
            HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| FramingError::Trailers)?;
        let value = HeaderValue::from_bytes(field.value).map_err(|_| FramingError::Trailers)?;
        if is_trailer(&name) {
            trailers.append(name, value);
        }
    }
    Ok(Some(Box::new(trailers)))
}

fn is_trailer(name: &HeaderName) -> bool {
    use http::header;
    ![
        header::TRANSFER_ENCODING,
        header::CONTENT_LENGTH,
        header::HOST,
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
        header::AUTHORIZATION,
        header::COOKIE,
        header::SET_COOKIE,
    ]
    .contains(name)
}

/// Bodies from this size on are sent as they are; smaller ones are copied behind the head so that
/// both leave in one frame.
const GATHER: usize = 8 * 1024;

/// Puts a body into the outgoing bytes of a connection.
#[derive(Debug)]
pub(crate) struct BodyEncoder {
    length: BodyLength,
    left: u64,
    finished: bool,
}

impl BodyEncoder {
    /// For a body of this length.
    pub(crate) fn new(length: BodyLength) -> Self {
        BodyEncoder {
            length,
            left: match length {
                BodyLength::Sized(bytes) => bytes,
                _ => 0,
            },
            finished: false,
        }
    }

    /// Encodes a part into `out`; returns bytes that go behind `out` uncopied.
    /// `Err` when the body is longer than announced.
    pub(crate) fn data(
        &mut self,
        out: &mut BytesMut,
        data: Bytes,
    ) -> Result<Option<Bytes>, FramingError> {
        if data.is_empty() || self.finished {
            return Ok(None);
        }
        match self.length {
            BodyLength::Empty => return Err(FramingError::Truncated),
            BodyLength::Sized(_) => {
                self.left =
                    self.left.checked_sub(data.len() as u64).ok_or(FramingError::Truncated)?;
            }
            BodyLength::Chunked => put_chunk_size(out, data.len()),
            BodyLength::UntilClose => {}
        }
        let chunked = self.length == BodyLength::Chunked;
        if data.len() < GATHER {
            out.extend_from_slice(&data);
            if chunked {
                out.extend_from_slice(b"\r\n");
            }
            return Ok(None);
        }
        Ok(Some(data))
    }

    /// Bytes that must follow data which [`Self::data`] returned.
    pub(crate) fn after_large(&self, out: &mut BytesMut) {
        if self.length == BodyLength::Chunked {
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Ends the message. `Err` when it is shorter than announced.
    pub(crate) fn finish(
        &mut self,
        out: &mut BytesMut,
        trailers: Option<&HeaderMap>,
    ) -> Result<(), FramingError> {
        if self.finished {
            return Ok(());
        }
        self.finished = true;
        match self.length {
            BodyLength::Sized(_) if self.left > 0 => Err(FramingError::Truncated),
            BodyLength::Chunked => {
                out.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.into_iter().flatten() {
                    put_header(out, name, value);
                }
                out.extend_from_slice(b"\r\n");
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Writes `name: value` and CRLF.
pub(crate) fn put_header(out: &mut BytesMut, name: &HeaderName, value: &HeaderValue) {
    let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
    out.reserve(name.len() + value.len() + 4);
    out.put_slice(name);
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

fn put_chunk_size(out: &mut BytesMut, size: usize) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let digits = ((usize::BITS - size.leading_zeros()).div_ceil(4)).max(1);
    for digit in (0..digits).rev() {
        out.put_u8(HEX[(size >> (digit * 4)) & 15]);
    }
    out.put_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn decode_all(
        length: BodyLength,
        parts: &[&[u8]],
    ) -> Result<(Vec<u8>, Option<HeaderMap>, bool), FramingError> {
        let mut decoder = BodyDecoder::new(length);
        let mut body = Vec::new();
        for part in parts {
            let mut input = Bytes::copy_from_slice(part);
            loop {
                match decoder.decode(&mut input)? {
                    Decoded::Data(data) => body.extend_from_slice(&data),
                    Decoded::NeedMore => break,
                    Decoded::End(trailers) => return Ok((body, trailers.map(|t| *t), true)),
                }
            }
        }
        Ok((body, None, decoder.is_done()))
    }

    #[test]
    fn chunks_and_trailers() {
        let (body, trailers, done) = decode_all(
            BodyLength::Chunked,
            &[b"5;x=y\r\nhel", b"lo\r", b"\n0\r\nx-sum: 1\r\ncontent-length: 9\r\n", b"\r\n"],
        )
        .unwrap();
        assert_eq!(body, b"hello");
        assert!(done);
        let trailers = trailers.unwrap();
        assert_eq!(trailers.get("x-sum").unwrap(), "1");
        assert!(trailers.get("content-length").is_none());
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for (input, error) in [
            (&b"\r\n"[..], FramingError::ChunkSize),
            (b"5\nhello", FramingError::ChunkSize),
            (b"0x5\r\nhello", FramingError::ChunkSize),
            (b"+5\r\nhello", FramingError::ChunkSize),
            (b"11111111111111111\r\n", FramingError::ChunkSize),
            (b"1\r\nab", FramingError::ChunkEnd),
            (b"1\r\na\n", FramingError::ChunkEnd),
            (b"0\r\n\nGET / HTTP/1.1\r\nhost: x\r\n\r\n", FramingError::Trailers),
            (b"0\r\nbad header\r\n\r\n", FramingError::Trailers),
        ] {
            assert_eq!(decode_all(BodyLength::Chunked, &[input]).unwrap_err(), error, "{input:?}");
        }
    }

    #[test]
    fn an_error_stays() {
        let mut decoder = BodyDecoder::new(BodyLength::Chunked);
        let mut input = Bytes::from_static(b"0x5\r\nhello\r\n0\r\n\r\n");
        assert_eq!(decoder.decode(&mut input), Err(FramingError::ChunkSize));
        assert_eq!(decoder.decode(&mut input), Err(FramingError::ChunkSize));
        assert!(!decoder.is_done());
    }

    #[test]
    fn sized_bodies_end_where_they_say() {
        let mut decoder = BodyDecoder::new(BodyLength::Sized(3));
        let mut input = Bytes::from_static(b"abcGET");
        assert_eq!(decoder.decode(&mut input).unwrap(), Decoded::Data(Bytes::from_static(b"abc")));
        assert!(decoder.is_done());
        assert_eq!(input, "GET");
        assert_eq!(
            BodyDecoder::new(BodyLength::Sized(1)).end_of_stream(),
            Err(FramingError::Truncated)
        );
    }

    #[test]
    fn an_encoder_keeps_to_the_announced_length() {
        let mut out = BytesMut::new();
        let mut encoder = BodyEncoder::new(BodyLength::Sized(2));
        assert_eq!(
            encoder.data(&mut out, Bytes::from_static(b"abc")),
            Err(FramingError::Truncated)
        );
        let mut encoder = BodyEncoder::new(BodyLength::Sized(2));
        encoder.data(&mut out, Bytes::from_static(b"a")).unwrap();
        assert_eq!(encoder.finish(&mut out, None), Err(FramingError::Truncated));
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20_000), 0..6), cut in 1usize..5000) {
            let mut encoder = BodyEncoder::new(BodyLength::Chunked);
            let mut wire = Vec::new();
            for part in &parts {
                let mut out = BytesMut::new();
                let large = encoder.data(&mut out, Bytes::from(part.clone())).unwrap();
                wire.extend_from_slice(&out);
                if let Some(large) = large {
                    wire.extend_from_slice(&large);
                    let mut after = BytesMut::new();
                    encoder.after_large(&mut after);
                    wire.extend_from_slice(&after);
                }
            }
            let mut out = BytesMut::new();
            encoder.finish(&mut out, None).unwrap();
            wire.extend_from_slice(&out);
            let pieces: Vec<&[u8]> = wire.chunks(cut).collect();
            let (body, _, done) = decode_all(BodyLength::Chunked, &pieces).unwrap();
            prop_assert!(done);
            prop_assert_eq!(body, parts.concat());
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_all(BodyLength::Chunked, &[&bytes]);
        }
    }
}

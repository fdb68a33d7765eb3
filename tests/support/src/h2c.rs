//! HTTP/2 with prior knowledge, and gRPC on it, as a client.

use crate::wire::Fields;
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;

/// One connection.
#[derive(Clone)]
pub struct H2c {
    send: SendRequest<Bytes>,
    driver: std::sync::Arc<JoinHandle<Result<(), h2::Error>>>,
}

/// A whole response.
#[derive(Debug, Clone)]
pub struct H2Response {
    /// Status.
    pub status: u16,
    /// Without `:status`.
    pub headers: HeaderMap,
    /// All of it.
    pub body: Bytes,
    /// After the body.
    pub trailers: HeaderMap,
    /// The response was a single HEADERS frame with END_STREAM.
    pub headers_only: bool,
}

impl H2Response {
    /// The first value of that header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON: what the backend's `/echo` saw.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> serde_json::Value {
        match serde_json::from_slice(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("{error} in the {} response {:?}", self.status, self.text()),
        }
    }

    /// `grpc-status` of the trailers, or of the headers of a trailers-only response.
    pub fn grpc_status(&self) -> Option<u32> {
        let fields = if self.headers_only { &self.headers } else { &self.trailers };
        fields.get("grpc-status")?.to_str().ok()?.parse().ok()
    }

    /// `grpc-message`, from the same place.
    pub fn grpc_message(&self) -> Option<&str> {
        let fields = if self.headers_only { &self.headers } else { &self.trailers };
        fields.get("grpc-message")?.to_str().ok()
    }

    /// The messages in the body.
    pub fn messages(&self) -> Vec<Bytes> {
        let mut body = BytesMut::from(self.body.as_ref());
        std::iter::from_fn(|| take_message(&mut body)).collect()
    }
}

/// A gRPC message with its five bytes in front, uncompressed.
pub fn grpc_frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame.freeze()
}

/// Takes a whole message off the front.
pub fn take_message(buf: &mut BytesMut) -> Option<Bytes> {
    let length: [u8; 4] = buf.get(1..5)?.try_into().ok()?;
    let length = u32::from_be_bytes(length) as usize;
    if buf.len() < 5 + length {
        return None;
    }
    let mut frame = buf.split_to(5 + length);
    Some(frame.split_off(5).freeze())
}

impl H2c {
    /// Sends preface and SETTINGS.
    pub async fn connect<S>(io: S) -> Result<Self, h2::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .enable_push(false)
            .handshake(io)
            .await?;
        Ok(H2c { send, driver: std::sync::Arc::new(tokio::spawn(connection)) })
    }

    /// The connection has ended.
    pub fn is_closed(&self) -> bool {
        self.driver.is_finished()
    }

    /// The h2 client itself.
    pub fn sender(&self) -> SendRequest<Bytes> {
        self.send.clone()
    }

    /// Sends the head; the rest is the caller's. The authority is `app.test` unless the headers
    /// have a `host`, which is sent as `:authority`.
    pub async fn start(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        end_stream: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let authority =
            headers.iter().find(|(name, _)| *name == "host").map_or("app.test", |(_, host)| host);
        let mut request =
            Request::builder().method(method).uri(format!("http://{authority}{path}"));
        for (name, value) in headers.iter().filter(|(name, _)| *name != "host") {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        self.send.clone().ready().await?.send_request(request, end_stream)
    }

    /// A request and its whole response.
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<H2Response, h2::Error> {
        let (response, mut send) = self.start(method, path, headers, body.is_empty()).await?;
        if !body.is_empty() {
            let body = Bytes::copy_from_slice(body);
            // Beside the response: it may come, and end the stream, before all is sent.
            tokio::spawn(async move {
                let _ = send_all(&mut send, body, true).await;
            });
        }
        collect(response).await
    }

    /// `GET`.
    pub async fn get(&self, path: &str) -> Result<H2Response, h2::Error> {
        self.request("GET", path, &[], b"").await
    }

    /// A unary call.
    pub async fn unary(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        message: &[u8],
    ) -> Result<H2Response, h2::Error> {
        let mut all = vec![("content-type", "application/grpc"), ("te", "trailers")];
        all.extend_from_slice(headers);
        self.request("POST", path, &all, &grpc_frame(message)).await
    }

    /// A call that streams both ways.
    pub async fn stream(&self, path: &str, headers: &[(&str, &str)]) -> Result<Call, h2::Error> {
        let mut all = vec![("content-type", "application/grpc"), ("te", "trailers")];
        all.extend_from_slice(headers);
        let (response, send) = self.start("POST", path, &all, false).await?;
        Ok(Call { send, state: State::Waiting(response), buf: BytesMut::new() })
    }
}

/// Sends all of `body` as flow control admits.
pub async fn send_all(
    send: &mut SendStream<Bytes>,
    mut body: Bytes,
    end_stream: bool,
) -> Result<(), h2::Error> {
    while !body.is_empty() {
        send.reserve_capacity(body.len());
        while send.capacity() == 0 {
            match std::future::poll_fn(|cx| send.poll_capacity(cx)).await {
                Some(capacity) => capacity?,
                None => return Err(h2::Reason::CANCEL.into()),
            };
        }
        let part = body.split_to(send.capacity().min(body.len()));
        let last = body.is_empty() && end_stream;
        send.send_data(part, last)?;
    }
    Ok(())
}

/// The whole response.
pub async fn collect(response: ResponseFuture) -> Result<H2Response, h2::Error> {
    let (head, mut recv) = response.await?.into_parts();
    let headers_only = recv.is_end_stream();
    let mut body = BytesMut::new();
    while let Some(data) = recv.data().await {
        let data = data?;
        let _ = recv.flow_control().release_capacity(data.len());
        body.extend_from_slice(&data);
    }
    let trailers = recv.trailers().await?.unwrap_or_default();
    Ok(H2Response {
        status: head.status.as_u16(),
        headers: head.headers,
        body: body.freeze(),
        trailers,
        headers_only,
    })
}

/// A gRPC call in both directions.
pub struct Call {
    send: SendStream<Bytes>,
    state: State,
    buf: BytesMut,
}

enum State {
    Waiting(ResponseFuture),
    Open(HeaderMap, RecvStream),
    Gone,
}

impl Call {
    /// Sends a message.
    pub async fn send(&mut self, message: &[u8]) -> Result<(), h2::Error> {
        send_all(&mut self.send, grpc_frame(message), false).await
    }

    /// No more messages from us.
    pub fn close_send(&mut self) -> Result<(), h2::Error> {
        self.send.send_data(Bytes::new(), true)
    }

    /// Cancels the call.
    pub fn cancel(&mut self) {
        self.send.send_reset(h2::Reason::CANCEL);
    }

    /// Waits for the response's head.
    pub async fn headers(&mut self) -> Result<HeaderMap, h2::Error> {
        if let State::Waiting(response) = &mut self.state {
            let (head, recv) = response.await?.into_parts();
            self.state = State::Open(head.headers, recv);
        }
        match &self.state {
            State::Open(headers, _) => Ok(headers.clone()),
            _ => Err(h2::Reason::CANCEL.into()),
        }
    }

    /// The next message, or `None` before the trailers.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, h2::Error> {
        self.headers().await?;
        loop {
            if let Some(message) = take_message(&mut self.buf) {
                return Ok(Some(message));
            }
            let State::Open(_, recv) = &mut self.state else {
                return Ok(None);
            };
            match recv.data().await {
                None => return Ok(None),
                Some(data) => {
                    let data = data?;
                    let _ = recv.flow_control().release_capacity(data.len());
                    self.buf.extend_from_slice(&data);
                }
            }
        }
    }

    /// The trailers, after `recv` has returned `None`.
    pub async fn trailers(mut self) -> Result<HeaderMap, h2::Error> {
        match std::mem::replace(&mut self.state, State::Gone) {
            State::Open(_, mut recv) => Ok(recv.trailers().await?.unwrap_or_default()),
            _ => Ok(HeaderMap::new()),
        }
    }
}

/// Header fields as the HTTP/1.1 helpers have them.
pub fn fields(headers: &HeaderMap) -> Fields {
    Fields(
        headers
            .iter()
            .map(|(name, value)| {
                (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
            })
            .collect(),
    )
}

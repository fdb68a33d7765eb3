//! HTTP/2 with prior knowledge: unary gRPC answers.

use super::http1::wished_bytes;
use bytes::Bytes;
use cairn_hbone::Defer;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use std::future::poll_fn;
use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes of a gRPC message's own header.
const FRAME: usize = 5;

/// Answers until the client has enough.
pub async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin) {
    let handshake = h2::server::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .max_concurrent_streams(1000)
        .handshake::<_, Bytes>(stream);
    let Ok(mut connection) = handshake.await else { return };
    let accept = poll_fn(move |cx| {
        loop {
            match connection.poll_accept(cx) {
                std::task::Poll::Ready(Some(Ok((request, respond)))) => {
                    tokio::spawn(answer(request, respond));
                }
                std::task::Poll::Ready(_) => return std::task::Poll::Ready(()),
                std::task::Poll::Pending => return std::task::Poll::Pending,
            }
        }
    });
    Defer::new(accept, true).await;
}

async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (head, mut body) = request.into_parts();
    while let Some(Ok(chunk)) = body.data().await {
        let _stream_may_be_reset = body.flow_control().release_capacity(chunk.len());
    }
    let bytes = wished_bytes(head.uri.query().unwrap_or_default());
    let mut response = Response::new(());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let Ok(mut send) = respond.send_response(response, false) else { return };
    let mut message = vec![0; FRAME + bytes];
    if let Some(length) = message.get_mut(1..FRAME) {
        length.copy_from_slice(&(bytes as u32).to_be_bytes());
    }
    if send_all(&mut send, message.into()).await.is_some() {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let _stream_may_be_reset = send.send_trailers(trailers);
    }
}

/// Sends as much as the window admits, until all is sent.
async fn send_all(send: &mut SendStream<Bytes>, mut data: Bytes) -> Option<()> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let mut capacity = send.capacity();
        if capacity == 0 {
            capacity = poll_fn(|cx| send.poll_capacity(cx)).await?.ok()?;
        }
        send.send_data(data.split_to(capacity.min(data.len())), false).ok()?;
    }
    Some(())
}

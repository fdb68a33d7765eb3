//! Finding dead peers: an HTTP/2 PING every `interval` after the previous answer, and a deadline for the answer.

use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{sleep, timeout};

/// Resolves when a PING was not answered within `limit`. When the connection ends first it stays pending, because the
/// driver beside it reports that end.
///
/// ztunnel does the same with 10 s and 20 s on both of its sides.
pub(crate) async fn unanswered(ping_pong: Option<PingPong>, interval: Duration, limit: Duration) {
    let Some(mut ping_pong) = ping_pong else {
        return std::future::pending().await;
    };
    loop {
        sleep(interval).await;
        match timeout(limit, ping_pong.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    const INTERVAL: Duration = Duration::from_secs(10);
    const LIMIT: Duration = Duration::from_secs(20);

    #[tokio::test(start_paused = true)]
    async fn silence_is_noticed_after_interval_and_limit() {
        let (ours, mut theirs) = duplex(1 << 16);
        let (_send, mut connection) =
            h2::client::Builder::new().handshake::<_, Bytes>(ours).await.unwrap();
        let ping_pong = connection.ping_pong();
        let driver = tokio::spawn(connection);
        // An empty SETTINGS frame, and then nothing.
        theirs.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        let reader = tokio::spawn(async move {
            let mut sink = [0; 1024];
            while theirs.read(&mut sink).await.unwrap() > 0 {}
        });
        let start = Instant::now();
        unanswered(ping_pong, INTERVAL, LIMIT).await;
        assert_eq!(start.elapsed().as_secs(), 30);
        driver.abort();
        reader.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn answers_keep_it_quiet() {
        let (ours, theirs) = duplex(1 << 16);
        let server = tokio::spawn(async move {
            let mut server = h2::server::handshake(theirs).await.unwrap();
            while server.accept().await.is_some() {}
        });
        let (_send, mut connection) = h2::client::handshake(ours).await.unwrap();
        let ping_pong = connection.ping_pong();
        let driver = tokio::spawn(connection);
        let hour = timeout(Duration::from_secs(3600), unanswered(ping_pong, INTERVAL, LIMIT));
        assert!(hour.await.is_err());
        driver.abort();
        server.abort();
    }
}

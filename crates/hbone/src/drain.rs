//! Telling connections that it is time to end.

use tokio_util::sync::CancellationToken;

/// Starts the drain of the connections that hold its [`DrainWatch`]. Dropping it starts nothing.
#[derive(Debug, Default)]
pub struct Drain {
    token: CancellationToken,
}

/// Learns of the start of a drain.
///
/// A connection that is draining sends GOAWAY with the highest stream id and a PING, after the answer GOAWAY with the
/// last stream that it will serve, and closes when its streams have ended. ztunnel then opens its next tunnel on a new
/// connection, without a failed one.
#[derive(Debug, Clone)]
pub struct DrainWatch {
    token: CancellationToken,
}

impl Drain {
    /// A drain that has not started.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts it, for good.
    pub fn start(&self) {
        self.token.cancel();
    }

    /// A watch of this drain.
    pub fn watch(&self) -> DrainWatch {
        DrainWatch { token: self.token.clone() }
    }
}

impl DrainWatch {
    /// Returns when the drain has started; never, if it does not.
    pub async fn started(&self) {
        self.token.cancelled().await;
    }

    /// Whether it has started.
    pub fn is_started(&self) -> bool {
        self.token.is_cancelled()
    }
}

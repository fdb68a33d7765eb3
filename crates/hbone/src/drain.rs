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

    /// A drain of its own, for one connection: it starts with this one, or by itself before.
    pub fn child(&self) -> Drain {
        Drain { token: self.token.child_token() }
    }

    /// Whether it has started.
    pub fn is_started(&self) -> bool {
        self.token.is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_starts_alone_and_with_its_parent() {
        let all = Drain::new();
        let (one, other) = (all.watch().child(), all.watch().child());
        one.start();
        assert!(one.watch().is_started());
        assert!(!other.watch().is_started() && !all.watch().is_started());
        all.start();
        assert!(other.watch().is_started());
        assert!(all.watch().child().watch().is_started(), "one that is late");
    }
}

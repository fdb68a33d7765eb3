//! Records on their way to collectors: bounded queues, batches, one task per target.
//!
//! Whoever has a record pushes it into the [`Queue`] of its target, which never waits: what does not fit is dropped and
//! counted. The target's task sends what has gathered when it is enough, or old enough, through [`Deliver`]; what is
//! not delivered is sent once more, then dropped and counted. The task ends when nobody holds the queue any more, that
//! is when no configuration names the target.

mod batch;
mod counts;
pub mod logs;
mod registry;

pub use batch::{Encode, Queue, Settings, Weigh};
pub use counts::{Counted, Counts};
pub use registry::{Registry, Spans};

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// Where records go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Name of the cluster.
    pub cluster: String,
    /// `Host`, or `:authority`.
    pub authority: String,
    /// Path and query.
    pub path: String,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// Bound of one message.
    pub timeout: Duration,
    /// What is sent.
    pub content: Content,
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// A POST with JSON.
    Json,
    /// A POST with protobuf.
    Protobuf,
    /// A gRPC call with one message.
    Grpc,
}

/// Why a message was not delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undelivered(pub String);

impl fmt::Display for Undelivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a delivery comes to.
pub type Delivery<'a> = Pin<Box<dyn Future<Output = Result<(), Undelivered>> + Send + 'a>>;

/// Brings messages to clusters of the mesh.
pub trait Deliver: Send + Sync + 'static {
    /// Sends one message, within the target's timeout.
    fn deliver<'a>(&'a self, target: &'a Target, message: Vec<u8>) -> Delivery<'a>;
}

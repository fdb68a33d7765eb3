//! The queues of one mesh, one for each target that its configuration names.

use super::batch::{Encode, Queue, Settings, Weigh};
use super::counts::{Counts, SPANS};
use super::{Deliver, Target};
use crate::trace::zipkin::Endpoint;
use crate::trace::{Span, otlp, zipkin};
use crate::writer::Writer;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How spans are written down, and for whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Spans {
    /// Zipkin's JSON.
    Zipkin(Endpoint),
    /// The OpenTelemetry protocol, with the attributes of the resource.
    Otlp(Vec<(String, String)>),
}

impl Encode<Span> for Spans {
    fn encode(&self, spans: &[Span]) -> Vec<u8> {
        match self {
            Spans::Zipkin(endpoint) => zipkin::encode(endpoint, spans),
            Spans::Otlp(attributes) => otlp::encode(attributes, spans),
        }
    }
}

impl Weigh for Span {
    fn weight(&self) -> usize {
        let tags: usize = self.tags.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
        tags + self.name.len() + self.trace_state.len() + 24 * self.annotations.len() + 128
    }
}

/// The queues of one mesh. A queue lives as long as somebody else holds it.
#[derive(Debug, Default)]
pub struct Registry {
    spans: Known<Spans, Span>,
}

type ByTarget<E, T> = HashMap<(Target, E), Weak<Queue<T>>>;

/// Queues of one kind of records, by target and form.
#[derive(Debug)]
struct Known<E, T> {
    queues: Mutex<ByTarget<E, T>>,
    counts: Arc<Counts>,
}

impl<E, T> Default for Known<E, T> {
    fn default() -> Self {
        Known { queues: Mutex::default(), counts: Arc::default() }
    }
}

impl<E, T> Known<E, T>
where
    E: Encode<T> + Clone + Eq + Hash,
    T: Weigh + Send + Sync + 'static,
{
    fn queue(
        &self,
        target: Target,
        form: E,
        deliver: impl FnOnce() -> Arc<dyn Deliver>,
        spawn: impl FnOnce(Task),
    ) -> Arc<Queue<T>> {
        let mut queues = self.queues.lock();
        queues.retain(|_, queue| queue.strong_count() > 0);
        let key = (target, form);
        if let Some(known) = queues.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        let (target, form) = key.clone();
        let (queue, task) =
            Queue::new(target, Settings::default(), form, deliver(), Arc::clone(&self.counts));
        let queue = Arc::new(queue);
        queues.insert(key, Arc::downgrade(&queue));
        spawn(Box::pin(task));
        queue
    }

    fn all(&self) -> Vec<Arc<Queue<T>>> {
        self.queues.lock().values().filter_map(Weak::upgrade).collect()
    }
}

/// Empties a queue until nobody holds it.
pub type Task = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

impl Registry {
    /// The queue of spans for a target. For one that has none it is made, and `spawn` runs its task.
    pub fn spans(
        &self,
        target: Target,
        form: Spans,
        deliver: impl FnOnce() -> Arc<dyn Deliver>,
        spawn: impl FnOnce(Task),
    ) -> Arc<Queue<Span>> {
        self.spans.queue(target, form, deliver, spawn)
    }

    /// What became of spans.
    pub fn span_counts(&self) -> &Counts {
        &self.spans.counts
    }

    /// Sends everything that waits, within `limit`.
    pub async fn flush(&self, limit: Duration) {
        let flush = async {
            for queue in self.spans.all() {
                queue.flush().await;
            }
        };
        let _late_is_lost = tokio::time::timeout(limit, flush).await;
    }

    /// Adds the counters to a scrape.
    pub fn write(&self, mesh: &str, writer: &mut Writer) {
        self.spans.counts.write(&SPANS, mesh, writer);
    }
}

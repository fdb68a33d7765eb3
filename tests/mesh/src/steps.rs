//! Progress: each step has a number, a name and the time that it took.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Steps that are behind us, for the last line; of the one target that this process is.
static PASSED: AtomicUsize = AtomicUsize::new(0);

/// Runs steps in order; a step fails by panicking.
pub struct Steps {
    number: usize,
    count: usize,
    skipped: usize,
    only: Vec<String>,
}

impl Steps {
    /// There are `count` of them; those that may be left out are, unless their name has one of the texts in
    /// `only`, or `only` is empty.
    pub fn new(count: usize, only: Vec<String>) -> Self {
        PASSED.store(0, Ordering::SeqCst);
        Steps { number: 0, count, skipped: 0, only }
    }

    /// How many have passed in this process.
    pub fn passed() -> usize {
        PASSED.load(Ordering::SeqCst)
    }

    /// One step.
    pub async fn run<T>(&mut self, name: &str, step: impl Future<Output = T>) -> T {
        self.number += 1;
        print!("[{:2}/{}] {name} ... ", self.number, self.count);
        let _ = std::io::stdout().flush();
        let start = Instant::now();
        let value = Box::pin(step).await;
        println!("{:.1} s", start.elapsed().as_secs_f64());
        PASSED.fetch_add(1, Ordering::SeqCst);
        value
    }

    /// One step on which no other depends: it leaves things as it found them.
    pub async fn may(&mut self, name: &str, step: impl Future<Output = ()>) {
        if self.only.is_empty() || self.only.iter().any(|text| name.contains(text.as_str())) {
            self.run(name, step).await;
        } else {
            self.number += 1;
            self.skipped += 1;
        }
    }

    /// How many were not run.
    ///
    /// # Panics
    /// When `count` was not their number.
    pub fn end(self) -> usize {
        assert_eq!(self.number, self.count, "the target's `steps` is the number of its steps");
        self.skipped
    }
}

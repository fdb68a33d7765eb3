//! Progress: each step has a number, a name and the time that it took.

use std::io::Write;
use std::time::Instant;

/// How many steps there are.
pub const COUNT: usize = 17;

/// Runs steps in order.
pub struct Steps {
    number: usize,
    passed: fn(usize),
}

impl Steps {
    /// Tells `passed` how many are behind us.
    pub fn new(passed: fn(usize)) -> Self {
        Steps { number: 0, passed }
    }

    /// One step; a step fails by panicking.
    pub async fn run<T>(&mut self, name: &str, step: impl Future<Output = T>) -> T {
        self.number += 1;
        print!("[{:2}/{COUNT}] {name} ... ", self.number);
        let _ = std::io::stdout().flush();
        let start = Instant::now();
        let value = Box::pin(step).await;
        println!("{:.1} s", start.elapsed().as_secs_f64());
        (self.passed)(self.number);
        value
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.number, COUNT, "COUNT is the number of steps");
        }
    }
}

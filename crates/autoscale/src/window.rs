//! Samples over time.

use std::collections::VecDeque;
use std::time::Duration;

/// Samples of the last while. Each one is an average over the time since the one before, as polls of
/// growing totals give it; averages of several weigh them by that time.
#[derive(Debug, Clone)]
pub struct Window {
    keep: Duration,
    samples: VecDeque<Sample>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Duration,
    value: f64,
}

impl Window {
    /// Remembers samples for `keep`. Their number is bounded by how often they are added.
    pub fn new(keep: Duration) -> Self {
        Window { keep, samples: VecDeque::new() }
    }

    /// Adds a sample. One that is older than the last is ignored, as is one that is no number.
    pub fn add(&mut self, at: Duration, value: f64) {
        if !value.is_finite() || self.samples.back().is_some_and(|last| at < last.at) {
            return;
        }
        self.samples.push_back(Sample { at, value });
        let begin = at.saturating_sub(self.keep);
        // The last one before the window says since when the next one counts.
        while self.samples.get(1).is_some_and(|second| second.at <= begin) {
            self.samples.pop_front();
        }
    }

    /// Average over the `length` before `end`, weighted by time; a window without history is averaged
    /// over what there is. `None`: no sample.
    pub fn average(&self, end: Duration, length: Duration) -> Option<f64> {
        let begin = end.saturating_sub(length);
        let (mut sum, mut time) = (0.0, 0.0);
        let mut last: Option<&Sample> = None;
        for sample in &self.samples {
            let since = last.map_or(sample.at, |last| last.at);
            if since >= end {
                break;
            }
            let span = sample.at.min(end).saturating_sub(since.max(begin)).as_secs_f64();
            sum += sample.value * span;
            time += span;
            last = Some(sample);
        }
        if time > 0.0 {
            Some(sum / time)
        } else {
            last.or(self.samples.back()).map(|last| last.value)
        }
    }

    /// Largest sample of the `length` before `end`.
    pub fn max(&self, end: Duration, length: Duration) -> Option<f64> {
        let begin = end.saturating_sub(length);
        let within = |sample: &&Sample| sample.at >= begin && sample.at <= end;
        self.samples.iter().filter(within).map(|sample| sample.value).reduce(f64::max)
    }

    /// Standard deviation of the averages over steps of `step`, over the `length` before `end`; 0
    /// with fewer than two steps.
    pub fn deviation(&self, end: Duration, length: Duration, step: Duration) -> f64 {
        if step.is_zero() {
            return 0.0;
        }
        let Some(first) = self.samples.front() else { return 0.0 };
        let begin = end.saturating_sub(length).max(first.at);
        let mut steps = Vec::new();
        let mut at = end;
        while at >= begin + step {
            steps.extend(self.average(at, step));
            at = at.saturating_sub(step);
        }
        if steps.len() < 2 {
            return 0.0;
        }
        let count = steps.len() as f64;
        let mean = steps.iter().sum::<f64>() / count;
        (steps.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt()
    }

    /// When the oldest sample is from.
    pub fn begins(&self) -> Option<Duration> {
        self.samples.front().map(|sample| sample.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_average_weighs_by_time() {
        let mut window = Window::new(secs(60));
        window.add(secs(0), 1.0);
        assert_eq!(window.average(secs(0), secs(9)), Some(1.0), "the only one there is");
        window.add(secs(10), 3.0);
        window.add(secs(11), 0.0);
        assert_eq!(window.average(secs(11), secs(11)), Some(30.0 / 11.0));
        assert_eq!(window.average(secs(11), secs(1)), Some(0.0));
        assert_eq!(window.average(secs(11), secs(2)), Some(1.5));
        assert_eq!(window.max(secs(12), secs(2)), Some(3.0));
        assert_eq!(Window::new(secs(1)).average(secs(1), secs(1)), None);
    }

    #[test]
    fn old_and_backward_samples_go() {
        let mut window = Window::new(secs(10));
        for at in 0..1000 {
            window.add(secs(at), at as f64);
        }
        window.add(secs(5), 1e9);
        window.add(secs(1000), f64::NAN);
        assert!(window.samples.len() <= 12);
        assert_eq!(window.max(secs(999), secs(1000)), Some(999.0));
    }

    #[test]
    fn deviation_of_steps() {
        let mut window = Window::new(secs(600));
        window.add(secs(0), 9.0);
        for at in 0..100 {
            window.add(secs(at + 1), if (at / 10) % 2 == 0 { 2.0 } else { 4.0 });
        }
        let deviation = window.deviation(secs(100), secs(100), secs(10));
        assert!((deviation - 1.0).abs() < 1e-9, "{deviation}");
        assert_eq!(window.deviation(secs(100), secs(100), Duration::ZERO), 0.0);
    }
}

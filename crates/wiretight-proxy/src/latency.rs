//! How long things take: histograms that the workers write and the metrics read.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The upper bounds of the buckets, in microseconds. One more bucket has no bound.
pub const BOUNDS: [u64; 14] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000,
    2_500_000, 10_000_000,
];

/// A histogram with fixed buckets. One observation is two additions.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    pub(crate) fn observe(&self, took: Duration) {
        let micros = took.as_secs().saturating_mul(1_000_000);
        let micros = micros.saturating_add(u64::from(took.subsec_micros()));
        let bucket = BOUNDS.partition_point(|bound| *bound < micros);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.micros.fetch_add(micros, Relaxed);
    }

    pub(crate) fn read(&self) -> Latency {
        Latency {
            buckets: self.buckets.each_ref().map(|count| count.load(Relaxed)),
            micros: self.micros.load(Relaxed),
        }
    }
}

/// What a histogram has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// The number of observations up to each of [`BOUNDS`] and above the bound before; the last: above all bounds.
    pub buckets: [u64; BOUNDS.len() + 1],
    /// The sum of all observations, in microseconds.
    pub micros: u64,
}

impl Latency {
    /// The number of observations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observation_is_counted_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let histogram = Histogram::default();
        for micros in [0, 100, 101, 10_000_000, 10_000_001, 3_600_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let read = histogram.read();
        let mut buckets = [0; BOUNDS.len() + 1];
        (buckets[0], buckets[1], buckets[13], buckets[14]) = (2, 1, 1, 2);
        assert_eq!(read, Latency { buckets, micros: 3_620_000_202 });
        assert_eq!(read.count(), 6);
        histogram.observe(Duration::MAX); // does not panic
    }

    #[test]
    fn the_bounds_rise() {
        assert!(BOUNDS.is_sorted_by(|a, b| a < b));
    }
}

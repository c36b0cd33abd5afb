//! This machine's clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The current time, in seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

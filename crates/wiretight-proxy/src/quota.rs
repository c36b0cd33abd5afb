//! Limits log lines per second, so that a remote peer cannot fill the disk.

/// Lines per second.
const LINES: u32 = 20;

/// Counts the lines of the current second.
#[derive(Debug, Default)]
pub struct LogQuota {
    second: u64,
    logged: u32,
    held_back: u64,
}

impl LogQuota {
    /// Whether a line may be logged now (seconds since 1970). Suppressed lines of an earlier second are logged as one
    /// summary line.
    pub fn allows(&mut self, now: u64) -> bool {
        if self.second != now {
            if self.held_back > 0 {
                tracing::warn!(count = self.held_back, "more refusals, not logged individually");
            }
            *self = LogQuota { second: now, logged: 0, held_back: 0 };
        }
        let allowed = self.logged < LINES;
        match allowed {
            true => self.logged += 1,
            false => self.held_back += 1,
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_limited_to_lines_per_second() {
        let mut quota = LogQuota::default();
        let logged = |q: &mut LogQuota, at| (0..1000).filter(|_| q.allows(at)).count();
        assert_eq!(logged(&mut quota, 1), LINES as usize);
        assert_eq!(logged(&mut quota, 1), 0);
        assert_eq!(logged(&mut quota, 2), LINES as usize);
    }
}

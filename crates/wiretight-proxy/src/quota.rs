//! So many log lines a second and no more: strangers must not be able to fill a disk.

/// Lines in a second.
const LINES: u32 = 20;

/// Counts the lines of the current second.
#[derive(Debug, Default)]
pub struct LogQuota {
    second: u64,
    logged: u32,
    held_back: u64,
}

impl LogQuota {
    /// Whether a line may be logged now (seconds since 1970). Lines that were held back in an earlier
    /// second are reported as one.
    pub fn allows(&mut self, now: u64) -> bool {
        if self.second != now {
            if self.held_back > 0 {
                tracing::warn!(count = self.held_back, "more refusals, not logged one by one");
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
    fn a_flood_is_cut_to_so_many_lines_a_second() {
        let mut quota = LogQuota::default();
        let logged = |q: &mut LogQuota, at| (0..1000).filter(|_| q.allows(at)).count();
        assert_eq!(logged(&mut quota, 1), LINES as usize);
        assert_eq!(logged(&mut quota, 1), 0);
        assert_eq!(logged(&mut quota, 2), LINES as usize);
    }
}

//! `Strict-Transport-Security`, a promise that a browser keeps for as long as it was told (RFC 6797): made
//! for minutes at first, and for a year when the site has proved that it holds.
//!
//! Pure: since when a site is healthy is passed in.

/// What a site wants to promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hsts {
    /// Nothing.
    Off,
    /// For this name.
    #[default]
    On,
    /// For this name and all below it, for good: browsers may have it built in (hstspreload.org).
    Preload,
}

/// Healthy for so long before a day, and before a year, is promised, in seconds.
const DAY_AFTER: u64 = 3600;
const YEAR_AFTER: u64 = 7 * 86_400;

/// The header's value for a site that has been healthy for so many seconds.
pub fn value(hsts: Hsts, healthy_for: u64) -> Option<&'static str> {
    match (hsts, healthy_for) {
        (Hsts::Off, _) => None,
        (_, 0..DAY_AFTER) => Some("max-age=300"),
        (_, DAY_AFTER..YEAR_AFTER) => Some("max-age=86400"),
        (Hsts::On, _) => Some("max-age=31536000"),
        // Only what may be kept for a year may be built into browsers.
        (Hsts::Preload, _) => Some("max-age=31536000; includeSubDomains; preload"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_promise_grows_with_the_proof() {
        let on = |t| value(Hsts::On, t).unwrap();
        assert_eq!(on(0), "max-age=300");
        assert_eq!(on(3599), "max-age=300");
        assert_eq!(on(3600), "max-age=86400");
        assert_eq!(on(7 * 86_400), "max-age=31536000");
        assert_eq!(value(Hsts::Preload, 3600).unwrap(), "max-age=86400");
        assert_eq!(
            value(Hsts::Preload, u64::MAX).unwrap(),
            "max-age=31536000; includeSubDomains; preload"
        );
        assert_eq!(value(Hsts::Off, u64::MAX), None);
    }
}

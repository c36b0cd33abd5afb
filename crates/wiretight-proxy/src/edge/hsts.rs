//! `Strict-Transport-Security` (RFC 6797). Browsers enforce it for as long as it says: a few minutes at first, and a
//! year after the site has been healthy for long enough.
//!
//! No I/O; the caller passes how long the site has been healthy.

/// A site's setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hsts {
    /// No header.
    Off,
    /// For this name only.
    #[default]
    On,
    /// For this name and all subdomains, permanently: browsers may have it built in (hstspreload.org).
    Preload,
}

/// Seconds of health before the header is valid for a day, and for a year.
const DAY_AFTER: u64 = 3600;
const YEAR_AFTER: u64 = 7 * 86_400;

/// The header value for a site that has been healthy for `healthy_for` seconds.
pub fn value(hsts: Hsts, healthy_for: u64) -> Option<&'static str> {
    match (hsts, healthy_for) {
        (Hsts::Off, _) => None,
        (_, 0..DAY_AFTER) => Some("max-age=300"),
        (_, DAY_AFTER..YEAR_AFTER) => Some("max-age=86400"),
        (Hsts::On, _) => Some("max-age=31536000"),
        // Preload lists require a max-age of a year.
        (Hsts::Preload, _) => Some("max-age=31536000; includeSubDomains; preload"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_age_grows_with_time() {
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

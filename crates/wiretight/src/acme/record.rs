//! The record of a site's certificate in the store, and what to do next. Pure.
//!
//! There is one record per site, changed by compare-and-swap. It contains the lease, the used part of the limits, and the
//! progress of the order. So if a process dies between two steps, the next one can continue from the record.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wiretight_keys::Period;

use crate::control::Blob;

/// Orders per hour and site; below what public CAs allow for failed ones (5).
pub(super) const ORDERS_PER_HOUR: usize = 4;
/// Certificates per week and site; what public CAs allow for the same names.
pub(super) const CERTIFICATES_PER_WEEK: usize = 5;
/// How many of these may be early renewals because of renewal information.
const EARLY_PER_WEEK: usize = 2;
/// Length of a lease, in seconds; each step extends it.
pub(super) const LEASE: u64 = 600;
/// An order that is not finalized by then is abandoned, in seconds.
const ORDER_AGE: u64 = HOUR;
/// A finalized order is kept longer: its certificate may exist, and another one would count against the limit.
const FINALIZED_AGE: u64 = DAY;

/// The longest pause after a failure.
const MAX_PAUSE: u64 = 6 * HOUR;

const HOUR: u64 = 3600;
const DAY: u64 = 86_400;
const WEEK: u64 = 7 * DAY;
/// Certificates with a shorter lifetime are renewed at half of it, others at two thirds.
const SHORT_LIVED: u64 = 10 * DAY;

/// A secret, encrypted to each edge that may have it, by the edge's name.
pub(super) type Sealed = BTreeMap<String, Blob>;

/// A site's certificate, and the order for the next one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct SiteRecord {
    /// The certificate that is served.
    pub(super) certificate: Option<Issued>,
    pub(super) order: Option<Pending>,
    pub(super) lease: Option<Lease>,
    /// Times of orders in the last hour.
    pub(super) orders: Vec<u64>,
    /// Times of finalized orders in the last week.
    pub(super) finalized: Vec<u64>,
    /// Consecutive failed attempts.
    pub(super) failures: u32,
    /// No attempt is made before this time.
    pub(super) retry_at: u64,
    /// Why the last attempt failed.
    pub(super) error: Option<String>,
    /// Renewal information from the CA.
    pub(super) ari: Option<Ari>,
    /// For an on-demand host: when it was admitted.
    pub(super) on_demand: Option<u64>,
}

/// A certificate and its encrypted key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Issued {
    /// PEM, leaf first.
    pub(super) chain: String,
    /// PKCS#8 in PEM.
    pub(super) key: Sealed,
    /// The directory of the CA that issued it.
    pub(super) ca: String,
    /// The names that it was ordered for.
    pub(super) names: Vec<String>,
}

/// An order in progress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Pending {
    /// The directory of its CA.
    pub(super) ca: String,
    /// Its URL; `None` if it was not created yet, or the URL was lost in a crash.
    pub(super) url: Option<String>,
    /// When it was started.
    pub(super) begun: u64,
    pub(super) names: Vec<String>,
    /// The key of the certificate, once it is finalized.
    pub(super) key: Option<Sealed>,
    /// The challenge responses that all edges serve.
    pub(super) answers: Vec<Answer>,
    /// The CA did not accept `replaces`.
    pub(super) without_replaces: bool,
}

/// A response to a challenge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Answer {
    /// http-01.
    Http { token: String, key_authorization: String },
    /// tls-alpn-01.
    TlsAlpn {
        name: String,
        /// SHA-256 of the key authorization.
        digest: Blob,
    },
    /// dns-01: the edge that works on the order sets the DNS record.
    Dns {
        /// The name, without `*.`.
        name: String,
        /// The record's text.
        value: String,
    },
}

impl Answer {
    /// Whether it is a DNS record.
    pub(super) fn is_record(&self) -> bool {
        matches!(self, Answer::Dns { .. })
    }
}

/// The right of one edge to work on a site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Lease {
    /// The edge.
    pub(super) holder: String,
    pub(super) until: u64,
}

/// Renewal information (RFC 9773) for one certificate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Ari {
    /// The ID of that certificate.
    pub(super) of: String,
    /// The suggested window; `None` if the CA has none.
    pub(super) window: Option<(u64, u64)>,
    /// When to ask again.
    pub(super) check_at: u64,
}

/// The certificate that is served.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Current {
    pub(super) period: Period,
    /// Its ID for renewal information.
    pub(super) id: Option<String>,
    /// Whether it can be used for the site's current names.
    pub(super) fits: bool,
}

/// What to do next for a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing before this time.
    Wait(u64),
    /// Ask the CA when to renew.
    AskAri,
    /// Start or continue an order.
    Order,
}

impl Pending {
    /// When it is abandoned.
    pub(super) fn ends(&self) -> u64 {
        self.begun + if self.key.is_some() { FINALIZED_AGE } else { ORDER_AGE }
    }
}

impl SiteRecord {
    /// What the edge `me` must do now.
    pub(super) fn plan(&self, current: Option<&Current>, me: &str, now: u64) -> Plan {
        if let Some(lease) = &self.lease
            && lease.holder != me
            && lease.until > now
        {
            return Plan::Wait(lease.until);
        }
        let due = match current {
            Some(current) if current.fits => self.renew_at(current),
            _ => 0,
        };
        if self.order.is_some() || due <= now {
            let mut may = self.retry_at.max(self.budget_at(now));
            // A certificate that is due for renewal as soon as it is issued (because a clock is wrong) must not cause
            // another order at once.
            if current.is_some_and(|c| c.fits) && self.order.is_none() {
                may = may.max(self.finalized.iter().max().map_or(0, |last| last + HOUR));
            }
            return if may <= now { Plan::Order } else { Plan::Wait(may) };
        }
        let ask = current.and_then(|c| c.id.as_deref()).map(|id| match &self.ari {
            Some(ari) if ari.of == id => ari.check_at,
            _ => 0,
        });
        match ask {
            Some(at) if at <= now => Plan::AskAri,
            at => Plan::Wait(due.min(at.unwrap_or(u64::MAX))),
        }
    }

    /// When to replace the certificate. Renewal information can make it earlier, as long as that leaves enough of the limit
    /// for urgent orders, or later, by at most a twelfth of the lifetime.
    fn renew_at(&self, current: &Current) -> u64 {
        let Period { not_before, not_after } = current.period;
        let life = not_after.saturating_sub(not_before);
        let usual = not_before + if life < SHORT_LIVED { life / 2 } else { life / 3 * 2 };
        let window = match &self.ari {
            Some(ari) if current.id.as_ref() == Some(&ari.of) => ari.window,
            _ => None,
        };
        let Some((start, end)) = window.filter(|(start, end)| start < end) else { return usual };
        // The point in the window depends on the certificate, so that not all are renewed at the same time.
        let spread = current.id.as_deref().unwrap_or_default().bytes();
        let spread = spread.fold(0u64, |sum, b| sum.wrapping_mul(31).wrapping_add(b.into())) % 1000;
        let point = start + (end - start) / 1000 * spread;
        let early = self.finalized.len() >= EARLY_PER_WEEK;
        let earliest = if early { usual } else { not_before + life / 12 };
        point.clamp(earliest, usual + life / 12)
    }

    /// When the limits allow the next attempt.
    fn budget_at(&self, now: u64) -> u64 {
        let free = |times: &[u64], most: usize, span: u64| {
            let mut recent: Vec<u64> =
                times.iter().copied().filter(|t| t.saturating_add(span) > now).collect();
            recent.sort_unstable();
            match recent.len() < most {
                true => 0,
                false => recent[recent.len() - most].saturating_add(span),
            }
        };
        let begun = self.order.as_ref().is_some_and(|o| o.url.is_some());
        let asked = self.order.as_ref().is_some_and(|o| o.key.is_some());
        let orders = if begun { 0 } else { free(&self.orders, ORDERS_PER_HOUR, HOUR) };
        let certificates =
            if asked { 0 } else { free(&self.finalized, CERTIFICATES_PER_WEEK, WEEK) };
        orders.max(certificates)
    }

    /// Whether the record contains nothing that is still needed.
    pub(super) fn is_spent(&self, now: u64) -> bool {
        let waits = self.retry_at > now || self.lease.as_ref().is_some_and(|l| l.until > now);
        let new = self.on_demand.is_some_and(|since| since.saturating_add(HOUR) > now);
        !waits && !new && self.orders.is_empty() && self.finalized.is_empty()
    }

    /// Removes times that no longer count for a limit, and repairs times in the future, from a clock that was ahead: orders
    /// in the future count as made now, and no waiting time exceeds its normal maximum.
    pub(super) fn prune(&mut self, now: u64) {
        for spent in self.orders.iter_mut().chain(&mut self.finalized) {
            *spent = (*spent).min(now);
        }
        self.retry_at = self.retry_at.min(now + MAX_PAUSE);
        if let Some(lease) = &mut self.lease {
            lease.until = lease.until.min(now + LEASE);
        }
        if let Some(ari) = &mut self.ari {
            ari.check_at = ari.check_at.min(now + DAY);
        }
        if let Some(order) = &mut self.order {
            order.begun = order.begun.min(now);
        }
        self.on_demand = self.on_demand.map(|since| since.min(now));
        self.orders.retain(|t| t.saturating_add(HOUR) > now);
        self.finalized.retain(|t| t.saturating_add(WEEK) > now);
    }

    /// Records a failed attempt. Pauses get longer each time, but leave enough time before the expiry.
    pub(super) fn failed(&mut self, error: String, not_after: Option<u64>, least: u64, now: u64) {
        self.failures = self.failures.saturating_add(1);
        let backoff = 60u64 << self.failures.min(9).saturating_sub(1);
        let left = not_after.map(|t| t.saturating_sub(now) / 10);
        let most = left.unwrap_or(MAX_PAUSE).clamp(300, MAX_PAUSE);
        self.retry_at = now + backoff.min(most).max(least);
        self.error = Some(error);
        self.lease = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn current(from: u64, days: u64) -> Current {
        let period = Period { not_before: from, not_after: from + days * DAY };
        Current { period, id: Some("a.b".into()), fits: true }
    }

    fn ari(of: &str, window: Option<(u64, u64)>) -> Option<Ari> {
        Some(Ari { of: of.into(), window, check_at: u64::MAX })
    }

    #[test]
    fn renewal_is_in_time_and_renewal_information_counts_only_for_its_own_certificate() {
        let t = 1_000_000_000;
        let mut record = SiteRecord { ari: ari("a.b", None), ..SiteRecord::default() };
        let plan = |r: &SiteRecord, c: &Current, now| r.plan(Some(c), "me", now);
        assert_eq!(plan(&record, &current(t, 90), t), Plan::Wait(t + 60 * DAY));
        assert_eq!(plan(&record, &current(t, 90), t + 60 * DAY), Plan::Order);
        assert_eq!(plan(&record, &current(t, 6), t), Plan::Wait(t + 3 * DAY));
        // An early window applies. An early window for another certificate does not: ask about this edge's
        // certificate.
        record.ari = ari("a.b", Some((t, t + 1)));
        assert_eq!(plan(&record, &current(t, 6), t + DAY), Plan::Order);
        record.ari = ari("other", Some((t, t + 1)));
        assert_eq!(plan(&record, &current(t, 6), t + DAY), Plan::AskAri);
        // Repeated early windows: the usual time and the limits apply.
        record.ari = ari("a.b", Some((t, t + 1)));
        record.finalized = vec![t; EARLY_PER_WEEK];
        assert_eq!(plan(&record, &current(t, 6), t + DAY), Plan::Wait(t + 3 * DAY));
        record.finalized = vec![t; 5];
        assert_eq!(plan(&record, &current(t, 6), t + 3 * DAY), Plan::Wait(t + WEEK));
        // A window that is too late or invalid.
        record = SiteRecord { ari: ari("a.b", Some((t + 99 * DAY, t + 100 * DAY))), ..record };
        record.finalized.clear();
        assert_eq!(plan(&record, &current(t, 6), t), Plan::Wait(t + 3 * DAY + DAY / 2));
        record.ari = ari("a.b", Some((t + 2, t + 1)));
        assert_eq!(plan(&record, &current(t, 6), t), Plan::Wait(t + 3 * DAY));
        // The names of the site have changed: order now.
        let other = Current { fits: false, ..current(t, 90) };
        assert_eq!(plan(&record, &other, t), Plan::Order);
        assert_eq!(SiteRecord::default().plan(None, "me", t), Plan::Order);
    }

    #[test]
    fn leases_exclude_other_edges_and_limits_are_kept() {
        let t = 1_000_000_000;
        let lease = Some(Lease { holder: "other".into(), until: t + 5 });
        let mut record = SiteRecord { lease, ..SiteRecord::default() };
        assert_eq!(record.plan(None, "me", t), Plan::Wait(t + 5));
        assert_eq!(record.plan(None, "other", t), Plan::Order);
        assert_eq!(record.plan(None, "me", t + 5), Plan::Order);
        record.lease = None;
        record.orders = vec![t, t + 1, t + 2, t + 3];
        assert_eq!(record.plan(None, "me", t + 4), Plan::Wait(t + HOUR));
        record.failed("x".into(), None, 0, t + 4);
        assert_eq!(record.retry_at, t + 64);
        for _ in 0..40 {
            record.failed("x".into(), Some(t + DAY), 0, t);
        }
        assert_eq!(record.retry_at, t + DAY / 10);
        // The clock was a year ahead and is corrected: earlier orders count, but not longer than usual.
        let right = t - 365 * DAY;
        record.lease = Some(Lease { holder: "other".into(), until: t });
        record.finalized = vec![t; CERTIFICATES_PER_WEEK];
        record.prune(right);
        assert_eq!(record.plan(None, "me", right), Plan::Wait(right + LEASE));
        record.lease = None;
        assert_eq!(record.plan(None, "me", right), Plan::Wait(right + WEEK));
        record.prune(right + WEEK);
        assert_eq!(record.plan(None, "me", right + WEEK), Plan::Order);
        // A certificate that is due as soon as it is issued.
        (record.retry_at, record.finalized) = (0, vec![right]);
        let old = current(right - 90 * DAY, 90);
        assert_eq!(record.plan(Some(&old), "me", right), Plan::Wait(right + HOUR));
    }
}

//! What the store holds of a site's certificate, and what is to be done about it now. Pure.
//!
//! One record a site, changed whole by compare-and-swap: who works on it, for how long, what was spent of
//! its budget and how far an order has come stand or fall together. So a process that dies between any two
//! steps leaves a record that the next one goes on from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wiretight_keys::Period;

use crate::control::Blob;

/// Orders in an hour for a site: below what public CAs allow of failed ones (5).
pub(super) const ORDERS_PER_HOUR: usize = 4;
/// Certificates in a week for a site: what public CAs allow of the same names.
pub(super) const CERTIFICATES_PER_WEEK: usize = 5;
/// Of those, how many may come ahead of their time because a CA said so.
const EARLY_PER_WEEK: usize = 2;
/// Whoever works on a site has it for so long, in seconds; each step makes it longer.
pub(super) const LEASE: u64 = 600;
/// An order that has come to nothing by then is given up, in seconds.
const ORDER_AGE: u64 = HOUR;
/// One whose certificate was asked for: it may be there, and another would cost as much again.
const FINALIZED_AGE: u64 = DAY;

/// The longest pause after a failure.
const MAX_PAUSE: u64 = 6 * HOUR;

const HOUR: u64 = 3600;
const DAY: u64 = 86_400;
const WEEK: u64 = 7 * DAY;
/// Certificates that hold for less are renewed at half their life, others at two thirds.
const SHORT_LIVED: u64 = 10 * DAY;

/// A secret, sealed to each edge that may open it, by the edge's name.
pub(super) type Sealed = BTreeMap<String, Blob>;

/// A site's certificate and what is under way for the next.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct SiteRecord {
    /// What is served.
    pub(super) certificate: Option<Issued>,
    /// What is under way.
    pub(super) order: Option<Pending>,
    /// Who works on it.
    pub(super) lease: Option<Lease>,
    /// When orders were made, in the last hour.
    pub(super) orders: Vec<u64>,
    /// When certificates were asked for, in the last week.
    pub(super) finalized: Vec<u64>,
    /// Attempts that failed, since the last that did not.
    pub(super) failures: u32,
    /// Nothing is tried before.
    pub(super) retry_at: u64,
    /// Why the last attempt failed.
    pub(super) error: Option<String>,
    /// What the CA says about renewing.
    pub(super) ari: Option<Ari>,
    /// Since when it is a host that came by demand.
    pub(super) on_demand: Option<u64>,
}

/// A certificate and its sealed key.
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

/// An order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Pending {
    /// The directory of its CA.
    pub(super) ca: String,
    /// Where it is; `None`: not made yet, or nobody noted it.
    pub(super) url: Option<String>,
    /// When it was begun.
    pub(super) begun: u64,
    /// Its names.
    pub(super) names: Vec<String>,
    /// The key of the certificate, from the moment that one is asked for.
    pub(super) key: Option<Sealed>,
    /// What all edges answer to the CA's questions.
    pub(super) answers: Vec<Answer>,
    /// The CA did not take the name of the certificate that this one replaces.
    pub(super) without_replaces: bool,
}

/// An answer to a challenge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Answer {
    /// http-01.
    Http {
        /// In the path.
        token: String,
        /// The body.
        key_authorization: String,
    },
    /// tls-alpn-01.
    TlsAlpn {
        /// The name.
        name: String,
        /// SHA-256 of the key authorization.
        digest: Blob,
    },
    /// dns-01: the record is put into the DNS by whoever works on the order.
    Dns {
        /// The name, without `*.`.
        name: String,
        /// The record's text.
        value: String,
    },
}

impl Answer {
    /// Whether it is a record in the DNS.
    pub(super) fn is_record(&self) -> bool {
        matches!(self, Answer::Dns { .. })
    }
}

/// Who works on a site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Lease {
    /// The edge.
    pub(super) holder: String,
    /// Until when.
    pub(super) until: u64,
}

/// Renewal information (RFC 9773), for one certificate and no other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Ari {
    /// That certificate.
    pub(super) of: String,
    /// The suggested window; `None`: the CA has none to give.
    pub(super) window: Option<(u64, u64)>,
    /// When to ask again.
    pub(super) check_at: u64,
}

/// What is known of the certificate that is served.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Current {
    /// When it holds.
    pub(super) period: Period,
    /// How renewal information names it.
    pub(super) id: Option<String>,
    /// Whether it is for the names that the site has now.
    pub(super) fits: bool,
}

/// What to do about a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing before that time.
    Wait(u64),
    /// Ask the CA when to renew.
    AskAri,
    /// Order, or go on with the order.
    Order,
}

impl Pending {
    /// When it is given up.
    pub(super) fn ends(&self) -> u64 {
        self.begun + if self.key.is_some() { FINALIZED_AGE } else { ORDER_AGE }
    }
}

impl SiteRecord {
    /// What `me` has to do now.
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
            // One that is due as soon as it is there (a clock is wrong, or the CA is) does not bring the next.
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

    /// When the certificate is to be replaced. Renewal information brings it forward, while that leaves
    /// enough of the budget for what cannot wait, or puts it off by no more than a twelfth of its life.
    fn renew_at(&self, current: &Current) -> u64 {
        let Period { not_before, not_after } = current.period;
        let life = not_after.saturating_sub(not_before);
        let usual = not_before + if life < SHORT_LIVED { life / 2 } else { life / 3 * 2 };
        let window = match &self.ari {
            Some(ari) if current.id.as_ref() == Some(&ari.of) => ari.window,
            _ => None,
        };
        let Some((start, end)) = window.filter(|(start, end)| start < end) else { return usual };
        // A point in the window that is this certificate's own, so that many do not come at once.
        let spread = current.id.as_deref().unwrap_or_default().bytes();
        let spread = spread.fold(0u64, |sum, b| sum.wrapping_mul(31).wrapping_add(b.into())) % 1000;
        let point = start + (end - start) / 1000 * spread;
        let early = self.finalized.len() >= EARLY_PER_WEEK;
        let earliest = if early { usual } else { not_before + life / 12 };
        point.clamp(earliest, usual + life / 12)
    }

    /// When the budget allows the next attempt.
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

    /// Whether nothing would be lost with it but a certificate that holds no longer.
    pub(super) fn is_spent(&self, now: u64) -> bool {
        let waits = self.retry_at > now || self.lease.as_ref().is_some_and(|l| l.until > now);
        let new = self.on_demand.is_some_and(|since| since.saturating_add(HOUR) > now);
        !waits && !new && self.orders.is_empty() && self.finalized.is_empty()
    }

    /// Forgets what no budget counts any longer, and mends what a clock that went ahead has left: what it
    /// says was spent is counted from now, and nobody waits longer than anybody may be told to.
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

    /// Notes a failed attempt: the next one comes later each time, but in good time before the expiry.
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
    fn renewal_comes_in_time_and_renewal_information_is_believed_for_its_own_certificate_alone() {
        let t = 1_000_000_000;
        let mut record = SiteRecord { ari: ari("a.b", None), ..SiteRecord::default() };
        let plan = |r: &SiteRecord, c: &Current, now| r.plan(Some(c), "me", now);
        assert_eq!(plan(&record, &current(t, 90), t), Plan::Wait(t + 60 * DAY));
        assert_eq!(plan(&record, &current(t, 90), t + 60 * DAY), Plan::Order);
        assert_eq!(plan(&record, &current(t, 6), t), Plan::Wait(t + 3 * DAY));
        // Told to hurry: it does. Told so about another certificate: it asks about its own.
        record.ari = ari("a.b", Some((t, t + 1)));
        assert_eq!(plan(&record, &current(t, 6), t + DAY), Plan::Order);
        record.ari = ari("other", Some((t, t + 1)));
        assert_eq!(plan(&record, &current(t, 6), t + DAY), Plan::AskAri);
        // Told to hurry again and again: the usual time, and the budget.
        record.ari = ari("a.b", Some((t, t + 1)));
        record.finalized = vec![t; EARLY_PER_WEEK];
        assert_eq!(plan(&record, &current(t, 6), t + DAY), Plan::Wait(t + 3 * DAY));
        record.finalized = vec![t; 5];
        assert_eq!(plan(&record, &current(t, 6), t + 3 * DAY), Plan::Wait(t + WEEK));
        // Told to wait until it is too late, or nonsense.
        record = SiteRecord { ari: ari("a.b", Some((t + 99 * DAY, t + 100 * DAY))), ..record };
        record.finalized.clear();
        assert_eq!(plan(&record, &current(t, 6), t), Plan::Wait(t + 3 * DAY + DAY / 2));
        record.ari = ari("a.b", Some((t + 2, t + 1)));
        assert_eq!(plan(&record, &current(t, 6), t), Plan::Wait(t + 3 * DAY));
        // For other names than the site has: now.
        let other = Current { fits: false, ..current(t, 90) };
        assert_eq!(plan(&record, &other, t), Plan::Order);
        assert_eq!(SiteRecord::default().plan(None, "me", t), Plan::Order);
    }

    #[test]
    fn one_works_at_a_time_and_no_more_than_the_budget_is_spent() {
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
        // A clock that was a year ahead and is set right: what was spent counts, and for no longer than it
        // would have.
        let right = t - 365 * DAY;
        record.lease = Some(Lease { holder: "other".into(), until: t });
        record.finalized = vec![t; CERTIFICATES_PER_WEEK];
        record.prune(right);
        assert_eq!(record.plan(None, "me", right), Plan::Wait(right + LEASE));
        record.lease = None;
        assert_eq!(record.plan(None, "me", right), Plan::Wait(right + WEEK));
        record.prune(right + WEEK);
        assert_eq!(record.plan(None, "me", right + WEEK), Plan::Order);
        // One that is due as soon as it is there.
        (record.retry_at, record.finalized) = (0, vec![right]);
        let old = current(right - 90 * DAY, 90);
        assert_eq!(record.plan(Some(&old), "me", right), Plan::Wait(right + HOUR));
    }
}

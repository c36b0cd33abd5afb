//! Findings about each chain, and the facts about all chains.

use std::net::IpAddr;

use aws_lc_rs::digest;
use jiff::Timestamp;

use super::algorithm::{self, Key, weak_hash};
use super::encoding::hex;
use super::name::{GeneralName, covers};
use super::trust::{self, End, Path};
use super::x509::{SERVER_AUTH, SHOWN_NAMES, X509};
use super::{Certificate, Finding, MOST_BYTES, MOST_CERTIFICATES, Shown, Stores, day, ocsp, sct};
use crate::facts::{Answer, Facts, Value};
use crate::target::Host;

const DAY: i64 = 86_400;

/// The maximum validity in days of certificates that were issued before a day (CA/Browser Forum, Baseline
/// Requirements 6.3.2); 47 since the last day.
const ALLOWED: [(&str, u64); 5] = [
    ("2018-03-01", 1188),
    ("2020-09-01", 825),
    ("2026-03-15", 398),
    ("2027-03-15", 200),
    ("2029-03-15", 100),
];

/// The maximum length of evidence.
const EVIDENCE: usize = 500;

/// A chain, as far as it is readable.
pub(super) struct Read<'a> {
    shown: &'a Shown<'a>,
    sent: Vec<&'a [u8]>,
    chain: Vec<Option<X509<'a>>>,
    /// Why each certificate is unreadable, if it is.
    errors: Vec<Option<String>>,
    path: Option<Path>,
}

/// The findings about one chain.
pub(super) struct Findings<'a> {
    pub(super) when: &'a [&'a str],
    pub(super) trusted: Finding,
    mesh: Finding,
    name: Finding,
    valid: Finding,
    /// Days until the first of its certificates expires.
    days: Option<u64>,
    ordered: Finding,
    complete: Finding,
    self_signed: Finding,
    weak: Finding,
    hash: Option<&'static str>,
    key: Finding,
    key_name: Option<String>,
    key_bits: u32,
    strength: Option<u32>,
    scts: Finding,
    timestamps: u64,
    must_staple: Finding,
    stapled: Finding,
    good: Finding,
    revocation: Finding,
    wildcard: Finding,
    lifetime: Finding,
    lifetime_days: Option<u64>,
    usage: Finding,
    roca: Finding,
}

impl<'a> Read<'a> {
    pub(super) fn new(shown: &'a Shown<'a>, stores: &Stores, now: Timestamp) -> Self {
        let sent: Vec<&[u8]> =
            shown.certificates.iter().take(MOST_CERTIFICATES).map(Vec::as_slice).collect();
        let (chain, errors): (Vec<_>, Vec<_>) = sent
            .iter()
            .map(|der| match der.len() {
                0..=MOST_BYTES => match X509::read(der) {
                    Ok(x509) => (Some(x509), None),
                    Err(error) => (None, Some(error.to_string())),
                },
                len => (None, Some(format!("it has {len} bytes, which is too long"))),
            })
            .unzip();
        let path = Path::taken(&chain, stores.all(), now);
        Self { shown, sent, chain, errors, path }
    }

    /// Whether clients do not need a certificate of the chain, because they reach a root without it.
    fn is_superfluous(&self, i: usize) -> bool {
        let to_a_root = self.path.as_ref().filter(|path| path.end == End::Root);
        to_a_root.is_some_and(|path| !path.steps.contains(&i))
    }

    /// The certificates that clients use; all of them if the chain does not lead to a root.
    fn used(&self) -> impl Iterator<Item = (usize, Option<&X509<'a>>)> {
        let all = self.chain.iter().map(Option::as_ref).enumerate();
        all.filter(|(i, _)| !self.is_superfluous(*i))
    }

    /// The problems of certificates that clients do not use, for evidence.
    fn superfluous(&self, wrong: impl Fn(&X509<'_>) -> Option<String>) -> String {
        let superfluous = self.chain.iter().enumerate().filter(|(i, _)| self.is_superfluous(*i));
        let wrong: Vec<_> = superfluous.filter_map(|(_, x)| wrong(x.as_ref()?)).collect();
        match wrong.is_empty() {
            true => String::new(),
            false => format!("; sent, but not needed to reach a root: {}", wrong.join(", ")),
        }
    }

    /// All certificates, for the report.
    pub(super) fn certificates(&self) -> Vec<Certificate> {
        let sha256 = |bytes: &[u8]| hex(digest::digest(&digest::SHA256, bytes).as_ref());
        let one = |i: usize| match &self.chain[i] {
            Some(x509) => Certificate {
                subject: x509.shown_subject(),
                issuer: x509.shown_issuer(),
                serial: hex(&x509.serial[..x509.serial.len().min(64)]),
                not_before: x509.not_before,
                not_after: x509.not_after,
                key: x509.key.as_ref().map_or_else(|| "unreadable".into(), |key| key.name.clone()),
                key_bits: x509.key.as_ref().map_or(0, |key| key.bits),
                signature: x509.signature_algorithm.clone(),
                names: x509.names(),
                sha256: sha256(self.sent[i]),
                spki_sha256: match x509.spki {
                    [] => String::new(),
                    spki => sha256(spki),
                },
                ca: x509.extensions.ca,
                superfluous: self.is_superfluous(i),
                problems: self.problems(x509),
            },
            None => Certificate {
                subject: "(unreadable)".to_owned(),
                issuer: "(unreadable)".to_owned(),
                serial: String::new(),
                not_before: None,
                not_after: None,
                key: "unreadable".to_owned(),
                key_bits: 0,
                signature: "unreadable".to_owned(),
                names: Vec::new(),
                sha256: sha256(self.sent[i]),
                spki_sha256: String::new(),
                ca: false,
                superfluous: self.is_superfluous(i),
                problems: self.errors[i].iter().cloned().collect(),
            },
        };
        (0..self.chain.len()).map(one).collect()
    }

    fn problems(&self, x509: &X509<'_>) -> Vec<String> {
        let mut problems = x509.problems.clone();
        let names = x509.extensions.names.len();
        if names > SHOWN_NAMES {
            problems.push(format!("it has {names} names; the first {SHOWN_NAMES} are shown"));
        }
        problems
    }

    pub(super) fn findings(
        &self,
        name: Option<&Host>,
        now: Timestamp,
        stores: &Stores,
    ) -> Findings<'a> {
        let leads = |roots: Option<&trust::Roots>, otherwise: &str| match roots {
            Some(roots) => trust::leads(&self.sent, &self.chain, roots, now),
            None => Finding::untested(otherwise),
        };
        let (valid, days) = self.valid(now);
        let (weak, hash) = self.weak_signature();
        let (scts, timestamps) = self.timestamps();
        let key = self.leaf().and_then(|leaf| leaf.key.as_ref());
        let (lifetime, lifetime_days) = self.lifetime();
        Findings {
            when: &self.shown.when,
            trusted: leads(stores.roots.as_ref(), "no store of roots was given"),
            mesh: leads(stores.mesh.as_ref(), "no trust bundle of a mesh was given"),
            name: match name {
                Some(host) => self.of_leaf(|leaf| is_for(leaf, host)),
                None => Finding::untested("no name was requested"),
            },
            valid,
            days,
            ordered: self.ordered(),
            complete: self.complete(stores),
            self_signed: self.self_signed(),
            weak,
            hash,
            key: self.key(key),
            key_name: key.map(|key| key.name.clone()),
            key_bits: key.map_or(0, |key| key.bits),
            strength: key.and_then(Key::strength),
            scts,
            timestamps,
            must_staple: self.of_leaf(must_staple),
            stapled: match self.shown.ocsp {
                Some(ocsp) => Finding::yes(format!("a response of {} bytes", ocsp.len())),
                None => Finding::no("the certificate came without a response"),
            },
            good: self.ocsp(now, stores),
            revocation: self.of_leaf(revocation),
            wildcard: self.of_leaf(wildcard),
            lifetime,
            lifetime_days,
            usage: self.of_leaf(usage),
            roca: self.of_leaf(roca),
        }
    }

    fn leaf(&self) -> Option<&X509<'a>> {
        self.chain.first().and_then(Option::as_ref)
    }

    fn of_leaf(&self, look: impl FnOnce(&X509<'a>) -> Finding) -> Finding {
        match self.leaf() {
            Some(leaf) => look(leaf),
            None => self.unreadable(),
        }
    }

    fn unreadable(&self) -> Finding {
        let why = self.errors.first().and_then(Option::as_deref).unwrap_or("it is missing");
        Finding::inconclusive(format!("the certificate cannot be read: {why}"))
    }

    fn valid(&self, now: Timestamp) -> (Finding, Option<u64>) {
        let mut first: Option<(Timestamp, &X509<'_>)> = None;
        let mut unreadable = None;
        let mut wrong = None;
        let ended = |x509: &X509<'_>| {
            let until = x509.not_after.filter(|until| *until < now)?;
            Some(format!("{} expired on {}", x509.shown_subject(), day(until)))
        };
        for (i, x509) in self.used() {
            let Some((x509, from, until)) =
                x509.and_then(|x| Some((x, x.not_before?, x.not_after?)))
            else {
                unreadable = unreadable.or(Some(i));
                continue;
            };
            if first.is_none_or(|(end, _)| until < end) {
                first = Some((until, x509));
            }
            if let Some(text) = ended(x509) {
                wrong = wrong.or(Some(text));
            } else if now < from {
                let text = format!("{} is not valid before {}", x509.shown_subject(), day(from));
                wrong = wrong.or(Some(text));
            }
        }
        let left = |until: Timestamp| {
            u64::try_from((until.as_second() - now.as_second()).max(0) / DAY).unwrap_or_default()
        };
        let days = first.map(|(until, _)| left(until));
        let finding = match (wrong, unreadable, first) {
            (Some(wrong), ..) => Finding::no(wrong),
            (None, Some(i), _) => Finding::inconclusive(format!(
                "the validity of certificate {} cannot be read",
                i + 1
            )),
            (None, None, Some((until, x509))) => Finding::yes(format!(
                "{} expires first, on {}, in {} days{}",
                x509.shown_subject(),
                day(until),
                left(until),
                self.superfluous(ended)
            )),
            (None, None, None) => self.unreadable(),
        };
        (finding, days)
    }

    fn ordered(&self) -> Finding {
        let mut unchecked = None;
        for (i, pair) in self.chain.windows(2).enumerate() {
            let [Some(one), Some(next)] = pair else {
                return Finding::inconclusive(format!(
                    "certificate {} or {} cannot be read",
                    i + 1,
                    i + 2
                ));
            };
            match one.issued_by(next) {
                (true, true) => {}
                (true, false) => unchecked = Some(&one.signature_algorithm),
                (false, _) => {
                    let by = self.chain.iter().position(|other| {
                        other.as_ref().is_some_and(|other| one.issued_by(other).0)
                    });
                    let more = match by {
                        Some(at) if at == i => "; it is self-signed, but others follow".to_owned(),
                        Some(at) => format!("; certificate {} signed it", at + 1),
                        None => format!("; its issuer is {}", one.shown_issuer()),
                    };
                    return Finding::no(format!(
                        "certificate {} ({}) is not signed by the next ({}){more}",
                        i + 1,
                        one.shown_subject(),
                        next.shown_subject()
                    ));
                }
            }
        }
        match (self.chain.len(), unchecked) {
            (1, _) => Finding::yes("there is one certificate"),
            (n, None) => Finding::yes(format!("{n} certificates, each signed by the next")),
            (n, Some(how)) => Finding::yes(format!(
                "{n} certificates in order by their names; {how} cannot be checked here"
            )),
        }
    }

    fn complete(&self, stores: &Stores) -> Finding {
        let Some(path) = &self.path else { return self.unreadable() };
        let Some(last) = path.steps.last().and_then(|&i| self.chain[i].as_ref()) else {
            return self.unreadable();
        };
        let stored = stores.all().next().is_some();
        match path.end {
            End::Root => Finding::yes(format!(
                "{} is a root of the store, or issued by one",
                last.shown_subject()
            )),
            End::SelfSigned => {
                Finding::yes(format!("it ends with {}, which is self-signed", last.shown_subject()))
            }
            End::Missing => {
                let mut what = format!(
                    "the issuer of {}, {}, was not sent",
                    last.shown_subject(),
                    last.shown_issuer()
                );
                if stored {
                    what.push_str(" and is not in the store");
                }
                // Servers do not send roots. Public authorities publish their intermediates at a URL in the
                // certificate; private ones rarely do.
                match (last.extensions.issuers.first(), stored) {
                    (Some(url), true) => Finding::no(format!(
                        "{what}; only browsers fetch it from the URL in the certificate ({url})"
                    )),
                    (None, true) => Finding::inconclusive(format!(
                        "{what}: it is either a private root, which needs --roots, or an intermediate that the server must send"
                    )),
                    (_, false) => Finding::inconclusive(format!(
                        "{what}; without a store, it is unknown whether it is a root"
                    )),
                }
            }
        }
    }

    fn self_signed(&self) -> Finding {
        self.of_leaf(|leaf| match (leaf.self_signed(), self.shown.certificates.len()) {
            (true, 1) => Finding::yes(format!("{} is self-signed", leaf.shown_subject())),
            (true, _) => Finding::no("the first certificate is self-signed, but others follow"),
            (false, _) => Finding::no(format!("issued by {}", leaf.shown_issuer())),
        })
    }

    fn weak_signature(&self) -> (Finding, Option<&'static str>) {
        let mut worst: Option<(&str, &X509<'_>)> = None;
        // The signature of a self-signed certificate does not matter.
        let used: Vec<_> = self.used().map(|(_, x509)| x509).collect();
        let below = used.iter().copied().flatten().filter(|x509| !x509.self_signed());
        let mut unreadable = used.iter().any(Option::is_none);
        for x509 in below {
            unreadable |= x509.signature_algorithm.is_empty();
            if let Some(hash) = weak_hash(&x509.signature_algorithm)
                && worst.is_none_or(|(old, _)| hash < old)
            {
                worst = Some((hash, x509));
            }
        }
        match worst {
            Some((hash, x509)) => (
                Finding::yes(format!(
                    "{} is signed with {}",
                    x509.shown_subject(),
                    x509.signature_algorithm
                )),
                weak_hash(&format!("-{hash}")),
            ),
            None if unreadable => (Finding::inconclusive("a certificate cannot be read"), None),
            None => {
                let mut how: Vec<_> =
                    used.iter().flatten().map(|x| x.signature_algorithm.as_str()).collect();
                how.dedup();
                let weak = |x509: &X509<'_>| {
                    weak_hash(&x509.signature_algorithm).filter(|_| !x509.self_signed())?;
                    Some(format!(
                        "{} is signed with {}",
                        x509.shown_subject(),
                        x509.signature_algorithm
                    ))
                };
                let more = self.superfluous(weak);
                (Finding::no(format!("signed with {}{more}", how.join(", "))), None)
            }
        }
    }

    fn key(&self, key: Option<&Key<'_>>) -> Finding {
        match key {
            Some(key) => Finding::yes(key.name.clone()),
            None => self.of_leaf(|leaf| {
                let why = leaf.problems.iter().find(|p| p.starts_with("its key"));
                Finding::inconclusive(why.map_or("its key cannot be read", String::as_str))
            }),
        }
    }

    fn timestamps(&self) -> (Finding, u64) {
        let embedded = self.leaf().and_then(|leaf| leaf.extensions.scts);
        let counts = [
            ("in the certificate", embedded.map(sct::count)),
            ("by TLS", self.shown.scts.map(sct::count)),
            ("by OCSP", self.shown.ocsp.map(ocsp::timestamps)),
        ];
        let mut total = 0;
        let mut where_from = Vec::new();
        let mut unreadable = None;
        for (place, count) in counts {
            match count {
                Some(Ok(0)) | None => {}
                Some(Ok(count)) => {
                    total += count;
                    where_from.push(format!("{count} {place}"));
                }
                Some(Err(error)) => {
                    where_from.push(format!("unreadable {place}: {error}"));
                    unreadable = Some(error);
                }
            }
        }
        let finding = match (total, unreadable) {
            (0, None) => match self.leaf() {
                Some(_) => Finding::no("none in the certificate, by TLS or by OCSP"),
                None => self.unreadable(),
            },
            (0, Some(_)) => Finding::inconclusive(where_from.join(", ")),
            _ => Finding::yes(where_from.join(", ")),
        };
        (finding, u64::try_from(total).unwrap_or_default())
    }

    fn ocsp(&self, now: Timestamp, stores: &Stores) -> Finding {
        let Some(response) = self.shown.ocsp else {
            return Finding::untested("no response is stapled");
        };
        self.of_leaf(|leaf| {
            let sent = self.chain.iter().skip(1).flatten().find(|other| leaf.issued_by(other).0);
            let stored = || stores.all().find_map(|roots| roots.issuer_of(leaf));
            match sent {
                Some(issuer) => ocsp::check(response, leaf, Some(issuer), now),
                None => ocsp::check(response, leaf, stored().as_ref(), now),
            }
        })
    }

    fn lifetime(&self) -> (Finding, Option<u64>) {
        let times = self.leaf().and_then(|leaf| Some((leaf.not_before?, leaf.not_after?)));
        let Some((from, until)) = times else {
            let why = match self.leaf() {
                Some(_) => Finding::inconclusive("its validity cannot be read"),
                None => self.unreadable(),
            };
            return (why, None);
        };
        // The validity period includes both ends.
        let seconds = (until.as_second() - from.as_second()).saturating_add(1).max(0);
        let days = u64::try_from(seconds.div_euclid(DAY) + i64::from(seconds % DAY > 0));
        let days = days.unwrap_or_default();
        let issued = day(from);
        let most =
            ALLOWED.iter().find(|(until, _)| issued.as_str() < *until).map_or(47, |(_, n)| *n);
        let text = format!("{days} days; issued on {issued}, when at most {most} were allowed");
        let finding = if days <= most { Finding::yes(text) } else { Finding::no(text) };
        (finding, Some(days))
    }
}

/// RFC 9525: a host name must match a DNS name, an address must match an address. Common names do not count.
fn is_for(leaf: &X509<'_>, host: &Host) -> Finding {
    let names = &leaf.extensions.names;
    let found = names.iter().find(|name| match (name, host) {
        (GeneralName::Dns(name), Host::Name(host)) => covers(name, host),
        (GeneralName::Address(address), Host::Address(host, _)) => same(*address, *host),
        _ => false,
    });
    if let Some(name) = found {
        return Finding::yes(format!("it is for {}", name.shown()));
    }
    let host = match host {
        Host::Name(name) => name.clone(),
        Host::Address(address, _) => address.to_string(),
    };
    if names.iter().any(|name| matches!(name, GeneralName::Dns(name) if *name == host)) {
        return Finding::no(format!("{host} is listed as a DNS name, which clients do not accept"));
    }
    let common = leaf.common_names();
    if common.iter().any(|name| covers(name, &host)) {
        return Finding::no(format!(
            "only its common name is {host}, which clients ignore since RFC 9525"
        ));
    }
    let shown: Vec<_> = names.iter().take(5).map(GeneralName::shown).collect();
    let more = names.len().saturating_sub(shown.len());
    Finding::no(match (shown.is_empty(), more) {
        (true, _) => format!("it is for no name; its subject is {}", leaf.shown_subject()),
        (false, 0) => format!("it is for {}, not for {host}", shown.join(", ")),
        (false, more) => format!("it is for {} and {more} more, not for {host}", shown.join(", ")),
    })
}

/// Compares addresses; an IPv4-mapped IPv6 address equals its IPv4 address.
fn same(one: IpAddr, other: IpAddr) -> bool {
    one.to_canonical() == other.to_canonical()
}

fn must_staple(leaf: &X509<'_>) -> Finding {
    match leaf.extensions.must_staple {
        true => Finding::yes("it has the extension with status_request"),
        false => Finding::no("it does not have the extension"),
    }
}

/// 2026-03-15: since then, short-lived means seven days.
const SEVEN_DAYS_SINCE: i64 = 1_773_532_800;

fn revocation(leaf: &X509<'_>) -> Finding {
    // Short-lived certificates (CA/Browser Forum Baseline Requirements section 1.6.1).
    let life = leaf.not_before.zip(leaf.not_after);
    let days = match life {
        Some((from, _)) if from.as_second() < SEVEN_DAYS_SINCE => 10,
        _ => 7,
    };
    let short =
        life.is_some_and(|(from, until)| until.as_second() - from.as_second() <= days * DAY);
    match (leaf.extensions.ocsp.first(), leaf.extensions.crls.first()) {
        (Some(url), _) => Finding::yes(format!("OCSP at {url}")),
        (None, Some(url)) => Finding::yes(format!("CRL at {url}")),
        (None, None) if short => Finding::yes(format!("it is valid for at most {days} days")),
        (None, None) => {
            let why = format!(
                "it names neither OCSP nor a CRL, and is valid for longer than {days} days"
            );
            Finding::no(why)
        }
    }
}

fn wildcard(leaf: &X509<'_>) -> Finding {
    let name = leaf.extensions.names.iter().find_map(|name| match name {
        GeneralName::Dns(name) if name.contains('*') => Some(name),
        _ => None,
    });
    match name {
        Some(name) => Finding::yes(format!("it is for {name}")),
        None => Finding::no("none of its names is a wildcard"),
    }
}

fn usage(leaf: &X509<'_>) -> Finding {
    match &leaf.extensions.usages {
        None => Finding::yes("it has no extended key usage, so any use is allowed"),
        Some(_) if leaf.usable_for(SERVER_AUTH) => Finding::yes("serverAuth is among its usages"),
        Some(usages) => Finding::no(format!("it is for {} only", usages.join(", "))),
    }
}

fn roca(leaf: &X509<'_>) -> Finding {
    match leaf.key.as_ref().map(|key| key.modulus) {
        Some(Some(modulus)) if algorithm::roca(modulus) => {
            Finding::yes("the modulus is a power of 65537 modulo each of 38 small primes")
        }
        Some(Some(_)) => Finding::no("the modulus does not have the ROCA pattern"),
        Some(None) => Finding::no("its key is not an RSA key"),
        None => Finding::inconclusive("its key cannot be read"),
    }
}

/// Selects one of the findings about a chain.
type Of = for<'f> fn(&'f Findings<'_>) -> &'f Finding;

/// Sets the facts about all chains. Facts about every chain use the worst answer; facts about any chain use
/// the answer of the first chain to which they apply.
pub(super) fn set(all: &[Findings<'_>], facts: &mut Facts) {
    const EVERY: [Answer; 4] = [Answer::No, Answer::Inconclusive, Answer::Untested, Answer::Yes];
    const SOME: [Answer; 4] = [Answer::Yes, Answer::Inconclusive, Answer::No, Answer::Untested];
    let mut put = |id: &'static str, value, rank, of: Of| {
        let finding = combined(all, rank, of);
        facts.set(id, finding.answer, value, finding.evidence);
    };
    put("certificate.trusted", None, EVERY, |f| &f.trusted);
    put("certificate.trusted_by_mesh", None, EVERY, |f| &f.mesh);
    put("certificate.name", None, EVERY, |f| &f.name);
    let days = all.iter().filter_map(|f| f.days).min().map(Value::Number);
    put("certificate.valid", days, EVERY, |f| &f.valid);
    put("certificate.ordered", None, EVERY, |f| &f.ordered);
    put("certificate.complete", None, EVERY, |f| &f.complete);
    put("certificate.self_signed", None, SOME, |f| &f.self_signed);
    // The alphabetical order of the hashes is that of their age.
    let hash = all.iter().filter_map(|f| f.hash).min().map(|hash| Value::Text(hash.to_owned()));
    put("certificate.weak_signature", hash, SOME, |f| &f.weak);
    // Keys of unknown strength come last.
    let weakest = all
        .iter()
        .filter(|f| f.key_name.is_some())
        .min_by_key(|f| (f.strength.unwrap_or(u32::MAX), f.key_bits));
    let bits = weakest.map(|f| Value::Number(f.key_bits.into()));
    put("certificate.key_bits", bits, EVERY, |f| &f.key);
    let mut kinds: Vec<String> = Vec::new();
    for kind in all.iter().filter_map(|f| f.key_name.as_ref()) {
        if !kinds.contains(kind) {
            kinds.push(kind.clone());
        }
    }
    let kinds = (!kinds.is_empty()).then_some(Value::List(kinds));
    put("certificate.keys", kinds, SOME, |f| &f.key);
    let timestamps = all.iter().map(|f| f.timestamps).min().map(Value::Number);
    put("certificate.scts", timestamps, EVERY, |f| &f.scts);
    put("certificate.must_staple", None, SOME, |f| &f.must_staple);
    put("certificate.ocsp_stapled", None, SOME, |f| &f.stapled);
    // A chain without a stapled response does not count.
    const STAPLED: [Answer; 4] = [Answer::No, Answer::Inconclusive, Answer::Yes, Answer::Untested];
    put("certificate.ocsp_good", None, STAPLED, |f| &f.good);
    put("certificate.revocation", None, EVERY, |f| &f.revocation);
    put("certificate.wildcard", None, SOME, |f| &f.wildcard);
    let lifetime = all.iter().filter_map(|f| f.lifetime_days).max().map(Value::Number);
    put("certificate.lifetime", lifetime, EVERY, |f| &f.lifetime);
    put("certificate.key_usage", None, EVERY, |f| &f.usage);
    put("vulnerability.roca", None, SOME, |f| &f.roca);
}

/// The first of the ranked answers that any chain has, with the evidence of all chains that have it.
fn combined(all: &[Findings<'_>], rank: [Answer; 4], of: Of) -> Finding {
    let answer = rank.into_iter().find(|answer| all.iter().any(|f| of(f).answer == *answer));
    let answer = answer.unwrap_or(Answer::Untested);
    let mut lines: Vec<(&str, Vec<&str>)> = Vec::new();
    for findings in all.iter().filter(|f| of(f).answer == answer) {
        let text = of(findings).evidence.as_str();
        match lines.iter_mut().find(|(line, _)| *line == text) {
            Some((_, whens)) => whens.extend(findings.when),
            None => lines.push((text, findings.when.to_vec())),
        }
    }
    let alone = lines.len() == 1 && all.iter().all(|f| of(f).answer == answer);
    let lines = lines.iter().map(|(line, whens)| match alone {
        true => (*line).to_owned(),
        false => format!("{}: {line}", whens.join(", ")),
    });
    let mut evidence = lines.collect::<Vec<_>>().join("; ");
    if evidence.len() > EVIDENCE {
        evidence.truncate(evidence.floor_char_boundary(EVIDENCE));
        evidence.push('…');
    }
    Finding { answer, evidence }
}

//! Facts that follow from other facts: kinds of weak suites, and the vulnerabilities that consist of
//! accepting them.

use crate::facts::{Answer, Facts, Value, WEAK_SUITES};
use crate::names::{Bulk, Group, KeyExchange, Suite, Version};

/// Adds all facts that follow from the others.
pub fn derive(facts: &mut Facts) {
    let seen = Seen::of(facts);
    for (id, is) in WEAK_SUITES {
        let found = seen.named(|_, suite| is(suite));
        set(facts, &seen, id, found, &Version::ALL);
    }
    // SSL 2.0 ciphers are not in the IANA registry, so the checks below ignore them.
    forward_secrecy(facts, &seen);
    let (ssl, before_tls1_1) = ([Version::Ssl3], [Version::Ssl3, Version::Tls1_0]);
    let cbc = |versions: &[Version]| {
        let versions = versions.to_vec();
        move |version: Version, suite: Suite| versions.contains(&version) && suite.is_cbc()
    };
    set(facts, &seen, "vulnerability.poodle_ssl", seen.named(cbc(&ssl)), &ssl);
    set(facts, &seen, "vulnerability.beast", seen.named(cbc(&before_tls1_1)), &before_tls1_1);
    let freak = |_, s: Suite| s.is_export() && s.key_exchange() == KeyExchange::Rsa;
    set(facts, &seen, "vulnerability.freak", seen.named(freak), &AFTER_SSL2);
    set(
        facts,
        &seen,
        "vulnerability.sweet32",
        seen.named(|_, s| s.has_small_blocks()),
        &AFTER_SSL2,
    );
    set(facts, &seen, "vulnerability.rc4", seen.named(|_, s| s.bulk() == Bulk::Rc4), &AFTER_SSL2);
    lucky13(facts, &seen);
    logjam(facts, &seen);
    drown(facts);
    crime(facts);
    post_quantum(facts);
}

const AFTER_SSL2: [Version; 5] =
    [Version::Ssl3, Version::Tls1_0, Version::Tls1_1, Version::Tls1_2, Version::Tls1_3];

/// What is known about cipher suites.
struct Seen {
    suites: Vec<(Version, Suite)>,
    /// Versions that may accept more suites.
    unclear: Vec<Version>,
    /// Versions that were not tested.
    untested: Vec<Version>,
}

impl Seen {
    fn of(facts: &Facts) -> Self {
        let mut seen = Self { suites: Vec::new(), unclear: Vec::new(), untested: Vec::new() };
        for version in Version::ALL {
            let prefix = format!("suite.{}.", version.key());
            for (id, fact) in facts.iter() {
                if let Some(name) = id.strip_prefix(&prefix)
                    && fact.answer == Answer::Yes
                    && let Some(suite) = Suite::from_name(name)
                {
                    seen.suites.push((version, suite));
                }
            }
            match facts.answer(&format!("suites.{}", version.key())) {
                Answer::Inconclusive => seen.unclear.push(version),
                Answer::Untested => seen.untested.push(version),
                Answer::Yes | Answer::No => {}
            }
        }
        seen
    }

    /// The names of matching suites, each once.
    fn named(&self, is: impl Fn(Version, Suite) -> bool) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for (version, suite) in &self.suites {
            if is(*version, *suite) && !names.iter().any(|n| n == suite.name) {
                names.push(suite.name.to_owned());
            }
        }
        names
    }

    /// The answer and its evidence, if no matching suite was found with these versions.
    fn none(&self, versions: &[Version]) -> (Answer, String) {
        let among = |list: &[Version]| list.iter().find(|v| versions.contains(v)).copied();
        if let Some(version) = among(&self.unclear) {
            let why = format!("it is not known which suites {version} accepts");
            return (Answer::Inconclusive, why);
        }
        if versions.iter().all(|v| self.untested.contains(v)) {
            return (Answer::Untested, "no suites were tested".to_owned());
        }
        (Answer::No, "no such suite is accepted".to_owned())
    }
}

fn set(facts: &mut Facts, seen: &Seen, id: &'static str, found: Vec<String>, versions: &[Version]) {
    if found.is_empty() {
        let (answer, why) = seen.none(versions);
        facts.set(id, answer, None, why);
    } else {
        let evidence = match found.as_slice() {
            [one] => format!("{one} is accepted"),
            many => format!("{} suites are accepted", many.len()),
        };
        facts.set(id, Answer::Yes, Some(Value::List(found)), evidence);
    }
}

fn forward_secrecy(facts: &mut Facts, seen: &Seen) {
    let without = seen.named(|_, s| !s.is_forward_secret());
    let with = seen.named(|_, s| s.is_forward_secret());
    let (none, why) = seen.none(&AFTER_SSL2);
    let any = match (with.is_empty(), none) {
        (false, _) => (Answer::Yes, format!("{} suites", with.len())),
        (true, Answer::No) => (Answer::No, "no accepted suite provides it".to_owned()),
        (true, other) => (other, why.clone()),
    };
    facts.set("forward_secrecy.any", any.0, None, any.1);
    let all = match (without.is_empty(), with.is_empty(), none) {
        (false, ..) => (Answer::No, format!("{} suites do not provide it", without.len())),
        (true, false, Answer::No) => (Answer::Yes, format!("all {} suites provide it", with.len())),
        (true, _, other) => (other, why),
    };
    let value = (!without.is_empty()).then_some(Value::List(without));
    facts.set("forward_secrecy.all", all.0, value, all.1);
}

/// CBC with MAC-then-encrypt. Encrypt-then-MAC prevents the attack, but only for clients that offer it.
fn lucky13(facts: &mut Facts, seen: &Seen) {
    let found = seen.named(|_, s| s.is_cbc());
    set(facts, seen, "vulnerability.lucky13", found, &AFTER_SSL2);
}

fn logjam(facts: &mut Facts, seen: &Seen) {
    let id = "vulnerability.logjam";
    let export = seen.named(|_, s| s.is_export() && s.key_exchange() == KeyExchange::Dhe);
    if !export.is_empty() {
        return set(facts, seen, id, export, &AFTER_SSL2);
    }
    match (facts.answer("dh.bits"), facts.number("dh.bits")) {
        (Answer::Yes, Some(bits)) if bits <= 1024 => {
            facts.set(id, Answer::Yes, None, format!("a prime of {bits} bits"));
        }
        (Answer::Yes, Some(bits)) if seen.none(&AFTER_SSL2).0 == Answer::No => {
            facts.set(id, Answer::No, None, format!("no export suite, and at least {bits} bits"));
        }
        (Answer::Inconclusive, _) => {
            facts.set(id, Answer::Inconclusive, None, "the prime is unknown");
        }
        _ => {
            let (answer, why) = seen.none(&AFTER_SSL2);
            facts.set(id, answer, None, why);
        }
    }
}

/// SSL 2.0 with this certificate. Another server may use the same key, which a scan cannot see.
fn drown(facts: &mut Facts) {
    let fact = facts.get("protocol.ssl2").cloned();
    let (answer, evidence) = match fact {
        Some(fact) => (fact.answer, fact.evidence),
        None => (Answer::Untested, "SSL 2.0 was not tested".into()),
    };
    facts.set("vulnerability.drown", answer, None, evidence);
}

fn crime(facts: &mut Facts) {
    let fact = facts.get("compression").cloned();
    let (answer, evidence) = match fact {
        Some(fact) => (fact.answer, fact.evidence),
        None => (Answer::Untested, "compression was not tested".into()),
    };
    facts.set("vulnerability.crime", answer, None, evidence);
}

fn post_quantum(facts: &mut Facts) {
    let found: Vec<String> = facts
        .list("groups.tls1_3")
        .iter()
        .filter(|name| Group::from_name(name).is_some_and(Group::is_post_quantum))
        .cloned()
        .collect();
    if !found.is_empty() {
        return set_post_quantum(facts, found);
    }
    let (answer, why) = match (facts.answer("groups.tls1_3"), facts.answer("protocol.tls1_3")) {
        (Answer::Yes | Answer::No, _) => (Answer::No, "no such group is accepted"),
        (Answer::Inconclusive, _) | (_, Answer::Inconclusive) => {
            (Answer::Inconclusive, "it is not known which groups are accepted")
        }
        (_, Answer::No) => (Answer::No, "such groups need TLS 1.3, which is not supported"),
        _ => (Answer::Untested, "no groups were tested"),
    };
    facts.set("post_quantum", answer, None, why);
}

/// Sets `post_quantum` for these accepted groups.
pub fn set_post_quantum(facts: &mut Facts, found: Vec<String>) {
    let evidence = format!("{} is accepted", found.join(", "));
    facts.set("post_quantum", Answer::Yes, Some(Value::List(found)), evidence);
}

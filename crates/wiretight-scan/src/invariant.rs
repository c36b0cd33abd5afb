//! Invariants of every report about a TLS server:
//!
//! - No fact contradicts an observation of the same scan, or another fact.
//! - A version is not reported as unsupported because of an alert that an ordinary client would not
//!   have received.
//! - No check is missing without a reason.
//!
//! The scan should produce such facts anyway; this is a check of the result. `enforce` makes a fact
//! that violates an invariant inconclusive, with a note in its evidence. Tests fail if that happens.

use crate::active::TO_AN_ORDINARY_CLIENT_TOO;
use crate::facts::{Answer, Facts, TABLE, Value};
use crate::names::{KeyExchange, Suite, Version};
use crate::{Chosen, Reached, Report};

/// The evidence of a fact that violated an invariant begins with this.
pub const MARK: &str = "the report contradicts itself";

/// A fact that violates an invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub id: String,
    /// The contradiction.
    pub why: String,
}

/// All facts that violate an invariant.
pub fn violations(report: &Report) -> Vec<Violation> {
    match report.reached {
        Reached::Tls => check(&report.facts, &report.observed, !report.chains.is_empty()),
        _ => Vec::new(),
    }
}

/// Makes facts that violate an invariant inconclusive. Facts derived from them must be derived again.
pub(crate) fn enforce(facts: &mut Facts, observed: &[Chosen], chains: bool) -> usize {
    let found = check(facts, observed, chains);
    for Violation { id, why } in &found {
        tracing::warn!(id, why, "a fact contradicts the rest of the report");
        facts.set(id.clone(), Answer::Inconclusive, None, format!("{MARK}: {why}"));
    }
    found.len()
}

fn check(facts: &Facts, observed: &[Chosen], chains: bool) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut wrong = |id: &str, why: String| found.push(Violation { id: id.to_owned(), why });
    whole(facts, &mut wrong);
    seen(facts, observed, &mut wrong);
    by_an_alert(facts, &mut wrong);
    of_each_other(facts, chains, &mut wrong);
    found
}

/// Every check has a fact, with evidence.
fn whole(facts: &Facts, wrong: &mut impl FnMut(&str, String)) {
    for entry in TABLE {
        let ids: Vec<String> = match entry.id {
            "suites.<version>" | "preference.<version>" => {
                let key = |version: Version| entry.id.replace("<version>", version.key());
                Version::ALL.into_iter().map(key).collect()
            }
            id if id.contains('<') => continue,
            id => vec![id.to_owned()],
        };
        for id in ids {
            match facts.get(&id) {
                None => wrong(&id, "it is missing".to_owned()),
                Some(fact) if fact.evidence.is_empty() => {
                    wrong(&id, "it has no evidence".to_owned())
                }
                Some(_) => {}
            }
        }
    }
}

/// Everything that the server chose is supported and accepted.
fn seen(facts: &Facts, observed: &[Chosen], wrong: &mut impl FnMut(&str, String)) {
    for Chosen { version, suite, .. } in observed {
        for id in [
            format!("protocol.{}", version.key()),
            format!("suites.{}", version.key()),
            format!("suite.{}.{suite}", version.key()),
        ] {
            if !matches!(facts.answer(&id), Answer::Yes | Answer::Inconclusive) {
                wrong(&id, format!("{version} with {suite} was chosen"));
            }
        }
    }
    for (version, suite) in taken(facts) {
        let protocol = format!("protocol.{}", version.key());
        let list = format!("suites.{}", version.key());
        if !facts.yes(&protocol) {
            wrong(&protocol, format!("{suite} is accepted with it"));
        }
        if !facts.list(&list).contains(&suite) {
            wrong(&list, format!("{suite} is accepted, but not in the list"));
        }
    }
    let spoken = Version::ALL.map(|version| facts.answer(&format!("protocol.{}", version.key())));
    if spoken.iter().all(|answer| *answer == Answer::No) {
        wrong("protocol.tls1_3", "TLS is supported, but no version is".to_owned());
    }
    if facts.answer("plaintext") != Answer::No {
        wrong("plaintext", "TLS is supported".to_owned());
    }
}

/// An alert in reply to our ClientHello counts only if an ordinary client's hello got one too.
fn by_an_alert(facts: &Facts, wrong: &mut impl FnMut(&str, String)) {
    let refusals = Version::ALL
        .into_iter()
        .skip(1)
        .flat_map(|version| ["protocol", "suites"].map(|kind| format!("{kind}.{}", version.key())));
    let refusals = refusals.chain(["alpn".to_owned()]);
    for id in refusals {
        let Some(fact) = facts.get(&id).filter(|fact| fact.answer == Answer::No) else { continue };
        let asked = fact.evidence.contains(TO_AN_ORDINARY_CLIENT_TOO)
            || fact.evidence.contains("an ordinary client's hello");
        if fact.evidence.contains("alert ") && !asked {
            wrong(&id, format!("an ordinary client was not tried: {}", fact.evidence));
        }
    }
    // A handshake has a group and a signature.
    for (id, of) in [
        ("groups.tls1_3", "protocol.tls1_3"),
        ("signatures.tls1_3", "protocol.tls1_3"),
        ("groups.quic", "protocol.quic"),
    ] {
        if facts.answer(id) == Answer::No && facts.yes(of) {
            wrong(id, format!("{of} says yes"));
        }
    }
}

/// A fact about suites, and the suites that it is about.
type Kind = (&'static str, fn(Suite) -> bool);

/// Facts do not contradict each other.
fn of_each_other(facts: &Facts, chains: bool, wrong: &mut impl FnMut(&str, String)) {
    let kinds: [Kind; 4] = [
        ("weak.static_rsa", |s| s.key_exchange() == KeyExchange::Rsa),
        ("weak.anonymous", Suite::is_anonymous),
        ("weak.cbc", Suite::is_cbc),
        ("forward_secrecy.any", Suite::is_forward_secret),
    ];
    let suites: Vec<(Version, Suite)> = taken(facts)
        .into_iter()
        .filter_map(|(version, name)| Some((version, Suite::from_name(&name)?)))
        .collect();
    let old = |is: fn(Suite) -> bool| {
        suites.iter().find(|(version, suite)| *version < Version::Tls1_3 && is(*suite))
    };
    for (id, is) in kinds {
        if let Some((_, suite)) = suites.iter().find(|(_, suite)| is(*suite))
            && facts.answer(id) == Answer::No
        {
            wrong(id, format!("{} is accepted", suite.name));
        }
    }
    for (id, kx) in [("groups.tls1_2", KeyExchange::Ecdhe), ("dh.bits", KeyExchange::Dhe)] {
        let by: fn(Suite) -> bool = match kx {
            KeyExchange::Ecdhe => |s| s.key_exchange() == KeyExchange::Ecdhe,
            _ => |s| s.key_exchange() == KeyExchange::Dhe,
        };
        if let Some((_, suite)) = old(by)
            && facts.answer(id) == Answer::No
        {
            wrong(id, format!("{} is accepted", suite.name));
        }
    }
    for (id, other, word) in [
        ("vulnerability.heartbleed", "extension.heartbeat", "is not answered"),
        ("vulnerability.robot", "weak.static_rsa", "is not accepted"),
    ] {
        let fact = facts.get(id).filter(|fact| fact.answer == Answer::No);
        if fact.is_some_and(|fact| fact.evidence.contains(word)) && facts.yes(other) {
            wrong(id, format!("{other} says yes"));
        }
    }
    for (id, of) in [
        ("vulnerability.crime", "compression"),
        ("vulnerability.drown", "protocol.ssl2"),
        ("client_certificate.requested", "client_certificate.required"),
    ] {
        if facts.answer(id) == Answer::No && facts.yes(of) {
            wrong(id, format!("{of} says yes"));
        }
    }
    let listed = ["groups.tls1_3", "groups.tls1_2", "groups.quic"];
    for (id, fact) in facts.iter() {
        if let Some(name) = id.strip_prefix("group.")
            && fact.answer == Answer::Yes
            && !listed.iter().any(|list| facts.list(list).iter().any(|known| known == name))
        {
            wrong(id, "it is in no list of groups".to_owned());
        }
        let empty = matches!(&fact.value, Some(Value::List(list)) if list.is_empty());
        if fact.answer == Answer::Yes && id.starts_with("suites.") && empty {
            wrong(id, "a suite is accepted, but none is listed".to_owned());
        }
    }
    if chains && facts.answer("certificate.valid") == Answer::Untested {
        wrong("certificate.valid", "the server sent certificates".to_owned());
    }
}

fn taken(facts: &Facts) -> Vec<(Version, String)> {
    let all = facts.iter().filter(|(_, fact)| fact.answer == Answer::Yes);
    all.filter_map(|(id, _)| {
        let (key, name) = id.strip_prefix("suite.")?.split_once('.')?;
        let version = Version::ALL.into_iter().find(|version| version.key() == key)?;
        Some((version, name.to_owned()))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ids that violate an invariant, except missing ones.
    fn broken(facts: &Facts, observed: &[Chosen]) -> Vec<String> {
        let found = check(facts, observed, false).into_iter();
        found.filter(|v| v.why != "it is missing").map(|v| v.id).collect()
    }

    #[test]
    fn contradictions_are_found_and_become_inconclusive() {
        use Answer::{No, Yes};
        let suite = "TLS_RSA_WITH_AES_128_CBC_SHA";
        let mut facts = Facts::default();
        facts.set("plaintext", No, None, "TLS is supported");
        facts.set("protocol.tls1_2", Yes, None, "chosen");
        let list = Value::List(vec![suite.to_owned()]);
        facts.set("suites.tls1_2", Yes, Some(list), "all others were rejected: alert 40");
        facts.set(format!("suite.tls1_2.{suite}"), Yes, None, "chosen");
        assert_eq!(broken(&facts, &[]), Vec::<String>::new());

        let chosen = |version| Chosen { version, suite: suite.to_owned(), times: 1 };
        assert_eq!(broken(&facts, &[chosen(Version::Tls1_2)]), Vec::<String>::new());
        assert!(broken(&facts, &[chosen(Version::Tls1_1)]).contains(&"protocol.tls1_1".to_owned()));

        facts.set("protocol.ssl3", No, None, format!("alert 40, {TO_AN_ORDINARY_CLIENT_TOO}"));
        assert_eq!(broken(&facts, &[]), Vec::<String>::new());
        for (id, evidence) in [
            ("protocol.ssl3", "alert handshake_failure (40)"),
            ("weak.static_rsa", "no such suite"),
            ("weak.cbc", "no such suite"),
            ("vulnerability.robot", "RSA key transport is not accepted"),
        ] {
            let mut facts = facts.clone();
            facts.set("weak.static_rsa", Yes, None, "accepted");
            facts.set(id, No, None, evidence);
            assert_eq!(broken(&facts, &[]), [id]);
            enforce(&mut facts, &[], false);
            assert_eq!(facts.answer(id), Answer::Inconclusive);
            assert!(facts.get(id).is_some_and(|fact| fact.evidence.starts_with(MARK)));
        }
    }
}

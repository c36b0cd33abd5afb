//! The probes that are repeated with each version before TLS 1.3.
//!
//! TLS 1.0 may be answered by another server than TLS 1.2: balancers and proxies can choose a backend by
//! version, and old versions may have their own certificates and code. All probes run with the newest
//! version. With the others, only unencrypted messages and flaws are tested.

use futures_util::future::join_all;

use super::certificates::asking;
use super::enumerate::offer;
use super::handshake::tls12::{self, can_complete};
use super::probe::{Flight, Outcome, Prober, Until};
use super::spoken::Spoken;
use super::{sessions, vulnerabilities};
use crate::certificate::Presented;
use crate::facts::{Answer, Facts, Value};
use crate::names::{Suite, Version};
use crate::parse::{ClientHello, extension};

/// A supported version from TLS 1.0 to TLS 1.2.
pub struct Asked {
    pub version: Version,
    /// A hello with the suites for which the scanner can complete a handshake; with all accepted suites, if
    /// there are none.
    pub hello: ClientHello,
    /// A hello with all accepted suites.
    pub greeting: ClientHello,
    /// Why the scanner cannot complete a handshake, if it cannot.
    pub completes: Result<(), String>,
}

/// The supported versions, the newest first.
pub fn asked(prober: &Prober, spoken: &Spoken) -> Vec<Asked> {
    let old = |version: &Version| (Version::Tls1_0..Version::Tls1_3).contains(version);
    let one = |version| {
        let all = spoken.suites(version);
        let can = |code: &u16| Suite::from_code(*code).is_some_and(can_complete);
        let usable: Vec<u16> = all.iter().copied().filter(can).collect();
        let completes = match (usable.is_empty(), all.first()) {
            (false, _) | (true, None) => Ok(()),
            (true, Some(code)) => {
                let name = Suite::from_code(*code).map_or("another suite", |suite| suite.name);
                let more = match all.len() {
                    1 => String::new(),
                    n => format!(" and {} more", n - 1),
                };
                Err(format!(
                    "{version} accepts {name}{more}, for which this scanner cannot complete a handshake"
                ))
            }
        };
        let suites = if usable.is_empty() { all.to_vec() } else { usable };
        let hello = tls12::hello(prober, version).suites(suites);
        let greeting = hello.clone().suites(all.iter().copied());
        Asked { version, hello, greeting, completes }
    };
    spoken.versions().rev().filter(old).map(one).collect()
}

/// Flaws and sessions of all these versions. `first` contains the facts about the newest version that are
/// already known. Also returns whether handshakes with the newest version can be completed.
pub async fn handshakes(
    prober: &Prober,
    asked: &[Asked],
    first: Option<Facts>,
) -> (Facts, Result<(), String>) {
    let Some((newest, older)) = asked.split_first() else { return (Facts::default(), Ok(())) };
    let newest_facts = async {
        let (mut facts, completes) = match (first, &newest.completes) {
            (Some(facts), _) => (facts, Ok(())),
            (None, Ok(())) => Box::pin(vulnerabilities::with_sessions(prober, &newest.hello)).await,
            (None, Err(why)) => {
                (Box::pin(in_the_clear(prober, newest, why)).await, Err(why.clone()))
            }
        };
        // The accepted suites were not known yet when ROBOT was first tested.
        let robot = vulnerabilities::robot_of_known(prober, &newest.greeting, &facts);
        let robot = Box::pin(robot).await;
        facts.extend(robot);
        (facts, completes)
    };
    let older = join_all(older.iter().map(async |asked| {
        let found = vulnerabilities::of_older(prober, &asked.hello, &asked.greeting);
        (asked.version, Box::pin(found).await)
    }));
    let ((mut facts, completes), older) = tokio::join!(newest_facts, older);
    for (version, found) in older {
        add_worse(&mut facts, version, found);
    }
    (facts, completes)
}

/// Flaws, and what can be known about sessions without complete handshakes.
async fn in_the_clear(prober: &Prober, asked: &Asked, why: &str) -> Facts {
    let found = vulnerabilities::of_older(prober, &asked.hello, &asked.greeting);
    let mut facts = Box::pin(found).await;
    let ticket = asked.hello.clone().with(extension::SESSION_TICKET, Vec::new());
    let (mut tickets, mut request) = (None, None);
    if let Outcome::Taken(flight) = prober.probe(&ticket, Until::Shown).await {
        tickets = Some(flight.has(extension::SESSION_TICKET));
        request = flight.done.then_some(flight.request.is_some());
    }
    facts.set("session.id", Answer::Inconclusive, None, why.to_owned());
    match tickets {
        Some(false) => {
            let evidence = "no session_ticket in the ServerHello";
            facts.set("session.ticket", Answer::No, None, evidence);
        }
        _ => facts.set("session.ticket", Answer::Inconclusive, None, why.to_owned()),
    }
    let requested = ("client_certificate.requested", "CertificateRequest");
    match request {
        Some(false) => {
            for id in CLIENT_CERTIFICATE {
                facts.set(id, Answer::No, None, "the server sent no CertificateRequest");
            }
        }
        Some(true) => {
            for id in CLIENT_CERTIFICATE {
                facts.set(id, Answer::Inconclusive, None, why.to_owned());
            }
            facts.set(requested.0, Answer::Yes, None, requested.1);
        }
        None => {}
    }
    facts
}

const CLIENT_CERTIFICATE: [&str; 3] = [
    "client_certificate.requested",
    "client_certificate.required",
    "client_certificate.authorities",
];

/// Renegotiation. It is tested last, because some servers pause after they rejected it.
pub async fn renegotiation(
    prober: &Prober,
    asked: &[Asked],
    completes: Result<(), String>,
) -> Facts {
    let mut facts = Facts::default();
    for (place, asked) in asked.iter().enumerate() {
        let completes = match (place, &asked.completes) {
            (0, Ok(())) => completes.clone(),
            (_, completes) => completes.clone(),
        };
        let found = Box::pin(sessions::renegotiation(prober, &asked.hello, completes)).await;
        match place {
            0 => facts = found,
            _ => add_worse(&mut facts, asked.version, found),
        }
    }
    facts
}

/// The unencrypted messages of all versions but the newest: chains, and extensions that affect security.
pub async fn shown(prober: &Prober, spoken: &Spoken) -> (Vec<Presented>, Vec<(Version, Facts)>) {
    let mut questions: Vec<(Version, String, ClientHello)> = Vec::new();
    let old = spoken.versions().rev().filter(|version| *version < Version::Tls1_3);
    for version in old.skip(1) {
        let by = |kind: &str| -> Vec<u16> {
            let is = |code: &&u16| {
                Suite::from_code(**code).is_some_and(|suite| suite.authentication() == Some(kind))
            };
            spoken.suites(version).iter().filter(is).copied().collect()
        };
        let kinds: Vec<(&str, Vec<u16>)> = ["rsa", "ecdsa", "dsa", "none"]
            .into_iter()
            .map(|kind| (kind, by(kind)))
            .filter(|(_, suites)| !suites.is_empty())
            .collect();
        let alone = kinds.len() < 2;
        for (kind, suites) in kinds {
            let when = match alone {
                true => version.to_string(),
                false => format!("{version}, {kind} only"),
            };
            let mut hello = offer(prober, version, &suites);
            hello.compressions = vec![1, 0];
            if version > Version::Ssl3 {
                hello = asking(hello.with(extension::HEARTBEAT, vec![1]));
            }
            questions.push((version, when, hello));
        }
    }
    let answers = join_all(questions.iter().map(|(.., hello)| prober.probe(hello, Until::Shown)));
    let (mut presented, mut facts) = (Vec::new(), Vec::new());
    for ((version, when, _), outcome) in questions.iter().zip(answers.await) {
        let Outcome::Taken(flight) = outcome else { continue };
        facts.push((*version, of(*version, &flight)));
        if !flight.certificates.is_empty() {
            presented.push(Presented {
                when: when.clone(),
                ocsp: flight.status.clone(),
                scts: flight.scts(),
                certificates: flight.certificates,
            });
        }
    }
    (presented, facts)
}

fn of(version: Version, flight: &Flight) -> Facts {
    let mut facts = Facts::default();
    let told = |is: bool| match is {
        true => (Answer::Yes, "in the ServerHello"),
        false => (Answer::No, "not in the ServerHello"),
    };
    let mut set = |id: &'static str, is: bool| {
        let (answer, why) = told(is);
        facts.set(id, answer, None, why);
    };
    set("compression", flight.hello.compression == 1);
    set("renegotiation.secure", flight.has(extension::RENEGOTIATION_INFO));
    if version > Version::Ssl3 {
        set("extension.heartbeat", flight.has(extension::HEARTBEAT));
    }
    facts
}

/// Adds the facts of an older version: each fact becomes the worse of the two.
pub fn add_worse(facts: &mut Facts, version: Version, found: Facts) {
    let rank = |id: &str, answer: Answer| match (answer, id == "renegotiation.secure") {
        (Answer::Yes, false) | (Answer::No, true) => 3,
        (Answer::Inconclusive, _) => 2,
        (Answer::No, false) | (Answer::Yes, true) => 1,
        (Answer::Untested, _) => 0,
    };
    for (id, fact) in found.iter() {
        if rank(id, fact.answer) > rank(id, facts.answer(id)) {
            let evidence = format!("{version}: {}", fact.evidence);
            let value: Option<Value> = fact.value.clone();
            facts.set(id.to_owned(), fact.answer, value, evidence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worse_fact_of_two_versions_counts() {
        let mut facts = Facts::default();
        facts.set("vulnerability.heartbleed", Answer::No, None, "not answered");
        facts.set("renegotiation.secure", Answer::Yes, None, "in the ServerHello");
        facts.set("compression", Answer::Yes, None, "in the ServerHello");
        let mut older = Facts::default();
        older.set("vulnerability.heartbleed", Answer::Yes, None, "48 bytes");
        older.set("renegotiation.secure", Answer::No, None, "not in the ServerHello");
        older.set("compression", Answer::No, None, "not in the ServerHello");
        add_worse(&mut facts, Version::Tls1_0, older);
        assert_eq!(facts.answer("vulnerability.heartbleed"), Answer::Yes);
        assert_eq!(facts.get("vulnerability.heartbleed").unwrap().evidence, "TLS 1.0: 48 bytes");
        assert_eq!(facts.answer("renegotiation.secure"), Answer::No);
        assert!(facts.yes("compression"));
    }
}

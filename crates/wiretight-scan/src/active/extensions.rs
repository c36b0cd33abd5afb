//! How a server reacts to extensions, compression, fallbacks, ALPN and hellos of future versions.

use super::enumerate::{PROTOCOLS, offer};
use super::ordinary;
use super::probe::{Flight, Outcome, Prober, Until};
use super::spoken::Spoken;
use crate::facts::{Answer, Facts, Value};
use crate::names::{Suite, Version};
use crate::parse::{ClientHello, extension};

pub async fn extensions(prober: &Prober, spoken: &Spoken) -> Facts {
    let mut facts = Facts::default();
    let (old, etm, fallback, future, alpn) = tokio::join!(
        before_tls1_3(prober, spoken),
        encrypt_then_mac(prober, spoken),
        fallback(prober, spoken),
        future(prober, spoken),
        alpn(prober, spoken),
    );
    for found in [old, etm, fallback, future, alpn] {
        facts.extend(found);
    }
    facts
}

/// Whether an outcome shows a feature. A rejection of the whole hello says nothing about it.
fn shows(outcome: &Outcome, is: impl Fn(&Flight) -> bool) -> (Answer, String) {
    match outcome {
        Outcome::Taken(flight) if is(flight) => (Answer::Yes, "in the ServerHello".to_owned()),
        Outcome::Taken(_) => (Answer::No, "not in the ServerHello".to_owned()),
        Outcome::Refused { why, .. } | Outcome::Unclear(why) => (Answer::Inconclusive, why.clone()),
        Outcome::TooLarge => (Answer::Inconclusive, "long hellos are lost on the path".to_owned()),
    }
}

/// The extensions and the compression of TLS 1.2 and earlier, with one hello.
async fn before_tls1_3(prober: &Prober, spoken: &Spoken) -> Facts {
    let mut facts = Facts::default();
    let Some((version, suites)) = spoken.newest_before_tls1_3() else {
        if let Some(version) = spoken.unclear(|v| (Version::Ssl3..Version::Tls1_3).contains(&v)) {
            let evidence = format!("it is not known whether {version} is supported");
            for id in [
                "renegotiation.secure",
                "extension.extended_master_secret",
                "extension.heartbeat",
                "compression",
            ] {
                facts.set(id, Answer::Inconclusive, None, evidence.clone());
            }
            return facts;
        }
        for (id, why) in [
            ("renegotiation.secure", "TLS 1.3 has no renegotiation"),
            ("extension.extended_master_secret", "TLS 1.3 does not need it"),
            ("extension.heartbeat", "no version before TLS 1.3 is supported"),
        ] {
            facts.set(id, Answer::Untested, None, why);
        }
        facts.set("compression", Answer::No, None, "TLS 1.3 has no compression");
        return facts;
    };
    let mut hello = offer(prober, version, suites);
    hello.compressions = vec![1, 0];
    if version > Version::Ssl3 {
        hello = hello
            .with(extension::EXTENDED_MASTER_SECRET, Vec::new())
            .with(extension::HEARTBEAT, vec![1])
            .with(extension::SESSION_TICKET, Vec::new());
    }
    let mut outcome = prober.probe(&hello, Until::Hello).await;
    let mut compression = None;
    if let Outcome::Refused { .. } = outcome {
        // The cause may be something that clients no longer offer, so test each separately.
        let plain = offer(prober, version, suites);
        let with = ClientHello { compressions: vec![1, 0], ..plain.clone() };
        compression = Some(prober.probe(&with, Until::Hello).await);
        outcome = match version {
            Version::Ssl3 => prober.probe(&plain, Until::Hello).await,
            _ => {
                let with = plain.clone().with(extension::HEARTBEAT, vec![1]);
                match prober.probe(&with, Until::Hello).await {
                    Outcome::Taken(flight) => Outcome::Taken(flight),
                    _ => prober.probe(&plain, Until::Hello).await,
                }
            }
        };
    }
    let compression = compression.as_ref().unwrap_or(&outcome);
    for (id, kind) in [
        ("renegotiation.secure", extension::RENEGOTIATION_INFO),
        ("extension.extended_master_secret", extension::EXTENDED_MASTER_SECRET),
        ("extension.heartbeat", extension::HEARTBEAT),
    ] {
        let (answer, why) = shows(&outcome, |flight| flight.has(kind));
        facts.set(id, answer, None, why);
    }
    let (answer, why) = shows(compression, |flight| flight.hello.compression == 1);
    facts.set("compression", answer, None, why);
    facts
}

/// Tested with CBC suites only, because servers ignore it with other suites.
async fn encrypt_then_mac(prober: &Prober, spoken: &Spoken) -> Facts {
    let mut facts = Facts::default();
    let cbc = |code: &u16| Suite::from_code(*code).is_some_and(Suite::is_cbc);
    let found = spoken.versions().rev().filter(|v| *v > Version::Ssl3).find_map(|version| {
        let suites: Vec<u16> = spoken.suites(version).iter().copied().filter(cbc).collect();
        (!suites.is_empty()).then_some((version, suites))
    });
    let id = "extension.encrypt_then_mac";
    let Some((version, suites)) = found else {
        facts.set(id, Answer::Untested, None, "no CBC suite is accepted");
        return facts;
    };
    let hello = offer(prober, version, &suites).with(extension::ENCRYPT_THEN_MAC, Vec::new());
    let outcome = prober.probe(&hello, Until::Hello).await;
    let (answer, why) = shows(&outcome, |flight| flight.has(extension::ENCRYPT_THEN_MAC));
    facts.set(id, answer, None, why);
    facts
}

/// RFC 7507: a hello with a lower version than both sides support, marked as a fallback.
async fn fallback(prober: &Prober, spoken: &Spoken) -> Facts {
    let (id, mut facts) = ("fallback_scsv", Facts::default());
    let Some(best) = spoken.versions().next_back() else { return facts };
    let Some(below) = spoken.versions().rev().find(|v| *v < best) else {
        facts.set(id, Answer::Untested, None, format!("no version below {best} is supported"));
        return facts;
    };
    let mut suites = spoken.suites(below).to_vec();
    suites.push(0x5600);
    let (answer, why) = match prober.probe(&offer(prober, below, &suites), Until::Hello).await {
        Outcome::Taken(_) => {
            (Answer::No, format!("an unnecessary fallback to {below} is accepted"))
        }
        Outcome::Refused { why, .. } => (Answer::Yes, why),
        Outcome::Unclear(why) => (Answer::Inconclusive, why),
        Outcome::TooLarge => (Answer::Inconclusive, "long hellos are lost on the path".to_owned()),
    };
    facts.set(id, answer, None, why);
    facts
}

/// Hellos of a future version, and with unknown values.
async fn future(prober: &Prober, spoken: &Spoken) -> Facts {
    let mut facts = Facts::default();
    let Some(best) = spoken.versions().next_back() else { return facts };
    let usual = |hello: ClientHello| match best {
        Version::Tls1_3 => hello.supported_versions(&[0x3a3a, 0x0305, 0x0304]),
        _ => ClientHello { version: 0x0305, ..hello },
    };
    let hello = usual(offer(prober, best, spoken.suites(best)));
    let ask = async |hello: ClientHello| match prober.probe(&hello, Until::Hello).await {
        Outcome::Taken(flight) => {
            let version = flight.hello.version();
            (Answer::Yes, version.map_or_else(String::new, |v| format!("answered with {v}")))
        }
        Outcome::Refused { why, .. } => (Answer::No, why),
        Outcome::Unclear(why) => (Answer::Inconclusive, why),
        Outcome::TooLarge => (Answer::Inconclusive, "long hellos are lost on the path".to_owned()),
    };
    let mut grease = offer(prober, best, spoken.suites(best));
    grease.suites.insert(0, 0x1a1a);
    let greased = best > Version::Ssl3;
    if greased {
        grease = grease.with(0x2a2a, vec![0]);
    }
    // A server that tolerates both at once tolerates each.
    let both = ask(usual(grease.clone())).await;
    let (version, values) = match both.0 {
        Answer::Yes => (both.clone(), both),
        _ => tokio::join!(ask(hello), ask(grease)),
    };
    facts.set("tolerance.version", version.0, None, version.1);
    facts.set("tolerance.grease", values.0, None, values.1);
    facts
}

/// The protocols that browsers offer.
pub(super) const ORDINARY: [&str; 2] = ["h2", "http/1.1"];

/// ALPN up to TLS 1.2, where the answer is not encrypted.
async fn alpn(prober: &Prober, spoken: &Spoken) -> Facts {
    let mut facts = Facts::default();
    let Some((version, suites)) = spoken.newest_before_tls1_3() else { return facts };
    if version == Version::Ssl3 {
        facts.set("alpn", Answer::No, None, "SSL 3.0 has no extensions");
        return facts;
    }
    let (mut left, mut found): (Vec<&str>, Vec<String>) = (PROTOCOLS.to_vec(), Vec::new());
    let (mut answer, mut why) = (Answer::No, "no protocol was chosen".to_owned());
    while !left.is_empty() {
        match prober.probe(&offer(prober, version, suites).alpn(&left), Until::Hello).await {
            Outcome::Taken(flight) => {
                let chosen = flight.hello.alpn();
                let Some(at) = left.iter().position(|p| Some(*p) == chosen.as_deref()) else {
                    why = "no protocol was chosen".to_owned();
                    break;
                };
                found.push(left.remove(at).to_owned());
            }
            // The cause may be a protocol that no client offers, so try those of browsers.
            Outcome::Refused { why: refused, .. } if found.is_empty() && left != ORDINARY => {
                why = refused;
                left = ORDINARY.to_vec();
            }
            Outcome::Refused { why: refused, .. } => {
                why = match found.is_empty() && why != refused {
                    true => format!("{why}; {refused}, {}", ordinary::TOO),
                    false => format!("{refused}, {}", ordinary::TOO),
                };
                break;
            }
            Outcome::Unclear(unclear) => {
                (answer, why) = (Answer::Inconclusive, unclear);
                break;
            }
            Outcome::TooLarge => {
                let lost = "long hellos are lost on the path".to_owned();
                (answer, why) = (Answer::Inconclusive, lost);
                break;
            }
        }
    }
    if found.is_empty() {
        facts.set("alpn", answer, None, why);
    } else {
        let evidence = format!("{} chosen when offered", found.join(", "));
        let answer = if answer == Answer::Inconclusive { answer } else { Answer::Yes };
        facts.set("alpn", answer, Some(Value::List(found)), evidence);
    }
    facts
}

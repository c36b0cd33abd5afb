//! No fact denies what was seen.
//!
//! Each fact comes of its own question; what was chosen in answer to all other hellos is known beside
//! them. Where the two do not agree, what was seen counts, and the facts say so.

use std::time::Duration;

use super::observed::Observed;
use super::probe::Prober;
use super::vulnerabilities::heartbleed::NOT_ANSWERED;
use super::vulnerabilities::robot::NOT_ACCEPTED;
use crate::Chosen;
use crate::facts::{Answer, Facts, Value};
use crate::names::{Suite, Version};

/// All choices that were seen, for the report.
pub fn report(observed: &Observed) -> Vec<Chosen> {
    let chosen = observed.chosen().into_iter();
    chosen.map(|(version, code, times)| Chosen { version, suite: name(code), times }).collect()
}

fn name(code: u16) -> String {
    Suite::from_code(code).map_or_else(|| format!("0x{code:04x}"), |suite| suite.name.to_owned())
}

/// Versions and suites that were chosen are spoken and taken, whatever was said when they were asked
/// for by themselves; and whether the same question was answered alike each time: `consistent`.
pub fn observations(facts: &mut Facts, observed: &Observed) {
    for (version, code, _) in observed.chosen() {
        let (key, suite) = (version.key(), name(code));
        let id = format!("protocol.{key}");
        let said = facts.get(&id).cloned();
        if said.as_ref().is_none_or(|fact| fact.answer != Answer::Yes) {
            let mut evidence = format!("the server chose {suite} in answer to another hello");
            if let Some(said) = said {
                evidence.push_str(&format!("; asked for by itself: {}", said.evidence));
                if said.answer == Answer::No {
                    observed
                        .differs(format!("{version} was chosen, and refused: {}", said.evidence));
                }
            }
            facts.set(id, Answer::Yes, None, evidence);
        }
        let id = format!("suite.{key}.{suite}");
        if facts.yes(&id) {
            continue;
        }
        let all = format!("suites.{key}");
        if matches!(facts.answer(&all), Answer::Yes | Answer::No) {
            observed.differs(format!(
                "{version} with {suite} was chosen, and not when it was asked for"
            ));
        }
        let mut list = facts.list(&all).to_vec();
        let evidence =
            format!("there may be more: {suite} was chosen in answer to another hello only");
        list.push(suite);
        facts.set(id, Answer::Yes, None, "chosen in answer to another hello");
        facts.set(all, Answer::Inconclusive, Some(Value::List(list)), evidence);
    }
    heartbeats(facts, observed);
    transport(facts, observed);
    let differences = observed.differences();
    let (answer, value, evidence) = match (differences.is_empty(), observed.repeated()) {
        (true, 0) => (Answer::Untested, None, "no hello was answered twice".to_owned()),
        (true, n) => (Answer::Yes, None, format!("{n} hellos were answered as they were before")),
        (false, _) => {
            let evidence = "several servers that differ seem to share this address: what one refused \
                            another may take";
            (Answer::No, Some(Value::List(differences)), evidence.to_owned())
        }
    };
    facts.set("consistent", answer, value, evidence);
}

/// "Heartbeats are not answered" is said by one handshake, `extension.heartbeat` by another.
fn heartbeats(facts: &mut Facts, observed: &Observed) {
    let id = "vulnerability.heartbleed";
    let denied = facts
        .get(id)
        .is_some_and(|fact| fact.answer == Answer::No && fact.evidence.contains(NOT_ANSWERED));
    if denied && facts.yes("extension.heartbeat") {
        let how = "the heartbeat extension was answered, and not answered";
        observed.differs(how.to_owned());
        facts.set(id, Answer::Inconclusive, None, how);
    }
}

/// ROBOT needs suites with RSA key transport: which are taken, all of them were asked for to tell.
fn transport(facts: &mut Facts, observed: &Observed) {
    let id = "vulnerability.robot";
    let taken = suites(facts).any(|suite| suite.name.starts_with("TLS_RSA_WITH_"));
    let whole = Version::ALL
        .iter()
        .all(|version| facts.answer(&format!("suites.{}", version.key())) != Answer::Inconclusive);
    let Some(said) = facts.get(id).cloned() else { return };
    match said.answer {
        Answer::Inconclusive if !taken && whole => {
            let evidence = format!("{NOT_ACCEPTED}: no such suite is among those that are");
            facts.set(id, Answer::No, None, evidence);
        }
        Answer::No if taken && said.evidence.starts_with(NOT_ACCEPTED) => {
            observed.differs("RSA key transport was taken, and refused".to_owned());
            let evidence = format!("such suites are taken, but: {}", said.evidence);
            facts.set(id, Answer::Inconclusive, None, evidence);
        }
        _ => {}
    }
}

fn suites(facts: &Facts) -> impl Iterator<Item = Suite> {
    facts.iter().filter_map(|(id, fact)| {
        let (_, name) = id.strip_prefix("suite.")?.split_once('.')?;
        (fact.answer == Answer::Yes).then(|| Suite::from_name(name))?
    })
}

/// Every hello was refused: what is spoken with a name that the server knows is not told by that.
/// `wants_name` is what the server said itself (unrecognized_name).
pub fn nothing_told(facts: &mut Facts, prober: &Prober, why: &str, wants_name: bool) {
    let spoken = |version: &Version| facts.yes(&format!("protocol.{}", version.key()));
    if Version::ALL.iter().any(spoken) {
        return;
    }
    let given = match &prober.name {
        Some(name) => format!("for the name {name}"),
        None => "without a name".to_owned(),
    };
    let advice = match prober.name {
        Some(_) => "The server may want another name.",
        None => "The server may want a name: scan it by a name that it serves.",
    };
    let evidence = format!("{given}, every hello was refused: {why}. {advice}");
    facts.set("plaintext", Answer::No, None, format!("TLS is spoken: {why}"));
    for version in Version::ALL {
        for kind in ["protocol", "suites"] {
            let id = format!("{kind}.{}", version.key());
            facts.set(id, Answer::Inconclusive, None, evidence.clone());
        }
    }
    let answer = if wants_name { Answer::Yes } else { Answer::Inconclusive };
    facts.set("sni.required", answer, None, evidence);
}

/// The address stopped answering during the scan. A close, a reset, silence or a closed port may have come
/// of that: such a "no" is none.
pub fn after_it_stopped(facts: &mut Facts, why: &str) {
    let doubtful: Vec<(String, String)> = facts
        .iter()
        .filter(|(id, fact)| fact.answer == Answer::No && *id != "plaintext")
        .filter(|(_, fact)| {
            let said = fact.evidence.to_lowercase();
            // Controls after it were answered, so the address was still there.
            let settled = said.contains("before and after were")
                || said.contains("after it was answered")
                || said.contains("without it, the server waits");
            !settled
                && [
                    "reset",
                    "close",
                    "silen",
                    "unreachable",
                    "no answer",
                    "no connection",
                    "no ticket",
                ]
                .iter()
                .any(|word| said.contains(word))
        })
        .map(|(id, fact)| (id.to_owned(), format!("{why} Before that: {}", fact.evidence)))
        .collect();
    for (id, evidence) in doubtful {
        facts.set(id, Answer::Inconclusive, None, evidence);
    }
}

/// Says why a scan takes long where a server takes long before it begins with TLS.
pub fn slow_start(facts: &mut Facts, took: Duration, connections: u64) {
    let id = "starttls.offered";
    let Some(fact) = facts.get(id).cloned().filter(|_| took >= SLOW_START) else { return };
    let evidence = format!(
        "{}; before TLS this server takes up to {:.1} s, on each of the {connections} connections of \
         this scan: that is why it took long",
        fact.evidence,
        took.as_secs_f64()
    );
    facts.set(id, fact.answer, fact.value, evidence);
}

/// A greeting that takes so long is worth a word.
const SLOW_START: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::{ClientHello, ServerHello};

    fn chosen(observed: &Observed, version: Version, suite: u16) {
        let hello = ClientHello::new(version, [0; 32]).suites([suite]);
        let server = ServerHello {
            version: version.code(),
            random: [0; 32],
            session_id: Vec::new(),
            suite,
            compression: 0,
            extensions: Vec::new(),
        };
        observed.hello(&hello, &server);
    }

    #[test]
    fn what_was_seen_counts_and_not_what_was_said() {
        let observed = Observed::default();
        chosen(&observed, Version::Tls1_2, 0xc02f);
        let mut facts = Facts::default();
        for id in ["protocol.tls1_2", "suites.tls1_2"] {
            facts.set(id, Answer::No, None, "alert decode_error (50)");
        }
        facts.set("vulnerability.robot", Answer::Inconclusive, None, "alert 70");
        facts.set("vulnerability.heartbleed", Answer::No, None, NOT_ANSWERED);
        facts.set("extension.heartbeat", Answer::Yes, None, "in the ServerHello");
        observations(&mut facts, &observed);
        assert!(facts.yes("protocol.tls1_2"), "{facts:#?}");
        assert!(facts.yes("suite.tls1_2.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"));
        assert_eq!(facts.answer("suites.tls1_2"), Answer::Inconclusive);
        assert_eq!(facts.answer("consistent"), Answer::No);
        assert_eq!(facts.answer("vulnerability.heartbleed"), Answer::Inconclusive);
        // More suites may be taken.
        assert_eq!(facts.answer("vulnerability.robot"), Answer::Inconclusive);
    }

    #[test]
    fn an_address_that_stopped_leaves_no_doubtful_no() {
        let why = "the address stopped answering after 9 connections: did it ban this one?";
        let mut facts = Facts::default();
        for (id, evidence, expected) in [
            ("protocol.ssl3", "alert handshake_failure (40)", Answer::No),
            (
                "protocol.tls1_0",
                "reset; control handshakes right before and after were answered",
                Answer::No,
            ),
            (
                "protocol.ssl2",
                "closed without an alert; a control handshake after it was answered",
                Answer::No,
            ),
            ("protocol.quic", "ICMP port unreachable, twice", Answer::Inconclusive),
            ("vulnerability.ccs_injection", "closed without an alert", Answer::Inconclusive),
            ("renegotiation.by_client", "reset", Answer::Inconclusive),
            ("vulnerability.heartbleed", "silence", Answer::Inconclusive),
        ] {
            facts.set(id, Answer::No, None, evidence);
            let mut after = facts.clone();
            after_it_stopped(&mut after, why);
            assert_eq!(after.answer(id), expected, "{id}: {evidence}");
        }
    }

    #[test]
    fn a_slow_greeting_is_named_as_the_reason_of_a_long_scan() {
        let mut facts = Facts::default();
        facts.set("starttls.offered", Answer::Yes, None, "STARTTLS: 220 go");
        slow_start(&mut facts, Duration::from_millis(900), 80);
        assert_eq!(facts.get("starttls.offered").unwrap().evidence, "STARTTLS: 220 go");
        slow_start(&mut facts, Duration::from_millis(3_520), 80);
        let evidence = &facts.get("starttls.offered").unwrap().evidence;
        assert!(evidence.contains("3.5 s, on each of the 80 connections"), "{evidence}");
    }

    #[test]
    fn robot_follows_from_the_suites_where_it_could_not_be_asked() {
        let mut facts = Facts::default();
        facts.set("suites.tls1_2", Answer::Yes, None, "all others were refused");
        facts.set("vulnerability.robot", Answer::Inconclusive, None, "alert 70");
        observations(&mut facts, &Observed::default());
        assert_eq!(facts.answer("vulnerability.robot"), Answer::No);
        facts.set("suite.tls1_2.TLS_RSA_WITH_AES_128_CBC_SHA", Answer::Yes, None, "chosen");
        observations(&mut facts, &Observed::default());
        assert_eq!(facts.answer("vulnerability.robot"), Answer::Inconclusive);
    }
}

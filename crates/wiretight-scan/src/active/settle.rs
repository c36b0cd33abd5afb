//! Corrects facts that contradict observations.
//!
//! Each fact results from its own probe. The scan also records what the server chose in reply to all
//! other ClientHellos. If the two contradict each other, the observation counts, and the evidence says
//! so.

use std::time::Duration;

use super::observed::Observed;
use super::probe::Prober;
use super::vulnerabilities::heartbleed::NOT_ANSWERED;
use super::vulnerabilities::robot::NOT_ACCEPTED;
use crate::Chosen;
use crate::facts::{Answer, Facts, Value};
use crate::names::{Suite, Version};

/// All observed choices, for the report.
pub fn report(observed: &Observed) -> Vec<Chosen> {
    let chosen = observed.chosen().into_iter();
    chosen.map(|(version, code, times)| Chosen { version, suite: name(code), times }).collect()
}

fn name(code: u16) -> String {
    Suite::from_code(code).map_or_else(|| format!("0x{code:04x}"), |suite| suite.name.to_owned())
}

/// Marks versions and suites that the server chose as supported, whatever their own probes found. Sets
/// `consistent`: whether the same question always got the same answer.
pub fn observations(facts: &mut Facts, observed: &Observed) {
    for (version, code, _) in observed.chosen() {
        let (key, suite) = (version.key(), name(code));
        let id = format!("protocol.{key}");
        let said = facts.get(&id).cloned();
        if said.as_ref().is_none_or(|fact| fact.answer != Answer::Yes) {
            let mut evidence = format!("the server chose {suite} in answer to another hello");
            if let Some(said) = said {
                evidence.push_str(&format!("; its own probe found: {}", said.evidence));
                if said.answer == Answer::No {
                    observed.differs(format!(
                        "{version} was chosen once, and rejected once: {}",
                        said.evidence
                    ));
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
                "{version} with {suite} was chosen in answer to another hello, but not in its own probe"
            ));
        }
        let mut list = facts.list(&all).to_vec();
        let evidence =
            format!("there may be more: {suite} was chosen only in answer to another hello");
        list.push(suite);
        facts.set(id, Answer::Yes, None, "chosen in answer to another hello");
        facts.set(all, Answer::Inconclusive, Some(Value::List(list)), evidence);
    }
    heartbeats(facts, observed);
    transport(facts, observed);
    let differences = observed.differences();
    let (answer, value, evidence) = match (differences.is_empty(), observed.repeated()) {
        (true, 0) => (Answer::Untested, None, "no hello was answered more than once".to_owned()),
        (true, n) => (Answer::Yes, None, format!("{n} repeated hellos got the same answer")),
        (false, _) => {
            let evidence = "several different servers seem to share this address: what one rejects, \
                            another may accept";
            (Answer::No, Some(Value::List(differences)), evidence.to_owned())
        }
    };
    facts.set("consistent", answer, value, evidence);
}

/// The Heartbleed probe and `extension.heartbeat` use different handshakes, so they can contradict each
/// other.
fn heartbeats(facts: &mut Facts, observed: &Observed) {
    let id = "vulnerability.heartbleed";
    let denied = facts
        .get(id)
        .is_some_and(|fact| fact.answer == Answer::No && fact.evidence.contains(NOT_ANSWERED));
    if denied && facts.yes("extension.heartbeat") {
        let how = "the heartbeat extension was answered once, and not answered once";
        observed.differs(how.to_owned());
        facts.set(id, Answer::Inconclusive, None, how);
    }
}

/// ROBOT needs RSA key transport, so the list of accepted suites can decide an inconclusive answer, or
/// contradict a no.
fn transport(facts: &mut Facts, observed: &Observed) {
    let id = "vulnerability.robot";
    let taken = suites(facts).any(|suite| suite.name.starts_with("TLS_RSA_WITH_"));
    let whole = Version::ALL
        .iter()
        .all(|version| facts.answer(&format!("suites.{}", version.key())) != Answer::Inconclusive);
    let Some(said) = facts.get(id).cloned() else { return };
    match said.answer {
        Answer::Inconclusive if !taken && whole => {
            let evidence = format!("{NOT_ACCEPTED}: it is not among the accepted suites");
            facts.set(id, Answer::No, None, evidence);
        }
        Answer::No if taken && said.evidence.starts_with(NOT_ACCEPTED) => {
            observed.differs("RSA key transport was accepted once, and rejected once".to_owned());
            let evidence = format!("such suites are accepted, but: {}", said.evidence);
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

/// Handles a server that rejected every hello. With a name that the server knows, it may accept them.
/// `wants_name` is whether the server said so itself (unrecognized_name).
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
        Some(_) => "The server may require another name.",
        None => "The server may require a name: scan it by a name that it serves.",
    };
    let evidence = format!("{given}, every hello was rejected: {why}. {advice}");
    facts.set("plaintext", Answer::No, None, format!("TLS is supported: {why}"));
    for version in Version::ALL {
        for kind in ["protocol", "suites"] {
            let id = format!("{kind}.{}", version.key());
            facts.set(id, Answer::Inconclusive, None, evidence.clone());
        }
    }
    let answer = if wants_name { Answer::Yes } else { Answer::Inconclusive };
    facts.set("sni.required", answer, None, evidence);
}

/// Handles an address that stopped answering during the scan. A "no" that is based on a close, a reset,
/// silence or a closed port may be a result of that, so it becomes inconclusive.
pub fn after_it_stopped(facts: &mut Facts, why: &str) {
    let doubtful: Vec<(String, String)> = facts
        .iter()
        .filter(|(id, fact)| fact.answer == Answer::No && *id != "plaintext")
        .filter(|(_, fact)| {
            let said = fact.evidence.to_lowercase();
            // The address answered controls after the probe, so it had not stopped yet.
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

/// Notes in the evidence that the scan took long because the server delays the start of TLS.
pub fn slow_start(facts: &mut Facts, took: Duration, connections: u64) {
    let id = "starttls.offered";
    let Some(fact) = facts.get(id).cloned().filter(|_| took >= SLOW_START) else { return };
    let evidence = format!(
        "{}; the server delays TLS by up to {:.1} s, on each of the {connections} connections: this \
         made the scan slow",
        fact.evidence,
        took.as_secs_f64()
    );
    facts.set(id, fact.answer, fact.value, evidence);
}

/// Delays from this on are noted.
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
    fn observations_outweigh_the_results_of_probes() {
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
        // The server may accept more suites.
        assert_eq!(facts.answer("vulnerability.robot"), Answer::Inconclusive);
    }

    #[test]
    fn doubtful_noes_become_inconclusive_if_the_address_stops_answering() {
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
    fn a_slow_greeting_is_reported_as_the_reason_for_a_slow_scan() {
        let mut facts = Facts::default();
        facts.set("starttls.offered", Answer::Yes, None, "STARTTLS: 220 go");
        slow_start(&mut facts, Duration::from_millis(900), 80);
        assert_eq!(facts.get("starttls.offered").unwrap().evidence, "STARTTLS: 220 go");
        slow_start(&mut facts, Duration::from_millis(3_520), 80);
        let evidence = &facts.get("starttls.offered").unwrap().evidence;
        assert!(evidence.contains("3.5 s, on each of the 80 connections"), "{evidence}");
    }

    #[test]
    fn an_inconclusive_robot_follows_from_the_accepted_suites() {
        let mut facts = Facts::default();
        facts.set("suites.tls1_2", Answer::Yes, None, "all others were rejected");
        facts.set("vulnerability.robot", Answer::Inconclusive, None, "alert 70");
        observations(&mut facts, &Observed::default());
        assert_eq!(facts.answer("vulnerability.robot"), Answer::No);
        facts.set("suite.tls1_2.TLS_RSA_WITH_AES_128_CBC_SHA", Answer::Yes, None, "chosen");
        observations(&mut facts, &Observed::default());
        assert_eq!(facts.answer("vulnerability.robot"), Answer::Inconclusive);
    }
}

//! Servers with QUIC, but nothing on the TCP port of the same number.

use super::probe::Prober;
use super::quic::quic_suites;
use crate::facts::{Answer, Facts, Reached, Value};
use crate::names::Version;

/// Sets the facts about such a server. `no_tcp` says why there is no TCP connection.
pub async fn quic_only(prober: &Prober, facts: &mut Facts, quic: Facts, no_tcp: String) -> Reached {
    if !quic.yes("protocol.quic") {
        return Reached::Unreachable { evidence: no_tcp };
    }
    facts.extend(quic);
    facts.set("plaintext", Answer::No, None, "QUIC is supported, which encrypts everything");
    // Only a refused connection shows that nothing listens on TCP.
    let (answer, before) = match no_tcp.to_lowercase().contains("refused") {
        true => (Answer::No, format!("QUIC has only TLS 1.3, and TCP: {no_tcp}")),
        false => (Answer::Inconclusive, format!("no connection by TCP: {no_tcp}")),
    };
    for version in Version::ALL.into_iter().filter(|version| *version < Version::Tls1_3) {
        for kind in ["protocol", "suites"] {
            facts.set(format!("{kind}.{}", version.key()), answer, None, before.clone());
        }
    }
    facts.set("protocol.tls1_3", Answer::Yes, None, "supported over QUIC only");
    let (suites, whole) =
        quic_suites(prober.address, prober.name.as_deref(), prober.timeout, &prober.pace).await;
    for suite in &suites {
        let id = format!("suite.tls1_3.{suite}");
        facts.set(id, Answer::Yes, None, "chosen over QUIC");
    }
    let (answer, evidence) = match whole {
        Ok(evidence) => (Answer::Yes, format!("over QUIC, all others were rejected: {evidence}")),
        Err(why) => (Answer::Inconclusive, format!("over QUIC, there may be more: {why}")),
    };
    facts.set("suites.tls1_3", answer, Some(Value::List(suites)), evidence);
    if let Some(groups) = facts.get("groups.quic").cloned() {
        for group in facts.list("groups.quic").to_vec() {
            facts.set(format!("group.{group}"), Answer::Yes, None, "accepted over QUIC");
        }
        let evidence = format!("over QUIC: {}", groups.evidence);
        facts.set("groups.tls1_3", groups.answer, groups.value, evidence);
    }
    for id in CERTIFICATES {
        let why = "a server with only QUIC encrypts its certificates, and this scanner does not complete \
                   QUIC handshakes";
        facts.set(id, Answer::Inconclusive, None, why);
    }
    Reached::Tls
}

/// Facts without which there is no level.
const CERTIFICATES: [&str; 3] = ["certificate.trusted", "certificate.name", "certificate.valid"];

//! Servers that speak QUIC, and nothing on TCP at the same port.

use super::probe::Prober;
use super::quic::quic_suites;
use crate::facts::{Answer, Facts, Reached, Value};
use crate::names::Version;

/// What of such a server is told. `no_tcp` is why there is no connection by TCP.
pub async fn quic_only(prober: &Prober, facts: &mut Facts, quic: Facts, no_tcp: String) -> Reached {
    if !quic.yes("protocol.quic") {
        return Reached::Unreachable { evidence: no_tcp };
    }
    facts.extend(quic);
    facts.set("plaintext", Answer::No, None, "QUIC is spoken, which encrypts everything");
    // Only a host that refuses connections says that nothing is there.
    let (answer, before) = match no_tcp.to_lowercase().contains("refused") {
        true => (Answer::No, format!("QUIC has TLS 1.3 alone, and TCP: {no_tcp}")),
        false => (Answer::Inconclusive, format!("no connection by TCP: {no_tcp}")),
    };
    for version in Version::ALL.into_iter().filter(|version| *version < Version::Tls1_3) {
        for kind in ["protocol", "suites"] {
            facts.set(format!("{kind}.{}", version.key()), answer, None, before.clone());
        }
    }
    facts.set("protocol.tls1_3", Answer::Yes, None, "spoken over QUIC alone");
    let (suites, whole) =
        quic_suites(prober.address, prober.name.as_deref(), prober.timeout, &prober.pace).await;
    for suite in &suites {
        let id = format!("suite.tls1_3.{suite}");
        facts.set(id, Answer::Yes, None, "chosen over QUIC");
    }
    let (answer, evidence) = match whole {
        Ok(evidence) => (Answer::Yes, format!("over QUIC, all others were refused: {evidence}")),
        Err(why) => (Answer::Inconclusive, format!("over QUIC, there may be more: {why}")),
    };
    facts.set("suites.tls1_3", answer, Some(Value::List(suites)), evidence);
    if let Some(groups) = facts.get("groups.quic").cloned() {
        for group in facts.list("groups.quic").to_vec() {
            facts.set(format!("group.{group}"), Answer::Yes, None, "taken over QUIC");
        }
        let evidence = format!("over QUIC: {}", groups.evidence);
        facts.set("groups.tls1_3", groups.answer, groups.value, evidence);
    }
    for id in CERTIFICATES {
        let why = "a server of QUIC alone encrypts its certificates in a handshake that this scanner \
                   does not complete";
        facts.set(id, Answer::Inconclusive, None, why);
    }
    Reached::Tls
}

/// Those that no level is given without.
const CERTIFICATES: [&str; 3] = ["certificate.trusted", "certificate.name", "certificate.valid"];

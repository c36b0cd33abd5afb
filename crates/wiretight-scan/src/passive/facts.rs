//! What a flow shows of its server, as the facts of a scan, and whether the flow meets the profiles.
//!
//! One flow shows what was negotiated once. So it adds "yes" where a scan would, and hardly ever "no": a server that was
//! not asked for something may still accept it. A monitor cannot check whether a client trusts the certificate.

use jiff::Timestamp;

use super::{Sealed, Seen, StartTls};
use crate::Reached;
use crate::certificate::weak_hash;
use crate::facts::{Answer, Facts, Value, WEAK_SUITES};
use crate::judge::{Level, Profile, Verdict, rules};
use crate::names::{Group, Suite, Version};

/// Rules about what no flow shows: trust in the certificate, and what else the server supports.
const NOT_SHOWN: [&str; 3] = ["certificate-untrusted", "certificate-name", "no-tls1_3"];

/// The facts about the server that a flow shows at this time. There are none about TLS if the handshake did not complete,
/// and none about the versions and suites of DTLS, because the ids are those of TLS.
pub fn facts(seen: &Seen, at: Timestamp) -> Facts {
    let mut facts = Facts::default();
    start(seen, &mut facts);
    if let Some((sealed, version)) = negotiated(seen)
        && !sealed.version.starts_with("DTLS")
    {
        put(seen, sealed, version, at, &mut facts);
    }
    facts
}

/// Whether the flow meets each profile, judged as a server would be that accepts exactly what was negotiated.
///
/// Yes means that nothing that was seen violates it. Untested: it is not TLS.
pub fn profiles(seen: &Seen, at: Timestamp) -> Vec<Verdict> {
    Profile::ALL.iter().map(|profile| verdict(*profile, seen, at)).collect()
}

fn verdict(profile: Profile, seen: &Seen, at: Timestamp) -> Verdict {
    let mut facts = Facts::default();
    let negotiated = negotiated(seen);
    let reached = match (negotiated, seen.level) {
        (Some((sealed, version)), _) => {
            put(seen, sealed, version, at, &mut facts);
            nothing_else(seen, sealed, version, &mut facts);
            Reached::Tls
        }
        (None, Level::Plaintext) => Reached::Plaintext { evidence: seen.evidence.to_string() },
        (None, _) => Reached::Unknown { evidence: seen.evidence.to_string() },
    };
    let as_endpoint = rules::Seen { reached: &reached, facts: &facts, chains: &[] };
    let mut verdict = profile.verdict(&as_endpoint);
    let hidden = negotiated.is_some_and(|(sealed, _)| sealed.certificate.is_none());
    verdict.reasons.retain(|reason| {
        let about_certificate = reason.rule == "certificate-validity";
        !NOT_SHOWN.contains(&&*reason.rule) && (!about_certificate || !hidden)
    });
    verdict.answer = match negotiated {
        _ if verdict.reasons.iter().any(|reason| reason.answer == Answer::Yes) => Answer::No,
        None if seen.sealed.is_some() && seen.level != Level::Unknown => Answer::Untested,
        _ if !verdict.reasons.is_empty() => Answer::Inconclusive,
        _ => Answer::Yes,
    };
    verdict
}

/// A completed handshake of TLS, DTLS or QUIC.
fn negotiated(seen: &Seen) -> Option<(&Sealed, Version)> {
    let sealed = seen.sealed.as_deref().filter(|_| seen.level != Level::Unknown)?;
    let version = match &*sealed.version {
        "DTLS 1.0" => Version::Tls1_1,
        "DTLS 1.2" => Version::Tls1_2,
        "DTLS 1.3" => Version::Tls1_3,
        draft if draft.starts_with("TLS 1.3") => Version::Tls1_3,
        quic if quic.starts_with("QUIC") => Version::Tls1_3,
        other => Version::ALL.into_iter().find(|version| version.name() == other)?,
    };
    Some((sealed, version))
}

fn start(seen: &Seen, facts: &mut Facts) {
    let evidence = || seen.evidence.clone();
    match seen.starttls.map(|(_, how)| how) {
        Some(StartTls::Used | StartTls::Unused) => {
            facts.set("starttls.offered", Answer::Yes, None, evidence());
        }
        Some(StartTls::NotOffered | StartTls::Refused) => {
            facts.set("starttls.offered", Answer::No, None, evidence());
        }
        Some(StartTls::Stripped) => facts.set("starttls.stripped", Answer::Yes, None, evidence()),
        None => {}
    }
    if seen.level == Level::Plaintext && seen.sealed.is_none() {
        facts.set("plaintext", Answer::Yes, None, evidence());
    }
}

fn put(seen: &Seen, sealed: &Sealed, version: Version, at: Timestamp, facts: &mut Facts) {
    let mut yes = |id: String, value: Option<Value>| {
        facts.set(id, Answer::Yes, value, seen.evidence.clone());
    };
    let list = |name: &str| Some(Value::List(vec![name.to_owned()]));
    yes(format!("protocol.{}", version.key()), None);
    if sealed.version.starts_with("QUIC") {
        yes("protocol.quic".to_owned(), None);
    }
    if let Some(name) = &sealed.suite {
        yes(format!("suite.{}.{name}", version.key()), None);
        for (id, is) in WEAK_SUITES {
            if Suite::from_name(name).is_some_and(is) {
                yes(id.to_owned(), list(name));
            }
        }
    }
    if let Some(name) = &sealed.group {
        match name.strip_prefix("dh-").and_then(|bits| bits.parse().ok()) {
            Some(bits) => yes("dh.bits".to_owned(), Some(Value::Number(bits))),
            None => yes(format!("group.{name}"), None),
        }
        if sealed.post_quantum == Some(true) {
            yes("post_quantum".to_owned(), list(name));
        }
    }
    match sealed.forward_secrecy {
        Some(true) => yes("forward_secrecy.any".to_owned(), None),
        Some(false) => facts.set("forward_secrecy.all", Answer::No, None, seen.evidence.clone()),
        None => {}
    }
    if let (Some(alpn), false) = (&sealed.alpn, version == Version::Tls1_3) {
        // In TLS 1.3 these are the client's offers.
        facts.set("alpn", Answer::Yes, list(alpn), seen.evidence.clone());
    }
    if version == Version::Tls1_3 && sealed.resumed == Some(true) {
        facts.set("session.psk", Answer::Yes, None, seen.evidence.clone());
        if sealed.forward_secrecy == Some(false) {
            facts.set("session.psk_without_dhe", Answer::Yes, None, seen.evidence.clone());
        }
    }
    if let Some(requested) = sealed.client_certificate {
        let answer = if requested { Answer::Yes } else { Answer::No };
        facts.set("client_certificate.requested", answer, None, seen.evidence.clone());
    }
    certificate(sealed, at, facts);
}

fn certificate(sealed: &Sealed, at: Timestamp, facts: &mut Facts) {
    let Some(leaf) = &sealed.certificate else { return };
    let evidence = format!("the certificate of {}, signed with {}", leaf.subject, leaf.signature);
    let keys = Some(Value::List(vec![leaf.key.clone()]));
    facts.set("certificate.keys", Answer::Yes, keys, evidence.clone());
    if let Some(bits) = bits(&leaf.key) {
        facts.set("certificate.key_bits", Answer::Yes, Some(Value::Number(bits)), evidence.clone());
    }
    let own = if leaf.self_signed { Answer::Yes } else { Answer::No };
    facts.set("certificate.self_signed", own, None, evidence.clone());
    let weak = weak_hash(&leaf.signature).filter(|_| !leaf.self_signed);
    let (answer, value) = match weak {
        Some(hash) => (Answer::Yes, Some(Value::Text(hash.to_owned()))),
        None => (Answer::No, None),
    };
    facts.set("certificate.weak_signature", answer, value, evidence);
    // The start of the validity is not kept: an expired certificate is by far the more frequent one.
    let left = leaf.not_after.as_second() - at.as_second();
    let (answer, value, evidence) = match u64::try_from(left) {
        Ok(left) => (Answer::Yes, Some(Value::Number(left / 86_400)), "valid until"),
        Err(_) => (Answer::No, None, "expired on"),
    };
    let evidence = format!("{evidence} {}", leaf.not_after.strftime("%Y-%m-%d"));
    facts.set("certificate.valid", answer, value, evidence);
}

/// The size in the name of a key: `rsa-2048`, `ecdsa-p256`, `ed25519`.
fn bits(key: &str) -> Option<u64> {
    match key.split_once('-') {
        Some(("rsa" | "dsa" | "ecdsa", rest)) if !rest.contains('.') => {
            let digits = rest.trim_start_matches(|c: char| !c.is_ascii_digit());
            let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
            digits[..end].parse().ok()
        }
        _ => match key {
            "ed25519" => Some(256),
            "ed448" => Some(448),
            _ => None,
        },
    }
}

/// Adds what a server would answer that accepts only what this flow used.
fn nothing_else(seen: &Seen, sealed: &Sealed, version: Version, facts: &mut Facts) {
    const NOT: &str = "not used in this flow";
    let name = |name: &Option<std::borrow::Cow<'static, str>>| {
        name.as_deref().map(|name| Value::List(vec![name.to_owned()]))
    };
    for other in Version::ALL.into_iter().filter(|other| *other != version) {
        facts.set(format!("protocol.{}", other.key()), Answer::No, None, NOT);
    }
    let suites = format!("suites.{}", version.key());
    facts.set(suites, Answer::Yes, name(&sealed.suite), seen.evidence.clone());
    for (id, _) in WEAK_SUITES {
        if facts.answer(id) == Answer::Untested {
            facts.set(id, Answer::No, None, NOT);
        }
    }
    for id in ["post_quantum", "forward_secrecy.any", "forward_secrecy.all"] {
        let known = sealed.forward_secrecy.is_some() && sealed.post_quantum.is_some();
        if facts.answer(id) == Answer::Untested && known {
            let answer = match (id, sealed.forward_secrecy) {
                ("forward_secrecy.all", Some(true)) => Answer::Yes,
                _ => Answer::No,
            };
            facts.set(id, answer, None, NOT);
        }
    }
    let new = version == Version::Tls1_3;
    let known = sealed.group.as_deref().is_some_and(|name| Group::from_name(name).is_some());
    if known {
        let id = if new { "groups.tls1_3" } else { "groups.tls1_2" };
        facts.set(id, Answer::Yes, name(&sealed.group), seen.evidence.clone());
    } else if new {
        facts.set("groups.tls1_3", Answer::Inconclusive, None, "no known group was seen");
    }
    if new {
        let why = "it is encrypted in TLS 1.3";
        facts.set("signatures.tls1_3", Answer::Inconclusive, None, why);
    } else if sealed.signature.is_some() {
        let evidence = seen.evidence.clone();
        facts.set("signatures.tls1_2", Answer::Yes, name(&sealed.signature), evidence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passive::{CertificateSeen, Grade};

    fn flow(level: Level, sealed: Sealed) -> Seen {
        Seen {
            protocol: "tls".into(),
            level,
            grade: Grade::Seen,
            evidence: "ServerHello".into(),
            starttls: None,
            sealed: Some(Box::new(sealed)),
        }
    }

    fn tls1_3(group: &'static str, suite: &'static str) -> Seen {
        let sealed = Sealed {
            version: "TLS 1.3".into(),
            suite: Some(suite.into()),
            group: Some(group.into()),
            post_quantum: Some(group.contains("MLKEM")),
            forward_secrecy: Some(true),
            resumed: Some(false),
            alpn: Some("h2,http/1.1".into()),
            ..Sealed::default()
        };
        flow(Level::Strong, sealed)
    }

    fn tls1_2(suite: &'static str, key: &str) -> Seen {
        let forward = Suite::from_name(suite).unwrap().is_forward_secret();
        let leaf = CertificateSeen {
            sha256: String::new(),
            key: key.to_owned(),
            signature: "rsa-pkcs1-sha256".to_owned(),
            not_after: "2030-01-31T00:00:00Z".parse().unwrap(),
            subject: "CN=a".to_owned(),
            self_signed: false,
        };
        let sealed = Sealed {
            version: "TLS 1.2".into(),
            suite: Some(suite.into()),
            group: forward.then(|| "secp256r1".into()),
            post_quantum: Some(false),
            forward_secrecy: Some(forward),
            signature: forward.then(|| "rsa_pss_rsae_sha256".into()),
            alpn: Some("h2".into()),
            certificate: Some(leaf.into()),
            ..Sealed::default()
        };
        flow(Level::Acceptable, sealed)
    }

    fn answer(seen: &Seen, profile: Profile) -> Answer {
        verdict(profile, seen, "2030-01-01T00:00:00Z".parse().unwrap()).answer
    }

    #[test]
    fn a_flow_shows_what_was_negotiated_and_claims_nothing_else() {
        let at = "2030-01-01T00:00:00Z".parse().unwrap();
        let seen = tls1_2("TLS_RSA_WITH_AES_128_CBC_SHA", "rsa-1024");
        let found = facts(&seen, at);
        for id in [
            "protocol.tls1_2",
            "suite.tls1_2.TLS_RSA_WITH_AES_128_CBC_SHA",
            "weak.static_rsa",
            "weak.cbc",
        ] {
            assert!(found.yes(id), "{id}");
        }
        assert_eq!(found.number("certificate.key_bits"), Some(1024));
        assert_eq!(found.number("certificate.valid"), Some(30));
        assert_eq!(found.answer("forward_secrecy.all"), Answer::No);
        assert_eq!(found.list("alpn"), ["h2"]);
        for id in ["protocol.tls1_3", "weak.rc4", "post_quantum", "forward_secrecy.any"] {
            assert_eq!(found.answer(id), Answer::Untested, "{id}");
        }
        let later = "2031-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(facts(&seen, later).answer("certificate.valid"), Answer::No);

        let found = facts(&tls1_3("X25519MLKEM768", "TLS_AES_128_GCM_SHA256"), at);
        assert_eq!(found.list("post_quantum"), ["X25519MLKEM768"]);
        assert_eq!(found.answer("alpn"), Answer::Untested, "only offers");

        let unfinished = Seen { level: Level::Unknown, ..seen };
        assert_eq!(facts(&unfinished, at), Facts::default());
        let dtls = tls1_3("x25519", "TLS_AES_128_GCM_SHA256");
        let sealed = Sealed { version: "DTLS 1.2".into(), ..*dtls.sealed.clone().unwrap() };
        assert_eq!(facts(&flow(Level::Acceptable, sealed), at), Facts::default());
    }

    #[test]
    fn profiles_judge_only_what_was_negotiated() {
        use Profile::*;
        let best = tls1_3("X25519MLKEM768", "TLS_AES_256_GCM_SHA384");
        assert_eq!(answer(&best, Bcp195), Answer::Yes);
        assert_eq!(answer(&best, MozillaModern), Answer::Yes);
        assert_eq!(answer(&best, Cnsa2), Answer::No, "another group");
        let cnsa2 = tls1_3("MLKEM1024", "TLS_AES_256_GCM_SHA384");
        assert_eq!(answer(&cnsa2, Cnsa2), Answer::Inconclusive, "the signature is encrypted");
        let old = tls1_2("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "rsa-2048");
        assert_eq!(answer(&old, Bcp195), Answer::Yes);
        assert_eq!(answer(&old, Nist80052r2), Answer::Yes);
        assert_eq!(answer(&old, MozillaModern), Answer::No);
        let short = tls1_2("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "rsa-1024");
        assert_eq!(answer(&short, Bcp195), Answer::No);
        let static_rsa = tls1_2("TLS_RSA_WITH_AES_128_GCM_SHA256", "rsa-2048");
        assert_eq!(answer(&static_rsa, Bcp195), Answer::No);

        let unfinished = Seen { level: Level::Unknown, ..best };
        assert_eq!(answer(&unfinished, Bcp195), Answer::Inconclusive);
        let plain = Seen { level: Level::Plaintext, sealed: None, ..unfinished };
        assert_eq!(answer(&plain, Bcp195), Answer::No);
        let ssh = Sealed { version: "SSH 2.0".into(), ..Sealed::default() };
        assert_eq!(answer(&flow(Level::Strong, ssh), Bcp195), Answer::Untested);
    }
}

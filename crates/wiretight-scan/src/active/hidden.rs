//! The encrypted part of TLS 1.3: chains by type of key and by name, application protocols, ECH.

use super::enumerate::PROTOCOLS;
use super::extensions::ORDINARY;
use super::handshake::Failure;
use super::link::alert_name;
use super::ordinary;
use super::probe::Prober;
use super::shown::{self, Shown};
use super::spoken::Spoken;
use super::{certificates, sessions};
use crate::certificate::{Presented, WITHOUT_NAME};
use crate::facts::{Answer, Facts, Value};
use crate::names::Version;
use crate::parse::{ClientHello, extension};

/// Tests all of it, if TLS 1.3 is supported.
pub async fn hidden(prober: &Prober, spoken: &Spoken) -> (Vec<Presented>, Facts) {
    let (mut presented, mut facts) = (Vec::new(), Facts::default());
    if spoken.suites(Version::Tls1_3).is_empty() {
        let (answer, evidence) = match spoken.unclear(|v| v == Version::Tls1_3) {
            Some(_) => (Answer::Inconclusive, "it is not known whether TLS 1.3 is supported"),
            None => (Answer::No, "TLS 1.3 is not supported"),
        };
        for id in ["session.psk", "session.psk_without_dhe", "session.early_data"] {
            facts.set(id, answer, None, evidence);
        }
        return (presented, facts);
    }
    let hello = shown::hello(prober);
    // Earlier versions show some of this unencrypted, and it is tested there.
    let alone = spoken.newest_before_tls1_3().is_none();
    let (default, signatures, names, alpn) = tokio::join!(
        default(prober, &hello),
        by_signature(prober, &hello),
        names(prober, &hello, alone),
        alpn(prober, &hello, alone),
    );
    let (nameless, strange) = names;
    let mut first: Vec<Presented> = Vec::new();
    first.extend(default.0.map(|shown| of(&shown, "TLS 1.3")));
    first.extend(signatures.0);
    if let (Some(nameless), Some(strange)) = (nameless, strange) {
        let known: Vec<_> = first.iter().filter_map(|p| p.certificates.first()).collect();
        sni(&known, &nameless, &strange, &mut facts);
        if let Ok(shown) = &nameless {
            presented.push(of(shown, WITHOUT_NAME));
        }
    }
    presented.splice(..0, first);
    presented.retain(|p| !p.certificates.is_empty());
    for found in [default.1, signatures.1, alpn] {
        facts.extend(found);
    }
    (presented, facts)
}

fn of(shown: &Shown, when: &str) -> Presented {
    Presented {
        when: when.to_owned(),
        certificates: shown.certificates(),
        ocsp: shown.ocsp(),
        scts: shown.scts(),
    }
}

/// The default chain; ECH; and the sessions of that handshake. To test ECH, the hello contains random
/// data (GREASE, RFC 9849 section 6.2): a server with ECH replies with its configuration.
async fn default(prober: &Prober, hello: &ClientHello) -> (Option<Shown>, Facts) {
    let (mut facts, id) = (Facts::default(), "ech");
    let greased = hello.clone().with(extension::ENCRYPTED_CLIENT_HELLO, ech_noise());
    let mut client = sessions::first(prober, &greased).await;
    match &client {
        Ok(client) => {
            let ech = extension::ENCRYPTED_CLIENT_HELLO;
            let (answer, evidence) = match client.extensions.iter().any(|(kind, _)| *kind == ech) {
                true => (Answer::Yes, "the server sent its ECH configurations"),
                false => (Answer::No, "the server ignored the ECH extension"),
            };
            facts.set(id, answer, None, evidence);
        }
        Err(failure) => {
            facts.set(id, Answer::Inconclusive, None, failure.to_string());
            client = sessions::first(prober, hello).await;
        }
    }
    let shown = client.as_ref().ok().and_then(Shown::of);
    facts.extend(sessions::after(prober, hello, client).await);
    (shown, facts)
}

/// An outer ECHClientHello (RFC 9849 section 5) for X25519, HKDF-SHA256 and AES-128-GCM, with random data.
fn ech_noise() -> Vec<u8> {
    let mut noise = [0; 1 + 32 + 176];
    let _ = aws_lc_rs::rand::fill(&mut noise);
    let (id, rest) = noise.split_at(1);
    let (enc, payload) = rest.split_at(32);
    let mut body = vec![0, 0, 1, 0, 1];
    body.extend(id);
    body.extend([0, 32]);
    body.extend(enc);
    body.extend((payload.len() as u16).to_be_bytes());
    body.extend(payload);
    body
}

/// Compression of certificates; the signature schemes, and the chain for each type of key.
async fn by_signature(prober: &Prober, hello: &ClientHello) -> (Vec<Presented>, Facts) {
    let (mut facts, first) = shown::compression_and_scheme(prober, hello).await;
    facts.extend(shown::signatures_after(prober, hello, first).await);
    let found = facts.list("signatures.tls1_3");
    // In TLS 1.3, a scheme is for one type of key, and an ECDSA scheme for one curve. Each may have its own certificate.
    let kinds = [
        ("rsa only", &["rsa_pss_rsae_sha256", "rsa_pss_rsae_sha384"][..]),
        ("rsa-pss only", &["rsa_pss_pss_sha256", "rsa_pss_pss_sha384"][..]),
        ("ecdsa p256 only", &["ecdsa_secp256r1_sha256"][..]),
        ("ecdsa p384 only", &["ecdsa_secp384r1_sha384"][..]),
        ("ecdsa p521 only", &["ecdsa_secp521r1_sha512"][..]),
        ("ed25519 only", &["ed25519"][..]),
        ("ed448 only", &["ed448"][..]),
        ("ml-dsa-44 only", &["mldsa44"][..]),
        ("ml-dsa-65 only", &["mldsa65"][..]),
        ("ml-dsa-87 only", &["mldsa87"][..]),
    ];
    let offered: Vec<(&str, Vec<u16>)> = kinds
        .into_iter()
        .filter_map(|(when, names)| {
            let seen = names.iter().filter(|name| found.iter().any(|f| f == *name));
            let codes: Vec<u16> = crate::names::SCHEMES
                .iter()
                .filter(|scheme| seen.clone().any(|name| *name == scheme.name))
                .map(|scheme| scheme.code)
                .collect();
            (!codes.is_empty()).then_some((when, codes))
        })
        .collect();
    let mut presented = Vec::new();
    // With one type of key, the chain is the default one.
    if offered.len() > 1 {
        for (when, codes) in offered {
            if let Ok(shown) = shown::tls1_3(prober, &hello.clone().signatures(&codes)).await {
                presented.push(of(&shown, when));
            }
        }
    }
    (presented, facts)
}

type Named = Option<Result<Shown, Failure>>;

async fn names(prober: &Prober, hello: &ClientHello, alone: bool) -> (Named, Named) {
    if !alone || prober.name.is_none() {
        return (None, None);
    }
    let nameless = hello.clone().without(extension::SERVER_NAME);
    let strange = hello.clone().server_name(certificates::STRANGE_NAME);
    let (nameless, strange) =
        tokio::join!(shown::tls1_3(prober, &nameless), shown::tls1_3(prober, &strange));
    (Some(nameless), Some(strange))
}

fn sni(
    known: &[&Vec<u8>],
    nameless: &Result<Shown, Failure>,
    strange: &Result<Shown, Failure>,
    facts: &mut Facts,
) {
    let (id, other) = ("sni.required", "sni.other_certificate");
    let refusal = |result: &Result<Shown, Failure>| match result {
        Err(Failure::Alert(level, description)) => Some(alert_name(*level, *description)),
        _ => None,
    };
    if let Some(why) = refusal(nameless) {
        facts.set(id, Answer::Yes, None, format!("without a name: {why}"));
        facts.set(other, Answer::No, None, "without a name, there is no certificate");
        return;
    }
    if let Some(why) = refusal(strange) {
        facts.set(id, Answer::Yes, None, format!("with an unknown name: {why}"));
    } else if nameless.is_ok() && strange.is_ok() {
        let why = "it sends a certificate without a name, and for an unknown name";
        facts.set(id, Answer::No, None, why);
    } else {
        facts.set(id, Answer::Inconclusive, None, "there was no answer");
    }
    let (answer, why) = match nameless.as_ref().map(Shown::certificates) {
        Ok(chain) if chain.first().is_some_and(|leaf| known.contains(&leaf)) => {
            (Answer::No, "without a name: the same certificate")
        }
        Ok(_) => (Answer::Yes, "without a name: another certificate"),
        Err(_) => (Answer::Inconclusive, "there was no answer"),
    };
    facts.set(other, answer, None, why);
}

async fn alpn(prober: &Prober, hello: &ClientHello, alone: bool) -> Facts {
    let mut facts = Facts::default();
    if !alone {
        return facts;
    }
    let (mut left, mut found): (Vec<&str>, Vec<String>) = (PROTOCOLS.to_vec(), Vec::new());
    let (mut answer, mut why) = (Answer::No, "no protocol was chosen".to_owned());
    while !left.is_empty() {
        match shown::tls1_3(prober, &hello.clone().alpn(&left)).await {
            Ok(shown) => {
                let chosen = shown.alpn();
                let at = left.iter().position(|p| Some(*p) == chosen.as_deref());
                let Some(at) = at else {
                    why = "no protocol was chosen".to_owned();
                    break;
                };
                found.push(left.remove(at).to_owned());
            }
            // The cause may be a protocol that no client offers, so try those of browsers.
            Err(Failure::Alert(level, description)) if found.is_empty() && left != ORDINARY => {
                why = alert_name(level, description);
                left = ORDINARY.to_vec();
            }
            Err(Failure::Alert(level, description)) => {
                why = format!("{}, {}", alert_name(level, description), ordinary::TOO);
                break;
            }
            Err(failure) => {
                (answer, why) = (Answer::Inconclusive, failure.to_string());
                break;
            }
        }
    }
    match found.is_empty() {
        true => facts.set("alpn", answer, None, why),
        false => {
            let evidence = format!("{} chosen when offered", found.join(", "));
            let answer = if answer == Answer::No { Answer::Yes } else { answer };
            facts.set("alpn", answer, Some(Value::List(found)), evidence);
        }
    }
    facts
}

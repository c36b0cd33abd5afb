//! Which certificates a server sends, by type of key and by server name.

use super::enumerate::offer;
use super::probe::{Flight, Outcome, Prober, Until};
use super::spoken::Spoken;
use crate::certificate::{Presented, WITHOUT_NAME};
use crate::facts::{Answer, Facts};
use crate::names::{Suite, Version};
use crate::parse::{ClientHello, extension};

/// A name that no server knows (RFC 6761 section 6.4).
pub const STRANGE_NAME: &str = "wiretight-scan.invalid";

/// Offers that make a server use an ECDSA key on one curve; x25519 is for the key exchange.
const CURVES: [(&str, [u16; 2]); 3] = [
    ("ecdsa p256 only", [0x0017, 0x001d]),
    ("ecdsa p384 only", [0x0018, 0x001d]),
    ("ecdsa p521 only", [0x0019, 0x001d]),
];

/// The certificates in versions before TLS 1.3, and how they depend on the server name.
pub async fn certificates(prober: &Prober, spoken: &Spoken) -> (Vec<Presented>, Facts) {
    let mut facts = Facts::default();
    let Some((version, suites)) = spoken.newest_before_tls1_3() else {
        return (Vec::new(), facts);
    };
    let kind = |wanted: &str| -> Vec<u16> {
        let is =
            |code: &&u16| Suite::from_code(**code).and_then(Suite::authentication) == Some(wanted);
        suites.iter().filter(is).copied().collect()
    };
    let kinds: Vec<(&str, Vec<u16>)> =
        [("rsa", "rsa only"), ("ecdsa", "ecdsa only"), ("dsa", "dsa only")]
            .into_iter()
            .map(|(wanted, when)| (when, kind(wanted)))
            .filter(|(_, suites)| !suites.is_empty())
            .collect();
    if kinds.is_empty() {
        return (Vec::new(), facts);
    }
    let all: Vec<u16> = kinds.iter().flat_map(|(_, suites)| suites.iter().copied()).collect();
    let hello = |suites: &[u16]| asking(offer(prober, version, suites));
    let ask = async |when: &str, hello: ClientHello| {
        (when.to_owned(), prober.probe(&hello, Until::Done).await)
    };
    let by_kind = async {
        let mut outcomes = Vec::new();
        if kinds.len() == 1 {
            outcomes.push(ask("default", hello(&all)).await);
        } else {
            for (when, suites) in &kinds {
                outcomes.push(ask(when, hello(suites)).await);
            }
        }
        // With TLS 1.3, schemes select the key. Earlier versions select an ECDSA key by the curves that the client
        // offers.
        let ecdsa = kinds.iter().find(|(when, _)| *when == "ecdsa only").map(|(_, suites)| suites);
        if let Some(suites) = ecdsa.filter(|_| spoken.suites(Version::Tls1_3).is_empty()) {
            for (when, curves) in CURVES {
                outcomes.push(ask(when, hello(suites).groups(&curves)).await);
            }
        }
        outcomes
    };
    let named = prober.name.is_some() && version > Version::Ssl3;
    let nameless = async {
        match named {
            true => Some(ask(WITHOUT_NAME, hello(&all).without(extension::SERVER_NAME)).await.1),
            false => None,
        }
    };
    let strange = async {
        match named {
            true => Some(ask(STRANGE_NAME, hello(&all).server_name(STRANGE_NAME)).await.1),
            false => None,
        }
    };
    let (outcomes, nameless, strange) = tokio::join!(by_kind, nameless, strange);
    let mut presented: Vec<Presented> = outcomes
        .into_iter()
        .filter_map(|(when, outcome)| match outcome {
            Outcome::Taken(flight) => shown(when, &flight),
            _ => None,
        })
        .collect();
    // If the server sends no certificate even for the name, a rejection without the name is not caused by the missing
    // name.
    if let (Some(nameless), Some(strange), false) = (nameless, strange, presented.is_empty()) {
        names(&presented, &nameless, &strange, &mut facts);
        if let Outcome::Taken(flight) = &nameless {
            presented.extend(shown(WITHOUT_NAME.to_owned(), flight));
        }
    }
    (presented, facts)
}

/// Adds requests for an OCSP response and SCTs.
pub fn asking(hello: ClientHello) -> ClientHello {
    if hello.extensions.is_empty() {
        return hello;
    }
    // OCSP, any responder, no extensions (RFC 6066 section 8).
    hello.with(extension::STATUS_REQUEST, vec![1, 0, 0, 0, 0]).with(extension::SCT, Vec::new())
}

fn shown(when: String, flight: &Flight) -> Option<Presented> {
    (!flight.certificates.is_empty()).then(|| Presented {
        when,
        certificates: flight.certificates.clone(),
        ocsp: flight.status.clone(),
        scts: flight.scts(),
    })
}

/// `sni.*`: how the server reacts to no name, and to an unknown name.
pub fn names(with: &[Presented], nameless: &Outcome, strange: &Outcome, facts: &mut Facts) {
    let (id, other) = ("sni.required", "sni.other_certificate");
    match (nameless, strange) {
        (Outcome::Refused { why, .. }, _) => {
            facts.set(id, Answer::Yes, None, format!("without a name: {why}"));
        }
        (_, Outcome::Refused { why, .. }) => {
            facts.set(id, Answer::Yes, None, format!("with an unknown name: {why}"));
        }
        (Outcome::Taken(_), Outcome::Taken(_)) => {
            facts.set(
                id,
                Answer::No,
                None,
                "it sends a certificate without a name, and for an unknown name",
            );
        }
        (Outcome::Unclear(why), _) | (_, Outcome::Unclear(why)) => {
            facts.set(id, Answer::Inconclusive, None, why.clone());
        }
        _ => facts.set(id, Answer::Inconclusive, None, "long hellos are lost on the path"),
    }
    match nameless {
        Outcome::Taken(flight) if flight.certificates.is_empty() => {}
        Outcome::Taken(flight) => {
            let known = with.iter().any(|p| p.certificates.first() == flight.certificates.first());
            let (answer, why) = match known {
                true => (Answer::No, "the same certificate"),
                false => (Answer::Yes, "another certificate"),
            };
            facts.set(other, answer, None, format!("without a name: {why}"));
        }
        Outcome::Refused { .. } => {
            facts.set(other, Answer::No, None, "without a name, there is no certificate")
        }
        _ => facts.set(other, Answer::Inconclusive, None, "there was no answer"),
    }
}

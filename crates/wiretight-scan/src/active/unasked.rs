//! Why a question has no answer: no check is missing from a report without its reason.
//!
//! What makes no sense for a server is untested. What makes sense and could not be asked is
//! inconclusive, for nobody knows that it is fine.

use super::probe::Prober;
use crate::facts::Answer::{self, Inconclusive, Untested};
use crate::facts::{Facts, TABLE};
use crate::names::{KeyExchange, Suite, Version};
use crate::target::Start;

/// Adds what is missing.
pub fn give_reasons(facts: &mut Facts, prober: &Prober) {
    let ids = TABLE.iter().flat_map(|entry| match entry.id {
        "suites.<version>" | "preference.<version>" => {
            let key = |version: Version| entry.id.replace("<version>", version.key());
            Version::ALL.into_iter().map(key).collect()
        }
        // Only what is taken is listed.
        id if id.contains('<') => Vec::new(),
        id => vec![id.to_owned()],
    });
    let known = Known::of(facts, prober);
    let missing: Vec<String> = ids.filter(|id| facts.get(id).is_none()).collect();
    let reasons: Vec<(Answer, String)> = missing.iter().map(|id| known.reason(id, facts)).collect();
    for (id, (answer, mut evidence)) in missing.into_iter().zip(reasons) {
        if let (Inconclusive, Some(why)) = (answer, prober.contact.stopped()) {
            evidence = why.to_owned();
        }
        facts.set(id, answer, None, evidence);
    }
}

/// What reasons follow from.
struct Known {
    web: bool,
    starttls: bool,
    port: u16,
    named: bool,
    /// The evidence where no version is known to be spoken.
    nothing: Option<String>,
    tls1_3: Answer,
    /// From SSL 3.0 to TLS 1.2.
    old: Old,
    shows_certificates: bool,
}

enum Old {
    /// Some version from TLS 1.0 on is spoken.
    Tls,
    /// SSL 3.0 alone.
    Ssl3,
    /// It is not known whether this one is.
    Unclear(Version),
    None,
}

type Reason = (Answer, String);

fn untested(why: impl Into<String>) -> Reason {
    (Untested, why.into())
}

fn inconclusive(why: impl Into<String>) -> Reason {
    (Inconclusive, why.into())
}

impl Known {
    fn of(facts: &Facts, prober: &Prober) -> Self {
        let answer = |version: Version| facts.answer(&format!("protocol.{}", version.key()));
        let spoken = |version: &Version| answer(*version) == Answer::Yes;
        let mut old =
            [Version::Tls1_2, Version::Tls1_1, Version::Tls1_0, Version::Ssl3].into_iter();
        let unclear = old.clone().find(|version| answer(*version) == Inconclusive);
        let old = match (old.find(spoken), unclear) {
            (Some(Version::Ssl3), None) => Old::Ssl3,
            (Some(Version::Ssl3) | None, Some(version)) => Old::Unclear(version),
            (Some(_), _) => Old::Tls,
            (None, None) => Old::None,
        };
        let nothing = !Version::ALL.iter().any(spoken);
        let nothing = nothing.then(|| {
            let fact = facts.get("protocol.tls1_2").or(facts.get("protocol.tls1_3"));
            fact.map(|fact| fact.evidence.to_string()).unwrap_or_default()
        });
        let suites = facts.iter().filter_map(|(id, fact)| {
            let (_, name) = id.strip_prefix("suite.")?.split_once('.')?;
            (fact.answer == Answer::Yes).then_some(name)
        });
        let shows = |name: &str| {
            Suite::from_name(name).is_none_or(|suite| {
                use KeyExchange::{DhePsk, EcdhePsk, Psk};
                let psk = matches!(suite.key_exchange(), Psk | DhePsk | EcdhePsk);
                !suite.is_anonymous() && !psk
            })
        };
        Self {
            web: matches!(prober.start, Start::Direct | Start::Https),
            starttls: !matches!(prober.start, Start::Direct | Start::Https),
            port: prober.address.port(),
            named: prober.name.is_some(),
            nothing,
            tls1_3: answer(Version::Tls1_3),
            old,
            shows_certificates: suites.into_iter().any(shows),
        }
    }

    fn reason(&self, id: &str, facts: &Facts) -> Reason {
        let family = id.split('.').next().unwrap_or_default();
        match family {
            "starttls" if !self.starttls => return untested("TLS begins with the first byte here"),
            "starttls" => return inconclusive("it was not asked"),
            "http" if !self.web => return untested("this is no port of the web"),
            "http" if id == "http.redirect" && self.port != 443 => {
                return untested("port 80 is asked beside port 443 alone");
            }
            "http" if self.nothing.is_none() => return untested("nothing was answered by HTTP"),
            "sni" if !self.named => return untested("no name was given"),
            _ if id == "certificate.caa" && !self.named => return untested("no name was given"),
            _ if id == "protocol.quic" && !self.web => {
                return untested("QUIC is asked for where TLS begins with the first byte");
            }
            _ => {}
        }
        if let Some(evidence) = &self.nothing {
            return inconclusive(evidence.clone());
        }
        match id {
            "groups.quic" => return untested("QUIC is not known to be spoken"),
            "groups.tls1_3" | "signatures.tls1_3" | "ech" | "extension.compress_certificate" => {
                return self.needs_tls1_3();
            }
            "preference.groups" => {
                return match facts.list("groups.tls1_3").len() {
                    1 => untested("one group has no order"),
                    _ => self.needs_tls1_3(),
                };
            }
            "groups.tls1_2" => return self.needs_suites("no ECDHE suite is taken"),
            "signatures.tls1_2" => {
                return self.needs_suites("no suite that is taken in TLS 1.2 signs a key exchange");
            }
            "dh.common_prime" | "dh.safe" => {
                return match facts.answer("dh.bits") {
                    Answer::Yes | Inconclusive => inconclusive("the prime is not known"),
                    _ => untested("no prime is in use"),
                };
            }
            "compression"
            | "fallback_scsv"
            | "renegotiation.secure"
            | "extension.extended_master_secret"
            | "extension.encrypt_then_mac"
            | "extension.heartbeat" => return self.needs_old(),
            "vulnerability.roca" => return self.needs_certificates(),
            "vulnerability.heartbleed" | "vulnerability.ticketbleed" => {
                return match self.old {
                    Old::Ssl3 => untested("SSL 3.0 has no extensions"),
                    _ => self.needs_old(),
                };
            }
            "vulnerability.poodle_tls" => {
                return match self.old {
                    Old::Ssl3 => untested("no TLS with CBC is spoken"),
                    _ => self.needs_old(),
                };
            }
            _ => {}
        }
        match family {
            "preference" => untested("fewer than two suites have no order"),
            "certificate" => self.needs_certificates(),
            "session" | "vulnerability" | "renegotiation" | "dh" => self.needs_old(),
            "client_certificate" => inconclusive("no handshake came so far"),
            _ => inconclusive("no answer came"),
        }
    }

    fn needs_tls1_3(&self) -> Reason {
        match self.tls1_3 {
            Answer::Yes => inconclusive("no handshake of TLS 1.3 came so far"),
            Inconclusive => inconclusive("it is not known whether TLS 1.3 is spoken"),
            _ => untested("TLS 1.3 is not spoken"),
        }
    }

    fn needs_old(&self) -> Reason {
        match self.old {
            Old::Tls => inconclusive("no handshake came so far"),
            Old::Ssl3 => inconclusive("this scanner completes no handshakes of SSL 3.0"),
            Old::Unclear(version) => {
                inconclusive(format!("it is not known whether {version} is spoken"))
            }
            Old::None => untested("nothing from SSL 3.0 to TLS 1.2 is spoken"),
        }
    }

    fn needs_suites(&self, none: &str) -> Reason {
        match self.old {
            Old::Unclear(version) => {
                inconclusive(format!("it is not known whether {version} is spoken"))
            }
            _ => untested(none),
        }
    }

    fn needs_certificates(&self) -> Reason {
        match self.shows_certificates {
            true => inconclusive("no certificate could be read"),
            false => untested("no suite that is taken shows a certificate"),
        }
    }
}

//! Adds a reason for each check without a result, so that no check is missing from a report.
//!
//! A check that does not apply to a server is untested. A check that applies but was not possible is
//! inconclusive.

use super::probe::Prober;
use crate::facts::Answer::{self, Inconclusive, Untested};
use crate::facts::{Facts, TABLE};
use crate::names::{KeyExchange, Suite, Version};
use crate::target::Start;

/// Adds the missing facts.
pub fn give_reasons(facts: &mut Facts, prober: &Prober) {
    let ids = TABLE.iter().flat_map(|entry| match entry.id {
        "suites.<version>" | "preference.<version>" => {
            let key = |version: Version| entry.id.replace("<version>", version.key());
            Version::ALL.into_iter().map(key).collect()
        }
        // Families with variable names contain only accepted items.
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

/// What the reasons depend on.
struct Known {
    web: bool,
    starttls: bool,
    port: u16,
    named: bool,
    /// The evidence, if no version is known to be supported.
    nothing: Option<String>,
    tls1_3: Answer,
    /// From SSL 3.0 to TLS 1.2.
    old: Old,
    shows_certificates: bool,
}

enum Old {
    /// TLS 1.0, 1.1 or 1.2 is supported.
    Tls,
    /// Only SSL 3.0.
    Ssl3,
    /// It is not known whether this version is supported.
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
            "starttls" if !self.starttls => return untested("this port uses implicit TLS"),
            "starttls" => return inconclusive("it was not tested"),
            "http" if !self.web => return untested("this is not an HTTPS port"),
            "http" if id == "http.redirect" && self.port != 443 => {
                return untested("port 80 is tested only along with port 443");
            }
            "http" if self.nothing.is_none() => return untested("the server did not answer HTTP"),
            "sni" if !self.named => return untested("no name was given"),
            _ if id == "certificate.caa" && !self.named => return untested("no name was given"),
            _ if id == "protocol.quic" && !self.web => {
                return untested("QUIC is tested only on ports with implicit TLS");
            }
            _ => {}
        }
        if let Some(evidence) = &self.nothing {
            return inconclusive(evidence.clone());
        }
        match id {
            "groups.quic" => return untested("QUIC is not known to be supported"),
            "groups.tls1_3" | "signatures.tls1_3" | "ech" | "extension.compress_certificate" => {
                return self.needs_tls1_3();
            }
            "preference.groups" => {
                return match facts.list("groups.tls1_3").len() {
                    1 => untested("only one group is accepted"),
                    _ => self.needs_tls1_3(),
                };
            }
            "groups.tls1_2" => return self.needs_suites("no ECDHE suite is accepted"),
            "signatures.tls1_2" => {
                return self.needs_suites("no accepted TLS 1.2 suite signs its key exchange");
            }
            "dh.common_prime" | "dh.safe" => {
                return match facts.answer("dh.bits") {
                    Answer::Yes | Inconclusive => inconclusive("the prime is unknown"),
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
                    Old::Ssl3 => untested("TLS with CBC is not supported"),
                    _ => self.needs_old(),
                };
            }
            _ => {}
        }
        match family {
            "preference" => untested("fewer than two suites are accepted"),
            "certificate" => self.needs_certificates(),
            "session" | "vulnerability" | "renegotiation" | "dh" => self.needs_old(),
            "client_certificate" => inconclusive("no handshake got this far"),
            _ => inconclusive("there was no answer"),
        }
    }

    fn needs_tls1_3(&self) -> Reason {
        match self.tls1_3 {
            Answer::Yes => inconclusive("no TLS 1.3 handshake got this far"),
            Inconclusive => inconclusive("it is not known whether TLS 1.3 is supported"),
            _ => untested("TLS 1.3 is not supported"),
        }
    }

    fn needs_old(&self) -> Reason {
        match self.old {
            Old::Tls => inconclusive("no handshake got this far"),
            Old::Ssl3 => inconclusive("this scanner cannot complete SSL 3.0 handshakes"),
            Old::Unclear(version) => {
                inconclusive(format!("it is not known whether {version} is supported"))
            }
            Old::None => untested("no version from SSL 3.0 to TLS 1.2 is supported"),
        }
    }

    fn needs_suites(&self, none: &str) -> Reason {
        match self.old {
            Old::Unclear(version) => {
                inconclusive(format!("it is not known whether {version} is supported"))
            }
            _ => untested(none),
        }
    }

    fn needs_certificates(&self) -> Reason {
        match self.shows_certificates {
            true => inconclusive("no certificate could be read"),
            false => untested("no accepted suite uses a certificate"),
        }
    }
}

//! The table of rules: each names a problem, the standard that forbids it, and what to change.
//!
//! One rule describes one weakness. It checks one fact, or several if one is not enough. The meaning
//! of an id never changes, because SARIF consumers match findings by it.
//!
//! If standards differ, the stricter one of those that apply to everybody decides: BCP 195 (RFC 8996,
//! RFC 9325 as updated by RFC 10015, RFC 9852), and the RFC that forbids the feature itself.
//! Requirements of one country or sector are in the [profiles](super::Profile).

use std::borrow::Cow;

use super::{Level, Reason, marks};
use crate::Reached;
use crate::certificate::Chain;
use crate::facts::{Answer, Fact, Facts, Value};
use crate::names::{Suite, Version};

/// The input of a judgement.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// How far the scan got.
    pub reached: &'a Reached,
    /// What it found.
    pub facts: &'a Facts,
    /// The certificate chains that the server sent.
    pub chains: &'a [Chain],
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// `ssl3`, `certificate-expired`.
    pub id: &'static str,
    /// The best level of an endpoint that has the problem.
    pub level: Level,
    /// Detects the problem.
    pub test: Test,
    /// The problem, as a statement. Open questions quote it after "whether", see `clause()`.
    pub what: &'static str,
    /// The standard that forbids it, with the section.
    pub standard: &'static str,
    /// What to change.
    pub change: &'static str,
}

/// All problems that these rules find, and the worst of the open questions.
pub(super) fn in_short(rules: &[Rule], seen: &Seen<'_>) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut open: Option<(u8, &Rule, Finding)> = None;
    for rule in rules {
        match rule.test.run(seen) {
            finding @ Finding::Open { .. } => {
                let worst = super::worst_first(rule.level_left_open());
                if open.as_ref().is_none_or(|(before, ..)| worst < *before) {
                    open = Some((worst, rule, finding));
                }
            }
            finding => reasons.extend(rule.reason_of(finding)),
        }
    }
    reasons.extend(open.and_then(|(_, rule, finding)| rule.reason_of(finding)));
    reasons
}

/// Detects a problem.
#[derive(Debug, Clone, Copy)]
pub enum Test {
    /// The fact is yes. It may be untested.
    Yes(&'static str),
    /// The fact is no. It may be untested.
    No(&'static str),
    /// The fact is yes. If it is untested, there is no level.
    MustNot(&'static str),
    /// The fact is no. If it is untested, there is no level.
    Must(&'static str),
    /// Depends on several facts.
    Check(fn(&Seen<'_>) -> Finding),
}

/// The result of a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// No problem.
    Fine,
    /// The endpoint has the problem.
    Wrong {
        /// The fact that shows it.
        fact: Cow<'static, str>,
        /// Which suites, how many bits.
        values: Vec<String>,
    },
    /// The endpoint may have the problem: the fact is inconclusive or untested.
    Open {
        /// The fact that would decide.
        fact: Cow<'static, str>,
        /// Inconclusive or untested.
        answer: Answer,
        /// Why there is no answer.
        evidence: Cow<'static, str>,
    },
}

impl Rule {
    /// The reason for a lower level, if this rule finds one.
    pub fn reason(&self, seen: &Seen<'_>) -> Option<Reason> {
        self.reason_of(self.test.run(seen))
    }

    /// The level if the fact is inconclusive: a possible weakness makes it unknown. A possible flaw that only prevents
    /// `strong` keeps the rule's level.
    fn level_left_open(&self) -> Level {
        match self.level {
            Level::Weak | Level::Plaintext => Level::Unknown,
            level => level,
        }
    }

    fn reason_of(&self, finding: Finding) -> Option<Reason> {
        let reason = |fact, answer, level, what| Reason {
            rule: self.id.into(),
            fact,
            answer,
            level,
            what,
            standard: self.standard.into(),
            change: self.change.into(),
        };
        match finding {
            Finding::Fine => None,
            Finding::Wrong { fact, values } => {
                Some(reason(fact, Answer::Yes, self.level, with(self.what, &values)))
            }
            Finding::Open { fact, answer, evidence } => {
                let what = clause(self.what);
                let what = match (answer, evidence.is_empty()) {
                    (Answer::Untested, _) => format!("Not tested whether {what}"),
                    (_, true) => format!("Could not determine whether {what}"),
                    (_, false) => format!("Could not determine whether {what} ({evidence})"),
                };
                Some(reason(fact, answer, self.level_left_open(), what))
            }
        }
    }
}

/// A statement as part of a sentence: without its capital, unless it begins with an acronym.
fn clause(what: &str) -> String {
    let mut chars = what.chars();
    match (chars.next(), chars.next()) {
        (Some(first), Some(' ' | 'a'..='z')) => {
            format!("{}{}", first.to_ascii_lowercase(), &what[1..])
        }
        _ => what.to_owned(),
    }
}

/// Adds the observed values, as many as fit on a line.
fn with(what: &str, values: &[String]) -> String {
    const MOST: usize = 6;
    match values.len() {
        0 => what.to_owned(),
        n if n > MOST => format!("{what} ({} and {} more)", values[..MOST].join(", "), n - MOST),
        _ => format!("{what} ({})", values.join(", ")),
    }
}

impl Test {
    pub fn run(self, seen: &Seen<'_>) -> Finding {
        let (id, wrong, needed) = match self {
            Self::Check(check) => return check(seen),
            Self::Yes(id) => (id, Answer::Yes, false),
            Self::No(id) => (id, Answer::No, false),
            // Without a TLS handshake, these could not be tested.
            Self::MustNot(id) => (id, Answer::Yes, spoken(seen)),
            Self::Must(id) => (id, Answer::No, spoken(seen)),
        };
        match seen.facts.answer(id) {
            answer if answer == wrong => Finding::wrong(id, values(id, seen.facts.get(id))),
            Answer::Inconclusive => Finding::open(seen, id),
            Answer::Untested if needed => Finding::open(seen, id),
            _ => Finding::Fine,
        }
    }

    /// The fact that it checks, if it is a single one.
    pub fn fact(self) -> Option<&'static str> {
        match self {
            Self::Yes(id) | Self::No(id) | Self::MustNot(id) | Self::Must(id) => Some(id),
            Self::Check(_) => None,
        }
    }
}

impl Finding {
    pub(super) fn wrong(fact: impl Into<Cow<'static, str>>, values: Vec<String>) -> Self {
        Self::Wrong { fact: fact.into(), values }
    }

    /// Open, because this fact is neither yes nor no.
    pub(super) fn open(seen: &Seen<'_>, fact: impl Into<Cow<'static, str>>) -> Self {
        let fact = fact.into();
        let found = seen.facts.get(&fact);
        Self::Open {
            answer: found.map_or(Answer::Untested, |fact| fact.answer),
            evidence: found.map(|fact| fact.evidence.clone()).unwrap_or_default(),
            fact,
        }
    }

    /// Wrong if there are any values.
    pub(super) fn any(fact: impl Into<Cow<'static, str>>, values: Vec<String>) -> Self {
        if values.is_empty() { Self::Fine } else { Self::wrong(fact, values) }
    }
}

fn values(id: &str, fact: Option<&Fact>) -> Vec<String> {
    match fact.and_then(|fact| fact.value.as_ref()) {
        None => Vec::new(),
        Some(Value::Number(n)) if id == "session.early_data" => vec![format!("{n} bytes")],
        Some(Value::Number(n)) => vec![n.to_string()],
        Some(Value::Text(text)) => vec![text.clone()],
        Some(Value::List(names)) => names.clone(),
    }
}

/// Whether the endpoint supports TLS or SSL.
pub(super) fn spoken(seen: &Seen<'_>) -> bool {
    *seen.reached == Reached::Tls
}

macro_rules! rules {
    ($($id:literal $level:ident if $test:expr => $what:literal, $standard:literal, $change:literal;)*) => {
        /// All rules, the worst of each level first.
        pub const RULES: &[Rule] = {
            use Test::*;
            &[$(Rule {
                id: $id,
                level: Level::$level,
                test: $test,
                what: $what,
                standard: $standard,
                change: $change,
            },)*]
        };
    };
}

rules! {
    "plaintext" Plaintext if Check(plaintext)
        => "Traffic on this port is not encrypted",
        "RFC 9325 section 3.2; RFC 7258 section 2",
        "Turn on TLS, or put a relay that encrypts in front of the port; then close the plaintext port";
    "starttls-stripped" Plaintext if Yes("starttls.stripped")
        => "The STARTTLS offer is removed on the way",
        "RFC 7457 section 2.2; RFC 9325 section 3.2",
        "Find the device that changes the connection; use a port with implicit TLS (RFC 8314)";
    "unreachable" Weak if Check(unreachable)
        => "This port is unencrypted or weakly encrypted",
        "no standard: nothing was observed",
        "Scan again from a host that can reach it; on a non-standard port, name the protocol: PROTOCOL://HOST:PORT";

    "name-wanted" Weak if Check(name_wanted)
        => "The server is weak for a host name that it serves",
        "RFC 6066 section 3",
        "Scan a host name that the server serves: wiretight scan NAME --ip ADDRESS";
    "inconsistent" Weak if Check(inconsistent)
        => "Some of the servers behind this address are weak",
        "no standard: answers to the same question differ",
        "Scan each server behind the load balancer by its own address (--ip), or have the balancer send the scan to one server";

    "ssl2" Weak if MustNot("protocol.ssl2")
        => "SSL 2.0 is supported",
        "RFC 6176 section 3; RFC 9325 section 3.1.1",
        "Turn off SSL 2.0";
    "ssl3" Weak if MustNot("protocol.ssl3")
        => "SSL 3.0 is supported",
        "RFC 7568 section 3; RFC 9325 section 3.1.1",
        "Turn off SSL 3.0";
    "tls1_0" Weak if MustNot("protocol.tls1_0")
        => "TLS 1.0 is supported",
        "RFC 8996 section 4; RFC 9325 section 3.1.1",
        "Turn off TLS 1.0";
    "tls1_1" Weak if MustNot("protocol.tls1_1")
        => "TLS 1.1 is supported",
        "RFC 8996 section 5; RFC 9325 section 3.1.1",
        "Turn off TLS 1.1";
    "versions" Weak if Check(versions)
        => "Neither TLS 1.2 nor TLS 1.3 is supported",
        "RFC 9325 section 3.1.1",
        "Turn on TLS 1.3 and TLS 1.2";
    "suites-not-told" Weak if Check(suites_told)
        => "A weak cipher suite is accepted",
        "RFC 9325 section 4.1",
        "Scan again, more slowly (--rate)";

    "null" Weak if Yes("weak.null")
        => "Cipher suites without encryption are accepted",
        "RFC 9325 section 4.1",
        "Remove NULL suites (eNULL) from the server's cipher list";
    "anonymous" Weak if Yes("weak.anonymous")
        => "Cipher suites without authentication are accepted: anyone on the path can impersonate the server",
        "RFC 5246 appendix A.5; RFC 10015 section 2",
        "Remove anonymous suites (aNULL) from the server's cipher list";
    "export" Weak if Yes("weak.export")
        => "Export cipher suites are accepted",
        "RFC 9325 section 4.1",
        "Remove EXPORT suites from the server's cipher list";
    "rc4" Weak if Yes("weak.rc4")
        => "RC4 is accepted",
        "RFC 7465 section 2; RFC 9325 section 4.1",
        "Remove RC4 from the server's cipher list";
    "des" Weak if Yes("weak.des")
        => "Single DES or RC2 is accepted",
        "RFC 9325 section 4.1",
        "Remove DES and RC2 from the server's cipher list";
    "static-rsa" Weak if Yes("weak.static_rsa")
        => "RSA key transport is accepted: anyone who obtains the server's key can decrypt recorded traffic",
        "RFC 10015 section 4",
        "Remove suites that begin with TLS_RSA_ (kRSA) from the server's cipher list";
    "static-dh" Weak if Yes("weak.static_dh")
        => "Static Diffie-Hellman is accepted: anyone who obtains the server's key can decrypt recorded traffic",
        "RFC 10015 section 2",
        "Remove TLS_DH_ and TLS_ECDH_ suites from the server's cipher list";
    "dhe" Weak if Check(dhe)
        => "Finite-field Diffie-Hellman is accepted before TLS 1.3",
        "RFC 10015 section 3",
        "Remove TLS_DHE_ suites (kDHE) from the server's cipher list; keep ECDHE";
    "no-forward-secrecy" Weak if No("forward_secrecy.any")
        => "No accepted cipher suite provides forward secrecy",
        "RFC 9325 section 4.1",
        "Turn on TLS 1.3, or ECDHE suites";
    "dh-short" Weak if Check(dh_short)
        => "The Diffie-Hellman prime is too short or unsafe",
        "RFC 9325 section 4.5",
        "Use a group from RFC 7919, or better, turn off finite-field Diffie-Hellman";
    "curves" Weak if Check(curves)
        => "Curves shorter than 224 bits are accepted",
        "RFC 9325 section 4.5",
        "Allow only x25519, secp256r1 and secp384r1 in the server's list of curves";
    "signature-hash" Weak if Check(signature_hash)
        => "Key exchanges are signed with MD5 or SHA-1",
        "RFC 9155 section 4; RFC 9325 section 4.5",
        "Remove MD5 and SHA-1 from the server's signature schemes";
    "compression" Weak if Yes("compression")
        => "TLS compression is accepted",
        "RFC 9325 section 3.3; RFC 7457 section 2.6",
        "Turn off TLS compression";
    "renegotiation" Weak if No("renegotiation.secure")
        => "Secure renegotiation is not signalled",
        "RFC 5746 section 3.6; RFC 9325 section 3.5",
        "Update the TLS library";
    "extended-master-secret" Weak if Check(extended_master_secret)
        => "TLS 1.2 lacks the extended master secret",
        "RFC 9325 section 3.5; RFC 7627 section 5.2",
        "Update the TLS library, or turn off TLS 1.2";

    "certificate-untrusted" Weak if Check(untrusted)
        => "The certificate does not chain to a trusted authority",
        "RFC 5280 section 6",
        "Use a certificate from an authority that clients trust; for a private authority, pass its root with --roots";
    "certificate-name" Weak if Check(wrong_name)
        => "The certificate does not match the host name",
        "RFC 9525 section 6",
        "Get a certificate that lists this name as a subject alternative name";
    "certificate-validity" Weak if Check(validity)
        => "The certificate is not currently valid",
        "RFC 5280 section 6.1.3",
        "Renew the certificate, and automate its renewal";
    "certificate-signature" Weak if Yes("certificate.weak_signature")
        => "A certificate is signed with a broken hash",
        "RFC 9325 section 4.5; CA/Browser Forum Baseline Requirements section 7.1.3.2",
        "Have it reissued with a SHA-256 or stronger signature";
    "certificate-key" Weak if Check(short_key)
        => "A certificate's key is too short",
        "RFC 9325 section 4.5; NIST SP 800-57 part 1 section 5.6",
        "Generate a new key: ECDSA P-256, or RSA with at least 2048 bits";
    "certificate-usage" Weak if No("certificate.key_usage")
        => "The certificate is not allowed for TLS servers",
        "RFC 5280 section 4.2.1.12; CA/Browser Forum Baseline Requirements section 7.1.2.7.10",
        "Have it reissued with serverAuth in its extended key usage";
    "certificate-ocsp" Weak if No("certificate.ocsp_good")
        => "The stapled OCSP response does not report the certificate as good",
        "RFC 6960 section 3.2; RFC 9325 section 7.5",
        "If the certificate is revoked, replace it; if the response is outdated, repair the job that fetches it";

    "heartbleed" Weak if Yes("vulnerability.heartbleed")
        => "The server is vulnerable to Heartbleed: any client can read its memory",
        "CVE-2014-0160; RFC 7457 section 2.14",
        "Update OpenSSL; then replace the keys and revoke the certificates, because the keys may have leaked";
    "ccs-injection" Weak if Yes("vulnerability.ccs_injection")
        => "The server is vulnerable to CCS injection: it accepts ChangeCipherSpec before keys exist",
        "CVE-2014-0224",
        "Update OpenSSL";
    "ticketbleed" Weak if Yes("vulnerability.ticketbleed")
        => "The server is vulnerable to Ticketbleed: it leaks memory in session IDs",
        "CVE-2016-9244",
        "Update the load balancer, or turn off its session tickets";
    "robot" Weak if Yes("vulnerability.robot")
        => "The server is vulnerable to ROBOT: it reveals whether RSA padding is valid",
        "CVE-2017-13099; RFC 5246 section 7.4.7.1",
        "Remove suites that begin with TLS_RSA_ from the server's cipher list; update the TLS library";
    "drown" Weak if Yes("vulnerability.drown")
        => "The server is vulnerable to DROWN: SSL 2.0 is supported with this key",
        "CVE-2016-0800; RFC 6176 section 3",
        "Turn off SSL 2.0 wherever this key is used";
    "poodle-ssl" Weak if Yes("vulnerability.poodle_ssl")
        => "The server is vulnerable to POODLE: it accepts SSL 3.0 with CBC",
        "CVE-2014-3566; RFC 7568 section 4.1",
        "Turn off SSL 3.0";
    "poodle-tls" Weak if Yes("vulnerability.poodle_tls")
        => "The server is vulnerable to POODLE in TLS: it does not check the padding of CBC records",
        "CVE-2014-8730; RFC 7457 section 2.4",
        "Update the TLS library or the load balancer; remove CBC suites from the server's cipher list";
    "freak" Weak if Yes("vulnerability.freak")
        => "The server is vulnerable to FREAK: it accepts RSA export suites",
        "CVE-2015-0204; RFC 9325 section 4.1",
        "Remove EXPORT suites from the server's cipher list";
    "logjam" Weak if Yes("vulnerability.logjam")
        => "The server is vulnerable to Logjam: its Diffie-Hellman prime can be broken",
        "CVE-2015-4000; RFC 9325 section 4.5",
        "Remove DHE suites from the server's cipher list";
    "sweet32" Weak if Yes("vulnerability.sweet32")
        => "The server is vulnerable to SWEET32: it accepts a cipher with 64-bit blocks, such as 3DES",
        "CVE-2016-2183; NIST SP 800-131A Rev. 2 section 2",
        "Remove 3DES and IDEA from the server's cipher list";
    "crime" Weak if Yes("vulnerability.crime")
        => "The server is vulnerable to CRIME: it accepts TLS compression",
        "CVE-2012-4929; RFC 7457 section 2.6",
        "Turn off TLS compression";
    "beast" Weak if Yes("vulnerability.beast")
        => "The server is vulnerable to BEAST: it accepts CBC with TLS 1.0 or earlier",
        "CVE-2011-3389; RFC 7457 section 2.3",
        "Turn off TLS 1.0 and SSL";
    "rc4-biases" Weak if Yes("vulnerability.rc4")
        => "RC4 is accepted: its biases reveal plaintext",
        "CVE-2013-2566; CVE-2015-2808; RFC 7457 section 2.5",
        "Remove RC4 from the server's cipher list";
    "roca" Weak if Yes("vulnerability.roca")
        => "The RSA key is vulnerable to ROCA: it can be factored",
        "CVE-2017-15361",
        "Generate a new key outside the affected chip, and revoke the certificate";
    "insecure-renegotiation" Weak if Yes("vulnerability.insecure_renegotiation")
        => "Renegotiation lets an attacker on the path insert data before the client's",
        "CVE-2009-3555; RFC 7457 section 2.10",
        "Update the TLS library, or turn off renegotiation";
    "starttls-injection" Weak if Yes("starttls.injection")
        => "Plaintext commands sent after STARTTLS are answered inside TLS",
        "CVE-2011-0411; RFC 7457 section 2.2",
        "Update the server: it must discard data received before the handshake";

    "no-tls1_3" Acceptable if Must("protocol.tls1_3")
        => "TLS 1.3 is not supported",
        "RFC 9325 section 3.1.1; NIST SP 800-52 Rev. 2 section 3.1",
        "Turn on TLS 1.3";
    "no-post-quantum" Acceptable if Check(post_quantum)
        => "No post-quantum key exchange is accepted: a future quantum computer could decrypt traffic recorded today",
        "RFC 10024 section 1; NIST IR 8547 (draft) section 4",
        "Put X25519MLKEM768 first in the server's list of groups (OpenSSL 3.5, Go 1.24 and rustls have it)";
    "cbc" Acceptable if Yes("weak.cbc")
        => "CBC suites are accepted",
        "RFC 9325 section 4.2",
        "Allow only GCM and ChaCha20-Poly1305 suites in the server's cipher list";
    "lucky13" Acceptable if Yes("vulnerability.lucky13")
        => "The server is exposed to Lucky 13: it accepts CBC suites with MAC-then-encrypt",
        "CVE-2013-0169; RFC 7457 section 2.4",
        "Allow only GCM and ChaCha20-Poly1305 suites in the server's cipher list";
    "suites-not-modern" Acceptable if Check(not_modern)
        => "Suites without ECDHE or without AEAD are accepted",
        "RFC 9325 section 4.2",
        "Allow only ECDHE suites with GCM or ChaCha20-Poly1305 in the server's cipher list";
    "psk-without-dhe" Acceptable if Yes("session.psk_without_dhe")
        => "Sessions are resumed without forward secrecy (psk_ke)",
        "RFC 9325 section 3.4; RFC 9846 section 4.3.9",
        "Allow only psk_dhe_ke";
    "early-data" Acceptable if Yes("session.early_data")
        => "0-RTT data is accepted, which can be replayed",
        "RFC 9325 section 3.10; RFC 9846 section 8",
        "Turn off early data, unless the application tolerates replays";
    "client-renegotiation" Acceptable if Yes("renegotiation.by_client")
        => "Clients may renegotiate, which costs the server more than the client",
        "RFC 7457 section 2.13; CVE-2011-1473",
        "Turn off client-initiated renegotiation";
    "certificate-incomplete" Acceptable if No("certificate.complete")
        => "An intermediate certificate is missing: clients that do not fetch it reject the chain",
        "RFC 5246 section 7.4.2; RFC 9846 section 4.5.1",
        "Send the whole chain, without the root (fullchain.pem)";
    "certificate-order" Acceptable if No("certificate.ordered")
        => "The certificates of a chain are not in order",
        "RFC 5246 section 7.4.2; RFC 9846 section 4.5.1",
        "Send the leaf first, and after each certificate the one that signed it";
    "certificate-revocation" Acceptable if No("certificate.revocation")
        => "The certificate does not say where to check its revocation",
        "RFC 9325 section 7.5; CA/Browser Forum Baseline Requirements section 1.6.1",
        "Use certificates that are valid for at most seven days, or that name a CRL";
    "certificate-lifetime" Acceptable if Check(long_lived)
        => "The certificate is valid for longer than public authorities may issue",
        "CA/Browser Forum Baseline Requirements section 6.3.2",
        "Use certificates valid for at most 90 days, and automate their renewal";
    "must-staple" Acceptable if Check(must_staple)
        => "The certificate requires a stapled OCSP response, but the server sends none",
        "RFC 7633 section 4.2.3",
        "Turn on OCSP stapling, or have the certificate reissued without must-staple";
    "hsts" Acceptable if No("http.hsts")
        => "HTTP Strict Transport Security is not set: an attacker can keep a first plaintext visit unencrypted",
        "RFC 9325 section 3.2; RFC 6797 section 7.1",
        "Send `Strict-Transport-Security: max-age=63072000` in each response";
}

// ---- Checks of several facts.

fn plaintext(seen: &Seen<'_>) -> Finding {
    match seen.reached {
        Reached::Plaintext { evidence } => Finding::wrong("plaintext", vec![evidence.clone()]),
        _ if seen.facts.yes("plaintext") => Finding::wrong("plaintext", Vec::new()),
        _ => Finding::Fine,
    }
}

fn unreachable(seen: &Seen<'_>) -> Finding {
    match seen.reached {
        Reached::Unknown { evidence } | Reached::Unreachable { evidence } => Finding::Open {
            fact: "plaintext".into(),
            answer: Answer::Inconclusive,
            evidence: evidence.clone().into(),
        },
        _ => Finding::Fine,
    }
}

/// Every ClientHello was rejected. With a host name that the server knows, the result may differ.
fn name_wanted(seen: &Seen<'_>) -> Finding {
    let version = |version: &Version| seen.facts.yes(&format!("protocol.{}", version.key()));
    match seen.facts.get("sni.required") {
        Some(fact)
            if spoken(seen)
                && matches!(fact.answer, Answer::Yes | Answer::Inconclusive)
                && !Version::ALL.iter().any(version) =>
        {
            Finding::Open {
                fact: "sni.required".into(),
                answer: Answer::Inconclusive,
                evidence: fact.evidence.clone(),
            }
        }
        _ => Finding::Fine,
    }
}

/// Several servers share the address: what one rejected, another may accept.
fn inconsistent(seen: &Seen<'_>) -> Finding {
    let id = "consistent";
    match seen.facts.answer(id) {
        Answer::No => Finding::Open {
            fact: id.into(),
            answer: Answer::Inconclusive,
            evidence: values(id, seen.facts.get(id)).join("; ").into(),
        },
        _ => Finding::Fine,
    }
}

fn versions(seen: &Seen<'_>) -> Finding {
    let answers = ["protocol.tls1_2", "protocol.tls1_3"].map(|id| (id, seen.facts.answer(id)));
    if !spoken(seen) || answers.iter().any(|(_, answer)| *answer == Answer::Yes) {
        return Finding::Fine;
    }
    match answers.iter().find(|(_, answer)| *answer != Answer::No) {
        Some((id, _)) => Finding::open(seen, *id),
        None => Finding::wrong("protocol.tls1_2", Vec::new()),
    }
}

/// All suites of each supported version must have been tested.
fn suites_told(seen: &Seen<'_>) -> Finding {
    for version in Version::ALL {
        let id = format!("suites.{}", version.key());
        let told = matches!(seen.facts.answer(&id), Answer::Yes | Answer::No);
        if seen.facts.yes(&format!("protocol.{}", version.key())) && !told {
            return Finding::open(seen, id);
        }
    }
    Finding::Fine
}

/// The suites that are accepted before TLS 1.3.
pub(super) fn old_suites<'a>(seen: &Seen<'a>) -> impl Iterator<Item = Suite> + use<'a> {
    let old = seen.facts.iter().filter_map(|(id, fact)| {
        let (version, name) = id.strip_prefix("suite.")?.split_once('.')?;
        (fact.answer == Answer::Yes && version != Version::Tls1_3.key()).then_some(name)
    });
    old.filter_map(Suite::from_name)
}

pub(super) fn named(suites: impl Iterator<Item = Suite>) -> Vec<String> {
    let mut names: Vec<_> = suites.map(|suite| suite.name.to_owned()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn dhe(seen: &Seen<'_>) -> Finding {
    let named = named(old_suites(seen).filter(|suite| marks::is_dhe(*suite)));
    Finding::any(family(seen, "suites"), named)
}

/// Suites that have no rule of their own: SRP, Kerberos, plain PSK, GOST with a MAC.
fn not_modern(seen: &Seen<'_>) -> Finding {
    let odd = old_suites(seen)
        .filter(|suite| marks::suite(suite.name) == Level::Acceptable && !suite.is_cbc());
    Finding::any(family(seen, "suites"), named(odd))
}

/// The fact about the newest supported version before TLS 1.3.
fn family(seen: &Seen<'_>, what: &str) -> String {
    let mut old = Version::ALL.into_iter().rev().skip(1);
    let spoken = old.find(|v| seen.facts.yes(&format!("protocol.{}", v.key())));
    format!("{what}.{}", spoken.unwrap_or(Version::Tls1_2).key())
}

fn dh_short(seen: &Seen<'_>) -> Finding {
    match (seen.facts.number("dh.bits"), seen.facts.answer("dh.safe")) {
        (Some(bits), _) if bits < 2048 => Finding::wrong("dh.bits", vec![format!("{bits} bits")]),
        (bits, Answer::No) => {
            Finding::wrong("dh.safe", bits.iter().map(|bits| format!("{bits} bits")).collect())
        }
        (_, Answer::Inconclusive) => Finding::open(seen, "dh.safe"),
        _ if seen.facts.answer("dh.bits") == Answer::Inconclusive => Finding::open(seen, "dh.bits"),
        _ => Finding::Fine,
    }
}

fn curves(seen: &Seen<'_>) -> Finding {
    for id in ["groups.tls1_2", "groups.tls1_3"] {
        let weak = seen.facts.list(id).iter().filter(|name| marks::group(name) == Level::Weak);
        let weak: Vec<String> = weak.cloned().collect();
        if !weak.is_empty() {
            return Finding::wrong(id, weak);
        }
    }
    match seen.facts.answer("groups.tls1_2") {
        Answer::Inconclusive => Finding::open(seen, "groups.tls1_2"),
        _ => Finding::Fine,
    }
}

fn signature_hash(seen: &Seen<'_>) -> Finding {
    let id = "signatures.tls1_2";
    let weak = seen.facts.list(id).iter().filter(|name| marks::signature(name) == Level::Weak);
    match (weak.cloned().collect::<Vec<_>>(), seen.facts.answer(id)) {
        (weak, _) if !weak.is_empty() => Finding::wrong(id, weak),
        (_, Answer::Inconclusive) => Finding::open(seen, id),
        _ => Finding::Fine,
    }
}

fn extended_master_secret(seen: &Seen<'_>) -> Finding {
    // TLS 1.3 always binds its keys to the handshake, and does not have this extension.
    match seen.facts.yes("protocol.tls1_2") {
        true => Test::No("extension.extended_master_secret").run(seen),
        false => Finding::Fine,
    }
}

/// A chain is trusted if it chains to the given store or to the mesh's trust bundle. One is enough,
/// because private authorities are not in public stores.
fn untrusted(seen: &Seen<'_>) -> Finding {
    let stores = ["certificate.trusted", "certificate.trusted_by_mesh"];
    let answers = stores.map(|id| seen.facts.answer(id));
    if !spoken(seen) || answers.contains(&Answer::Yes) {
        return Finding::Fine;
    }
    if let Some(at) = answers.iter().position(|answer| *answer == Answer::Inconclusive) {
        return Finding::open(seen, stores[at]);
    }
    match answers.iter().position(|answer| *answer == Answer::No) {
        Some(at) => {
            let why = seen.facts.get(stores[at]).map(|fact| fact.evidence.clone());
            let own = seen.facts.yes("certificate.self_signed");
            let own = own.then(|| "self-signed".to_owned());
            let why = own.or(why.filter(|why| !why.is_empty()).map(Cow::into_owned));
            Finding::wrong(stores[at], why.into_iter().collect())
        }
        None => Finding::open(seen, stores[0]),
    }
}

fn wrong_name(seen: &Seen<'_>) -> Finding {
    let id = "certificate.name";
    match seen.facts.answer(id) {
        // Certificates of the mesh contain a SPIFFE ID and no host name.
        _ if seen.facts.yes("certificate.trusted_by_mesh") => Finding::Fine,
        Answer::No => {
            let names = seen.chains.iter().filter_map(|chain| chain.certificates.first());
            Finding::wrong(id, names.flat_map(|leaf| leaf.names.clone()).collect())
        }
        _ => Test::Must(id).run(seen),
    }
}

fn validity(seen: &Seen<'_>) -> Finding {
    let id = "certificate.valid";
    match (seen.facts.answer(id), seen.facts.get(id)) {
        (Answer::No, Some(fact)) if !fact.evidence.is_empty() => {
            Finding::wrong(id, vec![fact.evidence.to_string()])
        }
        (Answer::No, _) => Finding::wrong(id, Vec::new()),
        _ => Test::Must(id).run(seen),
    }
}

fn short_key(seen: &Seen<'_>) -> Finding {
    let id = "certificate.keys";
    let short: Vec<_> =
        seen.facts.list(id).iter().filter(|key| marks::is_short(key)).cloned().collect();
    match seen.facts.answer(id) {
        _ if !short.is_empty() => Finding::wrong(id, short),
        Answer::Inconclusive => Finding::open(seen, id),
        _ => {
            // The certificates that sign the leaf must not be weaker than it.
            let above = seen.chains.iter().flat_map(|chain| chain.certificates.iter().skip(1));
            let short = above.filter(|above| !above.superfluous && marks::is_short(&above.key));
            let short: Vec<_> = short.map(|c| format!("{} of {}", c.key, c.subject)).collect();
            Finding::any("certificate.key_bits", short)
        }
    }
}

fn post_quantum(seen: &Seen<'_>) -> Finding {
    let id = "post_quantum";
    match seen.facts.answer(id) {
        // Older versions have no post-quantum groups.
        Answer::Untested if seen.facts.answer("protocol.tls1_3") == Answer::No => {
            Finding::wrong("protocol.tls1_3", Vec::new())
        }
        Answer::Yes => {
            let names = seen.facts.list(id);
            // Drafts of Kyber do not count. A fact without names is accepted as it is.
            match names.is_empty() || names.iter().any(|n| marks::group(n) == Level::Strong) {
                true => Finding::Fine,
                false => Finding::wrong(id, names.to_vec()),
            }
        }
        _ => Test::Must(id).run(seen),
    }
}

/// The CA/Browser Forum's limit applies to public authorities only. An untrusted chain has a rule of
/// its own.
fn long_lived(seen: &Seen<'_>) -> Finding {
    match seen.facts.yes("certificate.trusted") && !seen.facts.yes("certificate.trusted_by_mesh") {
        true => Test::No("certificate.lifetime").run(seen),
        false => Finding::Fine,
    }
}

fn must_staple(seen: &Seen<'_>) -> Finding {
    match seen.facts.yes("certificate.must_staple") {
        true => Test::No("certificate.ocsp_stapled").run(seen),
        false => Finding::Fine,
    }
}

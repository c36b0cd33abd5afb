//! The table of rules: what is wrong with an endpoint, who says so, and what to change.
//!
//! One rule, one weakness. A rule asks for one fact, or looks at several where one does not say it.
//! Its id never changes its meaning, for SARIF's readers know a finding again by it.
//!
//! Where standards differ, the one that demands more of the two that apply to everybody decides:
//! BCP 195 (RFC 8996, RFC 9325 as RFC 10015 updates it, RFC 9852), and the RFC that forbids the
//! thing itself. What holds in a part of the world alone is in the [profiles](super::Profile).

use std::borrow::Cow;

use super::{Level, Reason, marks};
use crate::Reached;
use crate::certificate::Chain;
use crate::facts::{Answer, Fact, Facts, Value};
use crate::names::{Suite, Version};

/// What a judgement is made from.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// How far the scan came.
    pub reached: &'a Reached,
    /// What it found.
    pub facts: &'a Facts,
    /// The chains that were shown.
    pub chains: &'a [Chain],
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// `ssl3`, `certificate-expired`.
    pub id: &'static str,
    /// The best level that it leaves.
    pub level: Level,
    /// When it is wrong.
    pub test: Test,
    /// What is wrong, as a statement.
    pub what: &'static str,
    /// The standard that says so, with its section.
    pub standard: &'static str,
    /// What to change.
    pub change: &'static str,
}

/// What is wrong by any of these rules, and of what may be, the worst alone.
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

/// When something is wrong.
#[derive(Debug, Clone, Copy)]
pub enum Test {
    /// When this is so; it need not have been asked.
    Yes(&'static str),
    /// When this is not so; it need not have been asked.
    No(&'static str),
    /// When this is so, and no level is given without an answer.
    MustNot(&'static str),
    /// When this is not so, and no level is given without an answer.
    Must(&'static str),
    /// What it takes more than one fact to say.
    Check(fn(&Seen<'_>) -> Finding),
}

/// What a test found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Nothing.
    Fine,
    /// It is wrong.
    Wrong {
        /// The fact that says so.
        fact: Cow<'static, str>,
        /// Which suites, how many bits.
        values: Vec<String>,
    },
    /// It may be wrong: the question was asked in vain, or not at all.
    Open {
        /// The fact that would say so.
        fact: Cow<'static, str>,
        /// Inconclusive or untested.
        answer: Answer,
        /// Why there is no answer.
        evidence: Cow<'static, str>,
    },
}

impl Rule {
    /// What this rule has to say.
    pub fn reason(&self, seen: &Seen<'_>) -> Option<Reason> {
        self.reason_of(self.test.run(seen))
    }

    /// The level that it leaves where it may be wrong, and nobody can tell: what may be weak may be
    /// anything; what may be less than strong is at least that.
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
                let what = match (answer, evidence.is_empty()) {
                    (Answer::Untested, _) => format!("Nobody asked whether: {}", self.what),
                    (_, true) => format!("It could not be told whether: {}", self.what),
                    (_, false) => {
                        format!("It could not be told whether: {} ({evidence})", self.what)
                    }
                };
                Some(reason(fact, answer, self.level_left_open(), what))
            }
        }
    }
}

/// With the values that were seen, as many as a line holds.
fn with(what: &str, values: &[String]) -> String {
    const MOST: usize = 6;
    match values.len() {
        0 => what.to_owned(),
        n if n > MOST => format!("{what} ({} and {} more)", values[..MOST].join(", "), n - MOST),
        _ => format!("{what} ({})", values.join(", ")),
    }
}

impl Test {
    /// Asks.
    pub fn run(self, seen: &Seen<'_>) -> Finding {
        let (id, wrong, needed) = match self {
            Self::Check(check) => return check(seen),
            Self::Yes(id) => (id, Answer::Yes, false),
            Self::No(id) => (id, Answer::No, false),
            // Without a TLS handshake there is nothing that these could be asked of.
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

    /// The fact that it asks for, where it is one.
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

    /// That a fact which is neither yes nor no would have to say.
    pub(super) fn open(seen: &Seen<'_>, fact: impl Into<Cow<'static, str>>) -> Self {
        let fact = fact.into();
        let found = seen.facts.get(&fact);
        Self::Open {
            answer: found.map_or(Answer::Untested, |fact| fact.answer),
            evidence: found.map(|fact| fact.evidence.clone()).unwrap_or_default(),
            fact,
        }
    }

    /// Wrong if there are such values.
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

/// Whether TLS or SSL is spoken.
pub(super) fn spoken(seen: &Seen<'_>) -> bool {
    *seen.reached == Reached::Tls
}

macro_rules! rules {
    ($($id:literal $level:ident if $test:expr => $what:literal, $standard:literal, $change:literal;)*) => {
        /// All rules; in each level, the worst come first.
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
        => "What goes over this port is not encrypted",
        "RFC 9325 section 3.2; RFC 7258 section 2",
        "Turn on TLS, or put a relay in front of the port that does; then close the port in the clear";
    "starttls-stripped" Plaintext if Yes("starttls.stripped")
        => "The offer of STARTTLS is taken out on the way",
        "RFC 7457 section 2.2; RFC 9325 section 3.2",
        "Find what changes the connection on the way; use a port with TLS from the first byte (RFC 8314)";
    "unreachable" Weak if Check(unreachable)
        => "What goes over this port is encrypted badly, or not at all",
        "no standard: nothing was seen",
        "Scan again from where it can be reached; name the protocol before the host if it is a strange one";

    "name-wanted" Weak if Check(name_wanted)
        => "The server is weak when it is asked by a name that it serves",
        "RFC 6066 section 3",
        "Scan it by a name that it serves: wiretight scan NAME --ip ADDRESS";
    "inconsistent" Weak if Check(inconsistent)
        => "Some of the servers that share this address are weak",
        "no standard: answers to the same question differ",
        "Scan each server behind the balancer by its own address (--ip), or have the balancer send the scan to one";

    "ssl2" Weak if MustNot("protocol.ssl2")
        => "SSL 2.0 is spoken",
        "RFC 6176 section 3; RFC 9325 section 3.1.1",
        "Turn off SSL 2.0";
    "ssl3" Weak if MustNot("protocol.ssl3")
        => "SSL 3.0 is spoken",
        "RFC 7568 section 3; RFC 9325 section 3.1.1",
        "Turn off SSL 3.0";
    "tls1_0" Weak if MustNot("protocol.tls1_0")
        => "TLS 1.0 is spoken",
        "RFC 8996 section 4; RFC 9325 section 3.1.1",
        "Turn off TLS 1.0";
    "tls1_1" Weak if MustNot("protocol.tls1_1")
        => "TLS 1.1 is spoken",
        "RFC 8996 section 5; RFC 9325 section 3.1.1",
        "Turn off TLS 1.1";
    "versions" Weak if Check(versions)
        => "Neither TLS 1.2 nor TLS 1.3 is spoken",
        "RFC 9325 section 3.1.1",
        "Turn on TLS 1.3 and TLS 1.2";
    "suites-not-told" Weak if Check(suites_told)
        => "Some cipher suite is weak",
        "RFC 9325 section 4.1",
        "Scan again, more slowly";

    "null" Weak if Yes("weak.null")
        => "Suites without encryption are taken",
        "RFC 9325 section 4.1",
        "Take NULL suites (eNULL) out of the server's list";
    "anonymous" Weak if Yes("weak.anonymous")
        => "Suites without authentication are taken: whoever is between can be the server",
        "RFC 5246 appendix A.5; RFC 10015 section 2",
        "Take anonymous suites (aNULL) out of the server's list";
    "export" Weak if Yes("weak.export")
        => "Export suites are taken",
        "RFC 9325 section 4.1",
        "Take EXPORT suites out of the server's list";
    "rc4" Weak if Yes("weak.rc4")
        => "RC4 is taken",
        "RFC 7465 section 2; RFC 9325 section 4.1",
        "Take RC4 out of the server's list";
    "des" Weak if Yes("weak.des")
        => "Single DES or RC2 is taken",
        "RFC 9325 section 4.1",
        "Take DES and RC2 out of the server's list";
    "static-rsa" Weak if Yes("weak.static_rsa")
        => "RSA key transport is taken: who gets the key reads all that was recorded",
        "RFC 10015 section 4",
        "Take suites that begin with TLS_RSA_ (kRSA) out of the server's list";
    "static-dh" Weak if Yes("weak.static_dh")
        => "Static Diffie-Hellman is taken: who gets the key reads all that was recorded",
        "RFC 10015 section 2",
        "Take TLS_DH_ and TLS_ECDH_ suites out of the server's list";
    "dhe" Weak if Check(dhe)
        => "Diffie-Hellman in a finite field is taken before TLS 1.3",
        "RFC 10015 section 3",
        "Take TLS_DHE_ suites (kDHE) out of the server's list; ECDHE stays";
    "no-forward-secrecy" Weak if No("forward_secrecy.any")
        => "No suite that is taken gives forward secrecy",
        "RFC 9325 section 4.1",
        "Turn on TLS 1.3, or ECDHE suites";
    "dh-short" Weak if Check(dh_short)
        => "The prime of Diffie-Hellman is too short or unsafe",
        "RFC 9325 section 4.5",
        "Use a group of RFC 7919, or better no finite field at all";
    "curves" Weak if Check(curves)
        => "Curves of less than 224 bits are taken",
        "RFC 9325 section 4.5",
        "Leave x25519, secp256r1 and secp384r1 in the server's list of curves";
    "signature-hash" Weak if Check(signature_hash)
        => "Key exchanges are signed with MD5 or SHA-1",
        "RFC 9155 section 4; RFC 9325 section 4.5",
        "Take MD5 and SHA-1 out of the server's signature schemes";
    "compression" Weak if Yes("compression")
        => "TLS compression is taken",
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
        => "The certificate leads to no authority that is trusted",
        "RFC 5280 section 6",
        "Use a certificate of an authority that clients trust; for a private one, give its root to the scan (--roots)";
    "certificate-name" Weak if Check(wrong_name)
        => "The certificate is for another name",
        "RFC 9525 section 6",
        "Get a certificate with this name among its subject alternative names";
    "certificate-validity" Weak if Check(validity)
        => "The certificate is not valid now",
        "RFC 5280 section 6.1.3",
        "Renew the certificate, and have a program do it from now on";
    "certificate-signature" Weak if Yes("certificate.weak_signature")
        => "A certificate is signed with a broken hash",
        "RFC 9325 section 4.5; CA/Browser Forum Baseline Requirements section 7.1.3.2",
        "Have it issued anew, signed with SHA-256 or better";
    "certificate-key" Weak if Check(short_key)
        => "The key of a certificate is too short",
        "RFC 9325 section 4.5; NIST SP 800-57 part 1 section 5.6",
        "Make a new key: ECDSA P-256, or RSA with 2048 bits at least";
    "certificate-usage" Weak if No("certificate.key_usage")
        => "The certificate may not be used for TLS servers",
        "RFC 5280 section 4.2.1.12; CA/Browser Forum Baseline Requirements section 7.1.2.7.10",
        "Have it issued anew, with serverAuth among its extended key usages";
    "certificate-ocsp" Weak if No("certificate.ocsp_good")
        => "The stapled OCSP response does not say that the certificate is good",
        "RFC 6960 section 3.2; RFC 9325 section 7.5",
        "If it is revoked, replace it; if the response is old, mend what fetches it";

    "heartbleed" Weak if Yes("vulnerability.heartbleed")
        => "Heartbleed: memory of the server is sent to who asks",
        "CVE-2014-0160; RFC 7457 section 2.14",
        "Update OpenSSL; then make new keys and have certificates revoked, for they may be known";
    "ccs-injection" Weak if Yes("vulnerability.ccs_injection")
        => "CCS injection: a ChangeCipherSpec is taken before there are keys",
        "CVE-2014-0224",
        "Update OpenSSL";
    "ticketbleed" Weak if Yes("vulnerability.ticketbleed")
        => "Ticketbleed: memory of the server comes in a session ID",
        "CVE-2016-9244",
        "Update the load balancer, or turn off its session tickets";
    "robot" Weak if Yes("vulnerability.robot")
        => "ROBOT: the server tells good from bad RSA padding",
        "CVE-2017-13099; RFC 5246 section 7.4.7.1",
        "Take suites that begin with TLS_RSA_ out of the server's list; update the TLS library";
    "drown" Weak if Yes("vulnerability.drown")
        => "DROWN: SSL 2.0 is spoken with this key",
        "CVE-2016-0800; RFC 6176 section 3",
        "Turn off SSL 2.0 wherever this key is used";
    "poodle-ssl" Weak if Yes("vulnerability.poodle_ssl")
        => "POODLE: SSL 3.0 with CBC is taken",
        "CVE-2014-3566; RFC 7568 section 4.1",
        "Turn off SSL 3.0";
    "poodle-tls" Weak if Yes("vulnerability.poodle_tls")
        => "POODLE in TLS: the padding of a CBC record is not checked",
        "CVE-2014-8730; RFC 7457 section 2.4",
        "Update the TLS library or the load balancer; take CBC suites out of the server's list";
    "freak" Weak if Yes("vulnerability.freak")
        => "FREAK: RSA export suites are taken",
        "CVE-2015-0204; RFC 9325 section 4.1",
        "Take EXPORT suites out of the server's list";
    "logjam" Weak if Yes("vulnerability.logjam")
        => "Logjam: Diffie-Hellman with a prime that has been or can be broken",
        "CVE-2015-4000; RFC 9325 section 4.5",
        "Take DHE suites out of the server's list";
    "sweet32" Weak if Yes("vulnerability.sweet32")
        => "SWEET32: a cipher with blocks of 64 bits, 3DES for one, is taken",
        "CVE-2016-2183; NIST SP 800-131A Rev. 2 section 2",
        "Take 3DES and IDEA out of the server's list";
    "crime" Weak if Yes("vulnerability.crime")
        => "CRIME: TLS compression is taken",
        "CVE-2012-4929; RFC 7457 section 2.6",
        "Turn off TLS compression";
    "beast" Weak if Yes("vulnerability.beast")
        => "BEAST: CBC with TLS 1.0 or before",
        "CVE-2011-3389; RFC 7457 section 2.3",
        "Turn off TLS 1.0 and SSL";
    "rc4-biases" Weak if Yes("vulnerability.rc4")
        => "RC4 shows what it encrypts by its biases",
        "CVE-2013-2566; CVE-2015-2808; RFC 7457 section 2.5",
        "Take RC4 out of the server's list";
    "roca" Weak if Yes("vulnerability.roca")
        => "ROCA: the RSA key can be factored",
        "CVE-2017-15361",
        "Make a new key, elsewhere than in the chip that made this one, and have the certificate revoked";
    "insecure-renegotiation" Weak if Yes("vulnerability.insecure_renegotiation")
        => "Renegotiation lets who is between put data before the client's",
        "CVE-2009-3555; RFC 7457 section 2.10",
        "Update the TLS library, or turn off renegotiation";
    "starttls-injection" Weak if Yes("starttls.injection")
        => "Commands sent in the clear are answered inside TLS",
        "CVE-2011-0411; RFC 7457 section 2.2",
        "Update the server: it must drop what came before the handshake";

    "no-tls1_3" Acceptable if Must("protocol.tls1_3")
        => "TLS 1.3 is not spoken",
        "RFC 9325 section 3.1.1; NIST SP 800-52 Rev. 2 section 3.1",
        "Turn on TLS 1.3";
    "no-post-quantum" Acceptable if Check(post_quantum)
        => "No post-quantum key exchange is taken: what is recorded today can be read once there is a quantum computer",
        "RFC 10024 section 1; NIST IR 8547 (draft) section 4",
        "Put X25519MLKEM768 first in the server's list of groups (OpenSSL 3.5, Go 1.24 and rustls have it)";
    "cbc" Acceptable if Yes("weak.cbc")
        => "CBC suites are taken",
        "RFC 9325 section 4.2",
        "Leave GCM and ChaCha20-Poly1305 suites in the server's list";
    "lucky13" Acceptable if Yes("vulnerability.lucky13")
        => "Lucky 13: CBC suites whose MAC is inside",
        "CVE-2013-0169; RFC 7457 section 2.4",
        "Leave GCM and ChaCha20-Poly1305 suites in the server's list";
    "suites-not-modern" Acceptable if Check(not_modern)
        => "Suites without ECDHE or without AEAD are taken",
        "RFC 9325 section 4.2",
        "Leave ECDHE suites with GCM or ChaCha20-Poly1305 in the server's list";
    "psk-without-dhe" Acceptable if Yes("session.psk_without_dhe")
        => "Sessions are resumed without forward secrecy (psk_ke)",
        "RFC 9325 section 3.4; RFC 9846 section 4.3.9",
        "Take psk_dhe_ke alone";
    "early-data" Acceptable if Yes("session.early_data")
        => "0-RTT data is taken, which can be replayed",
        "RFC 9325 section 3.10; RFC 9846 section 8",
        "Turn off early data, unless the application was made for replays";
    "client-renegotiation" Acceptable if Yes("renegotiation.by_client")
        => "Clients may renegotiate, which costs the server more than them",
        "RFC 7457 section 2.13; CVE-2011-1473",
        "Turn off renegotiation by clients";
    "certificate-incomplete" Acceptable if No("certificate.complete")
        => "An intermediate certificate is missing: clients that do not fetch it fail",
        "RFC 5246 section 7.4.2; RFC 9846 section 4.5.1",
        "Send the whole chain, without the root (fullchain.pem)";
    "certificate-order" Acceptable if No("certificate.ordered")
        => "The certificates of a chain are not in order",
        "RFC 5246 section 7.4.2; RFC 9846 section 4.5.1",
        "Send the leaf first, then each certificate before the one that signed it";
    "certificate-revocation" Acceptable if No("certificate.revocation")
        => "The certificate does not say where to learn of its revocation",
        "RFC 9325 section 7.5; CA/Browser Forum Baseline Requirements section 1.6.1",
        "Use certificates that live seven days or less, or that name a CRL";
    "certificate-lifetime" Acceptable if Check(long_lived)
        => "The certificate lives longer than public authorities may issue",
        "CA/Browser Forum Baseline Requirements section 6.3.2",
        "Use certificates of 90 days or less, and have a program renew them";
    "must-staple" Acceptable if Check(must_staple)
        => "The certificate demands a stapled OCSP response, and none comes",
        "RFC 7633 section 4.2.3",
        "Turn on OCSP stapling, or have the certificate issued without the demand";
    "hsts" Acceptable if No("http.hsts")
        => "HTTP Strict Transport Security is not set: a first visit in the clear can be held there",
        "RFC 9325 section 3.2; RFC 6797 section 7.1",
        "Send `Strict-Transport-Security: max-age=63072000` in each answer";
}

// ---- What takes more than one fact.

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

/// Every hello was refused: by a name that the server knows, all may be otherwise.
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

/// What one server refused another may take: a level does not claim what nobody saw.
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

/// Of each version that is spoken, all suites must have been asked for.
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

/// The suites that are taken with versions before TLS 1.3.
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

/// What no rule of its own names: SRP, Kerberos, plain PSK, GOST with a MAC.
fn not_modern(seen: &Seen<'_>) -> Finding {
    let odd = old_suites(seen)
        .filter(|suite| marks::suite(suite.name) == Level::Acceptable && !suite.is_cbc());
    Finding::any(family(seen, "suites"), named(odd))
}

/// The fact about the newest version before TLS 1.3 that is spoken.
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
    // TLS 1.3 has its own, and answers no such extension.
    match seen.facts.yes("protocol.tls1_2") {
        true => Test::No("extension.extended_master_secret").run(seen),
        false => Finding::Fine,
    }
}

/// A chain is trusted where it leads to the store that was given or to the mesh's bundle: one is
/// enough, for a private authority is in no public store.
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
            let own = own.then(|| "it signed itself".to_owned());
            let why = own.or(why.filter(|why| !why.is_empty()).map(Cow::into_owned));
            Finding::wrong(stores[at], why.into_iter().collect())
        }
        None => Finding::open(seen, stores[0]),
    }
}

fn wrong_name(seen: &Seen<'_>) -> Finding {
    let id = "certificate.name";
    match seen.facts.answer(id) {
        // A mesh's certificates name a SPIFFE ID, and no host.
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
    let short: Vec<_> = seen.facts.list(id).iter().filter(|key| is_short(key)).cloned().collect();
    match seen.facts.answer(id) {
        _ if !short.is_empty() => Finding::wrong(id, short),
        Answer::Inconclusive => Finding::open(seen, id),
        _ => {
            // What signs the leaf must not be weaker than it.
            let above = seen.chains.iter().flat_map(|chain| chain.certificates.iter().skip(1));
            let short = above.filter(|above| !above.superfluous && is_short(&above.key));
            let short: Vec<_> = short.map(|c| format!("{} of {}", c.key, c.subject)).collect();
            Finding::any("certificate.key_bits", short)
        }
    }
}

/// Whether `rsa-1024` or the like gives less than 112 bits. A key whose name does not tell its size is not short.
fn is_short(key: &str) -> bool {
    let Some((kind, rest)) = key.split_once('-') else { return false };
    // `2048`, `pss-2048`; `p256`, `secp256k1`, `brainpoolp256r1`. An unknown curve is an OID, of many numbers.
    let digits = rest.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let Ok(bits) = digits[..end].parse::<u32>() else { return false };
    match kind {
        "rsa" | "dsa" => bits < 2048,
        "ecdsa" => !rest.contains('.') && bits < 224,
        _ => false,
    }
}

fn post_quantum(seen: &Seen<'_>) -> Finding {
    let id = "post_quantum";
    match seen.facts.answer(id) {
        // No older version has such a group.
        Answer::Untested if seen.facts.answer("protocol.tls1_3") == Answer::No => {
            Finding::wrong("protocol.tls1_3", Vec::new())
        }
        Answer::Yes => {
            let names = seen.facts.list(id);
            // Drafts of Kyber count for nothing; a fact without names is believed.
            match names.is_empty() || names.iter().any(|n| marks::group(n) == Level::Strong) {
                true => Finding::Fine,
                false => Finding::wrong(id, names.to_vec()),
            }
        }
        _ => Test::Must(id).run(seen),
    }
}

/// A mesh's authority and a private one keep to no forum; a chain that the store does not trust is
/// wrong already.
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

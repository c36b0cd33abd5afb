//! What is known of an endpoint: facts with stable ids, each with an answer in four values and the
//! evidence for it.
//!
//! An id never changes its meaning and is never given to something else: programs compare reports
//! over years. [`TABLE`] lists all of them, and `docs/scan.md` prints that table.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::names::Version;

/// How far a scan came.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Reached {
    /// TLS (or SSL) is spoken.
    Tls,
    /// The port answers, but not with TLS.
    Plaintext {
        /// What it said.
        evidence: String,
    },
    /// The port answers, and what it speaks could not be told.
    Unknown {
        /// Why.
        evidence: String,
    },
    /// No connection, no address.
    Unreachable {
        /// Why.
        evidence: String,
    },
}

/// What the endpoint's behaviour says to a question.
///
/// `No` is a claim too: it takes the server's own refusal (an alert), or silence between two
/// control probes that succeeded. Whatever else goes wrong is `Inconclusive`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Seen.
    Yes,
    /// Asked for, and refused.
    No,
    /// Asked for, and the answer tells nothing: throttling, resets, time-outs, a box between.
    Inconclusive,
    /// Not asked: it makes no sense here, or was left out.
    Untested,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Inconclusive => "inconclusive",
            Self::Untested => "untested",
        })
    }
}

/// What comes with an answer, where a word is not enough.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// A count, or a size in the unit that the table names.
    Number(u64),
    /// A name.
    Text(String),
    /// Names, in the order of the endpoint's preference where there is one.
    List(Vec<String>),
}

/// An answer with its evidence.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fact {
    /// Yes, no, or why neither.
    pub answer: Answer,
    /// What the table says comes with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// What was seen, in a line: "alert handshake_failure (40)", "ServerHello chose 0xc02f".
    pub evidence: Cow<'static, str>,
}

/// All facts about an endpoint, by id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Facts(BTreeMap<Cow<'static, str>, Fact>);

impl Facts {
    /// Adds a fact; what was known under this id before is replaced.
    pub fn set(
        &mut self,
        id: impl Into<Cow<'static, str>>,
        answer: Answer,
        value: Option<Value>,
        evidence: impl Into<Cow<'static, str>>,
    ) {
        let id = id.into();
        debug_assert!(describe(&id).is_some(), "{id} is not in the table");
        self.0.insert(id, Fact { answer, value, evidence: evidence.into() });
    }

    /// What could not be told of these need not be: it was not asked for.
    pub fn untest(&mut self, prefix: &str) {
        for (_, fact) in self.0.iter_mut().filter(|(id, _)| id.starts_with(prefix)) {
            if fact.answer == Answer::Inconclusive {
                fact.answer = Answer::Untested;
            }
        }
    }

    /// The fact of this id.
    pub fn get(&self, id: &str) -> Option<&Fact> {
        self.0.get(id)
    }

    /// The answer under this id; `Untested` where there is none.
    pub fn answer(&self, id: &str) -> Answer {
        self.get(id).map_or(Answer::Untested, |fact| fact.answer)
    }

    /// Whether this was seen.
    pub fn yes(&self, id: &str) -> bool {
        self.answer(id) == Answer::Yes
    }

    /// The names that came with a fact; none where there is no such fact.
    pub fn list(&self, id: &str) -> &[String] {
        match self.get(id).and_then(|fact| fact.value.as_ref()) {
            Some(Value::List(names)) => names,
            _ => &[],
        }
    }

    /// The number that came with a fact.
    pub fn number(&self, id: &str) -> Option<u64> {
        match self.get(id)?.value {
            Some(Value::Number(n)) => Some(n),
            _ => None,
        }
    }

    /// Whether this suite is taken with this version: where all were asked for, those not seen
    /// were refused.
    pub fn suite(&self, version: Version, name: &str) -> Answer {
        if self.yes(&format!("suite.{}.{name}", version.key())) {
            return Answer::Yes;
        }
        match self.answer(&format!("suites.{}", version.key())) {
            Answer::Yes | Answer::No => Answer::No,
            other => other,
        }
    }

    /// All, ordered by id.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Fact)> {
        self.0.iter().map(|(id, fact)| (id.as_ref(), fact))
    }

    /// Takes over all that another part of the scan found.
    pub fn extend(&mut self, other: Facts) {
        self.0.extend(other.0);
    }
}

/// A row of the table: an id, or a family of them with `<...>` for what varies.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// `protocol.tls1_3`, or `suite.<version>.<name>`.
    pub id: &'static str,
    /// The question that it answers, and what its value is.
    pub what: &'static str,
}

/// The row for an id.
pub fn describe(id: &str) -> Option<&'static Entry> {
    TABLE.iter().find(|entry| {
        let (mut pattern, mut rest) = (entry.id, id);
        loop {
            let Some((fixed, tail)) = pattern.split_once('<') else { return pattern == rest };
            let Some(after) = rest.strip_prefix(fixed) else { return false };
            pattern = tail.split_once('>').map_or("", |(_, tail)| tail);
            // What varies ends where the fixed part goes on; the last one may hold anything.
            let next = pattern.split('<').next().unwrap_or_default();
            let end = match next.is_empty() {
                true => after.len(),
                false => match after.find(next) {
                    Some(at) => at,
                    None => return false,
                },
            };
            if end == 0 {
                return false;
            }
            rest = &after[end..];
        }
    })
}

macro_rules! table {
    ($($id:literal: $what:literal,)*) => {
        /// Every fact that a scan can tell. `<version>` is `ssl2`, `ssl3`, `tls1_0`, `tls1_1`, `tls1_2` or `tls1_3`.
        pub const TABLE: &[Entry] = &[$(Entry { id: $id, what: $what },)*];
    };
}

table! {
    "plaintext": "The port answers, and in the clear: nothing on it is encrypted",
    "consistent": "The same question is answered alike each time; no: several servers that differ seem to share the address, and how answers differed",
    "starttls.offered": "The server offers to go over to TLS",
    "starttls.stripped": "What stands between took the offer out, or made it unreadable",
    "starttls.injection": "Commands sent in the clear after STARTTLS are answered inside TLS (CVE-2011-0411)",

    "protocol.ssl2": "SSL 2.0 is spoken",
    "protocol.ssl3": "SSL 3.0 is spoken",
    "protocol.tls1_0": "TLS 1.0 is spoken",
    "protocol.tls1_1": "TLS 1.1 is spoken",
    "protocol.tls1_2": "TLS 1.2 is spoken",
    "protocol.tls1_3": "TLS 1.3 is spoken",
    "protocol.quic": "QUIC version 1 with TLS 1.3 is spoken, on UDP at the same port number; the versions that the server says it speaks",

    "suites.<version>": "Some cipher suite is taken with this version; which, in order of preference, where all were asked for",
    "suite.<version>.<name>": "This cipher suite is taken; only those are listed (`suites.<version>` says whether all were asked for)",
    "preference.<version>": "The server has an order of cipher suites of its own",
    "groups.tls1_3": "Key-exchange groups of TLS 1.3, in order of preference where there is one",
    "groups.tls1_2": "Curves and FFDHE groups that TLS 1.2 and before take in ECDHE and DHE",
    "groups.quic": "Key-exchange groups over QUIC, in order of preference where there is one",
    "group.<name>": "This group is taken; only those are listed (`groups.*` says whether all were asked for)",
    "preference.groups": "The server has an order of groups of its own (TLS 1.3)",
    "post_quantum": "Some post-quantum or hybrid group is taken; which",
    "dh.bits": "Finite-field Diffie-Hellman is taken; the bits of the smallest prime",
    "dh.common_prime": "Its prime is one that many servers share, by name",
    "dh.safe": "Its prime has at least 2048 bits or is one of RFC 7919",
    "signatures.tls1_2": "Signature schemes that the server signs a TLS 1.2 key exchange with",
    "signatures.tls1_3": "Signature schemes that the server signs a TLS 1.3 handshake with",
    "forward_secrecy.all": "All suites that are taken give forward secrecy",
    "forward_secrecy.any": "Some suite that is taken gives forward secrecy",

    "certificate.trusted": "Every chain leads to a root of the store that was given",
    "certificate.trusted_by_mesh": "Every chain leads to the mesh's trust bundle",
    "certificate.name": "Every certificate is for the name that was asked for",
    "certificate.valid": "Every certificate is within its validity; days that are left, of the first to end",
    "certificate.ordered": "Each certificate of a chain is signed by the next",
    "certificate.complete": "No intermediate is missing from a chain",
    "certificate.self_signed": "Some chain is of one certificate that signed itself",
    "certificate.weak_signature": "Some certificate below the root is signed with MD5 or SHA-1; the hash",
    "certificate.key_bits": "Bits of the weakest key of a leaf",
    "certificate.keys": "Kinds of leaf keys that are offered: rsa-2048, ecdsa-p256, ed25519",
    "certificate.scts": "Signed certificate timestamps come with it; how many",
    "certificate.must_staple": "The certificate demands a stapled OCSP response (RFC 7633)",
    "certificate.ocsp_stapled": "An OCSP response is stapled",
    "certificate.ocsp_good": "The stapled response says good, is for this certificate, and is current",
    "certificate.revocation": "The certificate names where to learn of its revocation (OCSP or CRL), or is short-lived (7 days; 10 if issued before 2026-03-15)",
    "certificate.wildcard": "Some certificate is for a wildcard name",
    "certificate.lifetime": "Every leaf lives no longer than the CA/Browser Forum allowed when it was issued; days of the longest",
    "certificate.key_usage": "Every leaf may be used for TLS servers (extended key usage)",
    "certificate.caa": "The domain says by DNS who may issue for it (CAA)",

    "session.id": "Sessions are resumed by session ID",
    "session.ticket": "Sessions are resumed by ticket (RFC 5077); its lifetime in seconds",
    "session.psk": "TLS 1.3 sessions are resumed by PSK",
    "session.psk_without_dhe": "TLS 1.3 sessions are resumed without a new key exchange (psk_ke): no forward secrecy",
    "session.early_data": "0-RTT data is taken, which can be replayed; bytes that a ticket allows",
    "extension.extended_master_secret": "Extended master secret (RFC 7627)",
    "extension.encrypt_then_mac": "Encrypt-then-MAC (RFC 7366)",
    "extension.heartbeat": "The heartbeat extension (RFC 6520) is answered",
    "extension.compress_certificate": "Certificates are compressed (RFC 8879); how",
    "renegotiation.secure": "Secure renegotiation is signalled (RFC 5746)",
    "renegotiation.by_client": "A renegotiation that the client starts is taken",
    "compression": "TLS compression is taken",
    "fallback_scsv": "A needless fallback is refused (RFC 7507)",
    "alpn": "Application protocols that are chosen when offered",
    "ech": "Encrypted ClientHello is answered",
    "tolerance.version": "A hello of a version yet to come is answered with one that the server speaks",
    "tolerance.grease": "Unknown values in a hello are ignored (RFC 8701)",

    "client_certificate.requested": "The client is asked for a certificate",
    "client_certificate.required": "Without one, the connection ends",
    "client_certificate.authorities": "The authorities whose certificates it takes, by name",
    "sni.required": "Without a server name, or with a strange one, no certificate is shown",
    "sni.other_certificate": "Without a server name, another certificate is shown",

    "http.status": "The status of an answer to GET /",
    "http.hsts": "HTTP Strict Transport Security; its max-age in seconds",
    "http.hsts.subdomains": "It covers subdomains",
    "http.hsts.preload": "It asks to be preloaded",
    "http.redirect": "Port 80 sends visitors to HTTPS",
    "http.http3": "HTTP/3 is advertised (Alt-Svc)",
    "http.header.<name>": "This security header is set; its value",

    "weak.null": "Suites without encryption are taken; which",
    "weak.anonymous": "Suites without authentication are taken; which",
    "weak.export": "Export suites, 40 or 56 bits, are taken; which",
    "weak.rc4": "RC4 is taken (RFC 7465); which suites",
    "weak.des": "Single DES or RC2 is taken; which suites",
    "weak.static_rsa": "RSA key transport, without forward secrecy, is taken; which suites",
    "weak.static_dh": "Static (EC)DH, without forward secrecy, is taken; which suites",
    "weak.cbc": "CBC suites are taken; which",

    "vulnerability.heartbleed": "Memory of the server is sent to who asks (CVE-2014-0160)",
    "vulnerability.ccs_injection": "A ChangeCipherSpec is taken before there are keys (CVE-2014-0224)",
    "vulnerability.ticketbleed": "Memory of the server comes in a session ID (CVE-2016-9244)",
    "vulnerability.robot": "The server tells good from bad RSA padding (CVE-2017-13099 and others)",
    "vulnerability.drown": "SSL 2.0 is spoken with this key (CVE-2016-0800)",
    "vulnerability.poodle_ssl": "SSL 3.0 with CBC (CVE-2014-3566)",
    "vulnerability.poodle_tls": "The padding of a CBC record in TLS is not checked (CVE-2014-8730)",
    "vulnerability.freak": "RSA export suites (CVE-2015-0204)",
    "vulnerability.logjam": "DHE export suites, or primes of at most 1024 bits (CVE-2015-4000)",
    "vulnerability.sweet32": "Ciphers with blocks of 64 bits (CVE-2016-2183)",
    "vulnerability.crime": "TLS compression (CVE-2012-4929)",
    "vulnerability.beast": "CBC with TLS 1.0 or before (CVE-2011-3389)",
    "vulnerability.lucky13": "CBC suites with MAC-then-encrypt: exposed, whether or not the server's timing shows it (CVE-2013-0169)",
    "vulnerability.rc4": "RC4 (CVE-2013-2566, CVE-2015-2808)",
    "vulnerability.roca": "The RSA key of a leaf is of a kind that can be factored (CVE-2017-15361)",
    "vulnerability.insecure_renegotiation": "Renegotiation without RFC 5746 (CVE-2009-3555)",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_by_their_family_and_nothing_else_is() {
        assert_eq!(describe("protocol.tls1_3").map(|e| e.id), Some("protocol.tls1_3"));
        assert_eq!(
            describe("suite.tls1_2.TLS_RSA_WITH_NULL_MD5").map(|e| e.id),
            Some("suite.<version>.<name>")
        );
        assert_eq!(
            describe("http.header.x-frame-options").map(|e| e.id),
            Some("http.header.<name>")
        );
        for strange in
            ["", "protocol", "protocol.tls1_4", "suite.", "suite.tls1_2", "suite..x", "group."]
        {
            assert!(describe(strange).is_none(), "{strange}");
        }
        let mut ids: Vec<_> = TABLE.iter().map(|e| e.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), TABLE.len(), "an id stands twice");
    }
}

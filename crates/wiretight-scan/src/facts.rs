//! Facts about an endpoint: each has a stable id, one of four answers, and its evidence.
//!
//! The meaning of an id never changes, and no id is reused: programs compare reports over years.
//! [`TABLE`] lists all ids; `docs/scan.md` contains that table.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::names::{Bulk, KeyExchange, Suite, Version};

/// How far a scan got.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Reached {
    /// The endpoint supports TLS or SSL.
    Tls,
    /// The port answers, but not with TLS.
    Plaintext {
        /// The answer.
        evidence: String,
    },
    /// The port answers, but its protocol could not be determined.
    Unknown {
        /// Why.
        evidence: String,
    },
    /// No connection was possible, or the name has no address.
    Unreachable {
        /// Why.
        evidence: String,
    },
}

/// The answer to a question about an endpoint.
///
/// `No` is a claim too: it requires that the server rejected the probe (an alert), or that it was
/// silent between two control probes that succeeded. Any other failure is `Inconclusive`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Observed.
    Yes,
    /// Tested, and rejected.
    No,
    /// Tested, without a usable result: throttling, resets, time-outs, a middlebox.
    Inconclusive,
    /// Not tested: not applicable here, or left out.
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

/// A value that comes with an answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// A count, or a size in the unit given in the table.
    Number(u64),
    /// A name.
    Text(String),
    /// Names, in the endpoint's order of preference if it has one.
    List(Vec<String>),
}

/// An answer with its evidence.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fact {
    pub answer: Answer,
    /// The value, as described in the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// What was observed, in one line: "alert handshake_failure (40)", "ServerHello chose 0xc02f".
    pub evidence: Cow<'static, str>,
}

/// All facts about an endpoint, by id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Facts(BTreeMap<Cow<'static, str>, Fact>);

impl Facts {
    /// Adds a fact, or replaces the one with this id.
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

    /// Makes inconclusive facts with this prefix untested.
    pub fn untest(&mut self, prefix: &str) {
        for (_, fact) in self.0.iter_mut().filter(|(id, _)| id.starts_with(prefix)) {
            if fact.answer == Answer::Inconclusive {
                fact.answer = Answer::Untested;
            }
        }
    }

    pub fn get(&self, id: &str) -> Option<&Fact> {
        self.0.get(id)
    }

    /// The answer; `Untested` if there is no such fact.
    pub fn answer(&self, id: &str) -> Answer {
        self.get(id).map_or(Answer::Untested, |fact| fact.answer)
    }

    pub fn yes(&self, id: &str) -> bool {
        self.answer(id) == Answer::Yes
    }

    /// The names in a fact; none if there is no such fact.
    pub fn list(&self, id: &str) -> &[String] {
        match self.get(id).and_then(|fact| fact.value.as_ref()) {
            Some(Value::List(names)) => names,
            _ => &[],
        }
    }

    pub fn number(&self, id: &str) -> Option<u64> {
        match self.get(id)?.value {
            Some(Value::Number(n)) => Some(n),
            _ => None,
        }
    }

    /// Whether this suite is accepted with this version. If all suites were tested, those without a
    /// fact were rejected.
    pub fn suite(&self, version: Version, name: &str) -> Answer {
        if self.yes(&format!("suite.{}.{name}", version.key())) {
            return Answer::Yes;
        }
        match self.answer(&format!("suites.{}", version.key())) {
            Answer::Yes | Answer::No => Answer::No,
            other => other,
        }
    }

    /// All facts, ordered by id.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Fact)> {
        self.0.iter().map(|(id, fact)| (id.as_ref(), fact))
    }

    /// Adds all facts of another part of the scan.
    pub fn extend(&mut self, other: Facts) {
        self.0.extend(other.0);
    }
}

/// A property of a cipher suite.
pub(crate) type SuiteProperty = fn(Suite) -> bool;

/// The weaknesses of cipher suites, by the ids of their facts.
pub(crate) const WEAK_SUITES: [(&str, SuiteProperty); 8] = [
    ("weak.null", |s| s.bulk() == Bulk::Null),
    ("weak.anonymous", Suite::is_anonymous),
    ("weak.export", Suite::is_export),
    ("weak.rc4", |s| s.bulk() == Bulk::Rc4),
    ("weak.des", |s| matches!(s.bulk(), Bulk::Des | Bulk::Des40 | Bulk::Rc2)),
    ("weak.static_rsa", |s| matches!(s.key_exchange(), KeyExchange::Rsa | KeyExchange::RsaPsk)),
    ("weak.static_dh", |s| matches!(s.key_exchange(), KeyExchange::Dh | KeyExchange::Ecdh)),
    ("weak.cbc", Suite::is_cbc),
];

/// A row of the table: an id, or a family of ids with `<...>` for the variable part.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// `protocol.tls1_3`, or `suite.<version>.<name>`.
    pub id: &'static str,
    /// What yes means, and what the value is.
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
            // The variable part ends at the next fixed part; the last one may contain anything.
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
        /// Every fact that a scan can determine. `<version>` is `ssl2`, `ssl3`, `tls1_0`, `tls1_1`, `tls1_2` or `tls1_3`.
        pub const TABLE: &[Entry] = &[$(Entry { id: $id, what: $what },)*];
    };
}

table! {
    "plaintext": "The port answers without encryption",
    "consistent": "The same question always gets the same answer; no: several different servers seem to share the address, and how their answers differed",
    "starttls.offered": "The server offers STARTTLS",
    "starttls.stripped": "A device on the path removed the STARTTLS offer, or made it unreadable",
    "starttls.injection": "Plaintext commands sent after STARTTLS are answered inside TLS (CVE-2011-0411)",

    "protocol.ssl2": "SSL 2.0 is supported",
    "protocol.ssl3": "SSL 3.0 is supported",
    "protocol.tls1_0": "TLS 1.0 is supported",
    "protocol.tls1_1": "TLS 1.1 is supported",
    "protocol.tls1_2": "TLS 1.2 is supported",
    "protocol.tls1_3": "TLS 1.3 is supported",
    "protocol.quic": "QUIC version 1 with TLS 1.3 is supported, on UDP at the same port number; the QUIC versions that the server announces",

    "suites.<version>": "Cipher suites are accepted with this version; which, in order of preference if all were tested",
    "suite.<version>.<name>": "This cipher suite is accepted; only accepted suites are listed (`suites.<version>` says whether all were tested)",
    "preference.<version>": "The server prefers cipher suites in its own order",
    "groups.tls1_3": "Key-exchange groups of TLS 1.3, in order of preference if there is one",
    "groups.tls1_2": "Curves and FFDHE groups that TLS 1.2 and earlier accept in ECDHE and DHE",
    "groups.quic": "Key-exchange groups over QUIC, in order of preference if there is one",
    "group.<name>": "This group is accepted; only accepted groups are listed (`groups.*` says whether all were tested)",
    "preference.groups": "The server prefers groups in its own order (TLS 1.3)",
    "post_quantum": "Post-quantum or hybrid groups are accepted; which",
    "dh.bits": "Finite-field Diffie-Hellman is accepted; bits of the smallest prime",
    "dh.common_prime": "The Diffie-Hellman prime is one that many servers share; its name",
    "dh.safe": "The Diffie-Hellman prime has at least 2048 bits or is one of RFC 7919",
    "signatures.tls1_2": "Signature schemes with which the server signs TLS 1.2 key exchanges",
    "signatures.tls1_3": "Signature schemes with which the server signs TLS 1.3 handshakes",
    "forward_secrecy.all": "All accepted cipher suites provide forward secrecy",
    "forward_secrecy.any": "At least one accepted cipher suite provides forward secrecy",

    "certificate.trusted": "Every chain leads to a root in the given store",
    "certificate.trusted_by_mesh": "Every chain leads to the mesh's trust bundle",
    "certificate.name": "Every certificate matches the requested host name",
    "certificate.valid": "Every certificate is currently valid; days until the first one expires",
    "certificate.ordered": "Each certificate of a chain is signed by the next",
    "certificate.complete": "No chain lacks an intermediate certificate",
    "certificate.self_signed": "At least one chain is a single self-signed certificate",
    "certificate.weak_signature": "At least one certificate below the root is signed with MD5 or SHA-1; the hash",
    "certificate.key_bits": "Bits of the weakest leaf key",
    "certificate.keys": "Types of leaf keys: rsa-2048, ecdsa-p256, ed25519",
    "certificate.scts": "The certificate comes with signed certificate timestamps; how many",
    "certificate.must_staple": "The certificate requires a stapled OCSP response (RFC 7633)",
    "certificate.ocsp_stapled": "An OCSP response is stapled",
    "certificate.ocsp_good": "The stapled response is current, for this certificate, and says good",
    "certificate.revocation": "The certificate says where to check its revocation (OCSP or CRL), or is short-lived (7 days; 10 if issued before 2026-03-15)",
    "certificate.wildcard": "At least one certificate is for a wildcard name",
    "certificate.lifetime": "Every leaf is valid for no longer than the CA/Browser Forum allowed when it was issued; days of the longest",
    "certificate.key_usage": "Every leaf is allowed for TLS servers (extended key usage)",
    "certificate.caa": "The domain publishes CAA records: who may issue certificates for it",

    "session.id": "Sessions are resumed by session ID",
    "session.ticket": "Sessions are resumed by ticket (RFC 5077); the ticket's lifetime in seconds",
    "session.psk": "TLS 1.3 sessions are resumed by PSK",
    "session.psk_without_dhe": "TLS 1.3 sessions are resumed without a new key exchange (psk_ke), so without forward secrecy",
    "session.early_data": "0-RTT data is accepted, which can be replayed; bytes that a ticket allows",
    "extension.extended_master_secret": "Extended master secret (RFC 7627) is supported",
    "extension.encrypt_then_mac": "Encrypt-then-MAC (RFC 7366) is supported",
    "extension.heartbeat": "The heartbeat extension (RFC 6520) is supported",
    "extension.compress_certificate": "Certificates are compressed (RFC 8879); the algorithms",
    "renegotiation.secure": "Secure renegotiation is signalled (RFC 5746)",
    "renegotiation.by_client": "The client may start a renegotiation",
    "compression": "TLS compression is accepted",
    "fallback_scsv": "An unnecessary version fallback is rejected (RFC 7507)",
    "alpn": "Application protocols that the server selects when they are offered",
    "ech": "Encrypted ClientHello is supported",
    "tolerance.version": "A ClientHello with a future TLS version is answered with a version that the server supports",
    "tolerance.grease": "Unknown values in a ClientHello are ignored (RFC 8701)",

    "client_certificate.requested": "The server requests a client certificate",
    "client_certificate.required": "Without a client certificate, the server closes the connection",
    "client_certificate.authorities": "Names of the authorities whose client certificates the server accepts",
    "sni.required": "Without a server name, or with an unknown one, the server sends no certificate",
    "sni.other_certificate": "Without a server name, the server sends another certificate",

    "http.status": "HTTP status of the response to GET /",
    "http.hsts": "HTTP Strict Transport Security is set; its max-age in seconds",
    "http.hsts.subdomains": "HSTS covers subdomains",
    "http.hsts.preload": "HSTS requests preloading",
    "http.redirect": "Port 80 redirects to HTTPS",
    "http.http3": "HTTP/3 is advertised (Alt-Svc)",
    "http.header.<name>": "This security header is set; its value",

    "weak.null": "Cipher suites without encryption are accepted; which",
    "weak.anonymous": "Cipher suites without authentication are accepted; which",
    "weak.export": "Export suites (40 or 56 bits) are accepted; which",
    "weak.rc4": "RC4 is accepted (RFC 7465); which suites",
    "weak.des": "Single DES or RC2 is accepted; which suites",
    "weak.static_rsa": "RSA key transport (no forward secrecy) is accepted; which suites",
    "weak.static_dh": "Static (EC)DH (no forward secrecy) is accepted; which suites",
    "weak.cbc": "CBC suites are accepted; which",

    "vulnerability.heartbleed": "Heartbleed: any client can read the server's memory (CVE-2014-0160)",
    "vulnerability.ccs_injection": "CCS injection: ChangeCipherSpec is accepted before keys exist (CVE-2014-0224)",
    "vulnerability.ticketbleed": "Ticketbleed: the server leaks memory in session IDs (CVE-2016-9244)",
    "vulnerability.robot": "ROBOT: the server reveals whether RSA padding is valid (CVE-2017-13099 and others)",
    "vulnerability.drown": "DROWN: SSL 2.0 is supported with this key (CVE-2016-0800)",
    "vulnerability.poodle_ssl": "POODLE: SSL 3.0 with CBC is accepted (CVE-2014-3566)",
    "vulnerability.poodle_tls": "POODLE in TLS: the padding of CBC records is not checked (CVE-2014-8730)",
    "vulnerability.freak": "FREAK: RSA export suites are accepted (CVE-2015-0204)",
    "vulnerability.logjam": "Logjam: DHE export suites, or primes of at most 1024 bits, are accepted (CVE-2015-4000)",
    "vulnerability.sweet32": "SWEET32: ciphers with 64-bit blocks are accepted (CVE-2016-2183)",
    "vulnerability.crime": "CRIME: TLS compression is accepted (CVE-2012-4929)",
    "vulnerability.beast": "BEAST: CBC is accepted with TLS 1.0 or earlier (CVE-2011-3389)",
    "vulnerability.lucky13": "Lucky 13: CBC suites with MAC-then-encrypt are accepted; a timing leak is not measured (CVE-2013-0169)",
    "vulnerability.rc4": "RC4 is accepted (CVE-2013-2566, CVE-2015-2808)",
    "vulnerability.roca": "ROCA: the RSA key of a leaf can be factored (CVE-2017-15361)",
    "vulnerability.insecure_renegotiation": "Renegotiation is possible without RFC 5746 (CVE-2009-3555)",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_of_a_known_family_are_found() {
        assert_eq!(describe("protocol.tls1_3").map(|e| e.id), Some("protocol.tls1_3"));
        assert_eq!(
            describe("suite.tls1_2.TLS_RSA_WITH_NULL_MD5").map(|e| e.id),
            Some("suite.<version>.<name>")
        );
        assert_eq!(
            describe("http.header.x-frame-options").map(|e| e.id),
            Some("http.header.<name>")
        );
        for unknown in
            ["", "protocol", "protocol.tls1_4", "suite.", "suite.tls1_2", "suite..x", "group."]
        {
            assert!(describe(unknown).is_none(), "{unknown}");
        }
        let mut ids: Vec<_> = TABLE.iter().map(|e| e.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), TABLE.len(), "duplicate id");
    }
}

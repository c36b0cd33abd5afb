//! What certificate chains say, and whether they lead where they should.
//!
//! [`examine`] fetches nothing: not a missing intermediate, not a revocation. Whatever a server
//! sends is read as far as it goes, up to limits; what strict readers refuse becomes a problem of
//! that [`Certificate`], not an error of the scan.

mod algorithm;
mod encoding;
mod findings;
mod name;
mod ocsp;
mod sct;
mod trust;
mod x509;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use trust::{Roots, RootsError, Stores};

use self::findings::{Findings, Read};
use crate::facts::{Answer, Facts};
use crate::target::Host;

/// The [`when`](Presented::when) of a hello that named no server though there is a name.
///
/// What is shown to it alone is among the chains, but no fact is about it: who asks by name never
/// sees it, and `sni.other_certificate` tells.
pub const WITHOUT_NAME: &str = "without a server name";

/// What is read of one chain, and how many different ones: no server needs more, and a hostile one
/// could keep the scanner busy with signatures.
const MOST_CERTIFICATES: usize = 20;
const MOST_CHAINS: usize = 16;
const MOST_BYTES: usize = 128 * 1024;

/// What a hello was answered with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Presented {
    /// Which hello it was: "default", "rsa only", [`WITHOUT_NAME`].
    pub when: String,
    /// In DER, as they were sent, the leaf first.
    pub certificates: Vec<Vec<u8>>,
    /// The stapled OCSPResponse, in DER.
    pub ocsp: Option<Vec<u8>>,
    /// The SignedCertificateTimestampList of the TLS extension.
    pub scts: Option<Vec<u8>>,
}

/// What there is to tell of the chains.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Examined {
    /// Each once.
    pub chains: Vec<Chain>,
    /// All of `certificate.*` but CAA; none where no certificate was shown.
    pub facts: Facts,
}

/// A chain that the endpoint showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// To which hellos it was shown: "default", "without a server name", "rsa only".
    pub when: Vec<String>,
    /// As it was sent, the leaf first.
    pub certificates: Vec<Certificate>,
    /// Whether it leads to a root of the store.
    pub trusted: Answer,
    /// Why (not).
    pub evidence: String,
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// As RFC 4514 writes names.
    pub subject: String,
    /// As RFC 4514 writes names.
    pub issuer: String,
    /// In hex.
    pub serial: String,
    /// The first moment at which it is valid; none where it cannot be read.
    pub not_before: Option<Timestamp>,
    /// The last moment at which it is valid; none where it cannot be read.
    pub not_after: Option<Timestamp>,
    /// Kind and size of its key: `rsa-2048`, `ecdsa-p256`, `ed25519`, `mldsa-65`.
    pub key: String,
    /// Bits of its key.
    pub key_bits: u32,
    /// How it is signed: `rsa-pkcs1-sha256`, `ecdsa-sha384`, `ed25519`.
    pub signature: String,
    /// Its subject alternative names: DNS names, addresses, URIs, e-mail addresses.
    pub names: Vec<String>,
    /// SHA-256 of the certificate, in hex.
    pub sha256: String,
    /// SHA-256 of its SubjectPublicKeyInfo, in hex.
    pub spki_sha256: String,
    /// Whether it may sign others.
    pub ca: bool,
    /// Whether a client reaches a root without it, so that what is wrong with it harms nobody.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub superfluous: bool,
    /// What is wrong with its encoding: what strict readers refuse.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// Tells all that can be told of the chains that an endpoint showed.
///
/// `name` is what was asked for; `None` where any certificate would do.
pub fn examine(
    presented: &[Presented],
    name: Option<&Host>,
    now: Timestamp,
    stores: &Stores,
) -> Examined {
    let (shown, left_out) = merged(presented);
    let mut chains = Vec::with_capacity(shown.len());
    let mut all = Vec::with_capacity(shown.len());
    for shown in &shown {
        let read = Read::new(shown, stores, now);
        let findings = read.findings(name, now, stores);
        let mut evidence = findings.trusted.evidence.clone();
        let more = shown.certificates.len().saturating_sub(MOST_CERTIFICATES);
        if more > 0 {
            evidence.push_str(&format!("; {more} more certificates were sent, and not read"));
        }
        if left_out > 0 {
            evidence.push_str(&format!("; {left_out} more chains were shown, and not read"));
        }
        chains.push(Chain {
            when: shown.when.iter().map(|when| (*when).to_owned()).collect(),
            certificates: read.certificates(),
            trusted: findings.trusted.answer,
            evidence,
        });
        all.push(findings);
    }
    let by_name = |f: &Findings<'_>| f.when.iter().any(|when| *when != WITHOUT_NAME);
    if matches!(name, Some(Host::Name(_))) && all.iter().any(by_name) {
        all.retain(by_name);
    }
    let mut facts = Facts::default();
    if !all.is_empty() {
        findings::set(&all, &mut facts);
    }
    Examined { chains, facts }
}

/// A chain, and all that came with it.
#[derive(Debug)]
struct Shown<'a> {
    when: Vec<&'a str>,
    certificates: &'a [Vec<u8>],
    ocsp: Option<&'a [u8]>,
    scts: Option<&'a [u8]>,
}

/// Each chain once, and how many there were too many.
fn merged(presented: &[Presented]) -> (Vec<Shown<'_>>, usize) {
    let mut shown: Vec<Shown<'_>> = Vec::new();
    let mut left_out = 0;
    for new in presented.iter().filter(|new| !new.certificates.is_empty()) {
        let (ocsp, scts) = (new.ocsp.as_deref(), new.scts.as_deref());
        match shown.iter().position(|old| old.certificates == new.certificates) {
            Some(i) => {
                let old = &mut shown[i];
                if !old.when.contains(&new.when.as_str()) {
                    old.when.push(&new.when);
                }
                old.ocsp = old.ocsp.or(ocsp);
                old.scts = old.scts.or(scts);
            }
            None if shown.len() == MOST_CHAINS => left_out += 1,
            None => shown.push(Shown {
                when: vec![&new.when],
                certificates: &new.certificates,
                ocsp,
                scts,
            }),
        }
    }
    (shown, left_out)
}

/// An answer about one chain, and what it follows from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    answer: Answer,
    evidence: String,
}

impl Finding {
    fn yes(evidence: impl Into<String>) -> Self {
        Self { answer: Answer::Yes, evidence: evidence.into() }
    }

    fn no(evidence: impl Into<String>) -> Self {
        Self { answer: Answer::No, evidence: evidence.into() }
    }

    fn inconclusive(evidence: impl Into<String>) -> Self {
        Self { answer: Answer::Inconclusive, evidence: evidence.into() }
    }

    fn untested(evidence: impl Into<String>) -> Self {
        Self { answer: Answer::Untested, evidence: evidence.into() }
    }
}

/// A day in evidence.
fn day(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d").to_string()
}

//! Checks of certificate chains.
//!
//! [`examine`] fetches nothing, neither a missing intermediate nor a revocation list. It reads whatever a
//! server sends as far as possible, up to limits. Encoding errors that strict parsers reject become
//! problems of the [`Certificate`], not errors of the scan.

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

pub(crate) use algorithm::weak_hash;
pub use trust::{Roots, RootsError, Stores};

use self::findings::{Findings, Read};
use crate::facts::{Answer, Facts};
use crate::target::Host;

/// The [`when`](Presented::when) of a hello without a server name, if the target has a name.
///
/// Chains that were sent only to such a hello are listed, but are not part of the facts, because clients
/// that send the name never see them. `sni.other_certificate` reports them.
pub const WITHOUT_NAME: &str = "without a server name";

/// Limits for chains. No server needs more, and a hostile one could keep the scanner busy with signatures.
const MOST_CERTIFICATES: usize = 20;
const MOST_CHAINS: usize = 16;
const MOST_BYTES: usize = 128 * 1024;

/// The certificates in the answer to a hello.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Presented {
    /// The kind of hello: "default", "rsa only", [`WITHOUT_NAME`].
    pub when: String,
    /// In DER, in the order sent, the leaf first.
    pub certificates: Vec<Vec<u8>>,
    /// The stapled OCSPResponse, in DER.
    pub ocsp: Option<Vec<u8>>,
    /// The SignedCertificateTimestampList of the TLS extension.
    pub scts: Option<Vec<u8>>,
}

/// The result of examining all chains.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Examined {
    /// Each chain once.
    pub chains: Vec<Chain>,
    /// All of `certificate.*` except CAA; empty if the server sent no certificate.
    pub facts: Facts,
}

/// What a leaf certificate says, without any check of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skimmed {
    /// `rsa-2048`, `ecdsa-p256`.
    pub key: String,
    /// `rsa-pkcs1-sha256`, `ecdsa-sha384`.
    pub signature: String,
    pub not_after: Timestamp,
    /// In the notation of RFC 4514.
    pub subject: String,
    /// Whether issuer and subject are the same name. The signature is not checked.
    pub self_issued: bool,
}

/// Reads a leaf certificate that was seen on the network; `None` if its key, its validity or its structure is
/// unreadable. The cost is limited, because nothing is verified.
pub fn skim(der: &[u8]) -> Option<Skimmed> {
    if der.len() > MOST_BYTES {
        return None;
    }
    let x509 = x509::X509::skim(der).ok()?;
    Some(Skimmed {
        key: x509.key.as_ref()?.name.clone(),
        not_after: x509.not_after?,
        subject: x509.shown_subject(),
        self_issued: x509.issuer == x509.subject,
        signature: x509.signature_algorithm,
    })
}

/// A chain that the endpoint sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// The hellos to which it was sent: "default", "without a server name", "rsa only".
    pub when: Vec<String>,
    /// In the order sent, the leaf first.
    pub certificates: Vec<Certificate>,
    /// Whether it leads to a root in the store.
    pub trusted: Answer,
    /// Why, or why not.
    pub evidence: String,
}

/// The contents of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// In the notation of RFC 4514.
    pub subject: String,
    /// In the notation of RFC 4514.
    pub issuer: String,
    /// In hex.
    pub serial: String,
    /// Start of the validity; `None` if unreadable.
    pub not_before: Option<Timestamp>,
    /// End of the validity; `None` if unreadable.
    pub not_after: Option<Timestamp>,
    /// Type and size of the key: `rsa-2048`, `ecdsa-p256`, `ed25519`, `mldsa-65`.
    pub key: String,
    /// Bits of the key.
    pub key_bits: u32,
    /// Signature algorithm: `rsa-pkcs1-sha256`, `ecdsa-sha384`, `ed25519`.
    pub signature: String,
    /// Subject alternative names: DNS names, addresses, URIs, e-mail addresses.
    pub names: Vec<String>,
    /// SHA-256 of the certificate, in hex.
    pub sha256: String,
    /// SHA-256 of the SubjectPublicKeyInfo, in hex.
    pub spki_sha256: String,
    /// Whether it may sign other certificates.
    pub ca: bool,
    /// Whether clients reach a root without it, so that its flaws do not matter.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub superfluous: bool,
    /// Encoding errors that strict parsers reject.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// Examines the chains that an endpoint sent.
///
/// `name` is the requested host; `None` if any certificate is acceptable.
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
            evidence.push_str(&format!("; {more} more certificates were not read"));
        }
        if left_out > 0 {
            evidence.push_str(&format!("; {left_out} more chains were not read"));
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

/// A chain, and the data sent with it.
#[derive(Debug)]
struct Shown<'a> {
    when: Vec<&'a str>,
    certificates: &'a [Vec<u8>],
    ocsp: Option<&'a [u8]>,
    scts: Option<&'a [u8]>,
}

/// Each chain once, and the number of chains above the limit.
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

/// An answer about one chain, and its evidence.
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

fn day(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d").to_string()
}

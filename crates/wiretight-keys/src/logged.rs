//! The entries of the mesh's log, and the proof in a certificate that it is logged.
//!
//! An entry is a two-byte type (big-endian), followed by its content:
//!
//! ```text
//! 1  a certificate: its TBSCertificate (DER) without the proof extension, the last 8 bytes of its serial number zero
//! 2  a revocation, in addition to earlier ones: JSON
//! 3  the traffic of the mesh in an hour or a day: JSON (claims)
//! 4  the hash of what was published: JSON (claims)
//! ```
//!
//! The certificate is logged before it is signed. Its serial number ends with the index of its entry, and a
//! non-critical extension ([`ID_LOG_PROOF`]) holds a C2SP tlog-proof: the inclusion proof, and the checkpoint with the
//! cosignatures of the witnesses. So a verifier ([`Logged::from_certificate`]) can rebuild the entry from the
//! certificate and check it offline. Verifiers that do not know the extension ignore it and get no such guarantee.
//!
//! The entry contains everything in the certificate except index and proof; in particular the series in the serial
//! number. So a logged entry cannot be signed again as a different certificate.

use std::net::IpAddr;

use const_oid::ObjectIdentifier;
use const_oid::db::rfc4519::COMMON_NAME;
use der::asn1::{OctetString, Utf8StringRef};
use der::{Decode, Encode, Tagged};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use wiretight_tlog::policy::MAX_CLOCK_SKEW;
use wiretight_tlog::{Hash, Proof, ProofError, Refused, Witnessed};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{AuthorityKeyIdentifier, BasicConstraints};
use x509_cert::serial_number::SerialNumber;

use crate::claims::{MeshPeriod, PERIOD, PUBLICATION, Publication, is_later};
use crate::error::{X509Error, malformed};
use crate::link::KeyLink;
use crate::spiffe::SpiffeId;
use crate::token::hex;
use crate::x509::{Period, Serial, Series, SignedCertificate, Tbs, TbsCertificate};

/// The extension with a certificate's tlog-proof, as a UTF8String. It is in IANA's experimental arc (1.3.6.1.3),
/// because no number has been assigned.
pub const ID_LOG_PROOF: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.3.7400.1");

const CERTIFICATE: u16 = 1;
const REVOCATION: u16 = 2;

/// The largest proof in a certificate, in bytes: six ML-DSA-44 cosignatures in base64, and the inclusion proof. A
/// leaf and an intermediate with such proofs fit into the largest TLS message accepted, 64 KiB.
pub const MAX_PROOF: usize = 24 * 1024;

/// The longest time between a certificate's notBefore and its proof, in seconds. The authority sets notBefore a
/// minute in the past and logs the certificate immediately; the rest is for witnesses and clock differences.
///
/// With this limit a verifier knows that the proof was made when the entry was. Anyone with the CA key can get a new
/// proof for an old entry, because entries stay in the log. But notBefore is part of the entry, so a new proof does
/// not fit an old entry. Old proofs do not help either: nodes accept only short-lived certificates, so old ones have
/// expired.
pub const MAX_DELAY: u64 = 600;

/// A parsed log entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A certificate, logged before it was signed.
    Certificate(LoggedCertificate),
    /// Revocations that take effect with this entry.
    Revocation(Revocation),
    /// The traffic of the mesh in an hour or a day.
    Period(Box<MeshPeriod>),
    /// A folder that was published.
    Publication(Publication),
    /// An entry of a type that this release does not know, or of a later version of such a claim.
    Other(u16),
}

/// The content of a certificate entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedCertificate {
    /// All names in it: SPIFFE IDs and other URIs as they are, DNS names as `dns:NAME`, addresses as `ip:ADDRESS`, a
    /// leaf's common name as `cn:NAME` unless it repeats the SPIFFE ID, others in a descriptive form. Never empty.
    pub names: Vec<String>,
    pub is_ca: bool,
    pub period: Period,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub key: [u8; 32],
    /// The key identifier of its issuer, if it names one.
    pub issuer_key: Option<Vec<u8>>,
    /// The series at the start of its serial number. `None` if the serial number is not of the mesh's form; nodes
    /// reject such a certificate.
    pub series: Option<Series>,
    /// SHA-256 of the previous key, if that key signed this one as its successor.
    pub follows: Option<[u8; 32]>,
}

/// Revocations that take effect with an entry, in addition to earlier ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// When it was logged (seconds since 1970).
    pub at: u64,
    /// Ranges of indexes, inclusive.
    #[serde(default)]
    pub indexes: Vec<(u64, u64)>,
    /// Series of serial numbers: an identity of one node, renewals included.
    #[serde(default)]
    pub series: Vec<Series>,
}

impl Entry {
    /// Parses an entry. An unknown type is not an error; a certificate that does not parse is.
    pub fn parse(entry: &[u8]) -> Result<Entry, X509Error> {
        let bad = |detail: &str| X509Error::Malformed { what: "log entry", detail: detail.into() };
        let (kind, body) = entry.split_first_chunk().ok_or_else(|| bad("it is too short"))?;
        match u16::from_be_bytes(*kind) {
            CERTIFICATE => Ok(Entry::Certificate(LoggedCertificate::parse(body)?)),
            REVOCATION => {
                let revocation = serde_json::from_slice(body);
                Ok(Entry::Revocation(revocation.map_err(|e| bad(&e.to_string()))?))
            }
            kind @ (PERIOD | PUBLICATION) if is_later(body) => Ok(Entry::Other(kind)),
            PERIOD => Ok(Entry::Period(Box::new(MeshPeriod::parse(body)?))),
            PUBLICATION => Ok(Entry::Publication(Publication::parse(body)?)),
            other => Ok(Entry::Other(other)),
        }
    }
}

impl Revocation {
    /// Encodes the entry.
    pub fn entry(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).expect("numbers and short texts are JSON");
        [&REVOCATION.to_be_bytes()[..], &json].concat()
    }
}

impl LoggedCertificate {
    fn parse(der: &[u8]) -> Result<LoggedCertificate, X509Error> {
        let err = malformed("logged certificate");
        let tbs = TbsCertificate::from_der(der).map_err(&err)?;
        let (mut names, mut is_ca, mut issuer_key) = (Vec::new(), false, None);
        for extension in &tbs.extensions {
            let value = extension.extn_value.as_bytes();
            if extension.extn_id == <SubjectAltName as const_oid::AssociatedOid>::OID {
                let san = SubjectAltName::from_der(value).map_err(&err)?;
                names.extend(san.0.iter().map(name_text));
            } else if extension.extn_id == <BasicConstraints as const_oid::AssociatedOid>::OID {
                is_ca |= BasicConstraints::from_der(value).map_err(&err)?.ca;
            } else if extension.extn_id == <AuthorityKeyIdentifier as const_oid::AssociatedOid>::OID
            {
                let id = AuthorityKeyIdentifier::from_der(value).map_err(&err)?;
                issuer_key = id.key_identifier.map(|id| id.as_bytes().to_vec());
            }
        }
        if !is_ca {
            // Some verifiers fall back to the common name. In our leaves it only repeats the SPIFFE ID.
            let explained = |cn: &String| {
                let paths = names
                    .iter()
                    .filter_map(|n| Some(n.strip_prefix("spiffe://")?.split_once('/')?.1));
                paths.into_iter().any(|path| !cn.is_empty() && path.chars().take(64).eq(cn.chars()))
            };
            let common: Vec<String> = common_names(&tbs)
                .filter(|cn| !explained(cn))
                .map(|cn| format!("cn:{cn}"))
                .collect();
            names.extend(common);
        }
        if names.is_empty() {
            names.push(format!("subject:{}", tbs.subject));
        }
        let spki = tbs.subject_public_key_info.to_der().map_err(&err)?;
        let follows = if is_ca { None } else { follows(&names, &tbs) };
        let serial = Serial::from_bytes(tbs.serial_number.as_bytes());
        Ok(LoggedCertificate {
            names,
            is_ca,
            period: tbs.period(),
            key: *Hash::of(&spki).as_bytes(),
            issuer_key,
            series: serial.ok().map(|serial| serial.series()),
            follows,
        })
    }
}

/// SHA-256 of the previous key, if the certificate has exactly one SPIFFE ID and a valid key link.
fn follows(names: &[String], tbs: &TbsCertificate) -> Option<[u8; 32]> {
    let link = KeyLink::find(&tbs.extensions).ok()??;
    let mut ids = names.iter().filter_map(|name| name.parse::<SpiffeId>().ok());
    let (id, None) = (ids.next()?, ids.next()) else { return None };
    link.verify(&id, &tbs.subject_public_key_info).ok()?;
    Some(link.previous().hash())
}

/// A subject alternative name, as text.
fn name_text(name: &GeneralName) -> String {
    let described = |kind: &str, der: &[u8]| {
        let shown = &der[..der.len().min(32)];
        format!("other:{kind}:{}{}", hex(shown), if shown.len() < der.len() { "..." } else { "" })
    };
    match name {
        GeneralName::UniformResourceIdentifier(uri) => uri.as_str().to_owned(),
        GeneralName::DnsName(dns) => format!("dns:{}", dns.as_str()),
        GeneralName::Rfc822Name(mail) => format!("email:{}", mail.as_str()),
        GeneralName::IpAddress(octets) => {
            let octets = octets.as_bytes();
            match (<[u8; 4]>::try_from(octets), <[u8; 16]>::try_from(octets)) {
                (Ok(v4), _) => format!("ip:{}", IpAddr::from(v4)),
                (_, Ok(v6)) => format!("ip:{}", IpAddr::from(v6).to_canonical()),
                _ => described("address", octets),
            }
        }
        other => described("name", &other.to_der().unwrap_or_default()),
    }
}

fn common_names(tbs: &TbsCertificate) -> impl Iterator<Item = String> {
    let named = tbs.subject.iter().filter(|a| a.oid == COMMON_NAME);
    named.map(|a| match a.value.tag() {
        der::Tag::BmpString => {
            let units = a.value.value().chunks_exact(2).map(|c| u16::from_be_bytes([c[0], c[1]]));
            char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
        }
        _ => String::from_utf8_lossy(a.value.value()).into_owned(),
    })
}

/// A certificate with a log proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// The hash of its log entry.
    pub leaf: Hash,
    /// Its proof, unverified. The index equals the one in the serial number.
    pub proof: Proof,
    pub not_before: u64,
}

/// Why a certificate does not prove that it is logged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotLogged {
    #[error("it carries no proof that it is logged")]
    NoProof,
    #[error("its proof is malformed: {0}")]
    Malformed(String),
    /// The proof belongs to another entry.
    #[error("its serial number does not match its proof, which is for log entry {index}")]
    WrongIndex {
        /// The index in the proof.
        index: u64,
    },
    /// The proof was made long after the certificate's notBefore.
    #[error(
        "its proof was made {late} s after its notBefore, and at most {allowed} s are allowed; so it was not issued when it was logged"
    )]
    Late {
        /// Seconds after notBefore.
        late: u64,
        /// The most seconds allowed.
        allowed: u64,
    },
    /// The proof is invalid.
    #[error(transparent)]
    Proof(#[from] ProofError),
}

impl Logged {
    /// Extracts the proof from a certificate and rebuilds its log entry.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Logged, NotLogged> {
        let bad = |detail: String| NotLogged::Malformed(detail);
        let err = |e: der::Error| bad(e.to_string());
        let whole = SignedCertificate::from_der(certificate).map_err(err)?;
        let raw = whole.tbs.to_der().map_err(err)?;
        let mut tbs = TbsCertificate::from_der(&raw).map_err(err)?;
        // The hash must cover exactly the signed bytes, so re-encoding must reproduce the input.
        if tbs.to_der().map_err(err)? != raw || whole.to_der().map_err(err)? != **certificate {
            return Err(bad("the certificate is not canonical DER".into()));
        }
        let not_before = tbs.period().not_before;
        let (index, text) = tbs.take_proof().map_err(bad)?.ok_or(NotLogged::NoProof)?;
        let proof = Proof::parse(&text)?;
        if proof.extra.is_some() {
            return Err(bad("it has extra data, which is not authenticated".into()));
        }
        if proof.index != index {
            return Err(NotLogged::WrongIndex { index: proof.index });
        }
        let entry = tbs.entry().map_err(|e| bad(e.to_string()))?;
        Ok(Logged { leaf: Hash::leaf(&entry), proof, not_before })
    }
}

impl Logged {
    /// Whether the proof was made around the certificate's notBefore: neither long before nor long after. Always
    /// succeeds if the policy requires no witnesses, because there is no time to check then.
    pub fn is_timely(&self, witnessed: &Witnessed) -> Result<(), NotLogged> {
        let (begins, Some(time)) = (self.not_before, witnessed.time()) else { return Ok(()) };
        if time.saturating_add(MAX_CLOCK_SKEW) < begins {
            let stale = Refused::Stale { age: begins - time, allowed: MAX_CLOCK_SKEW };
            return Err(ProofError::Refused(stale).into());
        }
        match time.saturating_sub(begins) {
            late if late > MAX_DELAY => Err(NotLogged::Late { late, allowed: MAX_DELAY }),
            _ => Ok(()),
        }
    }
}

impl Tbs {
    /// The log entry for this certificate.
    pub fn entry(&self) -> Result<Vec<u8>, X509Error> {
        let err = malformed("certificate");
        let mut tbs = TbsCertificate::from_der(self.der()).map_err(&err)?;
        tbs.set_index(0)?;
        tbs.entry()
    }

    /// Adds the proof of the entry to the certificate, and its index to the serial number.
    pub fn proved(self, proof: &Proof) -> Result<Tbs, X509Error> {
        let err = malformed("certificate");
        let text = proof.to_string();
        if text.len() > MAX_PROOF {
            let detail = format!("{} bytes, more than {MAX_PROOF}", text.len());
            return Err(X509Error::Malformed { what: "proof", detail });
        }
        let mut tbs = TbsCertificate::from_der(self.der()).map_err(&err)?;
        tbs.set_index(proof.index)?;
        let value = Utf8StringRef::new(&text).and_then(|t| t.to_der()).map_err(&err)?;
        tbs.extensions.push(Extension {
            extn_id: ID_LOG_PROOF,
            critical: false,
            extn_value: OctetString::new(value).map_err(&err)?,
        });
        self.with_der(tbs.to_der().map_err(&err)?)
    }
}

impl TbsCertificate {
    /// The log entry of a certificate without a proof and with index 0.
    fn entry(&self) -> Result<Vec<u8>, X509Error> {
        let der = self.to_der().map_err(malformed("certificate"))?;
        Ok([&CERTIFICATE.to_be_bytes()[..], &der].concat())
    }

    /// Sets the index at the end of the serial number.
    fn set_index(&mut self, index: u64) -> Result<(), X509Error> {
        let serial = Serial::from_bytes(self.serial_number.as_bytes())?.with_index(index);
        let number = SerialNumber::new(serial.as_bytes());
        self.serial_number = number.map_err(malformed("serial number"))?;
        Ok(())
    }

    /// Removes the index and the proof, and returns them; `None` if there is no proof.
    fn take_proof(&mut self) -> Result<Option<(u64, String)>, String> {
        let is_proof = |e: &Extension| e.extn_id == ID_LOG_PROOF;
        let Some(at) = self.extensions.iter().position(is_proof) else { return Ok(None) };
        let extension = self.extensions.remove(at);
        if extension.critical || self.extensions.iter().any(is_proof) {
            return Err("its proof is critical or occurs twice".into());
        }
        let value = extension.extn_value.as_bytes();
        let text = Utf8StringRef::from_der(value).map_err(|e| e.to_string())?;
        if text.as_str().len() > MAX_PROOF {
            return Err("its proof is too long".into());
        }
        let serial = Serial::from_bytes(self.serial_number.as_bytes());
        let index = serial.map_err(|e| e.to_string())?.index();
        let taken = (index, text.as_str().to_owned());
        self.set_index(0).map_err(|e| e.to_string())?;
        Ok(Some(taken))
    }
}

#[cfg(test)]
mod tests;

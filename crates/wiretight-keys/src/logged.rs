//! What stands in the mesh's log, and how a certificate carries the proof that it does.
//!
//! An entry is two bytes that say what it is (big-endian), and the thing itself:
//!
//! ```text
//! 1  a certificate: its TBSCertificate (DER) without the proof extension, the last 8 bytes of its serial number zero
//! 2  what is revoked from then on, besides what was before: JSON
//! ```
//!
//! The certificate is logged before it is signed. Its serial number ends with the index of its entry, and a
//! non-critical extension ([`ID_LOG_PROOF`]) holds a C2SP tlog-proof: the inclusion proof, and the checkpoint with the
//! cosignatures of the witnesses. So whoever verifies the certificate ([`Logged::from_certificate`]) makes the entry of
//! it again, and needs nobody to ask. Verifiers that do not know the extension ignore it, and get no such guarantee.
//!
//! All of the certificate but index and proof is in the entry, the series in the serial number too: what is logged
//! once cannot be signed again as something else.

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

use crate::error::{X509Error, malformed};
use crate::link::KeyLink;
use crate::spiffe::SpiffeId;
use crate::token::hex;
use crate::x509::{Period, Serial, Series, SignedCertificate, Tbs, TbsCertificate};

/// The extension that holds a certificate's tlog-proof, as a UTF8String. It is of IANA's experimental arc
/// (1.3.6.1.3): no number has been assigned to it.
pub const ID_LOG_PROOF: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.3.7400.1");

const CERTIFICATE: u16 = 1;
const REVOCATION: u16 = 2;

/// The largest proof that a certificate may carry, in bytes: six ML-DSA-44 cosignatures, their base64, and the inclusion
/// proof. A leaf and an intermediate that carry such proofs fit into the largest TLS message that is read, 64 KiB.
pub const MAX_PROOF: usize = 24 * 1024;

/// The longest time between the beginning of a certificate and its proof, in seconds. The authority gives a certificate
/// its beginning, a minute in the past, just before it logs it; the rest is for witnesses and clocks.
///
/// That is how a verifier knows that the proof is of the time when the entry was made. An entry stays in the log, and
/// whoever has the CA's key can have a new proof made of an old one: but the beginning is in the entry, so that no new
/// proof fits an entry of old, and what is old has ended, for no certificate is believed that is valid for long.
pub const MAX_DELAY: u64 = 600;

/// An entry of the log, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A certificate that was about to be signed.
    Certificate(LoggedCertificate),
    /// What is revoked from then on.
    Revocation(Revocation),
    /// Of a type that this release does not know.
    Other(u16),
}

/// What an entry says of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedCertificate {
    /// Everybody it speaks for: SPIFFE IDs and other URIs as they are, DNS names as `dns:NAME`, addresses as
    /// `ip:ADDRESS`, a leaf's common name that its SPIFFE ID does not explain as `cn:NAME`, others described. Never empty.
    pub names: Vec<String>,
    /// Whether it may sign certificates.
    pub is_ca: bool,
    /// When it holds.
    pub period: Period,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub key: [u8; 32],
    /// The key identifier of its issuer, if it names one.
    pub issuer_key: Option<Vec<u8>>,
    /// The series that its serial number begins with; `None` if no certificate of the mesh has such a serial number, and
    /// no node would believe it.
    pub series: Option<Series>,
    /// SHA-256 of the key before this one, if that one has signed that this comes after it.
    pub follows: Option<[u8; 32]>,
}

/// What is revoked from an entry on, besides what was before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// When it was logged (seconds since 1970).
    pub at: u64,
    /// Ranges of indexes, with both ends.
    #[serde(default)]
    pub indexes: Vec<(u64, u64)>,
    /// Series of serial numbers: an identity of a node, renewals included.
    #[serde(default)]
    pub series: Vec<Series>,
}

impl Entry {
    /// Reads an entry. One of an unknown type is not an error; a certificate that does not parse is.
    pub fn parse(entry: &[u8]) -> Result<Entry, X509Error> {
        let bad = |detail: &str| X509Error::Malformed { what: "log entry", detail: detail.into() };
        let (kind, body) = entry.split_first_chunk().ok_or_else(|| bad("it is too short"))?;
        match u16::from_be_bytes(*kind) {
            CERTIFICATE => Ok(Entry::Certificate(LoggedCertificate::parse(body)?)),
            REVOCATION => {
                let revocation = serde_json::from_slice(body);
                Ok(Entry::Revocation(revocation.map_err(|e| bad(&e.to_string()))?))
            }
            other => Ok(Entry::Other(other)),
        }
    }
}

impl Revocation {
    /// The entry.
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
            // Verifiers that fall back to the common name believe it; in our leaves it repeats the SPIFFE ID.
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

/// The key that a certificate's link leads from, if it does: for its one SPIFFE ID, and its own key.
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

/// The common names of the subject.
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

/// A certificate that says that it is logged: its entry's hash, and the proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// Of its entry.
    pub leaf: Hash,
    /// What it carries; its index is that of the serial number. Unverified.
    pub proof: Proof,
    /// When the certificate begins.
    pub not_before: u64,
}

/// Why a certificate has no usable proof.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotLogged {
    /// It has none.
    #[error("it carries no proof that it is in a log")]
    NoProof,
    /// It cannot be read.
    #[error("its proof cannot be read: {0}")]
    Malformed(String),
    /// The proof is of another entry.
    #[error("its serial number is not that of the entry {index} which its proof is of")]
    WrongIndex {
        /// The proof's.
        index: u64,
    },
    /// The proof was made long after the certificate begins.
    #[error(
        "its proof was made {late} s after the certificate begins, and {allowed} s are allowed: it was not issued when it was logged"
    )]
    Late {
        /// By how much.
        late: u64,
        /// How much is allowed.
        allowed: u64,
    },
    /// The proof does not hold.
    #[error(transparent)]
    Proof(#[from] ProofError),
}

impl Logged {
    /// Reads the proof of a certificate, and makes its entry again.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Logged, NotLogged> {
        let bad = |detail: String| NotLogged::Malformed(detail);
        let err = |e: der::Error| bad(e.to_string());
        let whole = SignedCertificate::from_der(certificate).map_err(err)?;
        let raw = whole.tbs.to_der().map_err(err)?;
        let mut tbs = TbsCertificate::from_der(&raw).map_err(err)?;
        // What is hashed must be what was signed: no byte may be lost by reading it.
        if tbs.to_der().map_err(err)? != raw || whole.to_der().map_err(err)? != **certificate {
            return Err(bad("the certificate is not in the one form of DER".into()));
        }
        let not_before = tbs.period().not_before;
        let (index, text) = tbs.take_proof().map_err(bad)?.ok_or(NotLogged::NoProof)?;
        let proof = Proof::parse(&text)?;
        if proof.extra.is_some() {
            return Err(bad("it has extra data, which nothing authenticates".into()));
        }
        if proof.index != index {
            return Err(NotLogged::WrongIndex { index: proof.index });
        }
        let entry = tbs.entry().map_err(|e| bad(e.to_string()))?;
        Ok(Logged { leaf: Hash::leaf(&entry), proof, not_before })
    }
}

impl Logged {
    /// Whether the proof is of the time when the certificate was made: not long before the certificate begins, nor long
    /// after it. A policy that wants no witnesses has no time.
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
    /// The log's entry of this certificate.
    pub fn entry(&self) -> Result<Vec<u8>, X509Error> {
        let err = malformed("certificate");
        let mut tbs = TbsCertificate::from_der(self.der()).map_err(&err)?;
        tbs.set_index(0)?;
        tbs.entry()
    }

    /// The certificate with the proof of its entry, and its index in its serial number.
    pub fn proved(self, proof: &Proof) -> Result<Tbs, X509Error> {
        let err = malformed("certificate");
        let text = proof.to_string();
        if text.len() > MAX_PROOF {
            let detail = format!("a proof of {} bytes, more than {MAX_PROOF}", text.len());
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
    /// The entry of a certificate whose proof was taken out and whose index is zero.
    fn entry(&self) -> Result<Vec<u8>, X509Error> {
        let der = self.to_der().map_err(malformed("certificate"))?;
        Ok([&CERTIFICATE.to_be_bytes()[..], &der].concat())
    }

    /// Puts an index at the end of the serial number.
    fn set_index(&mut self, index: u64) -> Result<(), X509Error> {
        let serial = Serial::from_bytes(self.serial_number.as_bytes())?.with_index(index);
        let number = SerialNumber::new(serial.as_bytes());
        self.serial_number = number.map_err(malformed("serial number"))?;
        Ok(())
    }

    /// Takes index and proof out; `None` if there is no proof.
    fn take_proof(&mut self) -> Result<Option<(u64, String)>, String> {
        let is_proof = |e: &Extension| e.extn_id == ID_LOG_PROOF;
        let Some(at) = self.extensions.iter().position(is_proof) else { return Ok(None) };
        let extension = self.extensions.remove(at);
        if extension.critical || self.extensions.iter().any(is_proof) {
            return Err("its proof is critical, or there are two".into());
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

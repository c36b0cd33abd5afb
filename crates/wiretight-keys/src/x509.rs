//! X.509: certificate requests and certificates (RFC 2986, RFC 5280, SPIFFE X509-SVID).
//!
//! A certificate is made in two steps, so that signing can be slow or happen elsewhere: first the to-be-signed part
//! is built and encoded ([`Tbs`]), then it is joined with a signature over exactly those bytes ([`Tbs::sign`],
//! [`Tbs::assemble`]).

use aws_lc_rs::digest;
use const_oid::AssociatedOid;
use const_oid::db::rfc5280::{ID_KP_CLIENT_AUTH, ID_KP_SERVER_AUTH};
use der::asn1::{BitString, Ia5String, OctetString};
use der::flagset::FlagSet;
use der::pem::LineEnding;
use der::{Any, Decode, Encode, Sequence};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::attr::Attributes;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages,
    SubjectAltName, SubjectKeyIdentifier,
};
use x509_cert::ext::{Extension, Extensions};
use x509_cert::name::Name as X509Name;
use x509_cert::request::{CertReq, CertReqInfo, ExtensionReq};
use x509_cert::serial_number::SerialNumber;
use x509_cert::time::{Time, Validity};

use crate::error::{X509Error, malformed};
use crate::key::{KeyError, PublicKey, Signer, SigningKey, ecdsa_with_sha256};
use crate::link::KeyLink;
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::token::hex;

/// RFC 8737, section 6.1.
pub(crate) const ID_PE_ACME_IDENTIFIER: const_oid::ObjectIdentifier =
    const_oid::ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.1.31");

/// The serial number of a certificate in a mesh: exactly 16 bytes, the first from 0x40 to 0x7f, so that it has one
/// encoding. The first eight bytes are the certificate's [`Series`], the others the index of its log entry.
/// Revocations name one or the other, so certificates with any other serial number are rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Serial([u8; Serial::LEN]);

impl Serial {
    pub const LEN: usize = 2 * Series::LEN;

    /// From the content of a DER INTEGER. All serial numbers are parsed here.
    pub fn from_bytes(bytes: &[u8]) -> Result<Serial, X509Error> {
        match <[u8; Serial::LEN]>::try_from(bytes) {
            Ok(bytes) if is_first(bytes[0]) => Ok(Serial(bytes)),
            _ => Err(X509Error::Malformed {
                what: "serial number",
                detail: "it must have 16 bytes, the first of them 0x40 to 0x7f".into(),
            }),
        }
    }

    /// Parses the output of `Display`.
    pub fn from_hex(text: &str) -> Result<Serial, X509Error> {
        let bytes = unhex(text).ok_or_else(|| X509Error::Malformed {
            what: "serial number",
            detail: "not lower-case hex digits".into(),
        })?;
        Serial::from_bytes(&bytes)
    }

    pub fn as_bytes(&self) -> &[u8; Serial::LEN] {
        &self.0
    }

    /// The index of the certificate's log entry.
    pub fn index(&self) -> u64 {
        u64::from_be_bytes(*self.0.last_chunk().expect("8 of 16 bytes"))
    }

    /// The same series with another index.
    pub(crate) fn with_index(self, index: u64) -> Serial {
        self.series().serial(index)
    }

    pub fn series(&self) -> Series {
        Series(*self.0.first_chunk().expect("8 of 16 bytes"))
    }
}

/// Whether a serial number or a series may start with this byte.
fn is_first(byte: u8) -> bool {
    (0x40..=0x7f).contains(&byte)
}

/// Decodes lower-case hex digits.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
    rest.is_empty().then(|| pairs.iter().map(byte).collect())?
}

impl std::fmt::Display for Serial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl From<Serial> for [u8; Serial::LEN] {
    fn from(serial: Serial) -> [u8; Serial::LEN] {
        serial.0
    }
}

impl TryFrom<String> for Serial {
    type Error = X509Error;
    fn try_from(text: String) -> Result<Serial, X509Error> {
        Serial::from_hex(&text)
    }
}

impl From<Serial> for String {
    fn from(serial: Serial) -> String {
        serial.to_string()
    }
}

/// Common to all certificates of one identity on one enrolled node, renewals included: the first half of their serial
/// numbers. Revocations name the series, so that they also close connections that started with an earlier
/// certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Series([u8; Series::LEN]);

impl Series {
    pub const LEN: usize = 8;

    /// A new series from random bytes.
    pub fn new(random: [u8; Series::LEN]) -> Series {
        let mut bytes = random;
        // A positive number of fixed length.
        bytes[0] = bytes[0] & 0x7f | 0x40;
        Series(bytes)
    }

    /// The serial number of this series for the log entry with this index.
    pub fn serial(&self, index: u64) -> Serial {
        let mut serial = [0; Serial::LEN];
        serial[..Series::LEN].copy_from_slice(&self.0);
        serial[Series::LEN..].copy_from_slice(&index.to_be_bytes());
        Serial(serial)
    }
}

/// 16 lower-case hex digits.
impl std::fmt::Display for Series {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl TryFrom<String> for Series {
    type Error = X509Error;
    fn try_from(text: String) -> Result<Series, X509Error> {
        let bytes = unhex(&text).and_then(|b| <[u8; Series::LEN]>::try_from(b).ok());
        bytes.filter(|b| is_first(b[0])).map(Series).ok_or_else(|| X509Error::Malformed {
            what: "series",
            detail: format!("not {} lower-case hex digits that start with 4 to 7", 2 * Series::LEN),
        })
    }
}

impl From<Series> for String {
    fn from(series: Series) -> String {
        series.to_string()
    }
}

/// A checked certificate request: the sender holds the key and asks for one identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Csr {
    /// The requested identity. The caller decides whether the sender may have it.
    pub id: SpiffeId,
    /// The key to certify. The request's signature proved possession.
    pub key: PublicKey,
    /// The previous key's signature over this one; verified.
    pub link: Option<KeyLink>,
}

impl Csr {
    /// The largest request accepted, in bytes.
    pub const MAX_LEN: usize = 4096;

    /// Creates the DER of a request for `id`, signed with `key`.
    pub fn create(id: &SpiffeId, key: &SigningKey) -> Result<Vec<u8>, X509Error> {
        Csr::create_linked(id, key, None)
    }

    /// The same, with a key link.
    pub fn create_linked(
        id: &SpiffeId,
        key: &SigningKey,
        link: Option<&KeyLink>,
    ) -> Result<Vec<u8>, X509Error> {
        let link = link.map(KeyLink::extension).transpose()?;
        request(&SubjectAltName(vec![uri(id)?]), link, key)
    }

    /// Parses and checks: a P-256 key, a valid signature by it, exactly one SPIFFE ID, and a valid key link if there
    /// is one.
    pub fn parse(der: &[u8]) -> Result<Csr, X509Error> {
        let err = malformed("certificate request");
        if der.len() > Csr::MAX_LEN {
            let detail = format!("{} bytes, more than {}", der.len(), Csr::MAX_LEN);
            return Err(X509Error::Malformed { what: "certificate request", detail });
        }
        let request = CertReq::from_der(der).map_err(&err)?;
        let key = PublicKey::new(request.info.public_key.clone())?;
        if request.algorithm != ecdsa_with_sha256() {
            return Err(KeyError::BadSignature.into());
        }
        let signature = request.signature.as_bytes().ok_or(KeyError::BadSignature)?;
        key.verify(&request.info.to_der().map_err(&err)?, signature)?;

        let (mut names, mut extensions) = (Vec::new(), Vec::new());
        for attribute in request.info.attributes.iter().filter(|a| a.oid == ExtensionReq::OID) {
            for value in attribute.values.iter() {
                for ext in value.decode_as::<Vec<Extension>>().map_err(&err)? {
                    if ext.extn_id == SubjectAltName::OID {
                        let san = SubjectAltName::from_der(ext.extn_value.as_bytes());
                        names.extend(san.map_err(&err)?.0);
                    } else {
                        extensions.push(ext);
                    }
                }
            }
        }
        match names.as_slice() {
            [GeneralName::UniformResourceIdentifier(u)] => {
                let id = u.as_str().parse().map_err(|_| X509Error::NoSpiffeId)?;
                let link = KeyLink::find(&extensions)?;
                link.as_ref().map_or(Ok(()), |link| link.verify(&id, key.spki()))?;
                Ok(Csr { id, key, link })
            }
            _ => Err(X509Error::NoSpiffeId),
        }
    }
}

/// Creates the DER of a request for these names, signed with `key`.
pub(crate) fn request(
    names: &SubjectAltName,
    more: Option<Extension>,
    key: &SigningKey,
) -> Result<Vec<u8>, X509Error> {
    let err = malformed("certificate request");
    let request = ExtensionReq([extension(names, false)?].into_iter().chain(more).collect());
    let mut attributes = Attributes::new();
    attributes.insert(request.try_into().map_err(&err)?).map_err(&err)?;
    let info = CertReqInfo {
        version: Default::default(),
        subject: X509Name::default(),
        public_key: key.public_key(),
        attributes,
    };
    let signature = key.sign(&info.to_der().map_err(&err)?)?;
    let signature = BitString::from_bytes(&signature).map_err(&err)?;
    CertReq { info, algorithm: key.algorithm(), signature }.to_der().map_err(&err)
}

/// The purpose of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Profile {
    /// Self-signed; signs intermediates only.
    Root(TrustDomain),
    /// Signs leaves only (path length 0).
    Intermediate(TrustDomain),
    /// An X.509-SVID: one SPIFFE ID, and its DNS name for other software.
    Leaf(SpiffeId),
    /// A self-signed response to an ACME challenge (RFC 8737, section 3).
    AcmeChallenge {
        /// The name to validate.
        name: Box<str>,
        /// SHA-256 of the key authorization.
        digest: [u8; 32],
    },
    /// A web server's certificate: only DNS names, so that no verifier accepts it as an SVID.
    Web(Vec<String>),
}

/// The validity period of a certificate, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Period {
    /// The first second.
    pub not_before: u64,
    /// The last second.
    pub not_after: u64,
}

/// `TBSCertificate` (RFC 5280, section 4.1), in the form that we issue.
#[derive(Clone, Sequence)]
pub(crate) struct TbsCertificate {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    version: u8,
    pub(crate) serial_number: SerialNumber,
    signature: AlgorithmIdentifierOwned,
    issuer: X509Name,
    validity: Validity,
    pub(crate) subject: X509Name,
    pub(crate) subject_public_key_info: SubjectPublicKeyInfoOwned,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT")]
    pub(crate) extensions: Extensions,
}

impl TbsCertificate {
    pub(crate) fn period(&self) -> Period {
        let Validity { not_before, not_after, .. } = self.validity;
        let secs = |time: Time| time.to_unix_duration().as_secs();
        Period { not_before: secs(not_before), not_after: secs(not_after) }
    }
}

/// `Certificate` around an already encoded to-be-signed part.
#[derive(Sequence)]
pub(crate) struct SignedCertificate {
    pub(crate) tbs: Any,
    pub(crate) algorithm: AlgorithmIdentifierOwned,
    pub(crate) signature: BitString,
}

/// A certificate before it is signed.
pub struct Tbs {
    der: Vec<u8>,
    algorithm: AlgorithmIdentifierOwned,
}

impl Tbs {
    /// Builds the to-be-signed part. `issuer` is the issuing certificate, or `None` for a root. `serial` for a leaf
    /// is [`Series::serial`] with index 0; for a CA the same with its own series, or 16 random bytes, of which the
    /// first two bits are overwritten.
    pub fn new(
        profile: &Profile,
        key: &SubjectPublicKeyInfoOwned,
        period: Period,
        serial: impl Into<[u8; Serial::LEN]>,
        issuer: Option<&CertificateDer<'_>>,
        signature: AlgorithmIdentifierOwned,
    ) -> Result<Tbs, X509Error> {
        let err = malformed("certificate");
        let subject_key_id = key_id(key);
        let (issuer_name, issuer_key_id) = match issuer {
            Some(cert) => {
                let cert = x509_cert::Certificate::from_der(cert).map_err(&err)?;
                let tbs = cert.tbs_certificate();
                (tbs.subject().clone(), key_id(tbs.subject_public_key_info()))
            }
            None => (subject(profile, &subject_key_id)?, subject_key_id.clone()),
        };

        let mut extensions = Vec::new();
        let ca = |path_len_constraint| BasicConstraints { ca: true, path_len_constraint };
        let signs: FlagSet<KeyUsages> = KeyUsages::KeyCertSign | KeyUsages::CRLSign;
        match profile {
            Profile::Root(td) | Profile::Intermediate(td) => {
                let path_len = matches!(profile, Profile::Intermediate(_)).then_some(0);
                extensions.push(extension(&ca(path_len), true)?);
                extensions.push(extension(&KeyUsage(signs), true)?);
                let uri = Ia5String::new(&format!("spiffe://{td}")).map_err(&err)?;
                let san = SubjectAltName(vec![GeneralName::UniformResourceIdentifier(uri)]);
                extensions.push(extension(&san, false)?);
            }
            Profile::Leaf(id) => {
                let constraints = BasicConstraints { ca: false, path_len_constraint: None };
                extensions.push(extension(&constraints, true)?);
                extensions.push(extension(&KeyUsage(KeyUsages::DigitalSignature.into()), true)?);
                let usages = ExtendedKeyUsage(vec![ID_KP_SERVER_AUTH, ID_KP_CLIENT_AUTH]);
                extensions.push(extension(&usages, false)?);
                let dns = Ia5String::new(&id.dns_name()).map_err(&err)?;
                let san = SubjectAltName(vec![uri(id)?, GeneralName::DnsName(dns)]);
                extensions.push(extension(&san, false)?);
            }
            Profile::AcmeChallenge { name, digest } => {
                let dns = Ia5String::new(&**name).map_err(&err)?;
                let san = SubjectAltName(vec![GeneralName::DnsName(dns)]);
                extensions.push(extension(&san, false)?);
                let value = OctetString::new(digest.as_slice()).map_err(&err)?;
                let value = OctetString::new(value.to_der().map_err(&err)?).map_err(&err)?;
                let acme =
                    Extension { extn_id: ID_PE_ACME_IDENTIFIER, critical: true, extn_value: value };
                extensions.push(acme);
            }
            Profile::Web(names) => {
                let constraints = BasicConstraints { ca: false, path_len_constraint: None };
                extensions.push(extension(&constraints, true)?);
                extensions.push(extension(&KeyUsage(KeyUsages::DigitalSignature.into()), true)?);
                extensions.push(extension(&ExtendedKeyUsage(vec![ID_KP_SERVER_AUTH]), false)?);
                // Critical, because the subject is empty (RFC 5280, section 4.2.1.6).
                extensions.push(extension(&dns_names(names)?, true)?);
            }
        }
        let octets = |b: &[u8]| OctetString::new(b).map_err(malformed("certificate"));
        extensions.push(extension(&SubjectKeyIdentifier(octets(&subject_key_id)?), false)?);
        let aki = AuthorityKeyIdentifier {
            key_identifier: Some(octets(&issuer_key_id)?),
            ..Default::default()
        };
        extensions.push(extension(&aki, false)?);

        // Clear the top bit (the number is positive) and set the next one (its length is fixed).
        let mut serial = serial.into();
        serial[0] = serial[0] & 0x7f | 0x40;
        let tbs = TbsCertificate {
            version: 2, // v3
            serial_number: SerialNumber::new(&serial).map_err(&err)?,
            signature: signature.clone(),
            issuer: issuer_name,
            validity: Validity::new(time(period.not_before)?, time(period.not_after)?),
            subject: subject(profile, &subject_key_id)?,
            subject_public_key_info: key.clone(),
            extensions,
        };
        Ok(Tbs { der: tbs.to_der().map_err(&err)?, algorithm: signature })
    }

    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The same with a key link.
    pub fn linked(self, link: &KeyLink) -> Result<Tbs, X509Error> {
        let err = malformed("certificate");
        let mut tbs = TbsCertificate::from_der(&self.der).map_err(&err)?;
        tbs.extensions.push(link.extension()?);
        self.with_der(tbs.to_der().map_err(&err)?)
    }

    pub(crate) fn with_der(self, der: Vec<u8>) -> Result<Tbs, X509Error> {
        Ok(Tbs { der, ..self })
    }

    pub fn sign(self, signer: &dyn Signer) -> Result<CertificateDer<'static>, X509Error> {
        let signature = signer.sign(&self.der)?;
        self.assemble(&signature)
    }

    /// Joins the certificate with the signature over [`Tbs::der`].
    pub fn assemble(self, signature: &[u8]) -> Result<CertificateDer<'static>, X509Error> {
        let err = malformed("certificate");
        let cert = SignedCertificate {
            tbs: Any::from_der(&self.der).map_err(&err)?,
            algorithm: self.algorithm,
            signature: BitString::from_bytes(signature).map_err(&err)?,
        };
        Ok(cert.to_der().map_err(&err)?.into())
    }
}

/// The fields of a received certificate that we use, before verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Its only SPIFFE ID.
    pub id: SpiffeId,
    pub serial: Serial,
    pub period: Period,
    pub key: PublicKey,
}

impl Leaf {
    /// Parses a leaf by the rules of SPIFFE X509-SVID, section 5.2: exactly one URI in the
    /// subjectAltName, not a CA, digitalSignature and neither keyCertSign nor cRLSign.
    pub fn parse(der: &[u8]) -> Result<Leaf, X509Error> {
        let err = malformed("certificate");
        let bad = |detail: &str| X509Error::Malformed { what: "SVID", detail: detail.into() };
        let cert = x509_cert::Certificate::from_der(der).map_err(&err)?;
        let tbs = cert.tbs_certificate();
        if let Some((_, constraints)) = tbs.get_extension::<BasicConstraints>().map_err(&err)?
            && constraints.ca
        {
            return Err(bad("it is a CA certificate"));
        }
        let (_, usage) = tbs
            .get_extension::<KeyUsage>()
            .map_err(&err)?
            .ok_or_else(|| bad("it has no keyUsage"))?;
        if !usage.digital_signature() || usage.key_cert_sign() || usage.crl_sign() {
            return Err(bad(
                "keyUsage must contain digitalSignature and neither keyCertSign nor cRLSign",
            ));
        }
        let (_, san) = tbs
            .get_extension::<SubjectAltName>()
            .map_err(&err)?
            .ok_or_else(|| bad("it has no subjectAltName"))?;
        let mut uris = san.0.iter().filter_map(|n| match n {
            GeneralName::UniformResourceIdentifier(u) => Some(u.as_str()),
            _ => None,
        });
        let (Some(uri), None) = (uris.next(), uris.next()) else {
            return Err(bad("it must have exactly one URI in its subjectAltName"));
        };
        let validity = tbs.validity();
        Ok(Leaf {
            id: uri.parse().map_err(|e: crate::NameError| bad(&e.to_string()))?,
            serial: Serial::from_bytes(tbs.serial_number().as_bytes())?,
            period: Period {
                not_before: validity.not_before.to_unix_duration().as_secs(),
                not_after: validity.not_after.to_unix_duration().as_secs(),
            },
            key: PublicKey::new(tbs.subject_public_key_info().clone())?,
        })
    }
}

/// The last second in which a certificate is valid; `None` if it does not parse.
pub fn not_after(der: &[u8]) -> Option<u64> {
    Some(period(der)?.not_after)
}

/// The validity period of any certificate; `None` if it does not parse.
pub fn period(der: &[u8]) -> Option<Period> {
    let cert = x509_cert::Certificate::from_der(der).ok()?;
    let Validity { not_before, not_after, .. } = cert.tbs_certificate().validity();
    let secs = |time: &Time| time.to_unix_duration().as_secs();
    Some(Period { not_before: secs(not_before), not_after: secs(not_after) })
}

/// The serial number of a certificate in a mesh; `None` if it does not have that form.
pub fn serial(der: &[u8]) -> Option<Serial> {
    let cert = x509_cert::Certificate::from_der(der).ok()?;
    Serial::from_bytes(cert.tbs_certificate().serial_number().as_bytes()).ok()
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo; `None` if the certificate does not parse.
pub fn key_hash(der: &[u8]) -> Option<[u8; 32]> {
    let cert = x509_cert::Certificate::from_der(der).ok()?;
    let spki = cert.tbs_certificate().subject_public_key_info().to_der().ok()?;
    Some(fingerprint(&CertificateDer::from(spki)))
}

/// SHA-256 of a certificate's DER. Join tokens identify the root by it.
pub fn fingerprint(cert: &CertificateDer<'_>) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, cert).as_ref());
    out
}

pub fn to_pem<'a>(certs: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> String {
    let pem = |c: &CertificateDer<'_>| der::pem::encode_string("CERTIFICATE", LineEnding::LF, c);
    certs.into_iter().map(|c| pem(c).expect("a certificate's DER fits PEM")).collect()
}

/// All certificates in a PEM text; an error if there is none or one is malformed.
pub fn from_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, X509Error> {
    let bad = |detail: String| X509Error::Malformed { what: "PEM", detail };
    let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certs {
        Ok(certs) if certs.is_empty() => Err(bad("it contains no certificate".into())),
        Ok(certs) => Ok(certs),
        Err(e) => Err(bad(e.to_string())),
    }
}

pub(crate) fn dns_names(names: &[String]) -> Result<SubjectAltName, X509Error> {
    let name = |name: &String| {
        let text = Ia5String::new(name).map_err(malformed("DNS name"))?;
        Ok(GeneralName::DnsName(text))
    };
    Ok(SubjectAltName(names.iter().map(name).collect::<Result<_, X509Error>>()?))
}

fn uri(id: &SpiffeId) -> Result<GeneralName, X509Error> {
    let uri = Ia5String::new(&id.to_string()).map_err(malformed("SPIFFE ID"))?;
    Ok(GeneralName::UniformResourceIdentifier(uri))
}

fn time(unix: u64) -> Result<Time, X509Error> {
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix);
    Time::try_from(at).map_err(malformed("validity"))
}

/// RFC 7093, section 2, method 1: the leftmost 160 bits of SHA-256 of the key.
fn key_id(key: &SubjectPublicKeyInfoOwned) -> Vec<u8> {
    digest::digest(&digest::SHA256, key.subject_public_key.raw_bytes()).as_ref()[..20].to_vec()
}

/// A readable subject. For CAs it contains 4 bytes of the key, so that successive CAs have different names.
fn subject(profile: &Profile, key_id: &[u8]) -> Result<X509Name, X509Error> {
    let short = hex(&key_id[..4]);
    let (org, common) = match profile {
        Profile::Root(td) => (td.to_string(), format!("Wiretight root {short}")),
        Profile::Intermediate(td) => (td.to_string(), format!("Wiretight intermediate {short}")),
        Profile::Leaf(id) => (id.trust_domain.to_string(), id.id.to_string()),
        Profile::AcmeChallenge { name, .. } => ("ACME".to_owned(), name.to_string()),
        Profile::Web(_) => return Ok(X509Name::default()),
    };
    // RFC 4514 order, most specific first. Our names contain nothing that needs escaping. 64 is the upper bound of
    // both attributes (RFC 5280, appendix A.1).
    let cut = |text: String| text.chars().take(64).collect::<String>();
    format!("CN={},O={}", cut(common), cut(org)).parse().map_err(malformed("subject"))
}

pub(crate) fn extension<T: AssociatedOid + Encode>(
    value: &T,
    critical: bool,
) -> Result<Extension, X509Error> {
    let err = malformed("extension");
    let der = value.to_der().map_err(&err)?;
    Ok(Extension { extn_id: T::OID, critical, extn_value: OctetString::new(der).map_err(&err)? })
}

/// The DER of a PEM certificate request.
pub fn csr_from_pem(pem: &str) -> Result<Vec<u8>, X509Error> {
    let (label, der) = der::pem::decode_vec(pem.as_bytes())
        .map_err(|e| X509Error::Malformed { what: "certificate request", detail: e.to_string() })?;
    match label {
        "CERTIFICATE REQUEST" => Ok(der),
        other => Err(X509Error::Malformed {
            what: "certificate request",
            detail: format!("it is a PEM block {other:?}"),
        }),
    }
}

/// A certificate request as PEM.
pub fn csr_to_pem(der: &[u8]) -> String {
    let pem = der::pem::encode_string("CERTIFICATE REQUEST", LineEnding::LF, der);
    pem.expect("a request's DER fits PEM")
}

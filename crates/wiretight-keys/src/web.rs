//! Certificates of web sites: parsing one before it is served, regardless of its issuer; and the requests for those
//! that our own authority issues.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA384_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    UnparsedPublicKey, VerificationAlgorithm,
};
use const_oid::db::rfc4519::CN;
use const_oid::db::rfc5912::{
    ECDSA_WITH_SHA_256, ECDSA_WITH_SHA_384, ID_EC_PUBLIC_KEY, SECP_256_R_1, SECP_384_R_1,
    SHA_256_WITH_RSA_ENCRYPTION, SHA_384_WITH_RSA_ENCRYPTION, SHA_512_WITH_RSA_ENCRYPTION,
};
use const_oid::{AssociatedOid, ObjectIdentifier};
use der::asn1::{OctetString, UintRef};
use der::{Decode, Encode, Sequence};
use rustls_pki_types::{CertificateDer, ServerName};
use spki::SubjectPublicKeyInfoOwned;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{AuthorityKeyIdentifier, SubjectAltName};
use x509_cert::request::{CertReqInfo, ExtensionReq};

use crate::error::{MAX_WEB_NAMES, X509Error, malformed};
use crate::key::SigningKey;
use crate::token::hex;
use crate::x509::{
    ID_PE_ACME_IDENTIFIER, Period, SignedCertificate, dns_names, fingerprint, request,
};

/// The shortest RSA key that is served (NIST SP 800-57 part 1, section 5.6: a shorter one has less than 112 bits of
/// security).
pub const MIN_RSA_BITS: usize = 2048;
/// The longest RSA key that is certified: longer ones cost every client too much.
const MAX_RSA_BITS: usize = 8192;
/// RFC 8017, appendix C.
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// A site's certificate, parsed but not verified; clients verify it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebLeaf {
    der: CertificateDer<'static>,
    /// Validity.
    pub period: Period,
    /// The length of the key, if it is RSA.
    pub rsa_bits: Option<usize>,
}

/// Data about the certificate that a site's client presented. It was verified before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientLeaf {
    /// Its subject (RFC 4514).
    pub subject: String,
    /// SHA-256 of the certificate, in hexadecimal.
    pub sha256: String,
    /// Seconds since 1970.
    pub not_after: u64,
}

impl ClientLeaf {
    pub fn parse(der: &CertificateDer<'_>) -> Result<ClientLeaf, X509Error> {
        let cert = x509_cert::Certificate::from_der(der).map_err(malformed("certificate"))?;
        let tbs = cert.tbs_certificate();
        Ok(ClientLeaf {
            subject: tbs.subject().to_string(),
            sha256: hex(&fingerprint(der)),
            not_after: tbs.validity().not_after.to_unix_duration().as_secs(),
        })
    }
}

/// RFC 8017, appendix A.1.1.
#[derive(Sequence)]
struct RsaPublicKey<'a> {
    modulus: UintRef<'a>,
    exponent: UintRef<'a>,
}

impl WebLeaf {
    pub fn parse(der: &CertificateDer<'_>) -> Result<WebLeaf, X509Error> {
        let malformed =
            |e: der::Error| X509Error::Malformed { what: "certificate", detail: e.to_string() };
        let cert = x509_cert::Certificate::from_der(der).map_err(malformed)?;
        let tbs = cert.tbs_certificate();
        let spki = tbs.subject_public_key_info();
        let rsa_bits = rsa_bits(spki).map_err(malformed)?;
        let seconds = |t: &x509_cert::time::Time| t.to_unix_duration().as_secs();
        let validity = tbs.validity();
        let period = Period {
            not_before: seconds(&validity.not_before),
            not_after: seconds(&validity.not_after),
        };
        Ok(WebLeaf { der: der.clone().into_owned(), period, rsa_bits })
    }

    /// Its identifier in ACME renewal information (RFC 9773, section 4.1): the issuer's key identifier, and the value
    /// of the DER-encoded serial number. `None` if it has no issuer key identifier.
    pub fn renewal_id(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let cert = x509_cert::Certificate::from_der(&self.der).ok()?;
        let tbs = cert.tbs_certificate();
        let (_, aki) = tbs.get_extension::<AuthorityKeyIdentifier>().ok()??;
        let authority = aki.key_identifier?.as_bytes().to_vec();
        Some((authority, tbs.serial_number().as_bytes().to_vec()))
    }

    /// Whether it is valid for this name. `*.example.org` asks for exactly this wildcard.
    pub fn is_for(&self, name: &str) -> bool {
        // A wildcard in the certificate matches any single label.
        let name =
            name.strip_prefix("*.").map_or(name.to_owned(), |rest| format!("any-one.{rest}"));
        let (Ok(cert), Ok(name)) =
            (webpki::EndEntityCert::try_from(&self.der), ServerName::try_from(name.as_str()))
        else {
            return false;
        };
        cert.verify_is_valid_for_subject_name(&name).is_ok()
    }
}

/// The length of the key, if it is RSA.
fn rsa_bits(spki: &SubjectPublicKeyInfoOwned) -> Result<Option<usize>, der::Error> {
    if spki.algorithm.oid != RSA {
        return Ok(None);
    }
    let modulus = RsaPublicKey::from_der(spki.subject_public_key.raw_bytes())?.modulus;
    let first = modulus.as_bytes().first().map_or(8, |b| b.leading_zeros() as usize);
    Ok(Some((modulus.as_bytes().len() * 8).saturating_sub(first)))
}

/// Whether a certificate is the response to a tls-alpn-01 challenge for this name (RFC 8737, section 3): this name
/// and no other, and the SHA-256 of the key authorization.
pub fn answers_challenge(der: &CertificateDer<'_>, name: &str, digest: &[u8; 32]) -> bool {
    let answers = || {
        let cert = x509_cert::Certificate::from_der(der).ok()?;
        let tbs = cert.tbs_certificate();
        let (_, names) = tbs.get_extension::<SubjectAltName>().ok()??;
        let [GeneralName::DnsName(only)] = names.0.as_slice() else { return None };
        let extensions = tbs.extensions()?;
        let acme = extensions.iter().find(|e| e.extn_id == ID_PE_ACME_IDENTIFIER)?;
        let value = OctetString::from_der(acme.extn_value.as_bytes()).ok()?;
        let right = acme.critical && value.as_bytes() == digest;
        Some(right && only.as_str().eq_ignore_ascii_case(name))
    };
    answers().unwrap_or(false)
}

/// The public key of a certificate (DER).
pub fn spki(der: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let cert = x509_cert::Certificate::from_der(der).ok()?;
    cert.tbs_certificate().subject_public_key_info().to_der().ok()
}

/// Whether the text is a lower-case DNS host name: labels of a-z, 0-9, "-" and "_"; no wildcard, no IP address.
pub fn is_host_name(name: &str) -> bool {
    let label = |l: &str| {
        let good = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        (1..=63).contains(&l.len())
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(good)
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253 && name.split('.').all(label) && !last.bytes().all(|b| b.is_ascii_digit())
}

/// A checked request for a web server's certificate (RFC 2986): the sender holds the key. The caller decides whether
/// it may have the names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebCsr {
    names: Vec<String>,
    spki: SubjectPublicKeyInfoOwned,
}

impl WebCsr {
    /// The largest request accepted, in bytes.
    pub const MAX_LEN: usize = 16 * 1024;
    /// The most names in a request.
    pub const MAX_NAMES: usize = MAX_WEB_NAMES;

    /// Creates the DER of a request for `names`, signed with `key`.
    pub fn create(names: &[String], key: &SigningKey) -> Result<Vec<u8>, X509Error> {
        request(&dns_names(names)?, None, key)
    }

    /// Parses and checks: an accepted type of key, a valid signature by it, and only DNS names.
    /// A common name counts as one of them (RFC 8555, section 7.4).
    pub fn parse(der: &[u8]) -> Result<WebCsr, X509Error> {
        let err = malformed("certificate request");
        if der.len() > WebCsr::MAX_LEN {
            let detail = format!("{} bytes, more than {}", der.len(), WebCsr::MAX_LEN);
            return Err(X509Error::Malformed { what: "certificate request", detail });
        }
        // The signed bytes as received.
        let signed = SignedCertificate::from_der(der).map_err(&err)?;
        let info_der = signed.tbs.to_der().map_err(&err)?;
        let info = CertReqInfo::from_der(&info_der).map_err(&err)?;
        let spki = info.public_key;
        let algorithm = verification(&spki, signed.algorithm.oid)?;
        let (key, signature) = (spki.subject_public_key.as_bytes(), signed.signature.as_bytes());
        let (Some(key), Some(signature)) = (key, signature) else { return Err(X509Error::WebKey) };
        UnparsedPublicKey::new(algorithm, key)
            .verify(&info_der, signature)
            .map_err(|_| crate::KeyError::BadSignature)?;

        let mut names = Vec::new();
        for attribute in info.attributes.iter().filter(|a| a.oid == ExtensionReq::OID) {
            for value in attribute.values.iter() {
                for ext in value.decode_as::<Vec<Extension>>().map_err(&err)? {
                    if ext.extn_id == SubjectAltName::OID {
                        let san = SubjectAltName::from_der(ext.extn_value.as_bytes());
                        for name in san.map_err(&err)?.0 {
                            match name {
                                GeneralName::DnsName(name) => names.push(name.as_str().to_owned()),
                                other => {
                                    let detail = format!("it contains {other:?}");
                                    return Err(X509Error::NotDnsNames { detail });
                                }
                            }
                        }
                    }
                }
            }
        }
        for attribute in info.subject.iter().filter(|a| a.oid == CN) {
            let text = str::from_utf8(attribute.value.value());
            names.push(text.unwrap_or_default().to_owned());
        }
        names.iter_mut().for_each(|name| name.make_ascii_lowercase());
        names.sort();
        names.dedup();
        if let Some(bad) = names.iter().find(|name| !is_host_name(name)) {
            let shown: String = bad.chars().take(80).collect();
            return Err(X509Error::NotDnsNames { detail: format!("it contains {shown:?}") });
        }
        if names.is_empty() || names.len() > WebCsr::MAX_NAMES {
            return Err(X509Error::NotDnsNames {
                detail: format!("it contains {} names", names.len()),
            });
        }
        Ok(WebCsr { names, spki })
    }

    /// The DNS names, in lower case, sorted, without duplicates; at least one.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The key to certify. The request's signature proved possession.
    pub fn spki(&self) -> &SubjectPublicKeyInfoOwned {
        &self.spki
    }
}

/// The algorithm that verifies a request's signature; an error if the key's type is not accepted.
fn verification(
    spki: &SubjectPublicKeyInfoOwned,
    signature: ObjectIdentifier,
) -> Result<&'static dyn VerificationAlgorithm, X509Error> {
    let parameters = || spki.algorithm.parameters.as_ref()?.decode_as().ok();
    let curve = (spki.algorithm.oid == ID_EC_PUBLIC_KEY).then(parameters).flatten();
    if curve == Some(SECP_256_R_1) {
        return match signature {
            ECDSA_WITH_SHA_256 => Ok(&ECDSA_P256_SHA256_ASN1),
            ECDSA_WITH_SHA_384 => Ok(&ECDSA_P256_SHA384_ASN1),
            _ => Err(X509Error::WebKey),
        };
    }
    if curve == Some(SECP_384_R_1) {
        return match signature {
            ECDSA_WITH_SHA_256 => Ok(&ECDSA_P384_SHA256_ASN1),
            ECDSA_WITH_SHA_384 => Ok(&ECDSA_P384_SHA384_ASN1),
            _ => Err(X509Error::WebKey),
        };
    }
    let bits = rsa_bits(spki).map_err(malformed("certificate request"))?;
    if !bits.is_some_and(|bits| (MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits)) {
        return Err(X509Error::WebKey);
    }
    match signature {
        SHA_256_WITH_RSA_ENCRYPTION => Ok(&RSA_PKCS1_2048_8192_SHA256),
        SHA_384_WITH_RSA_ENCRYPTION => Ok(&RSA_PKCS1_2048_8192_SHA384),
        SHA_512_WITH_RSA_ENCRYPTION => Ok(&RSA_PKCS1_2048_8192_SHA512),
        _ => Err(X509Error::WebKey),
    }
}

//! Certificates of web sites, as somebody else issued them: what is read of one before it is served.

use const_oid::ObjectIdentifier;
use der::asn1::UintRef;
use der::{Decode, Sequence};
use rustls_pki_types::{CertificateDer, ServerName};
use x509_cert::ext::pkix::AuthorityKeyIdentifier;

use crate::x509::{Period, X509Error};

/// The shortest RSA key that is served (NIST SP 800-57 part 1, section 5.6: less is below 112 bits).
pub const MIN_RSA_BITS: usize = 2048;
/// RFC 8017, appendix C.
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// A site's certificate, parsed; nothing about it is verified: clients do that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebLeaf {
    der: CertificateDer<'static>,
    /// Validity.
    pub period: Period,
    /// The length of its key, if that is RSA.
    pub rsa_bits: Option<usize>,
}

/// RFC 8017, appendix A.1.1.
#[derive(Sequence)]
struct RsaPublicKey<'a> {
    modulus: UintRef<'a>,
    exponent: UintRef<'a>,
}

impl WebLeaf {
    /// Parses a leaf.
    pub fn parse(der: &CertificateDer<'_>) -> Result<WebLeaf, X509Error> {
        let malformed =
            |e: der::Error| X509Error::Malformed { what: "certificate", detail: e.to_string() };
        let cert = x509_cert::Certificate::from_der(der).map_err(malformed)?;
        let tbs = cert.tbs_certificate();
        let spki = tbs.subject_public_key_info();
        let rsa_bits = match spki.algorithm.oid == RSA {
            false => None,
            true => {
                let key = RsaPublicKey::from_der(spki.subject_public_key.raw_bytes());
                let modulus = key.map_err(malformed)?.modulus;
                let first = modulus.as_bytes().first().map_or(8, |b| b.leading_zeros() as usize);
                Some((modulus.as_bytes().len() * 8).saturating_sub(first))
            }
        };
        let seconds = |t: &x509_cert::time::Time| t.to_unix_duration().as_secs();
        let validity = tbs.validity();
        let period = Period {
            not_before: seconds(&validity.not_before),
            not_after: seconds(&validity.not_after),
        };
        Ok(WebLeaf { der: der.clone().into_owned(), period, rsa_bits })
    }

    /// How ACME renewal information names it (RFC 9773, section 4.1): the authority's key identifier, and
    /// the value of the DER-encoded serial number. `None` if it names no authority's key.
    pub fn renewal_id(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let cert = x509_cert::Certificate::from_der(&self.der).ok()?;
        let tbs = cert.tbs_certificate();
        let (_, aki) = tbs.get_extension::<AuthorityKeyIdentifier>().ok()??;
        let authority = aki.key_identifier?.as_bytes().to_vec();
        Some((authority, tbs.serial_number().as_bytes().to_vec()))
    }

    /// Whether it is for this name. `*.example.org` asks for that very wildcard.
    pub fn is_for(&self, name: &str) -> bool {
        // A wildcard in the certificate covers any one label.
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

//! A lenient parser for certificates (RFC 5280, 4.1). Errors that strict parsers reject are recorded as
//! problems.

use der::oid::ObjectIdentifier;
use jiff::Timestamp;

use super::algorithm::{self, Holds, Key};
use super::encoding::{self as asn1, Malformed, Reader, dotted, explicit, hex, implicit, time};
use super::name::{GeneralName, common_names, distinguished};
use super::sct;

/// The maximum number of names in a report. All names are compared with the host.
pub(super) const SHOWN_NAMES: usize = 1000;
/// The maximum number of other list items: a hostile certificate may have tens of thousands.
const MOST_URLS: usize = 10;
const MOST_EXTENSIONS: usize = 100;

#[derive(Debug, Clone)]
pub(super) struct X509<'a> {
    /// The signed part.
    tbs: &'a [u8],
    /// The name of the signature algorithm.
    pub(super) signature_algorithm: String,
    signature: &'a [u8],
    /// Without leading zeros.
    pub(super) serial: &'a [u8],
    /// The encoded names, for comparisons.
    pub(super) issuer: &'a [u8],
    pub(super) subject: &'a [u8],
    pub(super) not_before: Option<Timestamp>,
    pub(super) not_after: Option<Timestamp>,
    /// The whole SubjectPublicKeyInfo.
    pub(super) spki: &'a [u8],
    pub(super) key: Option<Key<'a>>,
    pub(super) extensions: Extensions<'a>,
    /// Encoding errors.
    pub(super) problems: Vec<String>,
}

/// The contents of its extensions.
#[derive(Debug, Clone, Default)]
pub(super) struct Extensions<'a> {
    pub(super) names: Vec<GeneralName>,
    pub(super) ca: bool,
    /// The purposes of extended key usage, by OID; `None` if any use is allowed.
    pub(super) usages: Option<Vec<String>>,
    pub(super) ocsp: Vec<String>,
    pub(super) issuers: Vec<String>,
    pub(super) crls: Vec<String>,
    pub(super) must_staple: bool,
    pub(super) scts: Option<&'a [u8]>,
}

const SUBJECT_ALT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const CRL_DISTRIBUTION_POINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.31");
const EXTENDED_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");
const AUTHORITY_INFO_ACCESS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.1.1");
const TLS_FEATURE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.1.24");
const ACCESS_OCSP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1");
const ACCESS_CA_ISSUERS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.2");
/// RFC 6962, 3.3.
const SCT_LIST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.11129.2.4.2");
/// RFC 6962, 3.1.
const PRECERTIFICATE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.11129.2.4.3");

/// Purposes by OID.
pub(super) const SERVER_AUTH: &str = "1.3.6.1.5.5.7.3.1";
pub(super) const OCSP_SIGNING: &str = "1.3.6.1.5.5.7.3.9";
pub(super) const ANY_USAGE: &str = "2.5.29.37.0";

impl<'a> X509<'a> {
    /// Parses anything with the basic structure of a certificate.
    pub(super) fn read(der: &'a [u8]) -> Result<Self, Malformed> {
        let mut x509 = Self::skim(der)?;
        // Record what a strict parser would reject.
        if let Err(error) = <x509_cert::Certificate as der::Decode>::from_der(der) {
            x509.problems.insert(0, format!("it is not strict DER: {error}"));
        }
        Ok(x509)
    }

    /// The same, without asking a strict parser.
    pub(super) fn skim(der: &'a [u8]) -> Result<Self, Malformed> {
        let mut problems = Vec::new();
        let mut outer = Reader(der);
        let certificate = outer.expect(asn1::SEQUENCE, "it is not a SEQUENCE")?;
        if !outer.is_empty() {
            problems.push(format!("{} bytes follow it", outer.0.len()));
        }
        let mut parts = certificate.inside();
        let tbs = parts.expect(asn1::SEQUENCE, "it has no TBSCertificate")?;
        let mut x509 = Self {
            tbs: tbs.whole,
            signature_algorithm: String::new(),
            signature: &[],
            serial: &[],
            issuer: &[],
            subject: &[],
            not_before: None,
            not_after: None,
            spki: &[],
            key: None,
            extensions: Extensions::default(),
            problems,
        };
        if let Err(error) = x509.read_signature(parts) {
            x509.problems.push(error.to_string());
        }
        if let Err(error) = x509.read_tbs(tbs.inside()) {
            x509.problems.push(error.to_string());
        }
        Ok(x509)
    }

    fn read_signature(&mut self, mut parts: Reader<'a>) -> Result<(), Malformed> {
        let algorithm = parts.expect(asn1::SEQUENCE, "its signature has no algorithm")?;
        self.signature_algorithm = algorithm::signature_name(algorithm);
        self.signature = parts.expect(asn1::BIT_STRING, "it has no signature")?.bits()?;
        Ok(())
    }

    fn read_tbs(&mut self, mut tbs: Reader<'a>) -> Result<(), Malformed> {
        let version = match tbs.optional(explicit(0))? {
            Some(version) => {
                version.inside().expect(asn1::INTEGER, "its version is not a number")?.value
            }
            None => &[0],
        };
        match version {
            [2] => {}
            [0] => self.problems.push("it has version 1, which is obsolete since 1996".to_owned()),
            [1] => self.problems.push("it has version 2".to_owned()),
            other => {
                self.problems.push(format!("its version is #{}", hex(&other[..other.len().min(8)])))
            }
        }
        let serial = tbs.expect(asn1::INTEGER, "it has no serial number")?.value;
        let zeros = serial.iter().take_while(|byte| **byte == 0).count();
        self.serial = &serial[zeros.min(serial.len().saturating_sub(1))..];
        // RFC 5280, 4.1.2.2.
        if serial.first().is_some_and(|byte| byte & 0x80 != 0) {
            self.problems.push("its serial number is negative".to_owned());
        } else if self.serial.len() > 20 {
            self.problems.push(format!("its serial number has {} bytes", self.serial.len()));
        } else if matches!(self.serial, [] | [0]) {
            self.problems.push("its serial number is zero".to_owned());
        }
        let inner = tbs.expect(asn1::SEQUENCE, "it has no inner signature algorithm")?;
        let inner = algorithm::signature_name(inner);
        if inner != self.signature_algorithm {
            self.problems.push(format!("its inner signature algorithm is different: {inner}"));
        }
        self.issuer = tbs.expect(asn1::SEQUENCE, "it has no issuer")?.whole;
        let mut validity = tbs.expect(asn1::SEQUENCE, "it has no validity")?.inside();
        for (what, into) in [("notBefore", &mut self.not_before), ("notAfter", &mut self.not_after)]
        {
            match validity.next().and_then(time) {
                Ok((at, strict)) => {
                    *into = Some(at);
                    if !strict {
                        self.problems
                            .push(format!("its {what} does not have the form of RFC 5280"));
                    }
                }
                Err(error) => self.problems.push(format!("its {what}: {error}")),
            }
        }
        if self.not_before > self.not_after && self.not_after.is_some() {
            self.problems.push("its validity ends before it starts".to_owned());
        }
        self.subject = tbs.expect(asn1::SEQUENCE, "it has no subject")?.whole;
        let spki = tbs.expect(asn1::SEQUENCE, "it has no key")?;
        self.spki = spki.whole;
        match Key::read(spki) {
            Ok(key) => self.key = Some(key),
            Err(error) => self.problems.push(format!("its key: {error}")),
        }
        // issuerUniqueID and subjectUniqueID are not used in practice.
        tbs.optional(implicit(1))?;
        tbs.optional(implicit(2))?;
        let Some(extensions) = tbs.optional(explicit(3))? else { return Ok(()) };
        let extensions =
            extensions.inside().expect(asn1::SEQUENCE, "its extensions are not a SEQUENCE")?;
        let mut seen = Vec::new();
        for extension in extensions.inside().readable() {
            if seen.len() == MOST_EXTENSIONS {
                self.problems.push(format!("it has more than {MOST_EXTENSIONS} extensions"));
                break;
            }
            let mut extension = extension.inside();
            let oid = extension.expect(asn1::OID, "an extension has no OID")?.value;
            extension.optional(asn1::BOOLEAN)?;
            let value = extension.expect(asn1::OCTET_STRING, "an extension has no value")?.value;
            if seen.contains(&oid) {
                self.problems.push(format!("it has the extension {} twice", dotted(oid)));
                continue;
            }
            seen.push(oid);
            if oid == PRECERTIFICATE.as_bytes() {
                self.problems.push("it is a precertificate, which must not be accepted".to_owned());
            }
            if let Err(error) = self.extensions.read(oid, value) {
                self.problems.push(format!("its extension {}: {error}", dotted(oid)));
            }
        }
        Ok(())
    }

    /// The subject alternative names as text, the first thousand.
    pub(super) fn names(&self) -> Vec<String> {
        self.extensions.names.iter().take(SHOWN_NAMES).map(GeneralName::shown).collect()
    }

    pub(super) fn common_names(&self) -> Vec<String> {
        common_names(self.subject)
    }

    pub(super) fn shown_subject(&self) -> String {
        match self.subject {
            [] => "(unreadable)".to_owned(),
            // The subject may be empty if there are alternative names.
            [asn1::SEQUENCE, 0] => match self.extensions.names.first() {
                Some(name) => format!("(no subject; {})", name.shown()),
                None => "(no subject)".to_owned(),
            },
            name => distinguished(name),
        }
    }

    pub(super) fn shown_issuer(&self) -> String {
        match self.issuer {
            [] => "(unreadable)".to_owned(),
            [asn1::SEQUENCE, 0] => "(no issuer)".to_owned(),
            name => distinguished(name),
        }
    }

    /// Whether it is signed with this key.
    pub(super) fn signed_by(&self, key: Option<&Key<'_>>) -> Holds {
        match key {
            Some(key) => {
                algorithm::verify(key, &self.signature_algorithm, self.tbs, self.signature)
            }
            None => Holds::Unknown,
        }
    }

    /// Whether `issuer` issued it, and whether the signature could be checked. If not, the names decide.
    pub(super) fn issued_by(&self, issuer: &X509<'_>) -> (bool, bool) {
        if self.issuer.is_empty() || self.issuer != issuer.subject {
            return (false, true);
        }
        match self.signed_by(issuer.key.as_ref()) {
            Holds::Yes => (true, true),
            Holds::No => (false, true),
            Holds::Unknown => (true, false),
        }
    }

    pub(super) fn self_signed(&self) -> bool {
        self.issued_by(self).0
    }

    /// Whether its extended key usage allows this purpose (RFC 5280, 4.2.1.12).
    pub(super) fn usable_for(&self, purpose: &str) -> bool {
        match &self.extensions.usages {
            None => true,
            Some(usages) => usages.iter().any(|usage| usage == purpose || usage == ANY_USAGE),
        }
    }

    pub(super) fn holds_at(&self, now: Timestamp) -> bool {
        self.not_before.is_some_and(|from| from <= now)
            && self.not_after.is_some_and(|until| now <= until)
    }
}

impl<'a> Extensions<'a> {
    fn read(&mut self, oid: &[u8], value: &'a [u8]) -> Result<(), Malformed> {
        let is = |known: ObjectIdentifier| known.as_bytes() == oid;
        let sequence = || Reader(value).expect(asn1::SEQUENCE, "it is not a SEQUENCE");
        if is(SUBJECT_ALT_NAME) {
            self.names = sequence()?.inside().readable().map(GeneralName::read).collect();
        } else if is(BASIC_CONSTRAINTS) {
            let ca = sequence()?.inside().optional(asn1::BOOLEAN)?;
            self.ca = ca.is_some_and(|ca| ca.value != [0]);
        } else if is(EXTENDED_KEY_USAGE) {
            let usages = sequence()?.inside().readable().take(MOST_URLS * 2);
            self.usages = Some(usages.map(|usage| dotted(usage.value)).collect());
        } else if is(AUTHORITY_INFO_ACCESS) {
            for access in sequence()?.inside().readable() {
                let mut access = access.inside();
                let method = access.expect(asn1::OID, "a method has no OID")?.value;
                let GeneralName::Uri(url) = GeneralName::read(access.next()?) else { continue };
                let urls = if method == ACCESS_OCSP.as_bytes() {
                    &mut self.ocsp
                } else if method == ACCESS_CA_ISSUERS.as_bytes() {
                    &mut self.issuers
                } else {
                    continue;
                };
                if urls.len() < MOST_URLS {
                    urls.push(url);
                }
            }
        } else if is(CRL_DISTRIBUTION_POINTS) {
            for point in sequence()?.inside().readable() {
                // DistributionPointName: [0] around fullName [0].
                let Some(point) = point.inside().optional(explicit(0))? else { continue };
                let Some(names) = point.inside().optional(explicit(0))? else { continue };
                let urls =
                    names.inside().readable().filter_map(|name| match GeneralName::read(name) {
                        GeneralName::Uri(url) => Some(url),
                        _ => None,
                    });
                self.crls.extend(urls.take(MOST_URLS - self.crls.len().min(MOST_URLS)));
            }
        } else if is(TLS_FEATURE) {
            // RFC 7633: numbers of TLS extensions; status_request is 5.
            self.must_staple = sequence()?.inside().readable().any(|feature| feature.value == [5]);
        } else if is(SCT_LIST) {
            let list = Reader(value).expect(asn1::OCTET_STRING, "it is not an OCTET STRING")?.value;
            self.scts = Some(list);
            sct::count(list)?;
        }
        Ok(())
    }
}

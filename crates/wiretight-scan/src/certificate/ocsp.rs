//! Stapled OCSP responses (RFC 6960; RFC 6066, 8): whether a response is valid for this certificate, current,
//! correctly signed, and says good.

use aws_lc_rs::digest;
use jiff::{SignedDuration, Timestamp};

use super::algorithm::{self, Holds, hash_name};
use super::encoding::{self as asn1, Malformed, Reader, Tlv, dotted, explicit, implicit, time};
use super::x509::{OCSP_SIGNING, X509};
use super::{Finding, day, sct};
use crate::facts::Answer;

/// The maximum size of a response; real ones have a few kilobytes.
pub(super) const MOST_BYTES: usize = 256 * 1024;
const MOST_RESPONSES: usize = 100;
const MOST_CERTIFICATES: usize = 10;

/// The tolerance for different clocks.
const SKEW: SignedDuration = SignedDuration::from_mins(5);

/// `id-pkix-ocsp-basic`.
const BASIC: &str = "1.3.6.1.5.5.7.48.1.1";
/// RFC 6962, 3.3: SCTs in a response.
const SCT_LIST: &str = "1.3.6.1.4.1.11129.2.4.5";

/// Whether a response says that this certificate is good, and is valid.
pub(super) fn check(
    response: &[u8],
    certificate: &X509<'_>,
    issuer: Option<&X509<'_>>,
    now: Timestamp,
) -> Finding {
    if response.len() > MOST_BYTES {
        return Finding::inconclusive(format!(
            "it has {} bytes, which is too long",
            response.len()
        ));
    }
    let basic = match Basic::read(response) {
        Ok(basic) => basic,
        Err(Refused::Status(status)) => {
            return Finding::no(format!("the responder answered {status}"));
        }
        Err(Refused::Malformed(error)) => {
            return Finding::no(format!("it cannot be read: {error}"));
        }
    };
    let Some(issuer) = issuer else {
        return Finding::inconclusive(
            "the issuer's certificate was not sent, but is needed to check the response",
        );
    };
    let single = match basic.about(certificate, issuer) {
        Ok(Some(single)) => single,
        Ok(None) => return Finding::no("it is for another certificate"),
        Err(error) => return Finding::no(format!("it cannot be read: {error}")),
    };
    match single.status {
        Status::Good => {}
        Status::Revoked(at) => {
            let when = at.map_or_else(String::new, |at| format!(" on {}", day(at)));
            return Finding::no(format!("it says that the certificate was revoked{when}"));
        }
        Status::Unknown => {
            return Finding::no("it says that the responder does not know the certificate");
        }
    }
    if single.this_update > now.saturating_add(SKEW).unwrap_or(now) {
        return Finding::no(format!("it is not valid before {}", day(single.this_update)));
    }
    let until = match single.next_update {
        Some(until) if until < now => {
            return Finding::no(format!("it was valid until {}", day(until)));
        }
        Some(until) => until,
        // Then newer information is always available (2.4), so a stapled response is never current.
        None => return Finding::no("it does not say until when it is valid"),
    };
    let by = basic.signed(issuer, now);
    match by.answer {
        Answer::Yes => Finding::yes(format!(
            "good from {} to {}, signed by {}",
            day(single.this_update),
            day(until),
            by.evidence
        )),
        _ => by,
    }
}

/// The number of SCTs in a response.
pub(super) fn timestamps(response: &[u8]) -> Result<usize, Malformed> {
    let Some(Ok(basic)) = (response.len() <= MOST_BYTES).then(|| Basic::read(response)) else {
        return Ok(0);
    };
    let mut count = 0;
    for single in basic.responses.inside().readable().take(MOST_RESPONSES) {
        let single = Single::read(single)?;
        let Some(extensions) = single.extensions else { continue };
        for extension in extensions.inside().expect(asn1::SEQUENCE, "")?.inside().readable() {
            let mut extension = extension.inside();
            if dotted(extension.expect(asn1::OID, "")?.value) != SCT_LIST {
                continue;
            }
            extension.optional(asn1::BOOLEAN)?;
            let value = extension.expect(asn1::OCTET_STRING, "an extension has no value")?;
            let list = value
                .inside()
                .expect(asn1::OCTET_STRING, "the timestamps are not an OCTET STRING")?;
            count += sct::count(list.value)?;
        }
    }
    Ok(count)
}

/// A BasicOCSPResponse (4.2.1).
struct Basic<'a> {
    signed: &'a [u8],
    responder: Tlv<'a>,
    responses: Tlv<'a>,
    algorithm: String,
    signature: &'a [u8],
    certificates: Vec<&'a [u8]>,
}

enum Refused {
    /// An OCSPResponseStatus other than `successful`.
    Status(&'static str),
    Malformed(Malformed),
}

impl From<Malformed> for Refused {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

impl<'a> Basic<'a> {
    fn read(response: &'a [u8]) -> Result<Self, Refused> {
        let mut response =
            Reader(response).expect(asn1::SEQUENCE, "it is not a SEQUENCE")?.inside();
        match response.expect(asn1::ENUMERATED, "it has no status")?.value {
            [0] => {}
            [1] => return Err(Refused::Status("malformedRequest")),
            [2] => return Err(Refused::Status("internalError")),
            [3] => return Err(Refused::Status("tryLater")),
            [5] => return Err(Refused::Status("sigRequired")),
            [6] => return Err(Refused::Status("unauthorized")),
            _ => return Err(Refused::Status("with an unknown status")),
        }
        let bytes = response.expect(explicit(0), "it is empty")?;
        let mut bytes = bytes.inside().expect(asn1::SEQUENCE, "it is empty")?.inside();
        let kind = bytes.expect(asn1::OID, "it has no type")?;
        if dotted(kind.value) != BASIC {
            return Err(Malformed("its type is not id-pkix-ocsp-basic").into());
        }
        let basic = bytes.expect(asn1::OCTET_STRING, "it is empty")?;
        let mut basic = basic.inside().expect(asn1::SEQUENCE, "it is not a SEQUENCE")?.inside();
        let data = basic.expect(asn1::SEQUENCE, "it has no data")?;
        let algorithm = basic.expect(asn1::SEQUENCE, "its signature has no algorithm")?;
        let signature = basic.expect(asn1::BIT_STRING, "it has no signature")?.bits()?;
        let certificates = match basic.optional(explicit(0))? {
            Some(certificates) => {
                let list = certificates.inside().expect(asn1::SEQUENCE, "it has no list")?;
                list.inside().readable().take(MOST_CERTIFICATES).map(|c| c.whole).collect()
            }
            None => Vec::new(),
        };
        let mut inside = data.inside();
        inside.optional(explicit(0))?;
        let responder = inside.next()?;
        inside.expect(asn1::GENERALIZED_TIME, "it does not say when it was made")?;
        let responses = inside.expect(asn1::SEQUENCE, "it has no responses")?;
        Ok(Self {
            signed: data.whole,
            responder,
            responses,
            algorithm: algorithm::signature_name(algorithm),
            signature,
            certificates,
        })
    }

    /// The response about this certificate.
    fn about(
        &self,
        certificate: &X509<'_>,
        issuer: &X509<'_>,
    ) -> Result<Option<Single<'a>>, Malformed> {
        for single in self.responses.inside().readable().take(MOST_RESPONSES) {
            let single = Single::read(single)?;
            if single.is_about(certificate, issuer)? {
                return Ok(Some(single));
            }
        }
        Ok(None)
    }

    /// Whether the issuer or an authorized responder signed it (4.2.2.2).
    fn signed(&self, issuer: &X509<'_>, now: Timestamp) -> Finding {
        if self.names(issuer) {
            return self.signed_with(issuer, "the issuer");
        }
        let mut why = "it is signed neither by the issuer nor by a certificate that it contains";
        for delegate in &self.certificates {
            let Ok(delegate) = X509::read(delegate) else { continue };
            if !self.names(&delegate) {
                continue;
            }
            match delegate.issued_by(issuer) {
                (true, true) => {}
                (true, false) => {
                    return Finding::inconclusive(format!(
                        "the signature {} of its signer's certificate cannot be checked here",
                        delegate.signature_algorithm
                    ));
                }
                (false, _) => {
                    why = "its signer's certificate is not signed by the issuer";
                    continue;
                }
            }
            let may =
                delegate.extensions.usages.iter().flatten().any(|usage| usage == OCSP_SIGNING);
            if !may {
                why = "its signer's certificate is not for signing OCSP responses";
            } else if !delegate.holds_at(now) {
                why = "its signer's certificate is expired, or not valid yet";
            } else {
                return self.signed_with(&delegate, "a responder authorized by the issuer");
            }
        }
        Finding::no(why)
    }

    fn signed_with(&self, signer: &X509<'_>, who: &str) -> Finding {
        let holds = match &signer.key {
            Some(key) => algorithm::verify(key, &self.algorithm, self.signed, self.signature),
            None => Holds::Unknown,
        };
        match (holds, algorithm::weak_hash(&self.algorithm)) {
            (Holds::No, _) => Finding::no("its signature is invalid"),
            (Holds::Unknown, _) => Finding::inconclusive(format!(
                "its signature, {}, cannot be checked here",
                self.algorithm
            )),
            (Holds::Yes, Some(weak)) => Finding::no(format!("it is signed with {weak}")),
            (Holds::Yes, None) => Finding::yes(who),
        }
    }

    /// Whether its ResponderID is this certificate.
    fn names(&self, signer: &X509<'_>) -> bool {
        match self.responder.tag {
            tag if tag == explicit(1) => self.responder.value == signer.subject,
            tag if tag == explicit(2) => {
                let by = self.responder.inside().expect(asn1::OCTET_STRING, "");
                let key = signer
                    .key
                    .as_ref()
                    .map(|key| digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, key.raw));
                by.is_ok_and(|by| key.is_some_and(|key| by.value == key.as_ref()))
            }
            _ => false,
        }
    }
}

struct Single<'a> {
    id: Tlv<'a>,
    status: Status,
    this_update: Timestamp,
    next_update: Option<Timestamp>,
    extensions: Option<Tlv<'a>>,
}

enum Status {
    Good,
    Revoked(Option<Timestamp>),
    Unknown,
}

impl<'a> Single<'a> {
    fn read(single: Tlv<'a>) -> Result<Self, Malformed> {
        let mut single = single.inside();
        let id = single.expect(asn1::SEQUENCE, "a response is about nothing")?;
        let status = single.next()?;
        let status = match status.tag {
            tag if tag == implicit(0) => Status::Good,
            tag if tag == explicit(1) => {
                Status::Revoked(status.inside().next().and_then(time).ok().map(|(at, _)| at))
            }
            tag if tag == implicit(2) => Status::Unknown,
            _ => return Err(Malformed("a response has no status")),
        };
        let this_update = time(single.next()?)?.0;
        let next_update = match single.optional(explicit(0))? {
            Some(at) => Some(time(at.inside().next()?)?.0),
            None => None,
        };
        let extensions = single.optional(explicit(1))?;
        Ok(Self { id, status, this_update, next_update, extensions })
    }

    /// Whether its CertID refers to this certificate and this issuer.
    fn is_about(&self, certificate: &X509<'_>, issuer: &X509<'_>) -> Result<bool, Malformed> {
        let mut id = self.id.inside();
        let hash = id.expect(asn1::SEQUENCE, "a CertID has no hash")?;
        let hash = hash_name(hash.inside().expect(asn1::OID, "a CertID has no hash")?.value);
        let name = id.expect(asn1::OCTET_STRING, "a CertID has no name")?.value;
        let key = id.expect(asn1::OCTET_STRING, "a CertID has no key")?.value;
        let serial = id.expect(asn1::INTEGER, "a CertID has no serial number")?.value;
        let hash = match hash {
            Some("sha1") => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Some("sha256") => &digest::SHA256,
            Some("sha384") => &digest::SHA384,
            Some("sha512") => &digest::SHA512,
            _ => return Err(Malformed("a CertID has an unknown hash")),
        };
        let zeros = serial.iter().take_while(|byte| **byte == 0).count();
        let serial = &serial[zeros.min(serial.len().saturating_sub(1))..];
        Ok(serial == certificate.serial
            && name == digest::digest(hash, issuer.subject).as_ref()
            && issuer
                .key
                .as_ref()
                .is_some_and(|issuer| key == digest::digest(hash, issuer.raw).as_ref()))
    }
}

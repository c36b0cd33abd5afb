//! Certificates that no public function makes: with other serial numbers, names and extensions, and encoded otherwise.

use rustls_pki_types::UnixTime;
use wiretight_tlog::note::KeyName;
use wiretight_tlog::{Checkpoint, LogSigner, Policy};

use super::*;
use crate::key::{Signer, SigningKey};
use crate::spiffe::TrustDomain;
use crate::x509::{self, Leaf, Profile};
use crate::{Refusal, Role, Transparency, TrustBundle};

const NOW: u64 = 1_800_000_000;

struct World {
    log: LogSigner,
    td: TrustDomain,
    root: (CertificateDer<'static>, SigningKey),
}

impl World {
    fn new() -> World {
        let td: TrustDomain = "example.org".parse().unwrap();
        let key = SigningKey::generate().unwrap();
        let profile = Profile::Root(td.clone());
        let (spki, period) = (key.public_key(), World::period());
        let tbs = Tbs::new(&profile, &spki, period, [1; 16], None, key.algorithm()).unwrap();
        let log = LogSigner::generate(KeyName::new("example.org/log").unwrap()).unwrap();
        World { log, td, root: (tbs.sign(&key).unwrap(), key) }
    }

    fn period() -> Period {
        Period { not_before: NOW - 60, not_after: NOW + 3600 }
    }

    /// A certificate with these bytes as its serial number, with a log proof. If there are 16 bytes, the last 8 must
    /// be the index 0.
    fn certificate(
        &self,
        profile: &Profile,
        key: &SigningKey,
        serial: &[u8],
        issuer: (&CertificateDer<'static>, &SigningKey),
    ) -> (CertificateDer<'static>, Vec<u8>) {
        let (spki, algorithm) = (key.public_key(), issuer.1.algorithm());
        let (period, above) = (World::period(), Some(issuer.0));
        let tbs = Tbs::new(profile, &spki, period, [2; 16], above, algorithm).unwrap();
        let mut made = TbsCertificate::from_der(tbs.der()).unwrap();
        made.serial_number = SerialNumber::new(serial).unwrap();
        let entry = made.entry().unwrap();
        let origin = self.log.public().name().to_string();
        let (root, extensions) = (Hash::leaf(&entry), Vec::new());
        let checkpoint = Checkpoint { origin, size: 1, root, extensions }.sign(&self.log).unwrap();
        let proof = Proof { extra: None, index: 0, hashes: Vec::new(), checkpoint }.to_string();
        let value = Utf8StringRef::new(&proof).unwrap().to_der().unwrap();
        let extn_value = OctetString::new(value).unwrap();
        made.extensions.push(Extension { extn_id: ID_LOG_PROOF, critical: false, extn_value });
        let proved = tbs.with_der(made.to_der().unwrap()).unwrap();
        (proved.sign(issuer.1).unwrap(), entry)
    }

    fn verify(&self, chain: &[CertificateDer<'static>]) -> Result<(), Refusal> {
        let bundle =
            TrustBundle::new(self.td.clone(), vec![self.root.0.clone()], Default::default());
        let policy = Policy::self_attested(self.log.public().clone());
        let bundle = bundle.unwrap().with(Transparency::required(policy));
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW));
        bundle.verify(chain, Role::Client, now).map(|_| ())
    }
}

#[test]
fn serial_numbers_that_revocations_cannot_name_are_rejected() {
    let w = World::new();
    let (root, root_key) = &w.root;
    let (above, below) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let leaf = Profile::Leaf("spiffe://example.org/service/db".parse().unwrap());
    let intermediate = Profile::Intermediate(w.td.clone());
    let ca = |serial: &[u8]| w.certificate(&intermediate, &above, serial, (root, root_key)).0;
    let of = |first: u8, len: usize| {
        let mut serial = vec![0; len];
        serial[1..len.min(8)].fill(0x99);
        serial[0] = first;
        serial
    };
    let good_ca = ca(&of(0x40, 16));
    let issue = |serial: &[u8]| w.certificate(&leaf, &below, serial, (&good_ca, &above));
    for first in [0x40, 0x55, 0x7f] {
        let serial = of(first, 16);
        let (certificate, entry) = issue(&serial);
        let read = Serial::from_bytes(&serial).unwrap();
        assert_eq!(Leaf::parse(&certificate).unwrap().serial, read);
        assert_eq!(x509::serial(&certificate), Some(read));
        assert_eq!(Serial::from_hex(&read.to_string()), Ok(read));
        assert_eq!(Series::try_from(read.series().to_string()), Ok(read.series()));
        let Ok(Entry::Certificate(logged)) = Entry::parse(&entry) else { panic!("{first:#x}") };
        assert_eq!(logged.series, Some(read.series()), "the monitor sees the same");
        assert_eq!(w.verify(&[certificate.clone(), good_ca.clone()]), Ok(()));
        let under = w.certificate(&leaf, &below, &of(0x40, 16), (&ca(&serial), &above)).0;
        assert_eq!(w.verify(&[under, ca(&serial)]).err(), None, "an intermediate, too");
    }
    // 16 bytes that start with 00 or another invalid byte, and shorter and longer numbers.
    for (first, len) in [
        (0x00, 16),
        (0x01, 16),
        (0x3f, 16),
        (0x40, 15),
        (0x40, 17),
        (0x7f, 20),
        (0x40, 8),
        (0x7f, 1),
    ] {
        let serial = of(first, len);
        assert!(Serial::from_bytes(&serial).is_err(), "{first:#x} {len}");
        let (certificate, entry) = issue(&serial);
        assert!(Leaf::parse(&certificate).is_err(), "{first:#x} {len}");
        assert_eq!(x509::serial(&certificate), None);
        assert!(Logged::from_certificate(&certificate).is_err());
        let Ok(Entry::Certificate(logged)) = Entry::parse(&entry) else { panic!("{first:#x}") };
        assert_eq!(logged.series, None, "{first:#x} {len}");
        let refused = w.verify(&[certificate, good_ca.clone()]);
        assert!(matches!(refused, Err(Refusal::NotAnSvid(_))), "{refused:?}");
        let bad = ca(&serial);
        let under = w.certificate(&leaf, &below, &of(0x40, 16), (&bad, &above)).0;
        let refused = w.verify(&[under, bad]);
        assert!(matches!(refused, Err(Refusal::BadChain { .. })), "{first:#x} {len}: {refused:?}");
    }
    for text in ["", "4", "40", "00112233445566778899aabbccddeeff", "4g"] {
        assert!(Serial::from_hex(text).is_err(), "{text}");
    }
    for text in ["0011223344556677", "8011223344556677", "4011223344556677aa", "401122334455667G"] {
        assert!(Series::try_from(text.to_owned()).is_err(), "{text}");
    }
}

/// A certificate of service/db, not signed, after `change` modified it.
fn altered(change: impl FnOnce(&mut TbsCertificate)) -> TbsCertificate {
    let key = SigningKey::generate().unwrap();
    let leaf = Profile::Leaf("spiffe://example.org/service/db".parse().unwrap());
    let (spki, algorithm) = (key.public_key(), key.algorithm());
    let tbs = Tbs::new(&leaf, &spki, World::period(), [2; 16], None, algorithm).unwrap();
    let mut made = TbsCertificate::from_der(tbs.der()).unwrap();
    change(&mut made);
    made
}

fn logged(certificate: &TbsCertificate) -> LoggedCertificate {
    match Entry::parse(&certificate.entry().unwrap()) {
        Ok(Entry::Certificate(logged)) => logged,
        other => panic!("{other:?}"),
    }
}

/// Replaces the subjectAltName; removes it if there are no names.
fn rename(certificate: &mut TbsCertificate, names: Vec<GeneralName>) {
    let oid = <SubjectAltName as const_oid::AssociatedOid>::OID;
    certificate.extensions.retain(|e| e.extn_id != oid);
    if !names.is_empty() {
        certificate.extensions.push(x509::extension(&SubjectAltName(names), false).unwrap());
    }
}

fn uri(id: &str) -> GeneralName {
    GeneralName::UniformResourceIdentifier(der::asn1::Ia5String::new(id).unwrap())
}

/// The monitor reports a certificate by these names, so none may be missing.
#[test]
fn a_logged_certificate_is_read_with_all_its_names() {
    let made = altered(|_| ());
    let read = logged(&made);
    assert_eq!(read.names, ["spiffe://example.org/service/db", "dns:db.service.example.org"]);
    let key = crate::PublicKey::new(made.subject_public_key_info.clone()).unwrap().hash();
    assert_eq!((read.is_ca, read.period, read.key), (false, World::period(), key));
    assert_eq!((read.issuer_key.map(|id| id.len()), read.follows), (Some(20), None));

    let address = |octets: &[u8]| GeneralName::IpAddress(OctetString::new(octets).unwrap());
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2];
    let odd = GeneralName::RegisteredId(COMMON_NAME);
    for (name, text) in [
        (uri("https://a.example"), "https://a.example".to_owned()),
        (GeneralName::Rfc822Name(der::asn1::Ia5String::new("a@b").unwrap()), "email:a@b".into()),
        (address(&[10, 0, 0, 1]), "ip:10.0.0.1".into()),
        (address(&mapped), "ip:10.0.0.2".into()),
        (address(&[0x20; 16]), format!("ip:2020{}", ":2020".repeat(7))),
        (address(&[1, 2, 3]), "other:address:010203".into()),
        (address(&[7; 32]), format!("other:address:{}", "07".repeat(32))),
        (address(&[7; 33]), format!("other:address:{}...", "07".repeat(32))),
        (odd, "other:name:8803550403".into()),
    ] {
        let mut names = vec![uri("spiffe://example.org/service/db")];
        names.push(name);
        let read = logged(&altered(|c| rename(c, names)));
        assert_eq!(read.names, ["spiffe://example.org/service/db", &text]);
    }
}

#[test]
fn a_common_name_that_does_not_repeat_the_identity_is_read_as_a_name() {
    let subject = |text: &str| text.parse::<x509_cert::name::Name>().unwrap();
    let read = |text: &str| logged(&altered(|c| c.subject = subject(text))).names.split_off(2);
    assert_eq!(read("CN=service/db,O=example.org"), Vec::<String>::new());
    assert_eq!(read("CN=service/d,O=example.org"), ["cn:service/d"]);
    assert_eq!(read("CN=a.example,CN=service/db"), ["cn:a.example"]);
    assert_eq!(read("O=a.example"), Vec::<String>::new());
    // In UTF-16.
    let mut der = subject("CN=abcd").to_der().unwrap();
    let at = der.len() - 6;
    der[at..].copy_from_slice(&[0x1e, 4, 0, b'h', 0x20, 0xac]);
    let utf16 = x509_cert::name::Name::from_der(&der).unwrap();
    assert_eq!(logged(&altered(|c| c.subject = utf16)).names[2..], ["cn:h\u{20ac}"]);
    // Without any other name.
    let nameless = |text: &str, ca: bool| {
        logged(&altered(|c| {
            rename(c, Vec::new());
            c.subject = subject(text);
            let constraints = BasicConstraints { ca, path_len_constraint: None };
            c.extensions.push(x509::extension(&constraints, true).unwrap());
        }))
    };
    assert_eq!(nameless("CN=a.example", false).names, ["cn:a.example"]);
    assert_eq!(nameless("O=a.example", false).names, ["subject:O=a.example"]);
    let ca = nameless("CN=a.example", true);
    assert_eq!((ca.is_ca, ca.names), (true, vec!["subject:CN=a.example".to_owned()]));
}

#[test]
fn a_key_link_counts_only_if_it_is_unique_and_for_the_only_identity() {
    let [before, next] = [(); 2].map(|()| SigningKey::generate().unwrap());
    let db: SpiffeId = "spiffe://example.org/service/db".parse().unwrap();
    let previous = crate::PublicKey::new(before.public_key()).unwrap();
    let (hash, spki) = (previous.hash(), next.public_key());
    let link = KeyLink::new(&db, previous, &spki, |message| before.sign(message)).unwrap();
    let follows = |change: &dyn Fn(&mut TbsCertificate)| {
        let made = altered(|c| {
            c.subject_public_key_info = spki.clone();
            c.extensions.push(link.extension().unwrap());
            change(c);
        });
        logged(&made).follows
    };
    assert_eq!(follows(&|_| ()), Some(hash));
    assert_eq!(follows(&|c| c.extensions.last_mut().unwrap().critical = true), None);
    assert_eq!(follows(&|c| c.extensions.push(link.extension().unwrap())), None);
    let two = || vec![uri("spiffe://example.org/service/db"), uri("spiffe://example.org/node/a")];
    assert_eq!(follows(&|c| rename(c, two())), None);
    let ca = BasicConstraints { ca: true, path_len_constraint: None };
    assert_eq!(follows(&|c| c.extensions.push(x509::extension(&ca, true).unwrap())), None);
}

#[test]
fn revocations_and_unknown_entries_are_parsed() {
    let series = vec![Series::new([5; 8])];
    let revocation = Revocation { at: NOW, indexes: vec![(3, 4), (9, 9)], series };
    assert_eq!(Entry::parse(&revocation.entry()), Ok(Entry::Revocation(revocation)));
    assert_eq!(Entry::parse(&[0x12, 0x34, 1, 2, 3]), Ok(Entry::Other(0x1234)));
    // A claim of a later version is not an error, but a malformed one of this version is.
    for kind in [3, 4] {
        let entry = |body: &str| Entry::parse(&[&[0, kind], body.as_bytes()].concat());
        assert_eq!(entry(r#"{"version":2,"news":[]}"#), Ok(Entry::Other(kind.into())));
        assert!(entry(r#"{"version":1,"news":[]}"#).is_err());
        assert!(entry(r#"{"version":"2"}"#).is_err() && entry("").is_err());
    }
    for bad in [&[][..], &[0], &[0, 1], &[0, 1, 0x30, 0], &[0, 2], &[0, 2, b'{']] {
        assert!(Entry::parse(bad).is_err(), "{bad:?}");
    }
}

/// A proof of this length, for a log with a single entry.
fn proof_of(w: &World, index: u64, len: usize) -> Proof {
    let with = |filler: usize| {
        let origin = w.log.public().name().to_string();
        let extensions = vec!["x".repeat(filler)];
        let root = Hash::leaf(b"");
        let checkpoint = Checkpoint { origin, size: 1, root, extensions }.sign(&w.log).unwrap();
        Proof { extra: None, index, hashes: Vec::new(), checkpoint }
    };
    let proof = with(len - (with(1).to_string().len() - 1));
    assert_eq!(proof.to_string().len(), len);
    proof
}

#[test]
fn proofs_are_limited_in_certificates_and_name_their_entry() {
    let w = World::new();
    let (key, td) = (&w.root.1, w.td.clone());
    let tbs = || {
        let (spki, algorithm) = (key.public_key(), key.algorithm());
        Tbs::new(&Profile::Root(td.clone()), &spki, World::period(), [2; 16], None, algorithm)
    };
    let read = |tbs: Tbs| Logged::from_certificate(&tbs.sign(key).unwrap());
    assert_eq!(read(tbs().unwrap()), Err(NotLogged::NoProof));
    let longest = proof_of(&w, 7, MAX_PROOF);
    assert_eq!(read(tbs().unwrap().proved(&longest).unwrap()).unwrap().proof, longest);
    assert!(tbs().unwrap().proved(&proof_of(&w, 7, MAX_PROOF + 1)).is_err());

    let changed = |change: &dyn Fn(&mut TbsCertificate)| {
        let proved = tbs().unwrap().proved(&longest).unwrap();
        let mut made = TbsCertificate::from_der(proved.der()).unwrap();
        change(&mut made);
        read(proved.with_der(made.to_der().unwrap()).unwrap())
    };
    assert!(changed(&|_| ()).is_ok());
    let other = changed(&|c| c.set_index(8).unwrap());
    assert_eq!(other, Err(NotLogged::WrongIndex { index: 7 }));
    let problem = |changed| match changed {
        Err(NotLogged::Malformed(why)) => why,
        other => panic!("{other:?}"),
    };
    let critical = changed(&|c| c.extensions.last_mut().unwrap().critical = true);
    assert_eq!(problem(critical), "its proof is critical or occurs twice");
    let twice = changed(&|c| c.extensions.push(c.extensions.last().unwrap().clone()));
    assert_eq!(problem(twice), "its proof is critical or occurs twice");
    let long = proof_of(&w, 7, MAX_PROOF + 1).to_string();
    let value = Utf8StringRef::new(&long).unwrap().to_der().unwrap();
    let long = changed(&|c| {
        c.extensions.last_mut().unwrap().extn_value = OctetString::new(value.clone()).unwrap();
    });
    assert_eq!(problem(long), "its proof is too long");
}

/// The log entry is made from the parsed certificate. Bytes that do not survive parsing would be signed, but not
/// logged.
#[test]
fn a_certificate_that_is_not_canonical_der_is_not_logged() {
    #[derive(der::Sequence)]
    struct Loose {
        #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
        version: u8,
        serial: der::Any,
        signature: der::Any,
        issuer: der::Any,
        validity: der::Any,
        subject: der::Any,
        key: der::Any,
        #[asn1(context_specific = "3", tag_mode = "EXPLICIT")]
        extensions: Vec<der::Any>,
    }
    #[derive(der::Sequence)]
    struct Explicit {
        id: ObjectIdentifier,
        critical: bool,
        value: OctetString,
    }
    let w = World::new();
    let (td, key) = (w.td.clone(), &w.root.1);
    let (spki, algorithm) = (key.public_key(), key.algorithm());
    let tbs = Tbs::new(&Profile::Root(td), &spki, World::period(), [2; 16], None, algorithm);
    let tbs = tbs.unwrap().proved(&proof_of(&w, 0, 500)).unwrap();
    let mut loose = Loose::from_der(tbs.der()).unwrap();
    assert_eq!(loose.to_der().unwrap(), tbs.der(), "control");
    let last = loose.extensions.last_mut().unwrap();
    let Extension { extn_id: id, critical, extn_value: value } = last.decode_as().unwrap();
    // DER omits a default value.
    *last = der::Any::encode_from(&Explicit { id, critical, value }).unwrap();
    let loose = tbs.with_der(loose.to_der().unwrap()).unwrap().sign(key).unwrap();
    assert_eq!(x509::period(&loose), Some(World::period()), "other parsers accept it");
    let refused = Logged::from_certificate(&loose).unwrap_err();
    assert!(refused.to_string().contains("not canonical"), "{refused}");
}

/// SPIFFE X509-SVID, section 5.2.
#[test]
fn only_certificates_of_one_identity_that_cannot_sign_are_svids() {
    use x509_cert::ext::pkix::{KeyUsage, KeyUsages};
    let leaf = |change: &dyn Fn(&mut TbsCertificate)| {
        let made = altered(change);
        let signer = SigningKey::generate().unwrap();
        let (spki, algorithm) = (signer.public_key(), signer.algorithm());
        let any = Profile::Web(Vec::new());
        let tbs = Tbs::new(&any, &spki, World::period(), [2; 16], None, algorithm).unwrap();
        let der = tbs.with_der(made.to_der().unwrap()).unwrap().sign(&signer).unwrap();
        Leaf::parse(&der).map(|leaf| leaf.id.to_string()).map_err(|e| e.to_string())
    };
    let usage = |usages: der::flagset::FlagSet<KeyUsages>| {
        leaf(&|c| {
            let oid = <KeyUsage as const_oid::AssociatedOid>::OID;
            let at = c.extensions.iter().position(|e| e.extn_id == oid).unwrap();
            c.extensions[at] = x509::extension(&KeyUsage(usages), true).unwrap();
        })
    };
    let db = || Ok("spiffe://example.org/service/db".to_owned());
    assert_eq!(leaf(&|_| ()), db());
    assert_eq!(usage(KeyUsages::DigitalSignature | KeyUsages::KeyAgreement), db());
    for bad in [
        KeyUsages::KeyAgreement.into(),
        KeyUsages::DigitalSignature | KeyUsages::KeyCertSign,
        KeyUsages::DigitalSignature | KeyUsages::CRLSign,
    ] {
        assert!(usage(bad).unwrap_err().contains("keyUsage must"), "{bad:?}");
    }
    let named = |names: &[&str]| leaf(&|c| rename(c, names.iter().map(|n| uri(n)).collect()));
    assert_eq!(named(&["spiffe://example.org/service/db"]), db());
    assert!(named(&[]).unwrap_err().contains("no subjectAltName"));
    assert!(named(&["https://a"]).unwrap_err().contains("SPIFFE ID"));
    let two = named(&["spiffe://example.org/service/db", "https://a"]).unwrap_err();
    assert!(two.contains("exactly one URI"), "{two}");
}

//! Certificates from request to verification, and every reason to reject a chain.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use rustls_pki_types::{CertificateDer, UnixTime};
use wiretight_keys::logged::Entry;
use wiretight_keys::verify::bundle_by_fingerprint;
use wiretight_keys::x509::{fingerprint, from_pem, to_pem};
use wiretight_keys::*;

const NOW: u64 = 1_790_000_000;

struct Ca {
    td: TrustDomain,
    root: CertificateDer<'static>,
    intermediate: CertificateDer<'static>,
    key: SigningKey,
}

fn ca(td: &str) -> Ca {
    let td: TrustDomain = td.parse().unwrap();
    let period = Period { not_before: NOW - 100, not_after: NOW + 10_000 };
    let root_key = SigningKey::generate().unwrap();
    let root = Tbs::new(
        &Profile::Root(td.clone()),
        &root_key.public_key(),
        period,
        [1; 16],
        None,
        root_key.algorithm(),
    );
    let root = root.unwrap().sign(&root_key).unwrap();
    let key = SigningKey::generate().unwrap();
    let intermediate = Tbs::new(
        &Profile::Intermediate(td.clone()),
        &key.public_key(),
        period,
        [2; 16],
        Some(&root),
        root_key.algorithm(),
    );
    let intermediate = intermediate.unwrap().sign(&root_key).unwrap();
    Ca { td, root, intermediate, key }
}

impl Ca {
    fn leaf(
        &self,
        profile: &Profile,
        key: &SigningKey,
        period: Period,
    ) -> Vec<CertificateDer<'static>> {
        let tbs = Tbs::new(
            profile,
            &key.public_key(),
            period,
            [3; 16],
            Some(&self.intermediate),
            self.key.algorithm(),
        );
        vec![tbs.unwrap().sign(&self.key).unwrap(), self.intermediate.clone()]
    }

    fn bundle(&self) -> TrustBundle {
        TrustBundle::new(self.td.clone(), vec![self.root.clone()], Revocations::default()).unwrap()
    }
}

fn at(secs: u64) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(secs))
}

fn id(s: &str) -> SpiffeId {
    s.parse().unwrap()
}

const HOUR: Period = Period { not_before: NOW - 60, not_after: NOW + 3600 };

#[test]
fn a_request_becomes_a_certificate_that_verifies() {
    let ca = ca("example.org");
    let key = SigningKey::generate().unwrap();
    let web = id("spiffe://example.org/service/web");
    let csr = Csr::parse(&Csr::create(&web, &key).unwrap()).unwrap();
    assert_eq!(csr.id, web);
    let tbs = Tbs::new(
        &Profile::Leaf(csr.id),
        csr.key.spki(),
        HOUR,
        [9; 16],
        Some(&ca.intermediate),
        ca.key.algorithm(),
    );
    let leaf = tbs.unwrap().sign(&ca.key).unwrap();
    let chain = [leaf.clone(), ca.intermediate.clone()];
    for role in [Role::Server, Role::Client] {
        let peer = ca.bundle().verify(&chain, role, at(NOW)).unwrap();
        assert_eq!(peer.id(), &web);
        assert_eq!(peer.not_after(), HOUR.not_after);
    }
    assert_eq!(from_pem(to_pem(&chain).as_bytes()).unwrap(), chain);
    assert_eq!(Leaf::parse(&leaf).unwrap().key, csr.key);
}

#[test]
fn a_renewal_is_linked_to_the_previous_key() {
    let (web, db) = (id("spiffe://example.org/service/web"), id("spiffe://example.org/service/db"));
    let [before, next, other] = [(); 3].map(|()| SigningKey::generate().unwrap());
    let public = |key: &SigningKey| PublicKey::new(key.public_key()).unwrap();
    let link = |id: &SpiffeId, by: &SigningKey, next: &SigningKey| {
        KeyLink::new(id, public(&before), &next.public_key(), |message| by.sign(message)).unwrap()
    };
    let asked = |link: &KeyLink| Csr::parse(&Csr::create_linked(&web, &next, Some(link)).unwrap());
    let good = link(&web, &before, &next);
    let csr = asked(&good).unwrap();
    assert_eq!(csr.link, Some(good.clone()));
    assert!(Csr::parse(&Csr::create(&web, &next).unwrap()).unwrap().link.is_none());
    for (bad, why) in [
        (link(&db, &before, &next), "for another identity"),
        (link(&web, &before, &other), "over another key"),
        (link(&web, &other, &next), "by another key"),
    ] {
        assert!(asked(&bad).is_err(), "{why}");
    }
    // The link is in the log entry; parsing the entry verifies it.
    let follows = |link: &KeyLink| {
        let profile = Profile::Leaf(web.clone());
        let key = next.public_key();
        let tbs = Tbs::new(&profile, &key, HOUR, [9; 16], None, next.algorithm()).unwrap();
        match Entry::parse(&tbs.linked(link).unwrap().entry().unwrap()) {
            Ok(Entry::Certificate(certificate)) => certificate.follows,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(follows(&good), Some(public(&before).hash()));
    assert_eq!(follows(&link(&web, &other, &next)), None);
    assert_eq!(follows(&link(&db, &before, &next)), None);
}

#[test]
fn an_altered_request_is_rejected() {
    let key = SigningKey::generate().unwrap();
    let der = Csr::create(&id("spiffe://example.org/service/web"), &key).unwrap();
    assert!(Csr::parse(&der).is_ok());
    for i in 0..der.len() {
        let mut altered = der.clone();
        altered[i] ^= 1;
        assert!(Csr::parse(&altered).is_err(), "byte {i}");
        assert!(Csr::parse(&der[..i]).is_err(), "cut at {i}");
    }
}

/// The name of the variant.
fn kind(refusal: Refusal) -> String {
    let all = format!("{refusal:?}");
    all.split(|c: char| !c.is_alphanumeric()).next().unwrap().to_owned()
}

#[test]
fn invalid_chains_are_rejected_with_the_right_reason() {
    let (ours, twin, other) = (ca("example.org"), ca("example.org"), ca("other.org"));
    let key = SigningKey::generate().unwrap();
    let web = Profile::Leaf(id("spiffe://example.org/service/web"));
    let verify = |chain: &[CertificateDer<'static>]| {
        ours.bundle().verify(chain, Role::Client, at(NOW)).map_err(kind)
    };
    let good = ours.leaf(&web, &key, HOUR);
    assert!(verify(&good).is_ok());

    assert_eq!(verify(&[]), Err("NoCertificate".into()));
    assert_eq!(verify(&twin.leaf(&web, &key, HOUR)), Err("Untrusted".into()));
    let theirs = Profile::Leaf(id("spiffe://other.org/service/web"));
    assert_eq!(verify(&other.leaf(&theirs, &key, HOUR)), Err("WrongTrustDomain".into()));
    // Another authority that uses our trust domain is not trusted.
    assert_eq!(verify(&other.leaf(&web, &key, HOUR)), Err("Untrusted".into()));
    let old = Period { not_before: NOW - 7200, not_after: NOW - 3600 };
    assert_eq!(verify(&ours.leaf(&web, &key, old)), Err("Expired".into()));
    let future = Period { not_before: NOW + 60, not_after: NOW + 3600 };
    assert_eq!(verify(&ours.leaf(&web, &key, future)), Err("NotYetValid".into()));
    // A CA certificate is not an identity, and a leaf may not sign.
    assert_eq!(verify(&[ours.intermediate.clone(), ours.root.clone()]), Err("NotAnSvid".into()));
    let child = Tbs::new(&web, &key.public_key(), HOUR, [4; 16], Some(&good[0]), key.algorithm());
    let child = child.unwrap().sign(&key).unwrap();
    let chain = [child, good[0].clone(), ours.intermediate.clone()];
    assert_eq!(verify(&chain), Err("Untrusted".into()));
    assert_eq!(verify(&good[..1]), Err("Untrusted".into()));
    assert_eq!(verify(&vec![good[0].clone(); 5]), Err("ChainTooLarge".into()));

    // Revoking a series revokes all of its certificates and no others.
    let series = Leaf::parse(&good[0]).unwrap().serial.series();
    for (revoked, refused) in [(series, true), (Series::new([7; 8]), false)] {
        let revoked = Revocations { series: [revoked].into(), ..Default::default() };
        let bundle = TrustBundle::new(ours.td.clone(), vec![ours.root.clone()], revoked).unwrap();
        let reason = bundle.verify(&good, Role::Client, at(NOW)).map_err(kind);
        assert_eq!(reason.err(), refused.then(|| "Revoked".into()));
    }
    for index in [0, u64::MAX] {
        let serial = Series::new([0xff; 8]).serial(index);
        assert_eq!(Serial::from_bytes(serial.as_bytes()), Ok(serial));
        assert_eq!((serial.series(), serial.index()), (Series::new([0xff; 8]), index));
    }
    assert!(Serial::from_bytes(&[1, 2, 3]).is_err());
    for bad in ["", "0123456789ABCDEF", "0123456789abcde", "0123456789abcdefa", "0123456789abcdeg"]
    {
        assert!(Series::try_from(bad.to_owned()).is_err(), "{bad}");
    }
}

#[test]
fn a_flipped_bit_anywhere_in_a_leaf_is_rejected() {
    let ca = ca("example.org");
    let key = SigningKey::generate().unwrap();
    let web = Profile::Leaf(id("spiffe://example.org/service/web"));
    let good = ca.leaf(&web, &key, HOUR);
    for i in 0..good[0].len() {
        let mut altered = good[0].to_vec();
        altered[i] ^= 0x10;
        let chain = [CertificateDer::from(altered), good[1].clone()];
        assert!(ca.bundle().verify(&chain, Role::Client, at(NOW)).is_err(), "byte {i}");
    }
}

#[test]
fn a_first_join_authenticates_the_authority_by_its_root() {
    let (ca, other) = (ca("example.org"), self::ca("example.org"));
    let key = SigningKey::generate().unwrap();
    let mut chain = ca.leaf(&Profile::Leaf(id("spiffe://example.org/authority")), &key, HOUR);
    chain.push(ca.root.clone());
    let bundle = bundle_by_fingerprint(&ca.td, &fingerprint(&ca.root), &chain).unwrap();
    assert_eq!(bundle.verify(&chain, Role::Server, at(NOW)).unwrap().id().id, Id::Authority);
    assert!(bundle_by_fingerprint(&ca.td, &fingerprint(&other.root), &chain).is_none());
}

#[test]
fn a_web_certificate_is_never_an_identity() {
    let ca = ca("example.org");
    let key = SigningKey::generate().unwrap();
    let names = ["B.example.org", "a.example.org", "a.example.org"].map(str::to_owned);
    let csr = WebCsr::parse(&WebCsr::create(&names, &key).unwrap()).unwrap();
    assert_eq!(csr.names(), ["a.example.org", "b.example.org"]);
    // Such a certificate is not an identity, not even with the DNS name of a service.
    let mut for_names = csr.names().to_vec();
    for_names.push(id("spiffe://example.org/service/web").dns_name());
    let chain = ca.leaf(&Profile::Web(for_names), &key, HOUR);
    let leaf = WebLeaf::parse(&chain[0]).unwrap();
    assert!(leaf.is_for("a.example.org") && leaf.is_for("b.example.org"));
    assert!(!leaf.is_for("c.example.org"));
    assert_eq!(leaf.period, HOUR);
    assert!(Leaf::parse(&chain[0]).is_err());
    for role in [Role::Server, Role::Client] {
        assert!(ca.bundle().verify(&chain, role, at(NOW)).is_err());
    }
}

#[test]
fn an_altered_web_request_is_rejected() {
    let key = SigningKey::generate().unwrap();
    let der = WebCsr::create(&["a.example.org".to_owned()], &key).unwrap();
    assert!(WebCsr::parse(&der).is_ok());
    for i in 0..der.len() {
        let mut altered = der.clone();
        altered[i] ^= 1;
        assert!(WebCsr::parse(&altered).is_err(), "byte {i}");
    }
    let long = vec![0x30; WebCsr::MAX_LEN + 1];
    assert!(WebCsr::parse(&long).is_err());
    for bad in ["", "*.example.org", "a b", "10.0.0.1", "a..b", "-a.b"] {
        let der = WebCsr::create(&[bad.to_owned()], &key).unwrap();
        assert!(WebCsr::parse(&der).is_err(), "{bad:?}");
    }
    assert!(WebCsr::parse(&WebCsr::create(&[], &key).unwrap()).is_err());
    let many: Vec<_> = (0..=WebCsr::MAX_NAMES).map(|i| format!("n{i}.example.org")).collect();
    assert!(WebCsr::parse(&WebCsr::create(&many, &key).unwrap()).is_err());
}

/// A request made by the openssl program; `None` if it is not installed.
fn openssl(args: &[&str]) -> Option<Vec<u8>> {
    let mut command = std::process::Command::new("openssl");
    command.args(["req", "-new", "-nodes", "-keyout", "/dev/null", "-outform", "DER"]).args(args);
    let Ok(output) = command.output() else {
        assert!(std::env::var_os("CI").is_none(), "openssl is not installed");
        return None;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(output.stdout)
}

#[test]
fn openssl_requests_are_accepted_or_rejected() {
    let san = ["-addext", "subjectAltName=DNS:b.example.org,DNS:A.example.org"];
    let p256 = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
    let p384 = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"];
    let p521 = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-521"];
    let parse = |key: &[&str], more: &[&str]| Some(WebCsr::parse(&openssl(&[key, more].concat())?));
    for key in [&["-newkey", "rsa:2048"][..], &["-newkey", "rsa:2048", "-sha512"], &p256, &p384] {
        let Some(csr) = parse(key, &[&["-subj", "/"][..], &san].concat()) else { return };
        assert_eq!(csr.unwrap().names(), ["a.example.org", "b.example.org"], "{key:?}");
        // A common name counts as a DNS name.
        let csr = parse(key, &[&["-subj", "/O=x/CN=C.example.org"][..], &san].concat());
        let all = ["a.example.org", "b.example.org", "c.example.org"];
        assert_eq!(csr.unwrap().unwrap().names(), all);
        let csr = parse(key, &["-subj", "/CN=c.example.org"]).unwrap().unwrap();
        assert_eq!(csr.names(), ["c.example.org"]);
    }
    for key in [&["-newkey", "rsa:1024"][..], &["-newkey", "rsa:2048", "-sha1"], &p521] {
        assert!(parse(key, &["-subj", "/CN=a.example.org"]).unwrap().is_err(), "{key:?}");
    }
    for other in ["IP:10.0.0.1", "URI:spiffe://example.org/service/web", "email:a@example.org"] {
        let san = format!("subjectAltName=DNS:a.example.org,{other}");
        let csr = parse(&p256, &["-subj", "/", "-addext", &san]).unwrap();
        assert!(matches!(csr, Err(X509Error::NotDnsNames { .. })), "{other}");
    }
}

#[test]
fn renewal_id_uses_the_encoded_serial_number() {
    let make = |serial: &str| {
        openssl(&[
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-subj",
            "/CN=x",
            "-set_serial",
            serial,
        ])
    };
    // The example in RFC 9773, section 4.1, whose encoding starts with a zero byte, and one without that.
    let Some(high) = make("0x87654321") else { return };
    let id = |der: Vec<u8>| WebLeaf::parse(&der.into()).unwrap().renewal_id().unwrap();
    let (authority, serial) = id(high);
    assert_eq!(serial, [0x00, 0x87, 0x65, 0x43, 0x21]);
    assert_eq!(authority.len(), 20);
    assert_eq!(id(make("0x17654321").unwrap()).1, [0x17, 0x65, 0x43, 0x21]);
}

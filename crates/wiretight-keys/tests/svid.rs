//! Certificates from request to verification, and every reason to reject a chain.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use rustls_pki_types::{CertificateDer, UnixTime};
use wiretight_keys::logged::Entry;
use wiretight_keys::verify::bundle_by_fingerprint;
use wiretight_keys::web::{answers_challenge, is_host_name};
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
    let serial = Series::new([9; 8]).serial(333);
    let tbs = Tbs::new(
        &Profile::Leaf(csr.id),
        csr.key.spki(),
        HOUR,
        serial,
        Some(&ca.intermediate),
        ca.key.algorithm(),
    );
    let leaf = tbs.unwrap().sign(&ca.key).unwrap();
    assert_eq!(Leaf::parse(&leaf).unwrap().serial, serial);
    let text = "4909090909090909000000000000014d";
    assert_eq!((serial.to_string(), serde_json::json!(serial)), (text.to_owned(), text.into()));
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
fn successive_authorities_have_different_names() {
    let name = |cert: &CertificateDer<'_>, what: &str| {
        let at = cert.windows(what.len()).rposition(|part| part == what.as_bytes()).unwrap();
        cert[at + what.len()..][..9].to_vec()
    };
    let (one, other) = (ca("example.org"), ca("example.org"));
    assert_ne!(name(&one.root, "Wiretight root"), name(&other.root, "Wiretight root"));
    let what = "Wiretight intermediate";
    assert_ne!(name(&one.intermediate, what), name(&other.intermediate, what));
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
    // The leaf, its intermediate, the root, and one to spare.
    let four = [&good[..], &[ours.root.clone(), ours.root.clone()]].concat();
    assert!(verify(&four).is_ok());
    assert_eq!(verify(&[&four[..], &four[3..]].concat()), Err("ChainTooLarge".into()));
    let large = |len| [good[0].clone(), good[1].clone(), CertificateDer::from(vec![0; len])];
    assert!(verify(&large(26 * 1024)).is_ok());
    assert_eq!(verify(&large(26 * 1024 + 1)), Err("ChainTooLarge".into()));
    // What the refusal tells the operator.
    let refusal =
        |period| ours.bundle().verify(&ours.leaf(&web, &key, period), Role::Client, at(NOW));
    let web_id = || id("spiffe://example.org/service/web");
    assert_eq!(refusal(old), Err(Refusal::Expired { id: web_id(), ago: 3600 }));
    assert_eq!(refusal(future), Err(Refusal::NotYetValid { id: web_id(), ahead: 60 }));
    // The last and the first second.
    assert!(refusal(Period { not_before: NOW - 60, not_after: NOW }).is_ok());
    assert!(refusal(Period { not_before: NOW, not_after: NOW + 60 }).is_ok());

    // Revoking a series revokes all of its certificates and no others.
    let series = Leaf::parse(&good[0]).unwrap().serial.series();
    for (revoked, refused) in [(series, true), (Series::new([7; 8]), false)] {
        let revoked = Revocations { series: [revoked].into(), ..Default::default() };
        let bundle = TrustBundle::new(ours.td.clone(), vec![ours.root.clone()], revoked).unwrap();
        let reason = bundle.verify(&good, Role::Client, at(NOW)).map_err(kind);
        assert_eq!(reason.err(), refused.then(|| "Revoked".into()));
        assert_eq!(bundle.is_revoked(&series.serial(7)), refused);
    }
    // So does revoking its log entry, by a range of indexes, or its root.
    let index = Leaf::parse(&good[0]).unwrap().serial.index();
    let root = fingerprint(&ours.root);
    let of = |from, to| Revocations { indexes: vec![(7, 7), (from, to)], ..Default::default() };
    for (revoked, refused) in [
        (of(index, index), true),
        (of(0, index), true),
        (of(index, u64::MAX), true),
        (of(index + 1, u64::MAX), false),
        (of(index - 1, index - 1), false),
        (Revocations { roots: [root].into(), ..Default::default() }, true),
        (Revocations { roots: [[0; 32]].into(), ..Default::default() }, false),
    ] {
        let peer = ours.bundle().verify(&good, Role::Client, at(NOW)).unwrap();
        let bundle = TrustBundle::new(ours.td.clone(), vec![ours.root.clone()], revoked).unwrap();
        assert_eq!(bundle.verify(&good, Role::Client, at(NOW)).is_err(), refused);
        assert_eq!(bundle.stands_by(&peer), !refused, "a peer that was verified earlier");
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
    assert_eq!((bundle.roots(), bundle.trust_domain()), (&[ca.root.clone()][..], &ca.td));
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
    assert!(WebCsr::parse(&WebCsr::create(&[], &key).unwrap()).is_err());
    let many: Vec<_> = (0..=WebCsr::MAX_NAMES).map(|i| format!("n{i}.example.org")).collect();
    assert!(WebCsr::parse(&WebCsr::create(&many, &key).unwrap()).is_err());
    assert!(WebCsr::parse(&WebCsr::create(&many[1..], &key).unwrap()).is_ok());
}

#[test]
fn requests_over_the_size_limit_are_not_parsed() {
    for (limit, problem) in [
        (Csr::MAX_LEN, (|der| Csr::parse(der).map(|_| ())) as fn(&[u8]) -> Result<(), X509Error>),
        (WebCsr::MAX_LEN, |der| WebCsr::parse(der).map(|_| ())),
    ] {
        let problem = |len: usize| problem(&vec![0x30; len]).unwrap_err().to_string();
        assert!(problem(limit + 1).ends_with(&format!("more than {limit}")));
        assert!(!problem(limit).contains("more than"));
    }
}

#[test]
fn only_host_names_are_certified() {
    let key = SigningKey::generate().unwrap();
    let accepted = |name: &str| {
        let der = WebCsr::create(&[name.to_owned()], &key).unwrap();
        let accepted = WebCsr::parse(&der).is_ok();
        assert_eq!(accepted, is_host_name(name), "{name:?}");
        accepted
    };
    let labels = |last: usize| {
        [&"a".repeat(63), &"b".repeat(63), &"c".repeat(63), "d"]
            .join(".")
            .replace('d', &"d".repeat(last))
    };
    for good in ["a", "a.b", "a-1.b_c.d0", "1.a", "0x1", &"a".repeat(63), &labels(61)] {
        assert!(accepted(good), "{good:?}");
    }
    for bad in [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "*.example.org",
        "a b",
        "a/b",
        "10.0.0.1",
        "1",
        "a.1",
        "-a.b",
        "a-.b",
        "a.b-",
        "::1",
        &"a".repeat(64),
        &labels(62),
    ] {
        assert!(!accepted(bad), "{bad:?}");
    }
}

#[test]
fn an_acme_challenge_is_answered_by_the_certificate_made_for_it() {
    let key = SigningKey::generate().unwrap();
    let digest = [5; 32];
    let made = |profile: &Profile| {
        let (spki, algorithm) = (key.public_key(), key.algorithm());
        Tbs::new(profile, &spki, HOUR, [9; 16], None, algorithm).unwrap().sign(&key).unwrap()
    };
    let good = made(&Profile::AcmeChallenge { name: "a.example.org".into(), digest });
    assert!(answers_challenge(&good, "a.example.org", &digest));
    assert!(answers_challenge(&good, "A.example.org", &digest));
    assert!(!answers_challenge(&good, "b.example.org", &digest));
    assert!(!answers_challenge(&good, "a.example.org", &[6; 32]));
    assert!(!answers_challenge(
        &made(&Profile::Web(vec!["a.example.org".into()])),
        "a.example.org",
        &digest
    ));
    assert!(!answers_challenge(&CertificateDer::from(vec![0x30, 0]), "a.example.org", &digest));
    // Without "critical" (DER: BOOLEAN TRUE, which is omitted otherwise) any issuer could be made to include it.
    let mut lax = good.to_vec();
    let oid = [0x06, 8, 0x2b, 6, 1, 5, 5, 7, 1, 0x1f];
    let at = lax.windows(oid.len()).position(|w| w == oid).unwrap() + oid.len();
    assert_eq!(lax[at..at + 3], [1, 1, 0xff]);
    lax[at + 2] = 0;
    assert!(!answers_challenge(&lax.into(), "a.example.org", &digest));
}

#[test]
fn a_site_certificate_is_matched_by_exact_name_or_wildcard() {
    let ca = ca("example.org");
    let key = SigningKey::generate().unwrap();
    let names = ["*.example.org", "b.example.org", "c.b.example.org"].map(str::to_owned);
    let chain = ca.leaf(&Profile::Web(names.to_vec()), &key, HOUR);
    let leaf = WebLeaf::parse(&chain[0]).unwrap();
    for name in ["a.example.org", "b.example.org", "c.b.example.org", "*.example.org"] {
        assert!(leaf.is_for(name), "{name}");
    }
    for name in ["example.org", "a.b.example.org", "*.b.example.org", "*.org", "", "a b", "*."] {
        assert!(!leaf.is_for(name), "{name}");
    }
    assert_eq!((leaf.rsa_bits, leaf.period), (None, HOUR));
    let subject_key = PublicKey::new(key.public_key()).unwrap();
    assert_eq!(web::spki(&chain[0]), Some(subject_key.to_der()));
    assert_eq!(x509::key_hash(&chain[0]), Some(subject_key.hash()));
    assert_eq!(x509::not_after(&chain[0]), Some(HOUR.not_after));
    for nothing in [&chain[0][1..], &[]] {
        assert_eq!((x509::key_hash(nothing), x509::not_after(nothing)), (None, None));
    }
}

#[test]
fn the_length_of_an_rsa_key_is_read() {
    for bits in [1024, 1033] {
        let made = openssl(&["-x509", "-newkey", &format!("rsa:{bits}"), "-subj", "/CN=x"]);
        let Some(der) = made else { return };
        assert_eq!(WebLeaf::parse(&der.into()).unwrap().rsa_bits, Some(bits));
    }
}

#[test]
fn pem_blocks_of_another_type_are_rejected() {
    let key = SigningKey::generate().unwrap();
    let pem = key.to_pem();
    assert_eq!(SigningKey::from_pem(pem.as_bytes()).unwrap().to_pkcs8(), key.to_pkcs8());
    let other = pem.replace("PRIVATE KEY", "EC PRIVATE KEY");
    assert!(SigningKey::from_pem(other.as_bytes()).is_err());
    let csr = Csr::create(&id("spiffe://example.org/service/web"), &key).unwrap();
    let pem = x509::csr_to_pem(&csr);
    assert_eq!(x509::csr_from_pem(&pem), Ok(csr));
    assert!(x509::csr_from_pem(&pem.replace("CERTIFICATE REQUEST", "CERTIFICATE")).is_err());
    assert!(x509::from_pem(pem.as_bytes()).is_err(), "no certificate in it");
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
    for key in [&["-newkey", "rsa:2048"][..], &p256, &p384] {
        assert!(parse(key, &["-sha384", "-subj", "/CN=a.example.org"]).unwrap().is_ok(), "{key:?}");
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

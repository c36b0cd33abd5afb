//! Chains created by openssl; each invalid one has a valid counterpart.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod lab;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::signature::{KeyPair, ML_DSA_65_SIGNING, PqdsaKeyPair};
use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::CertificateDer;
use wiretight_scan::Host;
use wiretight_scan::certificate::{Examined, Presented, Roots, Stores, WITHOUT_NAME, examine};
use wiretight_scan::facts::Answer::{self, Inconclusive, No, Untested, Yes};
use wiretight_scan::facts::Value;

use crate::lab::{AUTHORITY, LEAF, Lab, SERVER, Spec, tlv};

/// An expectation: fact, answer, and a part of its evidence.
type Says<'a> = (&'a str, Answer, &'a str);

fn shown(certificates: &[&[u8]]) -> Presented {
    Presented {
        when: "default".to_owned(),
        certificates: certificates.iter().map(|der| der.to_vec()).collect(),
        ..Presented::default()
    }
}

fn roots(der: &[&[u8]]) -> Roots {
    Roots::from_der(der.iter().map(|der| CertificateDer::from(der.to_vec()))).unwrap()
}

fn trusting(root: &[u8]) -> Stores {
    Stores { roots: Some(roots(&[root])), mesh: None }
}

fn host(name: &str) -> Host {
    name.parse().unwrap()
}

fn check(what: &str, examined: &Examined, says: &[Says<'_>]) {
    for (id, answer, evidence) in says {
        let fact = examined.facts.get(&format!("certificate.{id}"));
        let fact =
            fact.or_else(|| examined.facts.get(id)).unwrap_or_else(|| panic!("{what}: no {id}"));
        assert_eq!(fact.answer, *answer, "{what}: {id}: {fact:?}");
        assert!(fact.evidence.contains(evidence), "{what}: {id}: {fact:?}");
    }
}

/// The facts of a chain for www.example.test.
fn look(lab: &Lab, certificates: &[&[u8]]) -> Examined {
    let name = host("www.example.test");
    examine(&[shown(certificates)], Some(&name), now(), &trusting(&lab.der("root")))
}

/// Shortly after the certificates were created.
fn now() -> Timestamp {
    Timestamp::now() + SignedDuration::from_mins(1)
}

fn days(n: i64) -> SignedDuration {
    SignedDuration::from_hours(24 * n)
}

#[test]
fn a_good_chain_has_no_problems() {
    let Some(lab) = Lab::new() else { return };
    let (leaf, intermediate) = (lab.make("leaf", LEAF), lab.der("intermediate"));
    let examined = look(&lab, &[&leaf, &intermediate]);
    check(
        "good",
        &examined,
        &[
            ("trusted", Yes, "leads to CN=Root,O=Test"),
            ("trusted_by_mesh", Untested, "no trust bundle"),
            ("name", Yes, "www.example.test"),
            ("valid", Yes, "CN=www.example.test expires first"),
            ("ordered", Yes, "2 certificates"),
            ("complete", Yes, "CN=Intermediate"),
            ("self_signed", No, "CN=Intermediate"),
            ("weak_signature", No, "ecdsa-sha256"),
            ("key_bits", Yes, "ecdsa-p256"),
            ("keys", Yes, "ecdsa-p256"),
            ("scts", No, "none"),
            ("must_staple", No, ""),
            ("ocsp_stapled", No, ""),
            ("ocsp_good", Untested, ""),
            ("revocation", Yes, "OCSP at http://ocsp.example.test"),
            ("wildcard", No, ""),
            ("lifetime", Yes, "days"),
            ("key_usage", Yes, "serverAuth"),
            ("vulnerability.roca", No, ""),
        ],
    );
    assert_eq!(examined.facts.number("certificate.valid"), Some(89));
    assert_eq!(examined.facts.number("certificate.key_bits"), Some(256));
    assert_eq!(examined.facts.number("certificate.lifetime"), Some(91));
    assert_eq!(examined.facts.list("certificate.keys"), ["ecdsa-p256"]);
    let [chain] = &examined.chains[..] else { panic!("{:?}", examined.chains) };
    assert_eq!(chain.trusted, Yes);
    let first = &chain.certificates[0];
    assert_eq!(first.subject, "CN=www.example.test");
    assert_eq!(first.issuer, "CN=Intermediate,O=Test");
    assert_eq!(first.serial, "1001");
    assert_eq!(first.names, ["www.example.test"]);
    assert_eq!(first.signature, "ecdsa-sha256");
    assert!(!first.ca && chain.certificates[1].ca);
    assert_eq!(first.problems, [""; 0]);
    // The same chain in several answers is listed once.
    let again = [
        shown(&[&leaf, &intermediate]),
        Presented { when: "rsa only".to_owned(), ..shown(&[&leaf, &intermediate]) },
    ];
    let examined = examine(&again, None, now(), &Stores::default());
    assert_eq!(examined.chains.len(), 1);
    assert_eq!(examined.chains[0].when, ["default", "rsa only"]);
    check(
        "no store",
        &examined,
        &[
            ("trusted", Untested, "no store"),
            ("name", Untested, "no name"),
            ("complete", Inconclusive, "without a store"),
        ],
    );
    assert_eq!(examine(&[], None, now(), &Stores::default()), Examined::default());
}

#[test]
fn the_reasons_why_a_chain_does_not_lead_to_a_root_are_distinguished() {
    let Some(lab) = Lab::new() else { return };
    let (leaf, intermediate, root) =
        (lab.make("leaf", LEAF), lab.der("intermediate"), lab.der("root"));
    check(
        "with its root",
        &look(&lab, &[&leaf, &intermediate, &root]),
        &[("trusted", Yes, ""), ("ordered", Yes, "3 certificates"), ("complete", Yes, "")],
    );
    check(
        "no intermediate",
        &look(&lab, &[&leaf]),
        &[
            ("trusted", No, "ends at CN=www.example.test"),
            ("complete", No, "http://ca.example.test/ca.crt"),
            ("ordered", Yes, "one certificate"),
            ("self_signed", No, ""),
        ],
    );
    check(
        "wrong order",
        &look(&lab, &[&leaf, &root, &intermediate]),
        &[("trusted", Yes, ""), ("complete", Yes, ""), ("ordered", No, "certificate 3 signed it")],
    );
    let other = lab.make("other", LEAF);
    check(
        "one too many",
        &look(&lab, &[&leaf, &intermediate, &other]),
        &[
            ("trusted", Yes, ""),
            ("complete", Yes, ""),
            ("ordered", No, "its issuer is CN=Root,O=Test"),
        ],
    );
    let own = lab.make("own", Spec { issuer: None, ..LEAF });
    check(
        "self-signed",
        &look(&lab, &[&own]),
        &[("trusted", No, "self-signed"), ("self_signed", Yes, ""), ("complete", Yes, "")],
    );
    let name = host("www.example.test");
    let examined = examine(&[shown(&[&own])], Some(&name), now(), &trusting(&own));
    check(
        "self-signed, and known",
        &examined,
        &[("trusted", Yes, "itself"), ("self_signed", Yes, "")],
    );
    // Another authority with the same name, but another key.
    let fake =
        Spec { issuer: None, subject: "/O=Test/CN=Intermediate", extensions: AUTHORITY, ..LEAF };
    let fake = lab.make("fake", fake);
    check(
        "another key",
        &look(&lab, &[&leaf, &fake]),
        &[("trusted", No, ""), ("complete", No, ""), ("ordered", No, "")],
    );
    // A private root that the server sent, but that is not in the store.
    lab.make(
        "private",
        Spec { issuer: None, subject: "/CN=Private", extensions: AUTHORITY, ..LEAF },
    );
    let by_private = lab.make("by-private", Spec { issuer: Some("private"), ..LEAF });
    let private = lab.der("private");
    check(
        "private",
        &look(&lab, &[&by_private, &private]),
        &[
            ("trusted", No, "CN=Private, which is not in the store"),
            ("complete", Yes, "CN=Private"),
        ],
    );
    // Cross-signed: the intermediate's key has a certificate of each root.
    std::fs::copy(lab.path("intermediate.key"), lab.path("cross.key")).unwrap();
    let cross = Spec {
        issuer: Some("private"),
        subject: "/O=Test/CN=Intermediate",
        extensions: AUTHORITY,
        ..LEAF
    };
    let cross = lab.make("cross", cross);
    let both = look(&lab, &[&leaf, &cross, &intermediate]);
    check("cross-signed", &both, &[("trusted", Yes, ""), ("complete", Yes, "")]);
    check(
        "cross-signed by an unknown authority",
        &look(&lab, &[&leaf, &cross]),
        &[("trusted", No, "issued by CN=Private"), ("complete", Inconclusive, "a private root")],
    );
    // It may be a root, which servers do not send, or an intermediate.
    let silent = Spec { extensions: "subjectAltName=DNS:www.example.test", ..LEAF };
    let silent = lab.make("silent-by-private", Spec { issuer: Some("private"), ..silent });
    check(
        "by a private root, which is not sent",
        &look(&lab, &[&silent]),
        &[("trusted", No, "issued by CN=Private"), ("complete", Inconclusive, "--roots")],
    );
    // The mesh's trust bundle is a separate store.
    let stores = Stores { roots: Some(roots(&[&root])), mesh: Some(roots(&[&private])) };
    let examined = examine(&[shown(&[&by_private])], Some(&name), now(), &stores);
    check(
        "mesh",
        &examined,
        &[
            ("trusted", No, ""),
            ("trusted_by_mesh", Yes, "leads to CN=Private"),
            ("complete", Yes, ""),
        ],
    );
    let examined = examine(&[shown(&[&leaf, &intermediate])], Some(&name), now(), &stores);
    check("not the mesh's", &examined, &[("trusted", Yes, ""), ("trusted_by_mesh", No, "")]);
    // Two chains: the answer about every chain is the worst one.
    let several = [
        shown(&[&leaf, &intermediate]),
        Presented { when: "rsa only".to_owned(), ..shown(&[&own]) },
    ];
    let examined = examine(&several, Some(&name), now(), &trusting(&root));
    check(
        "several",
        &examined,
        &[("trusted", No, "rsa only: "), ("self_signed", Yes, "rsa only: ")],
    );
    assert_eq!(examined.chains.iter().map(|c| c.trusted).collect::<Vec<_>>(), [Yes, No]);
    // A chain for hellos without a name does not affect the facts about the name.
    let several =
        [several[0].clone(), Presented { when: WITHOUT_NAME.to_owned(), ..shown(&[&own]) }];
    let examined = examine(&several, Some(&name), now(), &trusting(&root));
    check("without a name", &examined, &[("trusted", Yes, ""), ("self_signed", No, "")]);
    assert_eq!(examined.chains.len(), 2);
}

/// As with the cross-certificate of DST Root CA X3 that expired in 2021: clients reach a root without it.
#[test]
fn problems_of_certificates_that_clients_do_not_need_do_not_count() {
    let Some(lab) = Lab::new() else { return };
    let (leaf, intermediate, root) =
        (lab.make("leaf", LEAF), lab.der("intermediate"), lab.der("root"));
    let old = Spec { issuer: None, subject: "/CN=Old", extensions: AUTHORITY, ..LEAF };
    lab.make("old", Spec { key: "rsa:1024", ..old });
    for (of, file, subject) in [
        ("root", "root-by-old", "/O=Test/CN=Root"),
        ("intermediate", "by-old", "/O=Test/CN=Intermediate"),
    ] {
        std::fs::copy(lab.path(&format!("{of}.key")), lab.path(&format!("{file}.key"))).unwrap();
        let cross = Spec {
            issuer: Some("old"),
            subject,
            extensions: AUTHORITY,
            days: 1,
            options: &["-sha1"],
            ..LEAF
        };
        lab.make(file, cross);
    }
    let (cross_root, cross) = (lab.der("root-by-old"), lab.der("by-old"));
    let (stores, name) = (trusting(&root), host("www.example.test"));
    let later = now() + days(3);
    let at = |certificates: &[&[u8]]| examine(&[shown(certificates)], Some(&name), later, &stores);
    for (what, sent) in [
        ("the root's", [&leaf, &intermediate, &cross_root]),
        ("the intermediate's", [&leaf, &intermediate, &cross]),
        ("the intermediate's, first", [&leaf, &cross, &intermediate]),
    ] {
        let examined = at(&sent.map(Vec::as_slice));
        check(
            what,
            &examined,
            &[
                ("trusted", Yes, "leads to CN=Root"),
                ("valid", Yes, "not needed to reach a root"),
                ("weak_signature", No, "not needed to reach a root"),
                ("complete", Yes, ""),
            ],
        );
        assert!(examined.facts.number("certificate.valid") > Some(80), "{what}");
        let chain = &examined.chains[0].certificates;
        let needed: Vec<bool> = chain.iter().map(|c| !c.superfluous).collect();
        assert_eq!(needed.iter().filter(|needed| **needed).count(), 2, "{what}: {needed:?}");
    }
    // The control: problems of a certificate that is needed count.
    let needed = at(&[&leaf, &cross]);
    check("needed", &needed, &[("valid", No, "expired on"), ("weak_signature", Yes, "sha1")]);
}

#[test]
fn all_names_are_compared_not_only_those_in_the_report() {
    let Some(lab) = Lab::new() else { return };
    let names: Vec<String> = (0..1500).map(|n| format!("DNS:host{n}.example.test")).collect();
    let names = format!("subjectAltName={},DNS:www.example.test", names.join(","));
    let leaf = lab.make("names", Spec { extensions: &names, ..LEAF });
    let examined = look(&lab, &[&leaf, &lab.der("intermediate")]);
    check("1501 names", &examined, &[("name", Yes, "www.example.test")]);
    let certificate = &examined.chains[0].certificates[0];
    assert_eq!(certificate.names.len(), 1000);
    assert_eq!(certificate.problems, ["it has 1501 names; the first 1000 are shown"]);
}

#[test]
fn certificates_match_only_their_own_names() {
    let Some(lab) = Lab::new() else { return };
    let intermediate = lab.der("intermediate");
    let names = "subjectAltName=DNS:*.example.test,DNS:example.test,IP:192.0.2.7,IP:2001:db8::7,DNS:192.0.2.8,URI:spiffe://x/y,email:a@b.test";
    let many = lab.make("many", Spec { extensions: names, ..LEAF });
    let wild = lab.make("wild", Spec { extensions: "subjectAltName=DNS:*.example.test", ..LEAF });
    let none = lab.make("none", Spec { extensions: "basicConstraints=CA:FALSE", ..LEAF });
    for (leaf, name, answer, evidence, wildcard) in [
        (&many, "example.test", Yes, "it is for example.test", Yes),
        (&many, "a.example.test", Yes, "it is for *.example.test", Yes),
        (&many, "a.b.example.test", No, "not for a.b.example.test", Yes),
        (&many, "192.0.2.7", Yes, "192.0.2.7", Yes),
        (&many, "::ffff:192.0.2.7", Yes, "192.0.2.7", Yes),
        (&many, "2001:db8::7", Yes, "2001:db8::7", Yes),
        (&many, "192.0.2.8", No, "listed as a DNS name", Yes),
        (&many, "192.0.2.9", No, "and 2 more", Yes),
        (&wild, "example.test", No, "*.example.test, not for example.test", Yes),
        (&none, "www.example.test", No, "only its common name", No),
        (&none, "example.test", No, "it is for no name", No),
    ] {
        let examined =
            examine(&[shown(&[leaf, &intermediate])], Some(&host(name)), now(), &Stores::default());
        check(name, &examined, &[("name", answer, evidence), ("wildcard", wildcard, "")]);
    }
    let examined = look(&lab, &[&many, &intermediate]);
    let expected = [
        "*.example.test",
        "example.test",
        "192.0.2.7",
        "2001:db8::7",
        "192.0.2.8",
        "spiffe://x/y",
        "a@b.test",
    ];
    assert_eq!(examined.chains[0].certificates[0].names, expected);
    // Control characters in a name must be escaped.
    let escape = lab.make(
        "escape",
        Spec {
            subject: "/O=A, B\\+C/CN=\u{1b}[31m \u{202e}x",
            options: &["-set_serial", "2"],
            ..LEAF
        },
    );
    let examined = look(&lab, &[&escape, &intermediate]);
    let subject = &examined.chains[0].certificates[0].subject;
    assert!(subject.ends_with("O=A\\, B\\+C") && subject.contains("\\1B[31m"), "{subject}");
    assert!(subject.is_ascii() && !subject.contains('\u{1b}'), "{subject}");
}

#[test]
fn validity_is_reported_in_days() {
    let Some(lab) = Lab::new() else { return };
    let (leaf, intermediate, root) =
        (lab.make("leaf", LEAF), lab.der("intermediate"), lab.der("root"));
    let long = lab.make("long", Spec { days: 1000, ..LEAF });
    let short_spec = Spec { days: 6, extensions: "subjectAltName=DNS:www.example.test", ..LEAF };
    let (short, silent) =
        (lab.make("short", short_spec), lab.make("silent", Spec { days: 60, ..short_spec }));
    let (stores, name) = (trusting(&root), host("www.example.test"));
    let at =
        |leaf: &[u8], now| examine(&[shown(&[leaf, &intermediate])], Some(&name), now, &stores);
    let now = now();
    check("now", &at(&leaf, now), &[("valid", Yes, "in 89 days"), ("trusted", Yes, "")]);
    let late = at(&leaf, now + days(91));
    check(
        "expired",
        &late,
        &[("valid", No, "expired on"), ("trusted", No, "CN=www.example.test is valid from")],
    );
    assert_eq!(late.facts.number("certificate.valid"), Some(0));
    let early = at(&leaf, now - days(2));
    check(
        "not yet",
        &early,
        &[("valid", No, "is not valid before"), ("trusted", No, "is valid from")],
    );
    check("the intermediate", &at(&leaf, now + days(3651)), &[("valid", No, "expired on")]);
    check("too long", &at(&long, now), &[("lifetime", No, "1001 days"), ("valid", Yes, "")]);
    check("short", &at(&short, now), &[("revocation", Yes, "7 days"), ("lifetime", Yes, "7 days")]);
    let not_so_short = lab.make("not so short", Spec { days: 9, ..short_spec });
    check("not so short", &at(&not_so_short, now), &[("revocation", No, "longer than 7 days")]);
    check("silent", &at(&silent, now), &[("revocation", No, "neither OCSP nor a CRL")]);
    let crl =
        "subjectAltName=DNS:www.example.test\ncrlDistributionPoints=URI:http://crl.example.test/x";
    let crl = lab.make("crl", Spec { extensions: crl, ..LEAF });
    check("crl", &at(&crl, now), &[("revocation", Yes, "CRL at http://crl.example.test/x")]);
}

#[test]
fn keys_are_named_and_measured() {
    let Some(lab) = Lab::new() else { return };
    let intermediate = lab.der("intermediate");
    for (key, name, bits) in [
        ("rsa:1024", "rsa-1024", 1024),
        ("rsa:2048", "rsa-2048", 2048),
        ("rsa:4096", "rsa-4096", 4096),
        ("ec:P-256", "ecdsa-p256", 256),
        ("ec:P-384", "ecdsa-p384", 384),
        ("ec:P-521", "ecdsa-p521", 521),
        ("ec:secp224r1", "ecdsa-p224", 224),
        ("ec:brainpoolP256r1", "ecdsa-brainpoolp256r1", 256),
        ("ed25519", "ed25519", 256),
        ("ed448", "ed448", 448),
        ("dsa:1024", "dsa-1024", 1024),
    ] {
        let leaf = lab.make(&key.replace(':', "-"), Spec { key, ..LEAF });
        let examined = look(&lab, &[&leaf, &intermediate]);
        check(
            key,
            &examined,
            &[("key_bits", Yes, name), ("trusted", Yes, ""), ("vulnerability.roca", No, "")],
        );
        assert_eq!(examined.facts.list("certificate.keys"), [name]);
        assert_eq!(examined.facts.number("certificate.key_bits"), Some(bits), "{key}");
        assert_eq!(examined.chains[0].certificates[0].problems, [""; 0], "{key}");
    }
    // The weakest key is not the one with the fewest bits.
    let several: Vec<_> = ["rsa-1024", "ec-P-256"]
        .map(|name| Presented { when: name.to_owned(), ..shown(&[&lab.der(name), &intermediate]) })
        .into();
    let examined = examine(&several, None, now(), &Stores::default());
    assert_eq!(examined.facts.number("certificate.key_bits"), Some(1024));
    assert_eq!(examined.facts.list("certificate.keys"), ["rsa-1024", "ecdsa-p256"]);
}

#[test]
fn weak_signatures_are_found_and_not_trusted() {
    let Some(lab) = Lab::new() else { return };
    let authority = Spec { extensions: AUTHORITY, issuer: None, ..LEAF };
    for (key, digest, signature, trusted, why) in [
        ("rsa:2048", "-md5", "rsa-pkcs1-md5", No, "is signed with md5"),
        ("rsa:2048", "-sha1", "rsa-pkcs1-sha1", No, "is signed with sha1"),
        ("rsa:2048", "-sha256", "rsa-pkcs1-sha256", Yes, "leads to"),
        ("rsa:2048", "-sha512", "rsa-pkcs1-sha512", Yes, "leads to"),
        ("rsa:1024", "-sha256", "rsa-pkcs1-sha256", No, "signs with rsa-1024"),
        ("ec:P-256", "-sha1", "ecdsa-sha1", No, "is signed with sha1"),
        ("ec:P-384", "-sha384", "ecdsa-sha384", Yes, "leads to"),
        ("ec:P-521", "-sha512", "ecdsa-sha512", Yes, "leads to"),
        ("ec:secp256k1", "-sha256", "ecdsa-sha256", Inconclusive, "cannot be checked here"),
        ("ed25519", "", "ed25519", Yes, "leads to"),
        ("ed448", "", "ed448", Inconclusive, "ed448"),
        ("dsa:1024", "-sha256", "dsa-sha256", Inconclusive, "dsa-sha256"),
    ] {
        let what = format!("{key} {digest}");
        let ca = what.replace([':', ' '], "-");
        let root = lab.make(&ca, Spec { key, subject: "/CN=Other root", ..authority });
        let options: &[&str] = if digest.is_empty() { &[] } else { &[digest] };
        let leaf = lab.make(&format!("leaf-{ca}"), Spec { issuer: Some(&ca), options, ..LEAF });
        let name = host("www.example.test");
        let examined = examine(&[shown(&[&leaf, &root])], Some(&name), now(), &trusting(&root));
        let weak = if signature.ends_with("md5") || signature.ends_with("sha1") { Yes } else { No };
        check(
            &what,
            &examined,
            &[
                ("trusted", trusted, why),
                ("weak_signature", weak, signature),
                ("ordered", Yes, ""),
                ("complete", Yes, ""),
            ],
        );
        assert_eq!(examined.chains[0].certificates[0].signature, signature);
        let value = examined.facts.get("certificate.weak_signature").unwrap().value.clone();
        let hash = signature.rsplit('-').next().unwrap().to_owned();
        assert_eq!(value, (weak == Yes).then_some(Value::Text(hash)), "{what}");
    }
    // The signature of a self-signed root does not matter.
    let root = lab.make(
        "old",
        Spec { key: "rsa:2048", subject: "/CN=Old", options: &["-sha1"], ..authority },
    );
    let leaf = lab.make("new", Spec { issuer: Some("old"), ..LEAF });
    let examined = examine(&[shown(&[&leaf, &root])], None, now(), &trusting(&root));
    check("old root", &examined, &[("weak_signature", No, ""), ("trusted", Yes, "")]);
    for (salt, trusted, signature) in [
        ("rsa_pss_saltlen:digest", Yes, "rsa-pss-sha384"),
        ("rsa_pss_saltlen:max", Inconclusive, "rsa-pss-salt206-sha384"),
    ] {
        let pss = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", salt, "-sha384"];
        let leaf = lab.make("pss", Spec { issuer: Some("old"), options: &pss, ..LEAF });
        let examined = examine(&[shown(&[&leaf])], None, now(), &trusting(&root));
        check(salt, &examined, &[("weak_signature", No, signature), ("trusted", trusted, "")]);
    }
}

#[test]
fn chains_that_violate_constraints_are_not_trusted() {
    let Some(lab) = Lab::new() else { return };
    let intermediate = lab.der("intermediate");
    let client = "subjectAltName=DNS:www.example.test\nextendedKeyUsage=clientAuth";
    let client = lab.make("client", Spec { extensions: client, ..LEAF });
    check(
        "for clients",
        &look(&lab, &[&client, &intermediate]),
        &[
            ("key_usage", No, "1.3.6.1.5.5.7.3.2"),
            ("trusted", No, "may not be used for TLS servers"),
            ("name", Yes, ""),
        ],
    );
    let leaf = lab.make("leaf", LEAF);
    let under = lab.make("under", Spec { issuer: Some("leaf"), ..LEAF });
    check(
        "by a leaf",
        &look(&lab, &[&under, &leaf, &intermediate]),
        &[("trusted", No, "may not sign others"), ("ordered", Yes, "")],
    );
    let narrow = format!("{AUTHORITY}\nnameConstraints=critical,permitted;DNS:other.test");
    lab.make(
        "narrow",
        Spec { issuer: Some("root"), subject: "/CN=Narrow", extensions: &narrow, ..LEAF },
    );
    let outside = lab.make("outside", Spec { issuer: Some("narrow"), ..LEAF });
    check(
        "constrained",
        &look(&lab, &[&outside, &lab.der("narrow")]),
        &[("trusted", No, "may not issue for such names")],
    );
    let critical = format!("{SERVER}\n1.2.3.4=critical,DER:0500");
    let critical = lab.make("critical", Spec { extensions: &critical, ..LEAF });
    check(
        "critical",
        &look(&lab, &[&critical, &intermediate]),
        &[("trusted", No, "critical extension")],
    );
    let staple = format!("{SERVER}\ntlsfeature=status_request");
    let staple = lab.make("staple", Spec { extensions: &staple, ..LEAF });
    check(
        "must staple",
        &look(&lab, &[&staple, &intermediate]),
        &[("must_staple", Yes, ""), ("trusted", Yes, "")],
    );
}

#[test]
fn timestamps_are_counted_in_all_places() {
    let Some(lab) = Lab::new() else { return };
    let intermediate = lab.der("intermediate");
    let one = [&[0; 41][..], &[0, 0, 4, 3, 0, 2, 1, 2]].concat();
    let entry = [&[0, u8::try_from(one.len()).unwrap()][..], &one].concat();
    let list = |n: usize| {
        let entries = entry.repeat(n);
        [&u16::try_from(entries.len()).unwrap().to_be_bytes()[..], &entries].concat()
    };
    let hex: String = tlv(0x04, &[&list(2)]).iter().map(|byte| format!("{byte:02x}")).collect();
    let with = format!("{SERVER}\n1.3.6.1.4.1.11129.2.4.2=DER:{hex}");
    let with = lab.make("with", Spec { extensions: &with, ..LEAF });
    let bad = format!("{SERVER}\n1.3.6.1.4.1.11129.2.4.2=DER:0404ffff0000");
    let bad = lab.make("bad", Spec { extensions: &bad, ..LEAF });
    let without = lab.make("without", LEAF);
    let by_ocsp = ocsp_with_timestamps(&list(1));
    for (leaf, by_tls, by_ocsp, answer, count, evidence) in [
        (&with, None, None, Yes, 2, "2 in the certificate"),
        (&with, Some(list(3)), None, Yes, 5, "2 in the certificate, 3 by TLS"),
        (&without, Some(list(1)), None, Yes, 1, "1 by TLS"),
        (&without, None, Some(by_ocsp), Yes, 1, "1 by OCSP"),
        (&without, None, None, No, 0, "none"),
        (&without, Some(vec![9; 9]), None, Inconclusive, 0, "unreadable by TLS"),
        (&bad, None, None, Inconclusive, 0, "unreadable in the certificate"),
    ] {
        let presented = Presented { scts: by_tls, ocsp: by_ocsp, ..shown(&[leaf, &intermediate]) };
        let examined = examine(&[presented], None, now(), &Stores::default());
        check(evidence, &examined, &[("scts", answer, evidence)]);
        assert_eq!(examined.facts.number("certificate.scts"), Some(count), "{evidence}");
    }
}

/// A response with timestamps; its signature is not checked for them.
fn ocsp_with_timestamps(list: &[u8]) -> Vec<u8> {
    let sequence = |parts: &[&[u8]]| tlv(0x30, parts);
    let time = tlv(0x18, &[b"20260101000000Z"]);
    let oid = tlv(0x06, &[&[0x2b, 6, 1, 4, 1, 0xd6, 0x79, 2, 4, 5]]);
    let extension = sequence(&[&oid, &tlv(0x04, &[&tlv(0x04, &[list])])]);
    let extensions = tlv(0xa1, &[&sequence(&[&extension])]);
    let single = sequence(&[&sequence(&[]), &[0x80, 0], &time, &extensions]);
    let data = sequence(&[&tlv(0xa1, &[&sequence(&[])]), &time, &sequence(&[&single])]);
    let basic = sequence(&[&data, &sequence(&[&[6, 3, 0x2b, 0x65, 0x70]]), &tlv(0x03, &[&[0, 1]])]);
    let kind = tlv(0x06, &[&[0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1]]);
    let bytes = tlv(0xa0, &[&sequence(&[&kind, &tlv(0x04, &[&basic])])]);
    sequence(&[&[0x0a, 1, 0], &bytes])
}

#[test]
fn only_a_current_response_for_this_certificate_by_the_right_signer_is_good() {
    let Some(lab) = Lab::new() else { return };
    let leaf = lab.make("leaf", LEAF);
    let (intermediate, root) = (lab.der("intermediate"), lab.der("root"));
    let signing = |usage: &str| format!("extendedKeyUsage={usage}");
    let responder = Spec { subject: "/CN=Responder", extensions: &signing("OCSPSigning"), ..LEAF };
    lab.make("responder", responder);
    lab.make("unfit", Spec { extensions: &signing("serverAuth"), ..responder });
    lab.make("stranger", Spec { issuer: Some("root"), ..responder });
    let fake =
        Spec { issuer: None, subject: "/O=Test/CN=Intermediate", extensions: AUTHORITY, ..LEAF };
    lab.make("fake", fake);
    let by = |who: &str, options: &[&str]| lab.ocsp("intermediate", "1001", "V", who, options);
    let week = &["-ndays", "7"];
    let good = by("intermediate", week);
    // Without certificates, the signature is at the end.
    let mut forged = by("intermediate", &["-ndays", "7", "-resp_no_certs"]);
    *forged.last_mut().unwrap() ^= 1;
    let now = now();
    for (what, response, at, answer, evidence) in [
        ("good", good.clone(), now, Yes, "signed by the issuer"),
        ("by key", by("intermediate", &["-ndays", "7", "-resp_key_id"]), now, Yes, "the issuer"),
        ("delegated", by("responder", week), now, Yes, "responder authorized by the issuer"),
        ("SHA-256", by("intermediate", &["-ndays", "7", "-sha256"]), now, Yes, ""),
        ("old", good.clone(), now + days(8), No, "it was valid until"),
        ("early", good.clone(), now - days(1), No, "it is not valid before"),
        ("without end", by("intermediate", &[]), now, No, "until when"),
        (
            "revoked",
            lab.ocsp("intermediate", "1001", "R", "intermediate", week),
            now,
            No,
            "revoked on 2026-01-01",
        ),
        (
            "unknown",
            lab.ocsp("intermediate", "1001", "unknown", "intermediate", week),
            now,
            No,
            "does not know",
        ),
        (
            "another",
            lab.ocsp("intermediate", "1002", "V", "intermediate", week),
            now,
            No,
            "another certificate",
        ),
        ("another's", lab.ocsp("root", "1001", "V", "root", week), now, No, "another certificate"),
        ("forged", forged, now, No, "signature is invalid"),
        ("by a namesake", by("fake", week), now, No, "signature is invalid"),
        ("unfit", by("unfit", week), now, No, "not for signing OCSP"),
        ("by a stranger", by("stranger", week), now, No, "not signed by the issuer"),
        (
            "signed with SHA-1",
            by("intermediate", &["-ndays", "7", "-rmd", "sha1"]),
            now,
            No,
            "signed with sha1",
        ),
        ("try later", vec![0x30, 3, 0x0a, 1, 3], now, No, "tryLater"),
        ("empty", Vec::new(), now, No, "cannot be read"),
        ("huge", vec![0x30; 1 << 20], now, Inconclusive, "1048576 bytes"),
    ] {
        let presented = Presented { ocsp: Some(response), ..shown(&[&leaf, &intermediate]) };
        let examined = examine(&[presented], None, at, &trusting(&root));
        check(what, &examined, &[("ocsp_good", answer, evidence), ("ocsp_stapled", Yes, "bytes")]);
    }
    // The issuer is needed; it may be in a store.
    let alone = [Presented { ocsp: Some(good), ..shown(&[&leaf]) }];
    let examined = examine(&alone, None, now, &trusting(&root));
    check("no issuer", &examined, &[("ocsp_good", Inconclusive, "was not sent")]);
    let examined = examine(&alone, None, now, &trusting(&intermediate));
    check("a stored issuer", &examined, &[("ocsp_good", Yes, "")]);
}

#[test]
fn certificates_that_strict_parsers_reject_are_described() {
    let Some(lab) = Lab::new() else { return };
    let intermediate = lab.der("intermediate");
    let old = lab.make("v1", Spec { extensions: "", ..LEAF });
    let examined = look(&lab, &[&old, &intermediate]);
    check(
        "version 1",
        &examined,
        &[("trusted", No, "another version"), ("name", No, "only its common name")],
    );
    assert!(examined.chains[0].certificates[0].problems.iter().any(|p| p.contains("version 1")));
    let negative = lab.make("negative", Spec { options: &["-set_serial", "-5"], ..LEAF });
    let examined = look(&lab, &[&negative, &intermediate]);
    check("negative", &examined, &[("name", Yes, "")]);
    assert!(examined.chains[0].certificates[0].problems.iter().any(|p| p.contains("negative")));
    let broken = format!("{SERVER}\n2.5.29.19=DER:0500");
    let broken = lab.make("broken", Spec { extensions: &broken, ..LEAF });
    let examined = look(&lab, &[&broken, &intermediate]);
    check("broken", &examined, &[("trusted", Inconclusive, "strict parsers"), ("name", Yes, "")]);
    assert!(examined.chains[0].certificates[0].problems.iter().any(|p| p.contains("2.5.29.19")));
    // An invalid time, and so an invalid signature; the certificate is still described.
    let leaf = lab.make("leaf", LEAF);
    let at = leaf.windows(2).position(|w| w == [0x17, 13]).unwrap();
    let mut time = leaf.clone();
    time[at + 2..at + 15].copy_from_slice(b"not a time at");
    let examined = look(&lab, &[&time, &intermediate]);
    let first = &examined.chains[0].certificates[0];
    assert_eq!((first.not_before, first.subject.as_str()), (None, "CN=www.example.test"));
    assert!(first.not_after.is_some() && first.problems.iter().any(|p| p.contains("notBefore")));
    check(
        "time",
        &examined,
        &[
            ("valid", Inconclusive, "validity of certificate 1"),
            ("lifetime", Inconclusive, ""),
            ("trusted", No, ""),
        ],
    );
    let examined = look(&lab, &[b"no certificate", &intermediate]);
    check(
        "garbage",
        &examined,
        &[
            ("trusted", No, "cannot be read"),
            ("name", Inconclusive, "cannot be read"),
            ("key_bits", Inconclusive, "cannot be read"),
            ("keys", Inconclusive, "cannot be read"),
            ("weak_signature", Inconclusive, ""),
            ("ordered", Inconclusive, ""),
            ("complete", Inconclusive, ""),
        ],
    );
    assert_eq!(examined.chains[0].certificates[0].subject, "(unreadable)");
}

#[test]
fn floods_of_certificates_are_limited_and_reported() {
    let Some(lab) = Lab::new() else { return };
    let (leaf, intermediate) = (lab.make("leaf", LEAF), lab.der("intermediate"));
    let mut chain = vec![leaf.as_slice()];
    chain.extend(std::iter::repeat_n(intermediate.as_slice(), 5000));
    let examined = look(&lab, &chain);
    assert_eq!(examined.chains[0].certificates.len(), 20);
    assert!(
        examined.chains[0].evidence.contains("4981 more certificates"),
        "{}",
        examined.chains[0].evidence
    );
    let huge = vec![0x30; 16 << 20];
    let examined = look(&lab, &[&leaf, &huge]);
    let problems = &examined.chains[0].certificates[1].problems;
    assert!(problems[0].contains("16777216 bytes"), "{problems:?}");
    let many: Vec<_> = (0..1000_u32).map(|i| shown(&[&i.to_be_bytes()])).collect();
    let examined = examine(&many, None, now(), &Stores::default());
    assert_eq!(examined.chains.len(), 16);
    assert!(examined.chains[0].evidence.contains("984 more chains"));
}

/// OpenSSL 3.0 cannot make these.
#[test]
fn post_quantum_certificates_are_recognized_and_verified() {
    let key = PqdsaKeyPair::generate(&ML_DSA_65_SIGNING).unwrap();
    let spki = key.public_key().as_der().unwrap();
    let algorithm = tlv(0x30, &[&tlv(0x06, &[&[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 3, 18]])]);
    let name = tlv(0x0c, &[b"PQ"]);
    let name = tlv(0x30, &[&tlv(0x31, &[&tlv(0x30, &[&[6, 3, 0x55, 4, 3], &name])])]);
    let validity = tlv(0x30, &[&tlv(0x17, &[b"250101000000Z"]), &tlv(0x17, &[b"491231235959Z"])]);
    // subjectAltName: pq.example
    let alternative = tlv(0x04, &[&tlv(0x30, &[&tlv(0x82, &[b"pq.example"])])]);
    let extensions = tlv(0x30, &[&tlv(0x30, &[&[6, 3, 0x55, 0x1d, 17], &alternative])]);
    let tbs = tlv(
        0x30,
        &[
            &[0xa0, 3, 2, 1, 2],
            &[2, 1, 1],
            &algorithm,
            &name,
            &validity,
            &name,
            spki.as_ref(),
            &tlv(0xa3, &[&extensions]),
        ],
    );
    let mut signature = vec![0; ML_DSA_65_SIGNING.signature_len()];
    key.sign(&tbs, &mut signature).unwrap();
    let certificate =
        |signature: &[u8]| tlv(0x30, &[&tbs, &algorithm, &tlv(0x03, &[&[0], signature])]);
    let good = certificate(&signature);
    let now = now();
    let examined = examine(&[shown(&[&good])], Some(&host("pq.example")), now, &Stores::default());
    check(
        "ML-DSA",
        &examined,
        &[
            ("self_signed", Yes, ""),
            ("key_bits", Yes, "mldsa-65"),
            ("name", Yes, ""),
            ("weak_signature", No, "mldsa-65"),
        ],
    );
    assert_eq!(examined.chains[0].certificates[0].problems, [""; 0]);
    signature[100] ^= 1;
    let bad = examine(&[shown(&[&certificate(&signature)])], None, now, &Stores::default());
    check("forged", &bad, &[("self_signed", No, "")]);
}

#[test]
fn keys_of_infineons_library_are_detected() {
    let Some(lab) = Lab::new() else { return };
    let mut leaf = lab.make("leaf", Spec { key: "rsa:2048", ..LEAF });
    check(
        "openssl's",
        &look(&lab, &[&leaf]),
        &[("vulnerability.roca", No, "does not have the ROCA pattern")],
    );
    // 1 is a power of 65537 modulo everything: a modulus that is 1 modulo all the small primes.
    let mut product = num_bigint::BigUint::from(1_u8);
    for prime in (2_u32..=167).filter(|n| (2..*n).all(|d| !n.is_multiple_of(d))) {
        product *= prime;
    }
    let shift = 2047 - product.bits();
    let marked = ((product << shift) + 1_u8).to_bytes_be();
    // INTEGER of 257 bytes, the first of them zero.
    let at = leaf.windows(5).position(|w| w == [2, 0x82, 1, 1, 0]).unwrap() + 5;
    leaf[at + 256 - marked.len()..at + 256].copy_from_slice(&marked);
    leaf[at] |= 0x40;
    check("marked", &look(&lab, &[&leaf]), &[("vulnerability.roca", Yes, "65537")]);
}

#[test]
fn stores_are_read_from_files_and_from_the_system() {
    let Some(lab) = Lab::new() else { return };
    assert_eq!(Roots::from_pem_file(&lab.path("root.pem")).unwrap().len(), 1);
    for (file, why) in
        [("root.key", "no certificate that can be a root"), ("missing", "cannot be read")]
    {
        let error = Roots::from_pem_file(&lab.path(file)).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    match Roots::system() {
        Ok(roots) => assert!(!roots.is_empty()),
        Err(error) => assert!(error.to_string().contains("ca-certificates"), "{error}"),
    }
}

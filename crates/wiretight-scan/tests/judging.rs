//! Judgements: each rule reports its problem and nothing else, and no level and no profile claims what
//! could not be determined.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod samples;

use samples::{chains, list, modern_facts};
use wiretight_scan::Reached;
use wiretight_scan::certificate::Chain;
use wiretight_scan::facts::Answer::{Inconclusive, No, Untested, Yes};
use wiretight_scan::facts::{Answer, Facts, TABLE, Value, describe};
use wiretight_scan::judge::rules::{RULES, Seen, Test};
use wiretight_scan::judge::{Judgement, Level, Profile, judge};
use wiretight_scan::names::Version;

fn judged(facts: &Facts) -> Judgement {
    judge(&Reached::Tls, facts, &chains())
}

fn changed(id: &'static str, answer: Answer) -> Facts {
    let mut facts = modern_facts();
    facts.set(id, answer, None, "made up");
    facts
}

fn verdict(judgement: &Judgement, profile: Profile) -> Answer {
    judgement.profiles.iter().find(|v| v.profile == profile.name()).unwrap().answer
}

#[test]
fn servers_get_the_expected_level() {
    for (report, level) in [
        (samples::modern(), Level::Strong),
        (samples::mail(), Level::Acceptable),
        (samples::old(), Level::Weak),
        (samples::plaintext(), Level::Plaintext),
        (samples::throttled(), Level::Unknown),
        (samples::unreachable(), Level::Unknown),
    ] {
        assert_eq!(report.judgement.level, level, "{}: {:?}", report.target, report.judgement);
    }
    assert!(samples::modern().judgement.reasons.is_empty());
}

/// The size of a key is not always the last number in its name.
#[test]
fn keys_are_short_by_their_size() {
    let short = |key: &str| {
        let mut facts = modern_facts();
        facts.set("certificate.keys", Yes, list(&[key]), "");
        judged(&facts).reasons.iter().any(|reason| reason.rule == "certificate-key")
    };
    for key in [
        "ecdsa-brainpoolp256r1",
        "ecdsa-brainpoolp512r1",
        "ecdsa-secp256k1",
        "ecdsa-p224",
        "ecdsa-p256",
        "ecdsa-p521",
        "ecdsa-1.3.132.0.26",
        "ecdsa-explicit",
        "rsa-2048",
        "rsa-pss-3072",
        "dsa-2048",
        "ed25519",
        "ed448",
        "mldsa-44",
    ] {
        assert!(!short(key), "{key}");
    }
    let weak = [
        "ecdsa-p192",
        "ecdsa-brainpoolp160r1",
        "ecdsa-secp192k1",
        "rsa-1024",
        "rsa-pss-1024",
        "dsa-1024",
    ];
    for key in weak {
        assert!(short(key), "{key}");
    }
}

/// Creates the problem of a rule that checks several facts. Rules about one fact need only that fact.
fn break_it(rule: &str, facts: &mut Facts, chains: &mut [Chain], reached: &mut Reached) {
    let suite = |facts: &mut Facts, name: &str| samples::suite(facts, "tls1_2", name);
    match rule {
        "plaintext" => *reached = Reached::Plaintext { evidence: "220 hello".into() },
        "unreachable" => *reached = Reached::Unreachable { evidence: "refused".into() },
        "name-wanted" => {
            for version in Version::ALL {
                facts.set(format!("protocol.{}", version.key()), Inconclusive, None, "alert 112");
            }
            facts.set("sni.required", Yes, None, "alert 112");
        }
        "inconsistent" => facts.set("consistent", No, list(&["TLS 1.2, and TLS 1.3"]), ""),
        "versions" => {
            facts.set("protocol.tls1_2", No, None, "");
            facts.set("protocol.tls1_3", No, None, "");
        }
        "suites-not-told" => facts.set("suites.tls1_2", Inconclusive, None, "reset"),
        "dhe" => suite(facts, "TLS_DHE_RSA_WITH_AES_128_GCM_SHA256"),
        "suites-not-modern" => suite(facts, "TLS_SRP_SHA_WITH_AES_128_CBC_SHA"),
        "dh-short" => facts.set("dh.bits", Yes, Some(Value::Number(1024)), ""),
        "curves" => facts.set("groups.tls1_2", Yes, list(&["secp192r1"]), ""),
        "signature-hash" => facts.set("signatures.tls1_2", Yes, list(&["rsa_pkcs1_sha1"]), ""),
        "extended-master-secret" => facts.set("extension.extended_master_secret", No, None, ""),
        "certificate-untrusted" => facts.set("certificate.trusted", No, None, ""),
        "certificate-name" => facts.set("certificate.name", No, None, ""),
        "certificate-validity" => facts.set("certificate.valid", No, None, ""),
        "certificate-key" => chains[0].certificates[1].key = "rsa-1024".into(),
        "no-post-quantum" => facts.set("post_quantum", Yes, list(&["X25519Kyber768Draft00"]), ""),
        "must-staple" => facts.set("certificate.must_staple", Yes, None, ""),
        "certificate-lifetime" => facts.set("certificate.lifetime", No, None, "900 days"),
        other => panic!("unknown rule {other}"),
    }
    if rule == "suites-not-modern" {
        // CBC has its own rule.
        facts.set("suite.tls1_2.TLS_SRP_SHA_WITH_AES_128_CBC_SHA", No, None, "");
        suite(facts, "TLS_PSK_WITH_AES_128_GCM_SHA256");
    }
}

#[test]
fn every_rule_reports_its_problem_and_nothing_else() {
    let (facts, mut shown, mut reached) = (modern_facts(), chains(), Reached::Tls);
    for rule in RULES {
        let seen = Seen { reached: &reached, facts: &facts, chains: &shown };
        assert_eq!(rule.reason(&seen), None, "{} reports a problem of a modern server", rule.id);
    }
    for rule in RULES {
        let mut facts = modern_facts();
        match rule.test {
            Test::Yes(id) | Test::MustNot(id) => facts.set(id, Yes, None, "seen"),
            Test::No(id) | Test::Must(id) => facts.set(id, No, None, "seen"),
            Test::Check(_) => break_it(rule.id, &mut facts, &mut shown, &mut reached),
        }
        let seen = Seen { reached: &reached, facts: &facts, chains: &shown };
        let reason = rule.reason(&seen).unwrap_or_else(|| panic!("{} is silent", rule.id));
        assert!(describe(&reason.fact).is_some(), "{}: {} is not a fact", rule.id, reason.fact);
        assert!(!reason.standard.is_empty() && !reason.change.is_empty(), "{}", rule.id);
        let judgement = judge(&reached, &facts, &shown);
        let open = reason.answer != Yes && rule.level < Level::Acceptable;
        let worst = if open { Level::Unknown } else { rule.level };
        assert!(
            judgement.level == worst || judgement.level == Level::Weak && !open,
            "{}: {}",
            rule.id,
            judgement.level
        );
        (shown, reached) = (chains(), Reached::Tls);
    }
    let mut ids: Vec<_> = RULES.iter().map(|rule| rule.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), RULES.len(), "duplicate id");
}

#[test]
fn every_vulnerability_and_every_weak_fact_has_a_rule() {
    let asked: Vec<_> = RULES.iter().filter_map(|rule| rule.test.fact()).collect();
    for entry in TABLE {
        if entry.id.starts_with("vulnerability.") || entry.id.starts_with("weak.") {
            assert!(asked.contains(&entry.id), "{}", entry.id);
        }
    }
    for id in asked {
        assert!(describe(id).is_some(), "{id} is not a fact");
    }
}

#[test]
fn no_level_claims_what_could_not_be_determined() {
    // It might be weak.
    for id in ["protocol.tls1_0", "weak.rc4", "vulnerability.robot", "certificate.trusted"] {
        assert_eq!(judged(&changed(id, Inconclusive)).level, Level::Unknown, "{id}");
    }
    // It may not be strong, but is at least acceptable.
    for id in ["post_quantum", "session.early_data", "http.hsts"] {
        assert_eq!(judged(&changed(id, Inconclusive)).level, Level::Acceptable, "{id}");
    }
    // A known weakness keeps the level weak.
    let mut facts = changed("protocol.tls1_0", Inconclusive);
    facts.set("weak.rc4", Yes, None, "");
    let judgement = judged(&facts);
    assert_eq!(judgement.level, Level::Weak);
    assert_eq!(judgement.reasons[0].rule, "rc4");
    assert_eq!(judgement.reasons[1].level, Level::Unknown);
    // Untested facts count only if every level needs them.
    for id in ["protocol.ssl3", "suites.tls1_2", "certificate.trusted", "certificate.valid"] {
        assert_eq!(judged(&changed(id, Untested)).level, Level::Unknown, "{id}");
    }
    for id in ["vulnerability.robot", "session.early_data", "http.hsts", "weak.rc4"] {
        assert_eq!(judged(&changed(id, Untested)).level, Level::Strong, "{id}");
    }
    assert_eq!(judged(&Facts::default()).level, Level::Unknown);
}

#[test]
fn a_given_private_authority_is_trusted() {
    let mut facts = changed("certificate.trusted", No);
    assert_eq!(judged(&facts).level, Level::Weak);
    facts.set("certificate.trusted_by_mesh", Yes, None, "the mesh's bundle");
    // Certificates of the mesh contain no host name.
    facts.set("certificate.name", No, None, "spiffe://example.com/db");
    assert_eq!(judged(&facts).level, Level::Strong);
}

#[test]
fn profiles_answer_yes_no_or_inconclusive() {
    let modern = judged(&modern_facts());
    let answers: Vec<_> = modern.profiles.iter().map(|v| (v.profile.as_ref(), v.answer)).collect();
    assert_eq!(
        answers,
        [
            ("bcp195", Yes),
            // NIST does not approve ChaCha20.
            ("nist-800-52r2", No),
            // TLS 1.2 is supported.
            ("mozilla-modern", No),
            ("mozilla-intermediate", Yes),
            ("pci-dss-4", Yes),
            ("cnsa2", No),
        ]
    );
    for profile in Profile::ALL {
        let open = judged(&changed("protocol.tls1_0", Inconclusive));
        let answer = verdict(&open, *profile);
        assert_ne!(answer, Yes, "{profile} claims what was not observed");
        for rule in profile.rules() {
            let Some(id) = rule.test.fact() else { continue };
            let bad = if matches!(rule.test, Test::Yes(_) | Test::MustNot(_)) { Yes } else { No };
            let judgement = judged(&changed(id, bad));
            assert_eq!(verdict(&judgement, *profile), No, "{profile} does not see {}", rule.id);
        }
        let gone =
            judge(&Reached::Unreachable { evidence: "refused".into() }, &Facts::default(), &[]);
        assert_eq!(verdict(&gone, *profile), Inconclusive, "{profile}");
    }
}

/// Servers that meet the profiles which the modern sample does not meet.
#[test]
fn every_profile_can_be_met_and_each_of_its_own_rules_can_fail() {
    let without = |facts: &Facts, gone: &str| {
        let mut left = Facts::default();
        for (id, fact) in facts.iter().filter(|(id, _)| !id.contains(gone)) {
            left.set(id.to_owned(), fact.answer, fact.value.clone(), fact.evidence.clone());
        }
        left
    };
    let nist = without(&modern_facts(), "CHACHA20");
    assert_eq!(verdict(&judged(&nist), Profile::Nist80052r2), Yes);

    let mut modern = without(&modern_facts(), "suite.tls1_2");
    modern.set("protocol.tls1_2", No, None, "protocol_version (70)");
    assert_eq!(verdict(&judged(&modern), Profile::MozillaModern), Yes);

    let mut cnsa = without(&without(&modern, "AES_128"), "CHACHA20");
    cnsa.set("groups.tls1_3", Yes, list(&["MLKEM1024"]), "");
    cnsa.set("signatures.tls1_3", Yes, list(&["mldsa87"]), "");
    cnsa.set("certificate.keys", Yes, list(&["mldsa-87"]), "");
    let judgement = judged(&cnsa);
    assert_eq!(verdict(&judgement, Profile::Cnsa2), Yes, "{:?}", judgement.profiles);

    let broken = |profile: Profile, facts: &Facts, rule: &str| {
        let judgement = judged(facts);
        let verdict = judgement.profiles.iter().find(|v| v.profile == profile.name()).unwrap();
        let found = verdict.reasons.iter().any(|reason| reason.rule == rule);
        assert!(verdict.answer == No && found, "{profile} {rule}: {verdict:?}");
    };
    let with = |facts: &Facts, id: &'static str, value| {
        let mut facts = facts.clone();
        facts.set(id, Yes, value, "");
        facts
    };
    use Profile::*;
    let odd = "suite.tls1_3.TLS_AES_128_CCM_8_SHA256";
    broken(Nist80052r2, &modern_facts(), "nist-suites");
    broken(
        Nist80052r2,
        &with(&nist, "suite.tls1_2.TLS_RSA_WITH_AES_128_GCM_SHA256", None),
        "nist-suites",
    );
    let mut x = with(&nist, "groups.tls1_3", list(&["x25519"]));
    x.set("groups.tls1_2", Yes, list(&["x25519"]), "");
    broken(Nist80052r2, &x, "nist-curves");
    broken(MozillaModern, &modern_facts(), "modern-tls1_2");
    broken(MozillaModern, &with(&modern, odd, None), "mozilla-suites-tls1_3");
    broken(MozillaModern, &with(&modern, "groups.tls1_3", list(&["x448"])), "mozilla-groups");
    broken(MozillaModern, &with(&modern, "certificate.keys", list(&["rsa-4096"])), "modern-key");
    broken(MozillaModern, &with(&modern, "http.hsts", Some(Value::Number(1))), "mozilla-hsts");
    let cbc = "suite.tls1_2.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA";
    let dhe = "suite.tls1_2.TLS_DHE_RSA_WITH_AES_128_GCM_SHA256";
    for suite in [cbc, dhe] {
        broken(MozillaIntermediate, &with(&modern_facts(), suite, None), "intermediate-suites");
    }
    let ed25519 = with(&modern_facts(), "certificate.keys", list(&["ed25519"]));
    broken(MozillaIntermediate, &ed25519, "intermediate-key");
    let dh = with(&modern_facts(), "suite.tls1_2.TLS_DH_RSA_WITH_AES_128_GCM_SHA256", None);
    broken(Bcp195, &dh, "static-dh-finite");
    // With curves, RFC 10015 says SHOULD NOT.
    let ecdh = with(&modern_facts(), "suite.tls1_2.TLS_ECDH_RSA_WITH_AES_128_GCM_SHA256", None);
    assert_eq!(verdict(&judged(&ecdh), Bcp195), Yes);
    broken(Cnsa2, &with(&cnsa, odd, None), "cnsa2-suites");
    broken(Cnsa2, &with(&cnsa, "groups.tls1_3", list(&["X25519MLKEM768"])), "cnsa2-groups");
    broken(Cnsa2, &with(&cnsa, "signatures.tls1_3", list(&["ed25519"])), "cnsa2-signatures");
    broken(Cnsa2, &with(&cnsa, "certificate.keys", list(&["ecdsa-p384"])), "cnsa2-key");
    broken(Cnsa2, &with(&cnsa, "protocol.tls1_2", None), "cnsa2-tls1_2");

    let mut long = chains();
    long[0].certificates[0].not_before = Some("2025-01-01T00:00:00Z".parse().unwrap());
    let judgement = judge(&Reached::Tls, &modern, &long);
    for (profile, rule) in
        [(MozillaModern, "modern-lifespan"), (MozillaIntermediate, "intermediate-lifespan")]
    {
        let verdict = judgement.profiles.iter().find(|v| v.profile == profile.name()).unwrap();
        assert!(verdict.reasons.iter().any(|reason| reason.rule == rule), "{profile}");
    }
}

/// The level `acceptable` and the profile BCP 195 agree.
#[test]
fn what_is_acceptable_meets_bcp_195() {
    for rule in RULES {
        let Some(id) = rule.test.fact() else { continue };
        for answer in [Yes, No, Inconclusive, Untested] {
            let judgement = judged(&changed(id, answer));
            if judgement.level >= Level::Acceptable {
                assert_eq!(verdict(&judgement, Profile::Bcp195), Yes, "{id} {answer}");
            }
        }
    }
}

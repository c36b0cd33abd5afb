//! sslyze 6.3, which drives OpenSSL 1.0.2 and 1.1.1.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::Value as Json;
use wiretight_scan::Start;
use wiretight_scan::facts::{Answer, Facts, Value};
use wiretight_scan::names::{Suite, Version};

use super::{Said, group, run, weakest, yes_or_no};
use crate::servers::{Missing, Running, find, pki};

const SCANS: &[&str] = &[
    "--sslv2",
    "--sslv3",
    "--tlsv1",
    "--tlsv1_1",
    "--tlsv1_2",
    "--tlsv1_3",
    "--certinfo",
    "--compression",
    "--reneg",
    "--heartbleed",
    "--openssl_ccs",
    "--resum",
    "--ems",
    "--fallback",
    "--early_data",
    "--elliptic_curves",
    "--robot",
];

/// Its result for this server.
pub fn scan(server: &Running) -> Result<Said, Missing> {
    let mut command = Command::new(find("sslyze")?);
    command.args(SCANS).args([
        "--resum_attempts=1",
        "--quiet",
        "--sni=localhost",
        "--json_out=found.json",
    ]);
    command.arg("--certinfo_ca_file").arg(pki::folder().join("root.pem"));
    match server.start {
        Start::Direct => {}
        Start::Https => {
            command.arg("--http_headers");
        }
        start @ (Start::Smtp
        | Start::Imap
        | Start::Pop3
        | Start::Ftp
        | Start::Ldap
        | Start::Postgres
        | Start::XmppClient
        | Start::Rdp) => {
            command.arg(format!("--starttls={}", start.scheme()));
        }
        start => return Ok(nothing(format!("it does not support {}", start.scheme()))),
    }
    command.arg(server.address.to_string());
    let dir = tempfile::tempdir().unwrap();
    let (took, mut trouble) = run(&mut command, dir.path(), Duration::from_secs(60));
    let found = fs::read_to_string(dir.path().join("found.json")).unwrap_or_default();
    let json: Json = serde_json::from_str(&without_big_numbers(&found)).unwrap_or_default();
    let scanned = &json["server_scan_results"][0];
    if trouble.is_none() && scanned["scan_status"] != "COMPLETED" {
        let trace = scanned["connectivity_error_trace"].as_str().unwrap_or_default();
        trouble = Some(
            trace
                .lines()
                .rfind(|line| !line.is_empty())
                .unwrap_or("it could not connect")
                .to_owned(),
        );
    }
    Ok(Said { facts: facts(&scanned["scan_result"]), took, trouble })
}

/// It contains RSA moduli as numbers, which JSON parsers reject. Each member is on a separate line.
fn without_big_numbers(json: &str) -> String {
    json.lines()
        .map(|line| match line.split_once("\": ") {
            Some((name, number)) => {
                let digits = number.trim_end_matches(',');
                let big = digits.len() > 18 && digits.bytes().all(|b| b.is_ascii_digit());
                if big {
                    format!("{name}\": 0{}\n", &number[digits.len()..])
                } else {
                    format!("{line}\n")
                }
            }
            None => format!("{line}\n"),
        })
        .collect()
}

fn nothing(why: String) -> Said {
    Said { facts: Facts::default(), took: Duration::ZERO, trouble: Some(why) }
}

fn facts(found: &Json) -> Facts {
    let mut facts = Facts::default();
    let result = |name: &str| Some(&found[name]["result"]).filter(|result| !result.is_null());
    let mut say = |id: &'static str, answer: Option<bool>| {
        if let Some(yes) = answer {
            facts.set(id, yes_or_no(yes), None, "sslyze");
        }
    };
    let flag = |name: &str, field: &str| result(name)?[field].as_bool();
    say("compression", flag("tls_compression", "supports_compression"));
    say("vulnerability.crime", flag("tls_compression", "supports_compression"));
    say("vulnerability.heartbleed", flag("heartbleed", "is_vulnerable_to_heartbleed"));
    say(
        "vulnerability.ccs_injection",
        flag("openssl_ccs_injection", "is_vulnerable_to_ccs_injection"),
    );
    say("fallback_scsv", flag("tls_fallback_scsv", "supports_fallback_scsv"));
    say("renegotiation.secure", flag("session_renegotiation", "supports_secure_renegotiation"));
    // sslyze requires many accepted renegotiations for a vulnerability; our fact needs only one.
    say(
        "renegotiation.by_client",
        result("session_renegotiation")
            .and_then(|result| result["client_renegotiations_success_count"].as_u64())
            .map(|count| count > 0),
    );
    say(
        "extension.extended_master_secret",
        flag("tls_extended_master_secret", "supports_ems_extension"),
    );
    say("session.early_data", flag("tls_1_3_early_data", "supports_early_data"));
    say(
        "vulnerability.robot",
        result("robot").and_then(|result| match result["robot_result"].as_str()? {
            "VULNERABLE_WEAK_ORACLE" | "VULNERABLE_STRONG_ORACLE" => Some(true),
            "NOT_VULNERABLE_NO_ORACLE" | "NOT_VULNERABLE_RSA_NOT_SUPPORTED" => Some(false),
            _ => None,
        }),
    );
    for (id, field) in [
        ("session.id", "session_id_resumption_result"),
        ("session.ticket", "tls_ticket_resumption_result"),
    ] {
        say(
            id,
            result("session_resumption").and_then(|result| match result[field].as_str()? {
                "FULLY_SUPPORTED" | "PARTIALLY_SUPPORTED" => Some(true),
                "NOT_SUPPORTED" => Some(false),
                _ => None,
            }),
        );
    }
    suites(found, &mut facts);
    if let Some(curves) = result("elliptic_curves") {
        for (field, answer) in [("supported_curves", Answer::Yes), ("rejected_curves", Answer::No)]
        {
            for curve in curves[field].as_array().into_iter().flatten() {
                if let Some(name) = curve["name"].as_str().and_then(group) {
                    facts.set(format!("group.{name}"), answer, None, "sslyze");
                }
            }
        }
    }
    if let Some(headers) =
        result("http_headers").filter(|headers| headers["http_error_trace"].is_null())
    {
        let hsts = &headers["strict_transport_security_header"];
        let age = hsts["max_age"].as_u64().map(Value::Number);
        facts.set("http.hsts", yes_or_no(!hsts.is_null()), age, "sslyze");
    }
    if let Some(info) = result("certificate_info") {
        certificates(info, &mut facts);
    }
    facts
}

fn suites(found: &Json, facts: &mut Facts) {
    let mut dh = BTreeSet::new();
    let mut taken = Vec::new();
    for version in Version::ALL {
        let name = match version {
            Version::Ssl2 => "ssl_2_0",
            Version::Ssl3 => "ssl_3_0",
            Version::Tls1_0 => "tls_1_0",
            Version::Tls1_1 => "tls_1_1",
            Version::Tls1_2 => "tls_1_2",
            Version::Tls1_3 => "tls_1_3",
        };
        let result = &found[format!("{name}_cipher_suites")]["result"];
        let Some(supported) = result["is_tls_version_supported"].as_bool() else { continue };
        facts.set(format!("protocol.{}", version.key()), yes_or_no(supported), None, "sslyze");
        for (field, answer) in
            [("accepted_cipher_suites", Answer::Yes), ("rejected_cipher_suites", Answer::No)]
        {
            for one in result[field].as_array().into_iter().flatten() {
                let Some(name) = one["cipher_suite"]["name"].as_str() else { continue };
                // We do not test what is not in the registry.
                let known = Suite::from_name(name).map(|suite| suite.name);
                if known.is_none() && version != Version::Ssl2 {
                    continue;
                }
                facts.set(format!("suite.{}.{name}", version.key()), answer, None, "sslyze");
                if answer == Answer::Yes {
                    taken.push(name.to_owned());
                    if one["ephemeral_key"]["type_name"] == "DH" {
                        dh.extend(one["ephemeral_key"]["size"].as_u64());
                    }
                }
            }
        }
    }
    if let Some(least) = dh.first() {
        facts.set("dh.bits", Answer::Yes, Some(Value::Number(*least)), "sslyze");
    }
}

fn certificates(info: &Json, facts: &mut Facts) {
    let chains: Vec<&Json> =
        info["certificate_deployments"].as_array().into_iter().flatten().collect();
    let leaves: Vec<&Json> =
        chains.iter().map(|chain| &chain["received_certificate_chain"][0]).collect();
    if leaves.is_empty() {
        return;
    }
    let every = |id: &'static str, what: &dyn Fn(&Json) -> bool, facts: &mut Facts| {
        facts.set(id, yes_or_no(chains.iter().all(|chain| what(chain))), None, "sslyze");
    };
    every("certificate.ordered", &|chain| chain["received_chain_has_valid_order"] == true, facts);
    every(
        "certificate.must_staple",
        &|chain| chain["leaf_certificate_has_must_staple_extension"] == true,
        facts,
    );
    every("certificate.ocsp_stapled", &|chain| !chain["ocsp_response"].is_null(), facts);
    // The given store is listed among its own stores.
    let trusted = |chain: &Json| {
        let stores = chain["path_validation_results"].as_array();
        stores.into_iter().flatten().any(|one| one["was_validation_successful"] == true)
    };
    // It checks chain and name together, so a wrong name says nothing about the chain.
    let named = |chain: &Json| {
        let stores = chain["path_validation_results"].as_array();
        let errors =
            stores.into_iter().flatten().filter_map(|one| one["validation_error"].as_str());
        !errors.into_iter().any(|error| error.contains("subjectAltName"))
    };
    if chains.iter().all(|chain| named(chain)) {
        every("certificate.trusted", &trusted, facts);
    }
    let now = jiff::Timestamp::now();
    let time = |leaf: &Json, field: &str| {
        leaf[field].as_str().and_then(|at| at.parse::<jiff::Timestamp>().ok())
    };
    let valid = leaves.iter().all(|leaf| {
        time(leaf, "not_valid_before").is_some_and(|at| at <= now)
            && time(leaf, "not_valid_after").is_some_and(|at| at >= now)
    });
    facts.set("certificate.valid", yes_or_no(valid), None, "sslyze");
    let bits = leaves.iter().filter_map(|leaf| leaf["public_key"]["key_size"].as_u64());
    if let Some(bits) = weakest(bits) {
        facts.set("certificate.key_bits", Answer::Yes, Some(Value::Number(bits)), "sslyze");
    }
    let own = |chain: &&Json| {
        let certificates = chain["received_certificate_chain"].as_array().map_or(0, Vec::len);
        let leaf = &chain["received_certificate_chain"][0];
        certificates == 1 && leaf["subject"]["rfc4514_string"] == leaf["issuer"]["rfc4514_string"]
    };
    facts.set("certificate.self_signed", yes_or_no(chains.iter().any(own)), None, "sslyze");
    let weak = |leaf: &&Json| {
        matches!(leaf["signature_hash_algorithm"]["name"].as_str(), Some("sha1" | "md5"))
    };
    facts.set("certificate.weak_signature", yes_or_no(leaves.iter().any(weak)), None, "sslyze");
}

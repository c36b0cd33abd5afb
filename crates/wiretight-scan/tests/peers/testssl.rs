//! testssl.sh 3.0.8, which creates its own hellos in Bash.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::Value as Json;
use wiretight_scan::Start;
use wiretight_scan::facts::{Answer, Facts, Value};
use wiretight_scan::names::{SSL2_SUITES, Suite, Version};

use super::{Said, group, run, weakest, yes_or_no};
use crate::servers::{Missing, Running, find, pki};

/// Its result for this server in these sections (`-p -S`); each takes five to thirty seconds.
pub fn scan(server: &Running, sections: &str) -> Result<Said, Missing> {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(find("testssl")?);
    command.args([
        "--quiet",
        "--color=0",
        "--warnings=off",
        "--openssl-timeout=5",
        "--connect-timeout=5",
    ]);
    command.args(["--nodns=none", "--jsonfile=found.json"]);
    command.arg("--add-ca").arg(pki::folder().join("root.pem"));
    command.arg(format!("--ip={}", server.address.ip())).args(sections.split(' '));
    match server.start {
        Start::Direct | Start::Https => {}
        start => {
            command.args(["-t", start.scheme()]);
            if start == Start::Ldap {
                // Its own hellos do not support this protocol.
                command.arg("--ssl-native");
            }
        }
    }
    command.arg(format!("localhost:{}", server.address.port()));
    // It also uses the system's OpenSSL settings, with which it does not see old versions.
    command.env("OPENSSL_CONF", "/dev/null").env("TERM", "dumb");
    let (took, trouble) = run(&mut command, dir.path(), Duration::from_secs(180));
    let found = fs::read_to_string(dir.path().join("found.json")).unwrap_or_default();
    // An interrupted run leaves the list open.
    let found: Json = serde_json::from_str(&found)
        .or_else(|_| serde_json::from_str(&format!("{}]", found.trim_end().trim_end_matches(','))))
        .unwrap_or_default();
    let findings: Vec<(String, String, String)> = found
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| {
            let text = |field: &str| one[field].as_str().unwrap_or_default().to_owned();
            (text("id"), text("severity"), text("finding"))
        })
        .collect();
    let trouble = trouble.or_else(|| {
        let problem = findings.iter().find(|(_, severity, _)| severity == "FATAL");
        match problem {
            Some((_, _, finding)) => Some(finding.clone()),
            None if findings.is_empty() => Some(
                fs::read_to_string(dir.path().join("log")).unwrap_or_default().trim().to_owned(),
            ),
            None => None,
        }
    });
    Ok(Said { facts: facts(&findings), took, trouble })
}

fn facts(findings: &[(String, String, String)]) -> Facts {
    let mut facts = Facts::default();
    let mut bits = BTreeSet::new();
    let mut dh = BTreeSet::new();
    for (id, severity, finding) in findings {
        // With several certificates, the id has a suffix: `cert_keySize <cert#1>`.
        let id = id.split(' ').next().unwrap_or_default();
        let offered = match finding.as_str() {
            f if f.starts_with("not offered") => Some(false),
            f if f.starts_with("offered") || f.contains("vulnerable") => Some(true),
            _ => None,
        };
        let mut say = |id: &'static str, answer: Option<bool>| {
            if let Some(yes) = answer {
                // The worst of several certificates counts.
                let bad = matches!(id, "certificate.self_signed" | "certificate.weak_signature");
                if id.starts_with("certificate.") && facts.answer(id) == yes_or_no(bad) {
                    return;
                }
                facts.set(id, yes_or_no(yes), None, format!("testssl.sh: {finding}"));
            }
        };
        // Keep only certain results; it marks what it cannot test.
        let vulnerable = match severity.as_str() {
            "OK" => Some(false),
            "LOW" | "MEDIUM" | "HIGH" | "CRITICAL" => Some(true),
            _ => None,
        };
        match id {
            "SSLv2" => say("protocol.ssl2", offered),
            "SSLv3" => say("protocol.ssl3", offered),
            "TLS1" => say("protocol.tls1_0", offered),
            "TLS1_1" => say("protocol.tls1_1", offered),
            "TLS1_2" => say("protocol.tls1_2", offered),
            "TLS1_3" => say("protocol.tls1_3", offered),
            "heartbleed" => say("vulnerability.heartbleed", vulnerable),
            "CCS" => say("vulnerability.ccs_injection", vulnerable),
            "ticketbleed" => say("vulnerability.ticketbleed", vulnerable),
            "ROBOT" => say("vulnerability.robot", vulnerable),
            "secure_renego" => say("renegotiation.secure", vulnerable.map(|v| !v)),
            "secure_client_renego" => say("renegotiation.by_client", vulnerable),
            "CRIME_TLS" => {
                say("compression", vulnerable);
                say("vulnerability.crime", vulnerable);
            }
            "POODLE_SSL" => say("vulnerability.poodle_ssl", vulnerable),
            "fallback_SCSV" if finding.starts_with("supported") => say("fallback_scsv", Some(true)),
            "fallback_SCSV"
                if finding.starts_with("not supported") || finding.contains("NOT supported") =>
            {
                say("fallback_scsv", Some(false));
            }
            "SWEET32" => say("vulnerability.sweet32", vulnerable),
            "FREAK" => say("vulnerability.freak", vulnerable),
            "DROWN" => say("vulnerability.drown", vulnerable),
            "BEAST" => say("vulnerability.beast", vulnerable),
            "LUCKY13" => say("vulnerability.lucky13", vulnerable),
            "RC4" => say("vulnerability.rc4", vulnerable),
            "sessionresumption_ticket" if finding.starts_with("supported") => {
                say("session.ticket", Some(true))
            }
            "sessionresumption_ticket" if finding.starts_with("not supported") => {
                say("session.ticket", Some(false));
            }
            "sessionresumption_ID" if finding.starts_with("supported") => {
                say("session.id", Some(true))
            }
            "sessionresumption_ID" if finding.starts_with("not supported") => {
                say("session.id", Some(false))
            }
            "TLS_extensions" if finding.contains("'extended master secret/#23'") => {
                say("extension.extended_master_secret", Some(true));
            }
            "cert_keySize" => {
                bits.extend(finding.split(' ').find_map(|word| word.parse::<u64>().ok()))
            }
            "cert_expirationStatus" => say("certificate.valid", Some(!finding.contains("expired"))),
            "cert_trust" => say("certificate.name", Some(severity == "OK")),
            "cert_chain_of_trust" => {
                say("certificate.trusted", Some(finding.starts_with("passed")));
                say("certificate.self_signed", Some(finding.contains("self signed")));
                if finding.starts_with("passed") || finding.contains("chain incomplete") {
                    say("certificate.complete", Some(finding.starts_with("passed")));
                }
            }
            "certs_list_ordering_problem" => {
                say("certificate.ordered", Some(finding.starts_with("no")))
            }
            "cert_mustStapleExtension" => {
                say("certificate.must_staple", Some(!finding.starts_with("--")))
            }
            "OCSP_stapling" => say("certificate.ocsp_stapled", offered),
            "cert_signatureAlgorithm" => {
                say(
                    "certificate.weak_signature",
                    Some(finding.contains("SHA1") || finding.contains("MD5")),
                );
            }
            "HSTS_time" => {
                let age = finding.split("(=").nth(1).and_then(|rest| rest.split(' ').next());
                let age = age.and_then(|age| age.parse().ok()).map(Value::Number);
                facts.set("http.hsts", Answer::Yes, age, format!("testssl.sh: {finding}"));
            }
            "HSTS" => say("http.hsts", offered),
            "ALPN" => {
                let names = match offered {
                    Some(false) => None,
                    _ => Some(Value::List(finding.split(' ').map(str::to_owned).collect())),
                };
                facts.set(
                    "alpn",
                    yes_or_no(names.is_some()),
                    names,
                    format!("testssl.sh: {finding}"),
                );
            }
            "PFS_ECDHE_curves" | "FS_ECDHE_curves" => {
                for name in finding.split(' ').filter_map(group) {
                    facts.set(format!("group.{name}"), Answer::Yes, None, "testssl.sh");
                }
            }
            _ => {
                if let Some((version, name, dh_bits)) = suite(id, finding) {
                    // It lists only what it tested.
                    let answer = yes_or_no(!finding.trim_end().ends_with("not a/v"));
                    if answer == Answer::Yes {
                        dh.extend(dh_bits);
                    }
                    facts.set(
                        format!("suite.{}.{name}", version.key()),
                        answer,
                        None,
                        "testssl.sh",
                    );
                }
            }
        }
    }
    if let Some(least) = weakest(bits) {
        facts.set("certificate.key_bits", Answer::Yes, Some(Value::Number(least)), "testssl.sh");
    }
    if let Some(least) = dh.first() {
        facts.set("dh.bits", Answer::Yes, Some(Value::Number(*least)), "testssl.sh");
    }
    facts
}

/// `cipher-tls1_2_xc030`, with `TLS 1.2   xc030   DHE-RSA-AES256-GCM-SHA384   DH 2048    AESGCM ...`.
fn suite(id: &str, finding: &str) -> Option<(Version, &'static str, Option<u64>)> {
    let (version, code) = id.strip_prefix("cipher-")?.rsplit_once("_x")?;
    let version = match version {
        "ssl2" | "sslv2" => Version::Ssl2,
        "ssl3" | "sslv3" => Version::Ssl3,
        "tls1" => Version::Tls1_0,
        "tls1_1" => Version::Tls1_1,
        "tls1_2" => Version::Tls1_2,
        "tls1_3" => Version::Tls1_3,
        _ => return None,
    };
    let code = u32::from_str_radix(code, 16).ok()?;
    let name = match version {
        Version::Ssl2 => SSL2_SUITES.iter().find(|(known, _)| *known == code)?.1,
        _ => Suite::from_code(u16::try_from(code).ok()?)?.name,
    };
    let mut words = finding.split_whitespace().skip_while(|word| *word != "DH");
    Some((version, name, words.nth(1).and_then(|bits| bits.parse().ok())))
}

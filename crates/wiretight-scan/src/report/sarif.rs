//! SARIF 2.1.0 for issue trackers.
//!
//! Each file contains all rules of the judgement, so that readers see what was tested. A result is a
//! problem that was found (`fail`), or one that could not be determined (`open`): a tracker must not
//! close a finding because a scan was throttled.

use std::io::{self, Write};

use aws_lc_rs::digest;
use serde_json::{Value, json};

use super::text;
use crate::Report;
use crate::facts::Answer;
use crate::judge::rules::{RULES, Rule};
use crate::judge::{Level, Reason};

#[derive(Default)]
pub(super) struct Sarif {
    begun: bool,
    any: bool,
}

impl Sarif {
    pub(super) fn report(&mut self, out: &mut impl Write, report: &Report) -> io::Result<()> {
        self.begin(out)?;
        for reason in &report.judgement.reasons {
            if std::mem::replace(&mut self.any, true) {
                writeln!(out, ",")?;
            }
            serde_json::to_writer(&mut *out, &result(report, reason))?;
        }
        Ok(())
    }

    pub(super) fn finish(mut self, out: &mut impl Write) -> io::Result<()> {
        self.begin(out)?;
        writeln!(out, "\n{END}")
    }

    fn begin(&mut self, out: &mut impl Write) -> io::Result<()> {
        match std::mem::replace(&mut self.begun, true) {
            true => Ok(()),
            false => begin(out, "wiretight scan", RULES),
        }
    }
}

/// What follows the results.
pub(super) const END: &str =
    r#"],"columnKind":"unicodeCodePoints","invocations":[{"executionSuccessful":true}]}]}"#;

/// What precedes the results.
pub(super) fn begin<'a>(
    out: &mut impl Write,
    tool: &str,
    rules: impl IntoIterator<Item = &'a Rule>,
) -> io::Result<()> {
    const SCHEMA: &str = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json";
    let driver = json!({
        "name": tool,
        "semanticVersion": env!("CARGO_PKG_VERSION"),
        "rules": rules.into_iter().map(rule).collect::<Vec<_>>(),
    });
    writeln!(
        out,
        r#"{{"$schema":"{SCHEMA}","version":"2.1.0","runs":[{{"tool":{{"driver":{driver}}},"results":["#
    )
}

fn rule(rule: &Rule) -> Value {
    // GitHub sorts by severity: 9.0 and above is critical, 7.0 high, 4.0 medium.
    let severity = match rule.level {
        Level::Plaintext => "9.1",
        Level::Weak => "7.5",
        _ => "4.0",
    };
    json!({
        "id": rule.id,
        "shortDescription": { "text": text::sarif(rule.what) },
        "fullDescription": {
            "text": text::sarif(&format!("{}. The level is {} at best.", rule.what, rule.level)),
        },
        "help": { "text": text::sarif(&format!("{}. Source: {}.", rule.change, rule.standard)) },
        "defaultConfiguration": { "level": severity_word(rule.level) },
        "properties": { "tags": ["security", "tls"], "security-severity": severity },
    })
}

fn severity_word(level: Level) -> &'static str {
    match level {
        Level::Plaintext | Level::Weak => "error",
        Level::Acceptable | Level::Unknown => "warning",
        Level::Strong => "note",
    }
}

fn result(report: &Report, reason: &Reason) -> Value {
    let uri = uri(report);
    // The fingerprint must be the same in later scans, also if the name has another address by then.
    let fingerprint = digest::digest(
        &digest::SHA256,
        format!("wiretight scan 1\n{}\n{uri}", reason.rule).as_bytes(),
    );
    let (kind, level) = kind(reason);
    let message = message(reason);
    let evidence = report.facts.get(&reason.fact).map(|fact| fact.evidence.as_ref());
    let mut result = json!({
        "ruleId": reason.rule,
        "kind": kind,
        "level": level,
        "message": { "text": text::sarif(&message) },
        "locations": [{
            "physicalLocation": { "artifactLocation": { "uri": uri } },
            "logicalLocations": [{
                "fullyQualifiedName": report.target.to_string(),
                "kind": "resource",
            }],
        }],
        "partialFingerprints": { "endpointAndRule/v1": hex(fingerprint.as_ref()) },
        "properties": {
            "fact": reason.fact,
            "evidence": text::clean(evidence.unwrap_or_default()),
            "address": report.address,
            "scanned": report.started,
        },
    });
    if let Some(index) = RULES.iter().position(|rule| rule.id == reason.rule) {
        result["ruleIndex"] = index.into();
    }
    result
}

/// The kind and the level of a result.
pub(super) fn kind(reason: &Reason) -> (&'static str, &'static str) {
    match reason.answer {
        Answer::Yes => ("fail", severity_word(reason.level)),
        // Section 3.27.10: a result that is not a failure has the level "none".
        _ => ("open", "none"),
    }
}

pub(super) fn message(reason: &Reason) -> String {
    format!("{}. {}. Source: {}.", reason.what, reason.change, reason.standard)
}

/// `tls://host:port`, or the scheme of the protocol before STARTTLS.
pub(super) fn uri(report: &Report) -> String {
    let target = &report.target;
    match &target.host {
        crate::Host::Address(std::net::IpAddr::V6(address), zone) => {
            // RFC 6874: the % before a zone is escaped.
            let zone = zone.as_ref().map(|zone| format!("%25{zone}")).unwrap_or_default();
            format!("{}://[{address}{zone}]:{}", target.start.scheme(), target.port)
        }
        host => format!("{}://{host}:{}", target.start.scheme(), target.port),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

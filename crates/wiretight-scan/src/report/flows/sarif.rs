//! SARIF 2.1.0: each reason of each blocker is a result.

use std::io::{self, Write};

use aws_lc_rs::digest;
use serde_json::{Value, json};

use super::{FlowReport, clients, programs, protocol};
use crate::judge::Reason;
use crate::passive::blockers::{Blocker, rules};
use crate::report::sarif::{END, begin, hex, kind, message};
use crate::report::text;

pub(super) fn write(out: &mut impl Write, report: &FlowReport) -> io::Result<()> {
    begin(out, "wiretight watch", rules())?;
    let mut any = false;
    for blocker in &report.blockers {
        for reason in &blocker.row.reasons {
            if std::mem::replace(&mut any, true) {
                writeln!(out, ",")?;
            }
            serde_json::to_writer(&mut *out, &result(blocker, reason))?;
        }
    }
    writeln!(out, "\n{END}")
}

fn result(blocker: &Blocker, reason: &Reason) -> Value {
    let row = &blocker.row;
    let uri = format!("{}://{}", row.key.transport, row.key.server);
    // The same in later captures.
    let client = row.key.client.map(|client| client.ip().to_string()).unwrap_or_default();
    let of = format!("wiretight watch 1\n{}\n{uri}\n{}\n{client}", reason.rule, row.key.protocol);
    let fingerprint = digest::digest(&digest::SHA256, of.as_bytes());
    let (kind, level) = kind(reason);
    let evidence: Vec<_> = row.seen.iter().map(|seen| text::clean(&seen.evidence)).collect();
    let mut result = json!({
        "ruleId": reason.rule,
        "kind": kind,
        "level": level,
        "message": { "text": text::sarif(&message(reason)) },
        "locations": [{
            "physicalLocation": { "artifactLocation": { "uri": uri } },
            "logicalLocations": [{
                "fullyQualifiedName": text::clean(&format!("{uri} {}", protocol(row))),
                "kind": "resource",
            }],
        }],
        "partialFingerprints": { "serviceAndRule/v1": hex(fingerprint.as_ref()) },
        "properties": {
            "fact": reason.fact,
            "evidence": evidence,
            "clients": clients(row),
            "programs": text::clean(&programs(row)),
            "flows": row.flows,
            "bytes": row.total(),
            "first": row.first,
            "last": row.last,
        },
    });
    if let Some(index) = rules().position(|rule| rule.id == reason.rule) {
        result["ruleIndex"] = index.into();
    }
    result
}

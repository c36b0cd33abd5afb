//! A CycloneDX 1.7 cryptography bill of materials: the protocols that were negotiated, with their algorithms, and the
//! certificates that were sent in the clear.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use serde_json::{Value, json};

use super::{FlowReport, clients, protocol};
use crate::judge::Level;
use crate::names::{Group, Suite};
use crate::passive::summary::Row;
use crate::passive::{CertificateSeen, Sealed};
use crate::report::algorithms::{self, Algorithm};
use crate::report::cbom::{Cbom, identifiers};
use crate::report::text::clean;

pub(super) fn write(out: &mut impl Write, report: &FlowReport) -> io::Result<()> {
    let mut cbom = Cbom::of("wiretight watch");
    cbom.properties = properties(report);
    cbom.begin(out, report.coverage.to)?;
    // Each certificate once, with its places of use.
    let mut certificates: BTreeMap<&str, (&CertificateSeen, Vec<usize>)> = BTreeMap::new();
    for row in &report.rows {
        let mut versions: BTreeMap<&str, Vec<&Sealed>> = BTreeMap::new();
        for sealed in row.seen.iter().filter_map(|seen| seen.sealed.as_deref()) {
            versions.entry(&sealed.version).or_default().push(sealed);
        }
        for (version, of) in versions {
            let (transport, server) = (row.key.transport, row.key.server);
            let at = format!("{version}@{transport}://{server}/{}", row.key.protocol);
            let context = clean(&format!("{} from {}", protocol(row), clients(row))).into_owned();
            let (endpoint, place) = cbom.place(at, server.to_string(), context);
            let component = component(&mut cbom, row, version, &of, &endpoint, place);
            cbom.component(out, &component)?;
            for certificate in of.iter().filter_map(|sealed| sealed.certificate.as_ref()) {
                let places = &mut certificates
                    .entry(&certificate.sha256)
                    .or_insert((certificate, Vec::new()))
                    .1;
                places.push(place);
                for name in [&certificate.signature, &certificate.key] {
                    cbom.algorithm(algorithms::of_certificate(&clean(name)), place);
                }
            }
        }
    }
    for (certificate, places) in certificates.into_values() {
        let component = of_certificate(&cbom, certificate, &places, report.coverage.to);
        cbom.component(out, &component)?;
    }
    cbom.finish(out)
}

/// What the inventory covers, and what it does not.
fn properties(report: &FlowReport) -> Vec<(String, String)> {
    let mut properties = vec![("wiretight:source".to_owned(), clean(&report.source).into_owned())];
    for level in Level::ALL {
        let share = report.coverage.share(level);
        properties.push((format!("wiretight:flows:{level}"), share.flows.to_string()));
        properties.push((format!("wiretight:bytes:{level}"), share.bytes.to_string()));
    }
    properties
        .push(("wiretight:bytes:missed".to_owned(), report.coverage.missed_bytes().to_string()));
    properties
}

fn component(
    cbom: &mut Cbom,
    row: &Row,
    version: &str,
    of: &[&Sealed],
    endpoint: &str,
    place: usize,
) -> Value {
    // "TLS 1.3", "IKEv2", "WireGuard"
    let (name, number) = match version.split_once(' ') {
        Some((name, number)) => (name, number),
        None => (version, ""),
    };
    let kind = match name {
        "TLS" => "tls",
        "DTLS" => "dtls",
        "QUIC" => "quic",
        "SSH" => "ssh",
        "IKE" | "IKEv1" | "IKEv2" => "ike",
        "ESP" | "AH" | "IPsec" => "ipsec",
        _ => "other",
    };
    let mut suites: BTreeMap<&str, (BTreeSet<&str>, BTreeSet<&str>)> = BTreeMap::new();
    let mut related: Vec<Value> = Vec::new();
    for sealed in of {
        let suite = sealed.suite.as_deref().unwrap_or("unknown");
        let (groups, schemes) = suites.entry(suite).or_default();
        groups.extend(sealed.group.as_deref());
        schemes.extend(sealed.signature.as_deref());
        if let Some(group) = sealed.group.as_deref() {
            let algorithm = match Group::from_name(group) {
                Some(group) => algorithms::of_group(group),
                None if sealed.post_quantum == Some(true) => Algorithm::named(group, "combiner"),
                None => Algorithm::named(group, "key-agree"),
            };
            let reference = cbom.algorithm(algorithm, place);
            related.push(json!({ "type": "algorithm", "ref": reference }));
        }
        if let Some(certificate) = &sealed.certificate {
            related.push(json!({ "type": "certificate", "ref": format!("certificate:{}", certificate.sha256) }));
        }
    }
    let mut unique: Vec<Value> = Vec::new();
    for value in related {
        if !unique.contains(&value) {
            unique.push(value);
        }
    }
    let suites: Vec<Value> = suites
        .into_iter()
        .filter(|(name, _)| *name != "unknown")
        .map(|(name, (groups, schemes))| {
            let known = Suite::from_name(name);
            let parts = match known {
                Some(suite) => algorithms::of_suite(suite),
                None => vec![Algorithm::named(name, "other")],
            };
            let parts: Vec<_> = parts.into_iter().map(|a| cbom.algorithm(a, place)).collect();
            let mut suite = json!({ "name": clean(name), "algorithms": parts });
            if let Some(code) = identifiers(name, known) {
                suite["identifiers"] = code.into();
            }
            let tls = matches!(kind, "tls" | "dtls" | "quic");
            if tls && !groups.is_empty() {
                suite["tlsGroups"] = json!(groups);
            }
            if tls && !schemes.is_empty() {
                suite["tlsSignatureSchemes"] = json!(schemes);
            }
            suite
        })
        .collect();
    let mut protocol = json!({ "type": kind });
    if !number.is_empty() {
        protocol["version"] = clean(number).into();
    }
    if !suites.is_empty() {
        protocol["cipherSuites"] = suites.into();
    }
    if !unique.is_empty() {
        protocol["relatedCryptographicAssets"] = unique.into();
    }
    let mut component = json!({
        "type": "cryptographic-asset",
        "bom-ref": format!("protocol:{endpoint}"),
        "name": clean(name),
        "evidence": cbom.evidence([&place]),
        "cryptoProperties": { "assetType": "protocol", "protocolProperties": protocol },
        "properties": [
            { "name": "wiretight:level", "value": row.key.level.to_string() },
            { "name": "wiretight:grade", "value": row.grade.to_string() },
            { "name": "wiretight:flows", "value": row.flows.to_string() },
            { "name": "wiretight:bytes", "value": row.total().to_string() },
        ],
    });
    if !number.is_empty() {
        component["version"] = clean(number).into();
    }
    component
}

fn of_certificate(
    cbom: &Cbom,
    certificate: &CertificateSeen,
    places: &[usize],
    at: Option<jiff::Timestamp>,
) -> Value {
    let state = match at {
        Some(at) if at > certificate.not_after => {
            json!({ "state": "deactivated", "reason": "expired when seen" })
        }
        _ => json!({ "state": "active" }),
    };
    let algorithm = algorithms::of_certificate(&clean(&certificate.signature)).bom_ref();
    let mut properties = json!({
        "subjectName": clean(&certificate.subject),
        "notValidAfter": certificate.not_after.to_string(),
        "certificateFormat": "X.509",
        "certificateState": [state],
        "relatedCryptographicAssets": [{ "type": "algorithm", "ref": algorithm }],
    });
    if certificate.sha256.len() == 64 {
        properties["fingerprint"] = json!({ "alg": "SHA-256", "content": certificate.sha256 });
    }
    json!({
        "type": "cryptographic-asset",
        "bom-ref": format!("certificate:{}", certificate.sha256),
        "name": clean(&certificate.subject),
        "evidence": cbom.evidence(places),
        "cryptoProperties": { "assetType": "certificate", "certificateProperties": properties },
    })
}

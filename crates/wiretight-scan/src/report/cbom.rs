//! A CycloneDX 1.7 cryptography bill of materials (ECMA-424): the protocols, algorithms and
//! certificates of each endpoint.
//!
//! Protocols are written immediately, one for each version that an endpoint supports. Algorithms and
//! certificates are shared between endpoints. Each is written once, at the end, with all its
//! occurrences. The same reports produce the same file, byte by byte: references are derived from
//! names, and the serial number (RFC 9562 section 5.8) is a hash of the rest.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Write};

use aws_lc_rs::digest::{Context, SHA256};
use serde_json::{Value, json};

use super::algorithms::{self, Algorithm};
use super::sarif::hex;
use crate::Report;
use crate::certificate::Certificate;
use crate::facts::Answer;
use crate::names::{Group, SSL2_SUITES, Suite, Version};

pub(super) struct Cbom {
    tool: &'static str,
    /// Properties of the whole, by name.
    pub(super) properties: Vec<(String, String)>,
    hash: Context,
    begun: bool,
    any: bool,
    /// How often each endpoint was reported, because references must be unique.
    seen: HashMap<String, u32>,
    /// `host:port`, and the address or another context.
    places: Vec<(String, String)>,
    algorithms: BTreeMap<Algorithm, BTreeSet<usize>>,
    certificates: BTreeMap<String, (Certificate, jiff::Timestamp, BTreeSet<usize>)>,
}

impl Default for Cbom {
    fn default() -> Self {
        Self::of("wiretight scan")
    }
}

impl Cbom {
    /// `tool`: the name of the command that makes it.
    pub(super) fn of(tool: &'static str) -> Self {
        Self {
            tool,
            properties: Vec::new(),
            hash: Context::new(&SHA256),
            begun: false,
            any: false,
            seen: HashMap::new(),
            places: Vec::new(),
            algorithms: BTreeMap::new(),
            certificates: BTreeMap::new(),
        }
    }

    pub(super) fn report(&mut self, out: &mut impl Write, report: &Report) -> io::Result<()> {
        self.begin(out, Some(report.started))?;
        let address = report.address.map(|a| a.to_string()).unwrap_or_default();
        let target = &report.target;
        let location = match &target.host {
            crate::Host::Address(std::net::IpAddr::V6(_), _) => {
                format!("[{}]:{}", target.host, target.port)
            }
            host => format!("{host}:{}", target.port),
        };
        let endpoint = format!("{}/{address}", super::sarif::uri(report));
        let (endpoint, place) = self.place(endpoint, location, address);

        for version in Version::ALL {
            if report.facts.yes(&format!("protocol.{}", version.key())) {
                let component = self.protocol(report, version, &endpoint, place);
                self.component(out, &component)?;
            }
        }
        if report.facts.yes("protocol.quic") {
            let component = json!({
                "type": "cryptographic-asset",
                "bom-ref": format!("protocol:quic@{endpoint}"),
                "name": "QUIC",
                "version": "1",
                "evidence": self.evidence([&place]),
                "cryptoProperties": {
                    "assetType": "protocol",
                    "protocolProperties": { "type": "quic", "version": "1" },
                },
            });
            self.component(out, &component)?;
        }
        for certificate in report.chains.iter().flat_map(|chain| &chain.certificates) {
            let known = self.certificates.entry(certificate.sha256.clone());
            let (_, _, places) =
                known.or_insert_with(|| (certificate.clone(), report.started, BTreeSet::new()));
            places.insert(place);
            for name in [&certificate.signature, &certificate.key] {
                self.algorithm(algorithms::of_certificate(name), place);
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self, out: &mut impl Write) -> io::Result<()> {
        self.begin(out, None)?;
        for (algorithm, places) in std::mem::take(&mut self.algorithms) {
            let component = json!({
                "type": "cryptographic-asset",
                "bom-ref": algorithm.bom_ref(),
                "name": algorithm.name,
                "evidence": self.evidence(&places),
                "cryptoProperties": {
                    "assetType": "algorithm",
                    "algorithmProperties": algorithm.properties(),
                },
            });
            self.component(out, &component)?;
        }
        let mut keys = BTreeSet::new();
        for (certificate, at, places) in std::mem::take(&mut self.certificates).into_values() {
            let component = self.certificate(&certificate, at, &places);
            self.component(out, &component)?;
            if keys.insert(certificate.spki_sha256.clone()) {
                let component = self.key(&certificate, &places);
                self.component(out, &component)?;
            }
        }
        self.write(out, "\n]")?;
        let hash = self.hash.finish();
        let mut uuid: [u8; 16] = [0; 16];
        uuid.copy_from_slice(&hash.as_ref()[..16]);
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        let uuid = hex(&uuid);
        let parts = [&uuid[..8], &uuid[8..12], &uuid[12..16], &uuid[16..20], &uuid[20..]];
        writeln!(out, ",\n\"serialNumber\":\"urn:uuid:{}\"}}", parts.join("-"))
    }

    /// A place of use. Returns its reference, which is unique, and its index.
    pub(super) fn place(
        &mut self,
        mut endpoint: String,
        location: String,
        context: String,
    ) -> (String, usize) {
        let times = self.seen.entry(endpoint.clone()).or_default();
        *times += 1;
        if *times > 1 {
            endpoint.push_str(&format!("/{times}"));
        }
        self.places.push((location, context));
        (endpoint, self.places.len() - 1)
    }

    pub(super) fn begin(
        &mut self,
        out: &mut impl Write,
        started: Option<jiff::Timestamp>,
    ) -> io::Result<()> {
        if std::mem::replace(&mut self.begun, true) {
            return Ok(());
        }
        let mut metadata = json!({
            "lifecycles": [{ "phase": "operations" }],
            "tools": { "components": [{
                "type": "application",
                "name": self.tool,
                "version": env!("CARGO_PKG_VERSION"),
            }] },
        });
        if !self.properties.is_empty() {
            let of =
                self.properties.iter().map(|(name, value)| json!({ "name": name, "value": value }));
            metadata["properties"] = of.collect();
        }
        if let Some(started) = started {
            metadata["timestamp"] = started.to_string().into();
        }
        let head = format!(
            "{{\"$schema\":\"http://cyclonedx.org/schema/bom-1.7.schema.json\",\
             \"bomFormat\":\"CycloneDX\",\"specVersion\":\"1.7\",\"version\":1,\n\
             \"metadata\":{metadata},\n\"components\":["
        );
        self.write(out, &head)
    }

    fn write(&mut self, out: &mut impl Write, text: &str) -> io::Result<()> {
        self.hash.update(text.as_bytes());
        out.write_all(text.as_bytes())
    }

    pub(super) fn component(&mut self, out: &mut impl Write, component: &Value) -> io::Result<()> {
        let comma = if std::mem::replace(&mut self.any, true) { ",\n" } else { "\n" };
        self.write(out, &format!("{comma}{component}"))
    }

    pub(super) fn algorithm(&mut self, algorithm: Algorithm, place: usize) -> String {
        let reference = algorithm.bom_ref();
        self.algorithms.entry(algorithm).or_default().insert(place);
        reference
    }

    pub(super) fn evidence<'a>(&self, places: impl IntoIterator<Item = &'a usize>) -> Value {
        let occurrences: Vec<_> = places
            .into_iter()
            .filter_map(|place| self.places.get(*place))
            .map(|(location, address)| match address.is_empty() {
                true => json!({ "location": location }),
                false => json!({ "location": location, "additionalContext": address }),
            })
            .collect();
        json!({ "occurrences": occurrences })
    }

    fn protocol(
        &mut self,
        report: &Report,
        version: Version,
        endpoint: &str,
        place: usize,
    ) -> Value {
        let facts = &report.facts;
        let new = version == Version::Tls1_3;
        let groups = facts.list(if new { "groups.tls1_3" } else { "groups.tls1_2" });
        let schemes = facts.list(&format!("signatures.{}", version.key()));
        let suites: Vec<_> = suites(report, version)
            .into_iter()
            .map(|name| {
                let known = Suite::from_name(&name);
                let parts = known.map(algorithms::of_suite).unwrap_or_default();
                let parts: Vec<_> = parts.into_iter().map(|a| self.algorithm(a, place)).collect();
                let mut suite = json!({ "name": name, "algorithms": parts });
                if let Some(code) = identifiers(&name, known) {
                    suite["identifiers"] = code.into();
                }
                // Before TLS 1.3, only suites with an ephemeral key exchange use groups.
                let ephemeral = known.is_some_and(Suite::is_forward_secret);
                if (new || ephemeral) && !groups.is_empty() {
                    suite["tlsGroups"] = groups.into();
                }
                if (new || ephemeral) && !schemes.is_empty() {
                    suite["tlsSignatureSchemes"] = schemes.into();
                }
                suite
            })
            .collect();
        let related: Vec<_> = groups
            .iter()
            .filter_map(|name| Group::from_name(name))
            .map(|group| self.algorithm(algorithms::of_group(group), place))
            .map(|reference| json!({ "type": "algorithm", "ref": reference }))
            .chain(report.chains.iter().filter_map(|chain| chain.certificates.first()).map(|leaf| {
                json!({ "type": "certificate", "ref": format!("certificate:{}", leaf.sha256) })
            }))
            .collect();
        let (name, number) = match version {
            Version::Ssl2 => ("SSL", "2.0"),
            Version::Ssl3 => ("SSL", "3.0"),
            Version::Tls1_0 => ("TLS", "1.0"),
            Version::Tls1_1 => ("TLS", "1.1"),
            Version::Tls1_2 => ("TLS", "1.2"),
            Version::Tls1_3 => ("TLS", "1.3"),
        };
        let mut properties = json!({
            // CycloneDX has no protocol type for SSL.
            "type": if name == "TLS" { "tls" } else { "other" },
            "version": number,
            "cipherSuites": suites,
        });
        if !related.is_empty() {
            properties["relatedCryptographicAssets"] = related.into();
        }
        json!({
            "type": "cryptographic-asset",
            "bom-ref": format!("protocol:{}@{endpoint}", version.key()),
            "name": name,
            "version": number,
            "evidence": self.evidence([&place]),
            "cryptoProperties": { "assetType": "protocol", "protocolProperties": properties },
            "properties": [
                { "name": "wiretight:level", "value": report.judgement.level.to_string() },
            ],
        })
    }

    fn certificate(
        &self,
        certificate: &Certificate,
        at: jiff::Timestamp,
        places: &BTreeSet<usize>,
    ) -> Value {
        let state = match (certificate.not_before, certificate.not_after) {
            (Some(begins), _) if at < begins => {
                json!({ "state": "pre-activation", "reason": "not yet valid when scanned" })
            }
            (_, Some(ends)) if at > ends => {
                json!({ "state": "deactivated", "reason": "expired when scanned" })
            }
            _ => json!({ "state": "active" }),
        };
        let algorithm = algorithms::of_certificate(&certificate.signature).bom_ref();
        let mut properties = json!({
            "serialNumber": certificate.serial,
            "subjectName": certificate.subject,
            "issuerName": certificate.issuer,
            "certificateFormat": "X.509",
            "certificateState": [state],
            "relatedCryptographicAssets": [
                { "type": "algorithm", "ref": algorithm },
                { "type": "publicKey", "ref": format!("key:{}", certificate.spki_sha256) },
            ],
        });
        let ends =
            [("notValidBefore", certificate.not_before), ("notValidAfter", certificate.not_after)];
        for (name, time) in ends {
            if let Some(time) = time {
                properties[name] = json!(time.to_string());
            }
        }
        if certificate.sha256.len() == 64 {
            properties["fingerprint"] = json!({ "alg": "SHA-256", "content": certificate.sha256 });
        }
        if !certificate.names.is_empty() {
            properties["certificateExtensions"] = json!([{
                "commonExtensionName": "subjectAlternativeName",
                "commonExtensionValue": certificate.names.join(", "),
            }]);
        }
        json!({
            "type": "cryptographic-asset",
            "bom-ref": format!("certificate:{}", certificate.sha256),
            "name": certificate.subject,
            "evidence": self.evidence(places),
            "cryptoProperties": {
                "assetType": "certificate",
                "certificateProperties": properties,
            },
        })
    }

    fn key(&self, certificate: &Certificate, places: &BTreeSet<usize>) -> Value {
        let algorithm = algorithms::of_certificate(&certificate.key).bom_ref();
        json!({
            "type": "cryptographic-asset",
            "bom-ref": format!("key:{}", certificate.spki_sha256),
            "name": format!("{} public key", certificate.key),
            "evidence": self.evidence(places),
            "cryptoProperties": {
                "assetType": "related-crypto-material",
                "relatedCryptoMaterialProperties": {
                    "type": "public-key",
                    "id": certificate.spki_sha256,
                    "size": certificate.key_bits,
                    "relatedCryptographicAssets": [{ "type": "algorithm", "ref": algorithm }],
                },
            },
        })
    }
}

/// The suites that are accepted with a version: in the server's order, then the others.
fn suites(report: &Report, version: Version) -> Vec<String> {
    let mut names = report.facts.list(&format!("suites.{}", version.key())).to_vec();
    let prefix = format!("suite.{}.", version.key());
    for (id, fact) in report.facts.iter() {
        if let Some(name) = id.strip_prefix(&prefix)
            && fact.answer == Answer::Yes
            && !names.iter().any(|known| known == name)
        {
            names.push(name.to_owned());
        }
    }
    names
}

/// The bytes of a suite's number in the notation of CycloneDX: `0xC0`, `0x2F`.
pub(super) fn identifiers(name: &str, known: Option<Suite>) -> Option<Vec<String>> {
    let bytes = match known {
        Some(suite) => suite.code.to_be_bytes().to_vec(),
        None => {
            let (code, _) = SSL2_SUITES.iter().find(|(_, old)| *old == name)?;
            code.to_be_bytes()[1..].to_vec()
        }
    };
    Some(bytes.iter().map(|byte| format!("0x{byte:02X}")).collect())
}

//! A report for people: sections of lines, each with a mark.

use super::Detail;
use crate::certificate::{Certificate, Chain};
use crate::facts::{Answer, Fact, Facts, TABLE, Value, describe};
use crate::judge::rules::RULES;
use crate::judge::{Judgement, Level, Reason, marks};
use crate::names::{Group, GroupKind, KeyExchange, SSL2_SUITES, Suite, Version};
use crate::{Reached, Report};

/// The rating of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Good,
    /// Prevents the level `strong`.
    Note,
    /// A weakness.
    Bad,
    /// Could not be determined.
    Open,
    /// Neither good nor bad.
    Plain,
}

pub(super) struct Row {
    pub mark: Mark,
    /// The fact's id; empty if the line is about several facts.
    pub id: String,
    pub label: String,
    pub text: String,
    pub evidence: String,
}

pub(super) struct Section {
    pub title: String,
    pub rows: Vec<Row>,
}

/// Everything about an endpoint except its judgement.
pub(super) fn sections(report: &Report, detail: Detail) -> Vec<Section> {
    let view = View { facts: &report.facts, judgement: &report.judgement, detail };
    let mut sections = vec![view.section("Connection", &["plaintext", "consistent", "starttls."])];
    sections.push(view.protocols());
    sections.extend(Version::ALL.into_iter().rev().map(|version| view.suites(version)));
    sections.push(view.groups());
    sections.push(view.signatures());
    sections.push(view.section("Certificate", &["certificate."]));
    for (n, chain) in report.chains.iter().enumerate() {
        sections.push(chain_section(n, report.chains.len(), chain));
    }
    sections.push(view.section("Sessions", &["session."]));
    sections.push(view.section(
        "Extensions and behaviour",
        &[
            "extension.",
            "renegotiation.",
            "compression",
            "fallback_scsv",
            "alpn",
            "ech",
            "tolerance.",
            "client_certificate.",
            "sni.",
        ],
    ));
    sections.push(view.section("Weak cryptography", &["forward_secrecy.", "weak."]));
    sections.push(view.section("Vulnerabilities", &["vulnerability."]));
    sections.push(view.section("HTTP", &["http."]));
    sections.retain(|section| !section.rows.is_empty());
    sections
}

/// One line about an endpoint.
pub fn summary(report: &Report) -> String {
    match &report.reached {
        Reached::Plaintext { evidence } => return format!("not encrypted: {evidence}"),
        Reached::Unknown { evidence } => return format!("unknown protocol: {evidence}"),
        Reached::Unreachable { evidence } => return format!("unreachable: {evidence}"),
        Reached::Tls => {}
    }
    let mut parts = vec![versions(&report.facts).join(", ")];
    parts.push(match report.facts.answer("post_quantum") {
        Answer::Yes => report.facts.list("post_quantum").first().cloned().unwrap_or_default(),
        Answer::No => "no post-quantum".to_owned(),
        _ => String::new(),
    });
    parts.push(certificate_line(report));
    let seen = |level: &[Level]| {
        let reasons = report.judgement.reasons.iter();
        reasons.filter(|r| r.answer == Answer::Yes && level.contains(&r.level)).count()
    };
    let (weak, notes) = (seen(&[Level::Plaintext, Level::Weak]), seen(&[Level::Acceptable]));
    let open = report.judgement.reasons.iter().filter(|r| r.answer != Answer::Yes).count();
    for (n, one, many) in [
        (weak, "weakness", "weaknesses"),
        (notes, "improvement", "improvements"),
        (open, "open question", "open questions"),
    ] {
        match n {
            0 => {}
            1 => parts.push(format!("1 {one}")),
            _ => parts.push(format!("{n} {many}")),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts.join("; ")
}

/// The supported versions, the newest first.
pub(super) fn versions(facts: &Facts) -> Vec<String> {
    let all = Version::ALL.into_iter().rev();
    let spoken = all.filter(|version| facts.yes(&format!("protocol.{}", version.key())));
    spoken.map(|version| version.to_string()).collect()
}

fn certificate_line(report: &Report) -> String {
    if report.chains.is_empty() {
        return String::new();
    }
    let trusted = ["certificate.trusted", "certificate.trusted_by_mesh"];
    let word = match trusted.map(|id| report.facts.answer(id)) {
        answers if answers.contains(&Answer::Yes) => "trusted certificate",
        answers if answers.contains(&Answer::No) => "untrusted certificate",
        _ => "certificate",
    };
    match (report.facts.answer("certificate.valid"), report.facts.number("certificate.valid")) {
        (Answer::Yes, Some(1)) => format!("{word} for 1 day"),
        (Answer::Yes, Some(days)) => format!("{word} for {days} days"),
        (Answer::No, _) => format!("{word}, not valid now"),
        _ => word.to_owned(),
    }
}

/// The mark of a reason for a level.
pub(super) fn mark_of(reason: &Reason) -> Mark {
    match (reason.answer, reason.level) {
        (Answer::Yes, Level::Acceptable | Level::Strong) => Mark::Note,
        (Answer::Yes, _) => Mark::Bad,
        _ => Mark::Open,
    }
}

fn mark_level(level: Level) -> Mark {
    match level {
        Level::Strong => Mark::Good,
        Level::Acceptable => Mark::Note,
        Level::Weak | Level::Plaintext => Mark::Bad,
        Level::Unknown => Mark::Plain,
    }
}

struct View<'a> {
    facts: &'a Facts,
    judgement: &'a Judgement,
    detail: Detail,
}

/// Facts that are good if they are yes, and whose rules check several facts.
const GOOD: &[&str] = &[
    "certificate.trusted",
    "certificate.trusted_by_mesh",
    "certificate.name",
    "certificate.valid",
    "post_quantum",
    "dh.safe",
    "extension.extended_master_secret",
    "forward_secrecy.all",
    "fallback_scsv",
    "tolerance.version",
    "tolerance.grease",
    "certificate.ocsp_stapled",
    "http.redirect",
];

impl View<'_> {
    fn mark(&self, id: &str, fact: &Fact) -> Mark {
        // Reasons are sorted, so this is the worst one about this fact.
        let blamed = self.judgement.reasons.iter().find(|reason| reason.fact == id);
        match (blamed, fact.answer) {
            (Some(reason), _) => mark_of(reason),
            (None, Answer::Inconclusive) => Mark::Open,
            (None, Answer::Untested) => Mark::Plain,
            (None, answer) => {
                let asked = RULES.iter().any(|rule| rule.test.fact() == Some(id));
                match asked || answer == Answer::Yes && GOOD.contains(&id) {
                    true => Mark::Good,
                    false => Mark::Plain,
                }
            }
        }
    }

    /// Untested facts are shown only with [`Detail::Everything`].
    fn shown(&self, fact: &Fact) -> bool {
        fact.answer != Answer::Untested || self.detail == Detail::Everything
    }

    /// The facts with these prefixes, in the order of the table of facts.
    fn section(&self, title: &str, prefixes: &[&str]) -> Section {
        let mut found: Vec<(usize, &str, &Fact)> = Vec::new();
        for (id, fact) in self.facts.iter() {
            let wanted = prefixes.iter().any(|p| match p.strip_suffix('.') {
                Some(_) => id.starts_with(p),
                None => id == *p,
            });
            if wanted && self.shown(fact) {
                let of = describe(id).map(|entry| entry.id);
                let place = TABLE.iter().position(|entry| Some(entry.id) == of);
                found.push((place.unwrap_or(usize::MAX), id, fact));
            }
        }
        found.sort_by_key(|(place, _, _)| *place);
        let rows = found.into_iter().map(|(_, id, fact)| self.row(id, fact)).collect();
        Section { title: title.to_owned(), rows }
    }

    fn row(&self, id: &str, fact: &Fact) -> Row {
        Row {
            mark: self.mark(id, fact),
            id: id.to_owned(),
            label: label(id),
            text: answer_text(id, fact),
            evidence: fact.evidence.to_string(),
        }
    }

    fn protocols(&self) -> Section {
        let mut rows = Vec::new();
        let quic = ("protocol.quic".to_owned(), "QUIC 1".to_owned(), Level::Strong);
        let versions = Version::ALL.into_iter().rev().map(|version| {
            (format!("protocol.{}", version.key()), version.to_string(), marks::version(version))
        });
        for (id, label, level) in std::iter::once(quic).chain(versions) {
            let Some(fact) = self.facts.get(&id) else { continue };
            if !self.shown(fact) {
                continue;
            }
            let (mark, text) = match (fact.answer, level) {
                (Answer::Yes, Level::Acceptable) => (Mark::Plain, "offered"),
                (Answer::Yes, level) => (mark_level(level), "offered"),
                (Answer::No, Level::Weak) => (Mark::Good, "not offered"),
                (Answer::No, Level::Strong) if id == "protocol.tls1_3" => {
                    (Mark::Note, "not offered")
                }
                (Answer::No, _) => (Mark::Plain, "not offered"),
                (Answer::Inconclusive, _) => (Mark::Open, "inconclusive"),
                (Answer::Untested, _) => (Mark::Plain, "not tested"),
            };
            let evidence = fact.evidence.to_string();
            rows.push(Row { mark, id, label, text: text.to_owned(), evidence });
        }
        Section { title: "Protocols".to_owned(), rows }
    }

    fn suites(&self, version: Version) -> Section {
        let id = format!("suites.{}", version.key());
        let prefix = format!("suite.{}.", version.key());
        let order = self.facts.list(&id);
        let taken = self.facts.iter().filter(|(_, fact)| fact.answer == Answer::Yes);
        let more = taken.filter_map(|(id, _)| id.strip_prefix(&prefix));
        let more = more.filter(|name| !order.iter().any(|known| known == name));
        let mut rows: Vec<_> = order
            .iter()
            .map(String::as_str)
            .chain(more)
            .map(|name| Row {
                mark: mark_level(marks::suite(name)),
                id: format!("{prefix}{name}"),
                label: name.to_owned(),
                text: suite_text(name),
                evidence: String::new(),
            })
            .collect();
        if let Some(fact) = self.facts.get(&id)
            && fact.answer == Answer::Inconclusive
        {
            rows.push(Row {
                mark: Mark::Open,
                id: id.clone(),
                label: "Other suites".to_owned(),
                text: "inconclusive".to_owned(),
                evidence: fact.evidence.to_string(),
            });
        }
        let order = match self.facts.answer(&format!("preference.{}", version.key())) {
            Answer::Yes => ", in the server's order",
            Answer::No => ", in the client's order",
            _ => "",
        };
        Section { title: format!("Cipher suites of {version}{order}"), rows }
    }

    fn groups(&self) -> Section {
        let mut rows: Vec<Row> = Vec::new();
        for (id, versions) in [
            ("groups.tls1_3", "TLS 1.3"),
            ("groups.tls1_2", "TLS 1.2 and before"),
            ("groups.quic", "QUIC"),
        ] {
            for name in self.facts.list(id) {
                match rows.iter_mut().find(|row| row.label == *name) {
                    Some(row) => row.text.push_str(&format!(", {versions}")),
                    None => rows.push(Row {
                        mark: match marks::group(name) {
                            // Classical groups next to a hybrid one are not a problem.
                            Level::Acceptable => Mark::Plain,
                            level => mark_level(level),
                        },
                        id: format!("group.{name}"),
                        label: name.clone(),
                        text: format!("{}; {versions}", group_text(name)),
                        evidence: String::new(),
                    }),
                }
            }
            if let Some(fact) = self.facts.get(id)
                && fact.answer == Answer::Inconclusive
            {
                rows.push(Row {
                    mark: Mark::Open,
                    id: id.to_owned(),
                    label: format!("Other groups of {versions}"),
                    text: "inconclusive".to_owned(),
                    evidence: fact.evidence.to_string(),
                });
            }
        }
        let ids = ["post_quantum", "dh.", "preference.groups"];
        rows.extend(self.section("", &ids).rows);
        Section { title: "Key exchange".to_owned(), rows }
    }

    fn signatures(&self) -> Section {
        let mut rows = Vec::new();
        for version in [Version::Tls1_3, Version::Tls1_2] {
            let id = format!("signatures.{}", version.key());
            let Some(fact) = self.facts.get(&id).filter(|fact| self.shown(fact)) else { continue };
            let worst = self.facts.list(&id).iter().any(|n| marks::signature(n) == Level::Weak);
            let mark = match self.mark(&id, fact) {
                Mark::Plain if fact.answer == Answer::Yes && !worst => Mark::Good,
                mark => mark,
            };
            let names = self.facts.list(&id).join(", ");
            let text = if names.is_empty() { answer_text(&id, fact) } else { names };
            let evidence = fact.evidence.to_string();
            rows.push(Row { mark, id, label: version.to_string(), text, evidence });
        }
        Section { title: "Handshake signatures".to_owned(), rows }
    }
}

fn chain_section(n: usize, of: usize, chain: &Chain) -> Section {
    let title = match of {
        1 => "Chain".to_owned(),
        _ => format!("Chain {}", n + 1),
    };
    let title = match chain.when.is_empty() {
        true => title,
        false => format!("{title}, sent: {}", chain.when.join(", ")),
    };
    let mut rows = Vec::new();
    for (place, certificate) in chain.certificates.iter().enumerate() {
        let who = match place {
            0 => "Leaf".to_owned(),
            n => format!("Certificate {}", n + 1),
        };
        let not_needed = if certificate.superfluous { " (not needed to reach a root)" } else { "" };
        rows.push(plain(&who, or_none(&certificate.subject) + not_needed));
        rows.extend(certificate_rows(place, certificate));
    }
    let mark = match chain.trusted {
        Answer::Yes => Mark::Good,
        // Not always a problem: one trusted store is enough, see the judgement.
        Answer::No => Mark::Note,
        _ => Mark::Open,
    };
    let (label, text) = ("Leads to a root in the store".to_owned(), chain.trusted.to_string());
    rows.push(Row { mark, id: String::new(), label, text, evidence: chain.evidence.clone() });
    Section { title, rows }
}

fn certificate_rows(place: usize, certificate: &Certificate) -> Vec<Row> {
    let mut rows = vec![plain("  issued by", or_none(&certificate.issuer))];
    if place == 0 {
        rows.push(plain("  for", names(&certificate.names)));
    }
    let (from, to) = (certificate.not_before, certificate.not_after);
    let shown = |time: Option<_>| time.map_or_else(|| "an unreadable time".to_owned(), day);
    rows.push(plain("  valid", format!("{} to {}", shown(from), shown(to))));
    let key = format!("{}, signed with {}", certificate.key, certificate.signature);
    rows.push(plain("  key", key));
    rows.push(plain("  serial number", certificate.serial.clone()));
    rows.push(plain("  SHA-256", certificate.sha256.clone()));
    rows
}

/// The names, shortened: a certificate of a content delivery network has hundreds.
fn names(names: &[String]) -> String {
    const MOST: usize = 12;
    match names.len() {
        0 => "no name".to_owned(),
        n if n > MOST => format!("{} and {} more", names[..MOST].join(", "), n - MOST),
        _ => names.join(", "),
    }
}

fn or_none(name: &str) -> String {
    if name.is_empty() { "(no name)".to_owned() } else { name.to_owned() }
}

pub(super) fn day(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%d").to_string()
}

fn plain(label: &str, text: String) -> Row {
    let (label, evidence) = (label.to_owned(), String::new());
    Row { mark: Mark::Plain, id: String::new(), label, text, evidence }
}

/// `48 days left`, `yes`, `inconclusive: x25519`.
fn answer_text(id: &str, fact: &Fact) -> String {
    let value = match &fact.value {
        None => return fact.answer.to_string(),
        Some(Value::Number(n)) => match unit(id) {
            "" => n.to_string(),
            unit => format!("{n} {unit}"),
        },
        Some(Value::Text(text)) => text.clone(),
        Some(Value::List(names)) if names.is_empty() => return fact.answer.to_string(),
        Some(Value::List(names)) => names.join(", "),
    };
    match fact.answer {
        Answer::Yes => value,
        Answer::No => format!("no: {value}"),
        other => format!("{other}: {value}"),
    }
}

/// A short name for a fact.
fn label(id: &str) -> String {
    if let Some(name) = id.strip_prefix("http.header.") {
        return format!("Header {name}");
    }
    let known = LABELS.iter().find(|(known, _)| *known == id);
    known.map_or_else(|| id.to_owned(), |(_, label)| (*label).to_owned())
}

const LABELS: &[(&str, &str)] = &[
    ("plaintext", "Not encrypted"),
    ("consistent", "Answers are consistent"),
    ("starttls.offered", "STARTTLS offered"),
    ("starttls.stripped", "STARTTLS removed on the path"),
    ("starttls.injection", "STARTTLS command injection"),
    ("preference.groups", "Server has its own group order"),
    ("post_quantum", "Post-quantum"),
    ("dh.bits", "Finite-field Diffie-Hellman"),
    ("dh.common_prime", "Prime shared by many servers"),
    ("dh.safe", "Prime long enough and safe"),
    ("forward_secrecy.all", "Forward secrecy, always"),
    ("forward_secrecy.any", "Forward secrecy, at least once"),
    ("certificate.trusted", "Trusted by the store"),
    ("certificate.trusted_by_mesh", "Trusted by the mesh"),
    ("certificate.name", "Matches the host name"),
    ("certificate.valid", "Currently valid"),
    ("certificate.ordered", "Chain in order"),
    ("certificate.complete", "Chain complete"),
    ("certificate.self_signed", "Self-signed"),
    ("certificate.weak_signature", "Signed with MD5 or SHA-1"),
    ("certificate.key_bits", "Weakest key"),
    ("certificate.keys", "Key types"),
    ("certificate.scts", "In transparency logs (SCTs)"),
    ("certificate.must_staple", "Must-staple"),
    ("certificate.ocsp_stapled", "OCSP response stapled"),
    ("certificate.ocsp_good", "OCSP response good"),
    ("certificate.revocation", "Revocation can be checked"),
    ("certificate.wildcard", "Wildcard"),
    ("certificate.lifetime", "Validity no longer than allowed"),
    ("certificate.key_usage", "Allowed for TLS servers"),
    ("certificate.caa", "CAA records in the DNS"),
    ("session.id", "Resumed by session ID"),
    ("session.ticket", "Resumed by ticket"),
    ("session.psk", "Resumed by PSK (TLS 1.3)"),
    ("session.psk_without_dhe", "PSK without a key exchange"),
    ("session.early_data", "Early data (0-RTT)"),
    ("extension.extended_master_secret", "Extended master secret"),
    ("extension.encrypt_then_mac", "Encrypt-then-MAC"),
    ("extension.heartbeat", "Heartbeat"),
    ("extension.compress_certificate", "Certificates compressed"),
    ("renegotiation.secure", "Secure renegotiation"),
    ("renegotiation.by_client", "Clients may renegotiate"),
    ("compression", "TLS compression"),
    ("fallback_scsv", "Unnecessary fallback rejected"),
    ("alpn", "Application protocols (ALPN)"),
    ("ech", "Encrypted ClientHello"),
    ("tolerance.version", "Tolerates future versions"),
    ("tolerance.grease", "Ignores unknown values (GREASE)"),
    ("client_certificate.requested", "Client certificate requested"),
    ("client_certificate.required", "Client certificate required"),
    ("client_certificate.authorities", "Authorities for clients"),
    ("sni.required", "Server name required (SNI)"),
    ("sni.other_certificate", "Other certificate without SNI"),
    ("http.status", "GET /"),
    ("http.hsts", "Strict Transport Security"),
    ("http.hsts.subdomains", "HSTS for subdomains"),
    ("http.hsts.preload", "HSTS preloading requested"),
    ("http.redirect", "Port 80 redirects to HTTPS"),
    ("http.http3", "HTTP/3 advertised"),
    ("weak.null", "No encryption (NULL)"),
    ("weak.anonymous", "No authentication (anonymous)"),
    ("weak.export", "Export suites"),
    ("weak.rc4", "RC4"),
    ("weak.des", "DES, RC2"),
    ("weak.static_rsa", "RSA key transport"),
    ("weak.static_dh", "Static Diffie-Hellman"),
    ("weak.cbc", "CBC"),
    ("vulnerability.heartbleed", "Heartbleed"),
    ("vulnerability.ccs_injection", "CCS injection"),
    ("vulnerability.ticketbleed", "Ticketbleed"),
    ("vulnerability.robot", "ROBOT"),
    ("vulnerability.drown", "DROWN"),
    ("vulnerability.poodle_ssl", "POODLE"),
    ("vulnerability.poodle_tls", "POODLE in TLS"),
    ("vulnerability.freak", "FREAK"),
    ("vulnerability.logjam", "Logjam"),
    ("vulnerability.sweet32", "SWEET32"),
    ("vulnerability.crime", "CRIME"),
    ("vulnerability.beast", "BEAST"),
    ("vulnerability.lucky13", "Lucky 13"),
    ("vulnerability.rc4", "RC4 biases"),
    ("vulnerability.roca", "ROCA"),
    ("vulnerability.insecure_renegotiation", "Insecure renegotiation"),
];

fn unit(id: &str) -> &'static str {
    match id {
        "certificate.valid" => "days left",
        "certificate.lifetime" => "days",
        "session.ticket" | "http.hsts" => "s",
        "dh.bits" | "certificate.key_bits" => "bits",
        "session.early_data" => "bytes",
        _ => "",
    }
}

fn suite_text(name: &str) -> String {
    let Some(suite) = Suite::from_name(name) else {
        let old = SSL2_SUITES.iter().any(|(_, known)| *known == name);
        return if old { "SSL 2.0".to_owned() } else { String::new() };
    };
    let kx = match suite.key_exchange() {
        KeyExchange::Any => "",
        KeyExchange::Ecdhe => "ECDHE, ",
        KeyExchange::Dhe => "DHE, ",
        KeyExchange::Rsa => "RSA transport, ",
        KeyExchange::Dh => "static DH, ",
        KeyExchange::Ecdh => "static ECDH, ",
        KeyExchange::Psk => "PSK, ",
        KeyExchange::DhePsk => "DHE and PSK, ",
        KeyExchange::EcdhePsk => "ECDHE and PSK, ",
        KeyExchange::RsaPsk => "RSA transport and PSK, ",
        KeyExchange::Srp => "SRP, ",
        KeyExchange::Krb5 => "Kerberos, ",
        KeyExchange::Gost => "GOST, ",
        KeyExchange::Other => "another key exchange, ",
    };
    let who = if suite.is_anonymous() { "anonymous, " } else { "" };
    let mode = match (suite.is_aead(), suite.is_cbc()) {
        (true, _) => ", AEAD",
        (_, true) => ", CBC",
        _ => "",
    };
    format!("{kx}{who}{} bits{mode}", suite.bits())
}

fn group_text(name: &str) -> String {
    let Some(group) = Group::from_name(name) else { return "unknown".to_owned() };
    let kind = match group.kind {
        GroupKind::Elliptic => "curve",
        GroupKind::FiniteField => "finite field",
        GroupKind::PostQuantum => "post-quantum",
        GroupKind::Hybrid => "post-quantum hybrid",
    };
    format!("{kind}, {} bits", group.bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fact_has_a_short_label() {
        for entry in TABLE.iter().filter(|entry| !entry.id.contains('<')) {
            let elsewhere = entry.id.starts_with("protocol.")
                || entry.id.starts_with("groups.")
                || entry.id.starts_with("signatures.");
            let short = label(entry.id);
            assert!(elsewhere || short != entry.id, "{} has no label", entry.id);
            assert!(short.chars().count() < 33, "{short}");
        }
    }
}

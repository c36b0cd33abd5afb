//! Reports about flows: valid by the official schemas, and safe against hostile text in packets.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod validate;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use validate::{errors, file, validate};
use wiretight_scan::Start;
use wiretight_scan::judge::Level;
use wiretight_scan::passive::blockers::{MORE_RULES, blockers, rules};
use wiretight_scan::passive::flow::Record;
use wiretight_scan::passive::summary::{By, Coverage, Flow, GAPS, Programs, Rows, Scanned, Share};
use wiretight_scan::passive::{CertificateSeen, Grade, Sealed, Seen, StartTls, Transport};
use wiretight_scan::report::{
    FLOW_SCHEMA, FlowOptions, FlowReport, Format, blocker_lines, coverage_lines, row_lines,
    write_flows,
};

const HOSTILE: &str = "a\u{1b}[2J<script>alert(1)</script>[click](http://evil.example)\u{202e}\"'&";

fn seen(protocol: &str, level: Level, evidence: &str, sealed: Option<Sealed>) -> Seen {
    Seen {
        protocol: protocol.to_owned().into(),
        level,
        grade: if level == Level::Unknown { Grade::Unknown } else { Grade::Seen },
        evidence: evidence.to_owned().into(),
        starttls: None,
        sealed: sealed.map(Box::new),
    }
}

fn flow(server: &str, transport: Transport, seen: Seen) -> Flow {
    let record = Record {
        transport,
        client: "10.0.0.7:40000".parse().unwrap(),
        server: server.parse().unwrap(),
        first: "2026-11-30T10:00:00Z".parse().unwrap(),
        last: "2026-11-30T10:00:10Z".parse().unwrap(),
        packets: [10, 12],
        bytes: [1000, 20_000],
        whole: true,
        seen: Arc::new(seen),
    };
    Flow {
        record,
        programs: Programs { client: Some("curl (session-3.scope)".into()), server: None },
    }
}

fn sealed(version: &'static str, suite: &'static str, group: &'static str) -> Option<Sealed> {
    Some(Sealed {
        version: version.into(),
        suite: Some(suite.into()),
        group: Some(group.into()),
        server_name: Some("db.example.com".into()),
        ..Sealed::default()
    })
}

fn flows() -> Vec<Flow> {
    let certificate = CertificateSeen {
        sha256: "ab".repeat(32),
        key: "rsa-1024".into(),
        signature: "rsa-sha1".into(),
        not_after: "2025-01-01T00:00:00Z".parse().unwrap(),
        subject: HOSTILE.into(),
        self_signed: true,
    };
    let mut old = sealed("TLS 1.0", "TLS_RSA_WITH_3DES_EDE_CBC_SHA", "secp192r1").unwrap();
    old.certificate = Some(certificate.into());
    old.signature = Some("rsa_pkcs1_sha1".into());
    let mut mail = seen("smtp", Level::Plaintext, "EHLO", None);
    mail.starttls = Some((Start::Smtp, StartTls::Stripped));
    let tls13 = |group| sealed("TLS 1.3", "TLS_AES_256_GCM_SHA384", group);
    let tcp = Transport::Tcp;
    vec![
        flow(
            "10.0.0.5:443",
            tcp,
            seen("tls", Level::Strong, "ServerHello", tls13("X25519MLKEM768")),
        ),
        flow("10.0.0.5:443", tcp, seen("tls", Level::Acceptable, "ServerHello", tls13("x25519"))),
        flow("10.0.0.6:443", tcp, seen("tls", Level::Weak, "ServerHello", Some(old))),
        flow("10.0.0.5:6379", tcp, seen("redis", Level::Plaintext, "*1 PING", None)),
        flow("192.0.2.9:80", tcp, seen("http", Level::Plaintext, HOSTILE, None)),
        flow("10.0.0.9:25", tcp, mail),
        flow(
            "[2001:db8::1]:443",
            Transport::Udp,
            seen(
                "quic",
                Level::Strong,
                "Initial",
                sealed("QUIC 1", "TLS_AES_128_GCM_SHA256", "X25519MLKEM768"),
            ),
        ),
        flow(
            "10.0.0.5:22",
            tcp,
            seen(
                "ssh",
                Level::Acceptable,
                "KEXINIT",
                sealed("SSH 2.0", "aes128-ctr hmac-sha2-256", "curve25519-sha256"),
            ),
        ),
        flow(
            "10.0.0.5:51820",
            Transport::Udp,
            seen(
                "wireguard",
                Level::Acceptable,
                "initiation",
                sealed("WireGuard", "ChaCha20-Poly1305", "x25519"),
            ),
        ),
        flow("10.0.0.5:0", Transport::Ip(50), seen("esp", Level::Unknown, "", None)),
        flow("127.0.0.1:5432", tcp, seen("postgres", Level::Plaintext, "StartupMessage", None)),
    ]
}

fn report(flows: Vec<Flow>, by: By) -> FlowReport {
    let mut coverage = Coverage::default();
    let mut rows = Rows::new(by, 1000);
    for flow in &flows {
        coverage.add(&flow.record);
        rows.add(flow);
    }
    let shown = coverage.clone();
    coverage.miss("dropped", 7, 0);
    coverage.miss("not_captured", 0, 12_345);
    let mut rows = rows.list();
    let tls = rows.iter_mut().find(|row| row.key.server.port() == 443).unwrap();
    tls.scanned = vec![Scanned {
        server_name: Some("db.example.com".into()),
        at: "2026-11-30T10:01:00Z".parse().unwrap(),
        level: Level::Acceptable,
        summary: "TLS 1.3; trusted certificate for 40 days".into(),
        reasons: Vec::new(),
    }];
    FlowReport {
        source: format!("capture {HOSTILE}.pcap"),
        coverage,
        shown,
        filter: "network 0.0.0.0/0".into(),
        blockers: blockers(rows.clone()),
        rows,
        left_out: Share { flows: 2, bytes: 99 },
        flows,
        not_listed: Share::default(),
    }
}

fn written(format: Format, report: &FlowReport) -> String {
    let mut out = Vec::new();
    write_flows(format, &mut out, report, FlowOptions::default()).unwrap();
    String::from_utf8(out).unwrap()
}

fn schema() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/watch-flow.schema.json");
    path.to_str().unwrap().to_owned()
}

#[test]
fn json_matches_its_schema_and_its_flows_can_be_read_back() {
    let schema = schema();
    let mut documents = String::new();
    for by in [By::Service, By::Pair, By::Flow] {
        let report = report(flows(), by);
        let text = written(Format::Json, &report);
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["schema"], FLOW_SCHEMA);
        let back: Vec<Flow> = serde_json::from_value(json["flows"].clone()).unwrap();
        assert_eq!(back, report.flows);
        documents.push_str(&text);
    }
    let lines = written(Format::Jsonl, &report(flows(), By::Service));
    assert_eq!(lines.lines().count(), flows().len() + 1);
    documents.push_str(&lines);
    documents.push_str(&written(Format::Json, &FlowReport::default()));
    validate(&["json", &schema], &file("flows.jsonl", &documents));
    // The control: the validator finds errors.
    let wrong = lines.replace(r#""level":"weak""#, r#""level":"bad""#);
    assert_ne!(wrong, lines);
    assert_ne!(errors(&["json", &schema], &file("wrong.jsonl", &wrong)).as_deref(), Some(""));
}

#[test]
fn sarif_is_valid_and_has_a_result_for_each_blocker() {
    let report = report(flows(), By::Service);
    let text = written(Format::Sarif, &report);
    validate(&["sarif"], &file("flows.sarif", &text));
    validate(&["sarif"], &file("no-flows.sarif", &written(Format::Sarif, &FlowReport::default())));
    let sarif: Value = serde_json::from_str(&text).unwrap();
    let results = sarif["runs"][0]["results"].as_array().unwrap();
    let all = rules().map(|rule| rule.id).collect::<Vec<_>>();
    assert_eq!(sarif["runs"][0]["tool"]["driver"]["rules"].as_array().unwrap().len(), all.len());
    for blocker in &report.blockers {
        let uri = format!("{}://{}", blocker.row.key.transport, blocker.row.key.server);
        let of =
            |r: &&Value| r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == uri;
        let of: Vec<_> = results.iter().filter(of).collect();
        assert!(!of.is_empty(), "{uri}");
        for result in of {
            let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
            assert_eq!(result["ruleId"], all[index]);
        }
    }
    // What does not leave the machine, and what is strong, is no result.
    assert!(!text.contains("127.0.0.1") && !text.contains("2001:db8"));
    let prints: HashSet<_> = results.iter().map(|r| r["partialFingerprints"].to_string()).collect();
    assert_eq!(prints.len(), results.len());
    for rule in ["certificate-validity", "certificate-key", "tls1_0", "starttls-stripped"] {
        assert!(results.iter().any(|r| r["ruleId"] == rule), "{rule}");
    }
    assert!(text.contains("<script>alert") && !text.contains(['\u{1b}', '\u{202e}']));
}

#[test]
fn a_cbom_is_valid_and_names_what_was_negotiated() {
    let report = report(flows(), By::Service);
    let text = written(Format::Cbom, &report);
    validate(&["cbom"], &file("flows.cdx.json", &text));
    validate(&["cbom"], &file("no-flows.cdx.json", &written(Format::Cbom, &FlowReport::default())));
    assert_eq!(text, written(Format::Cbom, &report), "not deterministic");
    let bom: Value = serde_json::from_str(&text).unwrap();
    let components = bom["components"].as_array().unwrap();
    let refs: HashSet<_> = components.iter().map(|c| c["bom-ref"].as_str().unwrap()).collect();
    assert_eq!(refs.len(), components.len(), "duplicate bom-ref");
    for name in [
        "algorithm:X25519MLKEM768",
        "algorithm:curve25519-sha256",
        "protocol:SSH 2.0@tcp://10.0.0.5:22/ssh",
        "protocol:QUIC 1@udp://[2001:db8::1]:443/quic",
        &format!("certificate:{}", "ab".repeat(32)),
    ] {
        assert!(refs.contains(name), "{name} is not among {refs:#?}");
    }
    // Each reference resolves.
    for component in components {
        let related =
            &component["cryptoProperties"]["protocolProperties"]["relatedCryptographicAssets"];
        for asset in related.as_array().into_iter().flatten() {
            assert!(refs.contains(asset["ref"].as_str().unwrap()), "{asset}");
        }
    }
    let bytes = bom["metadata"]["properties"].as_array().unwrap();
    let unknown = bytes.iter().find(|p| p["name"] == "wiretight:bytes:unknown").unwrap();
    assert_eq!(unknown["value"], "33345");
}

#[test]
fn a_table_fits_the_terminal_and_shows_evidence_and_advice() {
    let report = report(flows(), By::Service);
    let all = |options: FlowOptions| {
        let mut lines = coverage_lines(&report, options);
        lines.extend(row_lines(&report.rows, report.left_out, options));
        lines.extend(blocker_lines(&report.blockers, options));
        lines
    };
    for width in [40, 80, 100, 132, 200] {
        for verbose in [false, true] {
            let lines = all(FlowOptions { colour: false, width: Some(width), verbose });
            let long = lines.iter().find(|line| line.chars().count() > width);
            assert_eq!(long, None, "wider than {width}");
        }
    }
    let wide = all(FlowOptions { colour: false, width: None, verbose: true }).join("\n");
    file("flows.txt", &wide);
    for said in [
        "10.0.0.5:6379",
        "TLS 1.3 X25519MLKEM768",
        "curl (session-3.scope)",
        "not captured",
        "*1 PING",
        "[[dial]]",
        "in 1 flow, 2026-11-30 10:00:00 to 10:00:10 UTC",
        "trusted certificate for 40 days",
        "and 2 flows (99 B)",
        "shown: network 0.0.0.0/0: 11 flows",
    ] {
        assert!(wide.contains(said), "{said} is not in:\n{wide}");
    }
    for colour in [false, true] {
        for verbose in [false, true] {
            let mut text = all(FlowOptions { colour, width: Some(90), verbose }).join("\n");
            assert_eq!(text.contains("\u{1b}[31m"), colour);
            for code in ["0", "1", "2", "31", "32", "33", "35", "36"] {
                text = text.replace(&format!("\u{1b}[{code}m"), "");
            }
            let bad = text.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
            assert_eq!(bad, None, "{text}");
        }
    }
}

#[test]
fn a_page_is_self_contained_and_its_text_is_escaped() {
    let page = written(Format::Html, &report(flows(), By::Service));
    file("flows.html", &page);
    assert!(page.contains("http-equiv=\"Content-Security-Policy\""));
    for word in ["<script", "<link", "<img", "src=", "url(", "@import", "onload", "javascript:"] {
        assert!(!page.contains(word), "{word}");
    }
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(!page.contains('\u{1b}') && !page.contains('\u{202e}'));
    for tag in ["section", "table", "tr", "td", "div", "ul", "li", "span", "main"] {
        let open =
            page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(open, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    // Each level with rows can be reached from its number.
    for level in ["strong", "acceptable", "weak", "plaintext", "unknown"] {
        assert!(
            page.contains(&format!("href=\"#{level}\""))
                && page.contains(&format!("id=\"{level}\""))
        );
    }
    assert!(written(Format::Html, &FlowReport::default()).ends_with("</html>\n"));
}

#[test]
fn the_guide_names_every_gap_and_every_rule_of_its_own() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/watch.md");
    let page = std::fs::read_to_string(page).unwrap();
    let gaps = GAPS.iter().map(|(id, _)| *id);
    for id in gaps.chain(MORE_RULES.iter().map(|rule| rule.id)) {
        assert!(page.contains(&format!("`{id}`")), "docs/watch.md does not explain {id}");
    }
    for level in Level::ALL {
        assert!(page.contains(&format!("| `{level}` |")), "{level}");
    }
}

//! Reports in every format are valid by the official schemas, complete when streamed, and safe
//! against hostile text in certificates.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod samples;
mod validate;

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use validate::{errors, file, validate};
use wiretight_scan::Report;
use wiretight_scan::judge::rules::RULES;
use wiretight_scan::names::{GROUPS, suites};
use wiretight_scan::report::{Detail, Format, Options, SCHEMA, Writer};

fn written(format: Format, options: Options, reports: &[Report]) -> String {
    let mut writer = Writer::new(format, Vec::new(), options);
    for report in reports {
        writer.report(report).unwrap();
    }
    String::from_utf8(writer.finish().unwrap()).unwrap()
}

/// A validator that accepts everything would be useless.
#[test]
fn the_validators_find_errors() {
    let reports = [samples::old()];
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/scan-report.schema.json");
    for (format, kind, right, wrong) in [
        (Format::Sarif, vec!["sarif"], r#""kind":"fail""#, r#""kind":"bad""#),
        (Format::Cbom, vec!["cbom"], r#""assetType":"protocol""#, r#""assetType":"port""#),
        (Format::Json, vec!["json", schema], r#""answer":"yes""#, r#""answer":"maybe""#),
    ] {
        let text = written(format, Options::default(), &reports);
        assert!(text.contains(right), "{format}");
        let path = file(&format!("wrong.{format}"), &text.replace(right, wrong));
        assert_ne!(errors(&kind, &path).as_deref(), Some(""), "{format}");
    }
}

/// A report with every suite, every group and every type of key.
fn everything() -> Report {
    let mut report = samples::modern();
    let facts = &mut report.facts;
    for suite in suites() {
        let version = if suite.is_tls1_3() { "tls1_3" } else { "tls1_2" };
        samples::suite(facts, version, suite.name);
    }
    let groups: Vec<_> = GROUPS.iter().map(|group| group.name).collect();
    facts.set("groups.tls1_3", wiretight_scan::facts::Answer::Yes, samples::list(&groups), "");
    let keys = ["rsa-2048", "rsa-pss-sha256", "ed25519", "ed448", "mldsa-87", "dsa-1024", "new"];
    report.chains[0].certificates.extend(keys.into_iter().enumerate().map(|(n, key)| {
        let mut certificate = samples::certificate("", key);
        certificate.sha256 = format!("{n:064x}");
        certificate.spki_sha256 = format!("{n:064x}");
        certificate
    }));
    report
}

#[test]
fn sarif_is_valid_and_distinguishes_failures_from_open_results() {
    let text = written(Format::Sarif, Options::default(), &samples::all());
    validate(&["sarif"], &file("report.sarif", &text));
    let none = written(Format::Sarif, Options::default(), &[]);
    validate(&["sarif"], &file("none.sarif", &none));

    let sarif: Value = serde_json::from_str(&text).unwrap();
    let run = &sarif["runs"][0];
    assert_eq!(run["tool"]["driver"]["rules"].as_array().unwrap().len(), RULES.len());
    let results = run["results"].as_array().unwrap();
    let of = |uri: &str| {
        let uri = uri.to_owned();
        results.iter().filter(move |result| {
            result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == uri.as_str()
        })
    };
    assert_eq!(of("https://www.example.com:443").count(), 0);
    assert!(
        of("https://legacy.example.com:8443")
            .any(|r| r["ruleId"] == "heartbleed" && r["level"] == "error" && r["kind"] == "fail")
    );
    assert!(of("tls://www.example.net:443").all(|r| r["kind"] == "open" && r["level"] == "none"));
    for result in results {
        let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(run["tool"]["driver"]["rules"][index]["id"], result["ruleId"]);
    }
    // Trackers match findings by fingerprints: they are unique, and the same in another scan.
    let prints = |text: &str| -> Vec<String> {
        let sarif: Value = serde_json::from_str(text).unwrap();
        let results = sarif["runs"][0]["results"].as_array().unwrap().clone();
        results.iter().map(|r| r["partialFingerprints"].to_string()).collect()
    };
    let first = prints(&text);
    assert_eq!(first.iter().collect::<HashSet<_>>().len(), first.len());
    let mut later = samples::all();
    for report in &mut later {
        report.address = None;
        report.started = "2027-01-01T00:00:00Z".parse().unwrap();
    }
    assert_eq!(prints(&written(Format::Sarif, Options::default(), &later)), first);
}

#[test]
fn a_cbom_is_valid_and_all_its_references_resolve() {
    let mut reports = samples::all();
    reports.push(everything());
    // The same endpoint was scanned twice.
    reports.push(samples::modern());
    let text = written(Format::Cbom, Options::default(), &reports);
    validate(&["cbom"], &file("report.cdx.json", &text));
    let none = written(Format::Cbom, Options::default(), &[]);
    validate(&["cbom"], &file("none.cdx.json", &none));
    assert_eq!(text, written(Format::Cbom, Options::default(), &reports), "not deterministic");

    let bom: Value = serde_json::from_str(&text).unwrap();
    let components = bom["components"].as_array().unwrap();
    let refs: HashSet<_> = components.iter().map(|c| c["bom-ref"].as_str().unwrap()).collect();
    assert_eq!(refs.len(), components.len(), "duplicate bom-ref");
    let mut asked = Vec::new();
    references(&bom, &mut asked);
    assert!(asked.len() > 100);
    for reference in asked {
        assert!(refs.contains(reference.as_str()), "{reference} does not exist");
    }
    let hybrid = components.iter().find(|c| c["bom-ref"] == "algorithm:X25519MLKEM768").unwrap();
    let places = hybrid["evidence"]["occurrences"].as_array().unwrap();
    assert!(places.iter().any(|place| place["location"] == "www.example.com:443"));
    let ended = components.iter().find(|c| c["name"].as_str().unwrap().contains("localhost"));
    let state = &ended.unwrap()["cryptoProperties"]["certificateProperties"]["certificateState"];
    assert_eq!(state[0]["state"], "deactivated");
}

/// The references in `ref` and `algorithms`.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| references(value, found)),
        Value::Object(object) => {
            for (key, value) in object {
                match (key.as_str(), value) {
                    ("ref", Value::String(text)) => found.push(text.clone()),
                    ("algorithms", Value::Array(refs)) => {
                        found.extend(refs.iter().map(|r| r.as_str().unwrap().to_owned()));
                    }
                    _ => references(value, found),
                }
            }
        }
        _ => {}
    }
}

#[test]
fn json_matches_its_schema_and_can_be_read_back() {
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/scan-report.schema.json");
    let schema = schema.to_str().unwrap();
    let mut reports = samples::all();
    reports.push(everything());
    let text = written(Format::Json, Options::default(), &reports);
    validate(&["json", schema], &file("report.json", &text));
    let none = written(Format::Json, Options::default(), &[]);
    validate(&["json", schema], &file("none.json", &none));
    let lines = written(Format::Jsonl, Options::default(), &reports);
    validate(&["json", schema], &file("report.jsonl", &lines));

    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["schema"], SCHEMA);
    let back: Vec<Report> = serde_json::from_value(json["reports"].clone()).unwrap();
    assert_eq!(back, reports);
    let back: Vec<Report> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(back, reports);
}

#[test]
fn a_table_contains_findings_changes_and_open_questions() {
    let reports = samples::all();
    let text = written(Format::Table, Options { width: Some(100), ..Options::default() }, &reports);
    file("report.txt", &text);
    for said in [
        "https://legacy.example.com:8443  192.0.2.12  weak",
        "✗ SSL 2.0",
        "✓ X25519MLKEM768",
        "What to change",
        "What could not be determined",
        "connection reset, also after 8 s",
        "not encrypted: it answered with `+PONG`",
        "unreachable: connection refused",
        "7 targets:",
    ] {
        assert!(text.contains(said), "{said} is not in:\n{text}");
    }
    let long = text.lines().find(|line| line.chars().count() > 100 && line.contains(' '));
    let long = long.filter(|line| line.split(' ').all(|word| word.chars().count() < 70));
    assert_eq!(long, None, "a line is too wide");
    assert!(!text.contains('\u{1b}'), "colours although they are off");

    let line = Options { detail: Detail::Line, ..Options::default() };
    let text = written(Format::Table, line, &reports);
    assert_eq!(text.lines().count(), reports.len() + 1);
    let everything = Options { detail: Detail::Everything, ..Options::default() };
    let text = written(Format::Table, everything, &[samples::modern()]);
    assert!(text.contains("HelloRetryRequest") && text.contains("untested"), "{text}");
}

/// Certificate names, banners and headers are untrusted.
#[test]
fn every_format_escapes_hostile_text() {
    let hostile = [samples::hostile()];
    for colour in [false, true] {
        for detail in [Detail::Line, Detail::Usual, Detail::Everything] {
            let options = Options { colour, detail, width: Some(80) };
            let text = written(Format::Table, options, &hostile);
            let mut ours = text.clone();
            if colour {
                for code in ["0", "1", "2", "31", "32", "33", "35", "36"] {
                    ours = ours.replace(&format!("\u{1b}[{code}m"), "");
                }
            }
            let bad = ours.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
            assert_eq!(bad, None, "{ours}");
            assert_eq!(detail != Detail::Line, ours.contains(r"\u{1b}"), "{ours}");
        }
    }
    let page = written(Format::Html, Options::default(), &hostile);
    file("hostile.html", &page);
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(!page.contains('\u{1b}') && !page.contains('\u{202e}'));
    let sarif: Value =
        serde_json::from_str(&written(Format::Sarif, Options::default(), &hostile)).unwrap();
    let results = sarif["runs"][0]["results"].as_array().unwrap();
    let name = results.iter().find(|result| result["ruleId"] == "certificate-name").unwrap();
    let message = name["message"]["text"].as_str().unwrap();
    assert!(message.contains(r"\[click\](http://evil.example)"), "{message}");
    assert!(!message.contains('\u{1b}'), "{message}");
}

#[test]
fn an_html_page_is_self_contained() {
    let page = written(Format::Html, Options::default(), &samples::all());
    file("report.html", &page);
    for word in ["http-equiv=\"Content-Security-Policy\"", "heartbleed", "connection refused"] {
        assert!(page.contains(word), "{word}");
    }
    for word in ["<script", "<link", "<img", "src=", "url(", "@import", "onload", "javascript:"] {
        assert!(!page.contains(word), "{word}");
    }
    // Every tag is closed.
    for tag in ["section", "table", "tr", "td", "div", "details", "ul", "span", "main"] {
        let open =
            page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(open, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    let none = written(Format::Html, Options::default(), &[]);
    assert!(none.ends_with("</html>\n"));
}

/// Chromium without a window and with a profile of its own; `None` where it is missing, but not in CI.
fn chromium(arguments: &[&str], page: &Path) -> Option<Vec<u8>> {
    let profile = tempfile::tempdir().unwrap();
    let profile = format!("--user-data-dir={}", profile.path().display());
    let fixed = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"];
    let url = format!("file://{}", page.canonicalize().unwrap().display());
    let mut command = Command::new("chromium");
    command.args(fixed).arg(profile).args(arguments).arg(url);
    match command.output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(output.stdout)
        }
        Err(e) => {
            assert!(std::env::var_os("CI").is_none(), "chromium: {e}");
            eprintln!("skipped: chromium: {e}");
            None
        }
    }
}

#[test]
fn the_page_fits_a_window_of_1200_pixels_and_fewer_than_two_printed_pages_a_target() {
    let reports: Vec<Report> =
        [samples::modern(), samples::mail(), samples::old(), samples::throttled()]
            .into_iter()
            .cycle()
            .take(8)
            .collect();
    let page = written(Format::Html, Options::default(), &reports);
    let policy = "default-src 'none'; style-src 'unsafe-inline'";
    assert!(page.contains(policy));
    // Content is cut off if it is wider than the window, if a table is wider than its container, or if a label leaves
    // its box.
    let script = "<script>addEventListener('load', () => {
        const box = (e) => e.getBoundingClientRect(), cut = [];
        for (const e of document.querySelectorAll('main *'))
            if (box(e).right > innerWidth + 1) cut.push('window: ' + e.textContent.slice(0, 40));
        for (const e of document.querySelectorAll('table'))
            if (box(e).right > box(e.parentElement).right + 1) cut.push('table ' + e.className);
        for (const e of document.querySelectorAll('th.p span')) {
            const outer = box(e.closest('section'));
            if (box(e).right > outer.right || box(e).top < outer.top) cut.push('label ' + e.textContent);
        }
        document.title = innerWidth + ' ' + document.documentElement.scrollWidth + ' cut ' + cut.join('; ');
    })</script></body>";
    let measuring = page.replace(policy, "script-src 'unsafe-inline'; style-src 'unsafe-inline'");
    let measuring = file("report-measured.html", &measuring.replace("</body>", script));
    let window = ["--window-size=1200,900", "--hide-scrollbars", "--dump-dom"];
    let Some(dom) = chromium(&window, &measuring) else { return };
    let dom = String::from_utf8(dom).unwrap();
    let (_, rest) = dom.split_once("<title>").unwrap();
    let (title, _) = rest.split_once("</title>").unwrap();
    assert_eq!(title, "1200 1200 cut ");

    let pdf = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report.pdf");
    let _ = std::fs::remove_file(&pdf);
    let print = format!("--print-to-pdf={}", pdf.display());
    chromium(&[&print, "--no-pdf-header-footer"], &file("report-printed.html", &page));
    let pdf = std::fs::read(&pdf).unwrap();
    let pages = pdf.windows(12).filter(|bytes| bytes.starts_with(b"/Type /Page\n")).count();
    assert!((8..16).contains(&pages), "{pages} pages for eight targets and a summary");
}

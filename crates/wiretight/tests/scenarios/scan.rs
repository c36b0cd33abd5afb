//! `wiretight scan` as people and pipelines run it: our own edge and a weak server, the mesh, formats, exit statuses,
//! many targets, interrupted runs.

use std::fs::{self, OpenOptions};
use std::io::Write;

use serde_json::Value;

use super::rig::*;
use super::web::{Backend, NAME, Site, weak_server};

fn scan(args: &[&str]) -> Ran {
    Ran::of(wiretight().arg("scan").args(args), "")
}

fn reports(ran: &Ran) -> Vec<Value> {
    ran.json()["reports"].as_array().unwrap_or_else(|| panic!("{ran:?}")).clone()
}

#[track_caller]
fn answer(report: &Value, id: &str) -> String {
    report["facts"][id]["answer"].as_str().unwrap_or_else(|| panic!("no {id}: {report:#}")).into()
}

#[test]
fn our_edge_is_strong_and_a_weak_server_is_recognised() {
    if !has(&["openssl"]) {
        return;
    }
    let site = Site::new(Backend::start().at);
    let ca = site.world.path("ca.pem");
    let roots = ca.to_str().unwrap();
    let edge = format!("https://{NAME}:{}", site.https.port());
    let args =
        [&edge, "--ip", "127.0.0.1", "--roots", roots, "--json", "--fail-below", "acceptable"];
    let ran = scan(&args);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let report = &reports(&ran)[0];
    for id in
        ["protocol.tls1_3", "protocol.tls1_2", "post_quantum", "forward_secrecy.all", "http.hsts"]
    {
        assert_eq!(answer(report, id), "yes", "{id}");
    }
    for id in ["protocol.tls1_1", "protocol.ssl3", "session.early_data", "weak.cbc", "compression"]
    {
        assert_eq!(answer(report, id), "no", "{id}");
    }
    let facts = report["facts"].as_object().unwrap();
    let flaws = facts
        .iter()
        .filter(|(id, fact)| id.starts_with("vulnerability.") && fact["answer"] == "yes");
    assert_eq!(flaws.count(), 0, "{report:#}");
    assert_eq!(answer(report, "certificate.name"), "yes");
    assert_eq!(answer(report, "protocol.quic"), "yes");
    say(format!("the edge is {} by a scan", report["judgement"]["level"]));

    let (weak, _kid) = weak_server(&site.world);
    let weak = format!("localhost:{}", weak.port());
    let ran = scan(&[&weak, "--roots", roots, "--fail-below", "acceptable"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.out.contains("weak") && ran.out.contains("TLS 1.0"), "{ran:?}");
    assert!(!ran.out.contains('\x1b'), "colour goes to terminals alone: {ran:?}");
    let ran = scan(&[&weak, "--roots", roots, "--profile", "bcp195", "--format", "jsonl"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    // Without a required rating, every result is a success.
    assert_eq!(scan(&[&weak, "--roots", roots, "--fail-below", "weak"]).code, Some(0));
}

#[test]
fn exit_statuses_distinguish_weaknesses_from_failed_scans() {
    let closed = format!("127.0.0.1:{}", free().port());
    let ran = scan(&[&closed, "--fail-below", "weak"]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.out.contains("refused"), "{ran:?}");
    let ran = scan(&["no-such-name.invalid", "--json"]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert_eq!(reports(&ran)[0]["reached"]["state"], "unreachable");
    for wrong in [
        &["300.1.1.1"][..],
        &["gopher://example.org"],
        &["localhost", "--fail-below", "perfect"],
        &["localhost", "--profile", "mine"],
        &["localhost", "--format", "pdf"],
        &["localhost", "--rate", "0"],
        &["localhost", "--resume", "--output", "x"],
        &[],
    ] {
        let ran = scan(wrong);
        assert_eq!(ran.code, Some(2), "{wrong:?}: {ran:?}");
        assert!(!ran.err.is_empty());
    }
    // Plaintext: below weak.
    let echo = echo();
    let ran = scan(&[&format!("tls://{echo}"), "--fail-below", "weak"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.out.contains("plaintext"), "{ran:?}");
}

#[test]
fn a_list_is_scanned_completely_and_resumes_after_an_interruption() {
    let world = World::new();
    let list = world.path("targets");
    let ports: Vec<u16> = (0..40).map(|_| free().port()).collect();
    let mut text = "# closed, all of them\n\nthis is no target\n".to_owned();
    ports.iter().for_each(|port| text += &format!("127.0.0.1:{port} # by address\n"));
    fs::write(&list, text).unwrap();
    let out = world.path("out.jsonl");
    let (list, out) = (list.to_str().unwrap(), out.to_str().unwrap());
    let all = ["--targets", list, "--quick", "--format", "jsonl", "--output", out];
    let ran = scan(&all);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(
        ran.err.contains("line 3"),
        "the bad line is named, and does not stop the rest: {ran:?}"
    );
    let whole = fs::read_to_string(out).unwrap();
    assert_eq!(whole.lines().count(), 40);

    // Truncated within a line, as by a full disk or a kill.
    let keep: usize = whole.lines().take(10).map(|line| line.len() + 1).sum();
    OpenOptions::new().write(true).open(out).unwrap().set_len(keep as u64 + 20).unwrap();
    let ran = scan(&[&all[..], &["--resume"]].concat());
    assert_eq!(ran.code, Some(3), "{ran:?}");
    let resumed = fs::read_to_string(out).unwrap();
    let mut targets: Vec<String> = resumed
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["target"].as_str().unwrap().into())
        .collect();
    assert_eq!(targets.len(), 40, "none is missing and none is twice");
    targets.sort();
    targets.dedup();
    assert_eq!(targets.len(), 40);
    assert!(resumed.starts_with(&whole[..keep]), "what was whole is kept");

    // A file that is not our output is not changed.
    fs::OpenOptions::new().append(true).open(out).unwrap().write_all(b"something else\n").unwrap();
    let before = fs::read(out).unwrap();
    let ran = scan(&[&all[..], &["--resume"]].concat());
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert_eq!(fs::read(out).unwrap(), before);

    // From standard input, and in each format.
    for format in ["table", "json", "jsonl", "sarif", "cbom", "html"] {
        let args = ["scan", "--targets", "-", "--quick", "--format", format];
        let text = format!("127.0.0.1:{}\n", ports[0]);
        let ran = Ran::of(wiretight().args(args), &text);
        assert_eq!(ran.code, Some(3), "{format}: {ran:?}");
        assert!(!ran.out.is_empty(), "{format}");
    }
}

#[test]
fn every_service_of_the_mesh_is_scanned() {
    let (pair, _) = Pair::echo("");
    let ran = pair.app.cli(&["scan", "--mesh", "--json", "--fail-below", "acceptable"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let reports = reports(&ran);
    assert_eq!(reports.len(), 1, "{reports:#?}");
    let report = &reports[0];
    assert_eq!(report["judgement"]["level"], "strong", "{report:#}");
    for id in [
        "protocol.tls1_3",
        "post_quantum",
        "certificate.trusted_by_mesh",
        "client_certificate.requested",
        "client_certificate.required",
    ] {
        assert_eq!(answer(report, id), "yes", "{id}");
    }
    assert_eq!(answer(report, "protocol.tls1_2"), "no");
    // The control: without the trust bundle nothing is trusted.
    let target = report["target"].as_str().unwrap();
    let ran = scan(&[target, "--json", "--fail-below", "acceptable"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
}

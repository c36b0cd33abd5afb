//! If testssl.sh and sslyze agree on a fact about a server, a scan reports the same.
//!
//! All three run on each server of [`SHORT`], three servers at a time; with `WIRETIGHT_TEST_LONG`, also on those of
//! [`LONG`]. A complete run of testssl.sh takes minutes, so it runs only the sections that the server is meant to test;
//! sslyze runs everything.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod peers;
mod servers;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use peers::{agreed, differ, same, show};
use servers::{Missing, Running, config, pki};
use wiretight_scan::active::{Options, scan_address};
use wiretight_scan::certificate::{Roots, Stores};
use wiretight_scan::facts::{Answer, Facts};
use wiretight_scan::names::Version;
use wiretight_scan::{Host, Target};

/// Facts of our scan, and its duration.
fn ours(server: &Running) -> (Facts, Duration) {
    let roots = Roots::from_pem_file(&pki::folder().join("root.pem")).unwrap();
    let stores = Arc::new(Stores { roots: Some(roots), mesh: None });
    let options = Options { stores, ..Options::default() };
    // The other scanners use the same name.
    let target = Target { host: Host::Name("localhost".to_owned()), ..server.target() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let begun = Instant::now();
    let asked = scan_address(&target, server.address, &options);
    let report = servers::scans::checked(runtime.block_on(asked));
    (report.facts, begun.elapsed())
}

/// Servers, and the testssl.sh sections for each: every section, and a server for each kind of dissent.
const SHORT: &[(&str, &str)] = &[
    ("openssl-everything", "-p -W"),
    ("openssl-null", "-p"),
    ("openssl-dual", "-S"),
    ("openssl-renegotiation", "-R"),
    ("openssl-weak-certificate", "-S"),
    ("openssl-groups", "-f"),
    ("gnutls-tls1_0", "-p -Z"),
    ("nginx-old", "-p -A"),
    ("postfix", "-p"),
    ("slapd", "-p"),
    ("tlslite-robot", "-BB"),
    ("tlslite-heartbleed", "-H"),
    ("old-default", "-p -4"),
    ("old-compression", "-C"),
    ("tlslite-ssl3", "-p -O"),
    ("nginx-modern", "-p -h"),
    ("openssl-dhe-2048", "-E"),
];

/// The others: as much again.
const LONG: &[(&str, &str)] = &[
    ("openssl-must-staple", "-S"),
    ("openssl-anonymous", "-p"),
    ("openssl-default", "-p"),
    ("openssl-tls1_0", "-E"),
    ("openssl-tls1_1", "-p"),
    ("openssl-tls1_2", "-p"),
    ("openssl-tls1_3", "-p"),
    ("openssl-static-rsa", "-BB"),
    ("openssl-ecdsa", "-S"),
    ("openssl-ed25519", "-p"),
    ("openssl-server-order", "-E"),
    ("openssl-no-ticket", "-S"),
    ("openssl-stapled", "-S"),
    ("openssl-expired", "-S"),
    ("openssl-self-signed", "-S"),
    ("openssl-other-name", "-S"),
    ("gnutls-default", "-p"),
    ("nginx-intermediate", "-p -h"),
    ("haproxy-modern", "-p"),
    ("haproxy-tls1_2", "-p -C"),
    ("dovecot-imap", "-p"),
    ("postgres", "-p"),
    ("mariadb", "-p"),
    ("tlslite-hybrids", "-p"),
];

/// A fact of a server on which the scanners disagree: the right answer, and a proof by other means.
struct Dissent {
    /// A server name, or a prefix and `*`.
    server: &'static str,
    /// An id, or a prefix and `*`.
    fact: &'static str,
    /// The right answer; ours must be the same.
    right: &'static str,
    proof: &'static str,
}

const SLAPD: &str = "for LDAP, testssl.sh connects with OpenSSL 3.0, whose security level forbids TLS 1.0 and 1.1; \
                     `openssl s_client -starttls ldap -tls1 -cipher ALL:@SECLEVEL=0` completes a handshake";
const RARE: &str = "testssl.sh does not offer these suites in TLS 1.0 and 1.1; `openssl s_client -tls1 -cipher \
                    ALL:COMPLEMENTOFALL:@SECLEVEL=0` completes a handshake, and so does `-tls1_1`";
const REUSED: &str = "`openssl s_client -tls1_2 -no_ticket -reconnect` prints `Reused` five times, with each of the \
                      certificates";
const SHA1: &str = "the leaf is signed with SHA-1: `openssl verify -auth_level 1` prints `CA signature digest algorithm \
                    too weak`, and `certtool --verify` reports an insecure algorithm in the chain";

const DISSENTS: &[Dissent] = &[
    Dissent { server: "slapd", fact: "protocol.tls1_0", right: "yes", proof: SLAPD },
    Dissent { server: "slapd", fact: "protocol.tls1_1", right: "yes", proof: SLAPD },
    Dissent { server: "openssl-anonymous", fact: "protocol.tls1_*", right: "yes", proof: RARE },
    Dissent { server: "openssl-null", fact: "protocol.tls1_*", right: "yes", proof: RARE },
    Dissent { server: "openssl-*", fact: "session.id", right: "yes", proof: REUSED },
    Dissent {
        server: "openssl-weak-certificate",
        fact: "certificate.trusted",
        right: "no",
        proof: SHA1,
    },
];

struct Outcome {
    server: &'static str,
    testssl: peers::Said,
    sslyze: peers::Said,
    ours: (Facts, Duration),
}

#[test]
fn a_scan_says_what_testssl_and_sslyze_agree_on() {
    let only = env::var("ONLY").ok();
    let long = env::var_os("WIRETIGHT_TEST_LONG").or(env::var_os("WIRETIGHT_SCAN_AGREEMENT"));
    let long = long.is_some() || only.is_some();
    let cases: Vec<_> = SHORT
        .iter()
        .chain(if long { LONG } else { &[] })
        .filter(|(name, _)| {
            only.as_ref().is_none_or(|only| only.split(',').any(|part| name.contains(part)))
        })
        .collect();
    let begun = Instant::now();
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&&(name, sections)) = cases.get(at) else { return };
                    match examine(name, sections) {
                        Ok(outcome) => {
                            println!("{}", summary(&outcome));
                            outcomes.lock().unwrap().insert(at, outcome);
                        }
                        Err(Missing(why)) => {
                            assert!(env::var_os("CI").is_none(), "{name}: {why}");
                            println!("skipped: {name}: {why}");
                        }
                    }
                }
            });
        }
    });
    let outcomes: Vec<Outcome> = outcomes.into_inner().unwrap().into_values().collect();
    let report = report(&outcomes);
    println!("{report}\n{} servers in {:.0} s", outcomes.len(), begun.elapsed().as_secs_f64());
    if let Some(to) = env::var_os("WIRETIGHT_SCAN_AGREEMENT") {
        fs::write(to, &report).unwrap();
    }
    let wrong: Vec<String> = outcomes.iter().flat_map(wrong).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Facts on which the scanners disagree, without a proof that our answer is right.
fn wrong(outcome: &Outcome) -> Vec<String> {
    let proved = |id: &str| {
        let (answer, value) = said_by_us(&outcome.ours.0, id);
        dissent(outcome.server, id).is_some_and(|dissent| dissent.right == show(answer, value))
    };
    let open = outcome.dissents().into_iter().filter(|id| !proved(id));
    open.map(|id| row(outcome, &id)).collect()
}

impl Outcome {
    /// The facts on which both agree; if sslyze does not support the protocol, those of testssl.sh.
    fn agreed(&self) -> Facts {
        match self.sslyze.took.is_zero() {
            true => self.testssl.facts.clone(),
            false => agreed(&self.testssl.facts, &self.sslyze.facts),
        }
    }

    /// Ids of facts on which the three disagree.
    fn dissents(&self) -> Vec<String> {
        let mut ids: Vec<String> = differ(&self.testssl.facts, &self.sslyze.facts)
            .into_iter()
            .map(|(id, ..)| id)
            .collect();
        ids.extend(self.agreed().iter().filter_map(|(id, fact)| {
            let (answer, value) = said_by_us(&self.ours.0, id);
            (!same(fact.answer, fact.value.as_ref(), answer, value)).then(|| id.to_owned())
        }));
        ids
    }
}

fn examine(name: &'static str, sections: &str) -> Result<Outcome, Missing> {
    let server = config(name).start()?;
    let ours = ours(&server);
    let sslyze = peers::sslyze::scan(&server)?;
    let testssl = peers::testssl::scan(&server, sections)?;
    Ok(Outcome { server: name, testssl, sslyze, ours })
}

/// Our reports do not list refused suites and groups. They are refused if all were tested.
fn said_by_us<'a>(ours: &'a Facts, id: &str) -> (Answer, Option<&'a wiretight_scan::facts::Value>) {
    if let Some((version, name)) = id.strip_prefix("suite.").and_then(|rest| rest.split_once('.')) {
        let version = Version::ALL.into_iter().find(|known| known.key() == version).unwrap();
        return (ours.suite(version, name), None);
    }
    if id.starts_with("group.") && !ours.yes(id) {
        let asked = ["groups.tls1_3", "groups.tls1_2"].map(|groups| ours.answer(groups));
        let all = asked
            .iter()
            .all(|answer| matches!(answer, Answer::Yes | Answer::No | Answer::Untested));
        return (if all { Answer::No } else { Answer::Inconclusive }, None);
    }
    (ours.answer(id), ours.get(id).and_then(|fact| fact.value.as_ref()))
}

fn dissent(server: &str, fact: &str) -> Option<&'static Dissent> {
    let is = |pattern: &str, name: &str| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    };
    DISSENTS.iter().find(|dissent| is(dissent.server, server) && is(dissent.fact, fact))
}

fn summary(outcome: &Outcome) -> String {
    let mut line = format!(
        "{:32} testssl.sh {:5.1} s, sslyze {:4.1} s, ours {:4.1} s: they agree on {} facts",
        outcome.server,
        outcome.testssl.took.as_secs_f64(),
        outcome.sslyze.took.as_secs_f64(),
        outcome.ours.1.as_secs_f64(),
        outcome.agreed().iter().count()
    );
    for (who, said) in [("testssl.sh", &outcome.testssl), ("sslyze", &outcome.sslyze)] {
        if let Some(trouble) = &said.trouble {
            write!(line, "\n    {who}: {trouble}").unwrap();
        }
    }
    for row in rows(outcome) {
        write!(line, "\n    {row}").unwrap();
    }
    line
}

/// A row for each fact on which the scanners differ.
fn rows(outcome: &Outcome) -> Vec<String> {
    outcome.dissents().iter().map(|id| row(outcome, id)).collect()
}

fn row(outcome: &Outcome, id: &str) -> String {
    let said = |facts: &Facts| {
        let fact = facts.get(id);
        fact.map_or_else(|| "-".to_owned(), |fact| show(fact.answer, fact.value.as_ref()))
    };
    let (answer, value) = said_by_us(&outcome.ours.0, id);
    let all = [
        ("testssl.sh", said(&outcome.testssl.facts)),
        ("sslyze", said(&outcome.sslyze.facts)),
        (US, show(answer, value)),
    ];
    let (right, proof) = dissent(outcome.server, id).map_or(("?", ""), |d| (d.right, d.proof));
    let who = all.iter().filter(|(_, said)| said == right).map(|(who, _)| *who);
    let who = who.collect::<Vec<_>>().join(", ");
    let [testssl, sslyze, ours] = all.map(|(_, said)| said);
    format!("| {} | `{id}` | {testssl} | {sslyze} | {ours} | {who} | {proof} |", outcome.server)
}

const US: &str = "wiretight";

/// `docs/scan-agreement.md`.
fn report(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "# Agreement with testssl.sh and sslyze\n\n\
         `crates/wiretight-scan/tests/agreement.rs` generates this page. It runs testssl.sh 3.0.8, sslyze 6.3.1 and\n\
         `wiretight scan` on the same servers, three servers at a time. testssl.sh runs only the listed sections on each\n\
         server, because all of them would take minutes; its time is for these. sslyze runs everything. It does not support\n\
         MySQL: there, only the facts of testssl.sh are compared.\n\n\
         ## Servers\n\n\
         | Server | testssl.sh sections | Facts on which both agree | wiretight agrees | Facts found by wiretight only \
         | Of these, post-quantum groups | testssl.sh | sslyze | wiretight |\n\
         |---|---|---:|---:|---:|---|---:|---:|---:|\n",
    );
    let (mut all, mut shared) = (0, 0);
    for outcome in outcomes {
        let (agreed, ours) = (outcome.agreed(), &outcome.ours.0);
        let count = agreed.iter().count();
        let too = agreed.iter().filter(|(id, fact)| {
            let (answer, value) = said_by_us(ours, id);
            same(fact.answer, fact.value.as_ref(), answer, value)
        });
        let too = too.count();
        (all, shared) = (all + count, shared + too);
        let alone = ours.iter().filter(|(id, fact)| {
            matches!(fact.answer, Answer::Yes | Answer::No)
                && outcome.testssl.facts.get(id).is_none()
                && outcome.sslyze.facts.get(id).is_none()
        });
        let sections =
            SHORT.iter().chain(LONG).find(|(name, _)| *name == outcome.server).unwrap().1;
        let seconds = |took: Duration| format!("{:.1} s", took.as_secs_f64());
        writeln!(
            text,
            "| {} | `{sections}` | {count} | {too} | {} | {} | {} | {} | {} |",
            outcome.server,
            alone.count(),
            ours.list("post_quantum").join(" "),
            seconds(outcome.testssl.took),
            seconds(outcome.sslyze.took),
            seconds(outcome.ours.1)
        )
        .unwrap();
    }
    writeln!(
        text,
        "\ntestssl.sh and sslyze agree on {all} facts. wiretight agrees with them on {shared}."
    )
    .unwrap();
    text.push_str(DISSENTS_BEGIN);
    for row in outcomes.iter().flat_map(rows) {
        writeln!(text, "{row}").unwrap();
    }
    text
}

const DISSENTS_BEGIN: &str = "\n## Where they differ\n\n\
     | Server | Fact | testssl.sh | sslyze | wiretight | Right | Proof |\n|---|---|---|---|---|---|---|\n";

#[test]
fn the_page_has_the_dissents_of_this_test() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/scan-agreement.md");
    let text = fs::read_to_string(page).unwrap();
    let (_, rows) = text.split_once(DISSENTS_BEGIN).unwrap();
    let rows: Vec<Vec<&str>> = rows.lines().map(|row| row.split(" | ").collect()).collect();
    let mut seen = Vec::new();
    for row in &rows {
        let (server, fact) = (row[0].trim_start_matches("| "), row[1].trim_matches('`'));
        let known = dissent(server, fact).unwrap_or_else(|| panic!("{server}: {fact}: no proof"));
        assert!(row[4] == known.right && row[5].ends_with(US), "{server}: {fact}");
        assert_eq!(row[6].trim_end_matches(" |"), known.proof, "{server}: {fact}");
        seen.push((known.server, known.fact));
    }
    for Dissent { server, fact, .. } in DISSENTS {
        assert!(seen.contains(&(server, fact)), "{server}: {fact}: not on the page");
    }
}

//! verify.html in Chromium: it accepts a true folder, and refuses each kind of false one with the right reason. The false
//! folders are what an operator with all keys of the log could publish, or what a server could make of a true folder.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;
use wiretight::config::Publish;
use wiretight::proof::log_part::{LogPart, ProvedPeriod};
use wiretight::proof::publish::{Folder, VERIFIER};
use wiretight_keys::claims::*;
use wiretight_keys::token::hex;
use wiretight_tlog::cosignature::Algorithm as Kind;
use wiretight_tlog::{Cosigner, Hash, Policy};

use super::browser::browse;
use super::common::say;
use super::sample::{AT, Sample, Tree};

type Files = BTreeMap<String, String>;

#[derive(Serialize, Deserialize)]
struct PublicationFile {
    version: u8,
    index: u64,
    entry: String,
    checkpoint: String,
    proof: Vec<String>,
    consistency: Vec<String>,
}

fn files(folder: Folder) -> Files {
    folder.files.into_iter().map(|file| (file.name, file.text)).collect()
}

fn texts(hashes: &[Hash]) -> Vec<String> {
    hashes.iter().map(Hash::to_string).collect()
}

fn body(entry: &[u8]) -> String {
    String::from_utf8(entry[2..].to_vec()).unwrap()
}

/// Changes a JSON file.
fn edit<T: Serialize + for<'a> Deserialize<'a>>(
    files: &mut Files,
    name: &str,
    change: impl FnOnce(&mut T),
) {
    let mut value = serde_json::from_str(&files[name]).unwrap();
    change(&mut value);
    files.insert(name.into(), serde_json::to_string(&value).unwrap());
}

/// Replaces a text that is in a file.
#[track_caller]
fn replace(files: &mut Files, name: &str, from: &str, to: &str) {
    assert!(files[name].contains(from), "{name}: no {from}");
    files.insert(name.into(), files[name].replacen(from, to, 1));
}

impl Sample {
    /// A sample without gaps.
    fn whole() -> Sample {
        Sample::new(5, 3)
    }

    fn preview_files(&self) -> Files {
        files(self.preview(&Publish::default()))
    }

    fn true_files(&mut self) -> Files {
        files(self.folder(&Publish::default()))
    }

    /// Publishes changed files: the manifest and its entry in the log are made for them, as a lying operator would.
    fn publish(&mut self, mut files: Files) -> Files {
        files.retain(|name, _| name != "manifest" && name != "publication.json");
        let mut manifest = String::new();
        for (name, text) in &files {
            let _ = writeln!(manifest, "{}  {name}", hex(Hash::of(text.as_bytes()).as_bytes()));
        }
        let from = self.tree.size();
        let entry = Publication::new(AT, manifest.as_bytes()).entry();
        let index = self.tree.push(&entry);
        let file = PublicationFile {
            version: 1,
            index,
            entry: body(&entry),
            checkpoint: self.checkpoint(2, AT - 20).to_string(),
            proof: texts(&self.tree.inclusion(&[index])[0]),
            consistency: texts(&self.tree.consistency(from)),
        };
        files.insert("manifest".into(), manifest);
        files.insert("publication.json".into(), serde_json::to_string(&file).unwrap());
        files
    }

    /// Signs another history with the same keys and the same periods, and as long.
    fn fork(&mut self) {
        let mut tree = Tree::default();
        for index in 0..self.tree.size() {
            match self.facts.periods.iter().find(|logged| logged.index == index) {
                Some(logged) => tree.push(&logged.period.entry()),
                None => tree.push(b"another certificate"),
            };
        }
        self.tree = tree;
        for earlier in &mut self.earlier {
            earlier.root = self.tree.root(earlier.size);
        }
    }

    /// Logs hours that are changed, and days that fit them.
    fn relog(&mut self, change: impl Fn(&mut MeshPeriod)) {
        let mut tree = Tree::default();
        let periods = &mut self.facts.periods;
        periods.iter_mut().filter(|l| l.period.length == HOUR).for_each(|l| change(&mut l.period));
        let hours: Vec<MeshPeriod> =
            periods.iter().map(|l| l.period.clone()).filter(|p| p.length == HOUR).collect();
        for logged in periods.iter_mut() {
            let start = logged.period.start;
            if logged.period.length == DAY {
                let own = hours.iter().filter(|h| (start..start + DAY).contains(&h.start)).cloned();
                logged.period = MeshPeriod::day(start, &own.collect::<Vec<_>>());
            }
            logged.index = tree.push(&logged.period.entry());
        }
        self.tree = tree;
        self.earlier.clear();
    }

    /// The policy with another line for a witness or the quorum.
    fn policy_with(&self, from: &str, to: &str) -> String {
        let text = self.policy.to_string();
        let line = text.lines().find(|line| line.starts_with(from)).unwrap().to_owned();
        text.replace(&line, to)
    }
}

/// A folder, and what verify.html must make of it.
struct Case {
    name: &'static str,
    files: Files,
    now: u64,
    /// What the visitor pastes.
    policy: String,
    /// The start of the verdict.
    verdict: &'static str,
    /// What one of the steps that failed, or the verdict, says.
    says: String,
}

const PROVED: &str = "This page is proved";
const REFUSED: &str = "Do not rely on this page.";
const OPEN: &str = "Not proved.";
const GAP: &str = "What is shown is proved, but it is not complete.";

fn case(name: &'static str, files: Files, verdict: &'static str, says: &str) -> Case {
    Case { name, files, now: AT, policy: String::new(), verdict, says: says.into() }
}

/// Folders that are true, or incomplete.
fn open_cases(all: &mut Vec<Case>) {
    let mut sample = Sample::whole();
    let files = sample.true_files();
    all.push(case("true", files.clone(), PROVED, "2 witnesses (of the operator’s own policy)"));
    let mut pasted = case("pasted-policy", files.clone(), PROVED, "2 witnesses (of your policy)");
    pasted.policy = sample.policy.to_string();
    all.push(pasted);
    let mut without = files;
    without.remove("facts.schema.json");
    all.push(case("missing-file", without, OPEN, "facts.schema.json"));

    // An hour was not logged: the page says so, and the checker names it.
    let mut sample = Sample::new(20, 4);
    all.push(case(
        "gap",
        sample.true_files(),
        GAP,
        "the hour from 2026-11-16 03:00 UTC, and 4 hours after it",
    ));
    // The newest hours are withheld, in all files alike.
    let mut sample = Sample::whole();
    let newest = AT / HOUR * HOUR - HOUR;
    sample.facts.periods.retain(|l| l.period.length == DAY || l.period.start < newest - HOUR);
    all.push(case("withheld", sample.true_files(), GAP, "the hour from 2026-11-30 12:00 UTC"));

    // Witnesses that a browser cannot check never count.
    let mut sample = Sample::whole();
    sample.witnesses[1] =
        Cosigner::from_seed(sample.witnesses[1].public().name().clone(), Kind::MlDsa44, &[7; 32])
            .unwrap();
    let south = format!("witness south {}", sample.witnesses[1].public());
    sample.policy = Policy::parse(sample.policy_with("witness south", &south)).unwrap();
    all.push(case(
        "post-quantum-witness",
        sample.true_files(),
        OPEN,
        "A browser can check too few of the witnesses: 1 of 3",
    ));
    let mut sample = Sample::whole();
    sample.policy = Policy::parse(sample.policy_with("quorum", "quorum none")).unwrap();
    all.push(case("no-witnesses", sample.true_files(), OPEN, "The policy asks for no witness"));

    // Numbers that JavaScript rounds.
    let mut sample = Sample::whole();
    sample.relog(|hour| hour.levels.strong.bytes = (1 << 58) + 1);
    all.push(case("large-numbers", sample.true_files(), PROVED, "2 witnesses"));
    let mut changed = sample.preview_files();
    let bytes =
        serde_json::from_str::<Value>(&changed["facts.json"]).unwrap()["windows"]["day"]["levels"]
            ["strong"]["bytes"]
            .as_u64()
            .unwrap();
    replace(
        &mut changed,
        "facts.json",
        &format!("\"bytes\":{bytes}"),
        &format!("\"bytes\":{}", bytes + 1),
    );
    let says = format!("bytes is {}, and should be {bytes}", bytes + 1);
    all.push(case("large-number-changed", sample.publish(changed), REFUSED, &says));
}

/// Folders whose operator lies, with the keys of the log.
fn lies(all: &mut Vec<Case>) {
    // Changes of files before they are published.
    let mut sample = Sample::whole();
    let mut lie = |name, says: &str, change: &dyn Fn(&Sample, &mut Files)| {
        let mut files = sample.preview_files();
        change(&sample, &mut files);
        let files = sample.publish(files);
        all.push(case(name, files, REFUSED, says));
    };
    lie("changed-number", "windows.month.encrypted.of_bytes is ", &|_, files| {
        let facts: Value = serde_json::from_str(&files["facts.json"]).unwrap();
        let share = facts["windows"]["month"]["encrypted"]["of_bytes"].as_u64().unwrap();
        let month = files["facts.json"].find("\"month\":{").unwrap();
        let (start, end) = files["facts.json"].split_at(month);
        let of_bytes = |share: u64| format!("\"of_bytes\":{share}");
        let end = end.replacen(&of_bytes(share), &of_bytes(share + 1), 1);
        let text = format!("{start}{end}");
        assert_ne!(text, files["facts.json"]);
        files.insert("facts.json".into(), text);
    });
    lie("changed-summary", "The summary does not say", &|_, files| {
        let text = files["index.html"]
            .replace(" % of bytes were encrypted", "9 % of bytes were encrypted");
        assert_ne!(text, files["index.html"]);
        files.insert("index.html".into(), text);
    });
    lie("changed-entry", "Hours or days that are shown are not in the log", &|_, files| {
        edit(files, "log.json", |log: &mut LogPart| {
            let entry = &mut log.periods.last_mut().unwrap().entry;
            let mut period = MeshPeriod::parse(entry.as_bytes()).unwrap();
            period.levels.plaintext = Amount::default();
            *entry = body(&period.entry());
        });
    });
    lie("missing-hour", "An hour is withheld, or a day is false", &|_, files| {
        edit(files, "log.json", |log: &mut LogPart| {
            log.periods.remove(40);
        });
    });
    lie("truncated-proof", "the proof has the wrong number of hashes", &|_, files| {
        edit(files, "log.json", |log: &mut LogPart| {
            log.periods[7].proof.pop();
        });
    });
    lie("too-few-witnesses", "Too few witnesses cosigned: 1 of 3", &|sample, files| {
        let one = sample.checkpoint(1, AT - 40).to_string();
        edit(files, "log.json", |log: &mut LogPart| log.checkpoint = one);
    });
    lie("wrong-witness-key", "Too few witnesses cosigned: 1 of 3", &|sample, files| {
        let name = sample.witnesses[1].public().name().clone();
        let other = Cosigner::from_seed(name, Kind::Ed25519, &[99; 32]).unwrap();
        let policy =
            sample.policy_with("witness south", &format!("witness south {}", other.public()));
        edit(files, "log.json", |log: &mut LogPart| log.policy = policy);
    });
    lie("another-log", "No log of the policy signed this checkpoint", &|_, files| {
        let policy = Sample::whole().policy.to_string();
        edit(files, "log.json", |log: &mut LogPart| log.policy = policy);
    });
    // An hour is left out of everything, but not of its day.
    let mut sample = Sample::whole();
    sample.facts.periods.remove(40);
    all.push(case(
        "hidden-hour",
        sample.true_files(),
        REFUSED,
        "Not the sum of the hours that are shown",
    ));
    // An hour was claimed twice, differently.
    let mut sample = Sample::whole();
    let mut second = sample.facts.periods.last().unwrap().period.clone();
    second.levels.plaintext = Amount::default();
    let index = sample.tree.push(&second.entry());
    let mut files = sample.preview_files();
    let proof = texts(&sample.tree.inclusion(&[index])[0]);
    edit(&mut files, "log.json", |log: &mut LogPart| {
        log.periods.push(ProvedPeriod { index, entry: body(&second.entry()), proof });
    });
    all.push(case(
        "contradiction",
        sample.publish(files),
        REFUSED,
        "The log has two different claims",
    ));
    // The log does not continue what it says it published before.
    let mut sample = Sample::whole();
    sample.earlier[0].root = Hash::leaf(b"x");
    all.push(case(
        "forked",
        sample.true_files(),
        REFUSED,
        "The log does not continue its checkpoint with",
    ));
}

/// What a server could make of a true folder.
fn tampered(all: &mut Vec<Case>) {
    let published = Sample::whole().true_files();
    let mut tamper = |name, verdict, says: &str, change: &dyn Fn(&mut Files)| {
        let mut files = published.clone();
        change(&mut files);
        all.push(case(name, files, verdict, says));
    };
    tamper("another-page", REFUSED, "These files are not as published: index.html", &|files| {
        *files.get_mut("index.html").unwrap() += "<!-- for you alone -->";
    });
    tamper("another-checker", REFUSED, "These files are not as published: verify.html", &|files| {
        *files.get_mut("verify.html").unwrap() += "\n";
    });
    tamper("another-list", REFUSED, "has another hash than the one in the log", &|files| {
        replace(files, "index.html", "</footer>", "for you alone</footer>");
        let line =
            format!("{}  index.html", hex(Hash::of(files["index.html"].as_bytes()).as_bytes()));
        let old =
            files["manifest"].lines().find(|l| l.ends_with("  index.html")).unwrap().to_owned();
        replace(files, "manifest", &old, &line);
    });
    tamper(
        "publication-cut",
        REFUSED,
        "The hash of the list of files is not in the log",
        &|files| {
            edit(files, "publication.json", |file: &mut PublicationFile| {
                file.proof.pop();
            });
        },
    );
    tamper(
        "publication-of-another-log",
        REFUSED,
        "The log did not sign the checkpoint of the list",
        &|files| {
            let other = Sample::whole().true_files();
            let other: PublicationFile = serde_json::from_str(&other["publication.json"]).unwrap();
            edit(files, "publication.json", |file: &mut PublicationFile| {
                file.checkpoint = other.checkpoint
            });
        },
    );
    tamper("not-json", REFUSED, "log.json: it is not JSON", &|files| {
        files.get_mut("log.json").unwrap().truncate(1000);
    });
    tamper("member-twice", REFUSED, "facts.json: it is not in the one form", &|files| {
        replace(files, "facts.json", "\"version\":1", "\"version\":1,\"version\":1");
    });
    let mut stale = case("stale", published.clone(), REFUSED, "What is shown is out of date");
    stale.now = AT + 4 * HOUR;
    all.push(stale);
    let mut early = case("future", published.clone(), REFUSED, "which is in the future");
    early.now = AT - DAY;
    all.push(early);
    let mut wrong =
        case("pasted-policy-of-others", published, REFUSED, "No log of the policy signed");
    wrong.policy = Sample::whole().policy.to_string();
    all.push(wrong);
}

fn write(dir: &Path, files: &Files) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    for (name, text) in files {
        fs::write(dir.join(name), text).unwrap();
    }
    dir.into()
}

/// What is read on each visit.
fn read() -> Value {
    json!({ "verdict": "#verdict", "failed": "#steps > li:is([data-state=fail], [data-state=unknown], [data-state=gap])",
        "right": "#steps > li[data-state=ok]" })
}

const DONE: [&str; 2] = ["wait", "#verdict[data-state]"];

/// About 15 s: 30 folders, of which the page checks all proofs.
#[test]
fn a_true_folder_is_accepted_and_each_kind_of_false_one_is_refused() {
    let mut cases = Vec::new();
    open_cases(&mut cases);
    lies(&mut cases);
    tampered(&mut cases);
    let temp = TempDir::new().unwrap();
    let visit = |case: &Case| {
        let mut steps = vec![json!(DONE)];
        if !case.policy.is_empty() {
            steps.extend([
                json!(["fill", "#policy", case.policy]),
                json!(["click", "#again"]),
                json!(DONE),
            ]);
        }
        // What a proved page looks like is looked at in the test of a folder from a disk.
        let (axe, shots) =
            (["gap", "changed-number"].contains(&case.name), case.name == "changed-number");
        json!({ "name": format!("verify-{}", case.name), "dir": write(&temp.path().join(case.name), &case.files),
            "path": "verify.html", "tab": "verify", "now": case.now, "steps": steps, "read": read(), "axe": axe, "shots": shots })
    };
    let visits: Vec<Value> = cases.iter().map(visit).collect();
    let Some(seen) = browse(&json!(visits)) else { return };
    for (case, mut seen) in cases.iter().zip(seen) {
        if case.name == "missing-file" {
            seen.problems.retain(|p| !p.contains("404"));
        }
        let verdict = seen.good().text("verdict").to_owned();
        assert!(verdict.starts_with(case.verdict), "{}: {seen:#?}", case.name);
        let said = [&[verdict][..], &seen.read["failed"]].concat();
        assert!(said.iter().any(|text| text.contains(&case.says)), "{}: {seen:#?}", case.name);
        assert_eq!(seen.read["failed"].is_empty(), case.verdict == PROVED, "{}", case.name);
        assert_eq!(seen.cookies, [""; 0]);
    }
    say(format!("verify.html: {} folders", cases.len()));
}

/// A visitor keeps a checkpoint, in the browser or as a file, and comes back.
/// About 45 s: a visit to each of several folders, with what was kept from the visits before.
#[test]
fn what_a_visitor_kept_shows_a_forked_log() {
    let temp = TempDir::new().unwrap();
    let dir = |name: &str, files: &Files| write(&temp.path().join(name), files);
    let mut sample = Sample::whole();
    let first = dir("first", &sample.true_files());
    // The log as it was then; the next folder has a proof from it.
    let size =
        serde_json::from_str::<Value>(&fs::read_to_string(first.join("facts.json")).unwrap())
            .unwrap()["log"]["size"]
            .as_u64()
            .unwrap();
    let earlier = wiretight::authority::Earlier { at: AT, size, root: sample.tree.root(size) };
    sample.earlier.push(earlier);
    sample.tree.push(b"a certificate");
    let later = dir("later", &sample.true_files());
    // Without a proof from it. (The sample's own earlier checkpoint is older than what is kept.)
    let kept = sample.earlier.pop().unwrap();
    let before = std::mem::take(&mut sample.earlier);
    let proofless = dir("proofless", &sample.true_files());
    sample.earlier = [before, vec![kept]].concat();
    // The operator replaces the witnesses.
    let old = sample.policy.clone();
    sample.policy =
        Policy::parse(sample.policy_with("group all", "group all 1 north south east")).unwrap();
    let policy = dir("policy", &sample.true_files());
    sample.policy = old;
    // Another history with the same keys, longer than what is kept; and one that is shorter.
    sample.fork();
    let forked = dir("forked", &sample.true_files());
    let mut shorter = Sample::whole();
    std::mem::swap(&mut shorter.signer, &mut sample.signer);
    shorter.policy = sample.policy.clone();
    shorter.facts.ca.log.vkey = shorter.signer.public().to_string();
    shorter.facts.periods.truncate(100);
    let mut tree = Tree::default();
    shorter.facts.periods.iter_mut().for_each(|l| l.index = tree.push(&l.period.entry()));
    (shorter.tree, shorter.earlier) = (tree, Vec::new());
    let shorter = dir("shorter", &shorter.true_files());
    let other = dir("other", &Sample::whole().true_files());

    let saved = temp.path().join("kept.json");
    let folders = [
        ("later", &later, "Nothing of the"),
        ("first", &first, "that you knew was removed or changed"),
        ("proofless", &proofless, "The folder has no proof for what you kept"),
        ("policy", &policy, "The operator has changed the policy"),
        ("forked", &forked, "You are shown another log than on your earlier visit"),
        ("shorter", &shorter, "The log has become shorter"),
        ("other", &other, "It is another log, or its key was replaced"),
    ];
    let last = "#steps > li:last-child";
    let visits = |how: &str| {
        let mut steps = vec![json!(DONE), json!(["read", "before", last])];
        match how {
            "browser" => steps.push(json!(["click", "#keep"])),
            _ => steps.push(json!(["save", "#save", saved])),
        }
        for (name, folder, _) in folders {
            steps.extend([json!(["serve", folder]), json!(["open", "verify.html"]), json!(DONE)]);
            if how == "file" {
                steps.extend([json!(["files", "#kept", [saved]]), json!(DONE)]);
                steps.push(json!(["wait", "#steps > li:last-child:not([data-state=none])"]));
            }
            steps.extend([
                json!(["read", name, last]),
                json!(["read", format!("{name}-verdict"), "#verdict"]),
            ]);
        }
        json!({ "name": format!("verify-kept-{how}"), "dir": first, "path": "verify.html", "now": AT, "steps": steps })
    };
    let Some(seen) = browse(&json!([visits("browser"), visits("file")])) else { return };
    for seen in &seen {
        assert!(seen.good().text("before").contains("You have nothing from an earlier visit"));
        for (name, _, says) in folders {
            assert!(seen.text(name).contains(says), "{name}: {seen:#?}");
            let verdict = seen.text(&format!("{name}-verdict"));
            let expected = match name {
                "later" | "first" => PROVED,
                "proofless" | "policy" => OPEN,
                _ => REFUSED,
            };
            assert!(verdict.starts_with(expected), "{name}: {verdict}");
        }
    }
}

/// A folder on a disk: the visitor chooses or drops the files. Without JavaScript, the page says what it needs.
#[test]
fn a_folder_from_a_disk_is_checked_and_nothing_is_fetched_from_elsewhere() {
    let temp = TempDir::new().unwrap();
    let files = Sample::whole().true_files();
    let dir = write(temp.path(), &files);
    let all: Vec<PathBuf> = files.keys().map(|name| dir.join(name)).collect();
    // The control: the page cannot make HTML of text, nor fetch from elsewhere.
    let html = "(() => { try { document.body.innerHTML = '<b>x</b>'; return 'made'; } catch (e) { return e.name; } })()";
    let elsewhere = "fetch('http://elsewhere.example/').then(() => 'fetched', (e) => e.name)";
    let visits = json!([
        { "name": "verify-file", "dir": dir, "file": true, "path": "verify.html", "now": AT, "read": read(), "axe": true, "shots": true,
          "steps": [["read", "asked", "#verdict"], ["files", "#files", all], DONE] },
        { "name": "verify-dropped", "dir": dir, "file": true, "path": "verify.html", "now": AT, "read": read(),
          "steps": [["drop", "#drop", all], DONE] },
        { "name": "verify-some", "dir": dir, "file": true, "path": "verify.html", "now": AT, "read": read(),
          "steps": [["files", "#files", all[..3]], DONE] },
        { "name": "verify-without-scripts", "dir": dir, "path": "verify.html", "scripts": false, "read": read(), "shots": true },
        { "name": "verify-policy", "dir": dir, "path": "verify.html", "now": AT, "read": read(),
          "steps": [DONE, ["evaluate", html], ["evaluate", elsewhere]] },
    ]);
    let Some(seen) = browse(&visits) else { return };
    let [file, dropped, some, without, policy] = &seen[..] else { panic!("{seen:#?}") };
    assert_eq!(file.good().text("asked"), "Choose the files to check.");
    for seen in [file, dropped] {
        assert!(seen.good().text("verdict").starts_with(PROVED), "{seen:#?}");
        assert_eq!(seen.requests.len(), 1, "{:?}", seen.requests);
    }
    assert!(some.good().text("verdict").starts_with(OPEN), "{some:#?}");
    assert!(without.good().text("verdict").contains("needs JavaScript"), "{without:#?}");
    assert_eq!(without.requests.len(), 1, "{:?}", without.requests);
    assert_eq!(policy.results, [json!("TypeError"), json!("TypeError")]);
    assert_eq!(policy.foreign, [""; 0]);
    let violated = |what: &str| policy.problems.iter().any(|p| p.contains(what));
    assert!(violated("TrustedHTML") && violated("Content Security Policy"), "{policy:#?}");
    // Only files of its folder.
    let names: Vec<&str> = policy.requests.iter().map(|r| r.rsplit('/').next().unwrap()).collect();
    assert!(names.iter().all(|name| files.contains_key(*name)), "{names:?}");
}

/// The page is short enough to be read, has no dependency, and the policy in it has the hashes of its own script and style.
#[test]
fn the_page_is_one_short_file_whose_policy_fits() {
    assert!(VERIFIER.lines().count() < 600, "{}", VERIFIER.lines().count());
    let between = |start: &str, end: &str| {
        let (_, rest) = VERIFIER.split_once(start).unwrap();
        rest.split_once(end).unwrap().0
    };
    let script = between("<script type=\"module\">", "</script>");
    for (directive, text) in [("script-src", script), ("style-src", between("<style>", "</style>"))]
    {
        let expected = format!("{directive} 'sha256-{}';", Hash::of(text.as_bytes()));
        assert!(VERIFIER.contains(&expected), "the policy of verify.html must have {expected}");
    }
    for absent in [
        "innerHTML",
        "eval(",
        "import(",
        "import ",
        "Function(",
        "document.write",
        "//cdn",
        "http://",
    ] {
        assert!(!script.contains(absent), "{absent}");
    }
}

//! The auditor's archive: written from a log with real keys and cosignatures, verified by the library and by the binary.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use wiretight::proof::audit::archive::{self, Damage, File};
use wiretight::proof::audit::check::{self, Checked};
use wiretight::proof::audit::{Evidence, Inputs, LogPart, ProvedPeriod, Window};
use wiretight::proof::controls::Profile;
use wiretight::proof::facts::Facts;
use wiretight_keys::claims::{
    Algorithm, Amount, DAY, HOUR, Levels, MeshPeriod, Modes, NodeCount, Protocol, Release,
};
use wiretight_tlog::cosignature::Algorithm as Kind;
use wiretight_tlog::note::KeyName;
use wiretight_tlog::tree::{self, Node};
use wiretight_tlog::{Checkpoint, Cosigner, Frontier, Hash, LogSigner, Policy, TreeError};

use super::common::{KilledOnDrop, free, say, wait_for};

/// 2025-10-01.
const START: u64 = 1_759_276_800;
/// The export: 2025-11-01, and half a day.
const MADE: u64 = START + 31 * DAY + 43_200;
const SCAN: &str = r#"{"schema":"urn:wiretight:scan-report:1","reports":[
{"target":"db.example:5432","started":"2025-10-01T10:00:00Z","judgement":{"level":"strong","profiles":[{"profile":"pci-dss-4","answer":"yes"}]}},
{"target":"old.example:443","started":"2025-09-05T10:00:00Z","judgement":{"level":"weak","profiles":[{"profile":"pci-dss-4","answer":"no"}]}}]}"#;

fn name(text: &str) -> KeyName {
    KeyName::new(text).unwrap()
}

fn window(days: u64) -> Window {
    let date = |at: u64| {
        let at = jiff::Timestamp::from_second(at as i64).unwrap();
        at.to_zoned_datetime(jiff::tz::TimeZone::UTC).date()
    };
    Window::new(date(START), date(START + (days - 1) * DAY)).unwrap()
}

/// A log whose key and witnesses are real, and what is in it.
struct World {
    signer: LogSigner,
    witnesses: [Cosigner; 2],
    entries: Vec<Vec<u8>>,
}

impl World {
    fn new() -> World {
        let witness = |n: u8, kind| {
            Cosigner::from_seed(name(&format!("witness.example/{n}")), kind, &[n; 32]).unwrap()
        };
        World {
            signer: LogSigner::generate(name("mesh.example/log/0a0b0c0d")).unwrap(),
            witnesses: [witness(1, Kind::Ed25519), witness(2, Kind::MlDsa44)],
            // Other entries of the log.
            entries: (0..100).map(|n| format!("\u{7f}\u{7f}entry {n}").into_bytes()).collect(),
        }
    }

    fn policy(&self, needed: usize) -> String {
        let [a, b] = self.witnesses.each_ref().map(Cosigner::public);
        let log = self.signer.public();
        format!("log {log}\nwitness w0 {a}\nwitness w1 {b}\ngroup two {needed} w0 w1\nquorum two\n")
    }

    /// Logs hours, and each day as the sum of its hours.
    fn log(&mut self, hours: &[MeshPeriod], days: u64) -> Vec<(u64, MeshPeriod)> {
        let mut logged = Vec::new();
        for day in 0..days {
            let day = START + day * DAY;
            let of = hours.iter().filter(|h| h.start / DAY * DAY == day);
            let of: Vec<MeshPeriod> = of.cloned().collect();
            for period in of.iter().chain([&MeshPeriod::day(day, &of)]) {
                logged.push((self.entries.len() as u64, period.clone()));
                self.entries.push(period.entry());
            }
        }
        logged
    }

    /// The part of the log with these periods.
    fn part(&self, logged: &[(u64, MeshPeriod)], cosigned_by: usize) -> LogPart {
        let (mut frontier, mut nodes) = (Frontier::default(), HashMap::new());
        for entry in &self.entries {
            frontier.append(Hash::leaf(entry), |node: Node, hash| {
                nodes.insert((node.level, node.index), hash);
            });
        }
        let (size, root) = (frontier.size(), frontier.root());
        let origin = self.signer.public().name().to_string();
        let checkpoint = Checkpoint { origin, size, root, extensions: Vec::new() };
        let mut signed = checkpoint.sign(&self.signer).unwrap();
        for witness in &self.witnesses[..cosigned_by] {
            signed.add(witness.cosign(&checkpoint, MADE - 5).unwrap());
        }
        let read = |node: Node| Ok::<_, TreeError>(nodes[&(node.level, node.index)]);
        let mut logged: Vec<_> = logged.iter().collect();
        logged.sort_by_key(|(_, p)| (p.start, p.length));
        let periods = logged.into_iter().map(|(index, period)| ProvedPeriod {
            index: *index,
            entry: String::from_utf8(period.entry()[2..].to_vec()).unwrap(),
            proof: tree::inclusion_proof(*index, size, read)
                .unwrap()
                .iter()
                .map(ToString::to_string)
                .collect(),
        });
        let (version, policy) = (1, self.policy(2));
        LogPart { version, checkpoint: signed.to_string(), policy, periods: periods.collect() }
    }

    fn inputs(&self, log: LogPart, days: u64, scans: &[&str]) -> Inputs {
        let mut facts: Facts =
            serde_json::from_str(include_str!("../../src/proof/audit/example.json")).unwrap();
        facts.at = MADE;
        let scans = scans.iter().map(|scan| scan.as_bytes().to_vec()).collect();
        Inputs::new(Evidence { facts, log }, Profile::PciDss4, window(days), scans)
    }
}

fn hour(n: u64) -> MeshPeriod {
    let amount = |connections, bytes| Amount { connections, bytes };
    let levels = Levels {
        unknown: amount(3, 700),
        plaintext: amount(n % 5, 90 * (n % 5)),
        weak: amount(1, 10),
        acceptable: amount(10, 10_000),
        strong: amount(900 + n, 5_000_000 + n),
    };
    let row = |version: &str, key_exchange: &str, cipher: &str, amount| Algorithm {
        version: version.into(),
        key_exchange: key_exchange.into(),
        cipher: cipher.into(),
        post_quantum: key_exchange.ends_with("KEM768"),
        amount,
    };
    MeshPeriod {
        nodes: NodeCount { members: 2, reported: 2 },
        watched_seconds: 7200,
        carried: levels.strong,
        post_quantum: levels.strong,
        modes: Modes {
            strict: 1 + u32::from(n > 400),
            permissive: u32::from(n <= 400),
            ..Modes::default()
        },
        algorithms: vec![
            row("TLS 1.3", "X25519MLKEM768", "TLS_AES_256_GCM_SHA384", levels.strong),
            row("TLS 1.2", "x25519", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", levels.acceptable),
        ],
        protocols: vec![Protocol {
            protocol: "postgres".into(),
            level: "strong".into(),
            amount: levels.strong,
        }],
        releases: vec![Release { version: "0.1.0".into(), nodes: 2 }],
        levels,
        ..MeshPeriod::new(START + n * HOUR, HOUR)
    }
}

fn hours(days: u64) -> Vec<MeshPeriod> {
    (0..days * 24).map(hour).collect()
}

/// A world, and the inputs of an archive of so many days.
fn of_days(days: u64) -> (World, Inputs) {
    let mut world = World::new();
    let logged = world.log(&hours(days), days);
    let part = world.part(&logged, 2);
    let inputs = world.inputs(part, days, &[SCAN]);
    (world, inputs)
}

/// The page of an archive.
pub(crate) fn page() -> Vec<u8> {
    let bytes = of_days(3).1.archive().unwrap();
    archive::read(&bytes).unwrap().get("index.html").unwrap().to_vec()
}

/// Verifies with a policy. Whether the policy accepts the checkpoint, and the rest.
fn verify(bytes: &[u8], policy: &str) -> (bool, Checked) {
    let policy = Policy::parse(policy).unwrap();
    let opened = check::open(bytes);
    let witnessed = opened.checkpoint().and_then(|signed| policy.witnessed(signed).ok());
    let tree = witnessed.as_ref().map(|w| w.checkpoint());
    (tree.is_some(), opened.check(tree))
}

#[track_caller]
fn good(bytes: &[u8], world: &World) -> Checked {
    let (believed, checked) = verify(bytes, &world.policy(2));
    assert!(believed && checked.damage.is_empty(), "{:?}", checked.damage);
    checked
}

/// The only damage.
#[track_caller]
fn damage(bytes: &[u8], world: &World) -> Damage {
    let (_, checked) = verify(bytes, &world.policy(2));
    assert_eq!(checked.damage.len(), 1, "{:?}", checked.damage);
    checked.damage[0].clone()
}

/// The archive with another content of a file, and a manifest that fits.
fn with(bytes: &[u8], name: &str, change: impl Fn(String) -> String) -> Vec<u8> {
    let read = archive::read(bytes).unwrap();
    let files = read.files.iter().filter(|file| file.name != archive::MANIFEST);
    let files = files.map(|file| {
        let text = String::from_utf8(file.bytes.to_vec()).unwrap();
        let text = if file.name == name { change(text) } else { text };
        File { name: file.name.clone(), bytes: text.into_bytes() }
    });
    archive::write(files.collect(), read.time).unwrap()
}

/// Where each file is: its name, its header's place, and its length.
fn places(bytes: &[u8]) -> Vec<(String, usize, usize)> {
    let start = bytes.as_ptr() as usize;
    let read = archive::read(bytes).unwrap();
    let place = |file: &File<&[u8]>| {
        (file.name.clone(), file.bytes.as_ptr() as usize - start - 512, file.bytes.len())
    };
    read.files.iter().map(place).collect()
}

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Files {
        Files { dir: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

/// `wiretight verify`: the exit status, and what it printed.
fn run(archive: &Path, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wiretight"));
    let output = command.arg("verify").arg(archive).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

#[test]
fn a_month_is_verified_offline() {
    let (world, inputs) = of_days(31);
    let bytes = inputs.archive().unwrap();
    assert_eq!(inputs.archive().unwrap(), bytes, "the same facts give the same bytes");
    let files = Files::new();
    let (file, policy) = (files.write("month.tar", &bytes), files.write("policy", world.policy(2)));
    let policy = policy.display().to_string();
    let start = Instant::now();
    let (code, text) = run(&file, &["--policy", &policy]);
    say(format!("an archive of a month: {} bytes, verified in {:?}", bytes.len(), start.elapsed()));
    assert_eq!(code, 0, "{text}");
    for part in [
        "744 hours and 31 days of totals are entries of the log mesh.example/log/0a0b0c0d",
        "31 of the days are the sums of their hours",
        "cosigned by w0",
        "index.html, controls.json, totals.json",
        "not verified: that nodes counted correctly",
        "not verified: the results of 1 reports of scans",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (code, json) = run(&file, &["--policy", &policy, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json[0]["kind"], &json[0]["good"]), (0, &"archive".into(), &true.into()));
    assert_eq!((&json[0]["missing"], &json[0]["damaged"]), (&().into(), &().into()));
    // Too old, and without a policy of the auditor's.
    let (code, text) = run(&file, &["--policy", &policy, "--max-age", "1s"]);
    assert!(code == 1 && text.contains("cosigned the checkpoint"), "{text}");
    let (code, text) = run(&file, &[]);
    assert!(code == 3 && text.contains("compared with its own"), "{text}");
    assert!(!text.contains("  verified:"), "{text}");
    // A damaged file is named, also to scripts.
    let (_, place, _) = places(&bytes).into_iter().find(|(name, ..)| name == "nodes.json").unwrap();
    let mut flipped = bytes;
    flipped[place + 512 + 20] ^= 1;
    let (code, text) = run(&files.write("flipped.tar", flipped), &["--policy", &policy]);
    assert!(code == 1 && text.contains("damaged: nodes.json: it does not match"), "{text}");
    let (code, text) = run(&files.write("short.tar", "short"), &["--policy", &policy]);
    assert!(code == 1 && text.contains("damaged: archive: it ends too early"), "{text}");
}

#[test]
fn a_policy_that_does_not_fit_is_a_refusal() {
    let (world, inputs) = of_days(1);
    let files = Files::new();
    let file = files.write("day.tar", inputs.archive().unwrap());
    let refused = |policy: String, words: &str| {
        let policy = files.write("policy", policy).display().to_string();
        let (code, text) = run(&file, &["--policy", &policy]);
        assert!(code == 1 && text.contains("refused") && text.contains(words), "{text}");
        assert!(!text.contains("entries of the log"), "nothing is proved: {text}");
    };
    let other = World::new();
    refused(other.policy(1), "no log in the policy signed the checkpoint");
    // Witnesses of another policy, and too few cosignatures.
    let [own, stranger] = [&world.signer, &other.signer].map(|s| s.public().to_string());
    assert_ne!(own, stranger);
    let third = Cosigner::from_seed(name("witness.example/3"), Kind::Ed25519, &[3; 32]).unwrap();
    refused(
        world.policy(2).replace(
            "group two 2 w0 w1",
            &format!("witness w2 {}\ngroup two 3 w0 w1 w2", third.public()),
        ),
        "2 of the policy's witnesses cosigned the checkpoint, which is not a quorum",
    );
    let mut few = World::new();
    let logged = few.log(&hours(1), 1);
    let inputs = few.inputs(few.part(&logged, 1), 1, &[]);
    let file = files.write("few.tar", inputs.archive().unwrap());
    let policy = files.write("policy", few.policy(2)).display().to_string();
    let (code, text) = run(&file, &["--policy", &policy]);
    assert!(code == 1 && text.contains("1 of the policy's witnesses"), "{text}");
    // One witness is enough if the auditor says so.
    let policy = files.write("policy", few.policy(1)).display().to_string();
    assert_eq!(run(&file, &["--policy", &policy]).0, 0);
}

#[test]
fn a_flipped_bit_is_named_wherever_it_is() {
    let (world, inputs) = of_days(1);
    let bytes = inputs.archive().unwrap();
    good(&bytes, &world);
    let places = places(&bytes);
    let end = bytes.len();
    // All classes of places: headers, contents, padding, the end; about a thousand of each file.
    let mut places_of_flips = Vec::new();
    for (n, (_, at, len)) in places.iter().enumerate() {
        let next = places.get(n + 1).map_or(end, |(_, next, _)| *next);
        places_of_flips.extend((*at..at + 512).step_by(13));
        places_of_flips.extend((at + 512..at + 512 + len).step_by(len / 80 + 1));
        places_of_flips.extend((at + 512 + len..next).step_by(61));
    }
    for at in places_of_flips {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        let (believed, checked) = verify(&flipped, &world.policy(2));
        let (name, start, len) = places.iter().rfind(|(_, start, _)| *start <= at).unwrap();
        let before =
            places.iter().rfind(|(_, other, _)| other < start).map(|(name, ..)| name.as_str());
        assert!(!checked.damage.is_empty(), "byte {at} of {name}, believed: {believed}");
        let named = |damage: &Damage| {
            let in_header = at < start + 512;
            let after = *name == archive::MANIFEST && at >= start + 512 + len;
            damage.file == *name
                // A name that was changed is found behind the file before.
                || in_header && damage.what.contains(before.unwrap_or("the start"))
                || after && damage.file == "archive"
                // A hash in the manifest.
                || *name == archive::MANIFEST && damage.what.contains("manifest")
        };
        assert!(checked.damage.iter().any(named), "byte {at} of {name}: {:?}", checked.damage);
    }
}

#[test]
fn a_flipped_bit_in_the_log_part_names_the_hour() {
    let (world, inputs) = of_days(1);
    let bytes = inputs.archive().unwrap();
    let (_, at, len) = places(&bytes).into_iter().find(|(name, ..)| name == "log.json").unwrap();
    let text = String::from_utf8(bytes[at + 512..at + 512 + len].to_vec()).unwrap();
    // The entry of the hour 05:00, from its start to the end of its proof.
    let start = START + 5 * HOUR;
    let place = text.find(&format!(r#"\"start\":{start},"#)).unwrap();
    let end = place + text[place..].find("]}").unwrap();
    let (mut named, mut all) = (0, 0);
    for n in (place..end).step_by(5) {
        let mut flipped = bytes.clone();
        flipped[at + 512 + n] ^= 1 << (n % 7);
        let (_, checked) = verify(&flipped, &world.policy(2));
        let of_log: Vec<_> = checked.damage.iter().filter(|d| d.file == "log.json").collect();
        assert!(!of_log.is_empty(), "byte {n}");
        let period = of_log.iter().find_map(|d| d.period.clone());
        let hour = period.unwrap_or_else(|| panic!("byte {n}: {of_log:?}"));
        let exact = hour == "hour 2025-10-01T05:00:00Z";
        // If its own time is damaged, by the one before.
        assert!(exact || hour == "after the hour 2025-10-01T04:00:00Z", "byte {n}: {hour}");
        named += usize::from(exact);
        all += 1;
    }
    assert!(all > 100 && named > all * 9 / 10, "{named} of {all}");
}

/// Whoever changes a file can change the manifest too.
#[test]
fn a_changed_number_is_found_with_a_manifest_that_fits() {
    let (world, inputs) = of_days(1);
    let bytes = inputs.archive().unwrap();
    assert_eq!(with(&bytes, "none", |text| text), bytes, "control");
    let found = |name: &str, from: &str, to: &str| {
        let changed = with(&bytes, name, |text| {
            assert!(text.contains(from), "{name} lacks {from}");
            text.replacen(from, to, 1)
        });
        damage(&changed, &world)
    };
    let lie = "it does not show what the other files contain";
    for (name, from, to) in [
        ("index.html", "plaintext", "Plaintext"),
        ("totals.json", r#""watched_seconds":"#, r#""watched_seconds":9"#),
        ("modes.json", r#""strict":"#, r#""strict":1"#),
        ("exceptions.json", "net & ops", "net & cops"),
        ("nodes.json", "db1", "db2"),
        ("policy", "group two 2", "group two 1"),
    ] {
        let damage = found(name, from, to);
        assert_eq!((damage.file.as_str(), damage.what.as_str()), (name, lie));
    }
    let entry = found(
        "log.json",
        r#"{\"unknown\":{\"connections\":3"#,
        r#"{\"unknown\":{\"connections\":2"#,
    );
    assert_eq!(entry.period.as_deref(), Some("hour 2025-10-01T00:00:00Z"));
    assert!(entry.what.contains("it is not entry 100 of the log"), "{entry}");
    let moved = found("log.json", r#""index":101,"#, r#""index":102,"#);
    assert!(moved.what.contains("it is not entry 102 of the log"), "{moved}");
    let scan = with(&bytes, "scans/001.json", |text| text.replace("weak", "strong"));
    let (_, checked) = verify(&scan, &world.policy(2));
    let names: Vec<&str> = checked.damage.iter().map(|d| d.file.as_str()).collect();
    assert_eq!(names, ["index.html", "controls.json"]);
    // The operator's word can be changed by the operator, who then writes everything anew. It is never called verified.
    let mut other = inputs.clone();
    other.facts.nodes.clear();
    let checked = good(&other.archive().unwrap(), &world);
    assert!(checked.word.iter().any(|line| line.contains("facts.json")), "{:?}", checked.word);
}

#[test]
fn hours_without_totals_are_named() {
    let mut world = World::new();
    let mut all = hours(3);
    // Nobody reported at 07:00 of the first day; only one node at 08:00.
    all[7] = MeshPeriod {
        nodes: NodeCount { members: 2, reported: 0 },
        ..MeshPeriod::new(START + 7 * HOUR, HOUR)
    };
    all[8].nodes.reported = 1;
    // 03:00 to 05:00 of the second day were not logged.
    all.retain(|hour| !(27..29).contains(&((hour.start - START) / HOUR)));
    let logged = world.log(&all, 3);
    let missing = |logged: &[(u64, MeshPeriod)]| {
        let inputs = world.inputs(world.part(logged, 2), 3, &[]);
        good(&inputs.archive().unwrap(), &world).missing
    };
    assert_eq!(
        missing(&logged),
        [
            "totals of 2 hours from 2025-10-02T03:00:00Z to 2025-10-02T05:00:00Z: nothing is logged",
            "totals of the hour 2025-10-01T07:00:00Z: logged without any node",
            "totals of some nodes in 1 hours: fewer nodes reported than there were members",
        ]
    );
    // The operator leaves out an hour that is in the log: the day's entry has more.
    let kept: Vec<_> =
        logged.iter().filter(|(_, p)| p.start != START + 50 * HOUR).cloned().collect();
    let found = missing(&kept);
    assert!(found[0].starts_with("hours of the day 2025-10-03 that the log has"), "{found:?}");
    assert!(
        found.iter().any(|m| m.contains("the hour 2025-10-03T02:00:00Z: nothing is logged")),
        "{found:?}"
    );
    // And the day too.
    let kept: Vec<_> = kept
        .into_iter()
        .filter(|(_, p)| p.start / DAY * DAY != START + 2 * DAY || p.length == HOUR)
        .collect();
    let found = missing(&kept);
    assert!(found.contains(&"the entry of the day 2025-10-03".to_owned()), "{found:?}");
    // Only days: the hours are no longer kept.
    let days: Vec<_> = logged.iter().filter(|(_, p)| p.length == DAY).cloned().collect();
    assert_eq!(missing(&days), Vec::<String>::new());
    let inputs = world.inputs(world.part(&days, 2), 3, &[]);
    let checked = good(&inputs.archive().unwrap(), &world);
    assert!(checked.word.iter().any(|w| w.contains("which hours of 3 days have no totals")));
    // Nothing at all.
    assert_eq!(
        missing(&[]),
        ["totals of 72 hours from 2025-10-01T00:00:00Z to 2025-10-04T00:00:00Z: nothing is logged"]
    );
    let files = Files::new();
    let file =
        files.write("gaps.tar", world.inputs(world.part(&logged, 2), 3, &[]).archive().unwrap());
    let policy = files.write("policy", world.policy(2)).display().to_string();
    let (code, text) = run(&file, &["--policy", &policy]);
    assert!(code == 3 && text.contains("missing: totals of 2 hours from"), "{text}");
}

#[test]
fn a_log_that_contradicts_itself_is_refused() {
    let mut world = World::new();
    let mut logged = world.log(&hours(1), 1);
    let day = logged.pop().unwrap().1;
    let mut lies = |change: &dyn Fn(&mut MeshPeriod)| {
        let mut lie = day.clone();
        change(&mut lie);
        let all = [&logged[..], &[(world.entries.len() as u64, lie.clone())]].concat();
        world.entries.push(lie.entry());
        damage(&world.inputs(world.part(&all, 2), 1, &[]).archive().unwrap(), &world)
    };
    let plaintext = lies(&|day| day.levels.plaintext = Amount::default());
    assert_eq!(plaintext.what, "the day's entry contradicts its hours");
    assert_eq!(plaintext.period.as_deref(), Some("day 2025-10-01"));
    assert_eq!(lies(&|day| day.modes.strict += 1).what, plaintext.what);
    assert_eq!(lies(&|day| day.watched_seconds -= 1).what, plaintext.what);
    // An hour twice, and one after the export.
    let mut part = world.part(&logged, 2);
    part.periods.insert(3, part.periods[2].clone());
    let twice = damage(&world.inputs(part, 1, &[]).archive().unwrap(), &world);
    assert!(twice.what.contains("it is there twice"), "{twice}");
    let part = world.part(&logged[..5], 2);
    let mut outside = world.inputs(part, 1, &[]);
    outside.head.made = START + 4 * HOUR;
    outside.facts.at = START + 4 * HOUR;
    let outside = damage(&outside.archive().unwrap(), &world);
    assert!(outside.what.contains("ends after the export"), "{outside}");
}

#[test]
fn other_versions_are_told_apart() {
    let (world, inputs) = of_days(1);
    let bytes = inputs.archive().unwrap();
    let head = |from: &str, to: &str| {
        with(&bytes, "audit.json", |text| {
            assert!(text.contains(from));
            text.replacen(from, to, 1)
        })
    };
    let newer = damage(&head(r#"{"version":1"#, r#"{"version":2"#), &world);
    assert!(
        newer.file == "audit.json" && newer.what.contains("version 2 of the format"),
        "{newer}"
    );
    assert!(
        damage(&head("wiretight-audit", "other"), &world).what.contains("no archive of an audit")
    );
    damage(&head(r#""from":"2025-10-01""#, r#""from":"1025-10-01""#), &world);
    damage(&head(r#""profile":"pci-dss-4""#, r#""profile":"pci-dss-9""#), &world);
    // Another release of the same format: proofs are verified, computed files are not.
    let program = format!(r#""program":"{}""#, env!("CARGO_PKG_VERSION"));
    let other = head(&program, r#""program":"0.0.9""#);
    let other = with(&other, "index.html", |_| "<p>an older page".into());
    let checked = good(&other, &world);
    assert!(checked.verified.iter().any(|v| v.contains("24 hours and 1 days")));
    assert!(!checked.verified.iter().any(|v| v.contains("index.html")));
    assert!(
        checked.word.iter().any(|w| w.contains("release 0.0.9 wrote them")),
        "{:?}",
        checked.word
    );
}

#[test]
fn hostile_archives_are_refused() {
    let (world, inputs) = of_days(1);
    let bytes = inputs.archive().unwrap();
    let refused = |bytes: &[u8], words: &str| {
        let found = damage(bytes, &world);
        assert!(found.to_string().contains(words), "{found}");
    };
    // A member more, in front.
    let more = |change: &dyn Fn(&mut tar::Header), content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_path("a.json").unwrap();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(MADE);
        header.set_entry_type(tar::EntryType::Regular);
        change(&mut header);
        header.set_cksum();
        let mut all = header.as_bytes().to_vec();
        all.extend_from_slice(content);
        all.resize(all.len().next_multiple_of(512), 0);
        [all, bytes.clone()].concat()
    };
    // Control: a regular one is read, and only the manifest does not know it.
    assert_eq!(damage(&more(&|_| {}, b"{}"), &world).file, "a.json");
    let header = "is not as an archive has it";
    let raw_name = |name: &[u8]| {
        let name = name.to_vec();
        move |header: &mut tar::Header| {
            let field = &mut header.as_mut_bytes()[..100];
            field.fill(0);
            field[..name.len()].copy_from_slice(&name);
        }
    };
    for name in [
        "../a",
        "/etc/passwd",
        "scans/../../a",
        "scans//a",
        "a\\b",
        "a b",
        ".",
        "\u{1b}[2J",
        "",
        "a/",
    ] {
        refused(&more(&raw_name(name.as_bytes()), b"{}"), header);
    }
    refused(&more(&raw_name(&[b'a'; 100]), b"{}"), header);
    use tar::EntryType as Type;
    for kind in [
        Type::Symlink,
        Type::Link,
        Type::Directory,
        Type::Fifo,
        Type::Char,
        Type::GNUSparse,
        Type::GNULongName,
        Type::XHeader,
        Type::XGlobalHeader,
        Type::Continuous,
    ] {
        refused(&more(&|h| h.set_entry_type(kind), b"{}"), header);
    }
    refused(&more(&|h| h.set_mode(0o4755), b"{}"), header);
    refused(&more(&|h| h.set_uid(7), b"{}"), header);
    refused(&more(&|h| h.set_mtime(MADE + 1), b"{}"), header);
    refused(&more(&|h| h.set_size(u64::MAX), b"{}"), header);
    refused(&more(&|h| h.set_size(8 << 30), b"{}"), header);
    refused(&more(&|h| h.set_size(100 << 20), b"{}"), "ends within this file");
    // GNU's binary numbers, and numbers in another form.
    refused(
        &more(
            &|h| {
                h.as_mut_bytes()[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2])
            },
            b"{}",
        ),
        header,
    );
    refused(
        &more(&|h| h.as_mut_bytes()[124..136].copy_from_slice(b"          2\0"), b"{}"),
        header,
    );
    let mut many = Vec::new();
    for n in 0..200 {
        many.extend_from_slice(&more(&raw_name(format!("{n:03}").as_bytes()), b"")[..512]);
    }
    refused(&many, "more files than an archive may have");
    let one = more(&|_| {}, b"{}")[..1024].to_vec();
    refused(&[one.clone(), one].concat(), "two files of this name");
    for cut in (0..bytes.len()).step_by(512) {
        assert!(!verify(&bytes[..cut], &world.policy(2)).1.damage.is_empty(), "cut at {cut}");
    }
    refused(&[&bytes[..], b"\0"].concat(), "not the end of an archive");
    refused(&[&bytes[..], &bytes[..]].concat(), "not the end of an archive");
    refused(&[], "it ends too early");
    // Deep and large JSON.
    let deep = |_: String| "[".repeat(100_000);
    for name in ["audit.json", "log.json", "facts.json"] {
        assert_eq!(damage(&with(&bytes, name, deep), &world).file, name);
    }
}

#[test]
fn scans_are_counted_for_the_profile() {
    let (world, inputs) = of_days(1);
    let bytes = inputs.archive().unwrap();
    good(&bytes, &world);
    let read = archive::read(&bytes).unwrap();
    let controls = String::from_utf8(read.get("controls.json").unwrap().to_vec()).unwrap();
    for part in [
        "2 endpoints in 1 reports; 1 of them are below the level acceptable",
        "1 meet it as far as a scan can check, 1 do not, 0 are open",
        "Not met by old.example:443.",
        "1 were scanned before or after the period.",
    ] {
        assert!(controls.contains(part), "{part}: {controls}");
    }
    assert!(wiretight::proof::audit::is_scan(SCAN.as_bytes()));
    assert!(!wiretight::proof::audit::is_scan(b"{}"));
    // What nodes and scans say is text, not markup.
    let page = String::from_utf8(read.get("index.html").unwrap().to_vec()).unwrap();
    assert!(page.contains("syslog &lt;until&gt; the new collector") && !page.contains("<until>"));
    assert!(!page.contains("<script") && page.contains("default-src 'none'"));
}

/// A new authority has logged nothing, and says so.
#[test]
fn a_running_authority_exports_an_archive() {
    let files = Files::new();
    let [state, config] = ["state", "wiretight.toml"].map(|name| files.dir.path().join(name));
    let ports = [free(), free()];
    let text = format!(
        "[node]\nname = \"auth1\"\ntrust_domain = \"example.org\"\nstate_dir = {state:?}\n\
         admin = \"{}\"\n[authority]\nlisten = \"{}\"\n",
        ports[0], ports[1]
    );
    std::fs::write(&config, text).unwrap();
    let wiretight = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wiretight"));
        command.args(arguments).arg("--config").arg(&config);
        command
    };
    let logs = std::fs::File::create(files.dir.path().join("log")).unwrap();
    let _node = KilledOnDrop(wiretight(&["run"]).stderr(logs).spawn().unwrap());
    wait_for("the authority runs", || {
        wiretight(&["authority", "status"]).output().unwrap().status.success()
    });
    let archive = files.dir.path().join("audit.tar").display().to_string();
    let export = |from: &str, to: &str, more: &[&str]| {
        let fixed =
            ["audit", "export", "--from", from, "--to", to, "--profile", "iso-27001", &archive];
        let output = wiretight(&[&fixed[..], more].concat()).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    };
    let yesterday = jiff::Timestamp::from_second(wiretight_proxy::clock::now() as i64 - DAY as i64);
    let yesterday =
        yesterday.unwrap().to_zoned_datetime(jiff::tz::TimeZone::UTC).date().to_string();
    let day = yesterday.as_str();
    assert_eq!(export("2026-01-02", "2026-01-01", &[]).0, 2);
    assert_eq!(export("2024-01-01", "2026-01-01", &[]).0, 2);
    let scan = files.write("scan.json", "{}").display().to_string();
    let (code, text) = export(day, day, &["--scan", &scan]);
    assert!(code == 1 && text.contains("is not a report of `wiretight scan --json`"), "{text}");
    assert!(!Path::new(&archive).exists());
    let (code, text) = export(day, day, &[]);
    assert!(code == 0 && text.contains("missing: totals of 24 hours"), "{text}");
    let before = std::fs::read(&archive).unwrap();
    let (code, text) = export(day, day, &[]);
    assert!(code == 1 && text.contains("exists"), "{text}");
    assert_eq!(std::fs::read(&archive).unwrap(), before);
    let scan = files.write("scan.json", SCAN).display().to_string();
    let (code, json) = export(day, day, &["--force", "--scan", &scan, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json["profile"]), (0, &"iso-27001".into()));
    // Only the archive and what was there before: no half-written file.
    assert_eq!(std::fs::read_dir(files.dir.path()).unwrap().count(), 5);
    let key = wiretight(&["authority", "log-key"]).output().unwrap().stdout;
    let policy = format!("log {}quorum none\n", String::from_utf8(key).unwrap());
    let policy = files.write("policy", policy).display().to_string();
    let (code, text) = run(Path::new(&archive), &["--policy", &policy]);
    assert!(code == 3 && text.contains("the policy requires no witnesses"), "{text}");
}

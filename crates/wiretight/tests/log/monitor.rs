//! The monitor: it reports every kind of problem that it exists for, and nothing else.

use std::path::PathBuf;
use std::process::Output;

use wiretight_keys::claims::{HOUR, MeshPeriod};
use wiretight_keys::logged::Entry;
use wiretight_keys::token::hex;
use wiretight_keys::{Period, Profile, Signer, SigningKey, Tbs};

use super::rig::{
    Hook, Log, cosigner, now, policy, serve, stderr, stdout, wait_for, wiretight, write,
};

/// An entry for a certificate of `service/NAME`, and the hash of its key.
pub fn certificate(service: &str) -> (Vec<u8>, String) {
    issue(&Profile::Leaf(format!("spiffe://example.org/service/{service}").parse().unwrap()))
}

fn issue(profile: &Profile) -> (Vec<u8>, String) {
    let key = SigningKey::generate().unwrap();
    let period = Period { not_before: now(), not_after: now() + 3600 };
    let tbs = Tbs::new(profile, &key.public_key(), period, [7; 16], None, key.algorithm()).unwrap();
    let entry = tbs.entry().unwrap();
    let Ok(Entry::Certificate(read)) = Entry::parse(&entry) else { panic!("our own entry") };
    (entry, hex(&read.key))
}

/// A log that two witnesses cosign, published, and a monitor of it.
pub struct World {
    pub dir: tempfile::TempDir,
    pub log: Log,
    pub hook: Hook,
    pub url: String,
}

impl World {
    pub fn new(size: usize) -> World {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::of("log.example/a", size);
        let witnesses = [cosigner(0), cosigner(1)];
        write(dir.path(), "policy", policy(&log, &[&witnesses[0], &witnesses[1]]));
        let url = format!("http://{}", serve(dir.path().join("log")));
        let world = World { hook: Hook::start(), dir, log, url };
        world.publish(&world.log, size, now());
        world
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Publishes this log from now on.
    pub fn publish(&self, log: &Log, size: usize, time: u64) {
        let dir = self.dir.path().join("log");
        let _ = std::fs::remove_dir_all(&dir);
        log.publish(&dir, &log.cosigned(size, &[&cosigner(0), &cosigner(1)], time));
    }

    /// Another log, cosigned by the same witnesses.
    pub fn cosign_and_publish(&self, log: &Log, dir: &std::path::Path, size: usize) {
        log.publish(dir, &log.cosigned(size, &[&cosigner(0), &cosigner(1)], now()));
    }

    pub fn look(&self, more: &[&str]) -> Output {
        let hook = format!("http://{}/hook", self.hook.addr);
        let (policy, state) = (self.path("policy"), self.path("state"));
        let args = [
            "monitor",
            "--once",
            "--policy",
            &policy,
            "--url",
            &self.url,
            "--state",
            &state,
            "--webhook",
            &hook,
        ];
        wiretight(&[&args, more].concat())
    }

    #[track_caller]
    pub fn quiet(&self, more: &[&str]) {
        let output = self.look(more);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(self.hook.bodies().is_empty());
    }

    /// Expects one alert of this kind, in the log and at the webhook.
    #[track_caller]
    pub fn alert(&self, kind: &str, more: &[&str]) -> serde_json::Value {
        let output = self.look(more);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains(&format!("\"alert\":\"{kind}\"")), "{}", stderr(&output));
        let bodies = self.hook.bodies();
        assert_eq!(bodies.len(), 1, "{bodies:?}");
        assert_eq!(bodies[0]["kind"], kind, "{bodies:?}");
        assert_eq!(bodies[0]["log"], "log.example/a");
        bodies[0].clone()
    }

    pub fn rows(&self) -> Vec<serde_json::Value> {
        let listed = wiretight(&["monitor", "list", "--state", &self.path("state"), "--json"]);
        serde_json::from_str(&stdout(&listed)).unwrap()
    }
}

#[test]
fn a_regular_log_raises_no_alert() {
    let mut world = World::new(300);
    world.quiet(&[]);
    world.quiet(&[]);
    for size in [301, 511, 512, 513, 1024, 1200] {
        world.log = world.log.forked(world.log.entries.len(), size);
        world.publish(&world.log, size, now());
        world.quiet(&[]);
        let rows = world.rows();
        assert_eq!(rows.len(), size);
        assert!(
            rows.iter().enumerate().all(|(n, row)| row["index"] == n && row["type"] == "other")
        );
    }
}

#[test]
fn a_second_claim_about_the_same_hour_is_reported() {
    let mut world = World::new(3);
    let hour = |start, bytes| {
        let mut hour = MeshPeriod::new(start, HOUR);
        hour.levels.strong.bytes = bytes;
        hour.entry()
    };
    // The same bytes twice, as after a crash, are not a contradiction.
    world.log.entries.extend([hour(2 * HOUR, 5), hour(2 * HOUR, 5), hour(HOUR, 6)]);
    world.publish(&world.log, 6, now());
    world.quiet(&[]);
    // The first entry is known from an earlier run.
    world.log.entries.push(hour(2 * HOUR, 6));
    world.publish(&world.log, 7, now());
    let alert = world.alert("contradictory-claim", &[]);
    assert_eq!(alert["index"], 6);
}

#[test]
fn an_unexpected_certificate_is_reported() {
    let mut world = World::new(3);
    let (mine, my_key) = certificate("db");
    world.log.entries.push(mine);
    let expect = write(world.dir.path(), "expect", format!("service/db sha256:{my_key}\n"))
        .display()
        .to_string();
    let args = ["--watch", "service/db", "--expect", &expect];
    world.publish(&world.log, 4, now());
    world.quiet(&args);
    // A certificate for a name that is not watched.
    world.log.entries.push(certificate("web").0);
    world.publish(&world.log, 5, now());
    world.quiet(&args);
    let (stolen, other_key) = certificate("db");
    world.log.entries.push(stolen);
    world.publish(&world.log, 6, now());
    let alert = world.alert("unexpected-certificate", &args);
    assert_eq!((&alert["index"], &alert["key"]), (&5.into(), &other_key.as_str().into()));
    assert_eq!(alert["name"], "spiffe://example.org/service/db");
    world.quiet(&args); // reported once
    // A CA certificate can be used for any name.
    world.log.entries.push(issue(&Profile::Intermediate("example.org".parse().unwrap())).0);
    world.publish(&world.log, 7, now());
    assert_eq!(world.alert("unexpected-certificate", &args)["index"], 6);
    let listed =
        wiretight(&["monitor", "list", "--state", &world.path("state"), "--watch", "service/db"]);
    let listed = stdout(&listed);
    assert!(
        listed.contains(&my_key)
            && listed.contains(&other_key)
            && listed.matches("certificate ").count() == 2,
        "{listed}"
    );
}

#[test]
fn with_only_a_list_every_name_is_watched() {
    let mut world = World::new(0);
    let (db, db_key) = certificate("db");
    let (web, _) = certificate("web");
    world.log.entries.push(db);
    let expect = write(world.dir.path(), "expect", format!("service/db sha256:{db_key}\n"))
        .display()
        .to_string();
    world.publish(&world.log, 1, now());
    world.quiet(&["--expect", &expect]);
    world.log.entries.push(web);
    world.publish(&world.log, 2, now());
    let alert = world.alert("unexpected-certificate", &["--expect", &expect]);
    assert_eq!(alert["name"], "spiffe://example.org/service/web");
    // Without a list of expected keys.
    let bad = world.look(&["--expect", &world.path("nothing-there")]);
    assert_eq!(bad.status.code(), Some(1), "{}", stderr(&bad));
}

#[test]
fn an_entry_with_an_invalid_certificate_is_reported() {
    let mut world = World::new(3);
    world.quiet(&[]);
    world.log.entries.push(b"\0\x01no certificate".to_vec());
    world.publish(&world.log, 4, now());
    assert_eq!(world.alert("malformed-entry", &[])["index"], 3);
    world.quiet(&[]);
    assert_eq!(world.rows()[3]["type"], "malformed");
}

#[test]
fn a_fork_is_reported_each_time_and_the_first_history_is_kept() {
    let world = World::new(300);
    world.quiet(&[]);
    let grown = world.log.forked(300, 400);
    for (fork, size) in [
        (world.log.forked(299, 300), 300),
        (world.log.forked(299, 400), 400),
        (world.log.forked(0, 700), 700),
    ] {
        world.publish(&fork, size, now());
        let alert = world.alert("fork", &[]);
        let evidence = std::fs::read_to_string(alert["evidence"].as_str().unwrap()).unwrap();
        for root in [world.log.checkpoint(300).root, fork.checkpoint(size).root] {
            assert!(evidence.contains(&root.to_string()), "{evidence}");
        }
        assert_eq!(world.alert("fork", &[])["evidence"], serde_json::Value::Null, "kept already");
        assert_eq!(world.rows().len(), 300);
    }
    world.publish(&grown, 400, now());
    world.quiet(&[]);
}

#[test]
fn a_shrinking_log_is_reported() {
    let world = World::new(300);
    world.quiet(&[]);
    world.publish(&world.log, 299, now());
    world.alert("rollback", &[]);
    world.publish(&world.log, 300, now());
    world.quiet(&[]);
}

#[test]
fn a_silent_log_is_reported() {
    let world = World::new(9);
    world.publish(&world.log, 9, now() - 100);
    world.quiet(&["--max-silence", "200s"]);
    world.alert("stalled", &["--max-silence", "50s"]);
    // It was cosigned again without new entries.
    world.publish(&world.log, 9, now());
    world.quiet(&["--max-silence", "50s"]);
    // It cannot be reached: the exit status tells, and later an alert for silence.
    std::fs::remove_dir_all(world.dir.path().join("log")).unwrap();
    let output = world.look(&[]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("\"alert\":\"blind\""), "{}", stderr(&output));
    assert_eq!(world.hook.bodies()[0]["kind"], "blind");
    std::thread::sleep(std::time::Duration::from_secs(2));
    world.alert("stalled", &["--max-silence", "1s"]);
}

#[test]
fn entries_that_the_witnesses_have_not_seen_are_reported() {
    let world = World::new(9);
    world.quiet(&[]);
    let dir = world.dir.path().join("log");
    let grown = world.log.forked(9, 12);
    grown.publish(&dir, &grown.cosigned(12, &[&cosigner(0)], now()));
    world.alert("not-witnessed", &[]);
    let stranger = Log::of("log.example/a", 12);
    stranger.publish(&dir, &stranger.cosigned(12, &[&cosigner(0), &cosigner(1)], now()));
    world.alert("not-witnessed", &[]);
    world.publish(&grown, 12, now());
    world.quiet(&[]);
}

#[test]
fn files_that_do_not_match_the_checkpoint_are_reported_and_not_used() {
    let mut world = World::new(300);
    world.quiet(&[]);
    world.log = world.log.forked(300, 700);
    for file in ["tile/entries/001", "tile/0/002.p/188", "tile/1/000.p/2"] {
        world.publish(&world.log, 700, now());
        let path: PathBuf = world.dir.path().join("log").join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[40] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        world.alert("damaged", &[]);
        assert_eq!(world.rows().len(), 300);
    }
    world.publish(&world.log, 700, now());
    world.quiet(&[]);
    assert_eq!(world.rows().len(), 700);
}

#[test]
fn a_truncated_or_damaged_table_is_rebuilt() {
    let world = World::new(300);
    world.quiet(&[]);
    let (file, rows) = (world.dir.path().join("state/entries.jsonl"), world.rows());
    let good = std::fs::read(&file).unwrap();
    let mut damaged = good.clone();
    damaged[good.len() / 2] = b'\n';
    for bad in [
        &good[..good.len() - 9],
        &good[..good.len() / 3],
        b"",
        &damaged,
        &[&good[..], b"{\"index\":300"].concat(),
    ] {
        std::fs::write(&file, bad).unwrap();
        world.quiet(&[]);
        assert_eq!(std::fs::read(&file).unwrap(), good);
    }
    assert_eq!(world.rows(), rows);
    // The checkpoint cannot be rebuilt, as it is the record of what was seen.
    let checkpoint = world.dir.path().join("state/checkpoint");
    std::fs::write(&checkpoint, "torn").unwrap();
    let output = world.look(&[]);
    assert!(stderr(&output).contains("is damaged"), "{}", stderr(&output));
}

#[test]
fn the_monitor_keeps_running_until_it_is_stopped() {
    let world = World::new(9);
    let (policy, state, log) = (world.path("policy"), world.path("state"), world.path("stderr"));
    let mut child = std::process::Command::new(super::rig::BINARY)
        .args([
            "monitor",
            "--policy",
            &policy,
            "--url",
            &world.url,
            "--state",
            &state,
            "--interval",
            "1s",
        ])
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let said = |text: &str| std::fs::read_to_string(&log).unwrap().contains(text);
    wait_for("the first look", || said("\"new\":9"));
    let refused = world.look(&[]);
    assert!(stderr(&refused).contains("another monitor is running"), "{}", stderr(&refused));
    let grown = world.log.forked(9, 30);
    world.publish(&grown, 30, now());
    wait_for("the second look", || said("\"new\":21"));
    world.publish(&world.log.forked(5, 40), 40, now());
    wait_for("the alert", || said("\"alert\":\"fork\""));
    let pid = child.id().to_string();
    std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    assert!(child.wait().unwrap().success());
}

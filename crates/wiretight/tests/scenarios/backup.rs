//! `wiretight authority backup` and `restore`, while the authority issues certificates, with and without witnesses.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use super::rig::*;
use super::transparency::{WitnessProcess, witnesses};

/// The number of rounds: `usual`, unless `WIRETIGHT_BACKUP_ROUNDS` is set.
fn rounds(usual: u64) -> u64 {
    let rounds = std::env::var("WIRETIGHT_BACKUP_ROUNDS").ok();
    rounds.map_or(usual, |n| n.parse().expect("WIRETIGHT_BACKUP_ROUNDS is a number"))
}

/// Nodes request certificates as fast as they get them, until this is dropped.
fn issuing<T>(nodes: &[&Node], during: impl FnOnce() -> T) -> T {
    let done = &AtomicBool::new(false);
    thread::scope(|scope| {
        for node in nodes {
            scope.spawn(move || {
                while !done.load(Relaxed) {
                    // It fails while the authority is down.
                    let _ = node.http("POST", "/v1/renew", "null");
                    thread::sleep(ms(10));
                }
            });
        }
        let result = during();
        done.store(true, Relaxed);
        result
    })
}

fn backup(auth: &Node, to: &Path) {
    auth.cli(&["authority", "backup", to.to_str().unwrap()]).good();
}

fn restore(auth: &Node, from: &Path, log: Option<&Path>) -> Ran {
    let mut args = vec!["authority", "restore", from.to_str().unwrap(), "--json"];
    args.extend(log.iter().flat_map(|log| ["--log", log.to_str().unwrap()]));
    auth.cli(&args)
}

fn log_of(auth: &Node) -> PathBuf {
    auth.state().join("authority/log")
}

fn size(auth: &Node) -> u64 {
    auth.cli(&["authority", "status", "--json"]).good().json()["log"]["size"].as_u64().unwrap()
}

/// Checks that the authority issues to existing nodes and to new ones.
fn goes_on(auth: &Node, nodes: &[&Node]) {
    for node in nodes {
        wait_for("a node that knew the authority gets a certificate", || {
            node.cli(&["svid", "renew"]).code == Some(0)
        });
    }
    let listed = auth.cli(&["node", "list", "--json"]).good().json().to_string();
    for node in nodes {
        assert!(listed.contains(&format!("\"{}\"", node.name)), "{listed}");
    }
    auth.token("another", &[]);
}

#[test]
fn a_backup_taken_at_any_moment_can_be_restored() {
    let world = World::new();
    let listen = free();
    let sections = format!("[authority]\nlisten = \"{listen}\"\n");
    let mut auth = world.node("auth", &sections);
    auth.start();
    auth.ready();
    auth.listen = Some(listen);
    let db = world.joined(&auth, "db1", &["db"], "");
    let app = world.joined(&auth, "app1", &["web"], "");
    for round in 0..rounds(2) {
        let file = world.path(&format!("backup-{round}"));
        let grown = issuing(&[&db, &app], || {
            let before = size(&auth);
            thread::sleep(ms(50 + round * 137 % 400));
            backup(&auth, &file);
            size(&auth) - before
        });
        assert!(grown > 0, "the control: certificates were issued meanwhile");
        let mut restored = world.node_in(&format!("restored-{round}"), "auth", &sections);
        let said = restore(&restored, &file, None).good().json();
        auth.kill();
        restored.start();
        restored.ready();
        assert!(size(&restored) >= said["entries"].as_u64().unwrap());
        goes_on(&restored, &[&db, &app]);
        auth = restored;
    }

    // Existing files are not overwritten, and a damaged backup restores nothing.
    let file = world.path("backup-0");
    let refused = restore(&auth, &file, None);
    assert_ne!(refused.code, Some(0));
    let fresh = world.node_in("fresh", "auth", &sections);
    let bytes = fs::read(&file).unwrap();
    let damaged = world.path("damaged");
    for n in [bytes.len() / 3, bytes.len() / 2, bytes.len() - 2000] {
        let mut altered = bytes.clone();
        altered[n] ^= 1;
        for bad in [&altered[..], &bytes[..n]] {
            fs::write(&damaged, bad).unwrap();
            let refused = restore(&fresh, &damaged, None);
            assert_eq!(refused.code, Some(1), "{refused:?}");
            assert!(refused.err.contains("cannot restore from"), "{refused:?}");
            assert!(!fresh.state().join("authority").exists());
        }
    }
    restore(&fresh, &file, None).good();
}

#[test]
fn with_witnesses_a_restore_needs_the_newer_log() {
    let world = World::new();
    let (policy, listen) = (world.path("policy"), free());
    let witnessed = format!("[witnesses]\npolicy = \"{}\"\n", policy.display());
    let sections = format!("[authority]\nlisten = \"{listen}\"\n{witnessed}");
    let mut auth = world.node("auth", &sections);
    auth.listen = Some(listen);
    let _witnesses: Vec<WitnessProcess> = witnesses(&world, &auth, &policy);
    auth.start();
    auth.ready();
    let db = world.joined(&auth, "db1", &["db"], &witnessed);
    let app = world.joined(&auth, "app1", &["web"], &witnessed);
    let (mut forks, mut went_on, mut not_published) = (0, 0, 0);
    for round in 0..rounds(1) {
        let file = world.path(&format!("backup-{round}"));
        // A node is removed after the backup: the restored authority must still refuse it.
        let gone = world.joined(&auth, &format!("gone-{round}"), &["gone"], &witnessed);
        issuing(&[&db, &app], || {
            thread::sleep(ms(50 + round * 137 % 400));
            backup(&auth, &file);
            auth.cli(&["node", "remove", &gone.name, "--yes"]).good();
            let logged = || auth.cli(&["authority", "status", "--json"]).json()["log"].to_string();
            let before = logged();
            wait_for("more is issued", || logged() != before);
            thread::sleep(Duration::from_secs(6)); // the removal is in the log
            auth.kill();
        });

        let mut old = world.node_in(&format!("old-{round}"), "auth", &sections);
        restore(&old, &file, None).good();
        old.start();
        let ended = old.kid().ended(ms(60_000)).expect("it stops because the witnesses are ahead");
        assert!(!ended.success());
        assert!(old.log().contains("because it would fork"), "{}", old.log());
        forks += 1;

        let mut restored = world.node_in(&format!("restored-{round}"), "auth", &sections);
        let said = restore(&restored, &file, Some(&log_of(&auth))).good().json();
        assert!(said["newer_entries"].as_u64().unwrap() > 0, "{said}");
        assert!(said["revoked_again"].as_u64().unwrap() > 0, "{said}");
        restored.start();
        // It was killed at a random moment: the witnesses may have cosigned something that was not published yet.
        let up = loop {
            match restored.http("GET", "/readyz", "") {
                Ok((200, _)) => break true,
                _ if restored.kid().ended(ms(50)).is_some() => break false,
                _ => {}
            }
        };
        if up {
            goes_on(&restored, &[&db, &app]);
            let refused = gone.cli(&["svid", "renew"]);
            assert_ne!(refused.code, Some(0), "who was removed is back: {refused:?}");
            (auth, went_on) = (restored, went_on + 1);
        } else {
            assert!(restored.log().contains("because it would fork"), "{}", restored.log());
            not_published += 1;
            auth.start();
            auth.ready();
        }
    }
    say(format!(
        "{forks} old backups refused; with the newer log {went_on} went on, and {not_published} were told that the witnesses know more"
    ));
    assert!(went_on > 0);
}

// ---- With the log in a bucket.

/// An S3 server (moto) with TLS, as plaintext is refused.
struct S3 {
    addr: SocketAddr,
    ca: PathBuf,
    _server: Kid,
}

impl S3 {
    fn start(world: &World) -> S3 {
        let openssl = |args: &str| {
            let mut command = Command::new(find("openssl").unwrap());
            command.args(args.split(' ')).current_dir(world.path(""));
            Ran::of(&mut command, "").good();
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
        openssl(&format!("req -x509 {key} -subj /CN=ca -keyout ca.key -out ca.pem"));
        openssl(&format!(
            "req -x509 {key} -CA ca.pem -CAkey ca.key -subj /CN=s3 -addext basicConstraints=critical,CA:FALSE \
             -addext subjectAltName=IP:127.0.0.1 -keyout s3.key -out s3.pem"
        ));
        let (addr, ca) = (free(), world.path("ca.pem"));
        let mut server = Command::new(find("moto_server").unwrap());
        server.args(["-H", "127.0.0.1", "-p", &addr.port().to_string()]);
        server.arg("-c").arg(world.path("s3.pem")).arg("-k").arg(world.path("s3.key"));
        let server = Kid::start(&mut server, &world.path("s3.log"));
        wait_port(addr);
        let s3 = S3 { addr, ca, _server: server };
        s3.put("tiles", b"");
        s3
    }

    fn put(&self, path: &str, body: &[u8]) {
        let mut curl = Command::new("curl");
        curl.args(["-sf", "-X", "PUT", "-H", "Content-Type: text/plain", "--data-binary", "@-"]);
        curl.arg("--cacert").arg(&self.ca);
        curl.arg(format!("https://{}/{path}", self.addr));
        Ran::of(&mut curl, str::from_utf8(body).unwrap()).good();
    }

    fn env(&self) -> Vec<(&'static str, PathBuf)> {
        vec![
            ("AWS_ENDPOINT_URL", format!("https://{}", self.addr).into()),
            ("AWS_REGION", "us-east-1".into()),
            ("AWS_ACCESS_KEY_ID", "key".into()),
            ("AWS_SECRET_ACCESS_KEY", "secret".into()),
            ("SSL_CERT_FILE", self.ca.clone()),
        ]
    }
}

/// Like `Node::cli`, with the environment of the node.
fn cli(auth: &Node, args: &[&str]) -> Ran {
    let mut command = wiretight();
    command.args(args).arg("--config").arg(auth.file()).envs(auth.env.iter().cloned());
    Ran::of(&mut command, "")
}

/// The checkpoint published when this backup was made.
fn checkpoint_in(backup: &Path) -> String {
    let mut tar = Command::new("tar");
    tar.args(["-xOf", backup.to_str().unwrap(), "log/checkpoint"]);
    Ran::of(&mut tar, "").good().out
}

#[test]
fn a_backup_is_restored_into_the_newer_bucket_and_into_an_empty_one() {
    if !has(&["moto_server", "openssl", "curl", "tar"]) {
        return;
    }
    let world = World::new();
    let (s3, listen) = (S3::start(&world), free());
    let sections = |place: &str| {
        format!("[authority]\nlisten = \"{listen}\"\n[log]\nstorage = \"s3://tiles/{place}\"\n")
    };
    let authority = |folder: &str, place: &str| {
        let mut node = world.node_in(folder, "auth", &sections(place));
        (node.env, node.listen) = (s3.env(), Some(listen));
        node
    };
    let mut auth = authority("auth", "one");
    auth.start();
    auth.ready();
    let db = world.joined(&auth, "db1", &["db"], "");
    let app = world.joined(&auth, "app1", &["web"], "");
    let gone = world.joined(&auth, "gone", &["gone"], "");
    let files = ["quiet", "first", "second"].map(|name| world.path(name));
    let [quiet, first, second] = files.each_ref().map(|path| path.to_str().unwrap());
    cli(&auth, &["authority", "backup", quiet]).good();
    let before = size(&auth);
    let went_on = issuing(&[&db, &app], || {
        wait_for("certificates are issued meanwhile", || size(&auth) > before + 5);
        cli(&auth, &["authority", "backup", first]).good();
        auth.cli(&["node", "remove", "gone", "--yes"]).good();
        let after = size(&auth);
        wait_for("the log in the bucket grows", || size(&auth) > after + 20);
        thread::sleep(Duration::from_secs(6)); // the removal is in the log
        size(&auth)
    });
    auth.kill();
    assert!(!log_of(&auth).exists(), "the control: the log is in the bucket alone");

    // An empty bucket: the log is as it was at the backup, and continues from there.
    let mut empty = authority("empty", "empty");
    let said = cli(&empty, &["authority", "restore", first, "--json"]).good().json();
    assert_eq!((&said["newer_entries"], &said["revoked_again"]), (&0.into(), &0.into()), "{said}");
    let entries = said["entries"].as_u64().unwrap();
    assert!(before < entries && entries < went_on, "{said}");
    empty.start();
    empty.ready();
    goes_on(&empty, &[&db, &app]);
    assert!(size(&empty) > entries);
    empty.kill();

    // The newer bucket: the restored authority continues from it.
    let mut restored = authority("restored", "one");
    let said = cli(&restored, &["authority", "restore", first, "--json"]).good().json();
    assert!(said["entries"].as_u64().unwrap() + said["newer_entries"].as_u64().unwrap() >= went_on);
    assert!(said["revoked_again"].as_u64().unwrap() > 0, "{said}");
    let left = fs::read_dir(restored.state().join("authority")).unwrap().flatten();
    let left: Vec<_> = left.map(|file| file.file_name()).collect();
    assert!(!left.iter().any(|name| name == "log" || name == "newer"), "{left:?}");
    restored.start();
    restored.ready();
    assert!(size(&restored) >= went_on);
    goes_on(&restored, &[&db, &app]);
    let refused = gone.cli(&["svid", "renew"]);
    assert_ne!(refused.code, Some(0), "who was removed is back: {refused:?}");
    cli(&restored, &["authority", "backup", second]).good();
    restored.kill();

    // A bucket that is older than the backup, such as a copy: missing files are added.
    let behind = authority("behind", "behind");
    cli(&behind, &["authority", "restore", quiet]).good();
    s3.put("tiles/behind/checkpoint", checkpoint_in(&files[0]).as_bytes());
    let mut caught_up = authority("caught-up", "behind");
    let said = cli(&caught_up, &["authority", "restore", second, "--json"]).good().json();
    assert_eq!(said["newer_entries"], 0, "{said}");
    let left = caught_up.state().join("authority/newer");
    assert!(!left.exists(), "the copy of the bucket is still on the disk");
    caught_up.start();
    caught_up.ready();
    assert!(size(&caught_up) >= said["entries"].as_u64().unwrap());
    goes_on(&caught_up, &[&db, &app]);
    caught_up.kill();

    // A bucket with another history stays unchanged, and nothing is restored.
    let other = authority("other", "empty");
    let refused = cli(&other, &["authority", "restore", second]);
    assert!(refused.code == Some(1) && refused.err.contains("the log has forked"), "{refused:?}");
    assert!(!other.state().join("authority").exists());
    // A copy that is older than the bucket does not override the bucket.
    let copy = world.path("copy");
    fs::create_dir(&copy).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["-xf", quiet, "--strip-components=1", "-C"]).arg(&copy).arg("log");
    Ran::of(&mut tar, "").good();
    let older = authority("older", "one");
    let args = ["authority", "restore", first, "--log", copy.to_str().unwrap()];
    let refused = cli(&older, &args);
    assert!(refused.code == Some(1) && refused.err.contains("Omit --log"), "{refused:?}");
    assert!(!older.state().join("authority").exists());
}

//! `wiretight authority backup` and `restore`, while the authority issues, with witnesses and without.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use super::rig::*;
use super::transparency::{WitnessProcess, witnesses};

/// How many times each is done: `usual`, if `WIRETIGHT_BACKUP_ROUNDS` does not say otherwise.
fn rounds(usual: u64) -> u64 {
    let rounds = std::env::var("WIRETIGHT_BACKUP_ROUNDS").ok();
    rounds.map_or(usual, |n| n.parse().expect("WIRETIGHT_BACKUP_ROUNDS is a number"))
}

/// Nodes ask for certificates as fast as they get them, until this is dropped.
fn issuing<T>(nodes: &[&Node], during: impl FnOnce() -> T) -> T {
    let done = &AtomicBool::new(false);
    thread::scope(|scope| {
        for node in nodes {
            scope.spawn(move || {
                while !done.load(Relaxed) {
                    // It fails while the authority is away.
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

/// It issues to nodes that knew the authority before, and to new ones.
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
fn a_backup_that_is_taken_at_any_moment_is_gone_on_from() {
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

    // What is there already is not overwritten, and what is damaged restores nothing.
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
fn with_witnesses_a_backup_is_gone_on_from_with_the_newer_log_alone() {
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
        // Somebody is removed after the backup: that has to hold in the restored authority.
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
        let ended =
            old.kid().ended(ms(60_000)).expect("it goes on from where the witnesses are not");
        assert!(!ended.success());
        assert!(old.log().contains("because it would fork"), "{}", old.log());
        forks += 1;

        let mut restored = world.node_in(&format!("restored-{round}"), "auth", &sections);
        let said = restore(&restored, &file, Some(&log_of(&auth))).good().json();
        assert!(said["newer_entries"].as_u64().unwrap() > 0, "{said}");
        assert!(said["revoked_again"].as_u64().unwrap() > 0, "{said}");
        restored.start();
        // It was killed at any moment: the witnesses may have cosigned what was not published yet.
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

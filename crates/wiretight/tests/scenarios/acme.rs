//! Certificates by ACME: from nothing to a served certificate, with the real daemon and Pebble.

use std::fs;

use super::rig::*;
use super::traffic::{curl, http_server};

#[path = "../pebble/mod.rs"]
mod pebble;

use pebble::Pebble;

const NAME: &str = "www.example.test";

/// `more` are lines of [[acme]].
fn orders(names: &[&str], more: impl Fn(&World, &Pebble) -> String) {
    if !pebble::installed() || !has(&["curl"]) {
        return;
    }
    let world = World::new();
    let (https, http, backend) = (free(), free(), http_server("it is served"));
    let pebble = Pebble::start(http.port(), https.port(), 90 * 86_400);
    let mut node = world.node(
        "edge1",
        &format!(
            "[authority]\nlisten = \"{}\"\n[edge]\nhttps = \"{https}\"\nhttp = \"{http}\"\n\
             [[acme]]\ndirectory = \"{}\"\nroots = \"{}\"\n{}\n\
             [[site]]\nnames = {names:?}\nto = \"{backend}\"\n",
            free(),
            pebble.directory,
            pebble.roots.display(),
            more(&world, &pebble),
        ),
    );
    node.start();
    node.ready();
    let root = world.path("root.pem");
    fs::write(&root, pebble.root()).unwrap();
    let fetch = |verify: &str| {
        let resolve = format!("{NAME}:{}:127.0.0.1", https.port());
        let url = format!("https://{NAME}:{}/", https.port());
        curl(&["--resolve", &resolve, "--cacert", verify, &url])
    };
    let root = root.to_str().unwrap().to_owned();
    let verified = || {
        let ran = fetch(&root);
        ran.code == Some(0) && ran.out == "it is served"
    };
    wait_for("a certificate that verifies", || {
        let log = node.log();
        assert!(!log.contains("no new certificate"), "{log}");
        log.contains("a new certificate is in force") && verified()
    });
    // The control: under another root it does not.
    let other = fetch(pebble.roots.to_str().unwrap());
    assert_eq!(other.code, Some(60), "any root verifies it: {}", other.all());
    // What a command has put into the DNS it was told to remove.
    if let Ok(calls) = fs::read_to_string(world.path("dns-calls")) {
        let of = |verb: &str| {
            let calls = calls.lines().filter_map(|l| l.strip_prefix(verb)).map(str::to_owned);
            calls.collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(of("present").len(), names.len(), "{calls}");
        assert_eq!(of("present"), of("cleanup"), "{calls}");
    }
    let status = node.status();
    assert_eq!(status["site_errors"], serde_json::json!({}), "{status}");
    // The certificate and its key stand in the state directory, and the key only sealed.
    let store = fs::read(node.state().join("authority/store.db")).unwrap();
    assert!(!store.windows(11).any(|w| w == b"PRIVATE KEY"), "a key lies open in the store");

    // Without the CA, and after kill -9, it is served at once.
    drop(pebble);
    node.kill();
    node.start();
    node.ready();
    wait_port(https);
    assert!(verified(), "not served without the CA: {}", fetch(&root).all());
}

#[test]
fn from_nothing_to_a_served_certificate_by_http_01() {
    orders(&[NAME], |_, _| "challenge = \"http-01\"".into());
}

#[test]
fn from_nothing_to_a_served_certificate_by_tls_alpn_01() {
    orders(&[NAME], |_, _| "challenge = \"tls-alpn-01\"".into());
}

/// By an external command, run past the sandbox, for what no other proof serves: a wildcard.
#[test]
fn from_nothing_to_a_served_wildcard_by_dns_01() {
    orders(&["example.test", "*.example.test"], |world, pebble| {
        let (command, log) = (world.path("dns-record"), world.path("dns-calls"));
        let script = format!(
            "#!/bin/sh\nset -e\necho \"$@\" >> {log}\n\
             case $1 in present) to=set-txt;; cleanup) to=clear-txt;; esac\n\
             curl -sf -d \"{{\\\"host\\\": \\\"$2\\\", \\\"value\\\": \\\"$3\\\"}}\" http://{}/$to\n",
            pebble.records,
            log = log.display(),
        );
        fs::write(&command, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&command, mode).unwrap();
        format!("dns_command = \"{}\"", command.display())
    });
}

/// A private name on the authority's machine has a certificate at once, and no CA is asked.
#[test]
fn a_private_name_is_served_at_once_under_the_mesh_root() {
    if !has(&["curl"]) {
        return;
    }
    let world = World::new();
    let (https, backend) = (free(), http_server("it is served"));
    let mut node = world.node(
        "edge1",
        &format!(
            "[authority]\nlisten = \"{}\"\n[edge]\nhttps = \"{https}\"\nhttp = []\n\
             [[site]]\nnames = [\"app.corp.internal\", \"*.corp.internal\"]\nto = \"{backend}\"\n",
            free(),
        ),
    );
    node.start();
    node.ready();
    wait_port(https);
    let root = world.path("root.pem");
    let (_, answer) = node.http("GET", "/v1/bundle", "").unwrap();
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    fs::write(&root, answer["bundle"].as_str().unwrap()).unwrap();
    for (name, verifies) in
        [("app.corp.internal", true), ("any.corp.internal", true), ("corp.internal", false)]
    {
        let resolve = format!("{name}:{}:127.0.0.1", https.port());
        let url = format!("https://{name}:{}/", https.port());
        let ran = curl(&["--resolve", &resolve, "--cacert", root.to_str().unwrap(), &url]);
        assert_eq!(ran.code == Some(0) && ran.out == "it is served", verifies, "{}", ran.all());
    }
}

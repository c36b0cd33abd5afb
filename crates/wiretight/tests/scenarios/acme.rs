//! Certificates by ACME: from nothing to a served certificate, with the real daemon and Pebble.

use std::fs;

use super::rig::*;
use super::traffic::{curl, http_server};

#[path = "../pebble/mod.rs"]
mod pebble;

use pebble::Pebble;

const NAME: &str = "www.example.test";

fn orders(challenge: &str) {
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
             [[acme]]\ndirectory = \"{}\"\nroots = \"{}\"\nchallenge = \"{challenge}\"\n\
             [[site]]\nnames = [\"{NAME}\"]\nto = \"{backend}\"\n",
            free(),
            pebble.directory,
            pebble.roots.display(),
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
    orders("http-01");
}

#[test]
fn from_nothing_to_a_served_certificate_by_tls_alpn_01() {
    orders("tls-alpn-01");
}

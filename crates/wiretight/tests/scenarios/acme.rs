//! Certificates from ACME, with the real daemon and Pebble.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use super::rig::*;
use super::traffic::{curl, http_server};

#[path = "../pebble/mod.rs"]
mod pebble;

use pebble::Pebble;

const NAME: &str = "www.example.test";

/// `more`: further lines of [[acme]].
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
        assert!(!log.contains("cannot get a new certificate"), "{log}");
        log.contains("got a new certificate") && verified()
    });
    // The control: with another root it does not verify.
    let other = fetch(pebble.roots.to_str().unwrap());
    assert_eq!(other.code, Some(60), "any root verifies it: {}", other.all());
    // The command was called to remove the DNS records that it had created.
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
    // The certificate and its key are in the state directory, and the key is encrypted.
    let store = fs::read(node.state().join("authority/store.db")).unwrap();
    assert!(!store.windows(11).any(|w| w == b"PRIVATE KEY"), "a key lies open in the store");

    // Without the CA, and after kill -9, the certificate is served at once.
    drop(pebble);
    node.kill();
    node.start();
    node.ready();
    wait_port(https);
    assert!(verified(), "not served without the CA: {}", fetch(&root).all());
}

#[test]
fn a_certificate_is_obtained_by_http_01_and_served() {
    orders(&[NAME], |_, _| "challenge = \"http-01\"".into());
}

#[test]
fn a_certificate_is_obtained_by_tls_alpn_01_and_served() {
    orders(&[NAME], |_, _| "challenge = \"tls-alpn-01\"".into());
}

/// A wildcard, which needs dns-01, by an external command that runs outside of the sandbox.
#[test]
fn a_wildcard_certificate_is_obtained_by_dns_01_and_served() {
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

/// A private name on the authority's machine gets a certificate at once, without a CA.
#[test]
fn a_private_name_is_served_at_once_with_a_certificate_of_the_mesh() {
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

/// A host that is not configured is served at its first visit if the program on this machine allows it.
#[test]
fn a_host_gets_a_certificate_on_demand_if_the_ask_program_allows_it() {
    if !pebble::installed() || !has(&["curl"]) {
        return;
    }
    let world = World::new();
    let (https, http, backend) = (free(), free(), http_server("it is served"));
    let (ask, asked) = yes_to("domain=shop");
    let pebble = Pebble::start(http.port(), https.port(), 90 * 86_400);
    let mut node = world.node(
        "edge1",
        &format!(
            "[authority]\nlisten = \"{}\"\n[edge]\nhttps = \"{https}\"\nhttp = \"{http}\"\n\
             [[acme]]\ndirectory = \"{}\"\nroots = \"{}\"\n\
             [[site]]\nnames = \"*\"\nto = \"{backend}\"\nask = \"http://{ask}/may\"\n",
            free(),
            pebble.directory,
            pebble.roots.display(),
        ),
    );
    node.start();
    node.ready();
    wait_port(https);
    let root = world.path("root.pem");
    fs::write(&root, pebble.root()).unwrap();
    let fetch = |host: &str| {
        let resolve = format!("{host}:{}:127.0.0.1", https.port());
        let url = format!("https://{host}:{}/", https.port());
        curl(&["--resolve", &resolve, "--cacert", root.to_str().unwrap(), &url])
    };
    // Pebble rejects one nonce in ten, and an order may take longer than a handshake: retry, as browsers do.
    wait_for("a certificate on demand", || fetch("shop1.test-shops.net").out == "it is served");
    let status = node.status();
    assert_eq!(status["edge"]["sites"][0]["hosts"], 1, "{status}");
    let ran = node.cli(&["status"]);
    assert!(ran.out.contains("1 host"), "{}", ran.all());
    let asks = asked.lock().unwrap().len();
    assert_eq!(fetch("shop1.test-shops.net").out, "it is served");
    assert_eq!(asked.lock().unwrap().len(), asks, "a host that has a certificate was asked about");
    // The control: the program refuses, and nothing is ordered.
    let other = fetch("other.test-shops.net");
    assert_eq!(other.code, Some(35), "{}", other.all());
    assert_eq!(asked.lock().unwrap().len(), asks + 1);
    assert_eq!(node.log().matches("got a new certificate").count(), 1, "{}", node.log());

    // After kill -9, and without the CA and the program, it is served at once.
    drop(pebble);
    node.kill();
    node.start();
    node.ready();
    wait_port(https);
    assert_eq!(fetch("shop1.test-shops.net").out, "it is served");
}

/// A program that answers 200 to requests with this text, and records the requests.
fn yes_to(yes: &'static str) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = asked.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut head = [0; 4096];
            let n = socket.read(&mut head).unwrap_or(0);
            let head = String::from_utf8_lossy(&head[..n]).into_owned();
            let status = if head.contains(yes) { "200 OK" } else { "403 Forbidden" };
            seen.lock().unwrap().push(head);
            let _ = write!(socket, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        }
    });
    (at, asked)
}

/// Two edges for one name on separate machines, and the authority on a third one.
struct Edges {
    // In the order in which they are dropped.
    edges: Vec<Node>,
    https: Vec<SocketAddr>,
    auth: Node,
    pebble: Option<Pebble>,
    world: World,
}

impl Edges {
    /// `share` is a line of [edge]. The CA checks only the first edge, whichever orders. With `two` machines, the first edge
    /// is on the authority's.
    fn start(share: &str, two: bool) -> Edges {
        let world = World::new();
        let (https, http) = (vec![free(), free()], vec![free(), free()]);
        let pebble = Pebble::start(http[0].port(), https[0].port(), 90 * 86_400);
        fs::write(world.path("root.pem"), pebble.root()).unwrap();
        let backend = http_server("it is served");
        let sections = |i: usize| {
            format!(
                "[edge]\nhttps = \"{}\"\nhttp = \"{}\"\n{share}\n\
                 [[acme]]\ndirectory = \"{}\"\nroots = \"{}\"\nchallenge = \"http-01\"\n\
                 [[site]]\nnames = [\"{NAME}\"]\nto = \"{backend}\"\n",
                https[i],
                http[i],
                pebble.directory,
                pebble.roots.display(),
            )
        };
        let auth = world.authority(&if two { sections(0) } else { String::new() });
        let edge = |i: usize| world.joined(&auth, ["e1", "e2"][i], &["www"], &sections(i));
        let edges = (usize::from(two)..2).map(edge).collect();
        Edges { edges, https, auth, pebble: Some(pebble), world }
    }

    /// The chain that an edge serves as PEM, if it verifies.
    fn served(&self, i: usize) -> Option<String> {
        let root = self.world.path("root.pem");
        let resolve = format!("{NAME}:{}:127.0.0.1", self.https[i].port());
        let url = format!("https://{NAME}:{}/", self.https[i].port());
        let root = root.to_str().unwrap();
        let ran = curl(&["--resolve", &resolve, "--cacert", root, "-w", "%{certs}", &url]);
        let (body, chain) = ran.out.split_at_checked("it is served".len())?;
        (ran.code == Some(0) && body == "it is served").then(|| chain.to_owned())
    }

    fn orders(&self) -> usize {
        self.pebble.as_ref().map_or(0, Pebble::orders)
    }

    #[track_caller]
    fn serve_one(&self) -> String {
        // A failed attempt is repeated after a pause that may be longer than other waits.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(300);
        while self.served(0).is_none() || self.served(0) != self.served(1) {
            assert!(std::time::Instant::now() < end, "not within 300 s: both serve the same");
            std::thread::sleep(ms(100));
        }
        self.served(0).unwrap()
    }
}

#[test]
fn sharing_edges_order_once_serve_the_same_and_start_without_authority_and_ca() {
    if !pebble::installed() || !has(&["curl"]) {
        return;
    }
    let mut all = Edges::start("share = \"www\"", false);
    let chain = all.serve_one();
    assert!(chain.contains("BEGIN CERTIFICATE"), "{chain}");
    assert_eq!(all.orders(), 1);
    for edge in &all.edges {
        let status = edge.status();
        assert_eq!(status["site_errors"], serde_json::json!({}), "{status}");
        // All keys are encrypted here as well.
        let store = fs::read(edge.state().join("edge.db")).unwrap();
        assert!(!store.windows(11).any(|w| w == b"PRIVATE KEY"), "a key lies open in the mirror");
    }
    // Another service needs a restart.
    let edge = &all.edges[0];
    let text = fs::read_to_string(edge.file()).unwrap();
    fs::write(edge.file(), text.replace("share = \"www\"", "share = \"shop\"")).unwrap();
    let ran = edge.cli(&["reload"]);
    assert!(
        ran.code != Some(0) && ran.all().contains("a change of [edge] share needs a restart"),
        "{ran:?}"
    );
    fs::write(edge.file(), text).unwrap();

    all.auth.kill();
    all.pebble = None;
    for i in 0..2 {
        all.edges[i].kill();
        all.edges[i].start();
        all.edges[i].ready();
        wait_port(all.https[i]);
        assert_eq!(all.served(i).as_ref(), Some(&chain), "edge {i} without authority and CA");
    }
}

/// The control for the test above: edges that share nothing.
#[test]
fn edges_that_do_not_share_each_order_their_own_certificate() {
    if !pebble::installed() || !has(&["curl"]) {
        return;
    }
    let all = Edges::start("", false);
    wait_for("a second order", || all.orders() >= 2);
}

#[test]
fn after_a_machine_is_removed_the_others_get_a_certificate_with_a_new_key() {
    if !pebble::installed() || !has(&["curl"]) {
        return;
    }
    let all = Edges::start("share = \"www\"", true);
    let chain = all.serve_one();
    all.auth.cli(&["node", "remove", "e2", "--yes"]).good();
    wait_for("another certificate", || all.served(0).is_some_and(|now| now != chain));
    assert_eq!(all.orders(), 2);
    // The removed machine learns of none of them.
    assert_ne!(all.served(1), all.served(0));
    wait_for("it learns the reason", || {
        let status = all.edges[0].status();
        status["authority_link"]["removed"] == true
    });
}

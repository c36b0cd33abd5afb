//! Connections of unmodified programs that the kernel redirects, in a network namespace of the test.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod rig;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use wiretight_proxy::mesh::{Instance, Registry};
use wiretight_proxy::relay::Side;
use wiretight_proxy::relay::settings::{InterceptSettings, RelaySettings};
use wiretight_proxy::{Mesh, Reason, Relay};

use rig::{Ca, TRUST_DOMAIN, backend, connect, expect_refused, is_reset, refused, service};

const TAKEN: u16 = 15_001;
/// Addresses of a machine that does not exist. The test's own namespace has them, and no program listens there.
const HOSTS: [&str; 2] = ["10.9.0.5", "[fd09::5]"];

/// Runs the test of this name again in its own network namespace. Returns true in that run.
fn inside(test: &str) -> bool {
    const MARK: &str = "WIRETIGHT_TEST_NAMESPACE";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let found = |program: &str| {
        let dirs = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
        dirs.iter().any(|dir| std::path::Path::new(dir).join(program).exists())
    };
    let missing = ["nft", "ip", "unshare"].into_iter().find(|program| !found(program));
    let may = Command::new("unshare").args(["--net", "true"]).output();
    if missing.is_some() || !may.is_ok_and(|ran| ran.status.success()) {
        let why = missing.map_or("root".to_owned(), str::to_owned);
        assert!(std::env::var_os("CI").is_none(), "{test} needs {why}, which CI must have");
        let _ = writeln!(std::io::stderr(), "skipped: {test}: it needs {why}");
        return false;
    }
    let ran = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(MARK, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout) + String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && said.contains("1 passed"), "{said}");
    false
}

fn run(line: &str) {
    let mut words = line.split(' ');
    let ran = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(ran.status.success(), "{line}: {}", String::from_utf8_lossy(&ran.stderr));
}

/// A machine with the other's addresses on its own interface, and rules that redirect connections to ports 5432 and
/// 5433 there.
fn network() {
    for line in [
        "ip link set lo up",
        "ip link add d0 type veth peer name d1",
        "ip link set d1 up",
        "ip link set d0 up",
        "ip addr add 10.9.0.1/24 dev d0",
        "ip addr add fd09::1/64 dev d0 nodad",
        "ip addr add 10.9.0.5/32 dev lo",
        "ip addr add fd09::5/128 dev lo nodad",
        "nft add table inet t",
        "nft add chain inet t out { type nat hook output priority -100 ; }",
    ] {
        run(line);
    }
    for daddr in ["ip daddr 10.9.0.5", "ip6 daddr fd09::5"] {
        run(&format!(
            "nft add rule inet t out {daddr} tcp dport {{ 5432, 5433 }} redirect to :{TAKEN}"
        ));
    }
}

fn announce(mesh: &Mesh, listens: &[SocketAddr], ports: &[u16]) {
    let mut registry = Registry::default();
    let instance = |listen: &SocketAddr| Instance {
        node: "far1".parse().unwrap(),
        addr: (*listen).into(),
        allow: vec![],
        ports: ports.to_vec(),
    };
    let instances = listens.iter().map(instance).collect();
    registry.services.insert("db".parse().unwrap(), instances);
    mesh.set_registry(registry);
}

#[test]
fn a_program_reaches_a_service_by_its_original_address() {
    if !inside("a_program_reaches_a_service_by_its_original_address") {
        return;
    }
    network();
    let ca = Ca::new(TRUST_DOMAIN);
    let (mesh, mesh_b) = (ca.mesh(&["service/web"]), ca.mesh(&["service/db"]));
    let (a, b) = (Relay::start(mesh.clone(), 2).unwrap(), Relay::start(mesh_b, 1).unwrap());
    let came = Arc::new(AtomicUsize::new(0));
    let count = came.clone();
    // The server speaks first, as SSH does and PostgreSQL does not.
    let to = backend(move |mut socket| {
        count.fetch_add(1, SeqCst);
        socket.write_all(b"hello\n").unwrap();
        rig::echo(socket);
    });
    let listens: Vec<SocketAddr> =
        HOSTS.iter().map(|h| format!("{h}:7432").parse().unwrap()).collect();
    let services = listens.iter().enumerate().map(|(i, listen)| {
        let mut service = service(*listen, std::slice::from_ref(&to), &["service/web"]);
        if i > 0 {
            service.name = "db".parse().unwrap();
        }
        service
    });
    b.apply(&RelaySettings { services: services.collect(), ..RelaySettings::default() }).unwrap();
    let identity = "service/web".parse().unwrap();
    let settings = InterceptSettings { port: TAKEN, identity };
    a.apply(&RelaySettings { intercept: Some(settings), ..RelaySettings::default() }).unwrap();
    announce(&mesh, &listens, &[5432]);

    for host in HOSTS {
        for _ in 0..3 {
            let mut socket = connect(format!("{host}:5432").parse().unwrap());
            let mut said = [0; 6];
            socket.read_exact(&mut said).unwrap();
            assert_eq!(&said, b"hello\n");
            socket.write_all(b"there and back").unwrap();
            let mut back = [0; 14];
            socket.read_exact(&mut back).unwrap();
            assert_eq!(&back, b"there and back");
        }
    }
    assert_eq!(came.load(SeqCst), 6);
    // The connection used mutual TLS, and the other side knows the client.
    let peers = b.status(10).peers;
    assert!(peers.iter().all(|p| p.peer.to_string().ends_with("/service/web")), "{peers:?}");

    // Connections to an address that no instance claims are aborted, and so are those that were not redirected.
    let dead = |to: &str| {
        let mut socket = TcpStream::connect(to).unwrap();
        is_reset(&mut socket)
    };
    assert!(dead("10.9.0.5:5433"));
    expect_refused(&a, Side::Dial, Reason::NoInstance);
    assert_eq!(refused(&a, Side::Dial, Reason::NotIntercepted), 0);
    for here in ["127.0.0.1", "[::1]"] {
        assert!(dead(&format!("{here}:{TAKEN}")), "{here}");
    }
    expect_refused(&a, Side::Dial, Reason::NotIntercepted);

    // The registry changes: one address is no longer claimed, and the other is.
    announce(&mesh, &listens, &[5433]);
    assert!(dead("10.9.0.5:5432"));
    let mut said = [0; 6];
    connect("10.9.0.5:5433".parse().unwrap()).read_exact(&mut said).unwrap();
    assert_eq!(&said, b"hello\n");

    // Without an identity there is no connection, in plaintext or otherwise.
    let before = came.load(SeqCst);
    ca.give(&mesh, &[], 3600);
    announce(&mesh, &listens, &[5432]);
    assert!(dead("10.9.0.5:5432"));
    assert_eq!(came.load(SeqCst), before);
}

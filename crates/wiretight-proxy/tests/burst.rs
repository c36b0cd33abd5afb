//! Bursts: connections wait for their turn, and none is reset or gets an error because of us.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod rig;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rig::edge::EdgeRig;
use rig::foreign::missing;
use rig::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use wiretight_proxy::Relay;
use wiretight_proxy::mesh::{Instance, Registry};
use wiretight_proxy::relay::Side;
use wiretight_proxy::relay::settings::RelaySettings;

const MANY: usize = 2000;

/// Both ends of all connections are in this process.
fn raise_file_limit() {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    let wanted = 7 * MANY as u64;
    assert!(most.is_none_or(|most| most > wanted), "needs `ulimit -Hn` above {wanted}");
}

/// The relay's refusals: side, reason and number.
fn refusals(relay: &Relay) -> Vec<(Side, Reason, u64)> {
    relay.status(0).refused.into_iter().map(|r| (r.side, r.reason, r.count)).collect()
}

#[test]
fn two_thousand_concurrent_connections_pass_a_pair_of_relays() {
    raise_file_limit();
    let pair = Pair::new(&[backend(|mut socket| {
        let mut word = [0; 2];
        while socket.read_exact(&mut word).is_ok() {
            socket.write_all(&word).unwrap();
        }
    })]);
    let mut programs: Vec<TcpStream> = (0..MANY).map(|_| pair.connect()).collect();
    // All stay open until the last is served, so each needs its own connection between the relays.
    for program in &mut programs {
        program.write_all(b"hi").unwrap();
    }
    let mut failed = Vec::new();
    for program in &mut programs {
        let mut answer = [0; 2];
        failed.extend(program.read_exact(&mut answer).err());
    }
    let refused = (refusals(&pair.a), refusals(&pair.b));
    assert!(failed.is_empty(), "{} of {MANY}: {:?}; {refused:?}", failed.len(), failed[0]);
    assert_eq!(refused, (vec![], vec![]));
    assert!(sums(&pair.a).handshakes >= MANY as u64);
}

#[test]
fn two_thousand_concurrent_requests_for_a_mesh_service_succeed() {
    if missing("h2load") {
        return;
    }
    raise_file_limit();
    let rig = EdgeRig::by(1, &["service/db".into()], |settings| {
        settings.sites[0].timeout = Duration::from_secs(60);
    });
    // Long enough for all requests to be open at the same time.
    let program = backend(|mut socket| {
        let mut head = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = socket.read(&mut buffer) {
            head.extend_from_slice(&buffer[..n]);
            if head.ends_with(b"\r\n\r\n") {
                head.clear();
                thread::sleep(Duration::from_secs(1));
                if socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
                    return;
                }
            }
        }
    });
    let db = Relay::start(rig.ca.mesh(&["service/db"]), 1).unwrap();
    let service = service(free(), &[program], &["service/edge"]);
    let (node, addr) = (name("n"), service.listen.into());
    let instance = Instance { node, addr, allow: service.allow.clone(), ports: vec![] };
    db.apply(&RelaySettings { services: vec![service], dials: vec![], intercept: None }).unwrap();
    let services = [(name("db"), vec![instance])].into();
    rig.mesh.set_registry(Registry { services, ..Registry::default() });

    let url = format!("https://{}/", rig.https()).replace("127.0.0.1", rig::edge::SITE);
    let ran = Command::new("h2load")
        .args(["-n", &MANY.to_string(), "-c", "20", "-m", "100"])
        .arg(format!("--connect-to={}", rig.https()))
        .arg(url)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    let all = format!("status codes: {MANY} 2xx, 0 3xx, 0 4xx, 0 5xx");
    let refused = (refusals(&rig.relay), refusals(&db));
    assert!(said.contains(&all), "{said}{refused:?}");
    assert_eq!(refused, (vec![], vec![]));
}

#[test]
fn clients_that_sent_data_wait_for_a_handshake_slot_and_silent_ones_do_not() {
    let pair = Pair::new(&[backend(echo)]);
    ping(&mut pair.connect(), b"before").unwrap();
    let too_many = || refused(&pair.b, Side::Service, Reason::TooManyHandshakes);
    // They use up all handshake slots of the address that the other clients here share.
    let mut silent: Vec<_> = (0..256).map(|_| connect(pair.service.listen)).collect();
    thread::sleep(Duration::from_millis(200));
    assert!(is_reset(&mut connect(pair.service.listen)));
    assert_eq!(too_many(), 1);
    let (good, listen) =
        (tls::Stranger::new(pair.ca.issue("service/web", 60)), pair.service.listen);
    let waits = thread::spawn(move || good.connect(listen).map(drop));
    thread::sleep(Duration::from_millis(1500));
    assert!(!waits.is_finished());
    silent.pop();
    waits.join().unwrap().unwrap();
    assert_eq!(too_many(), 1);
}

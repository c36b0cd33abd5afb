//! A compromised member: it has joined regularly and then sends arbitrary messages.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use wiretight::agent::{AgentTimes, join_once};
use wiretight_keys::{Id, JoinToken, SigningKey, SpiffeId, Transparency, TrustBundle, x509};
use wiretight_proxy::tls::{ALPN_CONTROL, client_config};
use wiretight_proxy::{Identity, Mesh};

use super::machines::{CANARY, Capture, Wire, run};
use super::rig::*;

/// Joins with a token from a machine and announces records, which may be invalid. Returns what the authority sends within
/// a moment, including refusals. The stream is closed; the announcement stays.
pub(super) fn announce(ns: &str, token: &str, dir: &Path, records: &Value) -> String {
    let (token, dir) = (JoinToken::decode(token.trim()).unwrap(), dir.to_owned());
    let hello = json!({ "type": "hello", "have": 0, "instances": records }).to_string();
    let said = on(ns, move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(say_hello(token, dir, hello))
    });
    said.join().unwrap()
}

async fn say_hello(token: JoinToken, dir: PathBuf, hello: String) -> String {
    let asks = Transparency::NotRequired;
    // After a fault of the clocks, the authority's own certificate may have to be issued again first.
    let end = Instant::now() + Duration::from_secs(60);
    while let Err(error) = join_once(&token, &dir, &[], &asks, AgentTimes::default()).await {
        assert!(Instant::now() < end, "{error}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let pem = fs::read_to_string(dir.join("node.pem")).unwrap();
    let (key, chain) = pem.split_at(pem.find("-----BEGIN CERTIFICATE-----").unwrap());
    let key = SigningKey::from_pem(key.as_bytes()).unwrap();
    let identity = Identity::new(x509::from_pem(chain.as_bytes()).unwrap(), &key).unwrap();
    let roots = x509::from_pem(&fs::read(dir.join("bundle.pem")).unwrap()).unwrap();
    let (td, own) = (token.trust_domain.clone(), Id::Node(token.node.clone()));
    let mesh = Mesh::new(td.clone());
    mesh.set_bundle(TrustBundle::new(td.clone(), roots, Default::default()).unwrap());
    mesh.set_identities(BTreeMap::from([(own.clone(), Arc::new(identity))]));
    let authority = SpiffeId::new(td, Id::Authority);
    let config = client_config(&mesh, own, authority.clone(), ALPN_CONTROL).unwrap();
    let connector = tokio_rustls::TlsConnector::from(config);
    let mut stream = loop {
        let tcp = TcpStream::connect(&token.authority[0]).await.unwrap();
        let name = authority.dns_name().try_into().unwrap();
        match connector.connect(name, tcp).await {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    let frame = [&(hello.len() as u32).to_be_bytes(), hello.as_bytes()].concat();
    stream.write_all(&frame).await.unwrap();
    let mut said = Vec::new();
    let _ = timeout(Duration::from_millis(700), stream.read_to_end(&mut said)).await;
    String::from_utf8_lossy(&said).into_owned()
}

/// Records for `service` with which a member tries to make other nodes' rules invalid, or to disconnect them. `own` is
/// one of its own addresses.
pub(super) fn hostile_records(service: &str, own: &str, of_others: &[&str]) -> Value {
    let record = |addr: String, ports: Vec<u16>| json!({ "service": service, "addr": addr, "allow": [], "ports": ports });
    let mut all = vec![
        record(format!("{own}:7000"), (1..=16_500).collect()),
        record(format!("{own}:7001"), vec![0]),
        record(format!("{own}:7002"), vec![81, 81, 81]),
        record(format!("{own}:0"), vec![82]),
        record("0.0.0.0:7003".into(), vec![83]),
        record("[::]:7004".into(), vec![84]),
        record("255.255.255.255:7005".into(), vec![85]),
        record("[::ffff:0.0.0.0]:7006".into(), vec![86]),
        record("224.0.0.1:7007".into(), vec![87]),
        record("127.0.0.1:7008".into(), vec![88]),
        json!({ "service": service, "addr": 5 }),
        json!(null),
    ];
    all.extend(of_others.iter().map(|host| record(format!("{host}:7009"), vec![9000, 9001])));
    Value::Array(all)
}

fn curl(ns: &str, port: u16) -> Option<String> {
    let url = format!("http://10.77.0.4:{port}/canary");
    let ran = run(ns, "curl", &["-sS", "-m", "1", &url]);
    (ran.code == Some(0)).then_some(ran.out)
}

fn web(world: &World, ns: &str, port: u16) -> Kid {
    let www = world.path("www");
    fs::create_dir_all(&www).unwrap();
    fs::write(www.join("canary"), CANARY.repeat(10)).unwrap();
    let mut python = std::process::Command::new("python3");
    python.args(["-m", "http.server", "--bind", "0.0.0.0", &port.to_string(), "--directory"]);
    python.arg(www);
    Kid::start(&mut within(Some(ns), python), &world.path(&format!("http-{port}.log")))
}

#[test]
fn a_compromised_member_neither_opens_strict_nodes_nor_disconnects_them() {
    if !has(&["ip", "nft", "tcpdump", "curl", "python3"]) || !is_root() {
        return;
    }
    let world = World::new();
    let mut wire = Wire::new();
    // The authority, the compromised member, a node that joins late, and a host outside of the mesh. Port 7009 is ignored.
    let (auth_ns, bad_ns, late_ns) = (wire.add(3), wire.add(5), wire.add(4));
    let outside_ns = wire.add(6);
    let client = wire.client.clone();
    let _web = [web(&world, &late_ns, 9000), web(&world, &late_ns, 9001)];
    let _outside = web(&world, &outside_ns, 9002);
    let outside = || {
        let ran = run(&client, "curl", &["-sS", "-m", "3", "http://10.77.0.6:9002/canary"]);
        ran.code == Some(0)
    };
    let mut authority = world.node("auth", "[authority]\nlisten = \"10.77.0.3:7400\"\n");
    authority.netns = Some(auth_ns);
    authority.start();
    authority.ready();
    let mut node = world.node("client", "[intercept]\nmode = \"strict\"\n");
    fs::write(node.token_file(), authority.token("client", &[])).unwrap();
    node.netns = Some(client.clone());
    node.start();
    node.ready();
    // The control: nothing is protected yet, and the host can be reached in plaintext.
    wait_for("the programs answer", || {
        curl(&client, 9000).is_some() && curl(&client, 9001).is_some()
    });
    assert!(outside());

    let records = hostile_records("evil", "10.77.0.5", &["10.77.0.6", "10.77.0.4", "ntp.example"]);
    let said = announce(&bad_ns, &authority.token("bad", &["evil"]), &world.path("bad"), &records);
    for part in ["not_allowed", "16500 ports", "0.0.0.0:7003", "--address 10.77.0.6", "unreadable"]
    {
        assert!(said.contains(part), "{said} lacks {part}");
    }
    let mut late = world.node(
        "late",
        "[[service]]\nname = \"web\"\nlisten = \"10.77.0.4:7080\"\nforward = \"127.0.0.1:9000\"\n\
         allow = [\"node/client\"]\n",
    );
    fs::write(late.token_file(), authority.token("late", &["web"])).unwrap();
    late.netns = Some(late_ns);
    late.start();
    late.ready();
    let protected = || curl(&client, 9000).is_some() && curl(&client, 9001).is_none();
    wait_for("a node that joins later is protected", protected);
    let capture = Capture::start(&wire, &world, "bad");
    let is_well = |node: &Node| {
        let status = node.cli(&["status"]);
        assert_eq!(status.code, Some(0), "{}", status.all());
        assert!(protected());
        assert!(outside(), "a host that is not in the mesh is cut off");
    };
    is_well(&node);

    // After a restart without the table, and after the authority's restart as well.
    node.kill();
    run(&client, "nft", &["flush", "ruleset"]).good();
    node.start();
    node.ready();
    wait_for("the rules are in force", || node.status()["intercept"]["mode"] == "strict");
    is_well(&node);
    authority.kid().signal(Signal::TERM);
    assert!(authority.kid().ended(ms(20_000)).is_some());
    authority.start();
    authority.ready();
    is_well(&node);
    let bytes = capture.bytes();
    let found = bytes.windows(CANARY.len()).filter(|w| *w == CANARY.as_bytes()).count();
    // Only the traffic of the host outside of the mesh is readable.
    assert!(found == 30, "{found} canaries, and 30 were sent in the clear");

    // The operator sees which member it is.
    let list = authority.cli(&["node", "list", "--json"]).good().json();
    let bad =
        list["nodes"].as_array().unwrap().iter().find(|n| n["name"] == "bad").unwrap().clone();
    let ports = bad["instances"].as_array().unwrap().iter().filter_map(|i| i["ports"].as_array());
    assert!(ports.flatten().count() <= 1, "{bad}");
}

#[test]
fn one_node_cannot_use_up_the_limits_of_others_with_the_same_identity() {
    let world = World::new();
    let authority = world.authority("");
    let (listen, backend) = (
        free(),
        serve(|mut socket| {
            let mut byte = [0];
            while socket.read_exact(&mut byte).is_ok() && socket.write_all(&byte).is_ok() {}
        }),
    );
    let db = service("db", listen, backend, "\"service/web\"") + "max_connections_per_peer = 4\n";
    let _db = world.joined(&authority, "db1", &["db"], &db);
    let entries = [free(), free()];
    let callers = [0, 1].map(|i| {
        let dial = dial(entries[i], "db", "web");
        world.joined(&authority, ["greedy", "modest"][i], &["web"], &dial)
    });
    let exchange = |i: usize| {
        let mut socket = std::net::TcpStream::connect(entries[i]).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(b"x").unwrap();
        socket.read_exact(&mut [0]).map(|()| socket)
    };
    wait_for("both get through", || [0, 1].iter().all(|i| exchange(*i).is_ok()));
    let mut held: Vec<std::net::TcpStream> = Vec::new();
    while let Ok(socket) = exchange(0) {
        held.push(socket);
        assert!(held.len() <= 4, "the control: one node holds no more than it may");
    }
    // Idle connections count as well.
    assert!(!held.is_empty());
    exchange(1).expect("the other node has its own share");
    drop(callers);
}

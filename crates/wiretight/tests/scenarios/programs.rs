//! More unmodified programs between machines with interception: a database, remote shells and file copies, and bulk data
//! both ways. All of it is TLS 1.3 on the wire, and servers that speak first work.

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use super::machines::{CANARY, Wire};
use super::rig::*;
use super::traffic::Postgres;
use super::wire::Watch;

const HOSTS: [&str; 2] = ["10.77.0.2", "fd77::2"];
const POSTGRES: u16 = 5432;
pub(super) const SSH: u16 = 2222;
const IPERF: u16 = 5201;
/// The mesh's ports on the server: the authority's, and one per service.
const MESH: [u16; 4] = [7400, 7001, 7002, 7003];

/// An SSH server that accepts only root's key, with its keys in a directory of the test.
pub(super) fn sshd(netns: &str, dir: &Path) -> Kid {
    fs::create_dir(dir).unwrap();
    for key in ["host", "id"] {
        let mut make = Command::new(find("ssh-keygen").unwrap());
        make.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(key));
        Ran::of(&mut make, "").good();
    }
    fs::copy(dir.join("id.pub"), dir.join("authorized_keys")).unwrap();
    let public = fs::read_to_string(dir.join("host.pub")).unwrap();
    let known: String = HOSTS.iter().map(|host| format!("[{host}]:{SSH} {public}")).collect();
    fs::write(dir.join("known_hosts"), known).unwrap();
    let shown = dir.display();
    let config = format!(
        "ListenAddress 0.0.0.0\nListenAddress ::\nHostKey {shown}/host\nPidFile none\nUsePAM no\nStrictModes no\n\
         PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
         AuthorizedKeysFile {shown}/authorized_keys\nSubsystem sftp internal-sftp\n"
    );
    fs::write(dir.join("config"), config).unwrap();
    // Normally created by the service manager.
    fs::create_dir_all("/run/sshd").unwrap();
    let mut sshd = Command::new(find("sshd").unwrap());
    sshd.args(["-D", "-e", "-p", &SSH.to_string(), "-f"]).arg(dir.join("config"));
    Kid::start(&mut within(Some(netns), sshd), &dir.join("log"))
}

#[test]
fn unmodified_psql_ssh_scp_and_iperf3_are_encrypted_including_servers_that_speak_first() {
    let programs = ["ip", "nft", "tcpdump", "initdb", "postgres", "psql", "setpriv"];
    if !has(&programs) || !has(&["sshd", "ssh", "scp", "ssh-keygen", "iperf3"]) || !is_root() {
        return;
    }
    let world = World::new();
    let wire = Wire::new();
    let (client, server) = (wire.client.clone(), wire.server.clone());
    let run = |program: &str, args: &[&str]| {
        let mut command = Command::new(find(program).unwrap());
        command.args(args);
        Ran::of(&mut within(Some(&client), command), "")
    };

    let _postgres = Postgres::start_in(Some(&server), ([127, 0, 0, 1], POSTGRES).into(), "*");
    let ssh_dir = world.path("ssh");
    let _sshd = sshd(&server, &ssh_dir);
    let mut iperf = Command::new(find("iperf3").unwrap());
    iperf.arg("-s");
    let _iperf = Kid::start(&mut within(Some(&server), iperf), &world.path("iperf3.log"));

    let ask = format!("SELECT repeat('{CANARY}', 1000)");
    let psql = |host: &str| run("psql", &["-h", host, "-U", "postgres", "-Atc", &ask]);
    let in_ssh = |name: &str| ssh_dir.join(name).display().to_string();
    let known = format!("UserKnownHostsFile={}", in_ssh("known_hosts"));
    let key = in_ssh("id");
    let ssh_options = ["-F", "none", "-o", &known, "-o", "BatchMode=yes", "-i", &key];
    let port = SSH.to_string();
    let ssh = |host: &str| {
        let to = format!("root@{host}");
        run("ssh", &[&ssh_options[..], &["-p", &port, &to, "echo from afar; exit 7"]].concat())
    };
    let scp = |from: &str, to: &str| {
        run("scp", &[&ssh_options[..], &["-q", "-P", &port, from, to]].concat())
    };
    let iperf = |host: &str, more: &[&str]| {
        run("iperf3", &[&["-c", host, "-n", "16M", "--connect-timeout", "5000"], more].concat())
    };
    // The first bytes of a server that speaks first.
    let first_words = |host: &str, port: u16| {
        let to = SocketAddr::new(host.parse().unwrap(), port);
        let listen = move || {
            let mut socket = TcpStream::connect_timeout(&to, ms(5000))?;
            socket.set_read_timeout(Some(if port == SSH { PATIENCE } else { ms(500) }))?;
            let mut words = [0; 8];
            socket.read_exact(&mut words).map(|()| words)
        };
        on(&client, listen).join().unwrap()
    };

    // The control: without interception they cross in plaintext.
    let watch = Watch::start(&wire, &world, 1, "control", &MESH);
    wait_for("they listen", || {
        psql(HOSTS[1]).code == Some(0) && first_words(HOSTS[1], SSH).is_ok()
    });
    let banner = first_words(HOSTS[0], SSH).unwrap();
    let ports = [POSTGRES, SSH].map(|port| format!("{}:{port} ", HOSTS[0]));
    psql(HOSTS[0]).good();
    let seen = watch.end();
    // A match that is split across two segments is not counted.
    assert!(seen.canaries > 1900, "the capture misses what was sent: {seen:?}");
    let told = |port: &String| seen.strange.keys().any(|s| s.contains(port));
    assert!(ports.iter().all(told), "{:?}", seen.strange);

    let mut services = String::new();
    for (host, six) in [(HOSTS[0], ""), ("[fd77::2]", "-6")] {
        for (name, listen, to) in
            [("db", MESH[1], POSTGRES), ("shell", MESH[2], SSH), ("bulk", MESH[3], IPERF)]
        {
            services += &format!(
                "[[service]]\nname = \"{name}{six}\"\nlisten = \"{host}:{listen}\"\n\
                 forward = \"127.0.0.1:{to}\"\nallow = [\"node/client\"]\n"
            );
        }
    }
    let strict = "[intercept]\nmode = \"strict\"\nprotect = [\"10.77.0.0/24\", \"fd77::/64\"]\n";
    let authority = format!("[authority]\nlisten = \"10.77.0.2:{}\"\n", MESH[0]);
    // Starting with the first packet of the mesh.
    let watch = Watch::start(&wire, &world, 1, "strict", &MESH);
    let mut far = world.node("auth", &format!("{authority}{services}{strict}"));
    far.netns = Some(server.clone());
    far.start();
    far.ready();
    let mut near = world.node("client", strict);
    fs::write(near.token_file(), far.token("client", &[])).unwrap();
    near.netns = Some(client.clone());
    near.start();
    near.ready();
    let in_force = |node: &Node| node.status()["intercept"]["mode"] == "strict";
    wait_for("the rules are in force", || in_force(&near) && in_force(&far));
    wait_for("the services of the mesh are known", || {
        HOSTS.iter().all(|host| {
            [SSH, IPERF].iter().all(|port| {
                let words = first_words(host, *port);
                words.is_ok() || words.is_err_and(|e| e.kind() == ErrorKind::WouldBlock)
            })
        })
    });

    let sent: Vec<u8> =
        (0..1u32 << 18).flat_map(|n| n.wrapping_mul(0x9E37_79B9).to_le_bytes()).collect();
    fs::write(world.path("sent"), &sent).unwrap();
    for host in HOSTS {
        assert_eq!(psql(host).good().out.trim(), CANARY.repeat(1000));
        let ran = ssh(host);
        assert_eq!((ran.code, &*ran.out), (Some(7), "from afar\n"), "{}", ran.all());
        let path = |name: &str| world.path(name).display().to_string();
        let there = format!("root@[{host}]:{}", path("there"));
        scp(&path("sent"), &there).good();
        scp(&there, &path("back")).good();
        assert!(fs::read(world.path("back")).unwrap() == sent, "the copy is another: {host}");
        for more in [&[][..], &["-R"]] {
            let ran = iperf(host, more);
            assert!(ran.code == Some(0) && ran.out.contains("receiver"), "{host} {}", ran.all());
        }
        // The server's first bytes reach a client that has sent nothing. The control: a server that waits for its client sends
        // nothing.
        assert_eq!(first_words(host, SSH).unwrap(), banner);
        let silent = first_words(host, POSTGRES).unwrap_err();
        assert_eq!(silent.kind(), ErrorKind::WouldBlock, "{silent}");
    }
    let sums = far.status()["relay"]["sums"].clone();
    let sums = sums.as_array().unwrap();
    let bytes = |service: &str, way: &str| {
        let of =
            sums.iter().find(|s| s["service"] == service).unwrap_or_else(|| panic!("{sums:?}"));
        of[way].as_u64().unwrap()
    };
    for six in ["", "-6"] {
        let (shell, bulk) = (format!("shell{six}"), format!("bulk{six}"));
        assert!(
            ["bytes_in", "bytes_out"].iter().all(|way| bytes(&shell, way) >= 1 << 20),
            "{sums:?}"
        );
        // iperf3's server does not wait for everything that its client has sent.
        assert!(bytes(&bulk, "bytes_in") >= 1 << 20, "{sums:?}");
        assert!(bytes(&bulk, "bytes_out") >= 16 << 20, "{sums:?}");
    }
    let seen = watch.end();
    seen.assert_encrypted();
    say(format!("{} frames, {} connections of TLS 1.3", seen.frames, seen.tls13));
}

//! Unmodified programs through the relays: PostgreSQL, Redis, HTTP, and one long stream.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;
use std::time::Instant;

use rustix::process::{Signal, geteuid};
use tempfile::TempDir;

use super::rig::*;

/// A PostgreSQL server with its data in a temporary directory, on TCP and on a Unix socket.
pub(super) struct Postgres {
    kid: Kid,
    tcp: SocketAddr,
    dir: TempDir,
}

impl Postgres {
    fn start() -> Postgres {
        let postgres = Postgres::start_in(None, free(), "127.0.0.1");
        let answers = || client("psql", postgres.tcp, &["-c", "SELECT 1"]).code == Some(0);
        wait_for("PostgreSQL answers", answers);
        postgres
    }

    /// A server in a network namespace, on these addresses, open to everyone. It may not be listening yet.
    pub(super) fn start_in(netns: Option<&str>, tcp: SocketAddr, hosts: &str) -> Postgres {
        // PostgreSQL refuses to run as root.
        let id = |flag: &str| -> u32 {
            let ran = Ran::of(Command::new("id").args([flag, "postgres"]), "");
            ran.out.trim().parse().unwrap_or_else(|_| panic!("no user postgres: {ran:?}"))
        };
        let user = if geteuid().is_root() { (id("-u"), id("-g")) } else { (0, 0) };
        let dir = tempfile::Builder::new().prefix("wiretight-pg-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        if geteuid().is_root() {
            chown(dir.path(), Some(user.0), Some(user.1)).unwrap();
        }
        let data = dir.path().join("data");
        let mut initdb = Command::new(find("initdb").unwrap());
        initdb.args(["--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8"]);
        initdb.arg("--locale=C").arg("-D").arg(&data).current_dir(dir.path());
        Ran::of(unprivileged(&mut initdb, user), "").good();
        let mut anybody = fs::File::options().append(true).open(data.join("pg_hba.conf")).unwrap();
        anybody.write_all(b"host all all all trust\n").unwrap();
        let mut postgres = Command::new(find("setpriv").unwrap());
        if geteuid().is_root() {
            let (user, group) = (format!("--reuid={}", user.0), format!("--regid={}", user.1));
            postgres.args([&user, &group, "--clear-groups"]);
        }
        postgres.arg(find("postgres").unwrap());
        postgres.arg("-D").arg(&data).arg("-k").arg(dir.path());
        postgres.args(["-h", hosts, "-F", "-p", &tcp.port().to_string()]);
        let log = dir.path().join("log");
        fs::write(&log, "").unwrap();
        let kid = Kid::start(within(netns, postgres).current_dir(dir.path()), &log);
        Postgres { kid, tcp, dir }
    }

    fn unix(&self) -> String {
        format!("unix:{}/.s.PGSQL.{}", self.dir.path().display(), self.tcp.port())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A "fast shutdown", in which it ends its children.
        self.kid.signal(Signal::INT);
        self.kid.ended(ms(5000));
    }
}

fn client(program: &str, at: SocketAddr, args: &[&str]) -> Ran {
    let mut command = Command::new(find(program).unwrap());
    command.env("PGHOST", "127.0.0.1").env("PGPORT", at.port().to_string());
    command.env("PGUSER", "postgres").env("PGDATABASE", "postgres").env("PGSSLMODE", "disable");
    Ran::of(command.args(args), "")
}

#[test]
fn psql_and_pgbench_reach_postgresql_by_tcp_and_by_unix_socket() {
    if !has(&["initdb", "postgres", "psql", "pgbench", "setpriv"]) {
        return;
    }
    let postgres = Postgres::start();
    let services = [("db", postgres.tcp.to_string()), ("db-unix", postgres.unix())];
    let (pair, entries) = Pair::new("", &services);
    for ((name, _), entry) in services.iter().zip(entries) {
        // A million characters both ways, a COPY, and an error of the server.
        let ask =
            "SELECT md5(string_agg(repeat(n::text, 100), ',')) FROM generate_series(1, 10000) n";
        let direct = client("psql", postgres.tcp, &["-Atc", ask]).good();
        let relayed = client("psql", entry, &["-Atc", ask]).good();
        assert_eq!(direct.out, relayed.out);
        let copy = "COPY (SELECT n, repeat('x', 200) FROM generate_series(1, 20000) n) TO STDOUT";
        let copied = client("psql", entry, &["-c", copy]).good().out;
        assert_eq!((copied.lines().count(), copied.len()), (20_000, 20_000 * 202 + 88_894));
        let wrong = client("psql", entry, &["-c", "SELECT 1/0"]);
        assert!(wrong.code == Some(1) && wrong.err.contains("division by zero"), "{wrong:?}");

        client("pgbench", entry, &["-i", "-s", "1", "-q"]).good();
        let ran = client("pgbench", entry, &["-c", "8", "-j", "2", "-T", "4"]).good();
        assert!(ran.out.contains("number of failed transactions: 0 "), "{}", ran.out);
        // One connection per transaction, as well.
        let new = client("pgbench", entry, &["-c", "8", "-j", "2", "-T", "2", "-C", "-S"]).good();
        assert!(new.out.contains("number of failed transactions: 0 "), "{}", new.out);
        let tps = |ran: &Ran| {
            let line = ran.out.lines().find(|l| l.starts_with("tps")).unwrap_or("?");
            line.split_whitespace().nth(2).unwrap_or("?").to_owned()
        };
        say(format!("pgbench through {name}: {} tps kept, {} tps new", tps(&ran), tps(&new)));
        pair.assert_protected(name);
    }
    assert_eq!(pair.app.status()["relay"]["refusals"].as_array().unwrap().len(), 0);
}

#[test]
fn redis_answers_clients_that_pipeline_subscribe_and_reconnect() {
    if !has(&["redis-server", "redis-cli", "redis-benchmark"]) {
        return;
    }
    let world = World::new();
    let at = free();
    let port = at.port().to_string();
    let mut command = Command::new(find("redis-server").unwrap());
    command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    let dir = world.path("redis");
    fs::create_dir(&dir).unwrap();
    let _redis = Kid::start(command.current_dir(&dir), &world.path("redis.log"));
    wait_port(at);

    let (pair, entries) = Pair::new("", &[("cache", at.to_string())]);
    let port = entries[0].port().to_string();
    let cli = |args: &[&str], stdin: &str| {
        let mut command = Command::new(find("redis-cli").unwrap());
        Ran::of(command.args(["-h", "127.0.0.1", "-p", &port]).args(args), stdin).good().out
    };
    assert_eq!(cli(&["PING"], ""), "PONG\n");
    let big = "v".repeat(3_000_000);
    assert_eq!(cli(&["-x", "SET", "big"], &big), "OK\n");
    assert_eq!(cli(&["GET", "big"], "").trim(), big);
    for (n, args) in [["-c", "20", "-P", "1"], ["-c", "20", "-P", "16"]].iter().enumerate() {
        let mut command = Command::new(find("redis-benchmark").unwrap());
        command.args([
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-n",
            "20000",
            "-q",
            "-t",
            "set,get,lrange_100",
        ]);
        let ran = Ran::of(command.args(args), "").good();
        assert!(!ran.all().contains("rror"), "{ran:?}");
        let shown: Vec<_> = ran.out.split(['\r', '\n']).filter(|l| l.starts_with("GET")).collect();
        say(format!("redis-benchmark {n}: {}", shown.last().unwrap_or(&"?")));
    }
    pair.assert_protected("cache");
}

#[test]
fn an_http_keep_alive_load_sees_no_error() {
    if !has(&["nginx", "wrk", "curl"]) {
        return;
    }
    let world = World::new();
    let at = free();
    let _nginx = nginx(
        &world,
        "origin",
        &format!(
            "http {{ access_log off; keepalive_requests 10000000; client_body_temp_path body; \
             proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; \
             scgi_temp_path scgi; server {{ listen {at}; location / {{ return 200 \"{}\"; }} }} }}",
            "hello ".repeat(100)
        ),
    );
    wait_port(at);
    let (pair, entries) = Pair::new("", &[("api", at.to_string())]);
    let url = format!("http://{}/", entries[0]);
    for headers in [&[][..], &["-H", "Connection: close"]] {
        let seconds = if headers.is_empty() { "5s" } else { "2s" };
        let mut command = Command::new(find("wrk").unwrap());
        command.args(["-t", "1", "-c", "32", "-d", seconds, "--timeout", "30s"]).args(headers);
        let ran = Ran::of(command.arg(&url), "").good();
        assert!(!ran.out.contains("Socket errors"), "{}", ran.out);
        assert!(!ran.out.contains("Non-2xx"), "{}", ran.out);
        let line = ran.out.lines().find(|l| l.contains("requests in")).unwrap_or("?");
        assert!(!line.trim().starts_with("0 "), "{}", ran.out);
        let kind = if headers.is_empty() { "kept" } else { "new" };
        say(format!("wrk, {kind} connections: {}", line.trim()));
    }
    pair.assert_protected("api");
}

#[test]
fn four_gibibytes_in_one_stream_arrive_intact_in_bounded_memory() {
    const TOTAL: u64 = 4 << 30;
    const BLOCK: usize = 1 << 20;
    // SHA-256 of the library that TLS uses.
    let sha256 = || {
        use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256 as SUITE;
        SUITE.tls13().unwrap().common.hash_provider.start()
    };
    // Reads to the end, then reports what it has received, which needs the half-close.
    let sink = serve(move |mut socket| {
        let mut hash = sha256();
        let mut buffer = vec![0; BLOCK];
        while let Ok(n) = socket.read(&mut buffer) {
            if n == 0 {
                let _ = socket.write_all(hash.finish().as_ref());
                return;
            }
            hash.update(&buffer[..n]);
        }
    });
    let (pair, entries) = Pair::new("", &[("bulk", sink.to_string())]);
    let mut socket = TcpStream::connect(entries[0]).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    let begun = Instant::now();
    let mut hash = sha256();
    let mut block: Vec<u8> = (0..BLOCK).map(|i| (i * i / 7 + i / 251) as u8).collect();
    for n in 0..TOTAL / BLOCK as u64 {
        // All blocks are different.
        block.chunks_exact_mut(4096).for_each(|page| page[..8].copy_from_slice(&n.to_le_bytes()));
        hash.update(&block);
        socket.write_all(&block).unwrap();
    }
    socket.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, hash.finish().as_ref());
    let seconds = begun.elapsed().as_secs_f64();
    let peaks = [&pair.app, &pair.db].map(|node| node.proc_status("VmHWM").unwrap() / 1024);
    say(format!(
        "4 GiB in {seconds:.1} s, {:.0} MB/s; peak memory {peaks:?} MiB",
        TOTAL as f64 / 1e6 / seconds
    ));
    assert!(peaks.iter().all(|mib| *mib < 64), "{peaks:?} MiB");
    pair.assert_protected("bulk");
    for (node, key) in [(&pair.app, "bytes_out"), (&pair.db, "bytes_in")] {
        wait_for("it is in the access log", || node.access().iter().any(|line| line[key] == TOTAL));
    }
}

/// nginx in one process, in its own directory.
pub(crate) fn nginx(world: &World, name: &str, body: &str) -> Kid {
    let dir = world.path(name);
    fs::create_dir(&dir).unwrap();
    let conf = dir.join("nginx.conf");
    let module = find("ngx_stream_module.so");
    let load = module.map(|m| format!("load_module {};\n", m.display())).unwrap_or_default();
    let text = format!(
        "{load}daemon off;\nmaster_process off;\npid {0}/pid;\nerror_log {0}/error.log info;\n\
         events {{ worker_connections 1024; }}\n{body}\n",
        dir.display()
    );
    fs::write(&conf, text).unwrap();
    let mut command = Command::new(find("nginx").unwrap());
    command.arg("-c").arg(&conf).arg("-p").arg(&dir).arg("-e").arg(dir.join("error.log"));
    Kid::start(&mut command, &dir.join("error.log"))
}

/// curl, which prints only errors and uses no proxy.
pub(crate) fn curl(args: &[&str]) -> Ran {
    let mut command = Command::new(find("curl").unwrap());
    command.args(["--silent", "--show-error", "--max-time", "20", "--noproxy", "*"]);
    Ran::of(command.args(args), "")
}

/// A plain HTTP server with a fixed response.
pub(crate) fn http_server(answer: &'static str) -> SocketAddr {
    serve(move |mut socket| {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match socket.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return,
            }
        }
        let length = answer.len();
        let _ = write!(
            socket,
            "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{answer}"
        );
        let _ = socket.shutdown(Shutdown::Write);
    })
}

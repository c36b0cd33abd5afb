//! Command lines and configurations of the real servers: one loopback port, all files in one folder.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::{fs, iter};

use rustix::process::geteuid;

use super::{Config, How, Missing, find, from_pypi, pki};

pub(super) fn command(config: &Config, at: SocketAddr, dir: &Path) -> Result<Command, Missing> {
    let mut command = match &config.how {
        How::Openssl(arguments) => openssl(at, arguments)?,
        How::Gnutls(priority, arguments) => {
            let mut command = python(at, "gnutls.py", arguments)?;
            command.args(["--priority", priority]);
            command
        }
        How::Nginx(server) => nginx(at, server, dir)?,
        How::Haproxy(bind) => haproxy(at, bind, dir)?,
        How::Node(options) => node(at, options)?,
        How::Postfix(lines) => postfix(at, lines, dir)?,
        How::Dovecot(protocol, lines) => dovecot(at, protocol, lines, dir)?,
        How::Postgres(settings) => postgres(at, settings, dir)?,
        How::Mariadb(options) => mariadb(at, options, dir)?,
        How::Slapd(lines) => slapd(at, lines, dir)?,
        How::Python(script, arguments) => python(at, script, arguments)?,
        How::Behind(..) | How::Played(_) => unreachable!("no program"),
    };
    // Debian's default settings forbid some of the tested features.
    command.current_dir(pki::folder()).env("OPENSSL_CONF", "/dev/null");
    Ok(command)
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(' ').filter(|word| !word.is_empty())
}

fn pki_path(name: &str) -> String {
    pki::folder().join(name).display().to_string()
}

fn openssl(at: SocketAddr, arguments: &str) -> Result<Command, Missing> {
    let mut command = Command::new(find("openssl")?);
    command.args(["s_server", "-quiet", "-accept", &at.to_string()]).args(words(arguments));
    Ok(command)
}

fn nginx(at: SocketAddr, server: &str, dir: &Path) -> Result<Command, Missing> {
    let shown = dir.display();
    let pki = pki::folder().display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {shown}/{kind};\n"))
        .concat();
    let config = format!(
        "daemon off; master_process off; pid {shown}/pid; error_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n\
         {temporary}server {{ listen {at} ssl;\n{}\nlocation / {{ return 200 \"hello\"; }} }} }}\n",
        server.replace("$pki", &pki.to_string())
    );
    fs::write(dir.join("nginx.conf"), config).unwrap();
    let mut command = Command::new(find("nginx")?);
    command.arg("-p").arg(dir).args(["-e", "stderr", "-c"]).arg(dir.join("nginx.conf"));
    Ok(command)
}

fn haproxy(at: SocketAddr, bind: &str, dir: &Path) -> Result<Command, Missing> {
    let config = format!(
        "global\n  tune.ssl.default-dh-param 2048\ndefaults\n  mode http\n  timeout client 20s\n  timeout server 20s\n  \
         timeout connect 5s\nfrontend f\n  bind {at} ssl {bind}\n  http-request return status 200\n"
    );
    fs::write(dir.join("haproxy.cfg"), config).unwrap();
    let mut command = Command::new(find("haproxy")?);
    command.arg("-db").arg("-f").arg(dir.join("haproxy.cfg"));
    Ok(command)
}

fn node(at: SocketAddr, options: &str) -> Result<Command, Missing> {
    let script = format!(
        "const fs = require('fs'), https = require('https'); const file = name => fs.readFileSync(name); \
         https.createServer({{{options}}}, (q, a) => a.end('hello')).on('tlsClientError', () => {{}})\
         .listen({}, '{}');",
        at.port(),
        at.ip()
    );
    let mut command = Command::new(find("node")?);
    command.args(["-e", &script]);
    Ok(command)
}

fn python(at: SocketAddr, script: &str, arguments: &str) -> Result<Command, Missing> {
    let python = from_pypi().join("bin/python");
    if !python.exists() {
        return Err(Missing("target/tools/pypi is missing; scripts/test creates it".into()));
    }
    let mut command = Command::new(python);
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/py");
    command.arg("-B").arg(scripts.join(script)).arg(at.port().to_string()).args(words(arguments));
    if script == "old_openssl.py" {
        let libraries = from_pypi().join("openssl-0.9.8/psycopg2/.libs");
        if !libraries.exists() {
            return Err(Missing(format!(
                "{} is not there: scripts/test makes it",
                libraries.display()
            )));
        }
        command.env("LD_LIBRARY_PATH", libraries);
    }
    Ok(command)
}

fn root_for(program: &str) -> Result<(), Missing> {
    match geteuid().is_root() {
        true => Ok(()),
        false => Err(Missing(format!("{program} is started by root only"))),
    }
}

fn id(flag: &str, user: &str) -> Result<u32, Missing> {
    let ran = Command::new("id").args([flag, user]).output().unwrap();
    let missing = || Missing(format!("there is no user {user}"));
    String::from_utf8_lossy(&ran.stdout).trim().parse().map_err(|_| missing())
}

/// A copy of the certificate and its key, for servers that reject a key readable by others.
fn own_certificate(dir: &Path) {
    for name in ["rsa.chain", "rsa.key"] {
        fs::copy(pki::folder().join(name), dir.join(name)).unwrap();
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// Runs as this user if the tests run as root, and gives them the folder.
fn become_user(user: &str, program: &Path, dir: &Path) -> Result<Command, Missing> {
    if !geteuid().is_root() {
        return Ok(Command::new(program));
    }
    let (uid, gid) = (id("-u", user)?, id("-g", user)?);
    let all =
        iter::once(dir.to_owned()).chain(fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()));
    for path in all {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
    let mut command = Command::new(find("setpriv")?);
    command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}")).arg("--clear-groups");
    command.arg("--").arg(program);
    Ok(command)
}

fn postfix(at: SocketAddr, lines: &str, dir: &Path) -> Result<Command, Missing> {
    root_for("Postfix")?;
    let postfix = find("postfix")?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    let shown = dir.display();
    for folder in ["queue", "data"] {
        fs::create_dir(dir.join(folder)).unwrap();
    }
    chown(dir.join("data"), Some(id("-u", "postfix")?), None).unwrap();
    let mut main = format!(
        "compatibility_level = 3.6\nqueue_directory = {shown}/queue\ndata_directory = {shown}/data\n\
         myhostname = localhost\nmydestination =\nlocal_transport = error:no\nalias_maps =\ninet_interfaces = {}\n\
         maillog_file = /dev/stdout\nsmtpd_tls_security_level = may\nsmtpd_tls_loglevel = 0\n\
         smtpd_client_connection_rate_limit = 0\nsmtpd_tls_chain_files = {} {}\n\
         smtpd_peername_lookup = no\n",
        at.ip(),
        // It requires the key before its chain.
        pki_path("rsa.key"),
        pki_path("rsa.chain")
    );
    main.push_str(lines);
    main.push('\n');
    fs::write(dir.join("main.cf"), main).unwrap();
    let at_port = format!("{}:{}", at.ip(), at.port());
    let mut master = String::new();
    for (service, private, chroot, maxproc, program) in [
        (at_port.as_str(), "n", "n", "20", "smtpd"),
        ("cleanup", "n", "n", "0", "cleanup"),
        ("rewrite", "y", "n", "1", "trivial-rewrite"),
        ("anvil", "y", "n", "1", "anvil"),
        ("tlsmgr", "y", "n", "1", "tlsmgr"),
        ("proxymap", "-", "n", "-", "proxymap"),
        ("postlog", "n", "n", "1", "postlogd"),
    ] {
        let kind = match program {
            "smtpd" => "inet",
            "postlogd" => "unix-dgram",
            _ => "unix",
        };
        let wakeup = if program == "tlsmgr" { "1000?" } else { "-" };
        writeln!(master, "{service} {kind} {private} - {chroot} {wakeup} {maxproc} {program}")
            .unwrap();
    }
    fs::write(dir.join("master.cf"), master).unwrap();
    let mut command = Command::new(postfix);
    command.arg("-c").arg(dir).arg("start-fg");
    Ok(command)
}

fn dovecot(at: SocketAddr, protocol: &str, lines: &str, dir: &Path) -> Result<Command, Missing> {
    root_for("Dovecot")?;
    let dovecot = find("dovecot")?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    let shown = dir.display();
    let other = if protocol == "imap" { "imaps" } else { "pop3s" };
    let config = format!(
        "protocols = {protocol}\nbase_dir = {shown}/run\nstate_dir = {shown}\nlog_path = /dev/stderr\nssl = yes\n\
         ssl_cert = <{}\nssl_key = <{}\nlisten = {}\nservice {protocol}-login {{\n inet_listener {protocol} {{\n  \
         port = {}\n }}\n inet_listener {other} {{\n  port = 0\n }}\n}}\nmail_max_userip_connections = 1000\n\
         passdb {{\n driver = static\n args = nopassword=y\n}}\nuserdb {{\n driver = static\n args = uid=nobody \
         gid=nogroup home={shown}\n}}\n{lines}\n",
        pki_path("rsa.chain"),
        pki_path("rsa.key"),
        at.ip(),
        at.port()
    );
    fs::write(dir.join("dovecot.conf"), config).unwrap();
    let mut command = Command::new(dovecot);
    command.arg("-F").arg("-c").arg(dir.join("dovecot.conf"));
    Ok(command)
}

fn postgres(at: SocketAddr, settings: &[&str], dir: &Path) -> Result<Command, Missing> {
    let (initdb, postgres) = (find("initdb")?, find("postgres")?);
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
    let data = dir.join("data");
    own_certificate(dir);
    let mut make = become_user("postgres", &initdb, dir)?;
    make.args(["--auth=trust", "--no-sync", "--locale=C", "-D"]).arg(&data).current_dir(dir);
    let made = make.output().unwrap();
    assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
    let mut command = become_user("postgres", &postgres, dir)?;
    command.arg("-D").arg(&data).arg("-k").arg(dir).args(["-F", "-h", &at.ip().to_string()]);
    command.args(["-p", &at.port().to_string(), "-c", "ssl=on"]);
    command.arg("-c").arg(format!("ssl_cert_file={}", dir.join("rsa.chain").display()));
    command.arg("-c").arg(format!("ssl_key_file={}", dir.join("rsa.key").display()));
    for setting in settings {
        command.args(["-c", setting]);
    }
    Ok(command)
}

/// MariaDB without system tables, which take long to create. It can still greet and start TLS.
fn mariadb(at: SocketAddr, options: &[&str], dir: &Path) -> Result<Command, Missing> {
    let mariadbd = find("mariadbd")?;
    fs::create_dir(dir.join("data")).unwrap();
    own_certificate(dir);
    let mut command = become_user("mysql", &mariadbd, dir)?;
    let shown = dir.display();
    command.arg("--no-defaults").arg(format!("--datadir={shown}/data"));
    command.arg(format!("--socket={shown}/socket")).arg(format!("--pid-file={shown}/pid"));
    command.arg(format!("--bind-address={}", at.ip())).arg(format!("--port={}", at.port()));
    command.args(["--skip-grant-tables", "--skip-networking=0", "--max-connect-errors=1000000"]);
    command.args([
        "--innodb-buffer-pool-size=8M",
        "--innodb-log-file-size=4M",
        "--skip-name-resolve",
    ]);
    command.arg(format!("--ssl-cert={shown}/rsa.chain")).arg(format!("--ssl-key={shown}/rsa.key"));
    command.args(options);
    Ok(command)
}

fn slapd(at: SocketAddr, lines: &str, dir: &Path) -> Result<Command, Missing> {
    let config = format!(
        "pidfile {0}/pid\nargsfile {0}/args\nTLSCertificateFile {1}\nTLSCertificateKeyFile {2}\n\
         TLSCACertificateFile {3}\n{lines}\ndatabase config\n",
        dir.display(),
        pki_path("rsa.pem"),
        pki_path("rsa.key"),
        pki_path("ca.pem")
    );
    fs::write(dir.join("slapd.conf"), config).unwrap();
    let mut command = Command::new(find("slapd")?);
    command.args(["-d", "0", "-h", &format!("ldap://{at}"), "-f"]).arg(dir.join("slapd.conf"));
    Ok(command)
}

//! Real servers, each with TLS and without.

use std::process::Command;

use crate::rig::{Server, free, is_root, program, run, skipped};

/// Runs as this user if the tests run as root, and the server refuses that.
fn as_user(user: &str, program: &std::path::Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user, "--clear-groups"]).arg(program);
    command
}

/// The version output of a program.
pub fn version(name: &str) -> String {
    let output = program(name).and_then(|path| Command::new(path).arg("--version").output().ok());
    output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
}

pub fn postfix(tls: bool) -> Option<(Server, u16)> {
    let master = program("master")?;
    if !is_root() {
        skipped("Postfix needs root");
        return None;
    }
    let (server, port) = (Server::new(), free().port());
    let dir = server.dir();
    for (name, owner) in [
        ("q/pid", None),
        ("q/private", Some("postfix")),
        ("q/public", Some("postfix")),
        ("data", Some("postfix")),
    ] {
        server.make_folder(name, owner);
    }
    let (level, cert, key) = (if tls { "may" } else { "none" }, server.certificate(), server.key());
    server.write(
        "main.cf",
        &format!(
            "compatibility_level = 3.6\nqueue_directory = {dir}/q\ndata_directory = {dir}/data\n\
             mail_owner = postfix\nsetgid_group = postdrop\nmyhostname = mail.test\n\
             mydestination =\nlocal_recipient_maps =\nalias_maps =\nmaillog_file =\n\
             smtpd_tls_security_level = {level}\nsmtpd_tls_cert_file = {cert}\n\
             smtpd_tls_key_file = {key}\nsmtpd_client_connection_count_limit = 0\n\
             smtpd_helo_required = yes\nsmtpd_helo_restrictions = \
             reject_invalid_helo_hostname, reject_non_fqdn_helo_hostname\n\
             inet_interfaces = 127.0.0.1\ninet_protocols = ipv4\n"
        ),
    );
    server.write(
        "master.cf",
        &format!(
            "127.0.0.1:{port} inet n - n - - smtpd\ntlsmgr unix - - n 1000? 1 tlsmgr\n\
             rewrite unix - - n - - trivial-rewrite\nanvil unix - - n - 1 anvil\n"
        ),
    );
    let mut command = Command::new(master);
    command.args(["-c", &dir, "-d"]);
    Some((server.start(&mut command, &[port]), port))
}

/// Ports of IMAP, POP3, LMTP and ManageSieve.
pub fn dovecot(tls: bool) -> Option<(Server, [u16; 4])> {
    let dovecot = program("dovecot")?;
    if !is_root() {
        skipped("Dovecot needs root");
        return None;
    }
    let server = Server::new();
    let ports = [free().port(), free().port(), free().port(), free().port()];
    let [imap, pop3, lmtp, sieve] = ports;
    let dir = server.dir();
    for name in ["run", "state"] {
        server.make_folder(name, None);
    }
    let (ssl, cert, key) = (if tls { "yes" } else { "no" }, server.certificate(), server.key());
    let listener = |service: &str, name: &str, port: u16| {
        format!(
            "service {service} {{\n inet_listener {name} {{\n  address = 127.0.0.1\n  \
             port = {port}\n }}\n inet_listener {name}s {{\n  port = 0\n }}\n}}\n"
        )
    };
    let config = server.write(
        "conf",
        &format!(
            "base_dir = {dir}/run\nstate_dir = {dir}/state\nlog_path = {dir}/dovecot.log\n\
             protocols = imap pop3 lmtp sieve\nssl = {ssl}\nssl_cert = <{cert}\nssl_key = <{key}\n\
             disable_plaintext_auth = no\n\
             passdb {{\n driver = static\n args = nopassword=y\n}}\n{}{}{}{}",
            listener("imap-login", "imap", imap),
            listener("pop3-login", "pop3", pop3),
            listener("lmtp", "lmtp", lmtp),
            listener("managesieve-login", "sieve", sieve),
        ),
    );
    let mut command = Command::new(dovecot);
    command.args(["-F", "-c"]).arg(config);
    Some((server.start(&mut command, &ports), ports))
}

pub fn vsftpd(tls: bool) -> Option<(Server, u16)> {
    let vsftpd = program("vsftpd")?;
    let (server, port) = (Server::new(), free().port());
    let empty = server.make_folder("empty", None);
    let config = server.write(
        "conf",
        &format!(
            "listen=YES\nlisten_address=127.0.0.1\nlisten_port={port}\nbackground=NO\nssl_enable={}\n\
             rsa_cert_file={}\nrsa_private_key_file={}\nsecure_chroot_dir={}\n\
             anonymous_enable=YES\nseccomp_sandbox=NO\nrun_as_launching_user={}\n",
            if tls { "YES" } else { "NO" },
            server.certificate(),
            server.key(),
            empty.display(),
            if is_root() { "NO" } else { "YES" },
        ),
    );
    Some((server.start(Command::new(vsftpd).arg(config), &[port]), port))
}

pub fn slapd(tls: bool) -> Option<(Server, u16)> {
    let slapd = program("slapd")?;
    let (server, port) = (Server::new(), free().port());
    let tls = match tls {
        true => format!(
            "TLSCertificateFile {}\nTLSCertificateKeyFile {}\n",
            server.certificate(),
            server.key()
        ),
        false => String::new(),
    };
    let config = server.write("conf", &format!("{tls}pidfile {}/pid\n", server.dir()));
    let mut command = Command::new(slapd);
    command.args(["-d", "0", "-h", &format!("ldap://127.0.0.1:{port}"), "-f"]).arg(config);
    Some((server.start(&mut command, &[port]), port))
}

pub fn postgres(tls: bool) -> Option<(Server, u16)> {
    let (initdb, postgres) = (program("initdb")?, program("postgres")?);
    let (server, port) = (Server::new(), free().port());
    let data = server.make_folder("data", Some("postgres"));
    run(as_user("postgres", &initdb).args(["--auth=trust", "--no-sync", "-D"]).arg(&data));
    let mut command = as_user("postgres", &postgres);
    command.arg("-D").arg(&data).arg("-k").arg(&data).args(["-p", &port.to_string()]);
    if tls {
        // It requires a separate key file.
        for (from, name) in [(server.key(), "key.pem"), (server.certificate(), "cert.pem")] {
            let to = data.join(name);
            let owner: &[&str] = if is_root() { &["-o", "postgres"] } else { &[] };
            run(Command::new("install").args(["-m", "600"]).args(owner).arg(from).arg(to));
        }
        command.args(["-c", "ssl=on", "-c", "ssl_key_file=key.pem"]);
        command.args(["-c", "ssl_cert_file=cert.pem"]);
    }
    command.args(["-c", "listen_addresses=127.0.0.1"]);
    Some((server.start(&mut command, &[port]), port))
}

pub fn mariadb(tls: bool) -> Option<(Server, u16)> {
    let mariadbd = program("mariadbd")?;
    let (server, port) = (Server::new(), free().port());
    let data = server.make_folder("data", Some("mysql"));
    let mut command = Command::new(mariadbd);
    // Without user tables, because nobody needs to log in.
    command.args(["--no-defaults", "--skip-grant-tables", "--bind-address=127.0.0.1"]);
    command.arg(format!("--port={port}"));
    for (option, name) in [("datadir", ""), ("socket", "s"), ("pid-file", "p")] {
        command.arg(format!("--{option}={}", data.join(name).display()));
    }
    if is_root() {
        command.arg("--user=mysql");
    }
    if tls {
        command.arg(format!("--ssl-cert={}", server.certificate()));
        command.arg(format!("--ssl-key={}", server.key()));
    } else {
        command.arg("--skip-ssl");
    }
    Some((server.start(&mut command, &[port]), port))
}

/// Ports for clients and for servers.
pub fn prosody(tls: bool) -> Option<(Server, [u16; 2])> {
    let prosody = program("prosody")?;
    let server = Server::new();
    let (clients, servers) = (free().port(), free().port());
    let dir = server.dir();
    server.make_folder("data", None);
    let modules = if tls { "\"tls\", " } else { "" };
    let disabled = if tls { "" } else { "\"tls\", " };
    let config = server.write(
        "conf.lua",
        &format!(
            "run_as_root = true\ndaemonize = false\npidfile = \"{dir}/pid\"\n\
             data_path = \"{dir}/data\"\ninterfaces = {{ \"127.0.0.1\" }}\n\
             c2s_ports = {{ {clients} }}\ns2s_ports = {{ {servers} }}\n\
             modules_enabled = {{ {modules}\"saslauth\", \"dialback\" }}\n\
             modules_disabled = {{ {disabled}\"s2s_auth_certs\" }}\n\
             c2s_require_encryption = false\ns2s_require_encryption = false\n\
             ssl = {{ key = \"{}\", certificate = \"{}\" }}\nlog = {{ info = \"*console\" }}\n\
             VirtualHost \"localhost\"\n",
            server.key(),
            server.certificate(),
        ),
    );
    let mut command = Command::new(prosody);
    command.arg("--config").arg(config).arg("-F");
    Some((server.start(&mut command, &[clients, servers]), [clients, servers]))
}

pub fn inspircd(tls: bool) -> Option<(Server, u16)> {
    let inspircd = program("inspircd")?;
    let (server, port) = (Server::new(), free().port());
    let dir = server.dir();
    let tls = match tls {
        true => format!(
            "<module name=\"ssl_gnutls\"><module name=\"starttls\">\n\
             <sslprofile name=\"gnutls\" provider=\"gnutls\" certfile=\"{}\" keyfile=\"{}\">\n",
            server.certificate(),
            server.key()
        ),
        false => String::new(),
    };
    let config = server.write(
        "conf",
        &format!(
            "<config format=\"xml\">\n<server name=\"irc.test\" description=\"x\" network=\"T\" \
             id=\"00A\">\n<admin name=\"a\" nick=\"a\" email=\"a@b.test\">\n\
             <bind address=\"127.0.0.1\" port=\"{port}\" type=\"clients\">\n\
             <connect name=\"all\" allow=\"*\">\n\
             <path datadir=\"{dir}\" logdir=\"{dir}\" runtimedir=\"{dir}\">\n\
             <module name=\"cap\">\n{tls}"
        ),
    );
    let mut command = Command::new(inspircd);
    command.arg(format!("--config={}", config.display()));
    command.args(["--nofork", "--nolog", "--nopid"]);
    if is_root() {
        command.arg("--runasroot");
    }
    Some((server.start(&mut command, &[port]), port))
}

pub fn xrdp(tls: bool) -> Option<(Server, u16)> {
    let xrdp = program("xrdp")?;
    let (server, port) = (Server::new(), free().port());
    let config = server.write(
        "xrdp.ini",
        &format!(
            "[Globals]\nini_version=1\nfork=true\nport=tcp://127.0.0.1:{port}\n\
             security_layer={}\ncertificate={}\nkey_file={}\nssl_protocols=TLSv1.2, TLSv1.3\n\
             [Logging]\nLogFile={}/xrdp.log\n[x]\nname=x\n",
            if tls { "negotiate" } else { "rdp" },
            server.certificate(),
            server.key(),
            server.dir(),
        ),
    );
    let mut command = Command::new(xrdp);
    command.args(["--nodaemon", "--config"]).arg(config);
    Some((server.start(&mut command, &[port]), port))
}

//! The ACME server with a foreign client: certbot, in a separate network where ports 80 and 443 are free and /etc/hosts
//! resolves the names. It needs root.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::rig::*;

const ACME: &str = "acme.corp.internal";
const APP: &str = "app.corp.internal";

/// A network and file system namespace, held by a process.
struct Net {
    holder: Kid,
}

impl Net {
    fn new(world: &World) -> Net {
        let hosts = world.path("hosts");
        let names = format!("127.0.0.1 localhost {ACME} {APP} outside.example.test\n");
        fs::write(&hosts, names).unwrap();
        let script = "ip link set lo up && mount --bind \"$1\" /etc/hosts && exec sleep 600";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "sh", "-c", script, "sh"]).arg(&hosts);
        let net = Net { holder: Kid::start(&mut command, &world.path("net-log")) };
        wait_for("the namespace is there", || {
            let comm = fs::read_to_string(format!("/proc/{}/comm", net.holder.pid()));
            comm.is_ok_and(|comm| comm.trim() == "sleep")
        });
        net
    }

    /// A command in it.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--net", "--target", &self.holder.pid().to_string(), "--"]);
        command.arg(program);
        command
    }
}

/// Whether this test can run here.
fn possible() -> bool {
    if !has(&["certbot", "openssl", "curl", "unshare", "nsenter", "ip"]) {
        return false;
    }
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "the ACME server's test needs root");
    say("skipped: acme_server: not root");
    false
}

struct Setup {
    node: Node,
    bundle: PathBuf,
    _kid: Kid,
    net: Net,
    world: World,
}

impl Setup {
    fn new() -> Setup {
        let world = World::new();
        let net = Net::new(&world);
        let sections = format!(
            "[authority]\nlisten = \"127.0.0.1:7400\"\n[edge]\nhttps = \"127.0.0.1:443\"\nhttp = []\nhttp3 = false\n[acme_server]\nname = \"{ACME}\"\nnames = \"*.corp.internal\"\nttl = \"1h\"\n"
        );
        let node = world.node("auth", &sections);
        let mut command = net.command(env!("CARGO_BIN_EXE_wiretight"));
        command.args(["run", "--config"]).arg(node.file());
        let kid = Kid::start(&mut command, &world.path("auth-log"));
        wait_for("the node is ready", || matches!(node.http("GET", "/readyz", ""), Ok((200, _))));
        let bundle = world.path("bundle.pem");
        let (_, answer) = node.http("GET", "/v1/bundle", "").unwrap();
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        fs::write(&bundle, answer["bundle"].as_str().unwrap()).unwrap();
        let setup = Setup { node, bundle, _kid: kid, net, world };
        wait_for("the directory is served", || setup.directory().code == Some(0));
        setup
    }

    fn directory(&self) -> Ran {
        let mut command = self.net.command("curl");
        command.args(["-sSf", "--cacert"]).arg(&self.bundle);
        Ran::of(command.arg(format!("https://{ACME}/directory")), "")
    }

    fn certbot(&self, args: &[&str]) -> Ran {
        let mut command = self.net.command("certbot");
        command.env("REQUESTS_CA_BUNDLE", &self.bundle).args(args);
        command.args(["--server", &format!("https://{ACME}/directory"), "--non-interactive"]);
        command.args(["--agree-tos", "--register-unsafely-without-email"]);
        for dir in ["config", "work", "logs"] {
            command.arg(format!("--{dir}-dir")).arg(self.world.path(&format!("certbot-{dir}")));
        }
        Ran::of(&mut command, "")
    }

    fn certbot_log(&self) -> String {
        fs::read_to_string(self.world.path("certbot-logs/letsencrypt.log")).unwrap_or_default()
    }

    fn live(&self, file: &str) -> PathBuf {
        self.world.path(&format!("certbot-config/live/{APP}/{file}"))
    }
}

#[test]
fn certbot_gets_and_renews_a_certificate() {
    if !possible() {
        return;
    }
    let setup = Setup::new();
    // A name that is not allowed.
    let outside = setup.certbot(&["certonly", "--standalone", "-d", "outside.example.test"]);
    assert_ne!(outside.code, Some(0));
    // Some releases of certbot fail on the refusal itself, so the response is read from its log.
    assert!(setup.certbot_log().contains("does not certify"), "{}", outside.all());

    // Another server has the name's port 80: it returns another key authorization.
    let wrong = setup.world.path("wrong");
    fs::create_dir(&wrong).unwrap();
    let web = setup.world.path("web");
    fs::create_dir_all(&web).unwrap();
    let script = "import http.server as h\nclass A(h.BaseHTTPRequestHandler):\n    def do_GET(s):\n        s.send_response(200)\n        s.end_headers()\n        s.wfile.write(s.path.rsplit('/', 1)[-1].encode() + b'.wrong')\nh.HTTPServer(('127.0.0.1', 80), A).serve_forever()\n";
    let mut command = setup.net.command("python3");
    let mut other = Kid::start(command.args(["-c", script]), &setup.world.path("other-log"));
    wait_for("the other server answers", || {
        let mut curl = setup.net.command("curl");
        Ran::of(curl.args(["-s", &format!("http://{APP}/")]), "").code == Some(0)
    });
    let refused = setup.certbot(&["certonly", "--webroot", "-w", web.to_str().unwrap(), "-d", APP]);
    assert_ne!(refused.code, Some(0));
    assert!(setup.certbot_log().contains("the key authorization from"), "{}", refused.all());
    other.kill();

    setup.certbot(&["certonly", "--standalone", "-d", APP]).good();
    let first = fs::read(setup.live("cert.pem")).unwrap();
    setup.certbot(&["renew", "--force-renewal", "--no-random-sleep-on-renew"]).good();
    let second = fs::read(setup.live("cert.pem")).unwrap();
    assert_ne!(first, second, "it was renewed");

    let mut verify = Command::new(find("openssl").unwrap());
    verify.args(["verify", "-purpose", "sslserver", "-verify_hostname", APP, "-CAfile"]);
    verify.arg(&setup.bundle).arg("-untrusted").arg(setup.live("chain.pem"));
    Ran::of(verify.arg(setup.live("cert.pem")), "").good();

    let mut server = setup.net.command("openssl");
    server.args(["s_server", "-www", "-accept", "127.0.0.1:8443", "-cert_chain"]);
    server.arg(setup.live("chain.pem")).arg("-cert").arg(setup.live("cert.pem"));
    server.arg("-key").arg(setup.live("privkey.pem"));
    let _server = Kid::start(&mut server, &setup.world.path("s_server-log"));
    let curl = || {
        let mut curl = setup.net.command("curl");
        curl.args(["-sSf", "--cacert"]).arg(&setup.bundle);
        Ran::of(curl.arg(format!("https://{APP}:8443/")), "")
    };
    wait_for("curl accepts it", || curl().code == Some(0));
    assert_eq!(setup.node.status()["ready"], true);
}

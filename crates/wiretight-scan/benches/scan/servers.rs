//! The scanned servers.

#[path = "../../../../tests/ports.rs"]
mod ports;

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ports::free;

/// A server and its description.
pub struct Server {
    pub title: &'static str,
    pub address: SocketAddr,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The installed servers.
pub fn all(folder: &Path) -> Vec<Server> {
    for (key, arguments) in
        [("rsa", &["rsa:2048"][..]), ("ec", &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"])]
    {
        let made = Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-subj", "/CN=localhost", "-days", "2", "-newkey"])
            .args(arguments)
            .arg("-out")
            .arg(folder.join(format!("{key}.pem")))
            .arg("-keyout")
            .arg(folder.join(format!("{key}.key")))
            .stderr(Stdio::null())
            .status();
        assert!(made.unwrap().success());
    }
    let file = |name: &str| folder.join(name).display().to_string();
    let (cert, key) = (file("rsa.pem"), file("rsa.key"));
    let mut servers = Vec::new();
    let address = free();
    let port = address.port().to_string();
    let s_server = ["s_server", "-www", "-quiet", "-accept", &port, "-cert", &cert, "-key", &key];
    servers.push(start("openssl s_server -www", address, Command::new("openssl").args(s_server)));
    let address = free();
    let configuration = format!(
        "pid {};\nerror_log /dev/null;\ndaemon off;\nworker_processes 1;\nevents {{}}\nhttp {{ access_log off;\n\
         server {{ listen {address} ssl; ssl_certificate {cert}; ssl_certificate_key {key};\n\
         location / {{ return 200 ok; }} }} }}\n",
        file("nginx.pid"),
    );
    std::fs::write(folder.join("nginx.conf"), configuration).unwrap();
    if Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_ok() {
        let mut nginx = Command::new("nginx");
        nginx.args(["-e", "/dev/null", "-c", &file("nginx.conf")]);
        servers.push(start("nginx", address, &mut nginx));
    }
    let address = free();
    let port = address.port().to_string();
    let mut everything = Command::new("openssl");
    everything
        .args(["s_server", "-www", "-quiet", "-accept", &port, "-cert", &cert, "-key", &key])
        .args(["-dcert", &file("ec.pem"), "-dkey", &file("ec.key")])
        .args(["-cipher", "ALL:COMPLEMENTOFALL:@SECLEVEL=0", "-psk", "00"]);
    servers.push(start("openssl s_server, all suites", address, &mut everything));
    servers
}

fn start(title: &'static str, address: SocketAddr, command: &mut Command) -> Server {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Server { title, address, child: command.spawn().unwrap() };
    for _ in 0..100 {
        if TcpStream::connect(address).is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    server
}

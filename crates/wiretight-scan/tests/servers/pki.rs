//! The certificates of the test servers, created by the `openssl` program, which does not share code with what is
//! tested.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

const CONFIG: &str = "
[ca]
default_ca = any
[any]
new_certs_dir = .
database = index.txt
rand_serial = yes
default_md = sha256
policy = any_name
unique_subject = no
[any_name]
commonName = supplied
[authority]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical,CA:FALSE
subjectAltName = DNS:localhost,IP:127.0.0.1,IP:::1
authorityInfoAccess = caIssuers;URI:http://127.0.0.1:9/ca.der
[staple]
subjectAltName = DNS:localhost
tlsfeature = status_request
authorityInfoAccess = OCSP;URI:http://127.0.0.1:9/
[other]
subjectAltName = DNS:other.example,DNS:*.wild.example
[signer]
extendedKeyUsage = OCSPSigning
";

/// The folder with all of them. For each leaf NAME: `NAME.key`, `NAME.pem` (the leaf), `NAME.chain` (leaf and
/// intermediate), `NAME.all` (chain and key). `root.pem` is the root, `ocsp.der` a response that says that
/// `rsa.pem` is good, `staple.der` the same for `staple.pem`; `dh1024.pem`, `dh2048.pem` are DH parameters.
///
/// | leaf | description |
/// |---|---|
/// | `rsa`, `rsa1024`, `ecdsa`, `p384`, `brainpool`, `ed25519` | for localhost, by its key |
/// | `expired` | RSA, expired in 2020 |
/// | `sha1` | RSA, signed with SHA-1 |
/// | `other` | RSA, for other.example and *.wild.example |
/// | `staple` | RSA, requires a stapled OCSP response |
/// | `client` | ECDSA, for a client |
/// | `self` | RSA, self-signed: its chain contains only the leaf |
pub fn folder() -> &'static Path {
    // Statics are not dropped, so it is kept below the target folder, and reused for a day.
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("scan-pki-{}", today()));
        if kept.join("done").exists() {
            return kept;
        }
        let dir = TempDir::with_prefix_in("scan-pki-", env!("CARGO_TARGET_TMPDIR")).unwrap();
        make(dir.path());
        fs::write(dir.path().join("done"), "").unwrap();
        // If another test binary was faster, use its files.
        let made = dir.keep();
        match fs::rename(&made, &kept) {
            Ok(()) => kept,
            Err(_) if kept.join("done").exists() => {
                let _ = fs::remove_dir_all(made);
                kept
            }
            Err(_) => made,
        }
    })
}

/// The folder is new for each day, because OCSP responses expire, and for each user.
fn today() -> String {
    let user = rustix::process::geteuid().as_raw();
    format!("{user}-{}", jiff::Timestamp::now().strftime("%Y%m%d"))
}

fn make(dir: &Path) {
    fs::write(dir.join("ca.cnf"), CONFIG).unwrap();
    fs::write(dir.join("index.txt"), "").unwrap();
    let run = |line: &str| {
        let done = Command::new("openssl")
            .args(line.split(' ').filter(|word| !word.is_empty()))
            .current_dir(dir)
            .env("OPENSSL_CONF", "/dev/null")
            .output()
            .unwrap();
        assert!(done.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let rsa = "-newkey rsa:2048";
    let ec = |curve: &str| format!("-newkey ec -pkeyopt ec_paramgen_curve:{curve}");
    run(&format!(
        "req -x509 {rsa} -nodes -keyout root.key -out root.pem -subj /CN=Scan_Test_Root -days 3650 -config ca.cnf \
         -extensions authority"
    ));
    run(&format!("req -new {rsa} -nodes -keyout ca.key -out ca.csr -subj /CN=Scan_Test_CA"));
    run("ca -batch -notext -config ca.cnf -extensions authority -cert root.pem -keyfile root.key \
         -in ca.csr -out ca.pem -days 1000");
    for (name, key, extensions, more) in [
        ("rsa", rsa, "leaf", "-days 90"),
        ("rsa1024", "-newkey rsa:1024", "leaf", "-days 90"),
        ("ecdsa", &ec("P-256"), "leaf", "-days 90"),
        ("p384", &ec("P-384"), "leaf", "-days 90"),
        ("brainpool", &ec("brainpoolP256r1"), "leaf", "-days 90"),
        ("ed25519", "-newkey ed25519", "leaf", "-days 90"),
        ("expired", rsa, "leaf", "-startdate 20200101000000Z -enddate 20200401000000Z"),
        ("sha1", rsa, "leaf", "-days 90 -md sha1"),
        ("other", rsa, "other", "-days 90"),
        ("staple", rsa, "staple", "-days 90"),
        ("client", &ec("P-256"), "leaf", "-days 90"),
        ("signer", rsa, "signer", "-days 90"),
    ] {
        run(&format!(
            "req -new {key} -nodes -keyout {name}.key -out {name}.csr -subj /CN=localhost"
        ));
        run(&format!(
            "ca -batch -notext -config ca.cnf -extensions {extensions} -cert ca.pem -keyfile ca.key -in {name}.csr \
             -out {name}.pem {more}"
        ));
        join(dir, &[&format!("{name}.pem"), "ca.pem"], &format!("{name}.chain"));
    }
    run(&format!(
        "req -x509 {rsa} -nodes -keyout self.key -out self.pem -subj /CN=localhost -days 90 -config ca.cnf \
         -extensions leaf"
    ));
    join(dir, &["self.pem"], "self.chain");
    for name in ["rsa", "ecdsa", "ed25519", "expired", "other", "staple", "self"] {
        join(dir, &[&format!("{name}.chain"), &format!("{name}.key")], &format!("{name}.all"));
    }
    for (name, to) in [("rsa", "ocsp.der"), ("staple", "staple.der")] {
        run(&format!(
            "ocsp -index index.txt -CA ca.pem -issuer ca.pem -cert {name}.pem -rsigner signer.pem -rkey signer.key \
             -ndays 7 -no_nonce -noverify -respout {to}"
        ));
    }
    run("dhparam -out dh1024.pem 1024");
    run("dhparam -out dh512.pem 512");
    run("genpkey -genparam -algorithm DH -pkeyopt group:ffdhe2048 -out dh2048.pem");
}

fn join(dir: &Path, parts: &[&str], to: &str) {
    let all: String =
        parts.iter().map(|part| fs::read_to_string(dir.join(part)).unwrap()).collect();
    fs::write(dir.join(to), all).unwrap();
}

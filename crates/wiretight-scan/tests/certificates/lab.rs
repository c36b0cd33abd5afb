//! Valid and invalid authorities and certificates, created by the openssl command in a temporary folder.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

pub struct Lab(TempDir);

/// The specification of a certificate.
#[derive(Clone, Copy)]
pub struct Spec<'a> {
    /// `rsa:2048`, `ec:P-256`, `ed25519`, `ed448`, `dsa:1024`.
    pub key: &'a str,
    /// The name of the signer; `None` for self-signed.
    pub issuer: Option<&'a str>,
    pub subject: &'a str,
    /// Lines of an extension section; if empty, there are no extensions, and the version is 1.
    pub extensions: &'a str,
    pub days: u32,
    /// Other options of `openssl x509 -req`.
    pub options: &'a [&'a str],
}

pub const AUTHORITY: &str = "basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign,cRLSign,digitalSignature\nsubjectKeyIdentifier=hash";
pub const SERVER: &str = "subjectAltName=DNS:www.example.test\nextendedKeyUsage=serverAuth\nauthorityInfoAccess=OCSP;URI:http://ocsp.example.test,caIssuers;URI:http://ca.example.test/ca.crt";

/// A server's certificate signed by `intermediate`.
pub const LEAF: Spec<'_> = Spec {
    key: "ec:P-256",
    issuer: Some("intermediate"),
    subject: "/CN=www.example.test",
    extensions: SERVER,
    days: 90,
    options: &[],
};

impl Lab {
    /// Creates `root` and `intermediate`. Returns `None` and prints a note if openssl is missing.
    pub fn new() -> Option<Self> {
        if let Err(error) = Command::new("openssl").arg("version").output() {
            assert!(std::env::var_os("CI").is_none(), "openssl: {error}");
            let _ = writeln!(std::io::stderr(), "skipped: openssl is not installed");
            return None;
        }
        let lab = Self(TempDir::new().unwrap());
        let authority = Spec { extensions: AUTHORITY, issuer: None, days: 3650, ..LEAF };
        lab.make("root", Spec { subject: "/O=Test/CN=Root", ..authority });
        lab.make(
            "intermediate",
            Spec { subject: "/O=Test/CN=Intermediate", issuer: Some("root"), ..authority },
        );
        Some(lab)
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    /// Runs openssl in the folder.
    pub fn openssl(&self, arguments: &[&str]) {
        let output =
            Command::new("openssl").args(arguments).current_dir(self.0.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {}: {text}", arguments.join(" "));
    }

    /// Creates `name.key` and `name.pem`; returns the certificate in DER.
    pub fn make(&self, name: &str, spec: Spec<'_>) -> Vec<u8> {
        let key = format!("{name}.key");
        if !self.path(&key).exists() {
            self.make_key(&key, spec.key);
        }
        let request = format!("{name}.csr");
        self.openssl(&[
            "req",
            "-new",
            "-utf8",
            "-key",
            &key,
            "-subj",
            spec.subject,
            "-out",
            &request,
        ]);
        let pem = format!("{name}.pem");
        let days = spec.days.to_string();
        let mut arguments = vec!["x509", "-req", "-in", &request, "-days", &days, "-out", &pem];
        if !spec.options.contains(&"-set_serial") {
            arguments.extend(["-set_serial", "0x1001"]);
        }
        let extensions = format!("{name}.ext");
        if !spec.extensions.is_empty() {
            fs::write(self.path(&extensions), spec.extensions).unwrap();
            arguments.extend(["-extfile", &extensions]);
        }
        let (issuer, issuer_key);
        match spec.issuer {
            None => arguments.extend(["-signkey", &key]),
            Some(name) => {
                (issuer, issuer_key) = (format!("{name}.pem"), format!("{name}.key"));
                arguments.extend(["-CA", &issuer, "-CAkey", &issuer_key]);
            }
        }
        arguments.extend(spec.options);
        self.openssl(&arguments);
        self.der(name)
    }

    fn make_key(&self, file: &str, kind: &str) {
        let (algorithm, parameter) = kind.split_once(':').unwrap_or((kind, ""));
        match algorithm {
            "rsa" => {
                let bits = format!("rsa_keygen_bits:{parameter}");
                self.openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", &bits, "-out", file]);
            }
            "ec" => {
                let curve = format!("ec_paramgen_curve:{parameter}");
                self.openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", &curve, "-out", file]);
            }
            "dsa" => {
                let (bits, q) =
                    (format!("dsa_paramgen_bits:{parameter}"), "dsa_paramgen_q_bits:160");
                let options = ["-pkeyopt", &bits, "-pkeyopt", q, "-out", "dsa.params"];
                self.openssl(
                    &[&["genpkey", "-genparam", "-algorithm", "DSA"][..], &options].concat(),
                );
                self.openssl(&["genpkey", "-paramfile", "dsa.params", "-out", file]);
            }
            other => self.openssl(&["genpkey", "-algorithm", other, "-out", file]),
        }
    }

    pub fn der(&self, name: &str) -> Vec<u8> {
        let (pem, der) = (format!("{name}.pem"), format!("{name}.der"));
        self.openssl(&["x509", "-in", &pem, "-outform", "DER", "-out", &der]);
        fs::read(self.path(&der)).unwrap()
    }

    /// An OCSP response about a serial number of `issuer`, signed by `responder`.
    pub fn ocsp(
        &self,
        issuer: &str,
        serial: &str,
        state: &str,
        responder: &str,
        options: &[&str],
    ) -> Vec<u8> {
        let revoked = if state == "R" { "260101000000Z" } else { "" };
        let line = match state {
            "unknown" => String::new(),
            _ => format!("{state}\t491231235959Z\t{revoked}\t{serial}\tunknown\t/CN=x\n"),
        };
        fs::write(self.path("index.txt"), line).unwrap();
        let (issuer, signer) = (format!("{issuer}.pem"), format!("{responder}.pem"));
        let (key, serial) = (format!("{responder}.key"), format!("0x{serial}"));
        let mut arguments = vec!["ocsp", "-index", "index.txt", "-CA", &issuer, "-issuer", &issuer];
        arguments.extend([
            "-rsigner",
            &signer,
            "-rkey",
            &key,
            "-respout",
            "response.der",
            "-noverify",
        ]);
        arguments.extend(options);
        arguments.extend(["-serial", &serial]);
        self.openssl(&arguments);
        fs::read(self.path("response.der")).unwrap()
    }
}

/// A DER value.
pub fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let len = u16::try_from(content.len()).unwrap().to_be_bytes();
    match (content.len(), len) {
        (0..0x80, [_, len]) => [&[tag, len][..], &content].concat(),
        (_, [0, len]) => [&[tag, 0x81, len][..], &content].concat(),
        (_, [high, low]) => [&[tag, 0x82, high, low][..], &content].concat(),
    }
}

//! The keys that are expected: a text file.
//!
//! ```text
//! # NAME           SHA-256 of the key's SubjectPublicKeyInfo, in hex
//! service/db       sha256:5d41…
//! service/db       sha256:7c21…
//! shop.example.org sha256:90ab…
//! ```
//!
//! A name is a SPIFFE ID, its path (`service/NAME`, `node/NAME`), or a DNS name.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The largest file that is read.
const MAX_FILE: u64 = 64 << 20;

/// Why the list cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ExpectError {
    /// It is not there.
    #[error("{} cannot be read", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line is not as it has to be.
    #[error("{}, line {line}: write NAME sha256:HEX, with 64 hex digits", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
}

/// Keys, by name.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Expected(HashMap<String, HashSet<[u8; 32]>>);

impl Expected {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Expected, ExpectError> {
        use std::io::Read;
        let mut text = String::new();
        let read =
            std::fs::File::open(path).and_then(|f| f.take(MAX_FILE).read_to_string(&mut text));
        read.map_err(|source| ExpectError::Read { path: path.to_owned(), source })?;
        Expected::parse(&text).map_err(|line| ExpectError::Line { path: path.to_owned(), line })
    }

    /// Parses its text; the error is the number of the bad line.
    pub fn parse(text: &str) -> Result<Expected, usize> {
        let mut expected = Expected::default();
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, key) = line.rsplit_once([' ', '\t']).ok_or(n + 1)?;
            let key = key.strip_prefix("sha256:").and_then(unhex).ok_or(n + 1)?;
            expected.0.entry(plain(name.trim())).or_default().insert(key);
        }
        Ok(expected)
    }

    /// Whether this key is expected for this name of a certificate.
    pub fn has(&self, name: &str, key: &[u8; 32]) -> bool {
        forms(name).any(|form| self.0.get(&form).is_some_and(|keys| keys.contains(key)))
    }
}

/// A name that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch(String);

impl FromStr for Watch {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Watch, &'static str> {
        match plain(text.trim()) {
            name if name.is_empty() => {
                Err("a name is a SPIFFE ID, service/NAME, node/NAME, or a DNS name")
            }
            name => Ok(Watch(name)),
        }
    }
}

impl Watch {
    /// Whether it is this name of a certificate. A wildcard of the certificate's covers what it watches.
    pub fn is_for(&self, name: &str) -> bool {
        let wildcard = name.strip_prefix("dns:*.").map(str::to_ascii_lowercase);
        let covered = wildcard
            .is_some_and(|parent| self.0.split_once('.').is_some_and(|(_, rest)| rest == parent));
        covered || forms(name).any(|form| form == self.0)
    }
}

/// The ways in which a certificate's name may be written here.
fn forms(name: &str) -> impl Iterator<Item = String> {
    let path = name
        .strip_prefix("spiffe://")
        .and_then(|n| n.split_once('/'))
        .map(|(_, path)| path.to_owned());
    [Some(plain(name)), path].into_iter().flatten()
}

/// DNS names and SPIFFE IDs as they are compared. Case does not matter in DNS, and SPIFFE IDs have none in their trust
/// domain; in their path it does.
fn plain(name: &str) -> String {
    match name.strip_prefix("dns:") {
        Some(dns) => dns.to_ascii_lowercase(),
        None if name.contains(['/', ':', '=']) => name.to_owned(),
        None => name.to_ascii_lowercase(),
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (n, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * n..2 * n + 2], 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_in_each_of_its_forms() {
        let (one, two) = ("11".repeat(32), "22".repeat(32));
        let list = format!(
            "# ours\n\nservice/db sha256:{one}\n Shop.example.org\tsha256:{one}\nsubject:CN=My CA sha256:{two}\n"
        );
        let expected = Expected::parse(&list).unwrap();
        for name in
            ["spiffe://example.org/service/db", "dns:shop.example.org", "dns:SHOP.example.org"]
        {
            assert!(expected.has(name, &[0x11; 32]), "{name}");
            assert!(!expected.has(name, &[0x22; 32]), "{name}");
        }
        assert!(expected.has("subject:CN=My CA", &[0x22; 32]));
        assert!(!expected.has("spiffe://example.org/service/web", &[0x11; 32]));
        for bad in [
            "service/db",
            "service/db sha256:11",
            "service/db md5:11",
            &format!("a sha256:{}", "é".repeat(32)),
        ] {
            assert_eq!(Expected::parse(&format!("\n{bad}\n")), Err(2), "{bad}");
        }
    }

    #[test]
    fn a_watched_name_is_covered_by_a_wildcard() {
        let watch: Watch = "shop.example.org".parse().unwrap();
        assert!(watch.is_for("dns:shop.example.org") && watch.is_for("dns:*.Example.org"));
        assert!(!watch.is_for("dns:*.org") && !watch.is_for("dns:www.example.org"));
        let watch: Watch = "service/db".parse().unwrap();
        assert!(watch.is_for("spiffe://example.org/service/db"));
        assert!(!watch.is_for("spiffe://example.org/service/db2") && !watch.is_for("dns:service"));
        let watch: Watch = "spiffe://example.org/service/db".parse().unwrap();
        assert!(
            watch.is_for("spiffe://example.org/service/db")
                && !watch.is_for("spiffe://example.net/service/db")
        );
    }
}

//! Expected keys, and watched names.
//!
//! ```text
//! # NAME           SHA-256 of the key's SubjectPublicKeyInfo, in hex
//! service/db       sha256:5d41…
//! service/db       sha256:7c21…
//! shop.example.org sha256:90ab…
//! spiffe://example.org sha256:11fe…
//! ```
//!
//! A name is a SPIFFE ID, its path (`service/NAME`, `node/NAME`), a DNS name or an address. Each stands for all names of
//! the same identity ([`Name`]). The key of a CA is expected only under its trust domain (or its subject), never under
//! the name of a service.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::name::Name;

/// The largest file, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// Pause before reading a file again that may be half written.
const HALF_WRITTEN: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum ExpectError {
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "{}, line {line} is not NAME sha256:HEX with 64 hex digits. To replace the list, write another file and rename it, so that it is never read half written.", .path.display()
    )]
    Line {
        path: PathBuf,
        /// From 1.
        line: usize,
    },
}

/// Expected keys, by name.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Expected(HashMap<Name, HashSet<[u8; 32]>>);

impl Expected {
    pub fn read(path: &Path) -> Result<Expected, ExpectError> {
        use std::io::Read;
        let mut text = String::new();
        let read = std::fs::File::open(path)
            .and_then(|f| f.take(MAX_FILE + 1).read_to_string(&mut text))
            .and_then(|read| match read as u64 > MAX_FILE {
                true => Err(std::io::Error::other(format!("it has more than {MAX_FILE} bytes"))),
                false => Ok(()),
            });
        read.map_err(|source| ExpectError::Read { path: path.to_owned(), source })?;
        Expected::parse(&text).map_err(|line| ExpectError::Line { path: path.to_owned(), line })
    }

    /// Reads the file; tries again if it may be half written.
    pub async fn read_patiently(path: &Path) -> Result<Expected, ExpectError> {
        for _ in 0..3 {
            if let Ok(expected) = Expected::read(path) {
                return Ok(expected);
            }
            tokio::time::sleep(HALF_WRITTEN).await;
        }
        Expected::read(path)
    }

    /// Parses the list; the error is the number of the invalid line.
    pub fn parse(text: &str) -> Result<Expected, usize> {
        let mut expected = Expected::default();
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, key) = line.rsplit_once([' ', '\t']).ok_or(n + 1)?;
            let key = key.strip_prefix("sha256:").and_then(unhex).ok_or(n + 1)?;
            expected.0.entry(Name::written(name.trim())).or_default().insert(key);
        }
        Ok(expected)
    }

    /// Whether this key is expected for this name of a certificate.
    pub fn has(&self, name: &Name, key: &[u8; 32], is_ca: bool) -> bool {
        if is_ca != matches!(name, Name::Domain(_) | Name::Subject(_)) {
            return false;
        }
        name.forms().any(|form| self.0.get(&form).is_some_and(|keys| keys.contains(key)))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch(Name);

impl FromStr for Watch {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Watch, &'static str> {
        match Name::written(text.trim()) {
            Name::Opaque(_) => Err(
                "expected a SPIFFE ID, service/NAME, node/NAME, a DNS name (in ASCII: xn--...) or an IP address",
            ),
            name => Ok(Watch(name)),
        }
    }
}

impl Watch {
    /// Whether a certificate with this name concerns one of the watched names. A name that cannot be compared always does.
    /// So does an address, unless addresses are watched: it may be the address of any watched service.
    pub fn any(watched: &[Watch], name: &Name) -> bool {
        let addresses = || watched.iter().any(|watch| matches!(watch.0, Name::Ip(_)));
        match name {
            _ if watched.is_empty() => false,
            Name::Opaque(_) => true,
            Name::Ip(_) if !addresses() => true,
            name => watched.iter().any(|watch| watch.0.meets(name)),
        }
    }
}

pub(super) fn unhex(text: &str) -> Option<[u8; 32]> {
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

    fn name(text: &str) -> Name {
        Name::of_certificate(text).unwrap()
    }

    #[test]
    fn a_name_is_found_in_each_of_its_forms() {
        let (one, two) = ("11".repeat(32), "22".repeat(32));
        let list = format!(
            "# ours\n\nservice/db sha256:{one}\n Shop.example.org\tsha256:{one}\nsubject:CN=My CA sha256:{two}\n"
        );
        let expected = Expected::parse(&list).unwrap();
        for text in [
            "spiffe://example.org/service/db",
            "dns:db.service.example.org",
            "dns:shop.example.org",
            "dns:SHOP.example.org.",
        ] {
            assert!(expected.has(&name(text), &[0x11; 32], false), "{text}");
            assert!(!expected.has(&name(text), &[0x22; 32], false), "{text}");
            assert!(!expected.has(&name(text), &[0x11; 32], true), "a CA as {text}");
        }
        assert!(expected.has(&name("subject:CN=My CA"), &[0x22; 32], true));
        assert!(!expected.has(&name("spiffe://example.org/service/web"), &[0x11; 32], false));
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
    fn an_authority_is_expected_by_its_trust_domain() {
        let list = format!("spiffe://Example.org/ sha256:{}", "11".repeat(32));
        let expected = Expected::parse(&list).unwrap();
        assert!(expected.has(&name("spiffe://example.org"), &[0x11; 32], true));
        assert!(!expected.has(&name("spiffe://example.org/service/db"), &[0x11; 32], false));
    }

    #[test]
    fn names_that_cannot_be_compared_concern_every_watch() {
        let watch = |list: &[&str]| list.iter().map(|w| w.parse().unwrap()).collect::<Vec<Watch>>();
        let (db, with_address) = (watch(&["service/db"]), watch(&["service/db", "192.0.2.1"]));
        for seen in ["dns:db.service.example.org", "email:db@example.org", "ip:192.0.2.1"] {
            assert!(Watch::any(&db, &name(seen)), "{seen}");
            assert!(Watch::any(&with_address, &name(seen)), "{seen}");
        }
        assert!(Watch::any(&db, &name("ip:192.0.2.9")));
        assert!(!Watch::any(&with_address, &name("ip:192.0.2.9")));
        assert!(!Watch::any(&db, &name("spiffe://example.org/service/web")));
        assert!(!Watch::any(&[], &name("email:db@example.org")));
        for bad in ["", "a b", "b\u{fc}cher.example", "db/", "email:a@example.org"] {
            assert!(bad.parse::<Watch>().is_err(), "{bad:?}");
        }
    }
}

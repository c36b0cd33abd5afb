//! SPIFFE identities.
//!
//! A trust domain has three kinds of identities; no others are accepted (SPIFFE-ID, section 2):
//!
//! ```text
//! spiffe://TRUST-DOMAIN/service/NAME    a service, or a client program acting `as` one
//! spiffe://TRUST-DOMAIN/node/NAME       one machine
//! spiffe://TRUST-DOMAIN/authority       the authority itself: no token or CSR can ask for it
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not a valid name or identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is empty or longer than its limit.
    #[error("{what} must have 1 to {max} characters, not {len}")]
    Length {
        /// What the text should name.
        what: &'static str,
        max: usize,
        /// The length found.
        len: usize,
    },
    /// A character that is not allowed.
    #[error(
        "{what} may contain only a-z, 0-9, '-'{extra} and must start and end with a letter or digit; found {found:?}"
    )]
    Character {
        /// What the text should name.
        what: &'static str,
        /// Further characters allowed in this kind of name.
        extra: &'static str,
        /// The invalid character.
        found: char,
    },
    /// Not `service/NAME` or `node/NAME`.
    #[error("an identity is \"service/NAME\" or \"node/NAME\", not {0:?}")]
    Kind(String),
    /// Not a `spiffe://` URI of the three forms.
    #[error("not a SPIFFE ID of the form spiffe://TRUST-DOMAIN/service/NAME or /node/NAME")]
    Uri,
}

/// 1 to `max` of a-z 0-9 '-' and `extra`, a letter or digit at both ends.
fn check(what: &'static str, s: &str, max: usize, extra: &'static str) -> Result<(), NameError> {
    if s.is_empty() || s.len() > max {
        return Err(NameError::Length { what, max, len: s.len() });
    }
    let edge = |c: Option<char>| c.filter(|c| !c.is_ascii_lowercase() && !c.is_ascii_digit());
    let inner = |c: &char| {
        !(c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-' || extra.contains(*c))
    };
    match s.chars().find(inner).or(edge(s.chars().next())).or(edge(s.chars().next_back())) {
        Some(found) => {
            let extra = match extra {
                "" => "",
                "_" => ", '_'",
                _ => ", '.', '_'",
            };
            Err(NameError::Character { what, extra, found })
        }
        None => Ok(()),
    }
}

macro_rules! text_type {
    ($name:ident) => {
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(s: String) -> Result<Self, NameError> {
                s.parse()
            }
        }
        impl From<$name> for String {
            fn from(n: $name) -> String {
                n.0.into()
            }
        }
    };
}

/// A trust domain: lower-case DNS-like, at most 128 characters (the SPIFFE limit is 255; ours keeps
/// `NAME.service.TRUST-DOMAIN` a valid DNS name of at most 253).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(Box<str>);
text_type!(TrustDomain);

impl FromStr for TrustDomain {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        check("a trust domain", s, 128, "._")?;
        for label in s.split('.') {
            check("each part of a trust domain", label, 63, "_")?;
        }
        Ok(TrustDomain(s.into()))
    }
}

/// The NAME of a service or a node: one DNS label (1 to 63 of a-z 0-9 '-').
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Box<str>);
text_type!(Name);

impl FromStr for Name {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        check("a name", s, 63, "")?;
        Ok(Name(s.into()))
    }
}

/// An identity within a trust domain, as in the configuration file: `service/NAME` or `node/NAME`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Id {
    /// `service/NAME`
    Service(Name),
    /// `node/NAME`
    Node(Name),
    /// `authority`: cannot be written in the configuration file.
    Authority,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Id::Service(n) => write!(f, "service/{n}"),
            Id::Node(n) => write!(f, "node/{n}"),
            Id::Authority => f.write_str("authority"),
        }
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Id {
    type Err = NameError;
    /// `service/NAME` or `node/NAME`.
    fn from_str(s: &str) -> Result<Self, NameError> {
        match s.split_once('/') {
            Some(("service", name)) => Ok(Id::Service(name.parse()?)),
            Some(("node", name)) => Ok(Id::Node(name.parse()?)),
            _ => Err(NameError::Kind(s.chars().take(80).collect())),
        }
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A valid SPIFFE ID.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    pub trust_domain: TrustDomain,
    /// The identity within the trust domain.
    pub id: Id,
}

impl SpiffeId {
    /// `spiffe://TRUST-DOMAIN/ID`.
    pub fn new(trust_domain: TrustDomain, id: Id) -> SpiffeId {
        SpiffeId { trust_domain, id }
    }

    /// A DNS name for the identity, `NAME.service.TRUST-DOMAIN`. It is a second SAN, so that software that knows only
    /// host names (curl, nginx, stunnel) can check the peer, and it is sent as SNI. `_` in a trust domain becomes
    /// `-`.
    pub fn dns_name(&self) -> String {
        let td = self.trust_domain.as_str().replace('_', "-");
        match &self.id {
            Id::Service(n) => format!("{n}.service.{td}"),
            Id::Node(n) => format!("{n}.node.{td}"),
            Id::Authority => format!("authority.{td}"),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/{}", self.trust_domain, self.id)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SpiffeId {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        let (td, path) =
            s.strip_prefix("spiffe://").and_then(|r| r.split_once('/')).ok_or(NameError::Uri)?;
        let id = match path {
            "authority" => Id::Authority,
            path => path.parse().map_err(|_| NameError::Uri)?,
        };
        Ok(SpiffeId { trust_domain: td.parse()?, id })
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_three_forms_are_identities() {
        for good in [
            "spiffe://example.org/service/db",
            "spiffe://example.org/node/a-1",
            "spiffe://x/authority",
        ] {
            assert_eq!(good.parse::<SpiffeId>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "spiffe://",
            "spiffe://example.org",
            "spiffe://example.org/",
            "spiffe://example.org/service/",
            "spiffe://example.org/service/db/x",
            "spiffe://example.org/service/db?x=1",
            "spiffe://Example.org/service/db",
            "spiffe://example.org:80/service/db",
            "spiffe://user@example.org/service/db",
            "spiffe://example.org/service/DB",
            "spiffe://example.org/service/-db",
            "spiffe://example.org/other/db",
            "spiffe:///service/db",
            "https://example.org/service/db",
            "spiffe://example.org/authority/x",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn names_and_trust_domains_are_bounded() {
        let name = |text: &str| text.parse::<Name>().map_err(|e| e.to_string());
        for good in ["a", "0", "a-b", "a--b", &"a".repeat(63)] {
            assert_eq!(name(good).unwrap().as_str(), good);
        }
        assert_eq!(name("").unwrap_err(), "a name must have 1 to 63 characters, not 0");
        let long = name(&"a".repeat(64)).unwrap_err();
        assert_eq!(long, "a name must have 1 to 63 characters, not 64");
        for (bad, found) in [("-a", '-'), ("a-", '-'), ("a_b", '_'), ("a.b", '.'), ("aB", 'B')] {
            let refused = name(bad).unwrap_err();
            assert!(refused.starts_with("a name may contain only a-z, 0-9, '-' and"), "{refused}");
            assert!(refused.ends_with(&format!("found {found:?}")), "{refused}");
        }
        let domain = |text: &str| text.parse::<TrustDomain>().map_err(|e| e.to_string());
        let (label, short) = ("a".repeat(63), "a".repeat(62));
        for good in
            ["x", "a_b.c", "a.b-c.0", &format!("{label}.{label}"), &format!("{label}.{short}.b")]
        {
            assert_eq!(domain(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "a..b",
            ".a",
            "a.",
            "a.-b",
            "_a",
            "a b",
            &format!("{label}a"),
            &format!("{label}.{label}.b"),
        ] {
            assert!(domain(bad).is_err(), "{bad:?}");
        }
        assert!(domain("a b").unwrap_err().contains("'-', '.', '_' and must"));
        assert!(domain("a.-b").unwrap_err().contains("'-', '_' and must"));
    }

    #[test]
    fn dns_names_contain_no_underscore() {
        for (id, name) in [
            ("spiffe://a_b.org/service/db", "db.service.a-b.org"),
            ("spiffe://a_b.org/node/db1", "db1.node.a-b.org"),
            ("spiffe://a_b.org/authority", "authority.a-b.org"),
        ] {
            assert_eq!(id.parse::<SpiffeId>().unwrap().dns_name(), name);
        }
    }

    #[test]
    fn config_names_cannot_claim_the_authority() {
        assert!("authority".parse::<Id>().is_err());
        assert_eq!("service/db".parse::<Id>().unwrap().to_string(), "service/db");
    }
}

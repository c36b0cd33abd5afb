//! Targets of a scan: a host, a port, and the protocol before TLS.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An endpoint to scan. Examples: `example.com`, `example.com:8443`, `[::1]:443`,
/// `smtp://mail.example`, `postgres://10.0.0.5:5432`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    pub host: Host,
    pub port: u16,
    /// The protocol before TLS.
    pub start: Start,
}

/// A name or an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A domain name, in lower case, without a trailing dot.
    Name(String),
    /// An address; an IPv6 address may have a zone.
    Address(IpAddr, Option<String>),
}

macro_rules! starts {
    ($($variant:ident $scheme:literal $port:literal,)*) => {
        /// The protocol before TLS.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[allow(missing_docs, reason = "their names say it")]
        pub enum Start {
            $(#[serde(rename = $scheme)] $variant,)*
        }

        impl Start {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The part before `://`.
            pub fn scheme(self) -> &'static str {
                match self { $(Self::$variant => $scheme,)* }
            }

            /// The default port.
            pub fn port(self) -> u16 {
                match self { $(Self::$variant => $port,)* }
            }
        }
    };
}

starts! {
    Direct "tls" 443,
    Https "https" 443,
    Smtp "smtp" 25,
    Lmtp "lmtp" 24,
    Imap "imap" 143,
    Pop3 "pop3" 110,
    Sieve "sieve" 4190,
    Ftp "ftp" 21,
    Nntp "nntp" 119,
    XmppClient "xmpp" 5222,
    XmppServer "xmpp-server" 5269,
    Ldap "ldap" 389,
    Postgres "postgres" 5432,
    Mysql "mysql" 3306,
    Irc "irc" 6667,
    Telnet "telnet" 23,
    Rdp "rdp" 3389,
    Mssql "mssql" 1433,
}

impl Start {
    /// The protocol that is usual on this port.
    fn of_port(port: u16) -> Self {
        match port {
            587 => Self::Smtp,
            // Implicit TLS, also for unknown ports.
            443 => Self::Direct,
            _ => Self::ALL.iter().copied().find(|s| s.port() == port).unwrap_or(Self::Direct),
        }
    }
}

/// Why a target is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid target `{0}`: {1}; write HOST, HOST:PORT, [ADDRESS]:PORT or PROTOCOL://HOST:PORT")]
pub struct TargetError(String, &'static str);

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let error = |why| TargetError(text.chars().take(100).collect(), why);
        let (start, rest) = match text.split_once("://") {
            None => (None, text),
            Some((scheme, rest)) => {
                let scheme = scheme.to_ascii_lowercase();
                if scheme == "http" {
                    return Err(error("http:// has no TLS to scan, use https://"));
                }
                let known = Start::ALL.iter().copied().find(|s| s.scheme() == scheme);
                let start = known.ok_or_else(|| error("unknown protocol"))?;
                // Copied URLs may have a path, a query and a fragment, which do not matter here.
                (Some(start), rest.split(['/', '?', '#']).next().unwrap_or_default())
            }
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or_else(|| error("`]` is missing"))?;
                let port = match after {
                    "" => None,
                    _ => Some(
                        after.strip_prefix(':').ok_or_else(|| error("`:` is missing after `]`"))?,
                    ),
                };
                (host, port)
            }
            // More than one colon: an IPv6 address without brackets.
            None if rest.matches(':').count() > 1 => (rest, None),
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let port = match port {
            None => None,
            Some(port) => match port.parse::<u16>() {
                Ok(port) if port > 0 && !rest.contains("+") => Some(port),
                _ => return Err(error("the port must be a number from 1 to 65535")),
            },
        };
        let host = host.parse::<Host>().map_err(|TargetError(_, why)| error(why))?;
        let (start, port) = match (start, port) {
            (None, None) => (Start::Direct, Start::Direct.port()),
            (None, Some(port)) => (Start::of_port(port), port),
            (Some(start), port) => (start, port.unwrap_or(start.port())),
        };
        Ok(Self { host, port, start })
    }
}

impl FromStr for Host {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let error = |why| TargetError(text.chars().take(100).collect(), why);
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address, None));
        }
        if let Some((address, zone)) = text.split_once('%') {
            let address = address
                .parse::<Ipv6Addr>()
                .map_err(|_| error("only an IPv6 address has a zone"))?;
            let sound = !zone.is_empty()
                && zone.len() < 16
                && zone.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            return match sound {
                true => Ok(Self::Address(address.into(), Some(zone.to_owned()))),
                false => Err(error("the zone is not the name of an interface")),
            };
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if name.is_empty() {
            return Err(error("the host is missing"));
        }
        let label = |l: &str| {
            !l.is_empty()
                && l.len() < 64
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        // Do not look up malformed IPv4 addresses as names.
        let numeric =
            name.rsplit('.').next().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
        match name.len() < 254 && name.split('.').all(label) && !numeric {
            true => Ok(Self::Name(name)),
            false if !name.is_ascii() => {
                Err(error("write an internationalized name in its xn-- form"))
            }
            false => Err(error("the host is neither a name nor an address")),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if Start::of_port(self.port) != self.start {
            write!(f, "{}://", self.start.scheme())?;
        }
        match &self.host {
            Host::Address(IpAddr::V6(_), _) => write!(f, "[{}]:{}", self.host, self.port),
            _ => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address, None) => write!(f, "{address}"),
            Self::Address(address, Some(zone)) => write!(f, "{address}%{zone}"),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_parse_in_all_usual_spellings() {
        for (text, start, shown) in [
            ("example.com", Start::Direct, "example.com:443"),
            ("Example.COM.:8443", Start::Direct, "example.com:8443"),
            ("example.com:25", Start::Smtp, "example.com:25"),
            ("tls://example.com:25", Start::Direct, "tls://example.com:25"),
            ("smtp://example.com:2525", Start::Smtp, "smtp://example.com:2525"),
            ("https://example.com/", Start::Https, "https://example.com:443"),
            ("HTTPS://example.com/a/b?c#d", Start::Https, "https://example.com:443"),
            ("https://[::1]:8443?q", Start::Https, "https://[::1]:8443"),
            ("::1", Start::Direct, "[::1]:443"),
            ("[fe80::1%eth0]:5432", Start::Postgres, "[fe80::1%eth0]:5432"),
            ("10.0.0.1:993", Start::Direct, "10.0.0.1:993"),
        ] {
            let target: Target = text.parse().unwrap_or_else(|e| panic!("{e}"));
            assert_eq!((target.start, target.to_string().as_str()), (start, shown), "{text}");
            assert_eq!(shown.parse::<Target>().as_ref(), Ok(&target), "{text}");
        }
        for text in [
            "",
            ":443",
            "a b",
            "example.com:0",
            "example.com:+5",
            "example.com:99999",
            "gopher://x",
            "[::1",
            "[::1]443",
            "1.2.3",
            "300.1.1.1",
            "-..com",
            "bücher.example",
            "fe80::1%",
            "x%eth0",
            "example.com/path",
            "10.0.0.0/24",
            "https://",
            "https:///path",
            "https://user@example.com/",
            "http://example.com/",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}

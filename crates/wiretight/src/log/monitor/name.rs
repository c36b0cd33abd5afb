//! Names in a canonical form for comparison.
//!
//! Software accepts a certificate for an identity by several names: our nodes by the SPIFFE ID, curl or nginx by the DNS
//! name derived from it, others by a common name or an address, with or without a trailing dot, in upper or lower case.
//! So each name from a certificate or a list is parsed into a [`Name`], in which all spellings of one identity are equal.
//!
//! Parsing is lenient on purpose. A name that some software might accept for a watched one must match it, even if our
//! own nodes would refuse it. A name that cannot be compared is [`Name::Opaque`], which matches every watch.

use std::net::{IpAddr, Ipv6Addr};

/// The longest text of a name in an alert or a message, in characters.
const SHOWN: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    /// A host: lower-case labels, perhaps with `*`. A SPIFFE ID of a service or node is represented by the host name
    /// derived from it (`db.service.example.org`), so that both are equal.
    Host(String),
    /// The first labels of a host in any trust domain: `db.service`. Written as `service/db` in lists.
    Anywhere(String),
    Ip(IpAddr),
    /// A trust domain, the name in its CA certificates.
    Domain(String),
    /// Another SPIFFE ID: `TRUST-DOMAIN/PATH`.
    Spiffe(String),
    /// The path of such an ID, in any trust domain.
    Path(String),
    /// The subject of a certificate without other names.
    Subject(String),
    /// A name that cannot be compared, unchanged.
    Opaque(String),
}

impl Name {
    /// A name of a logged certificate ([`LoggedCertificate::names`](wiretight_keys::logged::LoggedCertificate)).
    /// `None` for a common name that no software takes for an identity.
    pub fn of_certificate(text: &str) -> Option<Name> {
        Some(match text.split_once(':') {
            Some(("dns", name)) => host(name),
            Some(("ip", address)) => match address.parse() {
                Ok(address) => Name::Ip(address),
                Err(_) => Name::Opaque(text.into()),
            },
            Some(("cn", name)) => return common(name),
            Some(("subject", _)) => Name::Subject(text.into()),
            Some(("email" | "other", _)) => Name::Opaque(text.into()),
            _ => uri(text),
        })
    }

    /// A name as people write it: a SPIFFE ID, `service/NAME`, `node/NAME`, `authority`, a DNS name, an address, or a name
    /// as in an alert.
    pub fn written(text: &str) -> Name {
        let lower = text.to_ascii_lowercase();
        match lower.split_once(':') {
            Some(("dns", name)) => return host(name),
            Some(("ip", address)) if address.parse::<IpAddr>().is_ok() => return host(address),
            Some(("subject", _)) => return Name::Subject(text.into()),
            Some(("cn", name)) => return common(name).unwrap_or_else(|| Name::Opaque(text.into())),
            Some(("email" | "other", _)) => return Name::Opaque(text.into()),
            Some((_, rest)) if rest.starts_with("//") => return uri(text),
            _ => {}
        }
        if lower == "authority" {
            return Name::Anywhere(lower);
        }
        match lower.split_once('/') {
            Some(_) if !is_plain(&lower) || lower.split('/').any(str::is_empty) => {
                Name::Opaque(text.into())
            }
            Some((kind, name)) => {
                known(kind, name).map_or(Name::Path(lower.clone()), Name::Anywhere)
            }
            None => host(text),
        }
    }

    /// Whether one of the two can be accepted for the other. Both may contain wildcards.
    pub fn meets(&self, other: &Name) -> bool {
        match (self, other) {
            (Name::Host(a), Name::Host(b)) | (Name::Anywhere(a), Name::Anywhere(b)) => {
                labels(a, b) == Some(std::cmp::Ordering::Equal)
            }
            (Name::Anywhere(first), Name::Host(host))
            | (Name::Host(host), Name::Anywhere(first)) => {
                labels(first, host).is_some_and(|longer| longer.is_le())
            }
            (Name::Path(path), Name::Spiffe(id)) | (Name::Spiffe(id), Name::Path(path)) => {
                id.split_once('/').is_some_and(|(_, p)| p == path)
            }
            (a, b) => a == b,
        }
    }

    /// All forms of this name that a list may contain.
    pub fn forms(&self) -> impl Iterator<Item = Name> {
        let wider = match self {
            Name::Host(host) => {
                let mut labels = host.split('.');
                match (labels.next(), labels.next()) {
                    (Some(name), Some(kind)) if known(kind, name).is_some() => {
                        Some(Name::Anywhere(format!("{name}.{kind}")))
                    }
                    (Some("authority"), Some(_)) => Some(Name::Anywhere("authority".into())),
                    _ => None,
                }
            }
            Name::Spiffe(id) => id.split_once('/').map(|(_, path)| Name::Path(path.into())),
            _ => None,
        };
        std::iter::once(self.clone()).chain(wider)
    }
}

/// A text from a certificate, made safe for an alert.
pub fn shown(text: &str) -> String {
    text.chars().take(SHOWN).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// For `service` or `node` with a name: the first labels of its host name.
fn known(kind: &str, name: &str) -> Option<String> {
    let is_name = !name.is_empty() && !name.contains(['.', '/']);
    (matches!(kind, "service" | "node") && is_name).then(|| format!("{name}.{kind}"))
}

/// Whether a text is not empty and only has characters that are valid in names.
fn is_plain(text: &str) -> bool {
    let allowed =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'*' | b'/' | b'_');
    !text.is_empty() && text.bytes().all(allowed)
}

/// A host name or an address. Case and a trailing dot are ignored; `_` becomes `-`, as in the DNS names of our trust
/// domains.
fn host(text: &str) -> Name {
    let bare = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let address = bare.strip_prefix('[').and_then(|b| b.strip_suffix(']')).unwrap_or(&bare);
    if let Ok(address) = address.parse::<IpAddr>() {
        return Name::Ip(address.to_canonical());
    }
    let empty = bare.split('.').any(str::is_empty);
    match is_plain(&bare) && !bare.contains('/') && !empty {
        true => Name::Host(bare.replace('_', "-")),
        false => Name::Opaque(text.into()),
    }
}

/// A URI. Only host and path count; escapes, empty segments and case are normalised.
fn uri(text: &str) -> Name {
    let opaque = || Name::Opaque(text.into());
    let Some((scheme, rest)) = text.split_once(':') else { return opaque() };
    let Some(rest) = rest.strip_prefix("//") else { return opaque() };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let Some((authority, path)) = unescape(authority).zip(unescape(path)) else { return opaque() };
    let authority = authority.rsplit('@').next().unwrap_or_default();
    let bare = match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => authority,
    };
    let bare = if authority.parse::<Ipv6Addr>().is_ok() { authority } else { bare };
    let domain = host(bare);
    if !scheme.eq_ignore_ascii_case("spiffe") {
        return match domain {
            Name::Opaque(_) => opaque(),
            domain => domain, // RFC 6125 allows software to identify a server by this host
        };
    }
    let domain = match domain {
        Name::Host(domain) => domain,
        Name::Ip(address) => address.to_string(),
        _ => return opaque(),
    };
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment.to_ascii_lowercase()),
        }
    }
    match segments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => Name::Domain(domain),
        ["authority"] => Name::Host(format!("authority.{domain}")),
        [kind, name] if known(kind, name).is_some() => {
            Name::Host(format!("{name}.{kind}.{domain}"))
        }
        path => Name::Spiffe(format!("{domain}/{}", path.join("/"))),
    }
}

/// A common name. Some verifiers fall back to it as a host name; some programs map `service/NAME` in it to a user.
fn common(text: &str) -> Option<Name> {
    let text = text.trim();
    match Name::written(text) {
        Name::Opaque(_) | Name::Subject(_) if text.is_empty() || text.contains(' ') => None,
        Name::Opaque(_) | Name::Subject(_) => Some(Name::Opaque(format!("cn:{text}"))),
        name => Some(name),
    }
}

/// Decodes `%XX`. `None` if the result is not plain ASCII.
fn unescape(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.as_bytes().split_at_checked(2)?;
        let digits = str::from_utf8(digits).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(rest);
    }
    let text = String::from_utf8(bytes).ok()?;
    text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'%' | b'\\')).then_some(text)
}

/// Compares two names label by label from the left. If the labels that both have can be equal, returns how their numbers
/// of labels compare.
fn labels(a: &str, b: &str) -> Option<std::cmp::Ordering> {
    let (mut left, mut right) = (a.split('.'), b.split('.'));
    loop {
        match (left.next(), right.next()) {
            (Some(a), Some(b)) if label(a.as_bytes(), b.as_bytes()) => {}
            (Some(_), Some(_)) => return None,
            (a, b) => return Some(a.is_some().cmp(&b.is_some())),
        }
    }
}

/// Whether some text matches both labels; a `*` in either matches any text.
fn label(a: &[u8], b: &[u8]) -> bool {
    if !a.contains(&b'*') && !b.contains(&b'*') {
        return a == b;
    }
    // reach[j]: the part of `a` processed so far can match the first j bytes of `b`.
    let mut reach = vec![false; b.len() + 1];
    reach[0] = true;
    for j in 0..b.len() {
        reach[j + 1] = reach[j] && b[j] == b'*';
    }
    for x in a {
        let mut next = vec![false; b.len() + 1];
        next[0] = reach[0] && *x == b'*';
        for (j, y) in b.iter().enumerate() {
            next[j + 1] = match (*x == b'*', *y == b'*') {
                (false, false) => reach[j] && x == y,
                // A star ends here, or matches one more byte of the other.
                (true, _) | (_, true) => reach[j + 1] || next[j],
            };
        }
        reach = next;
    }
    reach[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Name {
        Name::of_certificate(text).unwrap()
    }

    #[test]
    fn all_spellings_of_an_identity_are_equal() {
        let db = Name::Host("db.service.example.org".into());
        for same in [
            "spiffe://example.org/service/db",
            "SPIFFE://Example.ORG/service/db",
            "spiffe://example.org./service/db/",
            "spiffe://example.org:443//service/./db?x=1#y",
            "spiffe://user@example.org/service/%64b",
            "spiffe://example.org/service/x/../DB",
            "dns:db.service.example.org",
            "dns:DB.Service.example.org.",
            "cn:db.service.example.org",
            "https://db.service.example.org:8443/path",
        ] {
            assert_eq!(of(same), db, "{same}");
        }
        assert_eq!(Name::written("spiffe://example.org/service/db"), db);
        assert_eq!(Name::written("DB.service.example.org."), db);
        assert_eq!(of("spiffe://a_b.example/node/n"), of("dns:n.node.a-b.example"));
        assert_eq!(of("spiffe://example.org/authority"), of("dns:authority.example.org"));
        assert_eq!(of("ip:192.0.2.1"), of("dns:192.0.2.1"));
        assert_eq!(of("ip:192.0.2.1"), Name::written("::ffff:192.0.2.1"));
        assert_eq!(of("spiffe://example.org"), Name::Domain("example.org".into()));
        assert_eq!(
            of("spiffe://example.org/ns/a/sa/b"),
            Name::Spiffe("example.org/ns/a/sa/b".into())
        );
        assert_eq!(Name::of_certificate("cn:Some Server"), None);
    }

    #[test]
    fn names_that_cannot_be_compared_are_opaque() {
        for opaque in [
            "dns:db.service.example.org\0.example.net",
            "dns:",
            "dns:.example.org",
            "dns:a..b",
            "dns:a b",
            "email:db@example.org",
            "other:name:a0",
            "ip:",
            "urn:example:db",
            "spiffe:///service/db",
            "spiffe://example.org/%zz",
            "spiffe://example.org/service/d%00b",
            "cn:db\0",
            "",
        ] {
            assert!(matches!(Name::of_certificate(opaque), Some(Name::Opaque(_))), "{opaque:?}");
        }
    }

    #[test]
    fn wildcards_match_what_they_cover() {
        let meets = |watch: &str, name: &str| Name::written(watch).meets(&of(name));
        for (watch, name) in [
            ("service/db", "dns:*.service.example.org"),
            ("service/db", "dns:d*.service.example.org"),
            ("service/db", "dns:*b.SERVICE.example.org."),
            ("service/db", "dns:*.*.example.org"),
            ("service/db", "cn:service/db"),
            ("service/*", "dns:db.service.example.org"),
            ("spiffe://example.org/service/db", "dns:*.service.example.org"),
            ("shop.example.org", "dns:*.Example.org"),
            ("*.example.org", "dns:shop.example.org"),
            ("ns/a/sa/b", "spiffe://example.org/ns/a/sa/b"),
            ("authority", "spiffe://example.org/authority"),
        ] {
            assert!(meets(watch, name), "{watch} {name}");
        }
        for (watch, name) in [
            ("service/db", "dns:db2.service.example.org"),
            ("service/db", "dns:*.node.example.org"),
            ("service/db", "dns:a*.service.example.org"),
            ("service/db", "dns:example.org"),
            ("spiffe://example.org/service/db", "dns:*.service.example.net"),
            ("shop.example.org", "dns:*.org"),
            ("shop.example.org", "dns:www.example.org"),
            ("authority", "dns:db.service.example.org"),
        ] {
            assert!(!meets(watch, name), "{watch} {name}");
        }
    }

    #[test]
    fn two_patterns_match_if_some_text_matches_both() {
        for (a, b, same) in [
            ("*", "", true),
            ("a*", "*b", true),
            ("a*c", "ab*", true),
            ("a*", "b*", false),
            ("*a*", "bbb", false),
            ("**", "x", true),
            ("", "x", false),
        ] {
            assert_eq!(label(a.as_bytes(), b.as_bytes()), same, "{a} {b}");
            assert_eq!(label(b.as_bytes(), a.as_bytes()), same, "{b} {a}");
        }
    }
}

//! Distinguished names as text (RFC 4514), and matching of host names (RFC 9525).

use std::net::IpAddr;

use super::encoding::{self as asn1, Reader, Tlv, dotted, hex};

/// The maximum length of a name in reports; a hostile one may have megabytes.
const SHOWN: usize = 1000;

/// An attribute's short name (RFC 4514, section 3, and the registry of LDAP descriptors).
fn attribute(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "STREET",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.15" => "businessCategory",
        "2.5.4.17" => "postalCode",
        "2.5.4.42" => "givenName",
        "2.5.4.97" => "organizationIdentifier",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        _ => return None,
    })
}

/// A distinguished name, the most specific part first (RFC 4514, 2.1).
pub(super) fn distinguished(name: &[u8]) -> String {
    let mut shown = String::new();
    let sets: Vec<_> = match Reader(name).next() {
        Ok(name) => name.inside().readable().collect(),
        Err(_) => return raw(name),
    };
    for set in sets.into_iter().rev() {
        if !shown.is_empty() {
            shown.push(',');
        }
        for (i, pair) in set.inside().readable().enumerate() {
            if i > 0 {
                shown.push('+');
            }
            let mut inside = pair.inside();
            match (inside.next(), inside.next()) {
                (Ok(oid), Ok(value)) => {
                    let oid = dotted(oid.value);
                    shown.push_str(attribute(&oid).unwrap_or(&oid));
                    shown.push('=');
                    shown
                        .push_str(&string(value).map_or_else(|| raw(value.whole), |t| escaped(&t)));
                }
                _ => shown.push_str(&raw(pair.whole)),
            }
            if shown.len() > SHOWN {
                return cut(shown);
            }
        }
        if shown.len() > SHOWN {
            return cut(shown);
        }
    }
    shown
}

/// An unreadable value in hex (RFC 4514, 2.4), truncated if necessary.
fn raw(der: &[u8]) -> String {
    format!("#{}", hex(&der[..der.len().min(40)]))
}

/// The common names of a distinguished name, which old clients matched.
pub(super) fn common_names(name: &[u8]) -> Vec<String> {
    let Ok(name) = Reader(name).next() else { return Vec::new() };
    let pairs = name.inside().readable().flat_map(|set| set.inside().readable());
    pairs
        .filter_map(|pair| {
            let mut pair = pair.inside();
            let (oid, value) = (pair.next().ok()?, pair.next().ok()?);
            (oid.value == [0x55, 4, 3]).then(|| string(value)).flatten()
        })
        .take(10)
        .collect()
}

/// The text of a string type; `None` for other types and invalid contents.
fn string(value: Tlv<'_>) -> Option<String> {
    let bytes = value.value;
    match value.tag {
        // UTF8String, NumericString, PrintableString, IA5String, VisibleString.
        0x0c | 0x12 | 0x13 | 0x16 | 0x1a => String::from_utf8(bytes.to_vec()).ok(),
        // TeletexString: in practice it contains Latin-1, not T.61.
        0x14 => Some(bytes.iter().copied().map(char::from).collect()),
        // BMPString.
        0x1e if bytes.len().is_multiple_of(2) => {
            let units = bytes.chunks_exact(2).map(|b| u16::from_be_bytes([b[0], b[1]]));
            char::decode_utf16(units).collect::<Result<_, _>>().ok()
        }
        // UniversalString.
        0x1c if bytes.len().is_multiple_of(4) => bytes
            .chunks_exact(4)
            .map(|b| char::from_u32(u32::from_be_bytes([b[0], b[1], b[2], b[3]])))
            .collect(),
        _ => None,
    }
}

/// A value in the notation of RFC 4514 (2.4), with unprintable characters in hex.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let last = text.chars().count().saturating_sub(1);
    for (i, c) in text.chars().enumerate() {
        match c {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => out.extend(['\\', c]),
            '#' | ' ' if i == 0 => out.extend(['\\', c]),
            ' ' if i == last => out.push_str("\\ "),
            _ => push_printable(&mut out, c),
        }
        if out.len() > SHOWN {
            return cut(out);
        }
    }
    out
}

/// Escapes text from a certificate: unprintable and direction-changing characters become hex.
pub(super) fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().min(SHOWN));
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            push_printable(&mut out, c);
            if out.len() > SHOWN {
                return cut(out);
            }
        }
        out.extend(chunk.invalid().iter().map(|byte| format!("\\{byte:02X}")));
        if out.len() > SHOWN {
            return cut(out);
        }
    }
    out
}

fn push_printable(out: &mut String, c: char) {
    // `escape_debug` escapes unprintable characters, and also quotes and backslashes, which are printable.
    if matches!(c, '\'' | '"' | '\\') || c.escape_debug().count() == 1 {
        out.push(c);
    } else {
        out.extend(c.encode_utf8(&mut [0; 4]).bytes().map(|byte| format!("\\{byte:02X}")));
    }
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(SHOWN));
    text.push('…');
    text
}

/// A subject alternative name (RFC 5280, 4.2.1.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum GeneralName {
    Dns(String),
    Address(IpAddr),
    Uri(String),
    Email(String),
    /// Another type of name, as text.
    Other(String),
}

impl GeneralName {
    pub(super) fn read(name: Tlv<'_>) -> Self {
        match name.tag {
            0x81 => Self::Email(printable(name.value)),
            0x82 => Self::Dns(printable(name.value)),
            0x86 => Self::Uri(printable(name.value)),
            0x87 => {
                let v4 = <[u8; 4]>::try_from(name.value).map(IpAddr::from);
                match v4.or_else(|_| <[u8; 16]>::try_from(name.value).map(IpAddr::from)) {
                    Ok(address) => Self::Address(address),
                    Err(_) => Self::Other(format!("address:{}", raw(name.value))),
                }
            }
            0xa4 => Self::Other(format!("dirname:{}", distinguished(name.value))),
            0x88 => Self::Other(format!("oid:{}", dotted(name.value))),
            0xa0 => Self::Other(match name.inside().expect(asn1::OID, "") {
                Ok(oid) => format!("othername:{}", dotted(oid.value)),
                Err(_) => "othername".to_owned(),
            }),
            tag => Self::Other(format!("[{}]", tag & 0x1f)),
        }
    }

    pub(super) fn shown(&self) -> String {
        match self {
            Self::Dns(name) | Self::Uri(name) | Self::Email(name) | Self::Other(name) => {
                name.clone()
            }
            Self::Address(address) => address.to_string(),
        }
    }
}

/// Whether a DNS name in a certificate matches a host (RFC 9525, 6.3). A wildcard must be the whole
/// left-most label, and matches exactly one label.
pub(super) fn covers(presented: &str, host: &str) -> bool {
    let presented = presented.strip_suffix('.').unwrap_or(presented);
    if presented.eq_ignore_ascii_case(host) {
        return true;
    }
    let Some(parent) = presented.strip_prefix("*.") else { return false };
    match host.split_once('.') {
        Some((label, rest)) => {
            !label.is_empty()
                && !parent.is_empty()
                && !parent.contains('*')
                && rest.eq_ignore_ascii_case(parent)
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_stands_for_one_whole_label() {
        for (presented, host, covered) in [
            ("example.com", "example.com", true),
            ("EXAMPLE.com.", "example.com", true),
            ("*.example.com", "www.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "a.b.example.com", false),
            ("w*.example.com", "www.example.com", false),
            ("*w.example.com", "www.example.com", false),
            ("www.*.com", "www.example.com", false),
            ("*.*.com", "www.example.com", false),
            ("*", "localhost", false),
            ("*.", "localhost", false),
            ("example.com.evil.test", "example.com", false),
        ] {
            assert_eq!(covers(presented, host), covered, "{presented} {host}");
        }
    }

    #[test]
    fn what_does_not_print_is_written_in_hex() {
        assert_eq!(escaped("a,b+\"\\<>;"), r#"a\,b\+\"\\\<\>\;"#);
        assert_eq!(escaped(" # "), "\\ #\\ ");
        assert_eq!(escaped("#x"), "\\#x");
        assert_eq!(escaped("é' \u{1b}[31m\u{202e}\0\n"), "é' \\1B[31m\\E2\\80\\AE\\00\\0A");
        assert_eq!(printable(b"a\xffb\x1b"), "a\\FFb\\1B");
        assert!(escaped(&"\u{202e}".repeat(100_000)).len() < 2 * SHOWN);
        assert!(printable(&[0xff; 100_000]).len() < 2 * SHOWN);
        assert_eq!(distinguished(&[]), "#");
        let empty_sets = [&[0x30, 0x82, 0xff, 0xfe][..], &[0x31, 0].repeat(0x7fff)].concat();
        assert!(distinguished(&empty_sets).len() < 2 * SHOWN);
    }
}

//! Records (RFC 8446 section 5.1) and alerts.

use super::{Malformed, Reader};

/// The maximum length of a record: 2^14 and the overhead of encryption in TLS 1.2
/// (RFC 5246 section 6.2.3).
pub const MAX_FRAGMENT: usize = (1 << 14) + 2048;

/// The type of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentType {
    ChangeCipherSpec,
    Alert,
    Handshake,
    ApplicationData,
    Heartbeat,
}

impl ContentType {
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            20 => Self::ChangeCipherSpec,
            21 => Self::Alert,
            22 => Self::Handshake,
            23 => Self::ApplicationData,
            24 => Self::Heartbeat,
            _ => return None,
        })
    }

    pub fn code(self) -> u8 {
        match self {
            Self::ChangeCipherSpec => 20,
            Self::Alert => 21,
            Self::Handshake => 22,
            Self::ApplicationData => 23,
            Self::Heartbeat => 24,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'a> {
    pub content: ContentType,
    /// `legacy_record_version`.
    pub version: u16,
    /// The content, possibly encrypted.
    pub fragment: &'a [u8],
}

/// A record of which only the start may be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BegunRecord<'a> {
    pub content: ContentType,
    /// `legacy_record_version`.
    pub version: u16,
    /// The announced length of the fragment.
    pub length: usize,
    /// The fragment, as far as it is there.
    pub fragment: &'a [u8],
}

impl BegunRecord<'_> {
    pub fn is_whole(&self) -> bool {
        self.fragment.len() == self.length
    }
}

/// The record whose header is at the start of these bytes; `None` if the header is incomplete.
///
/// The first byte that cannot be TLS is an error, so that another protocol is recognized after
/// five bytes.
pub fn begun_record(bytes: &[u8]) -> Result<Option<BegunRecord<'_>>, Malformed> {
    let mut reader = Reader::new(bytes);
    let Ok(code) = reader.u8() else { return Ok(None) };
    let content = ContentType::from_code(code).ok_or(Malformed("not a TLS record"))?;
    match bytes.get(1) {
        None => return Ok(None),
        Some(3) => {}
        Some(_) => return Err(Malformed("a record without a TLS version")),
    }
    let (Ok(version), Ok(length)) = (reader.u16(), reader.u16()) else { return Ok(None) };
    let length = usize::from(length);
    if length > MAX_FRAGMENT {
        return Err(Malformed("a record is too long"));
    }
    let rest = reader.rest();
    let fragment = rest.get(..length).unwrap_or(rest);
    Ok(Some(BegunRecord { content, version, length, fragment }))
}

/// The record at the start of these bytes, and its length; `None` if it is incomplete.
pub fn next_record(bytes: &[u8]) -> Result<Option<(Record<'_>, usize)>, Malformed> {
    let record = begun_record(bytes)?.filter(BegunRecord::is_whole);
    Ok(record.map(|BegunRecord { content, version, length, fragment }| {
        (Record { content, version, fragment }, 5 + length)
    }))
}

/// A record with these bytes, which must fit into one.
pub fn record(content: ContentType, version: u16, fragment: &[u8]) -> Vec<u8> {
    debug_assert!(fragment.len() <= MAX_FRAGMENT);
    let mut out = Vec::with_capacity(5 + fragment.len());
    out.push(content.code());
    out.extend(version.to_be_bytes());
    out.extend((fragment.len() as u16).to_be_bytes());
    out.extend(fragment);
    out
}

/// Level and description of an unencrypted alert.
pub fn alert(fragment: &[u8]) -> Result<(u8, u8), Malformed> {
    match fragment {
        [level @ (1 | 2), description] => Ok((*level, *description)),
        _ => Err(Malformed("an alert record without an alert")),
    }
}

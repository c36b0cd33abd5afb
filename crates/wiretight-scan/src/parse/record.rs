//! Records (RFC 8446 section 5.1) and alerts.

use super::{Malformed, Reader};

/// The most that a record may hold: 2^14, and what encryption may add in TLS 1.2
/// (RFC 5246 section 6.2.3).
pub const MAX_FRAGMENT: usize = (1 << 14) + 2048;

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "their names say it")]
pub enum ContentType {
    ChangeCipherSpec,
    Alert,
    Handshake,
    ApplicationData,
    Heartbeat,
}

impl ContentType {
    /// The type of a number.
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

    /// As it stands on the wire.
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

/// A record, without what frames it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'a> {
    /// What it holds.
    pub content: ContentType,
    /// `legacy_record_version`.
    pub version: u16,
    /// What it carries, perhaps encrypted.
    pub fragment: &'a [u8],
}

/// The record at the start of these bytes, and how many it takes; `None` where more have to come.
///
/// An error comes with the first byte that cannot be TLS: a peer that speaks something else is told
/// by its first five.
pub fn next_record(bytes: &[u8]) -> Result<Option<(Record<'_>, usize)>, Malformed> {
    let mut reader = Reader::new(bytes);
    let Ok(code) = reader.u8() else { return Ok(None) };
    let content = ContentType::from_code(code).ok_or(Malformed("no TLS record"))?;
    match bytes.get(1) {
        None => return Ok(None),
        Some(3) => {}
        Some(_) => return Err(Malformed("no version of TLS in a record")),
    }
    let (Ok(version), Ok(length)) = (reader.u16(), reader.u16()) else { return Ok(None) };
    if usize::from(length) > MAX_FRAGMENT {
        return Err(Malformed("a record is longer than records are"));
    }
    let Ok(fragment) = reader.take(length.into()) else { return Ok(None) };
    Ok(Some((Record { content, version, fragment }, bytes.len() - reader.rest().len())))
}

/// A record of these bytes, which fit into one.
pub fn record(content: ContentType, version: u16, fragment: &[u8]) -> Vec<u8> {
    debug_assert!(fragment.len() <= MAX_FRAGMENT);
    let mut out = Vec::with_capacity(5 + fragment.len());
    out.push(content.code());
    out.extend(version.to_be_bytes());
    out.extend((fragment.len() as u16).to_be_bytes());
    out.extend(fragment);
    out
}

/// Level and description of an alert that is not encrypted.
pub fn alert(fragment: &[u8]) -> Result<(u8, u8), Malformed> {
    match fragment {
        [level @ (1 | 2), description] => Ok((*level, *description)),
        _ => Err(Malformed("no alert in an alert record")),
    }
}

//! The records of one direction.

use std::borrow::Cow;

use crate::names;
use crate::parse::{ContentType, alert, begun_record};

/// What a direction begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begins {
    Nothing,
    /// Too short to tell, but nothing else than TLS so far.
    Partial,
    ClientHello,
    ServerHello,
    /// A ClientHello in the format of SSL 2.0.
    Ssl2Hello,
    /// Another record.
    Records,
    Other,
}

pub(super) fn begins(bytes: &[u8]) -> Begins {
    match *bytes {
        [] => Begins::Nothing,
        // SSL 2.0: the length, CLIENT-HELLO, the version.
        [0x80..=0xff, _, 1, 0, 2, ..] | [0x80..=0xff, _, 1, 3, 0..=4, ..] => Begins::Ssl2Hello,
        [0x80..=0xff] | [0x80..=0xff, _] | [0x80..=0xff, _, 1] | [0x80..=0xff, _, 1, 0 | 3] => {
            Begins::Partial
        }
        _ => match (begun_record(bytes), bytes.get(2)) {
            (Err(_), _) | (_, Some(5..)) => Begins::Other,
            (Ok(None), _) => Begins::Partial,
            (Ok(Some(record)), _) => match (record.content, record.fragment.first()) {
                (ContentType::Handshake, _) if record.length == 0 => Begins::Other,
                (ContentType::Handshake, None) => Begins::Partial,
                (ContentType::Handshake, Some(1)) => Begins::ClientHello,
                (ContentType::Handshake, Some(2)) => Begins::ServerHello,
                _ => Begins::Records,
            },
        },
    }
}

/// How many record headers follow each other, up to two; `None` if there is something else.
pub(super) fn chain(bytes: &[u8]) -> Option<usize> {
    let (mut rest, mut count) = (bytes, 0);
    while count < 2 && !rest.is_empty() {
        match begun_record(rest).ok()? {
            Some(record) if !(0x0301..=0x0303).contains(&record.version) || record.length == 0 => {
                return None;
            }
            Some(record) => {
                count += 1;
                rest = rest.get(5 + record.length..).unwrap_or_default();
            }
            None => break,
        }
    }
    Some(count)
}

/// What one side has sent.
#[derive(Debug, Default)]
pub(super) struct Sent<'a> {
    /// The unencrypted handshake messages, one after the other. Borrowed if one record has them all.
    pub handshake: Cow<'a, [u8]>,
    /// The type of the first record after ChangeCipherSpec.
    pub ciphered: Option<ContentType>,
    /// How many records of application data, and the length of the first.
    pub application: usize,
    pub first_application: usize,
    /// An unencrypted alert of the level "fatal".
    pub alert: Option<u8>,
    /// Something else than a record follows.
    pub broken: bool,
    /// Ends within a record or a message.
    pub cut: bool,
    changed: bool,
}

impl<'a> Sent<'a> {
    pub fn read(bytes: &'a [u8]) -> Self {
        let (mut sent, mut rest) = (Self::default(), bytes);
        while !rest.is_empty() {
            match begun_record(rest) {
                Ok(Some(record)) if record.version <= 0x0304 => {
                    sent.add(record.content, record.length, record.fragment);
                    if !record.is_whole() {
                        sent.cut = true;
                        break;
                    }
                    rest = rest.get(5 + record.length..).unwrap_or_default();
                }
                Ok(None) => {
                    sent.cut = true;
                    break;
                }
                Ok(Some(_)) | Err(_) => {
                    sent.broken = true;
                    break;
                }
            }
        }
        let mut messages: &[u8] = &sent.handshake;
        while let Some((_, _, after)) = message(messages) {
            messages = after;
        }
        sent.cut |= !messages.is_empty();
        sent
    }

    fn add(&mut self, content: ContentType, length: usize, fragment: &'a [u8]) {
        let encrypted = self.changed || self.application > 0;
        match content {
            ContentType::Handshake if !encrypted || is_hello(fragment) => {
                match self.handshake.is_empty() {
                    true => self.handshake = Cow::Borrowed(fragment),
                    false => self.handshake.to_mut().extend_from_slice(fragment),
                }
                return;
            }
            ContentType::ApplicationData => {
                self.application += 1;
                if self.application == 1 {
                    self.first_application = length;
                }
            }
            ContentType::Alert if length == 2 => {
                if let Ok((2, description)) = alert(fragment) {
                    self.alert = self.alert.or(Some(description));
                }
                return;
            }
            ContentType::ChangeCipherSpec => {
                self.changed = true;
                return;
            }
            _ => {}
        }
        if self.changed {
            self.ciphered = self.ciphered.or(Some(content));
        }
    }

    /// The name of a fatal alert.
    pub fn fatal_alert(&self) -> Option<&'static str> {
        self.alert.map(names::alert)
    }
}

/// Whether a record after ChangeCipherSpec is a second hello. TLS 1.3 sends the first after a HelloRetryRequest, for
/// the sake of middleboxes (RFC 8446 appendix D.4). An encrypted record looks so once in 2^40.
fn is_hello(fragment: &[u8]) -> bool {
    let [1 | 2, 0, a, b, 3, 3, ..] = *fragment else { return false };
    usize::from(u16::from_be_bytes([a, b])) + 4 == fragment.len()
}

/// The first complete message: its type, its body, and what follows it.
pub(super) fn message(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [kind, a, b, c, ref rest @ ..] = *bytes else { return None };
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    let (body, rest) = rest.split_at_checked(length)?;
    Some((kind, body, rest))
}

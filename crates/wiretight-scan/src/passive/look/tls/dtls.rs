//! DTLS 1.0 to 1.3 (RFC 4347, RFC 6347, RFC 9147), also where STUN and media share its flow (RFC 7983).

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::super::sealed::seen;
use super::records::Sent;
use super::{Flavour, Pair};
use crate::judge::Level;
use crate::parse::{ContentType, HandshakeType, Malformed, Reader, alert};
use crate::passive::look::{Half, Opening, Verdict};
use crate::passive::{Grade, Sealed};

/// What a UDP flow with DTLS is.
pub(in super::super) fn look(opening: &Opening<'_>) -> Verdict {
    let (client, server) = (Datagrams::read(&opening.client), Datagrams::read(&opening.server));
    if client.records + server.records == 0 {
        // STUN finds the path that DTLS then uses.
        let stun = client.stun + server.stun;
        let only = client.other + server.other == 0;
        return if stun > 0 && only { Verdict::Maybe } else { Verdict::No };
    }
    let (forward, backward) = Pair::of(opening, Flavour::Dtls);
    let is = |side: &Datagrams<'_>, kind: HandshakeType| {
        side.sent.handshake.first().is_some_and(|first| *first == kind.0)
    };
    let (hello, answer) = (HandshakeType::CLIENT_HELLO, HandshakeType::SERVER_HELLO);
    if is(&client, hello) || is(&server, answer) || is(&server, HELLO_VERIFY_REQUEST) {
        return forward.judge(&client.sent, &server.sent);
    }
    if is(&server, hello) || is(&client, answer) || is(&client, HELLO_VERIFY_REQUEST) {
        return backward.judge(&server.sent, &client.sent);
    }
    match client.ciphered + server.ciphered {
        0 | 1 => Verdict::Maybe,
        _ => {
            let version = client.version.or(server.version).unwrap_or_default();
            let sealed = Sealed { version: version.into(), ..Sealed::default() };
            let evidence = "DTLS records, without their handshake";
            Verdict::Done(seen("dtls", Level::Unknown, Grade::Guessed, evidence, Some(sealed)))
        }
    }
}

const HELLO_VERIFY_REQUEST: HandshakeType = HandshakeType(3);

/// What one side has sent.
#[derive(Debug, Default)]
struct Datagrams<'a> {
    sent: Sent<'a>,
    /// Datagrams with records, with encrypted records, of STUN, and of neither.
    records: usize,
    ciphered: usize,
    stun: usize,
    other: usize,
    version: Option<&'static str>,
}

/// A part of a handshake message.
#[derive(Debug, Clone, Copy)]
struct Fragment<'a> {
    kind: u8,
    /// The length of the whole message.
    length: u32,
    offset: u32,
    content: &'a [u8],
}

impl<'a> Datagrams<'a> {
    fn read(half: &Half<'a>) -> Self {
        let (mut all, mut fragments) = (Self::default(), Vec::new());
        for datagram in half.datagrams() {
            // RFC 7983 section 7.
            match datagram.first() {
                Some(20..=63) => match all.records_of(datagram, &mut fragments) {
                    Ok(()) => all.records += 1,
                    Err(_) => all.sent.broken = true,
                },
                Some(0..=3) if datagram.get(4..8) == Some(&STUN_COOKIE) => all.stun += 1,
                _ => all.other += 1,
            }
        }
        if all.records > 0 {
            all.sent.handshake = Cow::Owned(assembled(fragments, &mut all.sent.cut));
        }
        all
    }

    fn records_of(
        &mut self,
        datagram: &'a [u8],
        fragments: &mut Vec<(u16, Fragment<'a>)>,
    ) -> Result<(), Malformed> {
        let mut reader = Reader::new(datagram);
        let mut encrypted = false;
        while let Some(first) = reader.rest().first() {
            // The unified header of DTLS 1.3, whose length may be missing (RFC 9147 section 4).
            if (0x20..0x40).contains(first) {
                if reader.rest().len() < 2 + 16 || self.records == 0 && self.version.is_none() {
                    return Err(Malformed("not a DTLS record"));
                }
                self.sent.application += 1;
                encrypted = true;
                break;
            }
            let (content, version) = (reader.u8()?, reader.u16()?);
            let (epoch, _number) = (reader.u16()?, reader.take(6)?);
            let fragment = reader.vec16()?;
            self.version = Some(match version {
                0xfeff | 0x0100 => "DTLS 1.0",
                0xfefd => "DTLS 1.2",
                _ => return Err(Malformed("a record without a DTLS version")),
            });
            let content = match content {
                // A record with a connection ID (RFC 9146).
                25 => ContentType::ApplicationData,
                code => ContentType::from_code(code).ok_or(Malformed("not a DTLS record"))?,
            };
            match (content, epoch) {
                (ContentType::Handshake, 0) => {
                    let mut messages = Reader::new(fragment);
                    while !messages.is_empty() {
                        let (kind, length, number) =
                            (messages.u8()?, messages.u24()?, messages.u16()?);
                        let (offset, content) = (messages.u24()?, messages.vec24()?);
                        fragments.push((number, Fragment { kind, length, offset, content }));
                    }
                }
                (ContentType::Alert, 0) => {
                    if let Ok((2, description)) = alert(fragment) {
                        self.sent.alert = self.sent.alert.or(Some(description));
                    }
                }
                (_, 0) => {}
                (ContentType::Alert, _) => {
                    self.sent.ciphered = self.sent.ciphered.or(Some(content));
                    encrypted = true;
                }
                (content, _) => {
                    // Data may overtake the Finished.
                    self.sent.ciphered = Some(ContentType::Handshake);
                    self.sent.application += usize::from(content == ContentType::ApplicationData);
                    encrypted = true;
                }
            }
        }
        self.ciphered += usize::from(encrypted);
        Ok(())
    }
}

const STUN_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// The complete messages in order, as TLS would send them. Stops at the first gap.
fn assembled(fragments: Vec<(u16, Fragment<'_>)>, cut: &mut bool) -> Vec<u8> {
    let mut by_number: BTreeMap<u16, Vec<Fragment<'_>>> = BTreeMap::new();
    for (number, fragment) in fragments {
        by_number.entry(number).or_default().push(fragment);
    }
    let mut out = Vec::new();
    for mut parts in by_number.into_values() {
        parts.sort_by_key(|part| part.offset);
        let Some(Fragment { kind, length, .. }) = parts.first().copied() else { continue };
        let start = out.len();
        out.push(kind);
        out.extend(&length.to_be_bytes()[1..]);
        let mut end = 0_u32;
        for part in parts.iter().filter(|part| part.kind == kind && part.length == length) {
            // The same message may be sent again, in other pieces.
            let Some(known) = end.checked_sub(part.offset) else { break };
            let fresh = part.content.get(known as usize..).unwrap_or_default();
            out.extend_from_slice(fresh);
            end += fresh.len() as u32;
        }
        if end != length {
            out.truncate(start);
            *cut = true;
            break;
        }
    }
    out
}

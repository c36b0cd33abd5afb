//! IPsec: IKE (RFC 7296, RFC 2409), and ESP, which does not show whether it encrypts (RFC 4303).

use std::borrow::Cow;

use super::sealed::seen;
use super::{Half, Opening, Verdict, plaintext, undetermined};
use crate::judge::{Level, marks};
use crate::parse::{Malformed, Reader};
use crate::passive::{Grade, Sealed, Transport};

/// IKE, also with ESP in the same flow (RFC 3948).
pub(super) fn ike(opening: &Opening<'_>) -> Verdict {
    let (Some(client), Some(server)) =
        (Spoken::read(&opening.client), Spoken::read(&opening.server))
    else {
        return Verdict::No;
    };
    let settled = opening.last || opening.client.ended && opening.server.ended;
    if client.messages + server.messages == 0 {
        return Verdict::No;
    }
    let version = client.version.or(server.version).unwrap_or("IKE");
    // The answer has one proposal: what was chosen.
    let chosen = match (client.asked, server.asked) {
        (true, false) => server.chosen.as_ref(),
        (false, true) => client.chosen.as_ref(),
        _ => None,
    };
    let complete = client.encrypted && server.encrypted;
    let decided = complete && chosen.is_some();
    if !decided && !settled {
        return Verdict::Maybe;
    }
    let Some(chosen) = chosen else {
        let sealed = Sealed { version: version.into(), ..Sealed::default() };
        let evidence = format!("{version}, without an answer to its proposals");
        return Verdict::Done(seen("ike", Level::Unknown, Grade::Guessed, evidence, Some(sealed)));
    };
    let mut evidence = format!("{version}: {}", chosen.names.join(", "));
    let level = match complete {
        true => chosen.level,
        false => {
            evidence.push_str("; nothing encrypted was seen after it");
            Level::Unknown
        }
    };
    let sealed = Sealed {
        version: version.into(),
        suite: Some(chosen.suite.join(", ").into()),
        group: chosen.group.as_ref().map(|group| Cow::Owned(group.clone())),
        post_quantum: Some(chosen.post_quantum),
        forward_secrecy: Some(true),
        ..Sealed::default()
    };
    Verdict::Done(seen("ike", level, Grade::Seen, evidence, Some(sealed)))
}

const IKE_HEADER: usize = 28;
/// Exchange types.
const MAIN_MODE: u8 = 2;
const AGGRESSIVE_MODE: u8 = 4;
const IKE_SA_INIT: u8 = 34;
/// Payload types.
const SA_1: u8 = 1;
const SA_2: u8 = 33;

/// What one side has sent.
#[derive(Debug, Default)]
struct Spoken {
    messages: usize,
    /// Packets of ESP: their SPI, and their number.
    esp: Vec<(u32, u32)>,
    version: Option<&'static str>,
    /// It began.
    asked: bool,
    chosen: Option<Transforms>,
    /// It sent an encrypted message.
    encrypted: bool,
}

/// The transforms of a proposal.
#[derive(Debug, Clone)]
struct Transforms {
    names: Vec<String>,
    /// Those except the key exchanges.
    suite: Vec<String>,
    /// The key exchanges.
    group: Option<String>,
    post_quantum: bool,
    level: Level,
}

impl Spoken {
    /// `None` if a datagram is something else.
    fn read(half: &Half<'_>) -> Option<Self> {
        let mut spoken = Self::default();
        for datagram in half.datagrams() {
            let message = match datagram {
                // A keepalive.
                [0xff] => continue,
                [0, 0, 0, 0, message @ ..] if is_message(message) => message,
                _ if is_message(datagram) => datagram,
                // An SPI that is not zero, and a number.
                _ if datagram.len() >= 24 => {
                    let mut reader = Reader::new(datagram);
                    let (spi, number) = (reader.u32().ok()?, reader.u32().ok()?);
                    if spi == 0 {
                        return None;
                    }
                    spoken.esp.push((spi, number));
                    continue;
                }
                _ => return None,
            };
            spoken.messages += 1;
            spoken.message(message).ok()?;
        }
        Some(spoken)
    }

    fn message(&mut self, message: &[u8]) -> Result<(), Malformed> {
        let mut reader = Reader::new(message);
        let (_initiator, responder) = (reader.take(8)?, reader.take(8)?);
        let (next, version, exchange, flags) =
            (reader.u8()?, reader.u8()?, reader.u8()?, reader.u8()?);
        reader.take(8)?;
        let second = version >> 4 == 2;
        self.version = Some(if second { "IKEv2" } else { "IKEv1" });
        let opens = matches!(exchange, MAIN_MODE | AGGRESSIVE_MODE | IKE_SA_INIT);
        self.asked |= opens && responder == [0; 8];
        let encrypted = if second { exchange != IKE_SA_INIT } else { flags & 1 != 0 };
        self.encrypted |= encrypted;
        if encrypted || !opens || self.chosen.is_some() {
            return Ok(());
        }
        let mut kind = next;
        while kind != 0 && !reader.is_empty() {
            let (next, _flags, length) = (reader.u8()?, reader.u8()?, reader.u16()?);
            let length = usize::from(length).checked_sub(4).ok_or(Malformed("a short payload"))?;
            let body = reader.take(length)?;
            match kind {
                SA_2 => self.chosen = Some(transforms(proposals_2(body)?)),
                SA_1 => self.chosen = Some(transforms(proposals_1(body)?)),
                _ => {}
            }
            kind = next;
        }
        Ok(())
    }
}

/// A message of IKE by its header: its version, its exchange, and its length, which is that of the datagram.
fn is_message(datagram: &[u8]) -> bool {
    let Some(header) = datagram.first_chunk::<IKE_HEADER>() else { return false };
    let fits = match (header[17], header[18]) {
        (0x10, exchange) => matches!(exchange, 2..=6 | 32..=33),
        (0x20, exchange) => (34..=44).contains(&exchange),
        _ => false,
    };
    let [.., a, b, c, d] = *header;
    fits && u32::from_be_bytes([a, b, c, d]) as usize == datagram.len() && header[..8] != [0; 8]
}

/// A chosen proposal has one transform of each type.
const MOST_TRANSFORMS: u8 = 16;

/// A transform by its type in IKEv2, its id, and the bits of its key.
type Transform = (u8, u16, Option<u16>);

/// The transforms of the first proposal (RFC 7296 section 3.3).
fn proposals_2(body: &[u8]) -> Result<Vec<Transform>, Malformed> {
    let mut reader = Reader::new(body);
    let (_last, _, _length, _number) = (reader.u8()?, reader.u8()?, reader.u16()?, reader.u8()?);
    let (_protocol, spi, count) = (reader.u8()?, reader.u8()?, reader.u8()?);
    reader.take(spi.into())?;
    let mut all = Vec::new();
    for _ in 0..count.min(MOST_TRANSFORMS) {
        let (_last, _, length) = (reader.u8()?, reader.u8()?, reader.u16()?);
        let length = usize::from(length).checked_sub(4).ok_or(Malformed("a short transform"))?;
        let mut transform = Reader::new(reader.take(length)?);
        let (kind, _, id) = (transform.u8()?, transform.u8()?, transform.u16()?);
        let mut bits = None;
        while let (Ok(attribute), Ok(value)) = (transform.u16(), transform.u16()) {
            if attribute == 0x800e {
                bits = Some(value);
            }
        }
        all.push((kind, id, bits));
    }
    Ok(all)
}

/// The first transform of the first proposal of IKEv1 (RFC 2408 section 3.4, RFC 2409 appendix A), in the numbers of
/// IKEv2.
fn proposals_1(body: &[u8]) -> Result<Vec<Transform>, Malformed> {
    let mut reader = Reader::new(body);
    reader.take(8)?;
    let (_next, _, _length, _number) = (reader.u8()?, reader.u8()?, reader.u16()?, reader.u8()?);
    let (_protocol, spi, _count) = (reader.u8()?, reader.u8()?, reader.u8()?);
    reader.take(spi.into())?;
    let (_next, _, length, _id) = (reader.u8()?, reader.u8()?, reader.u16()?, reader.u32()?);
    let length = usize::from(length).checked_sub(8).ok_or(Malformed("a short transform"))?;
    let mut transform = Reader::new(reader.take(length)?);
    let (mut all, mut bits) = (Vec::new(), None);
    while let (Ok(attribute), Ok(value)) = (transform.u16(), transform.u16()) {
        match attribute {
            0x8001 => all.push((
                1,
                [0, 2, 5, 7, 0, 3, 6, 12].get(usize::from(value)).copied().unwrap_or(0),
                None,
            )),
            0x8002 => all.push((
                2,
                [0, 1, 2, 0, 5, 6, 7].get(usize::from(value)).copied().unwrap_or(0),
                None,
            )),
            0x8004 => all.push((4, value, None)),
            0x800e => bits = Some(value),
            // A value of several bytes.
            long if long & 0x8000 == 0 => {
                transform.take(value.into())?;
            }
            _ => {}
        }
    }
    for transform in all.iter_mut().filter(|(kind, ..)| *kind == 1) {
        // Camellia has the id 8 in IKEv1, and other numbers are unknown.
        transform.2 = bits;
    }
    Ok(all)
}

fn transforms(all: Vec<Transform>) -> Transforms {
    let (mut names, mut suite, mut groups) = (Vec::new(), Vec::new(), Vec::new());
    // One post-quantum key exchange is enough, if the others are no weaknesses.
    let (mut level, mut worst, mut best) = (Level::Strong, Level::Strong, Level::Unknown);
    for (kind, id, bits) in all {
        let (name, mark) = marks::ike(kind, id);
        let name = match bits {
            Some(bits) => format!("{name}-{bits}"),
            None => name.into_owned(),
        };
        // 6 to 12: additional key exchanges (RFC 9370).
        if matches!(kind, 4 | 6..=12) {
            (worst, best) = (worst.min(mark), best.max(mark));
            if id != 0 {
                groups.push(name.clone());
            }
        } else if matches!(kind, 1..=3) {
            level = level.min(mark);
            suite.push(name.clone());
        }
        names.push(name);
    }
    let post_quantum = best == Level::Strong;
    level = level.min(if worst == Level::Acceptable { best } else { worst });
    if groups.is_empty() || suite.is_empty() {
        level = Level::Unknown;
    }
    let group = (!groups.is_empty()).then(|| groups.join("+"));
    Transforms { names, suite, group, post_quantum, level }
}

/// ESP in UDP, whose flow began before. There is little in it to recognise: the numbers of one side follow each other,
/// and one of the ports is that of IKE.
pub(super) fn esp_in_udp(opening: &Opening<'_>) -> Verdict {
    let (Some(client), Some(server)) =
        (Spoken::read(&opening.client), Spoken::read(&opening.server))
    else {
        return Verdict::No;
    };
    let follows = |pair: &[(u32, u32)]| match pair {
        [(a, before), (b, after)] => a == b && (1..100).contains(&after.wrapping_sub(*before)),
        _ => false,
    };
    let sides = [&client.esp, &server.esp];
    match sides.iter().all(|esp| esp.windows(2).all(follows)) {
        false => Verdict::No,
        _ if !opening.has_port(4500) => Verdict::No,
        _ if sides.iter().any(|esp| esp.len() >= 3) => {
            undetermined("esp", Grade::Guessed, "probably ESP in UDP")
        }
        _ => Verdict::No,
    }
}

/// ESP as a protocol of its own. Without encryption (RFC 2410) its content is recognised by the heuristics of RFC 5879.
pub(super) fn esp(opening: &Opening<'_>) -> Verdict {
    if opening.transport != Transport::Ip(50) {
        return Verdict::No;
    }
    let packets = || opening.client.datagrams().chain(opening.server.datagrams());
    let count = packets().count();
    // Lengths of the integrity check value.
    let null = [12, 16, 24, 32].iter().any(|icv| packets().all(|packet| is_null(packet, *icv)));
    match null && count >= 2 {
        true => {
            plaintext("esp", Grade::Guessed, "ESP without encryption: packets are readable in it")
        }
        false if count < 4 && !opening.last => Verdict::Maybe,
        false => undetermined("esp", Grade::Seen, "ESP"),
    }
}

/// Whether an ESP packet has a readable packet in it, with the padding that fits.
fn is_null(packet: &[u8], icv: usize) -> bool {
    let Some((_spi_and_number, rest)) = packet.split_at_checked(8) else { return false };
    let Some(rest) = rest.len().checked_sub(icv).and_then(|end| rest.get(..end)) else {
        return false;
    };
    let Some((content, &[padding, next])) = rest.split_last_chunk() else { return false };
    let Some(end) = content.len().checked_sub(padding.into()) else { return false };
    let (content, padding) = content.split_at(end);
    // RFC 4303 section 2.4: 1, 2, 3 ...
    if !padding.iter().zip(1..).all(|(byte, expected)| *byte == expected) {
        return false;
    }
    let number = |at: usize| {
        content
            .get(at..)
            .and_then(|rest| rest.first_chunk())
            .map(|n| usize::from(u16::from_be_bytes(*n)))
    };
    match (next, content.first()) {
        (4, Some(0x45..=0x4f)) => number(2) == Some(content.len()),
        (41, Some(0x60..=0x6f)) => number(4).is_some_and(|length| length + 40 == content.len()),
        (17, _) => number(4) == Some(content.len()),
        // The data offset, and the reserved bits.
        (6, _) => {
            content.get(12).is_some_and(|byte| byte >> 4 >= 5 && byte & 0xe == 0)
                && content.len() >= 20
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::sealed::look_at;
    use super::*;
    use crate::passive::{Seen, Side};

    fn message(
        spis: [u8; 2],
        version: u8,
        exchange: u8,
        next: u8,
        flags: u8,
        body: &[u8],
    ) -> Vec<u8> {
        let mut out = [[spis[0]; 8], [spis[1]; 8]].concat();
        out.extend([next, version, exchange, flags, 0, 0, 0, 0]);
        out.extend((IKE_HEADER as u32 + body.len() as u32).to_be_bytes());
        out.extend(body);
        out
    }

    /// An SA payload of IKEv2 with these transforms, and a nonce after it.
    fn sa(transforms: &[(u8, u16, Option<u16>)]) -> Vec<u8> {
        let mut proposal = vec![0, 0, 0, 0, 1, 1, 0, transforms.len() as u8];
        for (kind, id, bits) in transforms {
            let bits = bits
                .map(|bits| [&[0x80, 0x0e][..], &bits.to_be_bytes()].concat())
                .unwrap_or_default();
            proposal.extend([3, 0, 0, 8 + bits.len() as u8, *kind, 0]);
            proposal.extend(id.to_be_bytes());
            proposal.extend(bits);
        }
        let length = proposal.len() as u16;
        proposal[2..4].copy_from_slice(&length.to_be_bytes());
        let mut out = vec![40, 0];
        out.extend((length + 4).to_be_bytes());
        out.append(&mut proposal);
        out.extend([0, 0, 0, 8, 1, 2, 3, 4]);
        out
    }

    fn flow(chosen: &[(u8, u16, Option<u16>)], authenticated: bool) -> Seen {
        let many = [chosen, &[(1, 3, None), (4, 2, None)]].concat();
        let mut flow = vec![
            (Side::Client, message([1, 0], 0x20, IKE_SA_INIT, SA_2, 8, &sa(&many))),
            (Side::Server, message([1, 2], 0x20, IKE_SA_INIT, SA_2, 0x20, &sa(chosen))),
        ];
        if authenticated {
            flow.push((Side::Client, message([1, 2], 0x20, 35, 46, 8, &[7; 60])));
            flow.push((Side::Server, message([1, 2], 0x20, 35, 46, 0x20, &[7; 60])));
        }
        look_at(ike, Transport::Udp, (500, 500), &flow).unwrap()
    }

    #[test]
    fn what_the_responder_chose_is_judged_once_something_encrypted_follows() {
        let gcm = (1, 20, Some(256));
        let good = [gcm, (2, 7, None), (4, 31, None)];
        let seen = flow(&good, true);
        assert_eq!((seen.level, seen.grade), (Level::Acceptable, Grade::Seen), "{}", seen.evidence);
        let sealed = seen.sealed.unwrap();
        assert_eq!(sealed.suite.as_deref(), Some("AES-GCM-256, PRF-HMAC-SHA2-512"));
        assert_eq!(sealed.group.as_deref(), Some("x25519"));
        assert_eq!(flow(&good, false).level, Level::Unknown);
        for (chosen, level) in [
            (vec![gcm, (2, 7, None), (4, 31, None), (6, 36, None)], Level::Strong),
            (vec![gcm, (2, 7, None), (4, 2, None), (6, 36, None)], Level::Weak),
            (
                vec![(1, 12, Some(256)), (2, 5, None), (3, 12, None), (4, 31, None), (6, 36, None)],
                Level::Acceptable,
            ),
            (vec![(1, 3, None), (2, 5, None), (3, 12, None), (4, 14, None)], Level::Weak),
            (vec![(1, 12, Some(128)), (2, 1, None), (3, 1, None), (4, 14, None)], Level::Weak),
            (vec![(1, 11, None), (2, 5, None), (3, 12, None), (4, 14, None)], Level::Plaintext),
            (vec![gcm, (2, 7, None), (4, 999, None)], Level::Unknown),
            (vec![gcm, (2, 7, None)], Level::Unknown),
        ] {
            let seen = flow(&chosen, true);
            assert_eq!(seen.level, level, "{}", seen.evidence);
        }
    }

    #[test]
    fn ike_1_is_read_too() {
        let mut sa = vec![0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 1];
        let attributes = [0x80, 1, 0, 7, 0x80, 2, 0, 2, 0x80, 4, 0, 2, 0x80, 14, 0, 128];
        sa.extend([0, 0, 0, 8 + attributes.len() as u8, 1, 1, 0, 0]);
        sa.extend(attributes);
        sa[3] = sa.len() as u8;
        let flow = [
            (Side::Client, message([1, 0], 0x10, MAIN_MODE, SA_1, 0, &sa)),
            (Side::Server, message([1, 2], 0x10, MAIN_MODE, SA_1, 0, &sa)),
            (Side::Client, message([1, 2], 0x10, MAIN_MODE, 5, 1, &[7; 64])),
            (Side::Server, message([1, 2], 0x10, MAIN_MODE, 5, 1, &[7; 64])),
        ];
        let seen = look_at(ike, Transport::Udp, (500, 500), &flow).unwrap();
        assert_eq!((seen.level, &*seen.sealed.unwrap().version), (Level::Weak, "IKEv1"));
    }

    #[test]
    fn esp_is_not_called_encrypted_and_without_encryption_it_is_plaintext() {
        let mut next = 5_u8;
        let mut random = |n: usize| -> Vec<u8> {
            (0..n)
                .map(|_| {
                    next = next.wrapping_mul(77).wrapping_add(31);
                    next
                })
                .collect()
        };
        let sealed: Vec<_> = (0..4).map(|_| (Side::Client, random(120))).collect();
        let seen = look_at(esp, Transport::Ip(50), (0, 0), &sealed).unwrap();
        assert_eq!(seen.level, Level::Unknown);
        let null = |number: u8| {
            let mut out = vec![1, 2, 3, 4, 0, 0, 0, number];
            // A UDP datagram of 10 bytes, padding, and a check value of 12 bytes.
            out.extend([0, 53, 0, 99, 0, 10, 0, 0, 7, 7, 1, 2, 2, 17]);
            out.extend([9; 12]);
            (Side::Client, out)
        };
        let seen = look_at(esp, Transport::Ip(50), (0, 0), &[null(1), null(2)]).unwrap();
        assert_eq!(seen.level, Level::Plaintext);
        let mut once = null(2);
        once.1[13] = 99;
        let seen = look_at(esp, Transport::Ip(50), (0, 0), &[null(1), once]).unwrap();
        assert_eq!(seen.level, Level::Unknown, "one of two is unreadable");
    }
}

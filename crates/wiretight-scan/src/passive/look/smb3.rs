//! SMB 3 with encryption (MS-SMB2 section 2.2.41). Without it, SMB is plaintext, and another recogniser's.

use super::sealed::seen;
use super::{Opening, Verdict};
use crate::judge::Level;
use crate::passive::{Grade, Sealed};

const PLAIN: &[u8] = b"\xfeSMB";
const TRANSFORM: &[u8] = b"\xfdSMB";
/// The length of a header.
const HEADER: usize = 64;

pub(super) fn look(opening: &Opening<'_>) -> Verdict {
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    if !matches!((client.first(), server.first()), (Some(0), None | Some(0))) {
        return Verdict::No;
    }
    let encrypted = [client, server].map(|bytes| messages(bytes).any(|m| m.starts_with(TRANSFORM)));
    if encrypted == [false, false] {
        return Verdict::No;
    }
    let Some((dialect, cipher)) = messages(server).find_map(negotiated) else { return Verdict::No };
    let settled = opening.last || opening.client.ended && opening.server.ended;
    if encrypted != [true, true] && !settled {
        return Verdict::Maybe;
    }
    let (suite, level) = match (dialect, cipher) {
        (0x0300 | 0x0302, _) | (0x0311, Some(1)) => ("AES-128-CCM", Level::Acceptable),
        (0x0311, Some(2)) => ("AES-128-GCM", Level::Acceptable),
        (0x0311, Some(3)) => ("AES-256-CCM", Level::Acceptable),
        (0x0311, Some(4)) => ("AES-256-GCM", Level::Acceptable),
        _ => ("unknown", Level::Unknown),
    };
    let level = if encrypted == [true, true] { level } else { Level::Unknown };
    let version = match dialect {
        0x0300 => "SMB 3.0",
        0x0302 => "SMB 3.0.2",
        _ => "SMB 3.1.1",
    };
    let sealed = Sealed {
        version: version.into(),
        suite: Some(suite.into()),
        // Its keys come from the authentication: a password, or Kerberos.
        post_quantum: None,
        forward_secrecy: Some(false),
        ..Sealed::default()
    };
    let evidence = format!("{version}, encrypted with {suite}");
    Verdict::Done(seen("smb", level, Grade::Seen, evidence, Some(sealed)))
}

/// The messages in their session packets (MS-SMB2 section 2.1), the last one as far as it was captured.
fn messages(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let [0, a, b, c, after @ ..] = rest else { return None };
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let (message, next) = after.split_at(length.min(after.len()));
        rest = next;
        (length > 0).then_some(message)
    })
}

/// Dialect and cipher in a successful response to NEGOTIATE of SMB 3 (MS-SMB2 section 2.2.4).
fn negotiated(message: &[u8]) -> Option<(u16, Option<u16>)> {
    let number = |at: usize| Some(u16::from_le_bytes(*message.get(at..)?.first_chunk()?));
    if !message.starts_with(PLAIN) || number(12)? != 0 || number(HEADER)? != 65 {
        return None;
    }
    let dialect = number(HEADER + 4)?;
    if !matches!(dialect, 0x0300 | 0x0302 | 0x0311) {
        return None;
    }
    let (count, mut at) = (number(HEADER + 6)?, usize::from(number(HEADER + 60)?));
    let mut cipher = None;
    if dialect == 0x0311 {
        for _ in 0..count.min(16) {
            let (Some(kind), Some(length)) = (number(at), number(at + 2)) else { break };
            if kind == 2 && number(at + 8) == Some(1) {
                cipher = number(at + 10);
            }
            at += 8 + usize::from(length).next_multiple_of(8);
        }
    }
    Some((dialect, cipher))
}

#[cfg(test)]
mod tests {
    use super::super::sealed::look_at;
    use super::*;
    use crate::passive::{Seen, Side, Transport};

    fn packed(message: &[u8]) -> Vec<u8> {
        [&(message.len() as u32).to_be_bytes()[..], message].concat()
    }

    fn response(dialect: u16, cipher: u16) -> Vec<u8> {
        let mut out = vec![0; HEADER + 64];
        out[..4].copy_from_slice(PLAIN);
        out[HEADER] = 65;
        out[HEADER + 4..HEADER + 6].copy_from_slice(&dialect.to_le_bytes());
        out[HEADER + 6] = 2;
        out[HEADER + 60] = (HEADER + 64) as u8;
        // Integrity, then encryption, each aligned to eight bytes.
        out.extend([1, 0, 6, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
        out.extend([2, 0, 4, 0, 0, 0, 0, 0, 1, 0, cipher as u8, 0]);
        packed(&out)
    }

    fn flow(dialect: u16, cipher: u16) -> Vec<(Side, Vec<u8>)> {
        let sealed = packed(&[TRANSFORM, &[7; 80]].concat());
        vec![
            (Side::Client, packed(&[PLAIN, &[0; 100]].concat())),
            (Side::Server, response(dialect, cipher)),
            (Side::Client, sealed.clone()),
            (Side::Server, sealed),
        ]
    }

    /// As the last look, because without encryption this recogniser leaves the flow to another.
    fn look_last(flow: &[(Side, Vec<u8>)]) -> Option<Seen> {
        let of =
            |by| flow.iter().filter(|(side, _)| *side == by).flat_map(|(_, b)| b.clone()).collect();
        let pieces: [(Side, Vec<u8>); 2] =
            [(Side::Client, of(Side::Client)), (Side::Server, of(Side::Server))];
        let whole = |opening: &Opening<'_>| match opening.last {
            true => look(opening),
            false => Verdict::Maybe,
        };
        look_at(whole, Transport::Tcp, (40000, 445), &pieces)
    }

    #[test]
    fn the_cipher_of_the_negotiation_decides() {
        for (dialect, cipher, suite, level) in [
            (0x0311, 2, "AES-128-GCM", Level::Acceptable),
            (0x0302, 0, "AES-128-CCM", Level::Acceptable),
            (0x0311, 9, "unknown", Level::Unknown),
        ] {
            let seen = look_last(&flow(dialect, cipher)).unwrap();
            assert_eq!((seen.level, seen.sealed.unwrap().suite.as_deref()), (level, Some(suite)));
        }
        let flow = flow(0x0311, 2);
        assert_eq!(look_last(&flow[..3]).unwrap().level, Level::Unknown, "one side only");
        assert_eq!(look_last(&flow[..2]), None, "not encrypted so far");
        assert_eq!(look_last(&super::tests::flow(0x0210, 2)), None, "SMB 2 has no encryption");
    }
}

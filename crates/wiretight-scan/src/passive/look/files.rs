//! Remote procedures and files: ONC RPC (RFC 5531) with NFS, SMB, NetBIOS (RFC 1002), DCE/RPC, Kerberos (RFC 4120),
//! iSCSI (RFC 7143).

use super::brokers::{dialogue, parsed};
use super::starttls::ber;
use super::{Opening, Verdict, plaintext, tls_within, undetermined};
use crate::parse::Reader;
use crate::parse::starttls::Parsed;
use crate::passive::{Grade, Seen, Side, Transport};

// ---- ONC RPC.

/// Authentication flavors (RFC 5531, section 8.2; RFC 9289).
const RPCSEC_GSS: u32 = 6;
const AUTH_TLS: u32 = 7;

/// What a call says of itself.
struct Call {
    xid: u32,
    program: u32,
    procedure: u32,
    flavor: u32,
    /// RPCSEC_GSS: the service (RFC 2203, section 5.3.1); 3 is privacy.
    service: Option<u32>,
    /// With the record mark.
    len: usize,
}

/// A call, after the record mark of a stream (RFC 5531, section 11). `None`: not enough bytes.
fn call(data: &[u8], stream: bool) -> Option<Result<Call, ()>> {
    let mut reader = Reader::new(data);
    let len = match stream {
        true => {
            let mark = reader.u32().ok()?;
            if mark & 0x8000_0000 == 0 || !(24..=0x0100_0000).contains(&(mark & 0x7fff_ffff)) {
                return Some(Err(()));
            }
            4 + (mark & 0x7fff_ffff) as usize
        }
        false => data.len(),
    };
    let xid = reader.u32().ok()?;
    if (reader.u32().ok()?, reader.u32().ok()?) != (0, 2) {
        return Some(Err(()));
    }
    let (program, version, procedure) =
        (reader.u32().ok()?, reader.u32().ok()?, reader.u32().ok()?);
    let flavor = reader.u32().ok()?;
    let size = reader.u32().ok()?;
    if program == 0 || version > 100 || procedure > 100 || size > 400 {
        return Some(Err(()));
    }
    let service = (flavor == RPCSEC_GSS).then(|| {
        let mut body = Reader::new(reader.rest());
        let _ = (body.u32(), body.u32(), body.u32());
        body.u32().unwrap_or(0)
    });
    Some(Ok(Call { xid, program, procedure, flavor, service, len }))
}

/// Whether this is the reply to a call: accepted or denied.
fn is_reply(data: &[u8], xid: Option<u32>, stream: bool) -> Option<bool> {
    let mut reader = Reader::new(data);
    if stream && reader.u32().ok()? & 0x8000_0000 == 0 {
        return Some(false);
    }
    let found = reader.u32().ok()?;
    let (kind, state) = (reader.u32().ok()?, reader.u32().ok()?);
    Some(kind == 1 && state <= 1 && xid.is_none_or(|xid| xid == found))
}

pub(super) fn rpc(opening: &Opening<'_>) -> Verdict {
    let stream = opening.transport == Transport::Tcp;
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    let mut rest = match stream {
        true => client,
        false => opening.client.datagrams().next().unwrap_or_default(),
    };
    let answer = match stream {
        true => server,
        false => opening.server.datagrams().next().unwrap_or_default(),
    };
    let mut first = None;
    let mut used = 0;
    loop {
        let call = match call(rest, stream) {
            Some(Ok(call)) => call,
            Some(Err(())) if first.is_none() => return Verdict::No,
            None if first.is_none() => {
                return match client {
                    [] | [_] => Verdict::No,
                    _ if !stream || opening.last || client.len() > 40 => Verdict::No,
                    [0x80, ..] => Verdict::Maybe,
                    _ => Verdict::No,
                };
            }
            _ => break,
        };
        used += call.len;
        rest = rest.get(call.len.min(rest.len())..).unwrap_or_default();
        let name = program(call.program);
        let replied = match first {
            None => is_reply(answer, Some(call.xid), stream),
            Some(_) => Some(true),
        };
        first = Some(name);
        match (replied, call.flavor) {
            (Some(false), _) => return Verdict::No,
            (_, AUTH_TLS) => {
                let reply = reply_len(server);
                return match tls_within(&opening.after(used, reply)) {
                    Verdict::Done(seen) => Verdict::Done(Seen { protocol: name.into(), ..seen }),
                    Verdict::Maybe if !opening.last => Verdict::Maybe,
                    _ if !opening.last && rest.is_empty() => Verdict::Maybe,
                    _ => {
                        undetermined(name, Grade::Seen, "RPC with AUTH_TLS; no handshake followed")
                    }
                };
            }
            (_, RPCSEC_GSS) => match call.service {
                Some(3) => return undetermined(name, Grade::Seen, "RPCSEC_GSS with privacy"),
                // The context is established first.
                _ if call.procedure == 0 && !opening.last => {}
                Some(1 | 2) => return plaintext(name, Grade::Seen, "RPCSEC_GSS without privacy"),
                _ => return undetermined(name, Grade::Seen, "RPCSEC_GSS"),
            },
            // A NULL call comes before everything else, also before TLS.
            _ if call.procedure == 0 && stream && !opening.last && call.program == 100_003 => {}
            (Some(true), _) => {
                return plaintext(name, Grade::Seen, "a call of ONC RPC, and its reply");
            }
            (None, _) if opening.last || opening.server.ended => {
                return plaintext(name, Grade::Seen, "a call of ONC RPC");
            }
            (None, _) => return Verdict::Maybe,
        }
        if !stream {
            break;
        }
    }
    match first {
        Some(name) if opening.last => plaintext(name, Grade::Seen, "a call of ONC RPC"),
        _ => Verdict::Maybe,
    }
}

/// The reply of the server alone, when it is the side that was captured first.
pub(super) fn rpc_reply(opening: &Opening<'_>) -> Verdict {
    let stream = opening.transport == Transport::Tcp;
    let known = matches!(opening.ports.0, 111 | 2049) || matches!(opening.ports.1, 111 | 2049);
    let answer = opening.halves()[0].bytes;
    match known && opening.last && is_reply(answer, None, stream) == Some(true) {
        true => plaintext("rpc", Grade::Guessed, "a reply of ONC RPC"),
        false => Verdict::No,
    }
}

fn reply_len(data: &[u8]) -> usize {
    let mark = Reader::new(data).u32().unwrap_or(0x8000_0000) & 0x7fff_ffff;
    (4 + mark as usize).min(data.len())
}

fn program(number: u32) -> &'static str {
    match number {
        100_000 => "portmap",
        100_003 => "nfs",
        100_005 => "mount",
        100_021 => "nlockmgr",
        100_024 => "nsm",
        100_227 => "nfs-acl",
        _ => "rpc",
    }
}

// ---- SMB, NetBIOS.

pub(super) fn smb(opening: &Opening<'_>) -> Verdict {
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    let (said, answered) = (Smb::read(client), Smb::read(server));
    let (Some(said), Some(answered)) = (said, answered) else { return Verdict::No };
    if said.messages + answered.messages == 0 && !said.netbios {
        return match client {
            _ if opening.last => Verdict::No,
            [] if server.is_empty() => Verdict::No,
            [] | [0, ..] if matches!(server, [] | [0, ..]) => Verdict::Maybe,
            _ => Verdict::No,
        };
    }
    let complete = opening.last || (opening.client.ended && opening.server.ended);
    let both = said.messages > 0 && answered.messages > 0;
    let grade = if both { Grade::Seen } else { Grade::Guessed };
    match () {
        // SMB 3 may be encrypted by session or by share; its recogniser has said no.
        () if said.encrypted || answered.encrypted => {
            undetermined("smb", Grade::Seen, "SMB 3 messages, encrypted")
        }
        () if said.smb1 && (answered.smb1 || complete) => plaintext("smb", grade, "SMB 1"),
        // Encryption may be required by one share only; the first one is usually IPC$.
        () if said.access >= 4 && answered.messages > 0 => {
            plaintext("smb", Grade::Seen, "SMB 2 or 3 messages in the clear")
        }
        () if !complete => Verdict::Maybe,
        () if said.access + answered.access > 0 => {
            plaintext("smb", grade, "SMB 2 or 3 messages in the clear")
        }
        () if said.messages + answered.messages == 0 => {
            plaintext("netbios", Grade::Guessed, "a NetBIOS session request")
        }
        () => undetermined("smb", grade, "SMB negotiation; no access was seen"),
    }
}

/// What one direction has shown.
#[derive(Default)]
struct Smb {
    messages: usize,
    smb1: bool,
    encrypted: bool,
    /// Commands on files, so after negotiation and setup.
    access: usize,
    netbios: bool,
}

impl Smb {
    /// Messages in their session packets (RFC 1002, section 4.3); `None` if it is something else.
    fn read(data: &[u8]) -> Option<Self> {
        let mut seen = Self::default();
        let mut rest = data;
        while let [kind, a, b, c, after @ ..] = rest {
            let len = (usize::from(*a) << 16) | (usize::from(*b) << 8) | usize::from(*c);
            match kind {
                0 => {}
                0x81 if len == 68 || len == 72 => seen.netbios = true,
                0x82 | 0x85 if len == 0 => {}
                0x83 if len == 1 => {}
                _ if seen.messages > 0 => break,
                _ => return None,
            }
            let body = after.get(..len.min(after.len())).unwrap_or_default();
            match *body {
                [0xff, b'S', b'M', b'B', command, ..] => {
                    seen.messages += 1;
                    // A dialect of SMB 2 may be selected by SMB 1's negotiation.
                    seen.smb1 |= command != 0x72;
                }
                [0xfe, b'S', b'M', b'B', 64, 0, _, _, _, _, _, _, command, 0, ..] => {
                    seen.messages += 1;
                    // Tree connect and what follows it, without the echo and the logoff.
                    seen.access += usize::from(matches!(command, 4..=12 | 14..=18));
                }
                [0xfd | 0xfc, b'S', b'M', b'B', ..] => {
                    seen.messages += 1;
                    seen.encrypted |= body.first() == Some(&0xfd);
                }
                [_, _, _, _, ..] if *kind == 0 && seen.messages == 0 => return None,
                _ => {}
            }
            rest = after.get(body.len()..).unwrap_or_default();
        }
        Some(seen)
    }
}

/// NetBIOS datagrams (RFC 1002, section 4.4.1).
pub(super) fn netbios_datagram(opening: &Opening<'_>) -> Verdict {
    match opening.client.bytes {
        [0x10..=0x16, flags, _, _, _, _, _, _, 0, 138, len @ ..] if flags & 0xf0 == 0 => {
            match len {
                [_, _, _, _, 32, name @ ..]
                    if name.iter().take(32).all(|b| (b'A'..=b'P').contains(b)) =>
                {
                    plaintext("netbios", Grade::Seen, "a NetBIOS datagram")
                }
                _ => Verdict::No,
            }
        }
        _ => Verdict::No,
    }
}

// ---- DCE/RPC (C706, MS-RPCE).

pub(super) fn dcerpc(opening: &Opening<'_>) -> Verdict {
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    let (said, answered) = (pdu(client), pdu(server));
    let (Some(said), Some(answered)) = (said, answered) else { return Verdict::No };
    let over = |half: super::Half<'_>| opening.last || half.ended;
    let Some(first) = said.or(answered) else {
        let begins = matches!(client.first().or(server.first()), Some(5))
            && client.len() + server.len() < 16;
        return if begins && !opening.last { Verdict::Maybe } else { Verdict::No };
    };
    match (said, answered) {
        (Some(said), Some(answered)) if said.call == answered.call => {}
        (Some(_), Some(_)) => {}
        (Some(_), None) if over(opening.server) => {}
        (None, Some(_)) if over(opening.client) => {}
        _ => return Verdict::Maybe,
    }
    let grade = if said.is_some() && answered.is_some() { Grade::Seen } else { Grade::Guessed };
    match first.protection {
        Some(6) => undetermined("dcerpc", grade, "DCE/RPC with packet privacy"),
        Some(level) => {
            plaintext("dcerpc", grade, format!("DCE/RPC with authentication level {level}"))
        }
        // A later context may have it.
        None => plaintext("dcerpc", grade, "DCE/RPC without authentication"),
    }
}

#[derive(Clone, Copy)]
struct Pdu {
    call: u32,
    /// The level of authentication, if there is any; 6 is privacy.
    protection: Option<u8>,
}

/// The header of a connection-oriented PDU. `None`: something else; `Some(None)`: not enough.
fn pdu(data: &[u8]) -> Option<Option<Pdu>> {
    let [5, 0..=1, kind, flags, order, 0, 0, 0, l1, l2, a1, a2, c1, c2, c3, c4, ..] = *data else {
        return (data.len() < 16 && data.first().is_none_or(|b| *b == 5)).then_some(None);
    };
    let little = match order {
        0x10 => true,
        0 => false,
        _ => return None,
    };
    let short = |a, b| if little { u16::from_le_bytes([a, b]) } else { u16::from_be_bytes([a, b]) };
    let (len, auth) = (usize::from(short(l1, l2)), usize::from(short(a1, a2)));
    let call = [c1, c2, c3, c4];
    let call = if little { u32::from_le_bytes(call) } else { u32::from_be_bytes(call) };
    if !matches!(kind, 0 | 2 | 3 | 11..=19)
        || len < 16
        || auth + 24 > len.max(24)
        || flags & 3 == 0 && len < 24
    {
        return None;
    }
    let trailer = (auth > 0).then(|| data.get((len - auth).checked_sub(8)? + 1).copied()).flatten();
    match trailer {
        Some(level) if !(1..=6).contains(&level) => None,
        protection => Some(Some(Pdu { call, protection })),
    }
}

// ---- Kerberos. Tickets and keys are encrypted; who asks for which service is not, so the exchange is plaintext.

pub(super) fn kerberos(opening: &Opening<'_>) -> Verdict {
    let stream = opening.transport == Transport::Tcp;
    let read = |half: super::Half<'_>| match stream {
        true => match Reader::new(half.bytes).u32() {
            Ok(len @ 16..=0x0fff_ffff) => {
                kerberos_message(half.bytes.get(4..).unwrap_or_default(), Some(len as usize))
            }
            Ok(_) => Parsed::Not("no length"),
            Err(_) => Parsed::Partial,
        },
        false => match half.datagrams().next() {
            Some(datagram) => kerberos_message(datagram, Some(datagram.len())),
            None => Parsed::Partial,
        },
    };
    let (said, answered) = (read(opening.client), read(opening.server));
    match (&said, &answered) {
        (Parsed::Not(_), _) | (_, Parsed::Not(_)) => Verdict::No,
        // A message describes itself.
        (Parsed::Whole(what, _), _) | (Parsed::Partial, Parsed::Whole(what, _)) => {
            plaintext("kerberos", Grade::Seen, *what)
        }
        _ if opening.last || opening.client.bytes.len() < 5 => Verdict::No,
        _ => match opening.client.bytes {
            [0, 0, _, _, 0x6a..=0x7e, ..] => Verdict::Maybe,
            _ => Verdict::No,
        },
    }
}

/// An application tag, a sequence, and the version 5 in its first or second field.
fn kerberos_message(data: &[u8], outer: Option<usize>) -> Parsed<&'static str> {
    const NOT: Parsed<&str> = Parsed::Not("not a message of Kerberos");
    let Parsed::Whole((tag, len), used) = ber(data) else {
        return if data.len() < 6 { Parsed::Partial } else { NOT };
    };
    let what = match tag {
        0x6a => "AS-REQ of Kerberos: names in the clear",
        0x6b => "AS-REP of Kerberos: names in the clear",
        0x6c => "TGS-REQ of Kerberos: names in the clear",
        0x6d => "TGS-REP of Kerberos: names in the clear",
        0x6e => "AP-REQ of Kerberos: names in the clear",
        0x6f => "AP-REP of Kerberos",
        0x7e => "KRB-ERROR of Kerberos: names in the clear",
        _ => return NOT,
    };
    if outer.is_some_and(|outer| len + used != outer) {
        return NOT;
    }
    let inner = data.get(used..).unwrap_or_default();
    let Parsed::Whole((0x30, _), header) = ber(inner) else {
        return if inner.len() < 6 { Parsed::Partial } else { NOT };
    };
    match inner.get(header..header + 5) {
        Some([0xa0 | 0xa1, 3, 2, 1, 5]) => Parsed::Whole(what, 0),
        Some(_) => NOT,
        None => Parsed::Partial,
    }
}

// ---- iSCSI.

pub(super) fn iscsi(opening: &Opening<'_>) -> Verdict {
    let login = |data: &[u8], opcode: u8| match *data {
        [] => None,
        [op, _, _, _, 0, _, _, _, ..] if data.len() >= 48 => Some(
            op == opcode
                && match opcode {
                    0x43 => data.get(48..).is_some_and(|text| {
                        text.windows(14).take(2048).any(|part| part == b"InitiatorName=")
                    }),
                    _ => true,
                },
        ),
        [op, ..] => (op != opcode || data.len() >= 48).then_some(false),
    };
    let client = parsed(login(opening.client.bytes, 0x43), "the login of iSCSI");
    let server = parsed(login(opening.server.bytes, 0x23), "the login of iSCSI");
    if opening.client.bytes.is_empty() || opening.first == Some(Side::Server) {
        return Verdict::No;
    }
    dialogue(opening, "iscsi", client, server)
}

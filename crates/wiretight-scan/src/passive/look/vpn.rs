//! WireGuard and OpenVPN.

use std::collections::BTreeMap;

use super::sealed::seen;
use super::tls::look_within;
use super::{Half, Opening, Verdict, undetermined};
use crate::judge::Level;
use crate::parse::{Malformed, Reader};
use crate::passive::{Grade, Sealed, Transport};

// ---- WireGuard (Donenfeld, 2017, section 5.4).

/// A message. Numbers are indices that the peers assign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WireGuard {
    Initiation { sender: [u8; 4] },
    Response { sender: [u8; 4], receiver: [u8; 4] },
    Cookie,
    Data { receiver: [u8; 4], counter: u64 },
}

impl WireGuard {
    fn read(datagram: &[u8]) -> Option<Self> {
        let [kind, 0, 0, 0, a, b, c, d, rest @ ..] = datagram else { return None };
        let index = [*a, *b, *c, *d];
        Some(match (kind, datagram.len()) {
            (1, 148) => Self::Initiation { sender: index },
            (2, 92) => Self::Response { sender: index, receiver: *rest.first_chunk()? },
            (3, 64) => Self::Cookie,
            (4, 32..) if datagram.len().is_multiple_of(16) => {
                let counter = u64::from_le_bytes(*rest.first_chunk()?);
                // Rekeying comes long before.
                (counter < 1 << 60).then_some(Self::Data { receiver: index, counter })?
            }
            _ => return None,
        })
    }
}

pub(super) fn wireguard(opening: &Opening<'_>) -> Verdict {
    let read = |half: &Half<'_>| half.datagrams().map(WireGuard::read).collect::<Option<Vec<_>>>();
    // All first datagrams of both sides, or it is something else.
    let first = opening.halves()[0].datagrams().next();
    if first.is_none_or(|datagram| WireGuard::read(datagram).is_none()) {
        return Verdict::No;
    }
    let (Some(client), Some(server)) = (read(&opening.client), read(&opening.server)) else {
        return Verdict::No;
    };
    let settled = opening.last || opening.client.ended && opening.server.ended;
    let sealed = || {
        Some(Sealed {
            version: "WireGuard".into(),
            suite: Some("ChaCha20-Poly1305".into()),
            group: Some("x25519".into()),
            // A pre-shared key, which a capture does not show, protects against quantum computers too.
            post_quantum: None,
            forward_secrecy: Some(true),
            ..Sealed::default()
        })
    };
    for (initiator, responder) in [(&client, &server), (&server, &client)] {
        for message in responder {
            let WireGuard::Response { sender: by, receiver: to } = *message else { continue };
            if !initiator.contains(&WireGuard::Initiation { sender: to }) {
                continue;
            }
            let data = |messages: &[WireGuard], index: [u8; 4]| {
                messages
                    .iter()
                    .any(|m| matches!(m, WireGuard::Data { receiver, .. } if *receiver == index))
            };
            // The responder sends only after the initiator has.
            if data(initiator, by) || data(responder, to) {
                let evidence = "WireGuard: initiation, response, data";
                return Verdict::Done(seen(
                    "wireguard",
                    Level::Acceptable,
                    Grade::Seen,
                    evidence,
                    sealed(),
                ));
            }
            if settled {
                let evidence = "WireGuard: initiation and response, without data";
                return Verdict::Done(seen(
                    "wireguard",
                    Level::Unknown,
                    Grade::Seen,
                    evidence,
                    sealed(),
                ));
            }
        }
    }
    let handshake = client.iter().chain(&server).any(|m| !matches!(m, WireGuard::Data { .. }));
    let in_order = in_order(&client) && in_order(&server);
    match (handshake, settled) {
        (false, _) if !in_order => Verdict::No,
        (true, true) => undetermined(
            "wireguard",
            Grade::Guessed,
            "WireGuard: an initiation without its response",
        ),
        // Three packets with their counters in order are hardly chance.
        (false, _) if client.len() + server.len() >= 3 => {
            undetermined("wireguard", Grade::Guessed, "WireGuard data, without the handshake")
        }
        (_, false) => Verdict::Maybe,
        (false, true) => Verdict::No,
    }
}

/// Whether the counters of data for one receiver increase by little: the network may reorder packets.
fn in_order(messages: &[WireGuard]) -> bool {
    let data = messages.iter().filter_map(|message| match message {
        WireGuard::Data { receiver, counter } => Some((*receiver, *counter)),
        _ => None,
    });
    let data: Vec<_> = data.collect();
    data.windows(2).all(|pair| match pair {
        [(a, before), (b, after)] => a != b || before.abs_diff(*after) < 1000 && before != after,
        _ => true,
    })
}

// ---- OpenVPN (its protocol is described in openvpn-rfc).

const CONTROL: u8 = 4;
const ACK: u8 = 5;
const RESET_CLIENT: [u8; 3] = [1, 7, 10];
const RESET_SERVER: [u8; 2] = [2, 8];

/// The HMAC, the number and the time of a control packet with `tls-auth`, or the number, the time and the tag with
/// `tls-crypt`: 8 bytes and a digest.
const PROTECTION: [usize; 7] = [0, 8 + 16, 8 + 20, 8 + 28, 8 + 32, 8 + 48, 8 + 64];

pub(super) fn openvpn(opening: &Opening<'_>) -> Verdict {
    let (client, server) = (packets(opening, &opening.client), packets(opening, &opening.server));
    let (Some(client), Some(server)) = (client, server) else { return Verdict::No };
    let Some(asked) = client.first().and_then(|packet| reset(packet, &RESET_CLIENT, 14)) else {
        return Verdict::No;
    };
    let settled = opening.last || opening.client.ended && opening.server.ended;
    let Some(first) = server.first() else {
        return match settled {
            true => undetermined("openvpn", Grade::Guessed, "OpenVPN: a reset without an answer"),
            false => Verdict::Maybe,
        };
    };
    // It acknowledges the client's, so it repeats its session.
    let Some(answered) = reset(first, &RESET_SERVER, 14 + 12).or(reset(first, &RESET_SERVER, 14))
    else {
        return Verdict::No;
    };
    let repeats = first.windows(8).any(|window| Some(window) == client[0].get(1..9));
    let what =
        "OpenVPN: resets of both sides; its data channel does not show whether it is encrypted";
    if !repeats {
        // With tls-crypt everything else is encrypted.
        return match settled || client.len() + server.len() > 3 {
            true => undetermined("openvpn", Grade::Seen, what),
            false => Verdict::Maybe,
        };
    }
    let (client, server) = (control(&client, asked), control(&server, answered));
    let half = |bytes| Half { bytes, ends: &[], from_start: true, ended: settled };
    let inner = Opening {
        transport: Transport::Tcp,
        client: half(&client),
        server: half(&server),
        last: settled,
        ..*opening
    };
    match look_within(&inner) {
        Verdict::Done(tls) => {
            let evidence = format!("{what}; its control channel: {}", tls.evidence);
            let sealed = tls.sealed.map(|sealed| *sealed);
            Verdict::Done(seen("openvpn", Level::Unknown, Grade::Seen, evidence, sealed))
        }
        _ if settled => undetermined("openvpn", Grade::Seen, what),
        _ => Verdict::Maybe,
    }
}

/// The packets of one side; `None` if it is something else. Over TCP each has its length before it.
fn packets<'a>(opening: &Opening<'_>, half: &Half<'a>) -> Option<Vec<&'a [u8]>> {
    if opening.transport != Transport::Tcp {
        return Some(half.datagrams().collect());
    }
    let (mut reader, mut all) = (Reader::new(half.bytes), Vec::new());
    while let Ok(packet) = reader.vec16() {
        if packet.len() < 10 {
            return None;
        }
        all.push(packet);
    }
    Some(all)
}

/// The bytes that protect a reset, whose length is this without them. A client may send its own key after them
/// (tls-crypt-v2).
fn reset(packet: &[u8], opcodes: &[u8], length: usize) -> Option<usize> {
    let opcode = packet.first()? >> 3;
    if packet[0] & 7 != 0 || !opcodes.contains(&opcode) {
        return None;
    }
    if opcode == 10 && packet.len() > 200 {
        return Some(8 + 32);
    }
    let protection = packet.len().checked_sub(length)?;
    PROTECTION.contains(&protection).then_some(protection)
}

/// What the control packets of one side carry, in order.
fn control(packets: &[&[u8]], protection: usize) -> Vec<u8> {
    let mut parts = BTreeMap::new();
    let mut add = |packet: &[u8]| -> Result<(), Malformed> {
        let mut reader = Reader::new(packet);
        let opcode = reader.u8()? >> 3;
        if opcode == ACK || opcode > 10 {
            return Ok(());
        }
        reader.take(8 + protection)?;
        let acknowledged = usize::from(reader.u8()?);
        reader.take(acknowledged * 4 + if acknowledged > 0 { 8 } else { 0 })?;
        let number = reader.u32()?;
        if opcode == CONTROL {
            parts.entry(number).or_insert(reader.rest().to_vec());
        }
        Ok(())
    };
    for packet in packets {
        if add(packet).is_err() {
            break;
        }
    }
    let mut out = Vec::new();
    for (expected, (number, part)) in (1..).zip(parts) {
        if number != expected {
            break;
        }
        out.extend_from_slice(&part);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::sealed::look_at;
    use super::*;
    use crate::passive::{Seen, Side};

    fn message(kind: u8, length: usize, numbers: &[[u8; 4]]) -> Vec<u8> {
        let mut out = vec![kind, 0, 0, 0];
        numbers.iter().for_each(|number| out.extend(number));
        out.resize(length, 0x5a);
        out
    }

    fn data(receiver: [u8; 4], counter: u8) -> Vec<u8> {
        let mut out = message(4, 96, &[receiver, [counter, 0, 0, 0]]);
        out[12..16].fill(0);
        out
    }

    fn look(flow: &[(Side, Vec<u8>)]) -> Option<Seen> {
        look_at(wireguard, Transport::Udp, (40000, 51820), flow)
    }

    const ME: [u8; 4] = [1, 2, 3, 4];
    const PEER: [u8; 4] = [5, 6, 7, 8];

    #[test]
    fn a_wireguard_handshake_is_matched_by_its_indices() {
        let good = [
            (Side::Client, message(1, 148, &[ME])),
            (Side::Server, message(2, 92, &[PEER, ME])),
            (Side::Client, data(PEER, 0)),
        ];
        let seen = look(&good).unwrap();
        assert_eq!((seen.level, seen.grade), (Level::Acceptable, Grade::Seen));
        assert_eq!(look(&good[..2]).unwrap().level, Level::Unknown, "no data");
        assert_eq!(look(&good[..1]).unwrap().level, Level::Unknown, "no response");
        let mut other = good.clone();
        other[1].1 = message(2, 92, &[PEER, PEER]);
        assert_eq!(look(&other).unwrap().level, Level::Unknown, "a response to something else");
        let mut other = good.clone();
        other[2].1 = data(ME, 0);
        assert_eq!(look(&other).unwrap().level, Level::Unknown, "data for something else");
        let mut other = good;
        other[0].1.push(0);
        assert_eq!(look(&other), None);
    }

    #[test]
    fn wireguard_data_alone_is_a_guess() {
        let flow = [0, 1, 2].map(|n| (Side::Client, data(PEER, n)));
        let seen = look(&flow).unwrap();
        assert_eq!(
            (&*seen.protocol, seen.level, seen.grade),
            ("wireguard", Level::Unknown, Grade::Guessed)
        );
        assert_eq!(look(&flow[..2]), None);
        assert_eq!(
            look(&[0, 0, 0].map(|n| (Side::Client, data(PEER, n)))),
            None,
            "counters repeat"
        );
    }

    /// A control packet without protection.
    fn control_packet(
        opcode: u8,
        session: u8,
        of: Option<u8>,
        number: u32,
        content: &[u8],
    ) -> Vec<u8> {
        let mut out = vec![opcode << 3];
        out.extend([session; 8]);
        match of {
            Some(remote) => {
                out.extend([1, 0, 0, 0, 0]);
                out.extend([remote; 8]);
            }
            None => out.push(0),
        }
        out.extend(number.to_be_bytes());
        out.extend(content);
        out
    }

    #[test]
    fn openvpn_shows_tls_inside_but_not_the_cipher_of_its_data() {
        use crate::names::Version;
        use crate::parse::ClientHello;
        let hello =
            ClientHello::new(Version::Tls1_3, [1; 32]).suites([0x1301]).groups(&[29]).record();
        let (first, second) = hello.split_at(50);
        let flow = [
            (Side::Client, control_packet(7, 1, None, 0, b"")),
            (Side::Server, control_packet(8, 2, Some(1), 0, b"")),
            (Side::Client, control_packet(CONTROL, 1, Some(2), 1, first)),
            (Side::Client, control_packet(CONTROL, 1, None, 2, second)),
        ];
        let seen = look_at(openvpn, Transport::Udp, (40000, 1194), &flow).unwrap();
        assert_eq!(
            (&*seen.protocol, seen.level, seen.grade),
            ("openvpn", Level::Unknown, Grade::Seen)
        );
        assert_eq!(seen.sealed.unwrap().offered_groups, ["x25519"]);
        let tcp = flow.clone().map(|(side, packet)| {
            (side, [&(packet.len() as u16).to_be_bytes()[..], &packet].concat())
        });
        let seen = look_at(openvpn, Transport::Tcp, (40000, 1194), &tcp).unwrap();
        assert_eq!(seen.sealed.unwrap().offered_groups, ["x25519"]);
        let mut other = flow;
        other[0].1.push(0);
        assert_eq!(look_at(openvpn, Transport::Udp, (40000, 1194), &other), None);
    }
}

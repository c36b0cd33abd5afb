//! SSH (RFC 4253): the banners and the KEXINIT of both sides are in the clear, and decide what is negotiated.

use std::borrow::Cow;

use super::sealed::{seen, text};
use super::{Half, Opening, Verdict, quoted};
use crate::judge::{Level, marks};
use crate::parse::{Malformed, Reader};
use crate::passive::{Grade, Sealed};

/// Lines that a server may send before its banner (RFC 4253 section 4.2), and the length of a banner.
const MOST_BEFORE: usize = 2048;
const BANNER: usize = 255;
/// RFC 4253 section 6.1.
const MAX_PACKET: usize = 35_000;

/// Names of a list that are compared with all of the other side's: real lists have about twenty.
const MOST_NAMES: usize = 128;

const KEXINIT: u8 = 20;
const NEWKEYS: u8 = 21;
/// RFC 4253 section 8, and the same number in later key exchanges.
const KEXDH_INIT: u8 = 30;
/// RFC 4419: a group exchange, and its prime.
const GEX_REQUEST: u8 = 34;
const GEX_GROUP: u8 = 31;

pub(super) fn look(opening: &Opening<'_>) -> Verdict {
    // A client sends its banner at once, so SSH needs at least one.
    let (client, server) = match (Banner::read(&opening.client), Banner::read(&opening.server)) {
        (Banner::None, _) | (_, Banner::None) => return Verdict::No,
        // Only servers send lines before their banner.
        (Banner::Lines, _) | (Banner::Missing, Banner::Lines) => return Verdict::No,
        (Banner::Sent(..), Banner::Lines) if opening.last => return Verdict::No,
        (Banner::Sent(..), Banner::Lines) => return Verdict::Maybe,
        (Banner::Missing, Banner::Missing) => return Verdict::Maybe,
        (client, server) => (client.sent(), server.sent()),
    };
    let settled = opening.last || opening.client.ended && opening.server.ended;
    let software = server.or(client).map_or_else(String::new, |sent| quoted(sent.0));
    let old = [client, server]
        .into_iter()
        .flatten()
        .any(|sent| sent.0.starts_with(b"SSH-1.") && !sent.0.starts_with(b"SSH-1.99"));
    if old {
        let evidence = format!("{software}: version 1 of the protocol");
        let sealed = Sealed { version: "SSH 1".into(), ..Sealed::default() };
        let level = if client.is_some() && server.is_some() { Level::Weak } else { Level::Unknown };
        return Verdict::Done(seen("ssh", level, Grade::Seen, evidence, Some(sealed)));
    }
    let [mut client, mut server] =
        [client, server].map(|sent| sent.map(|(_, rest)| Packets::read(rest)));
    if server.as_ref().is_some_and(|packets| packets.asks) {
        // The server of the flow is the client of SSH.
        std::mem::swap(&mut client, &mut server);
    }
    let asked = client.as_ref().and_then(|packets| packets.lists);
    let answered = server.as_ref().and_then(|packets| packets.lists);
    let (Some(asked), Some(answered)) = (asked, answered) else {
        if !settled {
            return Verdict::Maybe;
        }
        let broken = [&client, &server].into_iter().flatten().any(|packets| packets.broken);
        let (grade, evidence) = match broken {
            true => (Grade::Unknown, "SSH banners, then something else".to_owned()),
            false => (Grade::Guessed, software),
        };
        let sealed = Sealed { version: "SSH 2.0".into(), ..Sealed::default() };
        return Verdict::Done(seen("ssh", Level::Unknown, grade, evidence, Some(sealed)));
    };
    let chosen = Chosen::of(&asked, &answered);
    let [client, server] = [client.unwrap_or_default(), server.unwrap_or_default()];
    // Encryption starts after NEWKEYS.
    let complete = client.keys && server.keys;
    if !complete && !client.broken && !server.broken && !settled {
        return Verdict::Maybe;
    }
    let bits = server.prime.or(client.prime);
    let mut evidence = chosen.evidence();
    let level = match (complete, client.broken || server.broken) {
        (true, _) => chosen.level(bits),
        (false, true) => {
            evidence.push_str("; then bytes that are no packets");
            Level::Unknown
        }
        (false, false) => {
            evidence.push_str("; the handshake was not seen to complete");
            Level::Unknown
        }
    };
    Verdict::Done(seen("ssh", level, Grade::Seen, evidence, Some(chosen.sealed(bits))))
}

/// The beginning of one direction.
enum Banner<'a> {
    /// Nothing was captured, or nothing of a stream that began before.
    Missing,
    /// Something else.
    None,
    /// Lines of text, after which a banner may follow.
    Lines,
    /// The banner, and what follows it.
    Sent(&'a [u8], &'a [u8]),
}

impl<'a> Banner<'a> {
    fn read(half: &Half<'a>) -> Self {
        let mut rest = half.bytes;
        if rest.is_empty() {
            return Self::Missing;
        }
        let start = b"SSH-";
        loop {
            if rest.starts_with(start) {
                let Some(end) = rest.iter().take(BANNER).position(|byte| *byte == b'\n') else {
                    return if rest.len() < BANNER { Self::Missing } else { Self::None };
                };
                let (line, after) = rest.split_at(end + 1);
                return Self::Sent(line.trim_ascii_end(), after);
            }
            if start.starts_with(rest) {
                return Self::Missing;
            }
            // Other lines may come before it; only if a banner follows, it is SSH.
            let read = half.bytes.len() - rest.len();
            let line = rest.iter().take(BANNER).position(|byte| *byte == b'\n');
            match line {
                Some(end) if read < MOST_BEFORE => rest = rest.get(end + 1..).unwrap_or_default(),
                _ => return Self::None,
            }
            if rest.is_empty() {
                return Self::Lines;
            }
        }
    }

    fn sent(self) -> Option<(&'a [u8], &'a [u8])> {
        match self {
            Self::Sent(banner, rest) => Some((banner, rest)),
            Self::Missing | Self::Lines | Self::None => None,
        }
    }
}

/// The packets before encryption starts.
#[derive(Debug, Default)]
struct Packets<'a> {
    lists: Option<Lists<'a>>,
    /// The first message of a key exchange, which the client sends.
    asks: bool,
    /// NEWKEYS was sent.
    keys: bool,
    /// Bits of the prime of a group exchange.
    prime: Option<usize>,
    broken: bool,
}

/// The name-lists of KEXINIT that matter here: those of the two directions are client to server, server to client.
#[derive(Debug, Clone, Copy)]
struct Lists<'a> {
    key_exchange: &'a [u8],
    host_key: &'a [u8],
    ciphers: [&'a [u8]; 2],
    macs: [&'a [u8]; 2],
}

impl<'a> Packets<'a> {
    fn read(bytes: &'a [u8]) -> Self {
        let (mut packets, mut rest) = (Self::default(), bytes);
        while !packets.keys && !rest.is_empty() {
            match packet(rest) {
                Ok(Some((payload, after))) => {
                    if packets.add(payload).is_err() {
                        packets.broken = true;
                        break;
                    }
                    rest = after;
                }
                Ok(None) => break,
                Err(_) => {
                    packets.broken = true;
                    break;
                }
            }
        }
        packets
    }

    fn add(&mut self, payload: &'a [u8]) -> Result<(), Malformed> {
        let mut reader = Reader::new(payload);
        match reader.u8()? {
            KEXINIT if self.lists.is_none() => {
                reader.take(16)?;
                let mut list = || {
                    let length = reader.u32()?;
                    reader.take(length as usize)
                };
                let (key_exchange, host_key) = (list()?, list()?);
                let (ciphers, macs) = ([list()?, list()?], [list()?, list()?]);
                self.lists = Some(Lists { key_exchange, host_key, ciphers, macs });
            }
            GEX_GROUP if self.prime.is_none() => {
                // In other key exchanges this number begins a host key, which is no positive odd number.
                let length = reader.u32()?;
                let prime = reader.take(length as usize)?;
                if let [0, top @ 0x80..=0xff, .., last] = prime
                    && last & 1 == 1
                {
                    self.prime = Some((prime.len() - 1) * 8 - top.leading_zeros() as usize);
                }
            }
            KEXDH_INIT | GEX_REQUEST => self.asks = true,
            NEWKEYS => self.keys = true,
            // Nothing but key exchange, and messages for everyone, before encryption.
            1..=49 => {}
            _ => return Err(Malformed("not a packet of the key exchange")),
        }
        Ok(())
    }
}

/// A packet's payload, and what follows the packet.
type Cut<'a> = (&'a [u8], &'a [u8]);

/// The first packet (RFC 4253 section 6); `None` if it is incomplete.
fn packet(bytes: &[u8]) -> Result<Option<Cut<'_>>, Malformed> {
    let mut reader = Reader::new(bytes);
    let Ok(length) = reader.u32() else { return Ok(None) };
    let length = length as usize;
    if !(12..=MAX_PACKET).contains(&length) || !(length + 4).is_multiple_of(8) {
        return Err(Malformed("not an SSH packet"));
    }
    let padding = match reader.rest().first() {
        None => return Ok(None),
        Some(padding) if *padding < 4 || usize::from(*padding) + 1 >= length => {
            return Err(Malformed("not an SSH packet"));
        }
        Some(padding) => usize::from(*padding),
    };
    let Ok(packet) = reader.take(length) else { return Ok(None) };
    let payload = packet.get(1..length - padding).unwrap_or_default();
    Ok(Some((payload, reader.rest())))
}

/// What was negotiated: the first of the client's names that the server has too (RFC 4253 section 7.1).
struct Chosen<'a> {
    key_exchange: &'a [u8],
    host_key: &'a [u8],
    /// Cipher and MAC, from the client and from the server.
    directions: [(&'a [u8], &'a [u8]); 2],
}

impl<'a> Chosen<'a> {
    fn of(client: &Lists<'a>, server: &Lists<'a>) -> Self {
        let direction = |i: usize| {
            let cipher = common(client.ciphers[i], server.ciphers[i]);
            (cipher, common(client.macs[i], server.macs[i]))
        };
        Self {
            key_exchange: common(client.key_exchange, server.key_exchange),
            host_key: common(client.host_key, server.host_key),
            directions: [direction(0), direction(1)],
        }
    }

    /// The worse direction: its level, its cipher and its MAC.
    fn worse(&self) -> (Level, &'a str, &'a str) {
        let of = |(cipher, mac)| {
            let (cipher, mac) = (name(cipher), name(mac));
            (marks::ssh_cipher(cipher, mac), cipher, mac)
        };
        let [up, down] = self.directions.map(of);
        if up.0 <= down.0 { up } else { down }
    }

    fn level(&self, prime: Option<usize>) -> Level {
        let (cipher, ..) = self.worse();
        if cipher == Level::Plaintext {
            return Level::Plaintext;
        }
        let exchange = marks::ssh_key_exchange(name(self.key_exchange));
        let prime = if prime.is_some_and(|bits| bits < 2048) { Level::Weak } else { Level::Strong };
        cipher.min(exchange).min(prime).min(marks::ssh_host_key(name(self.host_key)))
    }

    /// Cipher and MAC of the worse direction.
    fn suite(&self) -> String {
        match self.worse() {
            (_, cipher, mac) if !has_own_mac(cipher) => format!("{cipher}, {mac}"),
            (_, cipher, _) => cipher.to_owned(),
        }
    }

    fn evidence(&self) -> String {
        let (exchange, key) = (name(self.key_exchange), name(self.host_key));
        format!("KEXINIT: {exchange}, {key}, {}", self.suite())
    }

    fn sealed(&self, prime: Option<usize>) -> Sealed {
        let exchange = name(self.key_exchange);
        let group = match prime {
            Some(bits) if exchange.starts_with("diffie-hellman-group-exchange") => {
                format!("{exchange} ({bits} bits)")
            }
            _ => exchange.to_owned(),
        };
        Sealed {
            version: "SSH 2.0".into(),
            suite: Some(self.suite().into()),
            group: Some(group.into()),
            post_quantum: Some(marks::ssh_key_exchange(exchange) == Level::Strong),
            // Each key exchange of SSH is ephemeral, except by RSA (RFC 4432).
            forward_secrecy: Some(!exchange.starts_with("rsa")),
            signature: Some(Cow::Owned(name(self.host_key).to_owned())),
            ..Sealed::default()
        }
    }
}

fn has_own_mac(cipher: &str) -> bool {
    cipher.contains("-gcm@")
        || cipher.starts_with("AEAD_")
        || cipher.starts_with("chacha20-poly1305")
}

/// The first name of the client's list that is in the server's; empty if there is none.
fn common<'a>(client: &'a [u8], server: &'a [u8]) -> &'a [u8] {
    let list = |bytes| <[u8]>::split(bytes, |byte| *byte == b',').take(MOST_NAMES);
    let both = |name: &&[u8]| list(server).any(|other| other == *name);
    let mut names = list(client);
    names.find(|name| !is_marker(name) && !name.is_empty() && both(name)).unwrap_or_default()
}

/// Names in the list of key exchanges that are none (RFC 8308; OpenSSH's strict key exchange).
fn is_marker(name: &[u8]) -> bool {
    name.starts_with(b"ext-info-") || name.starts_with(b"kex-strict-")
}

fn name(bytes: &[u8]) -> &str {
    text(bytes, 64).unwrap_or("(none in common)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passive::{Seen, Side, Transport};

    fn packed(payload: &[u8]) -> Vec<u8> {
        let padding = 8 - (payload.len() + 5 + 4) % 8 + 4;
        let mut out = ((payload.len() + 1 + padding) as u32).to_be_bytes().to_vec();
        out.push(padding as u8);
        out.extend(payload);
        out.resize(out.len() + padding, 0);
        out
    }

    fn kexinit(lists: [&str; 4]) -> Vec<u8> {
        let [exchange, key, cipher, mac] = lists;
        let mut payload = vec![KEXINIT];
        payload.extend([7; 16]);
        for list in [exchange, key, cipher, cipher, mac, mac, "none", "none", "", ""] {
            payload.extend((list.len() as u32).to_be_bytes());
            payload.extend(list.as_bytes());
        }
        payload.extend([0; 5]);
        packed(&payload)
    }

    fn sent(lists: [&str; 4], messages: &[&[u8]]) -> Vec<u8> {
        let mut out = b"SSH-2.0-OpenSSH_9.9\r\n".to_vec();
        out.extend(kexinit(lists));
        messages.iter().for_each(|message| out.extend(packed(message)));
        out
    }

    fn look(client: &[u8], server: &[u8], last: bool) -> Verdict {
        let half = |bytes| Half { bytes, ends: &[], from_start: true, ended: false };
        super::look(&Opening {
            transport: Transport::Tcp,
            ports: (40000, 2222),
            first: Some(Side::Client),
            client: half(client),
            server: half(server),
            last,
        })
    }

    fn done(verdict: Verdict) -> Seen {
        match verdict {
            Verdict::Done(seen) => seen,
            other => panic!("{other:?}"),
        }
    }

    const INIT: &[u8] = &[30, 0, 0, 0, 1, 7];
    const REPLY: &[u8] = &[31, 0, 0, 0, 1, 7];
    const NEW: &[u8] = &[NEWKEYS];

    /// With a server that accepts everything that the client offers, and more.
    fn level(client: [&str; 4]) -> Level {
        let all = client.map(|list| format!("zzz,{list}"));
        let all = [&*all[0], &*all[1], &*all[2], &*all[3]];
        let (client, server) = (sent(client, &[INIT, NEW]), sent(all, &[REPLY, NEW]));
        done(look(&client, &server, false)).level
    }

    #[test]
    fn the_first_name_of_the_client_that_the_server_has_is_judged() {
        let good = ["mlkem768x25519-sha256", "ssh-ed25519", "aes256-gcm@openssh.com", "hmac-sha1"];
        assert_eq!(level(good), Level::Strong);
        let with = |at: usize, name: &'static str| {
            let mut lists = good;
            lists[at] = name;
            lists
        };
        for (at, name, expected) in [
            (0, "ext-info-c,sntrup761x25519-sha512@openssh.com", Level::Strong),
            (0, "curve25519-sha256", Level::Acceptable),
            (0, "diffie-hellman-group16-sha512", Level::Acceptable),
            (0, "diffie-hellman-group1-sha1", Level::Weak),
            (0, "something-new", Level::Unknown),
            (1, "ssh-dss", Level::Weak),
            (2, "aes128-ctr", Level::Acceptable),
            (2, "aes128-cbc", Level::Weak),
            (2, "arcfour256", Level::Weak),
            (2, "none", Level::Plaintext),
        ] {
            assert_eq!(level(with(at, name)), expected, "{name}");
        }
        let etm =
            ["mlkem768x25519-sha256", "ssh-ed25519", "aes128-ctr", "hmac-sha2-256-etm@openssh.com"];
        assert_eq!(level(etm), Level::Strong);
        let mut md5 = etm;
        md5[3] = "hmac-md5";
        assert_eq!(level(md5), Level::Weak);

        let server = ["curve25519-sha256", "ssh-ed25519", "aes256-gcm@openssh.com", "hmac-sha1"];
        let client = ["mlkem768x25519-sha256,curve25519-sha256", good[1], good[2], good[3]];
        let (client, server) = (sent(client, &[INIT, NEW]), sent(server, &[REPLY, NEW]));
        let seen = done(look(&client, &server, false));
        assert_eq!(seen.level, Level::Acceptable);
        let sealed = seen.sealed.unwrap();
        assert_eq!(sealed.group.as_deref(), Some("curve25519-sha256"));
        assert_eq!(sealed.suite.as_deref(), Some("aes256-gcm@openssh.com"));
        assert_eq!(sealed.post_quantum, Some(false));
        let turned = done(look(&server, &client, false));
        assert_eq!(turned.sealed.unwrap().group.as_deref(), Some("curve25519-sha256"));
    }

    #[test]
    fn a_short_prime_is_weak() {
        let lists =
            ["diffie-hellman-group-exchange-sha256", "ssh-ed25519", "aes256-gcm@openssh.com", ""];
        for (bytes, expected) in [(128, Level::Weak), (256, Level::Acceptable)] {
            let mut group = vec![GEX_GROUP];
            group.extend((bytes as u32 + 1).to_be_bytes());
            group.push(0);
            group.resize(group.len() + bytes, 0xff);
            group.extend([0, 0, 0, 1, 2]);
            let client = sent(lists, &[&[GEX_REQUEST], &[32], NEW]);
            let server = sent(lists, &[&group, &[33], NEW]);
            let seen = done(look(&client, &server, false));
            assert_eq!(seen.level, expected, "{}", seen.evidence);
        }
    }

    #[test]
    fn nothing_is_encrypted_before_new_keys() {
        let good = ["mlkem768x25519-sha256", "ssh-ed25519", "aes256-gcm@openssh.com", "hmac-sha1"];
        let (client, server) = (sent(good, &[INIT, NEW]), sent(good, &[REPLY, NEW]));
        assert_eq!(done(look(&client, &server, false)).level, Level::Strong);
        for n in 0..client.len() {
            match look(&client[..n], &server, true) {
                Verdict::Done(seen) => assert_eq!(seen.level, Level::Unknown, "{n}"),
                other => assert!(n < 4, "{other:?}"),
            }
        }
        let mut garbage = sent(good, &[]);
        garbage.extend([0x99; 64]);
        assert_eq!(done(look(&client, &garbage, false)).level, Level::Unknown);
        let before = [b"Authorized use only\r\n", &*server].concat();
        assert_eq!(look(&client, &before[..21], false), Verdict::Maybe);
        assert_eq!(done(look(&client, &before, false)).level, Level::Strong);
        assert_eq!(done(look(b"SSH-1.5-x\n", b"SSH-1.5-y\n", false)).level, Level::Weak);
        assert_eq!(look(b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", true), Verdict::No);
        assert_eq!(look(b"", b"220 mail.example ESMTP\r\n", false), Verdict::No);
    }
}

//! RDP (MS-RDPBCGR): its negotiation, then TLS, or the older security of its own.

use super::sealed::seen;
use super::starttls::started;
use super::{Opening, Verdict, plaintext, undetermined};
use crate::Start;
use crate::judge::Level;
use crate::parse::Reader;
use crate::parse::starttls::{Parsed, Rdp, rdp};
use crate::passive::{Grade, Sealed};

pub(super) fn look(opening: &Opening<'_>) -> Verdict {
    let request = match request(opening.client.bytes) {
        Parsed::Whole((), length) => length,
        Parsed::Partial => return Verdict::Maybe,
        Parsed::Not(_) => return Verdict::No,
    };
    let settled = opening.last || opening.client.ended && opening.server.ended;
    match rdp(opening.server.bytes) {
        Parsed::Not(_) => Verdict::No,
        Parsed::Partial if !settled => Verdict::Maybe,
        Parsed::Partial => undetermined("rdp", Grade::Guessed, "an RDP request without an answer"),
        Parsed::Whole(Rdp::Failed(code), _) => {
            undetermined("rdp", Grade::Seen, format!("RDP: the server refused, code {code}"))
        }
        Parsed::Whole(Rdp::Selected(protocol), length) if protocol != 0 => {
            started(opening, Start::Rdp, request, length)
        }
        Parsed::Whole(Rdp::Selected(_) | Rdp::Unaware, length) => {
            let answer = opening.server.bytes.get(length..).unwrap_or_default();
            match (security(answer), settled) {
                (Some((0, _)), _) => {
                    plaintext("rdp", Grade::Seen, "standard RDP security, without encryption")
                }
                // "Low": only what the client sends is encrypted (MS-RDPBCGR section 5.3.1).
                (Some((_, 0 | 1)), _) => {
                    let evidence =
                        "standard RDP security, which does not encrypt what the server sends";
                    plaintext("rdp", Grade::Seen, evidence)
                }
                (Some((method, _)), _) => {
                    // RC4 with up to 128 bits, or 3DES, and no proof of the server's identity (MS-RDPBCGR section 5.3).
                    let sealed = Sealed {
                        version: "RDP".into(),
                        suite: Some(if method & 0x10 != 0 { "3DES" } else { "RC4" }.into()),
                        post_quantum: Some(false),
                        forward_secrecy: Some(false),
                        ..Sealed::default()
                    };
                    // The choice was seen, but no proof that both ends follow it: there is no Finished.
                    let evidence = format!(
                        "standard RDP security: the server chose method {method:#x}, which is weak"
                    );
                    Verdict::Done(seen("rdp", Level::Unknown, Grade::Seen, evidence, Some(sealed)))
                }
                (None, false) => Verdict::Maybe,
                (None, true) => undetermined("rdp", Grade::Seen, "standard RDP security"),
            }
        }
    }
}

/// The X.224 Connection Request with what only RDP sends in it: a cookie, or the supported protocols.
fn request(bytes: &[u8]) -> Parsed<()> {
    const NOT: Parsed<()> = Parsed::Not("not an RDP request");
    let [3, 0, high, low, rest @ ..] = bytes else {
        return match bytes {
            [] | [3] | [3, 0] | [3, 0, _] => Parsed::Partial,
            _ => NOT,
        };
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if !(11..=512).contains(&length) || !matches!(rest.get(1), None | Some(0xe0)) {
        return NOT;
    }
    let Some(packet) = rest.get(..length - 4) else { return Parsed::Partial };
    let rest = packet.get(7..).unwrap_or_default();
    let negotiates = matches!(rest.last_chunk(), Some([1, _, 8, 0, _, 0, 0, 0]));
    match rest.starts_with(b"Cookie: ") || negotiates {
        true => Parsed::Whole((), length),
        false => NOT,
    }
}

/// Encryption method and level in the server's MCS Connect Response (MS-RDPBCGR section 2.2.1.4.3).
fn security(bytes: &[u8]) -> Option<(u32, u32)> {
    // The key of the server's data in the conference (T.124), and its length in one or two bytes.
    let at = bytes.windows(4).take(512).position(|window| window == b"McDn")?;
    let mut reader = Reader::new(bytes.get(at + 4..)?);
    if reader.u8().ok()? & 0x80 != 0 {
        reader.u8().ok()?;
    }
    for _ in 0..8 {
        let (kind, length) = (reader.u16().ok()?, reader.u16().ok()?.swap_bytes());
        let mut block = Reader::new(reader.take(usize::from(length).checked_sub(4)?).ok()?);
        // SC_SECURITY, in little-endian.
        if kind == 0x020c {
            return Some((block.u32().ok()?.swap_bytes(), block.u32().ok()?.swap_bytes()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::sealed::look_at;
    use super::*;
    use crate::passive::{Seen, Side, StartTls, Transport};

    fn request() -> Vec<u8> {
        let mut out = vec![3, 0, 0, 19, 14, 0xe0, 0, 0, 0, 0, 0];
        out.extend([1, 0, 8, 0, 3, 0, 0, 0]);
        out
    }

    fn confirm(protocol: u8) -> Vec<u8> {
        vec![3, 0, 0, 19, 14, 0xd0, 0, 0, 0, 0, 0, 2, 0, 8, 0, protocol, 0, 0, 0]
    }

    /// The server's part of the conference, with the core and the security block.
    fn conference(method: u8, level: u8) -> Vec<u8> {
        let mut out = vec![3, 0, 0, 60, 2, 0xf0, 0x80];
        out.extend(b"McDn");
        out.extend([
            20, 1, 0x0c, 8, 0, 4, 0, 8, 0, 2, 0x0c, 12, 0, method, 0, 0, 0, level, 0, 0, 0,
        ]);
        out
    }

    fn look(pieces: &[(Side, Vec<u8>)]) -> Option<Seen> {
        look_at(super::look, Transport::Tcp, (40000, 3390), pieces)
    }

    #[test]
    fn the_negotiated_security_decides() {
        let asked = (Side::Client, request());
        let old = |method, level| {
            look(&[asked.clone(), (Side::Server, [confirm(0), conference(method, level)].concat())])
        };
        assert_eq!(old(2, 2).unwrap().level, Level::Unknown, "nothing proves it");
        assert_eq!(old(2, 1).unwrap().level, Level::Plaintext, "one direction only");
        assert_eq!(old(0, 0).unwrap().level, Level::Plaintext);
        let open = look(&[asked.clone(), (Side::Server, confirm(0))]).unwrap();
        assert_eq!(open.level, Level::Unknown);
        let tls = look(&[asked.clone(), (Side::Server, confirm(1))]).unwrap();
        assert_eq!((&*tls.protocol, tls.level), ("rdp", Level::Unknown), "no handshake was seen");
        let hello = crate::parse::ClientHello::new(crate::names::Version::Tls1_2, [1; 32])
            .suites([0xc02f])
            .record();
        let tls = look(&[asked, (Side::Server, confirm(1)), (Side::Client, hello)]).unwrap();
        assert_eq!(tls.starttls, Some((Start::Rdp, StartTls::Used)));
        let mut other = request();
        // The parameters of another protocol over ISO transport.
        other.splice(11.., [0xc1, 2, 1, 0, 0xc2, 2, 1, 2]);
        assert_eq!(look(&[(Side::Client, other), (Side::Server, confirm(0))]), None);
    }
}

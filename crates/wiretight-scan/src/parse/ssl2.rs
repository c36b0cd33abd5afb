//! SSL 2.0 (Hickman, 1995; its hello lives on in RFC 5246 appendix E.2): a hello and its answer are
//! all that is spoken here, for the answer tells whether the protocol is.

use super::{Malformed, Reader};

/// A CLIENT-HELLO that offers these ciphers, with a challenge of 16 bytes.
pub fn ssl2_client_hello(ciphers: &[u32], challenge: [u8; 16]) -> Vec<u8> {
    let mut body = vec![1, 0, 2];
    body.extend(((ciphers.len() * 3) as u16).to_be_bytes());
    body.extend([0, 0, 0, 16]);
    ciphers.iter().for_each(|cipher| body.extend(&cipher.to_be_bytes()[1..]));
    body.extend(challenge);
    let mut out = (0x8000 | body.len() as u16).to_be_bytes().to_vec();
    out.append(&mut body);
    out
}

/// What a server says to that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ssl2Answer {
    /// It speaks SSL 2.0.
    Hello(Ssl2ServerHello),
    /// It speaks SSL 2.0, and says what is wrong.
    Error(u16),
}

/// A SERVER-HELLO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ssl2ServerHello {
    /// In DER; empty where a session was resumed.
    pub certificate: Vec<u8>,
    /// The ciphers that both know.
    pub ciphers: Vec<u32>,
}

/// The answer at the start of these bytes; `None` where more have to come.
pub fn ssl2_reply(bytes: &[u8]) -> Result<Option<Ssl2Answer>, Malformed> {
    let [a, b, ..] = *bytes else { return Ok(None) };
    // The header of three bytes, with padding, is for what is encrypted; and TLS begins like one.
    if a & 0x80 == 0 {
        return Err(Malformed("no SSL 2.0 record"));
    }
    let (length, header) = (usize::from(a & 0x7f) << 8 | usize::from(b), 2);
    if length < 3 {
        return Err(Malformed("no SSL 2.0 record"));
    }
    // What is no SSL 2.0 is told by its first bytes, before what they announce has come.
    match bytes.get(header) {
        None => return Ok(None),
        Some(0 | 4) => {}
        Some(_) => return Err(Malformed("no SSL 2.0 message")),
    }
    let Some(message) = bytes.get(header..header + length) else { return Ok(None) };
    let mut reader = Reader::new(message);
    if reader.u8()? == 0 {
        return Ok(Some(Ssl2Answer::Error(reader.u16()?)));
    }
    let (_hit, _kind, version) = (reader.u8()?, reader.u8()?, reader.u16()?);
    if version != 2 {
        return Err(Malformed("no version 2 in an SSL 2.0 hello"));
    }
    let (certificate, ciphers, id) = (reader.u16()?, reader.u16()?, reader.u16()?);
    let certificate = reader.take(certificate.into())?.to_vec();
    let ciphers = reader.take(ciphers.into())?;
    reader.take(id.into())?;
    let ciphers =
        ciphers.chunks_exact(3).map(|c| u32::from_be_bytes([0, c[0], c[1], c[2]])).collect();
    Ok(Some(Ssl2Answer::Hello(Ssl2ServerHello { certificate, ciphers })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_nothing_else_is_taken_for_one() {
        let hello = ssl2_client_hello(&[0x010080, 0x0700c0], [9; 16]);
        assert_eq!(hello.len(), 2 + 9 + 6 + 16);
        assert_eq!(ssl2_reply(&hello), Err(Malformed("no SSL 2.0 message")));

        let mut body = vec![4, 0, 1, 0, 2, 0, 2, 0, 3, 0, 1, 0xde, 0xad, 1, 0, 0x80, 7];
        let mut reply = (0x8000 | body.len() as u16).to_be_bytes().to_vec();
        reply.append(&mut body);
        let hello = Ssl2ServerHello { certificate: vec![0xde, 0xad], ciphers: vec![0x010080] };
        assert_eq!(ssl2_reply(&reply), Ok(Some(Ssl2Answer::Hello(hello))));
        for n in 0..reply.len() {
            assert_eq!(ssl2_reply(&reply[..n]), Ok(None), "{n}");
        }
        assert_eq!(ssl2_reply(&[0x80, 3, 0, 0, 1]), Ok(Some(Ssl2Answer::Error(1))));
        assert!(ssl2_reply(&[21, 3, 1, 0, 2, 2, 70]).is_err(), "a TLS alert");
        assert!(ssl2_reply(b"HTTP/1.1 400 ").is_err());
    }
}

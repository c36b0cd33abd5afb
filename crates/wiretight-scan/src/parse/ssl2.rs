//! SSL 2.0 (Hickman, 1995; RFC 5246 appendix E.2 also describes its hello): a hello and its answer, which
//! is enough to know whether a server supports it.

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

/// A CLIENT-HELLO as it was received. It may offer SSL 3.0 or TLS too (RFC 5246 appendix E.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ssl2ClientHello<'a> {
    /// The highest version that it offers.
    pub version: u16,
    /// Three bytes each. One that begins with zero is a suite of SSL 3.0 or later.
    pub ciphers: &'a [u8],
}

/// The CLIENT-HELLO at the start of these bytes, and its length; `None` if it is incomplete.
pub fn ssl2_parse_client_hello(
    bytes: &[u8],
) -> Result<Option<(Ssl2ClientHello<'_>, usize)>, Malformed> {
    const NOT: Malformed = Malformed("not an SSL 2.0 hello");
    let mut reader = Reader::new(bytes);
    let Ok(header) = reader.u16() else { return Ok(None) };
    let length = usize::from(header & 0x7fff);
    if header & 0x8000 == 0 || length < 9 + 3 + 16 {
        return Err(NOT);
    }
    match bytes.get(2..5) {
        None => return Ok(None),
        Some([1, 0, 2] | [1, 3, 0..=4]) => {}
        Some(_) => return Err(NOT),
    }
    let Ok(message) = reader.take(length) else { return Ok(None) };
    let mut reader = Reader::new(message);
    reader.u8()?;
    let (version, ciphers, id, challenge) =
        (reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?);
    let ciphers = reader.take(ciphers.into())?;
    reader.take(id.into())?;
    reader.take(challenge.into())?;
    if !reader.is_empty() || ciphers.len() % 3 != 0 || !(16..=32).contains(&challenge) {
        return Err(NOT);
    }
    Ok(Some((Ssl2ClientHello { version, ciphers }, 2 + length)))
}

/// The server's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ssl2Answer {
    /// The server supports SSL 2.0.
    Hello(Ssl2ServerHello),
    /// The server supports SSL 2.0, and reports an error.
    Error(u16),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ssl2ServerHello {
    /// In DER; empty if a session was resumed.
    pub certificate: Vec<u8>,
    /// The ciphers that both sides support.
    pub ciphers: Vec<u32>,
}

/// The answer at the start of these bytes; `None` if it is incomplete.
pub fn ssl2_reply(bytes: &[u8]) -> Result<Option<Ssl2Answer>, Malformed> {
    let [a, b, ..] = *bytes else { return Ok(None) };
    // A header of three bytes, with padding, is for encrypted records; TLS records look like it too.
    if a & 0x80 == 0 {
        return Err(Malformed("not an SSL 2.0 record"));
    }
    let (length, header) = (usize::from(a & 0x7f) << 8 | usize::from(b), 2);
    if length < 3 {
        return Err(Malformed("not an SSL 2.0 record"));
    }
    // Check the first bytes early, before the announced length has been received.
    match bytes.get(header) {
        None => return Ok(None),
        Some(0 | 4) => {}
        Some(_) => return Err(Malformed("not an SSL 2.0 message")),
    }
    let Some(message) = bytes.get(header..header + length) else { return Ok(None) };
    let mut reader = Reader::new(message);
    if reader.u8()? == 0 {
        return Ok(Some(Ssl2Answer::Error(reader.u16()?)));
    }
    let (_hit, _kind, version) = (reader.u8()?, reader.u8()?, reader.u16()?);
    if version != 2 {
        return Err(Malformed("an SSL 2.0 hello without version 2"));
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
    fn only_ssl2_answers_are_recognized() {
        let hello = ssl2_client_hello(&[0x010080, 0x0700c0], [9; 16]);
        assert_eq!(hello.len(), 2 + 9 + 6 + 16);
        assert_eq!(ssl2_reply(&hello), Err(Malformed("not an SSL 2.0 message")));
        let parsed = Ssl2ClientHello { version: 2, ciphers: &hello[11..17] };
        assert_eq!(ssl2_parse_client_hello(&hello), Ok(Some((parsed, hello.len()))));
        for n in 0..hello.len() {
            assert_eq!(ssl2_parse_client_hello(&hello[..n]), Ok(None), "{n}");
        }
        assert!(ssl2_parse_client_hello(&[0x16, 3, 1, 0, 80, 1, 0, 0, 76, 3, 3]).is_err());

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

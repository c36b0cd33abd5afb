//! The PROXY protocol, versions 1 and 2, as sent by a load balancer in front of the edge (haproxy.org,
//! proxy-protocol.txt). No I/O: parses a header at the start of a stream.
//!
//! Accepted only from addresses that the configuration trusts, because the sender can claim any client address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest line in version 1 (section 2.1).
const MAX_V1: usize = 107;
/// The longest header accepted in version 2: two IPv6 addresses and half a kilobyte of extensions.
pub const MAX_V2: usize = 16 + 36 + 512;
const V2: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// The result of parsing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Header {
    /// More bytes are needed.
    Partial,
    /// A complete header. `from` is the client's address; `None` if the balancer connects on its own behalf (LOCAL,
    /// UNKNOWN).
    Whole {
        /// The length of the header.
        len: usize,
        from: Option<SocketAddr>,
    },
}

/// Not a PROXY protocol header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no PROXY protocol header, or a malformed one")]
pub struct NotProxied;

/// Parses the header at the start of `bytes`.
pub fn parse(bytes: &[u8]) -> Result<Header, NotProxied> {
    let n = bytes.len().min(V2.len());
    if bytes[..n] == V2[..n] && n > 0 {
        return if n < V2.len() { Ok(Header::Partial) } else { version2(bytes) };
    }
    let n = bytes.len().min(6);
    if bytes[..n] != b"PROXY "[..n] {
        return Err(NotProxied);
    }
    version1(bytes)
}

fn version1(bytes: &[u8]) -> Result<Header, NotProxied> {
    let window = &bytes[..bytes.len().min(MAX_V1)];
    let Some(end) = window.windows(2).position(|w| w == b"\r\n") else {
        return if bytes.len() < MAX_V1 { Ok(Header::Partial) } else { Err(NotProxied) };
    };
    let line = std::str::from_utf8(&window[..end]).map_err(|_| NotProxied)?;
    let len = end + 2;
    let mut words = line.split(' ').skip(1);
    let mut word = || words.next().ok_or(NotProxied);
    let family = word()?;
    if family == "UNKNOWN" {
        return Ok(Header::Whole { len, from: None });
    }
    let (from, to) = (word()?, word()?);
    let (from, _to): (IpAddr, IpAddr) = match family {
        "TCP4" => (
            from.parse::<Ipv4Addr>().map_err(|_| NotProxied)?.into(),
            to.parse::<Ipv4Addr>().map_err(|_| NotProxied)?.into(),
        ),
        "TCP6" => (
            from.parse::<Ipv6Addr>().map_err(|_| NotProxied)?.into(),
            to.parse::<Ipv6Addr>().map_err(|_| NotProxied)?.into(),
        ),
        _ => return Err(NotProxied),
    };
    let port = |word: &str| match word.bytes().all(|b| b.is_ascii_digit()) {
        true => word.parse::<u16>().map_err(|_| NotProxied),
        false => Err(NotProxied),
    };
    let from_port = port(word()?)?;
    port(word()?)?;
    match words.next() {
        None => Ok(Header::Whole { len, from: Some(SocketAddr::new(from, from_port)) }),
        Some(_) => Err(NotProxied),
    }
}

fn version2(bytes: &[u8]) -> Result<Header, NotProxied> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<16>() else { return Ok(Header::Partial) };
    let body = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let len = 16 + body;
    if len > MAX_V2 {
        return Err(NotProxied);
    }
    let Some(body) = rest.get(..body) else { return Ok(Header::Partial) };
    let from = match (fixed[12], fixed[13]) {
        (0x20, _) => None, // LOCAL
        (0x21, 0x00) => None,
        (0x21, 0x11) => {
            let [a, b, c, d, _, _, _, _, p, q, _, _] =
                *body.first_chunk::<12>().ok_or(NotProxied)?;
            Some(SocketAddr::new([a, b, c, d].into(), u16::from_be_bytes([p, q])))
        }
        (0x21, 0x21) => {
            let address = body.first_chunk::<16>().ok_or(NotProxied)?;
            let ports = body.get(32..36).ok_or(NotProxied)?;
            let port = u16::from_be_bytes([ports[0], ports[1]]);
            Some(SocketAddr::new(IpAddr::from(*address).to_canonical(), port))
        }
        _ => return Err(NotProxied), // another version, or not a stream
    };
    Ok(Header::Whole { len, from })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_as_in_the_specification_are_accepted() {
        let whole = |bytes: &[u8]| {
            for n in 0..bytes.len() {
                assert_eq!(parse(&bytes[..n]), Ok(Header::Partial), "at {n}");
            }
            let mut more = bytes.to_vec();
            more.extend_from_slice(b"\x16\x03\x01");
            match parse(&more) {
                Ok(Header::Whole { len, from }) if len == bytes.len() => from,
                other => panic!("{other:?}"),
            }
        };
        let v1 = b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n";
        assert_eq!(whole(v1), Some("192.0.2.1:56324".parse().unwrap()));
        let v6 = b"PROXY TCP6 2001:db8::1 2001:db8::2 1 443\r\n";
        assert_eq!(whole(v6), Some("[2001:db8::1]:1".parse().unwrap()));
        assert_eq!(whole(b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n"), None);
        let id = "spiffe://example.org/service/web".parse().unwrap();
        let (from, to) = ("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:443".parse().unwrap());
        let ours = crate::relay::proxy_protocol::header(from, to, &id, "TLS_AES_256_GCM_SHA384");
        assert_eq!(whole(&ours), Some(from));
        let from = "[2001:db8::1]:9".parse().unwrap();
        assert_eq!(whole(&crate::relay::proxy_protocol::header(from, to, &id, "x")), Some(from));
        let local = [&V2[..], &[0x20, 0, 0, 0]].concat();
        assert_eq!(whole(&local), None);
    }

    #[test]
    fn malformed_headers_are_rejected() {
        let long = [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat();
        let big = [&V2[..], &[0x21, 0x11, 0xff, 0xff]].concat();
        let short = [&V2[..], &[0x21, 0x11, 0, 4, 1, 2, 3, 4]].concat();
        let version = [&V2[..], &[0x31, 0x11, 0, 0]].concat();
        let datagram = [&V2[..], &[0x21, 0x12, 0, 12], &[0; 12]].concat();
        for bad in [
            b"GET / HTTP/1.1\r\n".as_slice(),
            b"\x16\x03\x01\x00",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 56324\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 443\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 443 \r\n",
            b"PROXY TCP4 2001:db8::1 192.0.2.2 1 443\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 443\r\n",
            b"PROXY  TCP4 192.0.2.1 192.0.2.2 1 443\r\n",
            b"PROXY UDP4 192.0.2.1 192.0.2.2 1 443\r\n",
            b"proxy UNKNOWN\r\n",
            &long,
            &big,
            &short,
            &version,
            &datagram,
        ] {
            assert_eq!(parse(bad), Err(NotProxied), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}

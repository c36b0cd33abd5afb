//! The PROXY protocol v2 header that tells a backend the client's address (docs/wire.md, section 4; haproxy.org
//! proxy-protocol.txt, section 2.2).

use std::net::{IpAddr, SocketAddr};

use wiretight_keys::SpiffeId;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const PP2_TYPE_SSL: u8 = 0x20;
const PP2_SUBTYPE_SSL_VERSION: u8 = 0x21;
const PP2_SUBTYPE_SSL_CIPHER: u8 = 0x23;
/// The first type of the application-specific range, used for the peer's SPIFFE ID.
pub(crate) const PP2_TYPE_SPIFFE_ID: u8 = 0xE0;
/// The client used TLS and presented a certificate on this connection.
const PP2_CLIENT: u8 = 0x01 | 0x02;

/// The header: source and destination address, peer and cipher.
pub(crate) fn header(from: SocketAddr, to: SocketAddr, peer: &SpiffeId, cipher: &str) -> Vec<u8> {
    let mut body = Vec::with_capacity(256);
    // An IPv4-mapped IPv6 address counts as IPv4. If only one of the two is IPv4, both are written as IPv6.
    let (from_ip, to_ip) = (from.ip().to_canonical(), to.ip().to_canonical());
    let family = match (from_ip, to_ip) {
        (IpAddr::V4(f), IpAddr::V4(t)) => {
            body.extend_from_slice(&f.octets());
            body.extend_from_slice(&t.octets());
            0x11 // AF_INET, STREAM
        }
        (f, t) => {
            for ip in [f, t] {
                let v6 = match ip {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                    IpAddr::V6(v6) => v6,
                };
                body.extend_from_slice(&v6.octets());
            }
            0x21 // AF_INET6, STREAM
        }
    };
    body.extend_from_slice(&from.port().to_be_bytes());
    body.extend_from_slice(&to.port().to_be_bytes());

    let mut ssl = vec![PP2_CLIENT, 0, 0, 0, 0]; // verify: 0 = verified
    tlv(&mut ssl, PP2_SUBTYPE_SSL_VERSION, b"TLSv1.3");
    tlv(&mut ssl, PP2_SUBTYPE_SSL_CIPHER, cipher.as_bytes());
    tlv(&mut body, PP2_TYPE_SSL, &ssl);
    tlv(&mut body, PP2_TYPE_SPIFFE_ID, peer.to_string().as_bytes());

    let mut out = Vec::with_capacity(16 + body.len());
    out.extend_from_slice(&SIGNATURE);
    out.push(0x21); // version 2, PROXY
    out.push(family);
    out.extend_from_slice(&(body.len() as u16).to_be_bytes()); // a few hundred bytes
    out.extend_from_slice(&body);
    out
}

fn tlv(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    out.push(kind);
    out.extend_from_slice(&(value.len() as u16).to_be_bytes()); // names and IDs: under 300 bytes
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_follow_the_specification() {
        let id = "spiffe://example.org/service/web".parse().unwrap();
        let (from, to) = ("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:7432".parse().unwrap());
        let h = header(from, to, &id, "TLS_AES_256_GCM_SHA384");
        assert_eq!(h[..16], *b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x5a");
        assert_eq!(h.len(), 16 + 0x5a);
        assert_eq!(h[16..28], [10, 0, 0, 1, 10, 0, 0, 2, 0x03, 0xe8, 0x1d, 0x08]);
        assert!(h.ends_with(b"\xe0\x00\x20spiffe://example.org/service/web"));
        let mixed = header("[fd00::1]:1".parse().unwrap(), to, &id, "x");
        assert_eq!(mixed[13], 0x21);
        let mapped = header("[::ffff:10.0.0.1]:1".parse().unwrap(), to, &id, "x");
        assert_eq!(mapped[13], 0x11);
    }
}

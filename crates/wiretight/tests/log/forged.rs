//! Forged certificates, built byte by byte, as log entries.

use wiretight_keys::{PublicKey, Signer, SigningKey};

pub const DNS: u8 = 0x82;
pub const URI: u8 = 0x86;
pub const IP: u8 = 0x87;
pub const EMAIL: u8 = 0x81;

/// A certificate to forge.
pub struct Forged<'a> {
    pub key: &'a SigningKey,
    pub common_name: Option<&'a str>,
    /// Tags and contents of the subject alternative names.
    pub names: Vec<(u8, Vec<u8>)>,
    pub is_ca: bool,
}

pub fn key() -> SigningKey {
    SigningKey::generate().unwrap()
}

/// The hash of its key, as in lists and alerts.
pub fn hash(key: &SigningKey) -> String {
    let spki = PublicKey::new(key.public_key()).unwrap().to_der();
    wiretight_keys::token::hex(wiretight_tlog::Hash::of(&spki).as_bytes())
}

/// An entry with only these names.
pub fn named(key: &SigningKey, names: &[(u8, &str)]) -> Vec<u8> {
    let names = names.iter().map(|(tag, text)| (*tag, text.as_bytes().to_vec())).collect();
    Forged { key, common_name: None, names, is_ca: false }.entry()
}

impl Forged<'_> {
    pub fn entry(&self) -> Vec<u8> {
        let algorithm = tlv(0x30, &tlv(6, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]));
        let subject = self.common_name.map_or(Vec::new(), |name| {
            let attribute = [tlv(6, &[0x55, 4, 3]), tlv(0x0c, name.as_bytes())].concat();
            tlv(0x31, &tlv(0x30, &attribute))
        });
        let spki = PublicKey::new(self.key.public_key()).unwrap().to_der();
        let sans: Vec<u8> = self.names.iter().flat_map(|(tag, text)| tlv(*tag, text)).collect();
        let constraints = if self.is_ca { tlv(1, &[0xff]) } else { Vec::new() };
        let mut extensions = extension(&[0x55, 0x1d, 0x13], &tlv(0x30, &constraints));
        if !self.names.is_empty() {
            extensions.extend(extension(&[0x55, 0x1d, 0x11], &tlv(0x30, &sans)));
        }
        let date = tlv(0x17, b"260101000000Z");
        let tbs = [
            tlv(0xa0, &tlv(2, &[2])),
            tlv(2, &[[0x47; 8], [0; 8]].concat()),
            algorithm,
            tlv(0x30, &[]),
            tlv(0x30, &[date.clone(), date].concat()),
            tlv(0x30, &subject),
            spki,
            tlv(0xa3, &tlv(0x30, &extensions)),
        ];
        [&[0, 1][..], &tlv(0x30, &tbs.concat())].concat()
    }
}

fn extension(oid: &[u8], value: &[u8]) -> Vec<u8> {
    tlv(0x30, &[tlv(6, oid), tlv(4, value)].concat())
}

fn tlv(tag: u8, body: &[u8]) -> Vec<u8> {
    let n = body.len();
    let length = match n {
        0..128 => vec![n as u8],
        128..256 => vec![0x81, n as u8],
        256..65536 => vec![0x82, (n >> 8) as u8, n as u8],
        _ => vec![0x83, (n >> 16) as u8, (n >> 8) as u8, n as u8],
    };
    [&[tag][..], &length, body].concat()
}

//! The protection of records in one direction: AEAD of TLS 1.3 and 1.2, CBC and NULL with a MAC.
//!
//! It does not support ciphers that aws-lc-rs lacks (RC4, and 3DES except in the C bindings), nor SSL 3.0, which has
//! its own MAC.

use aws_lc_rs::cipher::{
    self, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext, UnboundCipherKey,
};
use aws_lc_rs::{hmac, iv::FixedLength};

use super::aead::{self, NONCE};
use super::{Failure, malformed, random};
use crate::parse::ContentType;

/// How a suite of TLS 1.2 or earlier protects records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cipher {
    Aead(aead::Algorithm),
    /// The length of the key.
    Cbc(usize, MacHash),
    Null(MacHash),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MacHash {
    Sha1,
    Sha256,
    Sha384,
}

impl MacHash {
    pub(super) fn len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
        }
    }

    fn key(self, bytes: &[u8]) -> hmac::Key {
        let algorithm = match self {
            Self::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha384 => hmac::HMAC_SHA384,
        };
        hmac::Key::new(algorithm, bytes)
    }
}

impl Cipher {
    /// The lengths of the MAC key, the key and the IV in the key block (RFC 5246 section 6.3; TLS 1.0 has an IV for
    /// CBC).
    pub(super) fn lengths(self, version: u16) -> (usize, usize, usize) {
        match self {
            Self::Aead(algorithm) => {
                let iv = if algorithm.has_explicit_nonce() { 4 } else { NONCE };
                (0, algorithm.key_len(), iv)
            }
            Self::Cbc(key, mac) => (mac.len(), key, if version == 0x0301 { 16 } else { 0 }),
            Self::Null(mac) => (mac.len(), 0, 0),
        }
    }
}

/// Which bytes of a CBC record's padding are made invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadPadding {
    /// All but the last byte, which is the length.
    All,
    /// Only the first byte.
    First,
}

/// One direction of a connection.
pub(super) struct Protection {
    kind: Kind,
    sequence: u64,
    /// Whether invalid padding was received. A client has no use for it.
    #[cfg(test)]
    odd_padding: bool,
}

enum Kind {
    Clear,
    /// The nonce is the IV with the sequence number (RFC 8446 section 5.3, RFC 7905 section 2).
    Aead {
        key: aead::Key,
        iv: [u8; NONCE],
        tls1_3: bool,
    },
    /// Half of the nonce is in the record (RFC 5288 section 3, RFC 6655 section 3).
    ExplicitNonce {
        key: aead::Key,
        salt: [u8; 4],
    },
    /// MAC, then padding, then encryption (RFC 5246 section 6.2.3.2).
    Cbc {
        cipher: &'static cipher::Algorithm,
        key: Vec<u8>,
        mac: hmac::Key,
        chained: Option<[u8; 16]>,
    },
    Mac(hmac::Key),
}

impl Protection {
    fn of(kind: Kind) -> Self {
        Self {
            kind,
            sequence: 0,
            #[cfg(test)]
            odd_padding: false,
        }
    }

    #[cfg(test)]
    pub(super) fn odd_padding(&self) -> bool {
        self.odd_padding
    }

    pub(super) fn clear() -> Self {
        Self::of(Kind::Clear)
    }

    pub(super) fn tls1_3(
        algorithm: aead::Algorithm,
        key: &[u8],
        iv: &[u8],
    ) -> Result<Self, Failure> {
        let key = aead::Key::new(algorithm, key)?;
        let iv = iv.try_into().map_err(|_| malformed("an IV of a wrong length"))?;
        Ok(Self::of(Kind::Aead { key, iv, tls1_3: true }))
    }

    /// Up to TLS 1.2, with the parts of the key block as given by [`Cipher::lengths`].
    pub(super) fn new(
        cipher: Cipher,
        version: u16,
        mac: &[u8],
        key: &[u8],
        iv: &[u8],
    ) -> Result<Self, Failure> {
        let short = |_| malformed("an IV of a wrong length");
        let kind = match cipher {
            Cipher::Aead(algorithm) => {
                let key = aead::Key::new(algorithm, key)?;
                match algorithm.has_explicit_nonce() {
                    true => Kind::ExplicitNonce { key, salt: iv.try_into().map_err(short)? },
                    false => Kind::Aead { key, iv: iv.try_into().map_err(short)?, tls1_3: false },
                }
            }
            Cipher::Cbc(n, hash) => Kind::Cbc {
                cipher: if n == 16 { &cipher::AES_128 } else { &cipher::AES_256 },
                key: key.to_vec(),
                mac: hash.key(mac),
                chained: match version {
                    0x0301 => Some(iv.try_into().map_err(short)?),
                    _ => None,
                },
            },
            Cipher::Null(hash) => Kind::Mac(hash.key(mac)),
        };
        Ok(Self::of(kind))
    }

    pub(super) fn is_clear(&self) -> bool {
        matches!(self.kind, Kind::Clear)
    }

    pub(super) fn is_tls1_3(&self) -> bool {
        matches!(self.kind, Kind::Aead { tls1_3: true, .. })
    }

    /// The type and fragment of a record with this content.
    pub(super) fn seal(
        &mut self,
        content: ContentType,
        version: u16,
        data: &[u8],
        bad: Option<BadPadding>,
    ) -> Result<(ContentType, Vec<u8>), Failure> {
        let sequence = self.sequence;
        self.sequence += 1;
        let header = header(sequence, content, version, data.len());
        let fragment = match &mut self.kind {
            Kind::Clear => data.to_vec(),
            Kind::Aead { key, iv, tls1_3: true } => {
                let mut out = [data, &[content.code()]].concat();
                let outer = outer_header(out.len() + key.tag_len());
                key.seal(nonce(iv, sequence), &outer, &mut out)?;
                return Ok((ContentType::ApplicationData, out));
            }
            Kind::Aead { key, iv, tls1_3: false } => {
                let mut out = data.to_vec();
                key.seal(nonce(iv, sequence), &header, &mut out)?;
                out
            }
            Kind::ExplicitNonce { key, salt } => {
                let explicit = sequence.to_be_bytes();
                let mut out = data.to_vec();
                key.seal(with_salt(salt, &explicit), &header, &mut out)?;
                [explicit.as_slice(), &out].concat()
            }
            Kind::Cbc { cipher, key, mac, chained } => {
                let mut out = [data, sign(mac, &header, data).as_ref()].concat();
                // For the test of invalid padding, use more than one block: the server has more bytes to check.
                let more = if bad.is_some() { 16 } else { 0 };
                let n = 15 - out.len() % 16 + more;
                out.extend(vec![n as u8; n + 1]);
                let start = out.len() - n - 1;
                let end = out.len() - 1;
                match bad {
                    None => {}
                    Some(BadPadding::All) => out[start..end].iter_mut().for_each(|b| *b ^= 0x55),
                    Some(BadPadding::First) => out[start] ^= 0x55,
                }
                let iv = chained.unwrap_or_else(random);
                let encrypting = EncryptingKey::cbc(UnboundCipherKey::new(cipher, key)?)?;
                let context = EncryptionContext::Iv128(FixedLength::from(&iv));
                encrypting.less_safe_encrypt(&mut out, context)?;
                match chained {
                    Some(next) => {
                        *next = *out.last_chunk().ok_or_else(|| malformed("an empty record"))?;
                        out
                    }
                    None => [iv.as_slice(), &out].concat(),
                }
            }
            Kind::Mac(mac) => [data, sign(mac, &header, data).as_ref()].concat(),
        };
        Ok((content, fragment))
    }

    /// The content of a record, and its real type.
    pub(super) fn open(
        &mut self,
        content: ContentType,
        version: u16,
        fragment: &[u8],
    ) -> Result<(ContentType, Vec<u8>), Failure> {
        let short = || malformed("an encrypted record is too short");
        let sequence = self.sequence;
        self.sequence += 1;
        let data = match &mut self.kind {
            Kind::Clear => fragment.to_vec(),
            Kind::Aead { key, iv, tls1_3: true } => {
                let mut out = fragment.to_vec();
                key.open(nonce(iv, sequence), &outer_header(fragment.len()), &mut out)?;
                // The content type comes before the zeros of the padding.
                let end = out.iter().rposition(|b| *b != 0).ok_or_else(short)?;
                let content = ContentType::from_code(out[end])
                    .ok_or_else(|| malformed("an encrypted record without a content type"))?;
                out.truncate(end);
                return Ok((content, out));
            }
            Kind::Aead { key, iv, tls1_3: false } => {
                let n = fragment.len().checked_sub(key.tag_len()).ok_or_else(short)?;
                let mut out = fragment.to_vec();
                let header = header(sequence, content, version, n);
                key.open(nonce(iv, sequence), &header, &mut out)?;
                out
            }
            Kind::ExplicitNonce { key, salt } => {
                let (explicit, rest) = fragment.split_first_chunk::<8>().ok_or_else(short)?;
                let n = rest.len().checked_sub(key.tag_len()).ok_or_else(short)?;
                let mut out = rest.to_vec();
                let header = header(sequence, content, version, n);
                key.open(with_salt(salt, explicit), &header, &mut out)?;
                out
            }
            Kind::Cbc { cipher, key, mac, chained } => {
                let (iv, rest) = match chained {
                    Some(iv) => (*iv, fragment),
                    None => {
                        let (iv, rest) = fragment.split_first_chunk().ok_or_else(short)?;
                        (*iv, rest)
                    }
                };
                if let Some(next) = chained {
                    *next = *rest.last_chunk().ok_or_else(short)?;
                }
                let decrypting = DecryptingKey::cbc(UnboundCipherKey::new(cipher, key)?)?;
                let context = DecryptionContext::Iv128(FixedLength::from(&iv));
                let mut out = rest.to_vec();
                decrypting
                    .decrypt(&mut out, context)
                    .map_err(|_| malformed("a record that the keys do not open"))?;
                let padding = usize::from(*out.last().ok_or_else(short)?) + 1;
                let n = out.len().checked_sub(padding).ok_or_else(short)?;
                #[cfg(test)]
                {
                    self.odd_padding |= out[n..].iter().any(|b| usize::from(*b) + 1 != padding);
                }
                out.truncate(n);
                verified(mac, sequence, content, version, out)?
            }
            Kind::Mac(mac) => verified(mac, sequence, content, version, fragment.to_vec())?,
        };
        Ok((content, data))
    }
}

/// The data before the MAC; an error if the MAC is wrong.
fn verified(
    key: &hmac::Key,
    sequence: u64,
    content: ContentType,
    version: u16,
    mut data: Vec<u8>,
) -> Result<Vec<u8>, Failure> {
    let n = key.algorithm().digest_algorithm().output_len();
    let n = data.len().checked_sub(n).ok_or(malformed("an encrypted record is too short"))?;
    let mac = data.split_off(n);
    let expected = sign(key, &header(sequence, content, version, n), &data);
    match expected.as_ref() == mac {
        true => Ok(data),
        false => Err(malformed("a record with a wrong MAC")),
    }
}

fn sign(key: &hmac::Key, header: &[u8], data: &[u8]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key);
    context.update(header);
    context.update(data);
    context.sign()
}

/// The additional data of a MAC or AEAD (RFC 5246 section 6.2.3).
fn header(sequence: u64, content: ContentType, version: u16, n: usize) -> [u8; 13] {
    let mut out = [0; 13];
    out[..8].copy_from_slice(&sequence.to_be_bytes());
    out[8] = content.code();
    out[9..11].copy_from_slice(&version.to_be_bytes());
    out[11..].copy_from_slice(&(n as u16).to_be_bytes());
    out
}

/// The additional data in TLS 1.3 (RFC 8446 section 5.2).
fn outer_header(n: usize) -> [u8; 5] {
    let [a, b] = (n as u16).to_be_bytes();
    [23, 3, 3, a, b]
}

fn nonce(iv: &[u8; NONCE], sequence: u64) -> [u8; NONCE] {
    let mut nonce = *iv;
    nonce[4..].iter_mut().zip(sequence.to_be_bytes()).for_each(|(a, b)| *a ^= b);
    nonce
}

fn with_salt(salt: &[u8; 4], explicit: &[u8; 8]) -> [u8; NONCE] {
    let mut nonce = [0; NONCE];
    nonce[..4].copy_from_slice(salt);
    nonce[4..].copy_from_slice(explicit);
    nonce
}

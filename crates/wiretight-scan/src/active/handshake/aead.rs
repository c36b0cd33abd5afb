//! Authenticated encryption of records: AES-GCM and ChaCha20-Poly1305 from aws-lc-rs, and AES-CCM, built from the CBC
//! and CTR modes of aws-lc-rs.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{self, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;

use super::{Failure, malformed};

/// The length of each nonce.
pub(super) const NONCE: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Aes128Gcm,
    Aes256Gcm,
    ChaCha20Poly1305,
    /// The lengths of the AES key and of the tag.
    Ccm(usize, usize),
}

impl Algorithm {
    pub(super) fn key_len(self) -> usize {
        match self {
            Self::Aes128Gcm => 16,
            Self::Aes256Gcm | Self::ChaCha20Poly1305 => 32,
            Self::Ccm(key, _) => key,
        }
    }

    pub(super) fn tag_len(self) -> usize {
        match self {
            Self::Ccm(_, tag) => tag,
            _ => 16,
        }
    }

    /// Whether half of the nonce is sent in each record, in TLS 1.2 (RFC 5288 section 3, RFC 6655 section 3).
    pub(super) fn has_explicit_nonce(self) -> bool {
        self != Self::ChaCha20Poly1305
    }
}

pub(super) struct Key {
    algorithm: Algorithm,
    inner: Inner,
}

enum Inner {
    AwsLc(LessSafeKey),
    Ccm(Vec<u8>),
}

impl Key {
    pub(super) fn new(algorithm: Algorithm, key: &[u8]) -> Result<Self, Failure> {
        let aws_lc = |known| Ok(Inner::AwsLc(LessSafeKey::new(UnboundKey::new(known, key)?)));
        let inner = match algorithm {
            Algorithm::Aes128Gcm => aws_lc(&aead::AES_128_GCM),
            Algorithm::Aes256Gcm => aws_lc(&aead::AES_256_GCM),
            Algorithm::ChaCha20Poly1305 => aws_lc(&aead::CHACHA20_POLY1305),
            Algorithm::Ccm(..) => Ok::<_, Failure>(Inner::Ccm(key.to_vec())),
        };
        Ok(Self { algorithm, inner: inner? })
    }

    pub(super) fn tag_len(&self) -> usize {
        self.algorithm.tag_len()
    }

    /// Encrypts in place, and appends the tag.
    pub(super) fn seal(
        &self,
        nonce: [u8; NONCE],
        covered: &[u8],
        data: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        match &self.inner {
            Inner::AwsLc(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.seal_in_place_append_tag(nonce, Aad::from(covered), data)?;
            }
            Inner::Ccm(key) => {
                let mut mac = ccm_mac(key, self.tag_len(), nonce, covered, data)?;
                ccm_crypt(key, nonce, &mut mac, data)?;
                data.extend(&mac[..self.tag_len()]);
            }
        }
        Ok(())
    }

    /// Decrypts in place, and removes the tag. Fails if the tag is wrong.
    pub(super) fn open(
        &self,
        nonce: [u8; NONCE],
        covered: &[u8],
        data: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let bad = || malformed("a record that the keys do not open");
        let n = data.len().checked_sub(self.tag_len()).ok_or_else(bad)?;
        match &self.inner {
            Inner::AwsLc(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, Aad::from(covered), data).map_err(|_| bad())?;
                data.truncate(n);
            }
            Inner::Ccm(key) => {
                let tag = data.split_off(n);
                let mut mac = [0; 16];
                mac[..tag.len()].copy_from_slice(&tag);
                ccm_crypt(key, nonce, &mut mac, data)?;
                let expected = ccm_mac(key, tag.len(), nonce, covered, data)?;
                if mac[..tag.len()] != expected[..tag.len()] {
                    return Err(bad());
                }
            }
        }
        Ok(())
    }
}

/// The length of the length field, minus one. The field gets the 15 bytes minus the nonce.
const CCM_LENGTH: u8 = 14 - NONCE as u8;

/// The CBC-MAC (RFC 3610 section 2.2): the last block of CBC without an IV. `covered` is never empty.
fn ccm_mac(
    key: &[u8],
    tag: usize,
    nonce: [u8; NONCE],
    covered: &[u8],
    data: &[u8],
) -> Result<[u8; 16], Failure> {
    let mut blocks = vec![0x40 | (((tag - 2) / 2) as u8 * 8) | CCM_LENGTH];
    blocks.extend(nonce);
    blocks.extend(&(data.len() as u32).to_be_bytes()[1..]);
    blocks.extend((covered.len() as u16).to_be_bytes());
    blocks.extend(covered);
    blocks.resize(blocks.len().next_multiple_of(16), 0);
    blocks.extend(data);
    blocks.resize(blocks.len().next_multiple_of(16), 0);
    let context = EncryptionContext::Iv128(FixedLength::from(&[0; 16]));
    EncryptingKey::cbc(aes(key)?)?.less_safe_encrypt(&mut blocks, context)?;
    blocks.last_chunk().copied().ok_or_else(|| malformed("an empty record"))
}

/// Encrypts or decrypts (RFC 3610 section 2.3): the MAC uses counter 0, the data starts at counter 1.
fn ccm_crypt(
    key: &[u8],
    nonce: [u8; NONCE],
    mac: &mut [u8; 16],
    data: &mut [u8],
) -> Result<(), Failure> {
    let mut counter = [0; 16];
    counter[0] = CCM_LENGTH;
    counter[1..=NONCE].copy_from_slice(&nonce);
    let mut all = [mac.as_slice(), data].concat();
    let context = EncryptionContext::Iv128(FixedLength::from(&counter));
    EncryptingKey::ctr(aes(key)?)?.less_safe_encrypt(&mut all, context)?;
    mac.copy_from_slice(&all[..16]);
    data.copy_from_slice(&all[16..]);
    Ok(())
}

fn aes(key: &[u8]) -> Result<UnboundCipherKey, Failure> {
    let algorithm = if key.len() == 16 { &cipher::AES_128 } else { &cipher::AES_256 };
    Ok(UnboundCipherKey::new(algorithm, key)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting<const N: usize>(from: u8) -> [u8; N] {
        std::array::from_fn(|i| from + i as u8)
    }

    #[test]
    fn ccm_is_that_of_sp_800_38c() {
        // NIST SP 800-38C appendix C.3: the one with a nonce of twelve bytes.
        let key = Key::new(Algorithm::Ccm(16, 8), &counting::<16>(0x40)).unwrap();
        let (nonce, covered) = (counting(0x10), counting::<20>(0));
        let plain = counting::<24>(0x20).to_vec();
        let mut data = plain.clone();
        key.seal(nonce, &covered, &mut data).unwrap();
        let expected = [
            0xe3, 0xb2, 0x01, 0xa9, 0xf5, 0xb7, 0x1a, 0x7a, 0x9b, 0x1c, 0xea, 0xec, 0xcd, 0x97,
            0xe7, 0x0b, 0x61, 0x76, 0xaa, 0xd9, 0xa4, 0x42, 0x8a, 0xa5, 0x48, 0x43, 0x92, 0xfb,
            0xc1, 0xb0, 0x99, 0x51,
        ];
        assert_eq!(data, expected);
        key.open(nonce, &covered, &mut data).unwrap();
        assert_eq!(data, plain);
    }

    #[test]
    fn what_was_changed_or_is_too_short_is_not_opened() {
        for algorithm in [
            Algorithm::Aes128Gcm,
            Algorithm::Aes256Gcm,
            Algorithm::ChaCha20Poly1305,
            Algorithm::Ccm(16, 16),
            Algorithm::Ccm(32, 16),
            Algorithm::Ccm(16, 8),
            Algorithm::Ccm(32, 8),
        ] {
            let key = Key::new(algorithm, &[7; 32][..algorithm.key_len()]).unwrap();
            for n in [0, 1, 15, 16, 17, 1 << 14] {
                let plain = vec![9; n];
                let mut sealed = plain.clone();
                key.seal([1; 12], b"header", &mut sealed).unwrap();
                assert_eq!(sealed.len(), n + algorithm.tag_len());
                let open = |nonce, covered: &[u8], mut data: Vec<u8>| {
                    key.open(nonce, covered, &mut data).map(|()| data)
                };
                assert_eq!(open([1; 12], b"header", sealed.clone()), Ok(plain));
                for at in [0, n, n + algorithm.tag_len() - 1] {
                    let mut changed = sealed.clone();
                    changed[at] ^= 1;
                    assert!(open([1; 12], b"header", changed).is_err(), "{algorithm:?} {n} {at}");
                }
                assert!(open([2; 12], b"header", sealed.clone()).is_err());
                assert!(open([1; 12], b"headeR", sealed.clone()).is_err());
                sealed.truncate(algorithm.tag_len() - 1);
                assert!(open([1; 12], b"header", sealed).is_err());
            }
        }
    }
}

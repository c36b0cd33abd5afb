//! Key schedules: HKDF of TLS 1.3 (RFC 8446 section 7.1), and the PRFs of earlier versions (RFC
//! 5246 and RFC 4346, both section 5).

use aws_lc_rs::{digest, hmac};
use hmac_md5::{KeyInit, Mac};

/// The hash of a suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    Sha256,
    Sha384,
}

impl Hash {
    fn hmac(self) -> hmac::Algorithm {
        match self {
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha384 => hmac::HMAC_SHA384,
        }
    }

    pub(super) fn len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
        }
    }

    pub(super) fn digest(self, bytes: &[u8]) -> Vec<u8> {
        let algorithm = match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
        };
        digest::digest(algorithm, bytes).as_ref().to_vec()
    }

    pub(super) fn mac(self, key: &[u8], bytes: &[u8]) -> Vec<u8> {
        mac(self.hmac(), key, bytes)
    }

    /// HKDF-Extract is HMAC with the salt as its key (RFC 5869 section 2.2).
    pub(super) fn extract(self, salt: &[u8], secret: &[u8]) -> Vec<u8> {
        self.mac(salt, secret)
    }

    pub(super) fn expand_label(
        self,
        secret: &[u8],
        label: &str,
        context: &[u8],
        n: usize,
    ) -> Vec<u8> {
        let mut info = (n as u16).to_be_bytes().to_vec();
        info.push(6 + label.len() as u8);
        info.extend(b"tls13 ");
        info.extend(label.as_bytes());
        info.push(context.len() as u8);
        info.extend(context);
        // HKDF-Expand (RFC 5869 section 2.3).
        let (mut out, mut block, mut counter) = (Vec::new(), Vec::new(), 0u8);
        while out.len() < n {
            counter += 1;
            block = self.mac(secret, &[&block, info.as_slice(), &[counter]].concat());
            out.extend(&block);
        }
        out.truncate(n);
        out
    }

    /// Derive-Secret over a transcript.
    pub(super) fn derive(self, secret: &[u8], label: &str, transcript: &[u8]) -> Vec<u8> {
        self.expand_label(secret, label, &self.digest(transcript), self.len())
    }
}

/// The pseudorandom function of a version up to TLS 1.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prf {
    /// TLS 1.0 and 1.1: two halves of the secret, MD5 with one and SHA-1 with the other.
    Md5Sha1,
    Of(Hash),
}

impl Prf {
    pub(super) fn expand(self, secret: &[u8], label: &str, seed: &[u8], n: usize) -> Vec<u8> {
        let seed = [label.as_bytes(), seed].concat();
        match self {
            Self::Of(hash) => p_hash(|bytes| hash.mac(secret, bytes), &seed, n),
            Self::Md5Sha1 => {
                let half = secret.len().div_ceil(2);
                let (first, second) = (&secret[..half], &secret[secret.len() - half..]);
                let md5 = p_hash(|bytes| mac_md5(first, bytes), &seed, n);
                let sha1 = p_hash(
                    |bytes| mac(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, second, bytes),
                    &seed,
                    n,
                );
                md5.iter().zip(&sha1).map(|(a, b)| a ^ b).collect()
            }
        }
    }

    /// The hash of a transcript, for Finished.
    pub(super) fn digest(self, transcript: &[u8]) -> Vec<u8> {
        match self {
            Self::Of(hash) => hash.digest(transcript),
            Self::Md5Sha1 => {
                use md5::Digest;
                let sha1 = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, transcript);
                [md5::Md5::digest(transcript).as_slice(), sha1.as_ref()].concat()
            }
        }
    }
}

fn p_hash(mac: impl Fn(&[u8]) -> Vec<u8>, seed: &[u8], n: usize) -> Vec<u8> {
    let (mut out, mut a) = (Vec::new(), mac(seed));
    while out.len() < n {
        out.extend(mac(&[&a, seed].concat()));
        a = mac(&a);
    }
    out.truncate(n);
    out
}

fn mac(algorithm: hmac::Algorithm, key: &[u8], bytes: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(algorithm, key), bytes).as_ref().to_vec()
}

fn mac_md5(key: &[u8], bytes: &[u8]) -> Vec<u8> {
    // HMAC takes keys of any length.
    let Ok(mac) = hmac_md5::Hmac::<md5::Md5>::new_from_slice(key) else { return vec![0; 16] };
    mac.chain_update(bytes).finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len() / 2)
            .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn the_key_schedule_is_that_of_rfc_8448() {
        // RFC 8448 section 3: the early secret, and the secrets derived from it.
        let early = Hash::Sha256.extract(&[0; 32], &[0; 32]);
        assert_eq!(early, hex("33ad0a1c607ec03b09e6cd9893680ce210adf300aa1f2660e1b22e10f170f92a"));
        assert_eq!(
            Hash::Sha256.derive(&early, "derived", b""),
            hex("6f2615a108c702c5678f54fc9dbab69716c076189c48250cebeac3576c3611ba")
        );
    }

    #[test]
    fn the_old_prf_halves_the_secret_and_is_as_long_as_asked() {
        let out = Prf::Md5Sha1.expand(&[1, 2, 3], "key expansion", b"seed", 104);
        assert_eq!(out.len(), 104);
        assert_eq!(
            mac_md5(b"Jefe", b"what do ya want for nothing?"),
            hex("750c783e6ab0b503eaa86e310a5db738")
        );
        assert!(Prf::Md5Sha1.expand(b"", "key expansion", b"seed", 20).len() == 20);
    }
}

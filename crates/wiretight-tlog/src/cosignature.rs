//! Cosignatures (C2SP tlog-cosignature). A witness signs a checkpoint and the time, and so states that this is the
//! largest consistent checkpoint of the log that it has seen. Two algorithms: Ed25519 signs the text of the
//! checkpoint under a header; ML-DSA-44 (post-quantum) signs a structure of its size and root.

use std::fmt;

use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use aws_lc_rs::signature::{
    ED25519, Ed25519KeyPair, KeyPair, ML_DSA_44, ML_DSA_44_SIGNING, PqdsaKeyPair, UnparsedPublicKey,
};
use zeroize::Zeroizing;

use crate::checkpoint::{Checkpoint, SignedCheckpoint};
use crate::note::{KeyName, NoteError, Signature};
use crate::note::{key_id, parse_private, parse_vkey, write_private, write_vkey};

const ALG_ED25519: u8 = 0x04;
const ALG_ML_DSA_44: u8 = 0x06;
const ML_DSA_44_PUBLIC: usize = 1312;
/// The latest time that a cosignature may carry.
const MAX_TIME: u64 = i64::MAX as u64;

/// The signature algorithm of a witness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// `cosignature/v1`.
    Ed25519,
    /// `subtree/v1`, FIPS 204.
    MlDsa44,
}

impl Algorithm {
    fn byte(self) -> u8 {
        match self {
            Algorithm::Ed25519 => ALG_ED25519,
            Algorithm::MlDsa44 => ALG_ML_DSA_44,
        }
    }

    fn from_byte(byte: u8) -> Option<Algorithm> {
        match byte {
            ALG_ED25519 => Some(Algorithm::Ed25519),
            ALG_ML_DSA_44 => Some(Algorithm::MlDsa44),
            _ => None,
        }
    }
}

/// The public key of a witness.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WitnessKey {
    name: KeyName,
    algorithm: Algorithm,
    key: Vec<u8>,
}

impl WitnessKey {
    /// Parses a vkey.
    pub fn parse(vkey: &str) -> Result<WitnessKey, NoteError> {
        let what = "witness key";
        let (name, alg, key) = parse_vkey(vkey, what)?;
        let algorithm = Algorithm::from_byte(alg).ok_or(NoteError::Key {
            what,
            detail: match alg {
                0x01 => "it is a log key; a witness key has type 4 (Ed25519) or 6 (ML-DSA-44)",
                _ => "its type is neither 4 (Ed25519) nor 6 (ML-DSA-44)",
            },
        })?;
        let length = match algorithm {
            Algorithm::Ed25519 => 32,
            Algorithm::MlDsa44 => ML_DSA_44_PUBLIC,
        };
        if key.len() != length {
            return Err(NoteError::Key { what, detail: "its length is wrong for its type" });
        }
        Ok(WitnessKey { name, algorithm, key })
    }

    pub fn name(&self) -> &KeyName {
        &self.name
    }

    /// The key ID on its cosignatures.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub fn id(&self) -> [u8; 4] {
        key_id(&self.name, self.algorithm.byte(), &self.key)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.key
    }

    /// The length of a cosignature by this key, without the key ID.
    pub(crate) fn signature_len(&self) -> usize {
        8 + match self.algorithm {
            Algorithm::Ed25519 => 64,
            Algorithm::MlDsa44 => 2420,
        }
    }

    /// The time at which this witness cosigned the checkpoint (seconds since 1970); `None` if it did not.
    pub fn cosigned(&self, signed: &SignedCheckpoint) -> Option<u64> {
        self.newest(signed).map(|(time, _)| time)
    }

    /// Its newest valid cosignature of the checkpoint, with the time in it.
    pub fn newest<'a>(&self, signed: &'a SignedCheckpoint) -> Option<(u64, &'a Signature)> {
        let holds = self.claims(signed).filter(|claim| claim.holds(self, signed));
        holds.max_by_key(|claim| claim.time).map(|claim| (claim.time, claim.signature))
    }

    /// Whether the signature names this key. It may still be invalid.
    pub fn is_named_by(&self, signature: &Signature) -> bool {
        signature.name == self.name && signature.id == self.id()
    }

    /// The signatures that name this key, unverified; a note has a limited number of them. A cosignature with time 0
    /// (ML-DSA-44 allows it) does not state that the tree is the largest seen, so it does not count.
    pub(crate) fn claims<'a>(
        &self,
        signed: &'a SignedCheckpoint,
    ) -> impl Iterator<Item = Claim<'a>> {
        let ours = signed.note().signatures().iter();
        let ours = ours.filter(|signature| self.is_named_by(signature));
        ours.filter_map(|signature| {
            let (time, _) = timestamp(signature)?;
            (time > 0).then_some(Claim { time, signature })
        })
    }

    pub(crate) fn verify(&self, signature: &Signature, checkpoint: &Checkpoint) -> Option<u64> {
        let (time, bytes) = timestamp(signature)?;
        let message = self.algorithm.message(&self.name, time, checkpoint)?;
        let good = match self.algorithm {
            Algorithm::Ed25519 => {
                UnparsedPublicKey::new(&ED25519, &self.key).verify(&message, bytes)
            }
            Algorithm::MlDsa44 => {
                UnparsedPublicKey::new(&ML_DSA_44, &self.key).verify(&message, bytes)
            }
        };
        good.is_ok().then_some(time)
    }
}

/// Splits a cosignature into its time and the signature proper.
fn timestamp(signature: &Signature) -> Option<(u64, &[u8])> {
    let (time, bytes) = signature.bytes.split_first_chunk()?;
    let time = u64::from_be_bytes(*time);
    (time <= MAX_TIME).then_some((time, bytes))
}

/// An unverified cosignature.
#[derive(Clone, Copy)]
pub(crate) struct Claim<'a> {
    pub(crate) time: u64,
    signature: &'a Signature,
}

impl Claim<'_> {
    /// Whether this key made the signature.
    pub(crate) fn holds(&self, key: &WitnessKey, signed: &SignedCheckpoint) -> bool {
        key.verify(self.signature, signed.unverified()).is_some()
    }
}

/// The vkey.
impl fmt::Display for WitnessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_vkey(f, &self.name, self.id(), self.algorithm.byte(), &self.key)
    }
}

impl Algorithm {
    /// The bytes to sign; `None` if the log's origin is too long for the ML-DSA-44 structure.
    fn message(self, cosigner: &KeyName, time: u64, checkpoint: &Checkpoint) -> Option<Vec<u8>> {
        match self {
            Algorithm::Ed25519 => {
                Some(format!("cosignature/v1\ntime {time}\n{checkpoint}").into_bytes())
            }
            Algorithm::MlDsa44 => {
                let mut message = b"subtree/v1\n\0".to_vec();
                message.push(u8::try_from(cosigner.as_str().len()).ok()?);
                message.extend_from_slice(cosigner.as_str().as_bytes());
                message.extend_from_slice(&time.to_be_bytes());
                message.push(u8::try_from(checkpoint.origin.len()).ok()?);
                message.extend_from_slice(checkpoint.origin.as_bytes());
                message.extend_from_slice(&0u64.to_be_bytes());
                message.extend_from_slice(&checkpoint.size.to_be_bytes());
                message.extend_from_slice(checkpoint.root.as_bytes());
                Some(message)
            }
        }
    }
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    MlDsa44(Box<PqdsaKeyPair>, Zeroizing<Vec<u8>>),
}

/// The private key of a witness. No `Debug`, so that it is not logged.
///
/// It signs any checkpoint. The caller must ensure that the checkpoints it signs are consistent with each other.
pub struct Cosigner {
    public: WitnessKey,
    pair: Pair,
}

impl Cosigner {
    /// Derives the key from 32 secret random bytes.
    pub fn from_seed(
        name: KeyName,
        algorithm: Algorithm,
        seed: &[u8; 32],
    ) -> Result<Cosigner, NoteError> {
        let pair = match algorithm {
            Algorithm::Ed25519 => Pair::Ed25519(
                Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| NoteError::Crypto)?,
            ),
            Algorithm::MlDsa44 => {
                let pair = PqdsaKeyPair::from_seed(&ML_DSA_44_SIGNING, seed);
                let pair = Box::new(pair.map_err(|_| NoteError::Crypto)?);
                Pair::MlDsa44(pair, Zeroizing::new(seed.to_vec()))
            }
        };
        let key = match &pair {
            Pair::Ed25519(pair) => pair.public_key().as_ref().to_vec(),
            Pair::MlDsa44(pair, _) => pair.public_key().as_ref().to_vec(),
        };
        Ok(Cosigner { public: WitnessKey { name, algorithm, key }, pair })
    }

    /// Parses the output of [`Cosigner::to_private`].
    pub fn parse(private: &str) -> Result<Cosigner, NoteError> {
        let what = "witness private key";
        let (name, alg, seed) = parse_private(private, what)?;
        let algorithm = Algorithm::from_byte(alg);
        let algorithm = algorithm.ok_or(NoteError::Key { what, detail: "its type is unknown" })?;
        let seed = seed.first_chunk().filter(|_| seed.len() == 32);
        let seed = seed.ok_or(NoteError::Key { what, detail: "its seed is not 32 bytes long" })?;
        Cosigner::from_seed(name, algorithm, seed)
    }

    pub fn public(&self) -> &WitnessKey {
        &self.public
    }

    /// The private key as text: `PRIVATE+KEY+NAME+ID+…`, without a newline.
    pub fn to_private(&self) -> Result<Zeroizing<String>, NoteError> {
        let seed = match &self.pair {
            Pair::Ed25519(pair) => {
                let seed = pair.seed().map_err(|_| NoteError::Crypto)?;
                let seed: Curve25519SeedBin<'_> =
                    seed.as_be_bytes().map_err(|_| NoteError::Crypto)?;
                Zeroizing::new(seed.as_ref().to_vec())
            }
            Pair::MlDsa44(_, seed) => seed.clone(),
        };
        let WitnessKey { name, algorithm, .. } = &self.public;
        Ok(write_private(name, self.public.id(), algorithm.byte(), seed))
    }

    /// Cosigns the checkpoint at `time` (seconds since 1970).
    pub fn cosign(&self, checkpoint: &Checkpoint, time: u64) -> Result<Signature, NoteError> {
        let WitnessKey { name, algorithm, .. } = &self.public;
        if time > MAX_TIME {
            return Err(NoteError::Malformed("a cosignature's time is at most 2^63 - 1"));
        }
        let message = algorithm.message(name, time, checkpoint);
        let message =
            message.ok_or(NoteError::Malformed("the log's origin is longer than 255 bytes"))?;
        let mut bytes = time.to_be_bytes().to_vec();
        match &self.pair {
            Pair::Ed25519(pair) => bytes.extend_from_slice(pair.sign(&message).as_ref()),
            Pair::MlDsa44(pair, _) => {
                let mut signature = vec![0; pair.algorithm().signature_len()];
                let made = pair.sign(&message, &mut signature).map_err(|_| NoteError::Crypto)?;
                bytes.extend_from_slice(&signature[..made]);
            }
        }
        Ok(Signature { name: name.clone(), id: self.public.id(), bytes })
    }
}

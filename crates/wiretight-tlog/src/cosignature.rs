//! Cosignatures (C2SP tlog-cosignature): a witness states, with the time, that a checkpoint is the largest consistent
//! one of its log that it has seen. By Ed25519 (the text of the checkpoint under a header), or by ML-DSA-44 (a
//! structure of its size and root), which a quantum computer does not forge.

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
/// The latest time that a cosignature may state.
const MAX_TIME: u64 = i64::MAX as u64;

/// How a witness signs.
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

/// A witness' public key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WitnessKey {
    name: KeyName,
    algorithm: Algorithm,
    key: Vec<u8>,
}

impl WitnessKey {
    /// From a vkey.
    pub fn parse(vkey: &str) -> Result<WitnessKey, NoteError> {
        let what = "witness' key";
        let (name, alg, key) = parse_vkey(vkey, what)?;
        let algorithm = Algorithm::from_byte(alg).ok_or(NoteError::Key {
            what,
            detail: match alg {
                0x01 => "it is a log's key: a witness' has the type 4 (Ed25519) or 6 (ML-DSA-44)",
                _ => "its type is neither 4 (Ed25519) nor 6 (ML-DSA-44)",
            },
        })?;
        let length = match algorithm {
            Algorithm::Ed25519 => 32,
            Algorithm::MlDsa44 => ML_DSA_44_PUBLIC,
        };
        if key.len() != length {
            return Err(NoteError::Key { what, detail: "it has not the length of its type" });
        }
        Ok(WitnessKey { name, algorithm, key })
    }

    /// Its name.
    pub fn name(&self) -> &KeyName {
        &self.name
    }

    /// The key ID on its cosignatures.
    pub fn id(&self) -> [u8; 4] {
        key_id(&self.name, self.algorithm.byte(), &self.key)
    }

    /// The public key itself.
    pub fn as_bytes(&self) -> &[u8] {
        &self.key
    }

    /// The length of one of its cosignatures, without the key ID.
    pub(crate) fn signature_len(&self) -> usize {
        8 + match self.algorithm {
            Algorithm::Ed25519 => 64,
            Algorithm::MlDsa44 => 2420,
        }
    }

    /// When this witness cosigned the checkpoint (seconds since 1970); `None` if it did not.
    pub fn cosigned(&self, signed: &SignedCheckpoint) -> Option<u64> {
        self.newest(signed).map(|(time, _)| time)
    }

    /// Its newest cosignature of the checkpoint, and the time that this states.
    pub fn newest<'a>(&self, signed: &'a SignedCheckpoint) -> Option<(u64, &'a Signature)> {
        let holds = self.claims(signed).filter(|claim| claim.holds(self, signed));
        holds.max_by_key(|claim| claim.time).map(|claim| (claim.time, claim.signature))
    }

    /// Whether a signature names this key. What it is worth is not known yet.
    pub fn is_named_by(&self, signature: &Signature) -> bool {
        signature.name == self.name && signature.id == self.id()
    }

    /// The signatures that name this key, unverified; a note has a bounded number. A witness that does not state a
    /// time (ML-DSA-44 allows 0) does not say that the tree is the largest that it has seen, so it is no witness of it.
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

/// The time that a cosignature states, and the signature of it.
fn timestamp(signature: &Signature) -> Option<(u64, &[u8])> {
    let (time, bytes) = signature.bytes.split_first_chunk()?;
    let time = u64::from_be_bytes(*time);
    (time <= MAX_TIME).then_some((time, bytes))
}

/// What a signature says of itself.
#[derive(Clone, Copy)]
pub(crate) struct Claim<'a> {
    pub(crate) time: u64,
    signature: &'a Signature,
}

impl Claim<'_> {
    /// Whether this key made it.
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
    /// What is signed; `None` if the log's origin is too long for the structure.
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

/// A witness' private key. Has no `Debug`.
///
/// It signs whatever checkpoint it is given: that none of them forks is for its caller to see to.
pub struct Cosigner {
    public: WitnessKey,
    pair: Pair,
}

impl Cosigner {
    /// A key from 32 secret random bytes.
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

    /// From the text that [`Cosigner::to_private`] made.
    pub fn parse(private: &str) -> Result<Cosigner, NoteError> {
        let what = "witness' private key";
        let (name, alg, seed) = parse_private(private, what)?;
        let algorithm = Algorithm::from_byte(alg);
        let algorithm = algorithm.ok_or(NoteError::Key { what, detail: "its type is unknown" })?;
        let seed = seed.first_chunk().filter(|_| seed.len() == 32);
        let seed = seed.ok_or(NoteError::Key { what, detail: "no seed of 32 bytes" })?;
        Cosigner::from_seed(name, algorithm, seed)
    }

    /// The public key.
    pub fn public(&self) -> &WitnessKey {
        &self.public
    }

    /// The private key as a text: `PRIVATE+KEY+NAME+ID+…`, without a newline.
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

    /// Cosigns, at `time` (seconds since 1970).
    pub fn cosign(&self, checkpoint: &Checkpoint, time: u64) -> Result<Signature, NoteError> {
        let WitnessKey { name, algorithm, .. } = &self.public;
        if time > MAX_TIME {
            return Err(NoteError::Malformed("a cosignature's time is at most 2^63 - 1"));
        }
        let message = algorithm.message(name, time, checkpoint);
        let message =
            message.ok_or(NoteError::Malformed("a log's origin of more than 255 bytes"))?;
        let mut bytes = time.to_be_bytes().to_vec();
        match &self.pair {
            Pair::Ed25519(pair) => bytes.extend_from_slice(pair.sign(&message).as_ref()),
            Pair::MlDsa44(pair, _) => {
                let start = bytes.len();
                bytes.resize(start + pair.algorithm().signature_len(), 0);
                let made = pair.sign(&message, &mut bytes[start..]);
                let made = made.map_err(|_| NoteError::Crypto)?;
                bytes.truncate(start + made);
            }
        }
        Ok(Signature { name: name.clone(), id: self.public.id(), bytes })
    }
}

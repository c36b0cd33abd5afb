//! Signed notes (C2SP signed-note): a text followed by signature lines.
//!
//! Parsing a [`Note`] verifies nothing: a signature is opaque until it is checked with a configured key. Public keys
//! are written as *vkeys*, `name+hash+base64`, and a log's private key as `PRIVATE+KEY+…`, as in Go's `note` package.

use std::fmt;

use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use zeroize::Zeroizing;

use crate::checkpoint::Checkpoint;
use crate::cosignature::WitnessKey;
use crate::hash::sha256;
use crate::text::{base64, to_base64};

/// The largest note accepted, in bytes. Most of it is for post-quantum signatures.
pub const MAX_NOTE: usize = 256 * 1024;
/// The most signatures accepted on a note (the specification requires at least 16).
pub const MAX_SIGNATURES: usize = 64;

const ALG_ED25519: u8 = 0x01;
const ALG_ML_DSA_44: u8 = 0x06;

/// Why a note or a key is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// More than [`MAX_NOTE`] bytes or [`MAX_SIGNATURES`] signatures.
    #[error("the note is too large")]
    TooLarge,
    /// Not a note, and why.
    #[error("not a signed note: {0}")]
    Malformed(&'static str),
    /// Not a key.
    #[error("not a {what}: {detail}")]
    Key {
        /// What was expected, such as "log key".
        what: &'static str,
        detail: &'static str,
    },
    /// The crypto library failed to make a key or a signature.
    #[error("the crypto library failed to make a key or a signature")]
    Crypto,
}

/// The name of a signer. Together with [`Signature::id`] it identifies a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyName(Box<str>);

impl KeyName {
    /// Not empty, no spaces, no plus, no control characters, at most 255 bytes.
    pub fn new(name: &str) -> Option<KeyName> {
        let good = |c: char| !c.is_whitespace() && !c.is_control() && c != '+';
        let fits = !name.is_empty() && name.len() <= 255;
        (fits && name.chars().all(good)).then(|| KeyName(name.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A signature line of a note, unverified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The name of the signer, as claimed.
    pub name: KeyName,
    /// Selects one of the keys with that name: the first bytes of a hash of the key.
    pub id: [u8; 4],
    /// The signature proper.
    pub bytes: Vec<u8>,
}

impl Signature {
    /// Parses a line without its newline.
    pub fn parse(line: &str) -> Result<Signature, NoteError> {
        let bad = NoteError::Malformed;
        let line = line.strip_prefix("— ").ok_or(bad("a signature line does not start with —"))?;
        let (name, data) = line.split_once(' ').ok_or(bad("a signature line has no signature"))?;
        let name = KeyName::new(name).ok_or(bad("a signature line has an invalid key name"))?;
        let data = base64(data).ok_or(bad("a signature is not base64"))?;
        let (id, bytes) =
            data.split_first_chunk().ok_or(bad("a signature is shorter than a key ID"))?;
        Ok(Signature { name, id: *id, bytes: bytes.to_vec() })
    }
}

/// The length of a signature line, newline included, for a key of this name and a signature of `bytes` bytes.
pub(crate) fn line_len(name: &KeyName, bytes: usize) -> usize {
    "— ".len() + name.as_str().len() + " ".len() + (4 + bytes).div_ceil(3) * 4 + "\n".len()
}

/// The line, without a newline.
impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "— {} {}", self.name, to_base64(&[&self.id[..], &self.bytes].concat()))
    }
}

/// A text and its signatures, unverified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<Signature>,
}

impl Note {
    /// A note without signatures. The text must end with a newline and contain no other control characters.
    pub fn new(text: String) -> Result<Note, NoteError> {
        let bad = NoteError::Malformed;
        if text.len() > MAX_NOTE {
            return Err(NoteError::TooLarge);
        }
        if !text.ends_with('\n') {
            return Err(bad("its text does not end with a newline"));
        }
        if text.chars().any(|c| c < ' ' && c != '\n') {
            return Err(bad("it contains control characters"));
        }
        Ok(Note { text, signatures: Vec::new() })
    }

    /// Parses a note with at least one signature.
    pub fn parse(note: &str) -> Result<Note, NoteError> {
        let bad = NoteError::Malformed;
        if note.len() > MAX_NOTE {
            return Err(NoteError::TooLarge);
        }
        let (body, lines) = note.rsplit_once("\n\n").ok_or(bad("it has no blank line"))?;
        let lines = lines.strip_suffix('\n').ok_or(bad("it does not end with a newline"))?;
        if lines.bytes().filter(|b| *b == b'\n').count() >= MAX_SIGNATURES {
            return Err(NoteError::TooLarge);
        }
        let mut note = Note::new(format!("{body}\n"))?;
        note.signatures = lines.split('\n').map(Signature::parse).collect::<Result<_, _>>()?;
        Ok(note)
    }

    /// The signed text, with its last newline.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// Adds a signature, unless the note already contains it or has [`MAX_SIGNATURES`].
    pub fn add(&mut self, signature: Signature) {
        if self.signatures.len() < MAX_SIGNATURES && !self.signatures.contains(&signature) {
            self.signatures.push(signature);
        }
    }
}

/// The whole note, with signatures.
impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.signatures.iter().try_for_each(|s| writeln!(f, "{s}"))
    }
}

/// A log's public key. It signs checkpoints as plain Ed25519 notes or as ML-DSA-44 cosignatures.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LogKey(Public);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Public {
    Ed25519 { name: KeyName, key: [u8; 32] },
    MlDsa44(WitnessKey),
}

impl LogKey {
    /// Parses a vkey.
    pub fn parse(vkey: &str) -> Result<LogKey, NoteError> {
        let what = "log key";
        let (name, alg, key) = parse_vkey(vkey, what)?;
        match (alg, <[u8; 32]>::try_from(key)) {
            (ALG_ED25519, Ok(key)) => Ok(LogKey(Public::Ed25519 { name, key })),
            (ALG_ML_DSA_44, _) => WitnessKey::parse(vkey).map(|key| LogKey(Public::MlDsa44(key))),
            (0x04, _) => Err(NoteError::Key { what, detail: "it is a witness key" }),
            _ => Err(NoteError::Key { what, detail: "its type is neither Ed25519 nor ML-DSA-44" }),
        }
    }

    /// Also the origin of the log's checkpoints.
    pub fn name(&self) -> &KeyName {
        match &self.0 {
            Public::Ed25519 { name, .. } => name,
            Public::MlDsa44(key) => key.name(),
        }
    }

    /// The key ID on its signatures.
    pub fn id(&self) -> [u8; 4] {
        match &self.0 {
            Public::Ed25519 { name, key } => key_id(name, ALG_ED25519, key),
            Public::MlDsa44(key) => key.id(),
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Public::Ed25519 { key, .. } => key,
            Public::MlDsa44(key) => key.as_bytes(),
        }
    }

    /// The length of a signature by this key, without the key ID.
    pub(crate) fn signature_len(&self) -> usize {
        match &self.0 {
            Public::Ed25519 { .. } => 64,
            Public::MlDsa44(key) => key.signature_len(),
        }
    }

    /// The lines of a note that name this key.
    pub(crate) fn lines<'a>(&'a self, note: &'a Note) -> impl Iterator<Item = &'a Signature> {
        let id = self.id();
        note.signatures.iter().filter(move |s| s.name == *self.name() && s.id == id)
    }

    /// Whether this key signed the note. A single invalid signature under this key's name and ID makes the result
    /// false (C2SP signed-note). An ML-DSA-44 key signs only checkpoints without extension lines, because its
    /// signature would not cover those lines.
    pub fn signed(&self, note: &Note) -> bool {
        let mut lines = self.lines(note).peekable();
        if lines.peek().is_none() {
            return false;
        }
        match &self.0 {
            Public::Ed25519 { key, .. } => {
                let key = UnparsedPublicKey::new(&ED25519, key);
                lines.all(|s| key.verify(note.text().as_bytes(), &s.bytes).is_ok())
            }
            Public::MlDsa44(key) => Checkpoint::parse(note.text()).is_ok_and(|checkpoint| {
                checkpoint.extensions.is_empty()
                    && lines.all(|s| key.verify(s, &checkpoint).is_some())
            }),
        }
    }
}

/// The vkey.
impl fmt::Display for LogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Public::Ed25519 { name, key } => write_vkey(f, name, self.id(), ALG_ED25519, key),
            Public::MlDsa44(key) => key.fmt(f),
        }
    }
}

/// A log's private key. No `Debug`, so that it is not logged.
pub struct LogSigner {
    public: LogKey,
    pair: Ed25519KeyPair,
}

impl LogSigner {
    pub fn generate(name: KeyName) -> Result<LogSigner, NoteError> {
        LogSigner::new(name, Ed25519KeyPair::generate().map_err(|_| NoteError::Crypto)?)
    }

    /// Parses the output of [`LogSigner::to_private`].
    pub fn parse(private: &str) -> Result<LogSigner, NoteError> {
        let what = "log private key";
        let (name, alg, seed) = parse_private(private, what)?;
        if alg != ALG_ED25519 {
            return Err(NoteError::Key { what, detail: "it is not an Ed25519 key" });
        }
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed);
        LogSigner::new(
            name,
            pair.map_err(|_| NoteError::Key { what, detail: "its seed is not 32 bytes long" })?,
        )
    }

    fn new(name: KeyName, pair: Ed25519KeyPair) -> Result<LogSigner, NoteError> {
        let key = pair.public_key().as_ref().try_into().map_err(|_| NoteError::Crypto)?;
        Ok(LogSigner { public: LogKey(Public::Ed25519 { name, key }), pair })
    }

    pub fn public(&self) -> &LogKey {
        &self.public
    }

    /// The private key as text: `PRIVATE+KEY+NAME+ID+…`, without a newline.
    pub fn to_private(&self) -> Result<Zeroizing<String>, NoteError> {
        let seed = self.pair.seed().map_err(|_| NoteError::Crypto)?;
        let seed: Curve25519SeedBin<'_> = seed.as_be_bytes().map_err(|_| NoteError::Crypto)?;
        let seed = Zeroizing::new(seed.as_ref().to_vec());
        Ok(write_private(self.public.name(), self.public.id(), ALG_ED25519, seed))
    }

    pub fn sign(&self, note: &mut Note) {
        let bytes = self.pair.sign(note.text().as_bytes()).as_ref().to_vec();
        note.add(Signature { name: self.public.name().clone(), id: self.public.id(), bytes });
    }
}

/// The first bytes of SHA-256(name || 0x0A || alg || key).
pub(crate) fn key_id(name: &KeyName, alg: u8, key: &[u8]) -> [u8; 4] {
    let hash = sha256(&[name.as_str().as_bytes(), b"\n", &[alg], key]);
    *hash.as_bytes().first_chunk().expect("4 of 32 bytes")
}

/// The name, algorithm and public key of a vkey, after checking its hash.
pub(crate) fn parse_vkey(
    vkey: &str,
    what: &'static str,
) -> Result<(KeyName, u8, Vec<u8>), NoteError> {
    let bad = |detail| NoteError::Key { what, detail };
    // A name contains no plus; base64 may.
    let mut parts = vkey.splitn(3, '+');
    let (Some(name), Some(id), Some(data)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(bad("it must be NAME+HASH+BASE64"));
    };
    let name = KeyName::new(name).ok_or(bad("its name is empty or has spaces"))?;
    let data = base64(data).ok_or(bad("its third part is not base64"))?;
    let (alg, key) = data.split_first().ok_or(bad("its third part is empty"))?;
    if hex(key_id(&name, *alg, key)) != id {
        return Err(bad(
            "its hash does not match its name and key; it was probably altered or truncated",
        ));
    }
    Ok((name, *alg, key.to_vec()))
}

pub(crate) fn write_vkey(
    f: &mut fmt::Formatter<'_>,
    name: &KeyName,
    id: [u8; 4],
    alg: u8,
    key: &[u8],
) -> fmt::Result {
    write!(f, "{name}+{}+{}", hex(id), to_base64(&[&[alg], key].concat()))
}

/// The name, algorithm and seed of a private key.
pub(crate) fn parse_private(
    private: &str,
    what: &'static str,
) -> Result<(KeyName, u8, Zeroizing<Vec<u8>>), NoteError> {
    let bad = |detail| NoteError::Key { what, detail };
    let rest = private.trim_end().strip_prefix("PRIVATE+KEY+");
    let mut parts = rest.ok_or(bad("it does not start with PRIVATE+KEY+"))?.splitn(3, '+');
    let (Some(name), Some(_), Some(data)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(bad("it must be PRIVATE+KEY+NAME+HASH+BASE64"));
    };
    let name = KeyName::new(name).ok_or(bad("its name is empty or has spaces"))?;
    let data = Zeroizing::new(base64(data).ok_or(bad("its last part is not base64"))?);
    let (alg, seed) = data.split_first().ok_or(bad("its last part is empty"))?;
    Ok((name, *alg, Zeroizing::new(seed.to_vec())))
}

pub(crate) fn write_private(
    name: &KeyName,
    id: [u8; 4],
    alg: u8,
    seed: Zeroizing<Vec<u8>>,
) -> Zeroizing<String> {
    let data = Zeroizing::new([&[alg], &seed[..]].concat());
    let data = Zeroizing::new(to_base64(&data));
    Zeroizing::new(format!("PRIVATE+KEY+{name}+{}+{}", hex(id), *data))
}

fn hex(id: [u8; 4]) -> String {
    format!("{:08x}", u32::from_be_bytes(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_covers_the_text_and_names_its_key() {
        let signer = LogSigner::generate(KeyName::new("log.example/a").unwrap()).unwrap();
        let mut note = Note::new("first\n\nlast\n".into()).unwrap();
        signer.sign(&mut note);
        let text = note.to_string();
        let read = Note::parse(&text).unwrap();
        assert_eq!((read.text(), read.to_string()), ("first\n\nlast\n", text.clone()));
        assert!(signer.public().signed(&read));
        let altered = Note::parse(&text.replace("first", "First")).unwrap();
        assert!(!signer.public().signed(&altered));
        let other = LogSigner::generate(KeyName::new("log.example/a").unwrap()).unwrap();
        assert!(!other.public().signed(&read));
    }

    #[test]
    fn a_note_may_have_its_largest_size_and_no_byte_more() {
        let lines = "\n— k AAAAAAA=\n";
        let of = |len: usize| format!("{}\n{lines}", "a".repeat(len - 1 - lines.len()));
        assert_eq!(Note::parse(&of(MAX_NOTE)).unwrap().to_string(), of(MAX_NOTE));
        assert_eq!(Note::parse(&of(MAX_NOTE + 1)), Err(NoteError::TooLarge));
        let text = |len: usize| format!("{}\n", "a".repeat(len - 1));
        assert_eq!(Note::new(text(MAX_NOTE)).unwrap().text(), text(MAX_NOTE));
        assert_eq!(Note::new(text(MAX_NOTE + 1)), Err(NoteError::TooLarge));
        assert!(
            KeyName::new(&"k".repeat(255)).is_some() && KeyName::new(&"k".repeat(256)).is_none()
        );
    }

    #[test]
    fn added_signatures_are_unique_and_limited() {
        let mut note = Note::new("a\n".into()).unwrap();
        let signature = |n: usize| {
            let bytes = (n as u64).to_be_bytes().to_vec();
            Signature { name: KeyName::new("k").unwrap(), id: [0; 4], bytes }
        };
        for n in [0, 1, 0].into_iter().chain(1..MAX_SIGNATURES + 9) {
            note.add(signature(n));
        }
        let expected: Vec<_> = (0..MAX_SIGNATURES).map(signature).collect();
        assert_eq!(note.signatures(), expected);
        assert_eq!(Note::parse(&note.to_string()), Ok(note), "what was made can be parsed");
    }

    #[test]
    fn written_keys_parse_to_the_same_key() {
        let signer = LogSigner::generate(KeyName::new("log.example/a").unwrap()).unwrap();
        let again = LogSigner::parse(&signer.to_private().unwrap()).unwrap();
        assert_eq!(again.public(), signer.public());
        let vkey = signer.public().to_string();
        assert_eq!(&LogKey::parse(&vkey).unwrap(), signer.public());
        assert!(LogKey::parse(&vkey.replace("log.example/a", "log.example/b")).is_err());
        assert!(LogKey::parse(&vkey[..vkey.len() - 4]).is_err());
    }
}

//! Signed notes (C2SP signed-note): a text, and lines under it that sign it.
//!
//! A [`Note`] is parsed, not believed: signatures stay opaque until a key that was configured is found to have made
//! them. Keys are written as *vkeys*, `name+hash+base64`, and a log's private key as `PRIVATE+KEY+…`, as Go's
//! `note` package does.

use std::fmt;

use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use zeroize::Zeroizing;

use crate::checkpoint::Checkpoint;
use crate::cosignature::WitnessKey;
use crate::hash::sha256;
use crate::text::{base64, to_base64};

/// The longest note that is read, in bytes. Post-quantum signatures need more than the text.
pub const MAX_NOTE: usize = 256 * 1024;
/// The most signatures on a note (the specification demands 16).
pub const MAX_SIGNATURES: usize = 64;

const ALG_ED25519: u8 = 0x01;
const ALG_ML_DSA_44: u8 = 0x06;

/// Why a note or a key cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// More than [`MAX_NOTE`] bytes or [`MAX_SIGNATURES`] signatures.
    #[error("the note is too large")]
    TooLarge,
    /// Not a note: it is said what is wrong.
    #[error("not a signed note: {0}")]
    Malformed(&'static str),
    /// Not a key.
    #[error("not a {what}: {detail}")]
    Key {
        /// What was expected.
        what: &'static str,
        /// What is wrong.
        detail: &'static str,
    },
    /// The crypto library refused to make a key or a signature.
    #[error("the crypto library made no key or signature")]
    Crypto,
}

/// Who is said to have signed: with [`Signature::id`] it names a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyName(Box<str>);

impl KeyName {
    /// A name: not empty, no spaces, no plus, no control characters, at most 255 bytes.
    pub fn new(name: &str) -> Option<KeyName> {
        let good = |c: char| !c.is_whitespace() && !c.is_control() && c != '+';
        let fits = !name.is_empty() && name.len() <= 255;
        (fits && name.chars().all(good)).then(|| KeyName(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A line that signs a note, unverified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// Who is said to have made it.
    pub name: KeyName,
    /// Which of the keys of that name: the first bytes of a hash of it.
    pub id: [u8; 4],
    /// What the key made.
    pub bytes: Vec<u8>,
}

impl Signature {
    /// Parses a line, without its newline.
    pub fn parse(line: &str) -> Result<Signature, NoteError> {
        let bad = NoteError::Malformed;
        let line = line.strip_prefix("— ").ok_or(bad("a signature line does not begin with —"))?;
        let (name, data) = line.split_once(' ').ok_or(bad("a signature line has no signature"))?;
        let name = KeyName::new(name).ok_or(bad("a signature line has no proper key name"))?;
        let data = base64(data).ok_or(bad("a signature is not base64"))?;
        let (id, bytes) =
            data.split_first_chunk().ok_or(bad("a signature is shorter than a key ID"))?;
        Ok(Signature { name, id: *id, bytes: bytes.to_vec() })
    }
}

/// The length of a signature's line, with its newline, for a key of this name whose signatures have `bytes` bytes.
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
    /// A note that is to be signed. The text must end with a newline and hold no other control characters.
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

    /// What is signed, with its last newline.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The signatures, in their order.
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// Adds a signature, unless it is there or the note has [`MAX_SIGNATURES`].
    pub fn add(&mut self, signature: Signature) {
        if self.signatures.len() < MAX_SIGNATURES && !self.signatures.contains(&signature) {
            self.signatures.push(signature);
        }
    }
}

/// The whole note.
impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.signatures.iter().try_for_each(|s| writeln!(f, "{s}"))
    }
}

/// A log's public key: it signs checkpoints as plain Ed25519 notes, or as ML-DSA-44 cosignatures of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LogKey(Public);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Public {
    Ed25519 { name: KeyName, key: [u8; 32] },
    MlDsa44(WitnessKey),
}

impl LogKey {
    /// From a vkey.
    pub fn parse(vkey: &str) -> Result<LogKey, NoteError> {
        let what = "log's key";
        let (name, alg, key) = parse_vkey(vkey, what)?;
        match (alg, <[u8; 32]>::try_from(key)) {
            (ALG_ED25519, Ok(key)) => Ok(LogKey(Public::Ed25519 { name, key })),
            (ALG_ML_DSA_44, _) => WitnessKey::parse(vkey).map(|key| LogKey(Public::MlDsa44(key))),
            (0x04, _) => Err(NoteError::Key { what, detail: "it is a witness' key" }),
            _ => Err(NoteError::Key { what, detail: "its type is neither Ed25519 nor ML-DSA-44" }),
        }
    }

    /// Its name, which is the origin of the log's checkpoints.
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

    /// The public key itself.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Public::Ed25519 { key, .. } => key,
            Public::MlDsa44(key) => key.as_bytes(),
        }
    }

    /// The length of one of its signatures, without the key ID.
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

    /// Whether this key has signed the note. One line of it that does not verify spoils the note (C2SP signed-note),
    /// whatever others say. An ML-DSA-44 key signs checkpoints only, and none with extension lines: it would not have
    /// signed those.
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

/// A log's private key. Has no `Debug`.
pub struct LogSigner {
    public: LogKey,
    pair: Ed25519KeyPair,
}

impl LogSigner {
    /// A new key.
    pub fn generate(name: KeyName) -> Result<LogSigner, NoteError> {
        LogSigner::new(name, Ed25519KeyPair::generate().map_err(|_| NoteError::Crypto)?)
    }

    /// From the text that [`LogSigner::to_private`] made.
    pub fn parse(private: &str) -> Result<LogSigner, NoteError> {
        let what = "log's private key";
        let (name, alg, seed) = parse_private(private, what)?;
        if alg != ALG_ED25519 {
            return Err(NoteError::Key { what, detail: "it is not an Ed25519 key" });
        }
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed);
        LogSigner::new(
            name,
            pair.map_err(|_| NoteError::Key { what, detail: "no seed of 32 bytes" })?,
        )
    }

    fn new(name: KeyName, pair: Ed25519KeyPair) -> Result<LogSigner, NoteError> {
        let key = pair.public_key().as_ref().try_into().map_err(|_| NoteError::Crypto)?;
        Ok(LogSigner { public: LogKey(Public::Ed25519 { name, key }), pair })
    }

    /// The public key.
    pub fn public(&self) -> &LogKey {
        &self.public
    }

    /// The private key as a text: `PRIVATE+KEY+NAME+ID+…`, without a newline.
    pub fn to_private(&self) -> Result<Zeroizing<String>, NoteError> {
        let seed = self.pair.seed().map_err(|_| NoteError::Crypto)?;
        let seed: Curve25519SeedBin<'_> = seed.as_be_bytes().map_err(|_| NoteError::Crypto)?;
        let seed = Zeroizing::new(seed.as_ref().to_vec());
        Ok(write_private(self.public.name(), self.public.id(), ALG_ED25519, seed))
    }

    /// Signs the note.
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

/// Name, algorithm and public key of a vkey whose hash is right.
pub(crate) fn parse_vkey(
    vkey: &str,
    what: &'static str,
) -> Result<(KeyName, u8, Vec<u8>), NoteError> {
    let bad = |detail| NoteError::Key { what, detail };
    // The name has no plus, base64 may have some.
    let mut parts = vkey.splitn(3, '+');
    let (Some(name), Some(id), Some(data)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(bad("it must be NAME+HASH+BASE64"));
    };
    let name = KeyName::new(name).ok_or(bad("its name is empty or has spaces"))?;
    let data = base64(data).ok_or(bad("its third part is not base64"))?;
    let (alg, key) = data.split_first().ok_or(bad("its third part is empty"))?;
    if hex(key_id(&name, *alg, key)) != id {
        return Err(bad("its hash does not fit its name and key: was it altered or cut?"));
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

/// Name, algorithm and seed of a private key.
pub(crate) fn parse_private(
    private: &str,
    what: &'static str,
) -> Result<(KeyName, u8, Zeroizing<Vec<u8>>), NoteError> {
    let bad = |detail| NoteError::Key { what, detail };
    let rest = private.trim_end().strip_prefix("PRIVATE+KEY+");
    let mut parts = rest.ok_or(bad("it does not begin with PRIVATE+KEY+"))?.splitn(3, '+');
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
    fn a_note_is_what_was_signed_and_nothing_else() {
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
    fn texts_that_are_no_notes_are_refused() {
        let good = "a\n\n— k AAAAAAA=\n";
        assert!(Note::parse(good).is_ok());
        for bad in [
            "",
            "a",
            "a\n",
            "a\n\n",
            "\n\n",
            "a\n\n— k AAAAAAA=",
            "a\n\n- k AAAAAAA=\n",
            "a\n\n— k AAAA\n",
            "a\n\n— k AAAAAAB=\n",
            "a\n\n—  AAAAAAA=\n",
            "a\tb\n\n— k AAAAAAA=\n",
            "a\n\n— k AAAAAAA=\n\n",
            "a\n\n— k+ AAAAAAA=\n",
        ] {
            assert!(Note::parse(bad).is_err(), "{bad:?}");
        }
        let many = |n| format!("a\n\n{}", "— k AAAAAAA=\n".repeat(n));
        assert!(Note::parse(&many(MAX_SIGNATURES)).is_ok());
        assert_eq!(Note::parse(&many(MAX_SIGNATURES + 1)), Err(NoteError::TooLarge));
    }

    #[test]
    fn keys_survive_being_written() {
        let signer = LogSigner::generate(KeyName::new("log.example/a").unwrap()).unwrap();
        let again = LogSigner::parse(&signer.to_private().unwrap()).unwrap();
        assert_eq!(again.public(), signer.public());
        let vkey = signer.public().to_string();
        assert_eq!(&LogKey::parse(&vkey).unwrap(), signer.public());
        assert!(LogKey::parse(&vkey.replace("log.example/a", "log.example/b")).is_err());
        assert!(LogKey::parse(&vkey[..vkey.len() - 4]).is_err());
    }
}

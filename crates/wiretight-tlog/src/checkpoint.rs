//! Checkpoints (C2SP tlog-checkpoint): a log's size and root, as a signed note.

use std::fmt;

use crate::hash::Hash;
use crate::note::{LogKey, LogSigner, Note, NoteError, Signature};
use crate::text::{decimal, line};
use crate::tree::MAX_SIZE;

/// The state of a log at one time: what the log signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Identifies the log: one line, not empty.
    pub origin: String,
    /// The number of entries.
    pub size: u64,
    /// The Merkle tree hash over all entries.
    pub root: Hash,
    /// Lines with a meaning private to the log. Witnesses do not check them.
    pub extensions: Vec<String>,
}

impl Checkpoint {
    /// Parses the text of a note.
    pub fn parse(text: &str) -> Result<Checkpoint, NoteError> {
        let bad = NoteError::Malformed;
        let short = bad("a checkpoint has at least three lines");
        let (origin, rest) = line(text).ok_or(short.clone())?;
        let (size, rest) = line(rest).ok_or(short.clone())?;
        let (root, rest) = line(rest).ok_or(short)?;
        if origin.is_empty() {
            return Err(bad("a checkpoint's origin is empty"));
        }
        let size = decimal(size).filter(|size| *size <= MAX_SIZE);
        let size = size.ok_or(bad("a checkpoint's second line is not a tree's size"))?;
        let root = Hash::from_base64(root);
        let root = root.ok_or(bad("a checkpoint's third line is not a root hash"))?;
        if size == 0 && root != Hash::empty() {
            return Err(bad("a checkpoint of size 0 does not have the root of the empty tree"));
        }
        let extensions: Vec<String> = rest.split_terminator('\n').map(str::to_owned).collect();
        if extensions.iter().any(String::is_empty) {
            return Err(bad("a checkpoint's extension line is empty"));
        }
        Ok(Checkpoint { origin: origin.to_owned(), size, root, extensions })
    }

    /// Signs the checkpoint with the log's key.
    pub fn sign(&self, signer: &LogSigner) -> Result<SignedCheckpoint, NoteError> {
        let mut note = Note::new(self.to_string())?;
        signer.sign(&mut note);
        SignedCheckpoint::new(note)
    }
}

/// The text to be signed.
impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}\n{}\n", self.origin, self.size, self.root)?;
        self.extensions.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// A checkpoint and the signatures on it, none of them verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCheckpoint {
    checkpoint: Checkpoint,
    note: Note,
}

impl SignedCheckpoint {
    /// Parses the note's text as a checkpoint. Verifies no signature.
    pub fn new(note: Note) -> Result<SignedCheckpoint, NoteError> {
        Ok(SignedCheckpoint { checkpoint: Checkpoint::parse(note.text())?, note })
    }

    /// Parses a signed note.
    pub fn parse(note: &str) -> Result<SignedCheckpoint, NoteError> {
        SignedCheckpoint::new(Note::parse(note)?)
    }

    /// The checkpoint, without any verification.
    pub fn unverified(&self) -> &Checkpoint {
        &self.checkpoint
    }

    pub fn note(&self) -> &Note {
        &self.note
    }

    /// The checkpoint, if its origin is this log's name and this key signed it.
    pub fn verified_by(&self, log: &LogKey) -> Option<&Checkpoint> {
        let own = self.checkpoint.origin == log.name().as_str() && log.signed(&self.note);
        own.then_some(&self.checkpoint)
    }

    pub fn add(&mut self, signature: Signature) {
        self.note.add(signature);
    }
}

/// The whole note, with signatures.
impl fmt::Display for SignedCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.note.fmt(f)
    }
}

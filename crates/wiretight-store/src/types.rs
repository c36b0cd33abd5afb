//! The types of the store: keys, revisions, entries, changes. No I/O.

use std::fmt;
use std::str::FromStr;

use crate::{Error, MAX_VALUE, Result};

/// A path such as `node/db1`: 1 to 512 bytes of UTF-8 without NUL. Keys sort by their bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Box<str>);

impl Key {
    /// The longest key, in bytes.
    pub const MAX_LEN: usize = 512;

    /// # Errors
    /// [`Error::BadKey`] if it is empty, longer than [`Key::MAX_LEN`] bytes, or contains NUL.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let reason = if text.is_empty() {
            "it is empty".to_owned()
        } else if text.len() > Self::MAX_LEN {
            format!("it is {} bytes long; the limit is {}", text.len(), Self::MAX_LEN)
        } else if text.contains('\0') {
            "it contains a NUL byte".to_owned()
        } else {
            return Ok(Self(text.into_boxed_str()));
        };
        Err(Error::BadKey { reason })
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Key {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::new(text)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A point in the store's history. There is one counter for all keys: a later change has a higher revision. Some
/// backends leave gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// Before the first change: the revision of an empty store.
    pub const ZERO: Self = Self(0);

    /// The revision of the next change.
    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A key with its value. `Debug` does not show the value, because some are secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: Key,
    pub value: Vec<u8>,
    /// The revision of its last change.
    pub revision: Revision,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}@{} ({} bytes)", self.key, self.revision, self.value.len())
    }
}

/// One change, as a [`crate::Watch`] reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The entry was created or replaced.
    Put(Entry),
    /// The entry was deleted.
    Deleted {
        key: Key,
        /// The revision of the deletion.
        revision: Revision,
    },
}

impl Change {
    /// A put, or with `None` a deletion.
    pub(crate) fn new(key: Key, value: Option<Vec<u8>>, revision: Revision) -> Self {
        match value {
            Some(value) => Self::Put(Entry { key, value, revision }),
            None => Self::Deleted { key, revision },
        }
    }

    pub fn key(&self) -> &Key {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Deleted { key, .. } => key,
        }
    }

    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(entry) => entry.revision,
            Self::Deleted { revision, .. } => *revision,
        }
    }

    /// Its size in bytes, as counted for the limits of the history and of a batch.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Put(entry) => weight(&entry.key, Some(&entry.value)),
            Self::Deleted { key, .. } => weight(key, None),
        }
    }
}

pub(crate) fn weight(key: &Key, value: Option<&[u8]>) -> usize {
    key.as_str().len() + value.map_or(0, <[u8]>::len)
}

pub(crate) fn check_value(value: &[u8]) -> Result<()> {
    if value.len() > MAX_VALUE {
        return Err(Error::ValueTooLarge { len: value.len() });
    }
    Ok(())
}

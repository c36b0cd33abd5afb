//! Shared by the protocols with encryption.

use std::borrow::Cow;

use crate::judge::Level;
use crate::passive::{Grade, Sealed, Seen};

/// A result without STARTTLS.
pub(super) fn seen(
    protocol: impl Into<Cow<'static, str>>,
    level: Level,
    grade: Grade,
    evidence: impl Into<Cow<'static, str>>,
    sealed: Option<Sealed>,
) -> Seen {
    Seen {
        protocol: protocol.into(),
        level,
        grade,
        evidence: evidence.into(),
        starttls: None,
        sealed: sealed.map(Box::new),
    }
}

/// Text from the network for a report: printable ASCII of at most `most` bytes, or `None`.
pub(super) fn text(bytes: &[u8], most: usize) -> Option<&str> {
    let fine = !bytes.is_empty() && bytes.len() <= most && bytes.iter().all(u8::is_ascii_graphic);
    std::str::from_utf8(bytes).ok().filter(|_| fine)
}

//! Everything with encryption, except STARTTLS, which begins in plaintext.

use std::borrow::Cow;

use super::{Look, Opening, tls};
use crate::judge::Level;
use crate::passive::{Grade, Sealed, Seen, Transport};

/// What a flow with encryption is; `None` if it is none.
///
/// [`Look::More`] means that it could still be one, and is never the answer to the last look.
pub(super) fn look(opening: &Opening<'_>) -> Option<Look> {
    match opening.transport {
        Transport::Tcp => tls::look(opening),
        Transport::Udp | Transport::Sctp | Transport::Icmp | Transport::Ip(_) => None,
    }
}

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

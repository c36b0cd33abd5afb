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

/// Looks after each piece of a flow, as the table of flows does.
#[cfg(test)]
pub(super) fn look_at(
    recogniser: super::Recogniser,
    transport: crate::passive::Transport,
    ports: (u16, u16),
    pieces: &[(crate::passive::Side, Vec<u8>)],
) -> Option<Seen> {
    use super::{Half, Opening, Verdict};
    use crate::passive::Side;
    let mut sent: [(Vec<u8>, Vec<u16>); 2] = Default::default();
    for (i, (side, bytes)) in pieces.iter().enumerate() {
        let (all, ends) = &mut sent[usize::from(*side == Side::Server)];
        all.extend_from_slice(bytes);
        ends.push(all.len() as u16);
        let [client, server] = sent.each_ref().map(|(bytes, ends)| Half {
            bytes,
            ends,
            from_start: true,
            ended: false,
        });
        let last = i + 1 == pieces.len();
        let first = pieces.first().map(|(side, _)| *side);
        match recogniser(&Opening { transport, ports, first, client, server, last }) {
            Verdict::Maybe => {}
            Verdict::Done(seen) => return Some(seen),
            Verdict::No => return None,
        }
    }
    None
}

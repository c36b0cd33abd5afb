//! From the first bytes of a flow to what it is.

mod sealed;
mod tls;

use super::{Seen, Side, Transport};

/// The beginning of a flow, as far as it was captured.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    pub transport: Transport,
    /// Ports of the client and the server; 0 without ports.
    pub ports: (u16, u16),
    /// Who sent the first payload; `None` before any.
    pub first: Option<Side>,
    pub client: Half<'a>,
    pub server: Half<'a>,
    /// No more will be looked at: the flow ended, or a limit was reached. [`Look::More`] is no answer then.
    pub last: bool,
}

/// One direction of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Half<'a> {
    /// TCP: the first bytes in order, up to the first gap. Otherwise the first datagrams, one after the other.
    pub bytes: &'a [u8],
    /// Where each segment or datagram in `bytes` ends.
    pub ends: &'a [u16],
    /// Whether `bytes` begins at the beginning of the stream, because its SYN was captured. Always true without TCP,
    /// unless the capture began later.
    pub from_start: bool,
    /// Whether this direction can't grow: its end was captured, it has a gap, or a limit was reached.
    pub ended: bool,
}

/// The result of a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// Not decided yet: look again when either direction has grown.
    More,
    /// Decided; more bytes don't change it.
    Done(Seen),
}

/// Decides what a flow is. A pure function: the same opening has the same result, and a longer one may be decided where
/// a shorter one is not.
pub fn look(opening: &Opening<'_>) -> Look {
    sealed::look(opening).unwrap_or(Look::More)
}

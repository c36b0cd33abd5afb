//! What a flow is, from its packets: which protocol, whether it is encrypted, and how well.
//!
//! Packets go in, [records of flows](flow::Record) come out; every byte is hostile. Nothing here does I/O, except to read
//! a capture from any `Read`.
//!
//! - [`mod@file`]: frames from a capture file;
//! - [`packets`]: from a frame to the payload of a flow;
//! - [`flow`]: the table of flows, and the first bytes of each direction in order;
//! - [`look`]: from the first bytes to [what was seen](Seen);
//! - [`summary`]: flows added up, by level and by service;
//! - [`blockers`]: what is not `strong`, and what to change.
//!
//! A flow is called encrypted only if its handshake was seen. What merely looks random is `unknown`.

pub mod blockers;
mod facts;
pub mod file;
pub mod flow;
mod look;
pub mod packets;
mod seen;
pub mod summary;
pub mod totals;
pub mod vocabulary;

pub use facts::{facts, profiles};
pub use look::{Half, Look, Opening, look};
pub use seen::{CertificateSeen, Grade, Sealed, Seen, Side, StartTls, Transport};

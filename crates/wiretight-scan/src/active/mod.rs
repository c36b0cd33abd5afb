//! The probes, their order, and the facts that follow from the answers.

#[doc(hidden)] // for tests
pub mod anyone;
pub mod caa;
mod certificates;
mod contact;
mod derived;
mod enumerate;
mod extensions;
mod first;
pub mod handshake;
mod hidden;
mod http;
mod identity;
mod link;
mod many;
mod observed;
mod older;
mod ordinary;
mod pace;
mod probe;
mod quic;
mod quic_only;
mod quick;
mod scan;
pub mod sessions;
mod settle;
pub mod shown;
mod spoken;
mod ssl2;
pub mod starttls;
mod unasked;
pub mod vulnerabilities;

pub use http::{host_header, http, redirect};
pub use identity::{ClientIdentity, IdentityError};
pub use link::{Event, Link, Trouble};
pub use many::{Depth, Feed, GATHER, scan_many};
pub(crate) use ordinary::TOO as TO_AN_ORDINARY_CLIENT_TOO;
pub use pace::{Pace, Paces};
pub use probe::{Flight, Outcome, Prober, Reply, Until};
pub use quic::quic;
pub use quick::quick;
pub use scan::{Options, resolve, scan_address};
pub use spoken::Spoken;

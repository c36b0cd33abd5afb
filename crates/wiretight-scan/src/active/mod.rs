//! The probes: what is asked, in which order, and what follows from the answers.

mod anyone;
pub mod caa;
mod certificates;
mod derived;
mod enumerate;
mod extensions;
mod first;
pub mod handshake;
mod hidden;
mod http;
mod link;
mod many;
mod pace;
mod probe;
mod quic;
mod quick;
mod scan;
pub mod sessions;
pub mod shown;
mod ssl2;
pub mod starttls;
pub mod vulnerabilities;

pub use http::{host_header, http, redirect};
pub use link::{Event, Link, Trouble};
pub use many::{Depth, Feed, GATHER, scan_many};
pub use pace::{Pace, Paces};
pub use probe::{Flight, Outcome, Prober, Reply, Until};
pub use quic::quic;
pub use quick::quick;
pub use scan::{Options, Spoken, resolve, scan_address};

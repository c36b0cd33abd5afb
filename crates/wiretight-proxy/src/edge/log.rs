//! The access log: one structured line for each request, written when the response was sent or has failed.

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use hyper::{Method, StatusCode};

use super::backend::BorrowedConnection;
use super::guard::InFlight;
use super::live::{Busy, Http};
use super::received::BodyProgress;
use super::settings::Upstream;
use super::sites::Site;
use crate::relay::balance::Lease;

/// The longest path logged, in bytes. The query is never logged, because it often contains secrets.
const MAX_PATH: usize = 512;

/// The access log record of a request; written when dropped.
pub(crate) struct AccessRecord {
    pub(crate) site: Option<Arc<Site>>,
    pub(crate) host: Arc<str>,
    pub(crate) http: Http,
    pub(crate) client: IpAddr,
    pub(crate) identity: Option<Arc<str>>,
    pub(crate) tls: Arc<str>,
    pub(crate) group: Arc<str>,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) status: StatusCode,
    pub(crate) lease: Option<Lease<Upstream>>,
    pub(crate) borrowed: Option<BorrowedConnection>,
    pub(crate) body: BodyProgress,
    pub(crate) begun: Instant,
    sent: u64,
    is_upgraded: bool,
    end: &'static str,
    _busy: Busy,
    _in_flight: Option<InFlight>,
}

/// The initial data of a record.
pub(crate) struct Opening {
    pub(crate) host: Arc<str>,
    pub(crate) http: Http,
    pub(crate) client: IpAddr,
    pub(crate) identity: Option<Arc<str>>,
    pub(crate) tls: Arc<str>,
    pub(crate) group: Arc<str>,
    pub(crate) method: Method,
    pub(crate) busy: Busy,
    pub(crate) in_flight: Option<InFlight>,
}

impl AccessRecord {
    pub(crate) fn new(opening: Opening, path: &str) -> AccessRecord {
        let path = loggable(path);
        AccessRecord {
            site: None,
            host: opening.host,
            http: opening.http,
            client: opening.client,
            identity: opening.identity,
            tls: opening.tls,
            group: opening.group,
            method: opening.method,
            path,
            status: StatusCode::INTERNAL_SERVER_ERROR,
            lease: None,
            borrowed: None,
            body: BodyProgress::default(),
            begun: Instant::now(),
            sent: 0,
            is_upgraded: false,
            end: "client_gone",
            _busy: opening.busy,
            _in_flight: opening.in_flight,
        }
    }

    /// Counts bytes of the response as sent.
    pub(crate) fn sent(&mut self, n: usize) {
        self.sent += n as u64;
    }

    /// The connection or stream carries another protocol from now on, for as long as it likes.
    pub(crate) fn upgraded(&mut self) {
        self.is_upgraded = true;
    }

    /// The response was sent completely.
    pub(crate) fn complete(&mut self) {
        self.end = "done";
    }

    /// The response was cut short, for this reason.
    pub(crate) fn broke_off(&mut self, why: &'static str) {
        self.end = why;
    }
}

/// The start of a path, in printable ASCII, so that a logged path cannot control a terminal.
fn loggable(path: &str) -> String {
    let bytes = &path.as_bytes()[..path.len().min(MAX_PATH)];
    if let Ok(plain) = std::str::from_utf8(bytes)
        && plain.bytes().all(|b| b.is_ascii_graphic())
    {
        return plain.to_owned();
    }
    let mut text = String::with_capacity(MAX_PATH);
    for byte in bytes {
        match byte {
            b if b.is_ascii_graphic() => text.push(char::from(*b)),
            b => {
                let _ = write!(text, "%{b:02X}");
            }
        }
    }
    // ASCII only, so it can be cut anywhere.
    text.truncate(MAX_PATH);
    text
}

impl Drop for AccessRecord {
    fn drop(&mut self) {
        let received = self.body.received();
        let took = self.begun.elapsed();
        if let Some(site) = &self.site {
            site.counts.answered(self.http, self.status);
            site.counts.sent.fetch_add(self.sent, Relaxed);
            site.counts.received.fetch_add(received, Relaxed);
            if !self.is_upgraded {
                site.counts.duration.observe(took);
            }
        }
        tracing::info!(
            target: "access",
            side = "edge",
            site = self.site.as_ref().map_or("-", |s| s.settings.title()),
            host = &*self.host,
            client = %self.client,
            peer = self.identity.as_ref().map(tracing::field::display),
            http = self.http.word(),
            method = %self.method,
            path = self.path,
            status = self.status.as_u16(),
            to = self.lease.as_ref().map(|l| tracing::field::display(&**l)),
            protocol = &*self.tls,
            group = &*self.group,
            bytes_in = received,
            bytes_out = self.sent,
            ms = took.as_millis() as u64,
            end = self.end,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_logged_in_printable_ascii_and_truncated() {
        assert_eq!(loggable("/a%20b?"), "/a%20b?");
        assert_eq!(loggable("/caf\u{e9}\u{85}\x1b"), "/caf%C3%A9%C2%85%1B");
        for letter in ["\u{e9}", "\u{20ac}", "\u{1f512}", "a"] {
            for lead in ["/", "/a", "/ab", "/abc"] {
                let logged = loggable(&format!("{lead}{}", letter.repeat(600)));
                assert_eq!(logged.len(), MAX_PATH);
                assert!(logged.starts_with(lead) && logged.is_ascii());
            }
        }
    }
}

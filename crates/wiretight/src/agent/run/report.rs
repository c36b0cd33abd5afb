//! The node's report about itself: sent at the start of a stream and whenever it is new.

use tokio::time::Instant;

use super::{Link, Pending, Run, Trouble};
use crate::control::FromNode;
use crate::control::report::{NodeReport, ReportedRelease};

/// The report of a stream.
#[derive(Debug, Default)]
pub(super) struct Reported {
    /// The release whose proof was sent.
    proof_of: Option<ReportedRelease>,
    /// The number of the last report that was sent; 0 if none was.
    sent: u64,
    /// The number of the request that was not answered yet.
    open: Option<u64>,
    /// The authority does not know this message.
    unsupported: bool,
}

impl Reported {
    /// The authority has answered a request. Returns whether it was a report.
    pub(super) fn answered(&mut self, request: u64) -> bool {
        self.open.take_if(|open| *open == request).is_some()
    }

    /// The authority has refused a report, and perhaps not kept its proof.
    pub(super) fn refused(&mut self, request: u64) {
        if self.answered(request) {
            self.proof_of = None;
        }
    }

    /// The authority does not know the type of a message. Returns whether that was a report, the newest type: each message
    /// of an unknown type is answered once, so others are answered after it.
    pub(super) fn unknown_type(&mut self) -> bool {
        self.unsupported |= self.open.is_some();
        self.open.take().is_some()
    }
}

impl Run {
    /// Takes a new report.
    pub(super) fn take_report(&mut self, report: Box<NodeReport>) {
        self.own_report = Some((self.own_report.as_ref().map_or(1, |(n, _)| n + 1), report));
    }

    /// Which release this node runs, once that was reported.
    pub(super) fn own_release(&self) -> Option<&ReportedRelease> {
        self.own_report.as_ref()?.1.release.as_deref()
    }

    /// Sends the report if the authority does not have it.
    pub(super) async fn send_report(&mut self, link: &mut Link) -> Result<(), Trouble> {
        let Some((number, report)) = &self.own_report else { return Ok(()) };
        let Reported { sent, open, unsupported, .. } = link.reported;
        if !link.confirmed || unsupported || open.is_some() || sent == *number {
            return Ok(());
        }
        let mut report = report.clone();
        match &mut report.release {
            // The proof is large, so it is sent once.
            Some(release) if link.reported.proof_of.as_ref() == Some(release) => {
                release.proof = None;
            }
            release => link.reported.proof_of = release.as_deref().cloned(),
        }
        let request = self.next_request;
        self.next_request += 1;
        (link.reported.sent, link.reported.open) = (*number, Some(request));
        link.pending.insert(request, (Pending::Report, Instant::now()));
        link.send(&FromNode::Report { request, report }).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_authority_is_asked_once_and_nothing_else_is_blamed() {
        let mut reported = Reported { sent: 1, open: Some(7), ..Reported::default() };
        assert!(!reported.answered(6) && reported.open.is_some());
        assert!(reported.unknown_type() && reported.unsupported && reported.open.is_none());
        // The next one is about another message.
        assert!(!reported.unknown_type());
        // Control: after an answer, an unknown type refers to something else.
        let mut reported = Reported { sent: 1, open: Some(7), ..Reported::default() };
        assert!(reported.answered(7));
        assert!(!reported.unknown_type() && !reported.unsupported);
    }
}

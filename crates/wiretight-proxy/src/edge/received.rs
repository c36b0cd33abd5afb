//! The progress of a request's body, for the handler.

use std::cell::Cell;
use std::rc::Rc;

/// Why a request's body is incomplete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    /// Larger than the site's limit.
    #[error("the body is larger than this site accepts")]
    TooLarge,
    /// No data arrived for too long.
    #[error("timed out waiting for the body")]
    Stalled,
    /// The client disconnected, or sent an invalid body.
    #[error("the body is incomplete or invalid")]
    Broken,
}

/// The progress of a request's body, shared with the handler.
#[derive(Clone, Default)]
pub(crate) struct BodyProgress(Rc<(Cell<u64>, Cell<Option<BodyError>>)>);

impl BodyProgress {
    /// Bytes received so far.
    pub(crate) fn received(&self) -> u64 {
        self.0.0.get()
    }

    /// Adds received bytes.
    pub(crate) fn add(&self, n: usize) {
        self.0.0.set(self.0.0.get() + n as u64);
    }

    /// The body ends early.
    pub(crate) fn fail(&self, error: BodyError) {
        self.0.1.set(Some(error));
    }

    /// Why the body is incomplete, if it is.
    pub(crate) fn error(&self) -> Option<BodyError> {
        self.0.1.get()
    }
}

//! What becomes of a request's body, for whoever answers the request.

use std::cell::Cell;
use std::rc::Rc;

/// Why a request's body did not come whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    /// More than the site takes.
    #[error("the body is larger than this site takes")]
    TooLarge,
    /// It stands still.
    #[error("the body did not come in time")]
    Stalled,
    /// The client is gone, or what it sent is no body.
    #[error("the body broke off")]
    Broken,
}

/// What became of a request's body; the handler asks.
#[derive(Clone, Default)]
pub(crate) struct BodyStory(Rc<(Cell<u64>, Cell<Option<BodyError>>)>);

impl BodyStory {
    /// Bytes that have come.
    pub(crate) fn received(&self) -> u64 {
        self.0.0.get()
    }

    /// So many more have.
    pub(crate) fn add(&self, n: usize) {
        self.0.0.set(self.0.0.get() + n as u64);
    }

    /// No more of it will come.
    pub(crate) fn fail(&self, error: BodyError) {
        self.0.1.set(Some(error));
    }

    /// Why no more of it will.
    pub(crate) fn error(&self) -> Option<BodyError> {
        self.0.1.get()
    }
}

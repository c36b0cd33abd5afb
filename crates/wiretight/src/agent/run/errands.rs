//! Requests of a [`SharedStore`](super::super::SharedStore) on the stream, and the authority's responses.

use std::collections::BTreeMap;

use tokio::sync::{mpsc, oneshot};
use wiretight_store::Revision;

use super::super::shared::{Errand, Event, Outcome, TOO_OLD};
use super::{Link, Run, Trouble};
use crate::control::{Blob, FromAuthority, FromNode};

/// Open writes at a time; fewer than the authority queues.
const MAX_WRITES: usize = 4;

/// The requests on one stream.
#[derive(Default)]
pub(super) struct Sharing {
    follow: Option<Follow>,
    writes: BTreeMap<u64, oneshot::Sender<Outcome>>,
}

struct Follow {
    request: u64,
    events: mpsc::Sender<Event>,
    /// No response has arrived yet.
    unanswered: bool,
    /// All records have arrived.
    whole: bool,
}

impl Sharing {
    /// Whether another request may be sent.
    pub(super) fn has_room(&mut self) -> bool {
        self.writes.retain(|_, reply| !reply.is_closed());
        self.writes.len() < MAX_WRITES
    }

    /// Whether all records have arrived on this stream.
    fn may_write(&self) -> bool {
        self.follow.as_ref().is_some_and(|f| f.whole)
    }

    pub(super) fn refused(&mut self, request: u64, why: &str) {
        if self.follow.as_ref().is_some_and(|f| f.request == request) {
            return self.end(why);
        }
        self.written(request, Outcome::Refused(why.into()));
    }

    /// The authority does not know a message type. An open follow request is the newest type, so it is meant.
    pub(super) fn unknown_type(&mut self) {
        if self.follow.as_ref().is_some_and(|f| f.unanswered) {
            self.end(TOO_OLD);
        }
    }

    fn end(&mut self, why: &str) {
        if let Some(follow) = self.follow.take() {
            let _ = follow.events.try_send(Event::Refused(why.into()));
        }
    }

    /// Forwards an event to the follower. If its queue is full, it has to start again.
    fn tell(&mut self, request: u64, event: Event) {
        let Some(follow) = self.follow.as_mut().filter(|f| f.request == request) else { return };
        follow.unanswered = false;
        if let Event::Records { done: true, .. } = event {
            follow.whole = true;
        }
        if follow.events.try_send(event).is_err() {
            self.follow = None;
        }
    }

    /// Handles a response; returns any other message.
    pub(super) fn answer(&mut self, message: FromAuthority) -> Option<FromAuthority> {
        match message {
            FromAuthority::Records { request, at, records, done } => {
                self.tell(request, Event::Records { at: Revision(at), records, done });
            }
            FromAuthority::Changes { request, changes } => {
                self.tell(request, Event::Changes(changes));
            }
            FromAuthority::Written { request, revision } => {
                self.written(request, Outcome::Written(Revision(revision)));
            }
            FromAuthority::Conflict { request, found } => {
                self.written(request, Outcome::Conflict(Revision(found)));
            }
            other => return Some(other),
        }
        None
    }

    fn written(&mut self, request: u64, outcome: Outcome) {
        if let Some(reply) = self.writes.remove(&request) {
            let _ = reply.send(outcome);
        }
    }
}

impl Run {
    pub(super) async fn errand(&mut self, link: &mut Link, errand: Errand) -> Result<(), Trouble> {
        let request = self.next_request;
        let message = match errand {
            Errand::Follow { service, events } => {
                let _ = events.try_send(Event::Asked);
                let follow = Follow { request, events, unanswered: true, whole: false };
                link.sharing.follow = Some(follow);
                FromNode::Follow { request, service }
            }
            // The write is based on records from another stream, perhaps of an authority that was restored since.
            Errand::Write(write) if !link.sharing.may_write() => {
                let why = "the connection to the authority was just re-established. Try again in a moment.";
                let _ = write.reply.send(Outcome::Refused(why.into()));
                return Ok(());
            }
            Errand::Write(write) if write.reply.is_closed() => return Ok(()),
            Errand::Write(write) => {
                link.sharing.writes.insert(request, write.reply);
                FromNode::Write {
                    request,
                    service: write.service,
                    key: write.key,
                    expected: write.expected.0,
                    value: write.value.map(Blob),
                }
            }
        };
        self.next_request += 1;
        link.send(&message).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow() -> (Sharing, mpsc::Receiver<Event>) {
        let (events, inbox) = mpsc::channel(1);
        let follow = Follow { request: 3, events, unanswered: true, whole: false };
        (Sharing { follow: Some(follow), ..Sharing::default() }, inbox)
    }

    fn records(request: u64) -> FromAuthority {
        FromAuthority::Records { request, at: 1, records: Vec::new(), done: true }
    }

    #[test]
    fn an_authority_that_does_not_know_the_request_is_reported_as_older() {
        let (mut sharing, mut inbox) = follow();
        sharing.unknown_type();
        let Ok(Event::Refused(why)) = inbox.try_recv() else { panic!("nothing is said") };
        assert!(why.contains("older") && why.contains("update"), "{why}");
        // Control: after a response, an unknown type refers to something else.
        let (mut sharing, mut inbox) = follow();
        assert!(sharing.answer(records(3)).is_none());
        sharing.unknown_type();
        assert!(matches!(inbox.try_recv(), Ok(Event::Records { done: true, .. })));
        assert!(inbox.try_recv().is_err() && sharing.follow.is_some());
    }

    #[test]
    fn responses_to_other_requests_are_ignored_and_a_slow_follower_starts_again() {
        let (mut sharing, mut inbox) = follow();
        assert!(sharing.answer(records(2)).is_none());
        assert!(inbox.try_recv().is_err() && !sharing.may_write());
        sharing.answer(records(3));
        assert!(sharing.may_write());
        sharing.answer(records(3));
        assert!(sharing.follow.is_none() && !sharing.may_write());
        assert!(inbox.try_recv().is_ok());
        assert!(matches!(inbox.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
    }
}

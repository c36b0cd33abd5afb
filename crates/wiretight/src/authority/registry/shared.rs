//! Records that edges share: site certificates, encrypted keys and ACME accounts, for all nodes that may act as a
//! service. They are stored below `edge/service/SERVICE/`:
//!
//! ```text
//! member/NAME            the public key that secrets are encrypted to for the edge on node NAME; only it may write this
//! site/NAME              a site's certificate, and the order in progress for the next one
//! account/HASH           an account at a CA
//! ```
//!
//! Access is checked against the node's record each time. The authority does not interpret the records. Their number and
//! size are limited, so that no node can fill the authority's disk or keep it busy.

use std::time::{Duration, Instant};

use wiretight_keys::Name;
use wiretight_store::{Change, Entry, Error, Key, Revision, Watch};

use super::{Registry, Standing, internal, key};
use crate::control::{Blob, Code, Denial, MAX_SHARED_VALUE, SharedRecord};

/// Records of one service.
const MAX_RECORDS: usize = 1024;
/// Bytes of the records of one service, with their keys.
const MAX_BYTES: usize = 8 << 20;
/// Limits for writes of a node: a burst, and a rate per second.
const BURST: f64 = 5000.0;
const RATE: f64 = 20.0;
/// A request for all records counts as this many writes.
const FOLLOW: f64 = 50.0;

#[derive(Debug)]
pub(in crate::authority) enum Written {
    At(Revision),
    /// Not written: the record has this revision, or does not exist.
    Conflict(Option<Revision>),
}

impl Registry {
    /// Checks that a node currently may access the records of `service`.
    pub(in crate::authority) async fn may_share(
        &self,
        node: &Name,
        enrolment: &str,
        service: &Name,
    ) -> Result<(), Denial> {
        let record = self.current(node, enrolment).await?;
        if record.services.contains(service) {
            return Ok(());
        }
        let message = format!(
            "node {node} may not act as {service}, so it cannot share that service's certificates. Grant it on the authority (`wiretight node grant`), or correct share in [edge]."
        );
        Err(Denial::new(Code::NotAllowed, message))
    }

    /// Checks the rate limit for requests for all records.
    pub(in crate::authority) fn may_follow(&self, node: &Name) -> Result<(), Denial> {
        self.charge(node, FOLLOW)
    }

    /// All records of a service, and their revision.
    pub(in crate::authority) async fn shared(
        &self,
        service: &Name,
    ) -> Result<(Vec<SharedRecord>, Revision), Error> {
        let folder = folder(service);
        let (entries, at) = self.store.list(&folder).await?;
        let changes = entries.into_iter().map(Change::Put);
        Ok((changes.filter_map(|c| record(&folder, c)).collect(), at))
    }

    pub(in crate::authority) async fn watch_shared(
        &self,
        service: &Name,
        after: Revision,
    ) -> Result<SharedWatch, Error> {
        let folder = folder(service);
        Ok(SharedWatch { watch: self.store.watch(&folder, after).await?, folder })
    }

    /// Writes or deletes a record of a service if it has the revision `expected` (0: if it does not exist).
    pub(in crate::authority) async fn write_shared(
        &self,
        node: &Name,
        enrolment: &str,
        service: &Name,
        path: &str,
        expected: u64,
        value: Option<Blob>,
    ) -> Result<Written, Denial> {
        let bad = |message: String| Err(Denial::new(Code::BadRequest, message));
        let Some((kind, name)) = parse(path) else {
            return bad(format!("{:?} is not a valid path for a record", path.escape_debug()));
        };
        if value.as_ref().is_some_and(|v| v.0.len() > MAX_SHARED_VALUE) {
            return Err(full(format!("a record may have {MAX_SHARED_VALUE} bytes at most")));
        }
        self.charge(node, 1.0)?;
        // Removing a node or a service waits for this lock, so it sees what was written.
        let _guard = self.changing.lock().await;
        self.may_share(node, enrolment, service).await?;
        if kind == "member" && name != node.as_str() {
            let message = format!("only node {name} may write {path}, and this is node {node}");
            return Err(Denial::new(Code::NotAllowed, message));
        }
        let folder = folder(service);
        let at = key(format!("{folder}{path}"));
        let written = match (expected, value) {
            (expected, Some(value)) => {
                self.has_room(&folder, &at, value.0.len()).await?;
                match expected {
                    0 => self.store.create(&at, value.0).await,
                    _ => self.store.swap(&at, Revision(expected), Some(value.0)).await,
                }
            }
            (0, None) => return bad("there is nothing to delete".into()),
            (_, None) => self.store.swap(&at, Revision(expected), None).await,
        };
        match written {
            Ok(revision) => Ok(Written::At(revision)),
            Err(Error::Conflict { found, .. }) => Ok(Written::Conflict(found)),
            Err(e) => Err(internal(e)),
        }
    }

    async fn has_room(&self, folder: &str, at: &Key, len: usize) -> Result<(), Denial> {
        let (entries, _) = self.store.list(folder).await.map_err(internal)?;
        let others = || entries.iter().filter(|e| e.key != *at);
        let weigh = |e: &Entry| e.key.as_str().len() + e.value.len();
        let bytes = others().map(weigh).sum::<usize>() + at.as_str().len() + len;
        if bytes > MAX_BYTES {
            return Err(full(format!(
                "{folder} is full: the limit for a service is {MAX_BYTES} bytes"
            )));
        }
        if others().count() >= MAX_RECORDS {
            return Err(full(format!(
                "{folder} is full: the limit for a service is {MAX_RECORDS} records"
            )));
        }
        Ok(())
    }

    /// Removes the node's membership keys, so that nothing more is encrypted to a removed node or for a service that it may
    /// no longer act as. The remaining members notice this and replace secrets that were encrypted to it.
    pub(super) async fn leave_shared(
        &self,
        name: &Name,
        record: &super::NodeRecord,
    ) -> Result<(), Error> {
        // When another machine has joined under this name, its old keys go too.
        let kept = record.services.iter().filter(|_| record.standing != Standing::Active);
        for service in record.withdrawn.iter().chain(kept) {
            self.delete_key(&key(format!("{}member/{name}", folder(service)))).await?;
        }
        Ok(())
    }

    pub(super) fn charge(&self, node: &Name, cost: f64) -> Result<(), Denial> {
        match super::take(&self.shares, node, cost, BURST, RATE, Instant::now()) {
            Duration::ZERO => Ok(()),
            _ => {
                let message = "this node has changed too many records: try again later";
                Err(Denial::new(Code::Busy, message))
            }
        }
    }
}

/// Changes of the records of a service.
pub(in crate::authority) struct SharedWatch {
    watch: Watch,
    folder: String,
}

impl SharedWatch {
    pub(in crate::authority) async fn next(&mut self) -> Result<Vec<SharedRecord>, Error> {
        let changes = self.watch.next().await?;
        Ok(changes.into_iter().filter_map(|c| record(&self.folder, c)).collect())
    }
}

fn record(folder: &str, change: Change) -> Option<SharedRecord> {
    let key = change.key().as_str().strip_prefix(folder)?.to_owned();
    let revision = change.revision().0;
    let value = match change {
        Change::Put(entry) => Some(Blob(entry.value)),
        Change::Deleted { .. } => None,
    };
    Some(SharedRecord { key, revision, value })
}

fn folder(service: &Name) -> String {
    format!("edge/service/{service}/")
}

/// The two parts of a record's path. Only valid paths are accepted, so none can lead out of the folder.
fn parse(path: &str) -> Option<(&str, &str)> {
    let (kind, name) = path.split_once('/')?;
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.*".contains(&b);
    let known = ["member", "site", "account"].contains(&kind);
    (known && (1..=255).contains(&name.len()) && name.bytes().all(good)).then_some((kind, name))
}

fn full(message: String) -> Denial {
    Denial::new(Code::Full, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_of_three_folders_and_a_name() {
        let long = format!("site/{}", "a".repeat(255));
        for good in ["member/a", "site/*.example.org", "account/00ff", &*long] {
            assert!(parse(good).is_some(), "{good}");
        }
        let longer = format!("{long}a");
        for bad in [
            "",
            "site",
            "site/",
            "/a",
            "other/a",
            "site/a/b",
            "site/../../token/a",
            "site/A",
            "site/a b",
            "site/\0",
            "site/ä",
            "../a",
            "member//a",
            &*longer,
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}

//! What edges share: certificates of sites, sealed keys and ACME accounts, for the nodes that may act as a
//! service. It stands below `edge/service/SERVICE/`:
//!
//! ```text
//! member/NAME            the key that secrets are sealed to for the edge on node NAME; written by it alone
//! site/NAME              a site's certificate and what is under way for the next
//! account/HASH           an account at a CA
//! ```
//!
//! Who may read and write there is looked up in the node's record each time, never taken from what the node
//! says. What the records mean is the edges' business: here they are bytes, few and bounded, so that no node
//! fills the authority's disk or keeps it busy.

use std::time::{Duration, Instant};

use wiretight_keys::Name;
use wiretight_store::{Change, Entry, Error, Key, Revision, Watch};

use super::{Registry, Standing, internal, key};
use crate::control::{Blob, Code, Denial, MAX_SHARED_VALUE, SharedRecord};

/// Records of one service.
const MAX_RECORDS: usize = 1024;
/// What they and their keys weigh together, in bytes.
const MAX_BYTES: usize = 8 << 20;
/// Writes that a node may make at once, and then a second.
const BURST: f64 = 5000.0;
const RATE: f64 = 20.0;
/// What it costs to be told everything anew, in writes.
const FOLLOW: f64 = 50.0;

/// How a write ended.
#[derive(Debug)]
pub(in crate::authority) enum Written {
    At(Revision),
    /// Not done: the record has this revision, or is not there.
    Conflict(Option<Revision>),
}

impl Registry {
    /// Whether a node may share in what edges of `service` keep, as of now.
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
            "node {node} may not act as {service}, so it has no part in its certificates: grant it on the authority (`wiretight node grant`), or correct share in [edge]"
        );
        Err(Denial::new(Code::NotAllowed, message))
    }

    /// Whether a node may be told all of it anew so soon.
    pub(in crate::authority) fn may_follow(&self, node: &Name) -> Result<(), Denial> {
        self.charge(node, FOLLOW)
    }

    /// All that edges of a service share, and the revision of that.
    pub(in crate::authority) async fn shared(
        &self,
        service: &Name,
    ) -> Result<(Vec<SharedRecord>, Revision), Error> {
        let folder = folder(service);
        let (entries, at) = self.store.list(&folder).await?;
        let changes = entries.into_iter().map(Change::Put);
        Ok((changes.filter_map(|c| record(&folder, c)).collect(), at))
    }

    /// Follows it.
    pub(in crate::authority) async fn watch_shared(
        &self,
        service: &Name,
        after: Revision,
    ) -> Result<SharedWatch, Error> {
        let folder = folder(service);
        Ok(SharedWatch { watch: self.store.watch(&folder, after).await?, folder })
    }

    /// Writes a record of a service, or deletes it, if it has the revision `expected` (0: if there is none).
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
            return bad(format!("{:?} is no place for a record", path.escape_debug()));
        };
        if value.as_ref().is_some_and(|v| v.0.len() > MAX_SHARED_VALUE) {
            return Err(full(format!("a record has {MAX_SHARED_VALUE} bytes at most")));
        }
        self.charge(node, 1.0)?;
        // Whoever removes a node or takes a service away waits, and finds what was written.
        let _guard = self.changing.lock().await;
        self.may_share(node, enrolment, service).await?;
        if kind == "member" && name != node.as_str() {
            let message =
                format!("{path} is written by node {name} alone, and this is node {node}");
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
                "{folder} is full: {MAX_BYTES} bytes at most are kept for a service"
            )));
        }
        if others().count() >= MAX_RECORDS {
            return Err(full(format!(
                "{folder} is full: {MAX_RECORDS} records at most are kept for a service"
            )));
        }
        Ok(())
    }

    /// Nothing more is sealed to a node that goes, or to one that may act as a service no longer. What was
    /// sealed before is told from the members that are left: the others replace it.
    pub(super) async fn leave_shared(
        &self,
        name: &Name,
        record: &super::NodeRecord,
    ) -> Result<(), Error> {
        // After a change of machines the name stands for another one.
        let kept = record.services.iter().filter(|_| record.standing != Standing::Active);
        for service in record.withdrawn.iter().chain(kept) {
            self.delete_key(&key(format!("{}member/{name}", folder(service)))).await?;
        }
        Ok(())
    }

    fn charge(&self, node: &Name, cost: f64) -> Result<(), Denial> {
        match super::take(&self.shares, node, cost, BURST, RATE, Instant::now()) {
            Duration::ZERO => Ok(()),
            _ => {
                let message = "this node has changed too many records: ask again later";
                Err(Denial::new(Code::Busy, message))
            }
        }
    }
}

/// Changes of what edges of a service share.
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

/// The two parts of a record's place. Nothing else is one: no path leads out of the folder.
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
    fn a_place_is_one_of_three_folders_and_a_name() {
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

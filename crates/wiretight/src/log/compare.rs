//! Compares a log with what its witnesses saw (C2SP tlog-witness, the monitor's side), to detect a log that shows a reader
//! something different or less than it shows the witnesses.

use std::time::Duration;

use wiretight_tlog::hash::Hash;
use wiretight_tlog::note::{LogKey, MAX_NOTE};
use wiretight_tlog::policy::Witness;
use wiretight_tlog::{Checkpoint, SignedCheckpoint};

use super::reader::{ReadError, Tree};
use super::witness::origin_hash;
use crate::logging::chain;
use crate::web::client::{Client, Limit, Url};

const LIMIT: Limit = Limit { time: Duration::from_secs(10), body: MAX_NOTE };

/// The last checkpoint that a witness has cosigned.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The checkpoint, signed by the log, with cosignatures.
    pub signed: SignedCheckpoint,
    /// When it was cosigned, in seconds since 1970.
    pub time: u64,
}

impl Seen {
    /// The unsigned checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        self.signed.unverified()
    }
}

/// Asks a witness for the last checkpoint of a log that it has cosigned; `None` if it has cosigned none. The error is a
/// text for people.
pub async fn ask(
    client: &Client,
    prefix: &Url,
    witness: &Witness,
    log: &LogKey,
) -> Result<Option<Seen>, String> {
    let url = prefix.join(&format!("{}/checkpoint", origin_hash(log.name().as_str())));
    let answer = client.get(&url, LIMIT).await.map_err(|e| chain(&e))?;
    match answer.status {
        200 => {}
        404 => return Ok(None),
        status => return Err(format!("{url}: HTTP status {status}")),
    }
    let signed = std::str::from_utf8(&answer.body).ok();
    let signed = signed.and_then(|text| SignedCheckpoint::parse(text).ok());
    let signed = signed.ok_or_else(|| format!("{url} is not a checkpoint"))?;
    if signed.verified_by(log).is_none() {
        return Err(format!("the checkpoint at {url} is not signed by the log"));
    }
    let time = witness.key.cosigned(&signed);
    let time = time
        .ok_or_else(|| format!("the checkpoint at {url} is not cosigned by the witness's key"))?;
    Ok(Some(Seen { signed, time }))
}

/// How a witness's checkpoint compares with a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// The tree equals or extends the one that the witness saw.
    Same,
    /// The witness saw another history.
    Fork,
    /// The witness saw a larger tree; whether that extends this one is unknown.
    More,
}

/// Compares a witness's checkpoint with the tree that the log shows.
pub async fn compare(seen: &Checkpoint, tree: &Tree) -> Result<Compared, ReadError> {
    if seen.size > tree.size() {
        return Ok(Compared::More);
    }
    let root: Hash = tree.root_at(seen.size).await?;
    Ok(if root == seen.root { Compared::Same } else { Compared::Fork })
}

//! What a revocation by index affects, read from the log entries, to show it before the operator confirms.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use wiretight_keys::logged::Entry;
use wiretight_proxy::clock::now;
use wiretight_tlog::tile::WIDTH;

use super::{AuthorityError, CaError};
use crate::log::sequencer::Log;

/// How many entries of a range are read at most.
const MAX_READ: u64 = 16 * WIDTH;
/// How many names are reported at most.
const MAX_NAMES: usize = 1000;

/// What a revocation by index affects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Affected {
    /// The first entry.
    pub from: u64,
    /// The last entry.
    pub to: u64,
    /// The range includes the intermediate that currently signs identities: every connection of the mesh is closed.
    pub intermediate_in_use: bool,
    /// The range includes the authority's own certificate.
    pub authority: bool,
    /// Entries of other unexpired CA certificates. Everything they signed is revoked too.
    pub ca_certificates: Vec<u64>,
    /// The names in the other unexpired certificates.
    pub names: BTreeSet<String>,
    /// Number of entries that were not checked or are unreadable.
    pub unread: u64,
}

impl Affected {
    /// Reads the entries, which must be in the log.
    pub(super) async fn read(
        log: &Log,
        from: u64,
        to: u64,
        intermediate: Option<u64>,
        authority: Option<u64>,
    ) -> Result<Affected, AuthorityError> {
        let covers = |index: Option<u64>| index.is_some_and(|index| (from..=to).contains(&index));
        let mut affected = Affected {
            from,
            to,
            intermediate_in_use: covers(intermediate),
            authority: covers(authority),
            ..Affected::default()
        };
        let size = log.checkpoint().map_or(0, |c| c.unverified().size);
        let end = to.min(size.saturating_sub(1)).min(from.saturating_add(MAX_READ - 1));
        let mut read = 0;
        for bundle in from / WIDTH..=end / WIDTH {
            let entries = log.bundle(bundle).await.map_err(CaError::Log)?;
            let indexed = (bundle * WIDTH..).zip(entries);
            for (index, entry) in indexed.filter(|(index, _)| (from..=end).contains(index)) {
                read += u64::from(affected.note(index, &entry, intermediate));
            }
        }
        affected.unread = (to - from).saturating_add(1).saturating_sub(read);
        Ok(affected)
    }

    /// Returns whether the entry is readable.
    fn note(&mut self, index: u64, entry: &[u8], intermediate: Option<u64>) -> bool {
        let Ok(entry) = Entry::parse(entry) else { return false };
        let Entry::Certificate(certificate) = entry else { return true };
        if certificate.period.not_after < now() {
            return true;
        }
        if certificate.is_ca {
            if intermediate != Some(index) {
                self.ca_certificates.push(index);
            }
        } else if self.names.len() < MAX_NAMES {
            // A SPIFFE ID is clearer than the DNS name of the same certificate.
            let ids: Vec<_> = certificate.names.iter().filter(|n| n.contains("://")).collect();
            let names = if ids.is_empty() { certificate.names.iter().collect() } else { ids };
            self.names.extend(names.into_iter().take(8).cloned());
        }
        true
    }
}

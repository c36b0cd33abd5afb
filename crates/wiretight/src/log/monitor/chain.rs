//! Successors of expected keys.
//!
//! A node signs each new key with the previous one ([`KeyLink`](wiretight_keys::KeyLink)), and the log has that signature.
//! So a monitor that expects one key accepts all its successors without an alert. A key without a link to an expected one
//! is unexpected. When an expected key is removed from the list, its successors are no longer expected either.

use std::collections::{HashMap, VecDeque};
use std::path::Path;

use wiretight_keys::SpiffeId;

use super::expect::{Expected, unhex};
use super::name::Name;
use super::table::{self, TableError, What};

/// The most successors of an expected key; the oldest are dropped.
const KEPT: usize = 4096;

type Key = [u8; 32];

/// Keys, each with the expected key that it succeeds.
#[derive(Debug, Default)]
pub struct Chains {
    roots: HashMap<(Name, Key), Key>,
    order: HashMap<(Name, Key), VecDeque<Key>>,
}

impl Chains {
    /// Reads the links in a table.
    pub fn read(dir: &Path, expected: &Expected) -> Result<Chains, TableError> {
        let mut chains = Chains::default();
        table::read(dir, |row| {
            let What::Certificate { names, key, follows: Some(follows), .. } = row.what else {
                return;
            };
            if let Some((name, key)) = identity(&names).zip(unhex(&key))
                && let Some(before) = unhex(&follows)
            {
                chains.follow(expected, name, before, key);
            }
        })?;
        Ok(chains)
    }

    /// Whether this key is a successor of an expected one.
    pub fn has(&self, expected: &Expected, name: &Name, key: &Key) -> bool {
        self.roots.get(&(name.clone(), *key)).is_some_and(|root| expected.has(name, root, false))
    }

    /// Records that `key` succeeds `before`, if that one is expected or a successor of an expected key.
    pub fn follow(&mut self, expected: &Expected, name: Name, before: Key, key: Key) {
        let root = match expected.has(&name, &before, false) {
            true => Some(before),
            false => self.roots.get(&(name.clone(), before)).copied(),
        };
        let Some(root) = root.filter(|root| expected.has(&name, root, false)) else { return };
        let order = self.order.entry((name.clone(), root)).or_default();
        if self.roots.insert((name.clone(), key), root).is_none() {
            order.push_back(key);
        }
        if order.len() > KEPT
            && let Some(oldest) = order.pop_front()
        {
            self.roots.remove(&(name, oldest));
        }
    }
}

/// The identity that a link is for: the certificate's only SPIFFE ID.
pub fn identity(names: &[String]) -> Option<Name> {
    let mut ids = names.iter().filter(|name| name.parse::<SpiffeId>().is_ok());
    let (id, None) = (ids.next()?, ids.next()) else { return None };
    Name::of_certificate(id)
}

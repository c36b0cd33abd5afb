//! Keys that come after expected ones.
//!
//! A node signs each new key with the one before ([`KeyLink`](wiretight_keys::KeyLink)), and the log has that signature.
//! So from one key that is expected a monitor follows all renewals, and they are no news. A key that nobody has linked to
//! an expected one is. When the expected key leaves the list, so does all that came after it.

use std::collections::{HashMap, VecDeque};
use std::path::Path;

use wiretight_keys::SpiffeId;

use super::expect::{Expected, unhex};
use super::name::Name;
use super::table::{self, TableError, What};

/// Keys that are known for each expected one, the newest: a node that was away for longer has lost its place.
const KEPT: usize = 4096;

type Key = [u8; 32];

/// Keys, each with the expected one that it comes after.
#[derive(Debug, Default)]
pub struct Chains {
    roots: HashMap<(Name, Key), Key>,
    order: HashMap<(Name, Key), VecDeque<Key>>,
}

impl Chains {
    /// All that a table knows.
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

    /// Whether this key comes after an expected one.
    pub fn has(&self, expected: &Expected, name: &Name, key: &Key) -> bool {
        self.roots.get(&(name.clone(), *key)).is_some_and(|root| expected.has(name, root, false))
    }

    /// Notes that `key` comes after `before`, which matters if that one is expected, or comes after one that is.
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

/// The one identity that a certificate is for, as far as links go.
pub fn identity(names: &[String]) -> Option<Name> {
    let mut ids = names.iter().filter(|name| name.parse::<SpiffeId>().is_ok());
    let (id, None) = (ids.next()?, ids.next()) else { return None };
    Name::of_certificate(id)
}

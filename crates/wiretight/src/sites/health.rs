//! Remembers across restarts since when each site has served with a valid certificate. The HSTS duration grows with
//! that time, and a restart must not reset it. The time while the node was stopped does not count.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wiretight_proxy::clock::now;
use wiretight_proxy::edge::settings::SiteName;
use wiretight_proxy::edge::{Edge, EdgeStatus};

use crate::private_dir::{FileError, PrivateDir};

const FILE: &str = "sites.json";
const MAX_FILE: usize = 4 << 20;
/// How often the state is saved; a killed process loses at most this much.
const EVERY: Duration = Duration::from_secs(300);

#[derive(Serialize, Deserialize)]
struct Kept {
    /// When this was written, in seconds since 1970.
    at: u64,
    /// Since when each site has been healthy, by its first name.
    healthy_since: BTreeMap<String, u64>,
}

/// Loads the state of an earlier run. It is discarded if it cannot be read or was written by a clock that was ahead;
/// HSTS durations then start over.
pub(crate) fn load(dir: &PrivateDir) -> BTreeMap<SiteName, u64> {
    let bytes = match dir.read(FILE, MAX_FILE) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return BTreeMap::new(),
        Err(error) => {
            tracing::warn!(%error, "cannot read the HSTS state of the sites: HSTS durations start over");
            return BTreeMap::new();
        }
    };
    let kept = serde_json::from_slice::<Kept>(&bytes);
    let Ok(kept) = kept.inspect_err(|error| {
        tracing::warn!(file = FILE, %error, "invalid HSTS state of the sites: HSTS durations start over");
    }) else {
        return BTreeMap::new();
    };
    since_now(kept, now())
}

fn since_now(kept: Kept, now: u64) -> BTreeMap<SiteName, u64> {
    let Some(away) = now.checked_sub(kept.at) else { return BTreeMap::new() };
    let good = kept.healthy_since.into_iter().filter(|(_, since)| *since <= kept.at);
    good.filter_map(|(name, since)| Some((name.parse().ok()?, since + away))).collect()
}

/// Saves the current state.
pub(crate) fn save(dir: &PrivateDir, status: &EdgeStatus) -> Result<(), FileError> {
    if status.sites.is_empty() {
        return Ok(());
    }
    let sites = status.sites.iter();
    let healthy_since =
        sites.filter_map(|s| Some((s.names.first()?.clone(), s.healthy_since?))).collect();
    let kept = Kept { at: now(), healthy_since };
    dir.write(FILE, &serde_json::to_vec(&kept).unwrap_or_default())
}

/// Saves the state periodically.
pub(crate) async fn keep(edge: Arc<Edge>, dir: PrivateDir) {
    let dir = Arc::new(dir);
    loop {
        tokio::time::sleep(EVERY).await;
        let (dir, status) = (dir.clone(), edge.status());
        let saved = tokio::task::spawn_blocking(move || save(&dir, &status)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(%error, "cannot save the HSTS state of the sites");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_while_stopped_does_not_count_and_state_from_the_future_is_discarded() {
        let kept = |at, since| Kept { at, healthy_since: [("a.example".into(), since)].into() };
        let name: SiteName = "a.example".parse().unwrap();
        assert_eq!(since_now(kept(1000, 400), 1000)[&name], 400);
        // Stopped for an hour: still healthy for 600 s.
        assert_eq!(since_now(kept(1000, 400), 4600)[&name], 4000);
        assert!(since_now(kept(1000, 400), 999).is_empty());
        assert!(since_now(kept(1000, 1001), 1000).is_empty());
    }
}

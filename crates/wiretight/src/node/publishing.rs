//! Keeps the folder of `[publish]` up to date: after each hour that was logged, and when the section was changed. Before the
//! first hour is logged, it shows what machines report, and is written each minute.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::admin::api::PublishStatus;
use crate::authority::AuthorityHandle;
use crate::config::{Config, Publish};
use crate::logging::chain;
use crate::proof::publish::folder::{self, FolderError};
use crate::proof::publish::{Folder, publish};

/// How often it is checked whether there is something new.
const LOOK: Duration = Duration::from_secs(5);
/// The pause after a failure.
const RETRY: Duration = Duration::from_secs(60);
/// Without a new hour, the folder is still published this often, so that its age shows whether the authority runs.
const AGAIN: Duration = Duration::from_secs(3600);
/// How often before the first hour is logged.
const BEFORE: Duration = Duration::from_secs(60);

/// The state of the folder, and the task that writes it.
#[derive(Default)]
pub(crate) struct Publishing {
    status: Mutex<Option<PublishStatus>>,
}

/// What a folder was made for. Without a logged hour, also whether machines have reported traffic: what they report first is
/// shown at once.
#[derive(PartialEq)]
struct Made {
    chosen: Publish,
    logged_until: Option<u64>,
    has_rows: bool,
}

impl Publishing {
    /// `None` without `[publish] dir`.
    pub(crate) fn status(&self) -> Option<PublishStatus> {
        self.status.lock().clone()
    }

    pub(super) async fn run(
        self: Arc<Self>,
        authority: AuthorityHandle,
        config: Arc<ArcSwap<Config>>,
    ) {
        let mut made: Option<(Made, Instant)> = None;
        let mut not_before = Instant::now();
        loop {
            let chosen = config.load().publish.clone().filter(|chosen| chosen.dir.is_some());
            match (&chosen, chosen.as_ref().and_then(|chosen| chosen.dir.as_deref())) {
                (Some(chosen), Some(dir)) => {
                    let logged_until = authority.claims_status().logged_until;
                    let has_rows = logged_until.is_none() && has_rows(&authority);
                    let wanted = Made { chosen: chosen.clone(), logged_until, has_rows };
                    let again = if logged_until.is_some() { AGAIN } else { BEFORE };
                    let due = made
                        .as_ref()
                        .is_none_or(|(last, at)| *last != wanted || at.elapsed() >= again);
                    if due && not_before <= Instant::now() {
                        let written = write(&authority, chosen, dir).await;
                        match &written {
                            Ok(_) => made = Some((wanted, Instant::now())),
                            Err(_) => not_before = Instant::now() + RETRY,
                        }
                        self.note(dir, written);
                    }
                }
                _ => *self.status.lock() = None,
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn note(&self, dir: &Path, written: Result<Folder, String>) {
        let mut status = self.status.lock();
        let before = status.take().filter(|before| before.dir == dir);
        let mut now = before.unwrap_or_else(|| PublishStatus::new(dir));
        match written {
            Ok(folder) => {
                tracing::info!(dir = %dir.display(), index = folder.index, "published");
                now.published_at = Some(folder.at);
                (now.index, now.bytes) = (folder.index, folder.bytes());
                now.problem = None;
            }
            Err(problem) => {
                if now.problem.as_ref() != Some(&problem) {
                    tracing::error!(dir = %dir.display(), "cannot publish; retrying: {problem}");
                }
                now.problem = Some(problem);
            }
        }
        *status = Some(now);
    }
}

/// Whether a machine has reported a connection.
fn has_rows(authority: &AuthorityHandle) -> bool {
    let reports = authority.reports();
    reports.values().filter_map(|known| known.report.as_ref()).any(|r| !r.rows.good.is_empty())
}

async fn write(
    authority: &AuthorityHandle,
    chosen: &Publish,
    dir: &Path,
) -> Result<Folder, String> {
    // Before it is logged that the folder was published.
    let to = dir.to_owned();
    blocking(move || folder::check(&to)).await?;
    let made = publish(authority, chosen).await.map_err(|e| chain(&e))?;
    let (files, to) = (made.files.clone(), dir.to_owned());
    blocking(move || folder::write(&to, &files)).await?;
    Ok(made)
}

async fn blocking(
    work: impl FnOnce() -> Result<(), FolderError> + Send + 'static,
) -> Result<(), String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| e.to_string())?.map_err(|e| chain(&e))
}

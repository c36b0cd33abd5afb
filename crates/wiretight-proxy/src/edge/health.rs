//! Active health: a site's backends are asked for a path every few seconds, whether or not anybody else asks
//! them for anything. One that fails is not sent requests as long as another does not.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::settings::{SiteName, Upstream};
use super::sites::Site;
use super::template::Template;
use super::workshop::Workshop;

/// Between two questions, and how long an answer may take.
const EVERY: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(2);
/// Failures in a row after which a backend is down, and answers after which it is up again.
const DOWN_AFTER: u32 = 2;
const UP_AFTER: u32 = 2;

/// What the last answers were like.
#[derive(Clone, Copy, Default)]
struct Record {
    down: bool,
    /// Answers in a row that say the opposite.
    against: u32,
}

impl Record {
    /// Whether that makes a difference.
    fn note(&mut self, good: bool) -> bool {
        if good != self.down {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let changed = self.against >= if self.down { UP_AFTER } else { DOWN_AFTER };
        if changed {
            *self = Record { down: !self.down, against: 0 };
        }
        changed
    }
}

type Records = Rc<RefCell<HashMap<(SiteName, Upstream), Record>>>;

/// Asks, as long as the worker runs.
pub(crate) async fn watch(workshop: Rc<Workshop>) {
    let records = Records::default();
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tick.tick().await;
        let sites = workshop.sites.load_full();
        let asked: Vec<_> = sites.all().filter(|s| s.settings.health.is_some()).collect();
        records.borrow_mut().retain(|(title, upstream), _| {
            let keep = asked.iter().any(|s| s.is(title) && s.settings.to.contains(upstream));
            if !keep && let Some(site) = sites.all().find(|s| s.is(title)) {
                // Nobody would find it up again.
                site.balancer.set_down(upstream, false);
            }
            keep
        });
        for site in asked {
            for upstream in &site.settings.to {
                let (workshop, records) = (workshop.clone(), records.clone());
                let (site, upstream) = (site.clone(), upstream.clone());
                spawn_local(async move {
                    let answer = timeout(PATIENCE, ask(&workshop, &site, &upstream)).await;
                    let error = match answer {
                        Ok(Ok(status)) if status.is_success() || status.is_redirection() => None,
                        Ok(Ok(status)) => Some(format!("it answered {status}")),
                        Ok(Err(error)) => Some(error),
                        Err(_) => Some(format!("no answer within {PATIENCE:?}")),
                    };
                    note(&records, &site, &upstream, error);
                });
            }
        }
    }
}

fn note(records: &Records, site: &Site, upstream: &Upstream, error: Option<String>) {
    let Some(title) = site.settings.names.first() else { return };
    let mut records = records.borrow_mut();
    let record = records.entry((title.clone(), upstream.clone())).or_default();
    let changed = record.note(error.is_none());
    site.balancer.set_down(upstream, record.down);
    if !changed {
        return;
    }
    match error {
        Some(error) => {
            tracing::warn!(site = %title, backend = %upstream, error, "a backend is down")
        }
        None => tracing::info!(site = %title, backend = %upstream, "a backend is up again"),
    }
}

async fn ask(
    workshop: &Workshop,
    site: &Arc<Site>,
    upstream: &Upstream,
) -> Result<StatusCode, String> {
    let Some(path) = site.settings.health.clone() else { return Ok(StatusCode::OK) };
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let sender = workshop.pools.connect(site, upstream, nobody).await;
    let mut sender = sender.map_err(|e| e.to_string())?;
    let request = Template::question(path, site.settings.title());
    let answer = sender.send(request.empty(upstream)).await;
    answer.map(|a| a.status()).map_err(|e| e.error().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_answer_changes_nothing_and_two_do() {
        let mut record = Record::default();
        let noted = [false, true, false, false, false, true, false, true, true, true];
        let changes: Vec<_> = noted.into_iter().map(|good| record.note(good)).collect();
        let at = |i: usize| changes[i];
        // Down at the second failure in a row, up at the second answer in a row.
        assert_eq!((0..noted.len()).filter(|i| at(*i)).collect::<Vec<_>>(), [3, 8]);
        assert!(!record.down);
    }
}

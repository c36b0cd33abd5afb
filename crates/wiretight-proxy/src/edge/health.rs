//! Active health checks: a path of each of a site's backends is requested every few seconds, regardless of traffic. A
//! backend that fails gets no requests as long as another one works.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::context::WorkerContext;
use super::settings::{SiteName, Upstream};
use super::sites::Site;
use super::template::Template;

/// The interval of checks, and the time limit for a response.
const EVERY: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(2);
/// Consecutive failures after which a backend is down, and consecutive successes after which it is up again.
const DOWN_AFTER: u32 = 2;
const UP_AFTER: u32 = 2;

/// The state of one backend.
#[derive(Clone, Copy, Default)]
struct Record {
    down: bool,
    /// Consecutive results that contradict the state.
    against: u32,
}

impl Record {
    /// Returns whether the state changed.
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

/// Runs checks for the lifetime of the worker.
pub(crate) async fn watch(context: Rc<WorkerContext>) {
    let records = Records::default();
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tick.tick().await;
        let sites = context.sites.load_full();
        let asked: Vec<_> = sites.all().filter(|s| s.settings.health.is_some()).collect();
        records.borrow_mut().retain(|(title, upstream), _| {
            let keep = asked.iter().any(|s| s.is(title) && s.settings.to.contains(upstream));
            if !keep && let Some(site) = sites.all().find(|s| s.is(title)) {
                // Without checks it would stay down forever.
                site.balancer.set_down(upstream, false);
            }
            keep
        });
        for site in asked {
            for upstream in &site.settings.to {
                let (context, records) = (context.clone(), records.clone());
                let (site, upstream) = (site.clone(), upstream.clone());
                spawn_local(async move {
                    let answer = timeout(PATIENCE, ask(&context, &site, &upstream)).await;
                    let error = match answer {
                        Ok(Ok(status)) if status.is_success() || status.is_redirection() => None,
                        Ok(Ok(status)) => Some(format!("it responded with {status}")),
                        Ok(Err(error)) => Some(error),
                        Err(_) => Some(format!("no response within {PATIENCE:?}")),
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
            tracing::warn!(site = %title, backend = %upstream, error, "backend is down")
        }
        None => tracing::info!(site = %title, backend = %upstream, "backend is up again"),
    }
}

async fn ask(
    context: &WorkerContext,
    site: &Arc<Site>,
    upstream: &Upstream,
) -> Result<StatusCode, String> {
    let Some(path) = site.settings.health.clone() else { return Ok(StatusCode::OK) };
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let sender = context.pools.connect(site, upstream, nobody).await;
    let mut sender = sender.map_err(|e| e.to_string())?;
    let request = Template::question(path, site.settings.title());
    let answer = sender.send(request.empty(upstream)).await;
    answer.map(|a| a.status()).map_err(|e| e.error().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_consecutive_results_change_the_state() {
        let mut record = Record::default();
        let noted = [false, true, false, false, false, true, false, true, true, true];
        let changes: Vec<_> = noted.into_iter().map(|good| record.note(good)).collect();
        let at = |i: usize| changes[i];
        // Down at the second consecutive failure, up at the second consecutive success.
        assert_eq!((0..noted.len()).filter(|i| at(*i)).collect::<Vec<_>>(), [3, 8]);
        assert!(!record.down);
    }
}

//! Where alerts go: the log of the process, and a webhook.

use std::collections::HashMap;
use std::time::Duration;

use super::{Alert, AlertKind};
use crate::daemon::chain;
use crate::log::http::{Client, Limit, Url};

/// How often the webhook is tried for an alert.
const TRIES: u32 = 4;
/// Before the second try; doubled before each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LIMIT: Limit = Limit { time: Duration::from_secs(10), body: 64 * 1024 };
/// What goes on being wrong is told again after this, in seconds.
const AGAIN: u64 = 3600;
/// Alerts that are remembered so as not to be told twice.
const REMEMBERED: usize = 10_000;

/// Tells of alerts.
pub struct Alarm {
    webhook: Option<(Client, Url)>,
    told: HashMap<(AlertKind, Option<u64>, Option<String>), u64>,
}

impl Alarm {
    /// Tells the log, and the webhook if there is one.
    pub fn new(webhook: Option<(Client, Url)>) -> Alarm {
        Alarm { webhook, told: HashMap::new() }
    }

    /// Tells of an alert, unless it was told within the hour.
    pub async fn tell(&mut self, alert: Alert) {
        let which = (alert.kind, alert.index, alert.name.clone());
        let recent = |at: &u64| alert.time.saturating_sub(*at) < AGAIN;
        if self.told.get(&which).is_some_and(recent) {
            return;
        }
        if self.told.len() >= REMEMBERED {
            self.told.retain(|_, at| recent(at));
        }
        if self.told.len() < REMEMBERED {
            self.told.insert(which, alert.time);
        }
        let Alert { kind, log, detail, evidence, .. } = &alert;
        let evidence = evidence.as_ref().map(|path| path.display().to_string());
        tracing::error!(alert = kind.as_str(), log, evidence, "{detail}");
        if let Some((client, url)) = &self.webhook {
            post(client, url, &alert).await;
        }
    }
}

async fn post(client: &Client, url: &Url, alert: &Alert) {
    let body = match serde_json::to_vec(alert) {
        Ok(body) => body,
        Err(error) => return tracing::error!(%error, "an alert cannot be written as JSON"),
    };
    let mut pause = FIRST_PAUSE;
    for tried in 1..=TRIES {
        let problem = match client.post(url, "application/json", body.clone(), LIMIT).await {
            Ok(answer) if (200..300).contains(&answer.status) => return,
            Ok(answer) => format!("status {}", answer.status),
            Err(error) => chain(&error),
        };
        if tried == TRIES {
            tracing::error!(
                webhook = url.host(),
                problem,
                "the webhook did not take an alert: it stands in this log alone"
            );
            return;
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

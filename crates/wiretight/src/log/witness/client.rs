//! The client for [`super::serve`]: a log's connection to a witness by HTTP.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use wiretight_tlog::{Policy, SignedCheckpoint};

use super::origin_hash;
use crate::log::cosigning::{Answer, Witness};
use crate::logging::chain;
use crate::web::client::{Client, Limit, Url};

/// Post-quantum cosignatures have a few kilobytes each.
const LIMIT: Limit = Limit { time: Duration::from_secs(10), body: 64 * 1024 };

/// A witness at a submission prefix.
pub struct HttpWitness {
    client: Client,
    prefix: Url,
    url: Url,
}

impl HttpWitness {
    /// `prefix` is the witness's submission prefix.
    pub fn new(client: Client, prefix: &Url) -> HttpWitness {
        HttpWitness { client, url: prefix.join("add-checkpoint"), prefix: prefix.clone() }
    }
}

#[async_trait]
impl Witness for HttpWitness {
    async fn add_checkpoint(&self, body: String) -> Result<Answer, String> {
        let answer = self.client.post(&self.url, "text/plain; charset=utf-8", body, LIMIT).await;
        let answer = answer.map_err(|e| chain(&e))?;
        let text = String::from_utf8_lossy(&answer.body);
        let is_size = answer.content_type.as_deref() == Some("text/x.tlog.size");
        match (answer.status, text.trim_end().parse()) {
            (200, _) => Ok(Answer::Cosigned(text.into_owned())),
            (409, Ok(size)) if is_size => Ok(Answer::Holds(size)),
            (422, _) => Ok(Answer::Inconsistent(said(&self.url, answer.status, &text))),
            (status, _) => Ok(Answer::Refused(said(&self.url, status, &text))),
        }
    }

    async fn latest(&self, origin: &str) -> Option<SignedCheckpoint> {
        let url = self.prefix.join(&format!("{}/checkpoint", origin_hash(origin)));
        let answer = self.client.get(&url, LIMIT).await.ok().filter(|a| a.status == 200)?;
        SignedCheckpoint::parse(std::str::from_utf8(&answer.body).ok()?).ok()
    }
}

fn said(url: &Url, status: u16, text: &str) -> String {
    let said: String = text.trim().chars().filter(|c| !c.is_control()).take(200).collect();
    format!("{url} responded with status {status}: {said}")
}

/// Why a witness of a policy cannot be asked.
#[derive(Debug, thiserror::Error)]
#[error("witness {name}: {why}")]
pub struct NoWay {
    pub name: String,
    pub why: String,
}

/// A connection to each witness of a policy, in its order.
pub fn ways(policy: &Policy, client: &Client) -> Result<Vec<Arc<dyn Witness>>, NoWay> {
    let way = |witness: &wiretight_tlog::policy::Witness| {
        let refused = |why| NoWay { name: witness.name.clone(), why };
        let url = witness.url.as_ref();
        let url = url
            .ok_or_else(|| refused("it has no URL. Add the URL at the end of the line.".into()))?;
        let url = Url::parse(url).map_err(|e| refused(e.to_string()))?;
        Ok(Arc::new(HttpWitness::new(client.clone(), &url)) as Arc<dyn Witness>)
    };
    policy.witnesses().iter().map(way).collect()
}

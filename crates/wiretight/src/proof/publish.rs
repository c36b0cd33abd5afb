//! The public folder: static files that any web server or bucket can serve, and that a reader can check without asking
//! anybody. See docs/proof-page.md.
//!
//! `facts.json` and the page are made from the periods in `log.json`, which has a proof for each. `manifest` has the
//! hashes of all files, and its own hash is an entry of the log: `publication.json` proves it.

pub mod folder;

use serde::Serialize;
use wiretight_keys::claims::{DAY, HOUR};
use wiretight_keys::token::hex;
use wiretight_proxy::clock::now;
use wiretight_tlog::{Hash, Policy, SignedCheckpoint};

use super::facts::{Facts, LoggedPeriod};
use super::log_part::{LogPart, body};
use super::public::{PublicFacts, SCHEMA, SCHEMA_FILE};
use super::{collect, page};
use crate::authority::{AuthorityError, AuthorityHandle, Earlier, Published};
use crate::config::Publish;
use crate::log::prove::Proven;
use folder::{MANIFEST, PublicFile};

/// The page that checks the folder in a browser.
pub const VERIFIER: &str = include_str!("../../web/verify.html");
/// The most bytes of periods in `log.json`, so that the whole folder stays below 5 MB.
const MAX_PERIODS: usize = 4_000_000;
/// How long days are shown.
const DAYS: u64 = 366 * DAY;
/// The version of the formats of the other files.
const VERSION: u8 = 1;

/// A folder, not written yet.
#[derive(Debug, Clone)]
pub struct Folder {
    /// When it was made, in seconds since 1970.
    pub at: u64,
    /// The index of its publication in the log; `None`: a preview.
    pub index: Option<u64>,
    /// Sorted by name.
    pub files: Vec<PublicFile>,
}

impl Folder {
    /// The text of a file.
    pub fn file(&self, name: &str) -> Option<&str> {
        self.files.iter().find(|file| file.name == name).map(|file| file.text.as_str())
    }

    /// The complete folder, with the proof that it was published.
    pub fn with(mut self, published: &Published) -> Folder {
        self.index = Some(published.proof.index);
        let file = PublicationFile {
            version: VERSION,
            index: published.proof.index,
            entry: body(&published.publication.entry()),
            checkpoint: published.proof.checkpoint.to_string(),
            proof: texts(&published.proof.hashes),
            consistency: texts(&published.consistency),
        };
        self.files.push(file_of("publication.json", &file));
        self.files.sort_by(|a, b| a.name.cmp(&b.name));
        self
    }

    /// The size of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.text.len() as u64).sum()
    }
}

#[derive(Serialize)]
struct ConsistencyFile {
    version: u8,
    from: Vec<Step>,
}

#[derive(Serialize)]
struct Step {
    size: u64,
    root: String,
    proof: Vec<String>,
}

#[derive(Serialize)]
struct PublicationFile {
    version: u8,
    index: u64,
    entry: String,
    checkpoint: String,
    proof: Vec<String>,
    consistency: Vec<String>,
}

/// Makes the folder, and logs that it is published.
///
/// # Errors
/// The log accepts no entries now, for example because witnesses are down; or the store failed.
pub async fn publish(
    authority: &AuthorityHandle,
    chosen: &Publish,
) -> Result<Folder, AuthorityError> {
    let (folder, signed) = prepare(authority, chosen).await?;
    let manifest = folder.file(MANIFEST).unwrap_or_default().to_owned();
    let from = signed.unverified();
    // A visitor who keeps this checkpoint finds it again next time, also if this publication fails half-way.
    authority.remember(Earlier { at: folder.at, size: from.size, root: from.root }).await?;
    let published = authority.publish(manifest.as_bytes(), from.size).await?;
    Ok(folder.with(&published))
}

/// What [`publish`] would publish now. Nothing is logged, so there is no `publication.json`.
pub async fn preview(
    authority: &AuthorityHandle,
    chosen: &Publish,
) -> Result<Folder, AuthorityError> {
    Ok(prepare(authority, chosen).await?.0)
}

async fn prepare(
    authority: &AuthorityHandle,
    chosen: &Publish,
) -> Result<(Folder, SignedCheckpoint), AuthorityError> {
    let at = now();
    let facts = collect(authority, at.saturating_sub(DAYS), at).await?;
    let earlier = authority.earlier().await?;
    let periods = selected(&facts.periods, facts.ca.log.size);
    let indexes: Vec<u64> = periods.iter().map(|logged| logged.index).collect();
    let sizes: Vec<u64> = earlier.iter().map(|earlier| earlier.size).collect();
    let proven = authority.prove(&indexes, &sizes).await?;
    let policy = authority.log().policy();
    let folder = files(&facts, &periods, &proven, (&policy, &earlier), chosen);
    Ok((folder, proven.checkpoint))
}

/// The files without `publication.json`. `proven` has the proofs of `periods` and of `earlier`, in their order.
pub fn files(
    facts: &Facts,
    periods: &[LoggedPeriod],
    proven: &Proven,
    (policy, earlier): (&Policy, &[Earlier]),
    chosen: &Publish,
) -> Folder {
    let public = PublicFacts::new(facts, periods, (&proven.checkpoint, policy), chosen);
    let log = LogPart::new(periods, proven, &policy.clone().without_urls());
    let step = |(earlier, proof): (&Earlier, &Vec<Hash>)| Step {
        size: earlier.size,
        root: earlier.root.to_string(),
        proof: texts(proof),
    };
    let from = earlier.iter().zip(&proven.consistency).map(step).collect();
    let plain = |name: &str, text: &str| PublicFile { name: name.into(), text: text.into() };
    let mut files = vec![
        file_of("consistency.json", &ConsistencyFile { version: VERSION, from }),
        file_of("facts.json", &public),
        plain(SCHEMA_FILE, SCHEMA),
        plain("index.html", &page::render(&public, periods).into_string()),
        file_of("log.json", &log),
        plain("verify.html", VERIFIER),
    ];
    let line = |file: &PublicFile| {
        format!("{}  {}\n", hex(Hash::of(file.text.as_bytes()).as_bytes()), file.name)
    };
    let manifest: String = files.iter().map(line).collect();
    files.insert(5, plain(MANIFEST, &manifest));
    Folder { at: facts.at, index: None, files }
}

/// The periods that are shown, by start, then length: all, or, if that would be too much, the hours of the newest day,
/// then days, then hours, the newest first.
pub fn selected(all: &[LoggedPeriod], size: u64) -> Vec<LoggedPeriod> {
    let newest = all.iter().map(|l| &l.period).filter(|p| p.length == HOUR).map(|p| p.start).max();
    let new = newest.unwrap_or(0).saturating_sub(DAY - HOUR);
    let mut order: Vec<&LoggedPeriod> = all.iter().collect();
    let rank = |logged: &LoggedPeriod| match logged.period.length {
        DAY => 1,
        _ if logged.period.start >= new => 0,
        _ => 2,
    };
    order.sort_by_key(|logged| (rank(logged), u64::MAX - logged.period.start));
    // A hash in base64, quotes and a comma; as many as the tree is high.
    let proof = 47 * usize::try_from(u64::BITS - size.leading_zeros()).unwrap_or(64) + 40;
    let mut bytes = 0;
    let fits = |logged: &&LoggedPeriod| {
        let entry = serde_json::to_string(&body(&logged.period.entry())).unwrap_or_default();
        bytes += entry.len() + proof;
        bytes <= MAX_PERIODS
    };
    let mut chosen: Vec<LoggedPeriod> = order.into_iter().take_while(fits).cloned().collect();
    chosen.sort_by_key(|logged| (logged.period.start, logged.period.length));
    chosen
}

fn texts(hashes: &[Hash]) -> Vec<String> {
    hashes.iter().map(Hash::to_string).collect()
}

fn file_of(name: &str, value: &impl Serialize) -> PublicFile {
    let text = serde_json::to_string(value).expect("numbers and texts are JSON");
    PublicFile { name: name.into(), text }
}

//! `wiretight verify`

use std::fmt::Write;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use wiretight_keys::{Logged, NotLogged, x509};
use wiretight_proxy::clock::now;
use wiretight_scan::report::clean;
use wiretight_tlog::note::MAX_NOTE;
use wiretight_tlog::policy::MAX_POLICY;
use wiretight_tlog::tile::MAX_ENTRY;
use wiretight_tlog::{Hash, Policy, Proof, SignedCheckpoint, Witnessed};

use super::reach::Reach;
use super::verify_release::VerifyRelease;
use super::{Output, term};
use crate::log::compare::{self, Compared, Seen, compare};
use crate::log::mirror::{MirrorError, Mirrored, mirror};
use crate::log::reader::{ReadError, Reader};
use crate::logging::chain;
use crate::proof::audit::archive::{Damage, MAX_ARCHIVE, is_archive};
use crate::proof::audit::check::{self, Checked};
use crate::web::client::{Client, Url};

/// The largest file that is read, in bytes. It does not apply to the files of a log's directory.
const MAX_FILE: usize = 2 * MAX_NOTE;
/// Entries that are held in memory at a time.
const CHUNK: u64 = 4096;
/// Retries, and the pause between them, when a log shows fewer entries than a witness saw.
const MORE_TRIES: u32 = 3;
const MORE_PAUSE: Duration = Duration::from_secs(1);
/// A log must show a tree within this time after a witness cosigned it.
const PUBLISHED: Duration = Duration::from_secs(60);

/// Verify that something is in a transparency log that witnesses have cosigned
///
/// A FILE is a certificate (PEM) that carries its proof, a tlog-proof, a checkpoint, an archive written by `wiretight
/// audit export`, or a directory with a whole log. Files are verified offline. For the URL of a log, the whole log is read, and each witness in the policy that has
/// a URL is asked which checkpoint it saw. The policy names the trusted logs, and the witnesses that must have
/// cosigned.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "\
Examples:
  wiretight verify release ./wiretight --policy release.policy
  wiretight verify db.pem --policy policy
  wiretight verify release.tlog-proof --policy policy --entry release.json
  wiretight verify /mnt/copy-of-the-log --policy policy --json
  wiretight verify https://log.example.org --policy policy --mirror /mnt/copy-of-the-log
  wiretight verify audit-2026-11.tar --policy policy

Exit status: 0 all verified; 1 at least one refused; 2 wrong usage, or an unreadable file or URL; 3 nothing refused, but
an archive lacks totals of its period, or was only compared with its own policy.")]
pub(super) struct Verify {
    #[command(subcommand)]
    release: Option<VerifyRelease>,
    /// What to verify
    #[arg(required = true, value_name = "FILE|URL", value_hint = clap::ValueHint::AnyPath)]
    files: Vec<PathBuf>,
    /// Keep a copy of the log in this directory, and add new entries to it. For one URL or directory only. Fails if the
    /// log has forked from the copy
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    mirror: Option<PathBuf>,
    #[command(flatten)]
    reach: Reach,
    /// The policy (C2SP tlog-policy). Without it, an archive is compared with its own policy, which proves nothing to you
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    policy: Option<PathBuf>,
    /// The entry that a tlog-proof proves, byte for byte
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    entry: Option<PathBuf>,
    /// Refuse a checkpoint that the witnesses cosigned longer ago than this
    #[arg(long, value_name = "TIME", value_parser = term::duration)]
    max_age: Option<Duration>,
    #[command(flatten)]
    out: Output,
}

#[derive(Serialize)]
struct Report {
    file: String,
    /// certificate, proof, checkpoint, log or archive.
    kind: &'static str,
    good: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    verified: Vec<String>,
    not_verified: Vec<String>,
    /// Where an archive was changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    damaged: Vec<Damage>,
    /// What an archive should have, but lacks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<LogReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
}

#[derive(Serialize)]
struct LogReport {
    origin: String,
    size: u64,
    root: String,
    quorum: String,
    /// When the quorum had cosigned it (seconds since 1970).
    time: Option<u64>,
    witnesses: Vec<Cosigned>,
}

#[derive(Serialize)]
struct Cosigned {
    name: String,
    key: String,
    time: u64,
}

impl Verify {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        if let Some(release) = self.release {
            return release.run();
        }
        match self.reports() {
            Ok(reports) => {
                let good = reports.iter().all(|report| report.good);
                self.out.print(&reports, |reports| reports.iter().map(Report::text).collect())?;
                let whole = reports.iter().all(|r| r.missing.is_empty());
                Ok(match (good, whole) {
                    (false, _) => ExitCode::from(1),
                    (true, false) => ExitCode::from(3),
                    (true, true) => ExitCode::SUCCESS,
                })
            }
            Err(error) => {
                eprintln!("wiretight: {error:#}");
                Ok(ExitCode::from(2))
            }
        }
    }

    fn reports(&self) -> anyhow::Result<Vec<Report>> {
        let policy = self.policy.as_deref().map(policy).transpose()?;
        let entry = match &self.entry {
            Some(path) => Some(read(path, MAX_ENTRY)?),
            None => None,
        };
        let is_log = |path: &PathBuf| path.is_dir() || url(path).is_some();
        anyhow::ensure!(
            self.mirror.is_none() || self.files.len() == 1 && self.files.iter().all(is_log),
            "--mirror keeps a copy of one log: give exactly one URL or directory"
        );
        let mut reports = Vec::new();
        for path in &self.files {
            reports.extend(match (archive_at(path)?, &policy) {
                (true, policy) => vec![self.archive(path, policy.as_ref())?],
                (false, Some(policy)) => self.verify(path, policy, entry.as_deref())?,
                (false, None) => anyhow::bail!(
                    "--policy FILE is required: it names the logs and witnesses that you trust"
                ),
            });
        }
        Ok(reports)
    }

    fn verify(
        &self,
        path: &Path,
        policy: &Policy,
        entry: Option<&[u8]>,
    ) -> anyhow::Result<Vec<Report>> {
        if let Some(url) = url(path) {
            let client = Client::new(&self.reach.credentials()?)?;
            let reader = Reader::http(client, Url::parse(url)?);
            return Ok(vec![super::block_on(self.served(path, reader, policy))?]);
        }
        if path.is_dir() {
            let found = super::block_on(self.log(path, &Reader::directory(path), policy))?;
            return Ok(vec![found.report]);
        }
        let bytes = read(path, MAX_FILE)?;
        let text = String::from_utf8_lossy(&bytes);
        if text.contains("-----BEGIN CERTIFICATE-----") {
            return self.certificates(path, policy, &bytes);
        }
        if text.starts_with("c2sp.org/tlog-proof@") {
            return Ok(vec![self.proof(path, policy, &text, entry)]);
        }
        Ok(vec![self.checkpoint(path, policy, &text)])
    }

    fn archive(&self, path: &Path, policy: Option<&Policy>) -> anyhow::Result<Report> {
        let mut report = Report::new(path, "archive");
        let bytes = read(path, MAX_ARCHIVE)?;
        let opened = check::open(&bytes);
        let own = policy.is_none().then(|| opened.own_policy()).flatten();
        let believed =
            opened.checkpoint().cloned().filter(|signed| match policy.or(own.as_ref()) {
                Some(policy) => report.believe(policy, signed, self.max_age),
                None => false,
            });
        let Checked { damage, verified, word, missing } =
            opened.check(believed.as_ref().map(SignedCheckpoint::unverified));
        report.good = believed.is_some() && damage.is_empty();
        if policy.is_none() {
            // Only consistent with itself.
            report.not_verified.append(&mut report.verified);
            report.not_verified.extend(verified);
            report.missing.push("your policy: the archive was compared with its own, which whoever made it chose. Use --policy".into());
        } else {
            report.verified.extend(verified);
        }
        report.not_verified.extend(word);
        report.missing.extend(missing);
        report.damaged = damage;
        Ok(report)
    }

    fn certificates(
        &self,
        path: &Path,
        policy: &Policy,
        pem: &[u8],
    ) -> anyhow::Result<Vec<Report>> {
        let chain =
            x509::from_pem(pem).with_context(|| format!("{} cannot be read", path.display()))?;
        let several = chain.len() > 1;
        let one = |(n, certificate)| {
            let mut report = Report::new(path, "certificate");
            if several {
                report.file.push_str(&format!(" (certificate {} of {})", n + 1, chain.len()));
            }
            report.not_verified.push(
                "the certificate's signature, revocation and validity period; the TLS peer verifies these".into(),
            );
            let logged = match Logged::from_certificate(certificate) {
                Ok(logged) => logged,
                Err(NotLogged::NoProof) if n > 0 => {
                    report.refused = Some(
                        "it carries no proof that it is in a log. If it is a root, remove it from the file: verifiers already have it.".into(),
                    );
                    return report;
                }
                Err(why) => return report.refuse(&why),
            };
            report.index = Some(logged.proof.index);
            if !report.believe(policy, &logged.proof.checkpoint, self.max_age) {
                return report;
            }
            let verified = logged.proof.verify(policy, logged.leaf).map_err(NotLogged::from);
            match verified.and_then(|witnessed| logged.is_timely(&witnessed)) {
                Ok(()) => {
                    report.verified.push(format!(
                        "the certificate without its signature is entry {} of the log",
                        logged.proof.index
                    ));
                    report
                }
                Err(why) => report.refuse(&why),
            }
        };
        Ok(chain.iter().enumerate().map(one).collect())
    }

    fn proof(&self, path: &Path, policy: &Policy, text: &str, entry: Option<&[u8]>) -> Report {
        let mut report = Report::new(path, "proof");
        let proof = match Proof::parse(text) {
            Ok(proof) => proof,
            Err(why) => return report.refuse(&why),
        };
        report.index = Some(proof.index);
        if !report.believe(policy, &proof.checkpoint, self.max_age) {
            return report;
        }
        if proof.extra.is_some() {
            report.not_verified.push("the proof's extra data, which is not authenticated".into());
        }
        match entry.map(|entry| proof.verify(policy, Hash::leaf(entry))) {
            None => {
                report
                    .not_verified
                    .push(format!("the content of entry {}: give it with --entry", proof.index));
                report
            }
            Some(Ok(_)) => {
                report
                    .verified
                    .push(format!("the given entry is entry {} of the log", proof.index));
                report
            }
            Some(Err(why)) => report.refuse(&why),
        }
    }

    fn checkpoint(&self, path: &Path, policy: &Policy, text: &str) -> Report {
        let mut report = Report::new(path, "checkpoint");
        match SignedCheckpoint::parse(text) {
            Ok(signed) => {
                if report.believe(policy, &signed, self.max_age) {
                    report.not_verified.push("entries, because a checkpoint contains none".into());
                }
                report
            }
            Err(why) => report.refuse(&why),
        }
    }

    /// Verifies a log at a URL, and compares it with what its witnesses saw.
    async fn served(&self, path: &Path, reader: Reader, policy: &Policy) -> anyhow::Result<Report> {
        let mut found = self.log(path, &reader, policy).await?;
        let Some(signed) = found.signed.take() else { return Ok(found.report) };
        let origin = &signed.unverified().origin;
        let log = policy.logs().iter().find(|log| log.key.name().as_str() == origin);
        let (Some(log), true) = (log, found.report.good) else { return Ok(found.report) };
        let client = Client::new(&self.reach.witnesses()?)?;
        for witness in policy.witnesses() {
            let name = &witness.name;
            let prefix = witness.url.as_deref().map(Url::parse);
            let seen = match &prefix {
                Some(Ok(prefix)) => compare::ask(&client, prefix, witness, &log.key).await,
                Some(Err(why)) => Err(why.to_string()),
                None => Err("the policy has no URL for it".into()),
            };
            match seen {
                Ok(Some(seen)) => self.compared(&mut found.report, name, &seen, &reader).await,
                Ok(None) => found
                    .report
                    .not_verified
                    .push(format!("what the witness {name} saw: it has no checkpoint of this log")),
                Err(why) => {
                    found.report.not_verified.push(format!("what the witness {name} saw: {why}"))
                }
            }
        }
        Ok(found.report)
    }

    /// Compares the log with what a witness saw. A log publishes a tree a little later than its witnesses cosign it.
    async fn compared(&self, report: &mut Report, name: &str, seen: &Seen, reader: &Reader) {
        let size = seen.checkpoint().size;
        let saw = format!("the witness {name} saw {size} entries at {}", moment(seen.time));
        let mut tries = 0;
        let refused = loop {
            let compared = async {
                let signed = reader.latest().await?;
                compare(seen.checkpoint(), &reader.tree(signed.unverified()).await?).await
            };
            match compared.await {
                Ok(Compared::Same) => {
                    return report.verified.push(format!("{saw}: the log shows the same"));
                }
                Ok(Compared::More) if tries < MORE_TRIES => {
                    tries += 1;
                    tokio::time::sleep(MORE_PAUSE).await;
                }
                Ok(Compared::More) if now().saturating_sub(seen.time) < PUBLISHED.as_secs() => {
                    return report.not_verified.push(format!(
                        "{saw}, which the log does not show yet: try again in a minute"
                    ));
                }
                Ok(Compared::More) => {
                    break format!("{saw}, but the log shows fewer: it withholds entries");
                }
                Ok(Compared::Fork) => {
                    break format!(
                        "FORK: {saw}, but the log shows a different history. Save this evidence and publish it:\n{}",
                        seen.signed
                    );
                }
                Err(why) => {
                    break format!("{saw}, but the log could not be compared: {}", chain(&why));
                }
            }
        };
        report.good = false;
        let before = report.refused.take().map(|before| before + "\n  ").unwrap_or_default();
        report.refused = Some(before + &refused);
    }

    async fn log(&self, path: &Path, reader: &Reader, policy: &Policy) -> anyhow::Result<Found> {
        let mut report = Report::new(path, "log");
        let refused = |report: Report, why: ReadError| match why {
            ReadError::Http(why) => Err(why.into()),
            why => Ok(Found { report: report.refuse(&why), signed: None }),
        };
        let signed = match reader.latest().await {
            Ok(signed) => signed,
            Err(why) => return refused(report, why),
        };
        if !report.believe(policy, &signed, self.max_age) {
            return Ok(Found { report, signed: None });
        }
        let tree = match reader.tree(signed.unverified()).await {
            Ok(tree) => tree,
            Err(why) => return refused(report, why),
        };
        if let Some(dir) = &self.mirror {
            match mirror(&tree, &signed, dir).await {
                Ok(Mirrored { kept, fetched }) => report.verified.push(format!(
                    "{} is a copy of the log: it had {kept} entries, {fetched} were added",
                    dir.display()
                )),
                Err(MirrorError::Read(why)) => return refused(report, why),
                Err(why @ MirrorError::Io { .. }) => return Err(why.into()),
                Err(why) => return Ok(Found { report: report.refuse(&why), signed: None }),
            }
        } else {
            let mut at = 0;
            while at < tree.size() {
                let next = tree.size().min(at + CHUNK);
                if let Err(why) = tree.entries(at..next).await {
                    return refused(report, why);
                }
                at = next;
            }
        }
        report.verified.push(format!(
            "all {} entries and all tiles of the tree match the checkpoint",
            tree.size()
        ));
        Ok(Found { report, signed: Some(signed) })
    }
}

/// The report on a log, and its checkpoint if the policy accepts it.
struct Found {
    report: Report,
    signed: Option<SignedCheckpoint>,
}

/// Whether it is an archive of an audit.
fn archive_at(path: &Path) -> anyhow::Result<bool> {
    if url(path).is_some() || path.is_dir() {
        return Ok(false);
    }
    let unreadable = || format!("{} cannot be read", path.display());
    let mut start = Vec::new();
    let file = std::fs::File::open(path).with_context(unreadable)?;
    file.take(512).read_to_end(&mut start).with_context(unreadable)?;
    Ok(is_archive(&path.to_string_lossy(), &start))
}

/// The argument, if it is a URL.
fn url(path: &Path) -> Option<&str> {
    path.to_str().filter(|text| text.starts_with("https://") || text.starts_with("http://"))
}

impl Report {
    fn new(path: &Path, kind: &'static str) -> Report {
        Report {
            file: path.display().to_string(),
            kind,
            good: false,
            refused: None,
            verified: Vec::new(),
            not_verified: Vec::new(),
            damaged: Vec::new(),
            missing: Vec::new(),
            log: None,
            index: None,
        }
    }

    fn refuse(mut self, why: &(dyn std::error::Error + 'static)) -> Report {
        self.good = false;
        self.refused = Some(chain(why));
        self
    }

    /// Whether the policy accepts the checkpoint; adds the result to the report.
    fn believe(
        &mut self,
        policy: &Policy,
        signed: &SignedCheckpoint,
        max_age: Option<Duration>,
    ) -> bool {
        let believed = policy.witnessed(signed).and_then(|witnessed| {
            let allowed = max_age.map_or(u64::MAX, |age| age.as_secs());
            witnessed.fresh(now(), allowed).map(|()| witnessed)
        });
        match believed {
            Ok(witnessed) if max_age.is_some() && witnessed.time().is_none() => {
                self.refused =
                    Some("its age is unknown, because the policy requires no witnesses".into());
                false
            }
            Ok(witnessed) => {
                self.good = true;
                self.tell(policy, signed, &witnessed);
                true
            }
            Err(why) => {
                self.refused = Some(why.to_string());
                false
            }
        }
    }

    fn tell(&mut self, policy: &Policy, signed: &SignedCheckpoint, witnessed: &Witnessed) {
        let checkpoint = witnessed.checkpoint();
        let (origin, size) = (&checkpoint.origin, checkpoint.size);
        self.verified.push(format!("the log {origin} has signed a tree of {size} entries"));
        let cosigned = policy.witnesses().iter().filter_map(|witness| {
            let time = witness.key.cosigned(signed)?;
            Some(Cosigned { name: witness.name.clone(), key: witness.key.name().to_string(), time })
        });
        let witnesses: Vec<Cosigned> = cosigned.collect();
        match witnessed.time() {
            Some(time) => self.verified.push(format!(
                "the quorum of the policy ({}) had cosigned it as consistent with its predecessors at {} ({})",
                policy.quorum_text(),
                moment(time),
                term::ago(time)
            )),
            None => self.not_verified.push(
                "that others see the same log: the policy requires no witnesses, so the log could show everyone a different history".into(),
            ),
        }
        self.log = Some(LogReport {
            origin: origin.clone(),
            size,
            root: checkpoint.root.to_string(),
            quorum: policy.quorum_text(),
            time: witnessed.time(),
            witnesses,
        });
    }

    fn text(&self) -> String {
        let mut text = match self.good {
            true => format!("{}: {}\n", term::good("good"), self.file),
            false => format!("{}: {}\n", term::bad("refused"), self.file),
        };
        if let Some(why) = &self.refused {
            let _ = writeln!(text, "  {why}");
        }
        for damage in &self.damaged {
            let _ = writeln!(text, "  {} {}", term::bad("damaged:"), clean(&damage.to_string()));
        }
        for line in &self.verified {
            let _ = writeln!(text, "  verified: {line}");
        }
        for Cosigned { name, key, time } in self.log.iter().flat_map(|log| &log.witnesses) {
            let _ = writeln!(text, "    cosigned by {name} ({key}) at {}", moment(*time));
        }
        for line in &self.not_verified {
            let _ = writeln!(text, "  not verified: {line}");
        }
        for line in &self.missing {
            let _ = writeln!(text, "  {} {line}", term::bad("missing:"));
        }
        text
    }
}

/// `2026-11-26T12:00:00Z`
pub(super) fn moment(time: u64) -> String {
    let at = i64::try_from(time).ok().and_then(|t| jiff::Timestamp::from_second(t).ok());
    at.map_or_else(|| format!("{time} s after 1970"), |at| at.to_string())
}

/// Reads a policy file.
pub(super) fn policy(path: &Path) -> anyhow::Result<Policy> {
    Policy::parse(read(path, MAX_POLICY)?)
        .with_context(|| format!("{} is not a valid policy (C2SP tlog-policy)", path.display()))
}

pub(super) fn read(path: &Path, max: usize) -> anyhow::Result<Vec<u8>> {
    let (mut bytes, unreadable) = (Vec::new(), || format!("{} cannot be read", path.display()));
    let file = std::fs::File::open(path).with_context(unreadable)?;
    file.take(max as u64 + 1).read_to_end(&mut bytes).with_context(unreadable)?;
    anyhow::ensure!(
        bytes.len() <= max,
        "{} is larger than {max} bytes, so it is not a file that can be verified",
        path.display()
    );
    Ok(bytes)
}

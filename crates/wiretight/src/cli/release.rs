//! `wiretight release` and `wiretight rebuild`

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use semver::Version;
use serde_json::json;
use wiretight_keys::token::hex;
use wiretight_proxy::clock::now;
use wiretight_tlog::LogSigner;
use wiretight_tlog::note::{KeyName, MAX_NOTE};
use wiretight_tlog::tile::MAX_ENTRY;
use zeroize::Zeroizing;

use super::{Output, term};
use crate::log::read_bounded;
use crate::release::entry::{File as Made, parse_files};
use crate::release::ledger::Ledger;
use crate::release::own::proof_of;
use crate::release::{
    Artifact, Entry, Rebuild as Rebuilt, Release as Released, ReleasePolicy, ReleaseProof,
    SignedEntry, Source,
};
use crate::web::client::{Client, Credentials};

/// A private key has a few hundred bytes.
const MAX_KEY: usize = 4096;
/// The largest source.txt, files.txt, file of a toolchain, or file of CA certificates.
const MAX_TEXT: usize = 1 << 20;

/// Publish releases that prove themselves: sign what was built, log it in public, and write the proofs
///
/// `scripts/release` builds, and writes source.txt and files.txt. The source is logged first; then others can build it
/// (`wiretight rebuild`) and compare. Verifiers need a FILE, its FILE.proof and a policy: `wiretight verify release`.
#[derive(Subcommand)]
pub(super) enum Release {
    Keygen(Keygen),
    Source(SignSource),
    Sign(Sign),
    Append(Append),
    Prove(Prove),
}

/// Create a key for a release log, a publisher or a rebuilder; prints the public key, for policies
#[derive(Args)]
#[command(
    after_help = "Example:\n  wiretight release keygen example.org/wiretight --out publisher.key"
)]
pub(super) struct Keygen {
    /// The key's name: a URL without scheme, in a domain that you own
    #[arg(value_parser = super::witness::key_name)]
    name: KeyName,
    /// The file for the private key (mode 0600); it must not exist yet
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    out: PathBuf,
}

/// Sign what a release is made from (source.txt), before it is built
#[derive(Args)]
#[command(
    after_help = "Example:\n  wiretight release source source.txt --key publisher.key --out source.entry"
)]
pub(super) struct SignSource {
    /// The file that `scripts/release` writes
    #[arg(value_name = "SOURCE.TXT", value_hint = clap::ValueHint::FilePath)]
    source: PathBuf,
    #[command(flatten)]
    signed: Signed,
}

/// Sign what was built (files.txt)
#[derive(Args)]
#[command(
    after_help = "Example:\n  wiretight release sign files.txt --source source.entry --minimum 1.2.0 --expires 180d \\\n      --key publisher.key --out release.entry"
)]
pub(super) struct Sign {
    /// The file that `scripts/release` writes
    #[arg(value_name = "FILES.TXT", value_hint = clap::ValueHint::FilePath)]
    files: PathBuf,
    /// The source, as it is in the log
    #[arg(long, value_name = "ENTRY", value_hint = clap::ValueHint::FilePath)]
    source: PathBuf,
    /// From this release on, nobody may install an older version than this. Without it: any
    #[arg(long, value_name = "VERSION", default_value = "0.0.0")]
    minimum: Version,
    /// From then on, nobody may install this release
    #[arg(long, value_name = "TIME", value_parser = term::duration, default_value = "180d")]
    expires: Duration,
    #[command(flatten)]
    signed: Signed,
}

#[derive(Args)]
struct Signed {
    /// The private key
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    key: PathBuf,
    /// The file for the signed entry
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    out: PathBuf,
}

#[derive(Args)]
struct AtLog {
    /// The directory of the release log; any web server can publish the folder `log` in it
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    dir: PathBuf,
    /// The log's private key
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    key: PathBuf,
    /// The release policy, with the URLs of the witnesses
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    policy: PathBuf,
    /// CA certificates (PEM) for the witnesses, in addition to the system's
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    ca: Option<PathBuf>,
    /// How long to wait for the witnesses
    #[arg(long, value_name = "TIME", value_parser = term::duration, default_value = "60s")]
    wait: Duration,
}

/// Append entries to a release log and wait until the witnesses have cosigned. An entry that is there stays where it is
#[derive(Args)]
#[command(
    after_help = "Examples:\n  wiretight release append releases source.entry --new --key log.key --policy release.policy\n  wiretight release append releases release.entry rebuild-uni.entry --key log.key --policy release.policy"
)]
pub(super) struct Append {
    #[command(flatten)]
    at: AtLog,
    /// The signed entries
    #[arg(required = true, value_name = "ENTRY", value_hint = clap::ValueHint::FilePath)]
    entries: Vec<PathBuf>,
    /// Create the log
    #[arg(long)]
    new: bool,
    #[command(flatten)]
    out: Output,
}

/// Write FILE.proof beside each file of a release: its entries with their proofs, with new cosignatures
#[derive(Args)]
#[command(
    after_help = "Example:\n  wiretight release prove releases dist/wiretight dist/wiretight_1.4.0-1_amd64.deb --key log.key --policy release.policy"
)]
pub(super) struct Prove {
    #[command(flatten)]
    at: AtLog,
    /// Files of releases in the log
    #[arg(required = true, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    out: Output,
}

/// Build a release again from its source, compare, and sign what came out
///
/// Run it in a clean git checkout of the source. It runs that source's `scripts/release`, so read the source first, or
/// run it where it can do no harm. The signed entry goes to the publisher, or to anyone who writes to the release log.
#[derive(Args)]
#[command(after_help = "\
Example:
  git checkout v1.4.0 && wiretight rebuild --proof wiretight.proof --key rebuilder.key --out rebuild.entry

Exit status: 0 all files are the same; 1 a file differs (the entry is written, for that must be known too), or nothing
was built.")]
pub(super) struct Rebuild {
    /// The directory with the source
    #[arg(default_value = ".", value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    dir: PathBuf,
    /// The proof of a file of the release. Without it, only --source: there is nothing to compare with yet
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, required_unless_present = "source")]
    proof: Option<PathBuf>,
    /// The source entry, for a build before the release
    #[arg(long, value_name = "ENTRY", value_hint = clap::ValueHint::FilePath, conflicts_with = "proof")]
    source: Option<PathBuf>,
    /// What was built already with `scripts/release --once --out BUILT`. Without it, it is built now
    #[arg(long, value_name = "BUILT", value_hint = clap::ValueHint::DirPath)]
    built: Option<PathBuf>,
    #[command(flatten)]
    signed: Signed,
    #[command(flatten)]
    json: Output,
}

impl Release {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Release::Keygen(verb) => verb.run()?,
            Release::Source(verb) => {
                let source = Source::parse(&text(&verb.source)?);
                let source = source.with_context(|| named(&verb.source))?;
                verb.signed.write(Entry::Source(source))?;
            }
            Release::Sign(verb) => verb.run()?,
            Release::Append(verb) => super::block_on(verb.run())?,
            Release::Prove(verb) => super::block_on(verb.run())?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Keygen {
    fn run(self) -> anyhow::Result<()> {
        let signer = LogSigner::generate(self.name)?;
        super::witness::write_key(&signer.to_private()?, &self.out)?;
        super::print(&format!("{}\n", signer.public()))
    }
}

impl Sign {
    fn run(self) -> anyhow::Result<()> {
        let source = entry(&self.source)?;
        let Entry::Source(from) = source.entry() else {
            bail!("{} is not the entry of a source", self.source.display());
        };
        let expires = i64::try_from(now().saturating_add(self.expires.as_secs()));
        let expires = expires.ok().and_then(|at| Timestamp::from_second(at).ok());
        ensure!(
            self.minimum <= from.version,
            "--minimum {} is newer than the release itself, {}: nobody could install it",
            self.minimum,
            from.version
        );
        let release = Released {
            name: from.name.clone(),
            version: from.version.clone(),
            source: source.id(),
            minimum: self.minimum,
            expires: expires.context("--expires is too late")?,
            files: files(&self.files)?,
        };
        self.signed.write(Entry::Release(release))
    }
}

impl Signed {
    fn write(&self, entry: Entry) -> anyhow::Result<()> {
        let key = signer(&self.key)?;
        let signed = SignedEntry::sign(entry, &key)?;
        crate::private_dir::replace(&self.out, signed.to_string().as_bytes(), None)
            .with_context(|| format!("cannot write {}", self.out.display()))?;
        eprintln!("{}: signed by {}", self.out.display(), key.public().name());
        Ok(())
    }
}

impl AtLog {
    async fn open(&self, new: bool) -> anyhow::Result<Ledger> {
        let policy = ReleasePolicy::read(&self.policy)?;
        for weakness in policy.weaknesses() {
            eprintln!("{} {weakness}", term::bad("note:"));
        }
        let roots = match &self.ca {
            Some(ca) => Some(read_bounded(ca, MAX_TEXT).with_context(|| named(ca))?),
            None => None,
        };
        let client = Client::new(&Credentials { roots, ..Credentials::default() })?;
        let key = signer(&self.key)?;
        Ok(Ledger::open(&self.dir, new, key, &policy.log, &client, self.wait).await?)
    }
}

impl Append {
    async fn run(self) -> anyhow::Result<()> {
        let entries = self.entries.iter().map(|path| entry(path)).collect::<Result<Vec<_>, _>>()?;
        let ledger = self.at.open(self.new).await?;
        let indexes = ledger.append(&entries).await;
        ledger.close().await;
        let done: Vec<_> = self.entries.iter().zip(indexes?).collect();
        let shown = done.iter().map(|(file, index)| json!({ "file": file, "index": index }));
        self.out.print(&shown.collect::<Vec<_>>(), |_| {
            let line =
                |(file, index): &(&PathBuf, u64)| format!("{}: entry {index}\n", file.display());
            done.iter().map(line).collect()
        })
    }
}

impl Prove {
    async fn run(self) -> anyhow::Result<()> {
        let artifacts =
            self.files.iter().map(|path| artifact(path)).collect::<Result<Vec<_>, _>>()?;
        let ledger = self.at.open(false).await?;
        let mut proofs = Vec::new();
        for (file, artifact) in self.files.iter().zip(artifacts) {
            let proof = ledger.prove(artifact).await.with_context(|| named(file))?;
            let path = proof_of(file);
            crate::private_dir::replace(&path, proof.to_string().as_bytes(), None)
                .with_context(|| format!("cannot write {}", path.display()))?;
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
            proofs.push(path);
        }
        ledger.close().await;
        self.out.print(&proofs, |proofs| {
            proofs.iter().map(|path| format!("{}\n", path.display())).collect()
        })
    }
}

impl Rebuild {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let (source, release) = self.wanted()?;
        let Entry::Source(from) = source.entry() else {
            bail!("this is not the entry of a source")
        };
        self.is_source(from)?;
        let temporary;
        let built = match &self.built {
            Some(built) => built.as_path(),
            None => {
                temporary = tempfile::tempdir()?;
                let script = self.dir.canonicalize()?.join("scripts/release");
                let status = Command::new(script)
                    .current_dir(&self.dir)
                    .args(["--once", "--any-toolchain", "--out"])
                    .arg(temporary.path())
                    .status()
                    .context("cannot run scripts/release: is this a checkout of the source?")?;
                ensure!(
                    status.success(),
                    "scripts/release failed ({status}); its messages are above"
                );
                temporary.path()
            }
        };
        let made = Source::parse(&text(&built.join("source.txt"))?).context("source.txt")?;
        let same_source = Source { toolchain: from.toolchain, ..made.clone() };
        ensure!(
            same_source == *from,
            "what was built is not the logged source:\nlogged\n{from}built\n{made}Check out the commit whose tree is {}, without changes",
            from.tree
        );
        let rebuilt = Rebuilt {
            source: source.id(),
            toolchain: made.toolchain,
            files: files(&built.join("files.txt"))?,
        };
        let differences = release.map(|release| differences(&release.files, &rebuilt.files));
        self.signed.write(Entry::Rebuild(rebuilt))?;
        let same = differences.as_ref().is_none_or(Vec::is_empty);
        let shown =
            json!({ "same": differences.as_ref().map(Vec::is_empty), "differ": differences });
        self.json.print(&shown, |_| match &differences {
            None => "built; there is no release yet to compare with\n".into(),
            Some(none) if none.is_empty() => "every file of the release is the same here\n".into(),
            Some(some) => some.iter().map(|line| format!("DIFFERS: {line}\n")).collect(),
        })?;
        Ok(if same { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    /// The source to build, and the release to compare with.
    fn wanted(&self) -> anyhow::Result<(SignedEntry, Option<Released>)> {
        if let Some(path) = &self.source {
            return Ok((entry(path)?, None));
        }
        let path = self.proof.as_ref().context("--proof or --source is required")?;
        let proof = super::verify::read(path, crate::release::proof::MAX_PROOF)?;
        let proof = ReleaseProof::parse(&proof).with_context(|| named(path))?;
        let Entry::Release(release) = proof.release.entry.entry() else { bail!("no release") };
        Ok((proof.source.entry, Some(release.clone())))
    }

    /// Whether the directory has the tree of the source.
    fn is_source(&self, source: &Source) -> anyhow::Result<()> {
        if self.built.is_some() {
            return Ok(()); // its source.txt tells
        }
        let git = Command::new("git")
            .arg("-C")
            .arg(&self.dir)
            .args(["rev-parse", "HEAD^{tree}"])
            .output();
        let git = git.context("cannot run git")?;
        let tree = String::from_utf8_lossy(&git.stdout);
        ensure!(
            git.status.success() && tree.trim() == source.tree,
            "{} does not have the logged source: its tree is {}, the logged one is {}. Check out the right commit",
            self.dir.display(),
            if git.status.success() { tree.trim() } else { "unknown (it is not a git checkout)" },
            source.tree
        );
        Ok(())
    }
}

/// In words, for each file that is not in both with the same content.
fn differences(theirs: &[Made], ours: &[Made]) -> Vec<String> {
    let sum = |file: &Made| format!("{} ({} bytes)", hex(file.sha256.as_bytes()), file.size);
    let mut found = Vec::new();
    for file in theirs {
        match ours.iter().find(|other| other.name == file.name) {
            None => found.push(format!("{}: not built here", file.name)),
            Some(other) if other != file => {
                found.push(format!(
                    "{}: released {}, built here {}",
                    file.name,
                    sum(file),
                    sum(other)
                ));
            }
            Some(_) => {}
        }
    }
    let extra = ours.iter().filter(|file| theirs.iter().all(|other| other.name != file.name));
    found.extend(extra.map(|file| format!("{}: only built here", file.name)));
    found
}

fn named(path: &Path) -> String {
    path.display().to_string()
}

fn text(path: &Path) -> anyhow::Result<String> {
    let bytes =
        read_bounded(path, MAX_TEXT).with_context(|| format!("cannot read {}", path.display()))?;
    String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", path.display()))
}

fn files(path: &Path) -> anyhow::Result<Vec<Made>> {
    parse_files(&text(path)?).with_context(|| named(path))
}

fn entry(path: &Path) -> anyhow::Result<SignedEntry> {
    let bytes = read_bounded(path, MAX_ENTRY.max(MAX_NOTE));
    let bytes = bytes.with_context(|| format!("cannot read {}", path.display()))?;
    let text =
        String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", path.display()))?;
    SignedEntry::parse(&text)
        .with_context(|| format!("{} is not an entry of a release log", path.display()))
}

fn signer(path: &Path) -> anyhow::Result<LogSigner> {
    let bytes = Zeroizing::new(
        read_bounded(path, MAX_KEY).with_context(|| format!("cannot read {}", path.display()))?,
    );
    let text = str::from_utf8(&bytes).ok().map(str::trim_end);
    let key = text.and_then(|text| LogSigner::parse(text).ok());
    key.with_context(|| {
        format!("{} is not a private key of `wiretight release keygen` (for a log: or the authority's log.key)", path.display())
    })
}

pub(super) fn artifact(path: &Path) -> anyhow::Result<Artifact> {
    let unreadable = || format!("cannot read {}", path.display());
    Artifact::of(File::open(path).with_context(unreadable)?).with_context(unreadable)
}

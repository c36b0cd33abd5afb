//! `wiretight audit`

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use jiff::civil::Date;
use serde::Serialize;
use wiretight_tlog::{Hash, Policy};

use super::{Output, Where, term};
use crate::proof::audit::check::{self, Checked};
use crate::proof::audit::{Evidence, Inputs, MAX_SCAN, MAX_SCANS, Window, is_scan};
use crate::proof::controls::{Profile, Strength};

/// Export evidence for auditors (run on the authority)
#[derive(Subcommand)]
pub(super) enum Audit {
    Export(Export),
}

/// Write an archive with the evidence for the controls of a standard
///
/// The archive is a tar file with a page to read (index.html), the totals of the period with their proofs from the log,
/// policy, exceptions, changes of mode, nodes with their versions, and for each control which of it is evidence. Anyone
/// can verify it offline with `wiretight verify FILE --policy POLICY`. The same facts give the same bytes. It names nodes
/// and services, so it is for auditors, not for the public. docs/audit.md lists all controls.
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight audit export --from 2026-11-01 --to 2026-11-30 --profile pci-dss-4 audit-2026-11.tar
  wiretight scan --mesh --json --output mesh.json
  wiretight audit export --from 2026-11-01 --to 2026-11-30 --profile nist-800-53 --scan mesh.json audit.tar
  wiretight verify audit.tar --policy policy")]
pub(super) struct Export {
    /// The first day (UTC): 2026-11-01
    #[arg(long, value_name = "DATE")]
    from: Date,
    /// The last day (UTC). Hours are kept for 31 days, days for ever
    #[arg(long, value_name = "DATE")]
    to: Date,
    /// The standard: pci-dss-4, nist-800-53, hipaa, iso-27001 or bcp195
    #[arg(long, value_name = "PROFILE", value_parser = term::one_of::<Profile>(Profile::ALL.iter().map(|p| p.name())))]
    profile: Profile,
    /// Add a report written by `wiretight scan --json`; may be repeated
    #[arg(long = "scan", value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    scans: Vec<PathBuf>,
    /// Overwrite FILE
    #[arg(long)]
    force: bool,
    /// The file to write; it must not exist yet
    file: PathBuf,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// What was written.
#[derive(Serialize)]
struct Exported {
    file: PathBuf,
    bytes: usize,
    sha256: String,
    profile: Profile,
    /// Controls by the strength of their evidence.
    direct: usize,
    part: usize,
    none: usize,
    /// What the archive should have, but lacks.
    missing: Vec<String>,
}

impl Audit {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Audit::Export(verb) => verb.run(),
        }
    }
}

impl Export {
    fn run(self) -> anyhow::Result<ExitCode> {
        let window = match Window::new(self.from, self.to) {
            Ok(window) => window,
            Err(why) => {
                eprintln!("wiretight: {why}");
                return Ok(ExitCode::from(2));
            }
        };
        ensure!(
            self.force || !self.file.exists(),
            "{} exists. Choose another name, or use --force to replace it.",
            self.file.display()
        );
        let scans = self.read_scans()?;
        let evidence: Evidence = super::post(&self.at.state_dir()?, "/v1/audit", &window)?;
        let inputs = Inputs::new(evidence, self.profile, window, scans);
        let bytes = inputs.archive().map_err(anyhow::Error::msg)?;
        let missing = verified(&bytes)?;
        write(&self.file, &bytes, self.force)?;
        let of = |strength| {
            self.profile.controls().iter().filter(|control| control.strength == strength).count()
        };
        let exported = Exported {
            bytes: bytes.len(),
            sha256: wiretight_keys::token::hex(Hash::of(&bytes).as_bytes()),
            profile: self.profile,
            direct: of(Strength::Direct),
            part: of(Strength::Part),
            none: of(Strength::None),
            missing,
            file: self.file,
        };
        self.out.print(&exported, Exported::text)?;
        Ok(ExitCode::SUCCESS)
    }

    fn read_scans(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        ensure!(
            self.scans.len() <= MAX_SCANS,
            "an archive has at most {MAX_SCANS} reports of scans"
        );
        let read = |path: &PathBuf| {
            let bytes = super::verify::read(path, MAX_SCAN)?;
            ensure!(
                is_scan(&bytes),
                "{} is not a report of `wiretight scan --json`",
                path.display()
            );
            Ok(bytes)
        };
        self.scans.iter().map(read).collect()
    }
}

/// Verifies an archive before it is written, with the authority's own policy. Returns what it lacks.
fn verified(bytes: &[u8]) -> anyhow::Result<Vec<String>> {
    let opened = check::open(bytes);
    let believed = opened.own_policy().zip(opened.checkpoint()).and_then(|(policy, signed)| {
        Policy::witnessed(&policy, signed).ok().map(|witnessed| witnessed.checkpoint().clone())
    });
    let believed = believed.context(
        "the newest checkpoint of the log does not meet the authority's own policy; wait for the witnesses (`wiretight authority status`)",
    )?;
    let Checked { damage, missing, .. } = opened.check(Some(&believed));
    match damage.first() {
        None => Ok(missing),
        Some(damage) => anyhow::bail!(
            "nothing was written, because the archive could not be verified: {damage}"
        ),
    }
}

/// Writes a file so that it is complete or not there.
fn write(path: &Path, bytes: &[u8], force: bool) -> anyhow::Result<()> {
    let name = || format!("cannot write {}", path.display());
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir).with_context(name)?;
    file.write_all(bytes).with_context(name)?;
    file.as_file().sync_all().with_context(name)?;
    let kept = match force {
        true => file.persist(path),
        false => file.persist_noclobber(path),
    };
    kept.map_err(|e| e.error).with_context(name)?;
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).with_context(name)
}

impl Exported {
    fn text(&self) -> String {
        let Self { file, bytes, sha256, profile, direct, part, none, missing } = self;
        let mut text = format!(
            "{}: {}, SHA-256 {sha256}\n{}: evidence for {direct} controls, for a part of {part}; none for {none}\n",
            file.display(),
            term::size(*bytes as u64),
            profile.title()
        );
        for what in missing {
            text += &format!("missing: {what}\n");
        }
        text + "Verify it with `wiretight verify FILE --policy POLICY`. It names nodes and services: give it to auditors only.\n"
    }
}

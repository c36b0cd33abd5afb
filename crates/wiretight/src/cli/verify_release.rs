//! `wiretight verify release` and `wiretight verify self`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use semver::Version;
use serde::Serialize;
use wiretight_proxy::clock::now;
use wiretight_scan::report::clean;

use super::verify::{moment, read};
use super::{Output, term};
use crate::logging::chain;
use crate::release::own::{self, proof_of};
use crate::release::proof::MAX_PROOF;
use crate::release::{Artifact, Proved, ReleasePolicy, ReleaseProof, check};

#[derive(Subcommand)]
pub(super) enum VerifyRelease {
    Release(OfFile),
    #[command(name = "self")]
    Own(OfSelf),
}

/// Verify that a file is a release that was published, witnessed, and built by others too
///
/// Offline: everything is in the file with the proofs, FILE.proof. The policy names the log, its witnesses, the
/// publisher and the rebuilders, and how many of them you require.
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight verify release wiretight_1.4.0-1_amd64.deb --policy release.policy
  wiretight verify release ./wiretight --proof downloads/wiretight.proof --policy release.policy --json

Exit status: 0 proved; 1 refused; 2 wrong usage, or an unreadable file.")]
pub(super) struct OfFile {
    /// The file; it is read, never run
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    #[command(flatten)]
    by: By,
}

/// Verify that this running program is such a release
///
/// A program that was changed can also claim that it was not: verify it with another program, on another machine, if you
/// have a reason to doubt it.
#[derive(Args)]
#[command(
    after_help = "Example:\n  wiretight verify self --proof /usr/share/wiretight.proof --policy release.policy\n\nExit status: 0 proved; 1 refused; 2 wrong usage, or an unreadable file."
)]
pub(super) struct OfSelf {
    #[command(flatten)]
    by: By,
}

#[derive(Args)]
struct By {
    /// The release policy (docs/release.md)
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    policy: PathBuf,
    /// The release with its proofs. Default: FILE.proof
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    proof: Option<PathBuf>,
    /// Refuse a version older than this, even if its own release allows it
    #[arg(long, value_name = "VERSION")]
    minimum: Option<Version>,
    #[command(flatten)]
    out: Output,
}

#[derive(Serialize)]
struct Report {
    file: String,
    good: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proved: Option<Proved>,
    /// The weaknesses of the policy.
    weak: Vec<String>,
}

impl VerifyRelease {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let (file, by) = match self {
            VerifyRelease::Release(verb) => (Some(verb.file), verb.by),
            VerifyRelease::Own(verb) => (None, verb.by),
        };
        let report = match by.report(file.as_deref()) {
            Ok(report) => report,
            Err(error) => {
                eprintln!("wiretight: {error:#}");
                return Ok(ExitCode::from(2));
            }
        };
        let code = if report.good { ExitCode::SUCCESS } else { ExitCode::from(1) };
        by.out.print(&report, Report::text)?;
        Ok(code)
    }
}

impl By {
    /// `file`: `None` for this program.
    fn report(&self, file: Option<&Path>) -> anyhow::Result<Report> {
        let policy = ReleasePolicy::read(&self.policy)?;
        let (place, artifact) = match file {
            Some(file) => (file.to_owned(), super::release::artifact(file)?),
            None => (std::env::current_exe()?, own::running().context("cannot read this program")?),
        };
        let (good, refused, proved) =
            match self.proved(&policy, &place, artifact, file.is_none())? {
                Ok(proved) => (true, None, Some(proved)),
                Err(why) => (false, Some(why), None),
            };
        let file = place.display().to_string();
        Ok(Report { file, good, refused, proved, weak: policy.weaknesses() })
    }

    fn proved(
        &self,
        policy: &ReleasePolicy,
        file: &Path,
        artifact: Artifact,
        own: bool,
    ) -> anyhow::Result<Result<Proved, String>> {
        let path = self.proof.clone().unwrap_or_else(|| proof_of(file));
        let proof = read(&path, MAX_PROOF)
            .context("there is no proof to verify. Give it with --proof, or put it there")?;
        let proof = match ReleaseProof::parse(&proof) {
            Ok(proof) => proof,
            Err(why) => return Ok(Err(format!("{}: {}", path.display(), chain(&why)))),
        };
        let proved = match check(policy, &proof, artifact, now(), self.minimum.as_ref()) {
            Ok(proved) => proved,
            Err(why) => return Ok(Err(chain(&why))),
        };
        if own && (proved.name != own::PROGRAM || proved.file != own::PROGRAM) {
            return Ok(Err(format!(
                "the proof is for {} of {}, not for the program {}",
                proved.file,
                proved.name,
                own::PROGRAM
            )));
        }
        Ok(Ok(proved))
    }
}

impl Report {
    fn text(&self) -> String {
        let mut lines = vec![match self.good {
            true => format!("{}: {}", term::good("good"), clean(&self.file)),
            false => format!("{}: {}", term::bad("refused"), clean(&self.file)),
        }];
        lines.extend(self.refused.iter().map(|why| format!("  {}", clean(why))));
        if let Some(p) = &self.proved {
            lines.push(format!(
                "  verified: it is the file {} of {} {} (SHA-256 {})",
                p.file, p.name, p.version, p.sha256
            ));
            lines.push(format!("  verified: its publisher made it from the git tree {}", p.tree));
            let seen = match p.witnessed {
                Some(time) => format!(
                    ", which the quorum of the policy had cosigned at {} ({})",
                    moment(time),
                    term::ago(time)
                ),
                None => String::new(),
            };
            lines.push(format!(
                "  verified: it is entry {} of the log {}{seen}",
                p.index,
                clean(&p.origin)
            ));
            if !p.rebuilt.is_empty() {
                lines.push(format!(
                    "  verified: the same file was built from that source by {}",
                    clean(&p.rebuilt.join(", "))
                ));
            }
            if !p.differ.is_empty() {
                lines.push(format!(
                    "  {} another file was built from that source by {}",
                    term::bad("WARNING:"),
                    clean(&p.differ.join(", "))
                ));
            }
            lines.push(format!(
                "  it may be installed until {}; since it was released, nothing older than {} may be",
                p.expires, p.minimum
            ));
            lines.push("  not verified: what the source does, which can be read, and the compiler that all of them used".into());
        }
        lines.extend(
            self.weak.iter().map(|weakness| format!("  {} {weakness}", term::bad("weak policy:"))),
        );
        lines.join("\n") + "\n"
    }
}

//! `wiretight check`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use wiretight_proxy::clock::now;

use super::{Output, Where};
use crate::config::{Config, ConfigError, ConfigErrors};
use crate::log;
use crate::named_files;

/// The reference of the configuration file.
pub(super) const EXAMPLE: &str = include_str!("../../../../wiretight.toml");

/// Check a configuration file and the files it refers to, without running it
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight check /etc/wiretight/wiretight.toml
  wiretight check new.toml --json && cp new.toml /etc/wiretight/wiretight.toml && wiretight reload
  wiretight check --example > wiretight.toml         every setting, with its default
  wiretight check --no-files web1.toml               a file for another machine

Exit status: 0 if the file is valid (it may print warnings), 2 if not.")]
pub(super) struct Check {
    /// The file to check [default: --config]
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// Print a commented file with every setting and its default; check nothing
    #[arg(long, exclusive = true)]
    example: bool,
    /// Do not check the certificates, keys and policies that the file refers to
    #[arg(long)]
    no_files: bool,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

impl Check {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        if self.example {
            super::print(EXAMPLE)?;
            return Ok(ExitCode::SUCCESS);
        }
        let path = self.file.unwrap_or(self.at.config);
        let loaded = Config::load(&path).and_then(|config| {
            let problems = if self.no_files { Vec::new() } else { named_files::problems(&config) };
            ConfigErrors::of(problems).map_or(Ok(config), Err)
        });
        let config = match loaded {
            Ok(config) => config,
            Err(errors) if self.out.json => {
                let list: Vec<_> = errors.as_slice().iter().map(error_json).collect();
                self.out.print(&json!({ "ok": false, "errors": list }), |_| String::new())?;
                return Ok(ExitCode::from(2));
            }
            Err(errors) => return Err(errors.into()),
        };
        let mut warnings = config.warnings.clone();
        warnings.extend(config.exception_warnings(now()));
        if let Some(witnesses) = config.witnesses.as_ref().filter(|_| !self.no_files)
            && let Ok(policy) = log::read_policy(&witnesses.policy)
        {
            let weak = log::weaknesses(&policy);
            warnings.extend(weak.iter().map(|w| format!("{}: {w}", witnesses.policy.display())));
        }
        let summary = json!({
            "ok": true,
            "node": config.node.name,
            "trust_domain": config.node.trust_domain,
            "authority": config.authority.is_some(),
            "services": config.relay.services.iter().map(|s| &s.name).collect::<Vec<_>>(),
            "dials": config.relay.dials.iter().map(|d| &d.service).collect::<Vec<_>>(),
            "sites": config.edge.sites.iter().map(|s| s.title()).collect::<Vec<_>>(),
            "warnings": warnings,
        });
        self.out.print(&summary, |_| {
            let mut out: String = warnings.iter().map(|w| format!("warning: {w}\n")).collect();
            out += &format!("{} is valid: {}\n", path.display(), in_short(&config));
            out
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// What a file is for, in a few words.
pub(super) fn in_short(config: &Config) -> String {
    let (services, dials) = (config.relay.services.len(), config.relay.dials.len());
    let sites = config.edge.sites.len();
    let mut text = format!("node {}", config.node.name);
    if !config.needs_mesh() {
        // Services and dials need a mesh.
        return text + &format!(", {}; no mesh needed", super::count(sites, "site"));
    }
    text += &format!(" of {}", config.node.trust_domain);
    if config.authority.is_some() {
        text += " (the authority)";
    }
    text + ", " + &super::counted(services, dials, sites)
}

pub(super) fn error_json(e: &ConfigError) -> serde_json::Value {
    json!({
        "file": e.file, "line": e.line, "key": e.key, "problem": e.problem, "advice": e.advice,
    })
}

//! `wiretight check`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{Output, Where};
use crate::config::Config;
use crate::daemon::chain;
use crate::log;

/// Check a configuration file without running it
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight check /etc/wiretight/wiretight.toml
  wiretight check new.toml --json && cp new.toml /etc/wiretight/wiretight.toml && wiretight reload

Exit status: 0 if the file is good (warnings may be printed), 2 if not.")]
pub(super) struct Check {
    /// The file; otherwise --config
    file: Option<PathBuf>,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

impl Check {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let path = self.file.clone().unwrap_or(self.at.config.clone());
        let config = match Config::load(&path) {
            Ok(config) => config,
            Err(errors) if self.out.json => {
                let list: Vec<_> = errors
                    .as_slice()
                    .iter()
                    .map(|e| {
                        json!({
                            "file": e.file, "line": e.line, "key": e.key,
                            "problem": e.problem, "advice": e.advice,
                        })
                    })
                    .collect();
                self.out.print(&json!({ "ok": false, "errors": list }), |_| String::new())?;
                return Ok(ExitCode::from(2));
            }
            Err(errors) => return Err(errors.into()),
        };
        let mut warnings = config.warnings.clone();
        if let Some(witnesses) = &config.witnesses {
            let policy = match log::read_policy(&witnesses.policy) {
                Ok(policy) => policy,
                Err(e) => return self.bad_policy(&path, &chain(&e)),
            };
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
            out += &format!(
                "{} is good: node {} of {}{}, {} services, {} dials, {} sites\n",
                path.display(),
                config.node.name,
                config.node.trust_domain,
                if config.authority.is_some() { " (the authority)" } else { "" },
                config.relay.services.len(),
                config.relay.dials.len(),
                config.edge.sites.len(),
            );
            out
        })?;
        Ok(ExitCode::SUCCESS)
    }

    /// The file is good, and the policy that it names is not.
    fn bad_policy(&self, file: &Path, problem: &str) -> anyhow::Result<ExitCode> {
        match self.out.json {
            true => {
                let error = json!({ "file": file, "line": null, "key": "witnesses.policy", "problem": problem, "advice": null });
                self.out.print(&json!({ "ok": false, "errors": [error] }), |_| String::new())?;
            }
            false => eprintln!("{}: witnesses.policy: {problem}", file.display()),
        }
        Ok(ExitCode::from(2))
    }
}

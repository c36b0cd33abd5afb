//! `wiretight completions`, `wiretight man`

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Command};

/// Print a completion script for your shell
#[derive(Args)]
#[command(after_help = "Example:\n  wiretight completions bash > /etc/bash_completion.d/wiretight")]
pub(super) struct Completions {
    /// The shell
    shell: clap_complete::Shell,
}

impl Completions {
    pub(super) fn run(self, command: &mut Command) -> anyhow::Result<ExitCode> {
        clap_complete::generate(self.shell, command, "wiretight", &mut std::io::stdout());
        Ok(ExitCode::SUCCESS)
    }
}

/// Write the manual pages into a folder
#[derive(Args)]
#[command(after_help = "Example:\n  wiretight man /usr/local/share/man/man1")]
pub(super) struct Man {
    /// The folder
    dir: PathBuf,
}

impl Man {
    pub(super) fn run(self, command: &Command) -> anyhow::Result<ExitCode> {
        fs::create_dir_all(&self.dir)?;
        clap_mangen::generate_to(command.clone(), &self.dir)?;
        Ok(ExitCode::SUCCESS)
    }
}

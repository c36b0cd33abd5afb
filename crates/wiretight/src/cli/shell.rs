//! `wiretight completions`

use std::process::ExitCode;

use clap::{Args, Command};

/// Print a completion script for your shell
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight completions bash > /etc/bash_completion.d/wiretight
  wiretight completions zsh > /usr/local/share/zsh/site-functions/_wiretight
  wiretight completions fish > /etc/fish/completions/wiretight.fish")]
pub(super) struct Completions {
    /// The shell
    shell: clap_complete::Shell,
}

impl Completions {
    pub(super) fn run(self, command: &Command) -> anyhow::Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut visible(command), "wiretight", &mut script);
        super::print(&String::from_utf8(script)?)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The command line without the verbs that the program uses to start itself.
pub(super) fn visible(command: &Command) -> Command {
    let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    Command::new("wiretight")
        .version(env!("CARGO_PKG_VERSION"))
        .about(command.get_about().cloned().unwrap_or_default())
        .long_about(command.get_long_about().cloned().unwrap_or_default())
        .after_help(command.get_after_help().cloned().unwrap_or_default())
        .args(command.get_arguments())
        .subcommands(verbs)
}

//! `wiretight completions`, `wiretight man`

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Command};
use clap_mangen::Man as Page;

/// Print a completion script for your shell
#[derive(Args)]
#[command(after_help = "Example:\n  wiretight completions bash > /etc/bash_completion.d/wiretight")]
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
fn visible(command: &Command) -> Command {
    let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    Command::new("wiretight")
        .version(env!("CARGO_PKG_VERSION"))
        .about(command.get_about().cloned().unwrap_or_default())
        .long_about(command.get_long_about().cloned().unwrap_or_default())
        .after_help(command.get_after_help().cloned().unwrap_or_default())
        .args(command.get_arguments())
        .subcommands(verbs)
}

/// Write the manual pages into a directory
#[derive(Args)]
#[command(after_help = "Example:\n  wiretight man /usr/local/share/man/man1")]
pub(super) struct Man {
    /// The directory
    dir: PathBuf,
}

impl Man {
    pub(super) fn run(self, command: &Command) -> anyhow::Result<ExitCode> {
        fs::create_dir_all(&self.dir)?;
        let mut command = visible(command);
        command.build();
        write_pages(&command, &self.dir)
            .with_context(|| format!("cannot write manual pages into {}", self.dir.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes a page for a verb and for each verb below it.
fn write_pages(command: &Command, dir: &Path) -> std::io::Result<()> {
    let page = Page::new(command.clone());
    let mut out = Vec::new();
    page.render_title(&mut out)?;
    page.render_name_section(&mut out)?;
    page.render_synopsis_section(&mut out)?;
    page.render_description_section(&mut out)?;
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        page.render_options_section(&mut out)?;
    }
    if command.has_subcommands() {
        page.render_subcommands_section(&mut out)?;
    }
    if let Some(text) = command.get_after_help() {
        out.extend(after_help(&text.to_string()).into_bytes());
    }
    fs::write(dir.join(page.get_filename()), out)?;
    let shown = |verb: &&Command| !verb.is_hide_set() && verb.get_name() != "help";
    for verb in command.get_subcommands().filter(shown) {
        write_pages(verb, dir)?;
    }
    Ok(())
}

/// The text after the help, as sections with unfilled lines. `Examples:` and `Exit status:` start sections of their own.
fn after_help(text: &str) -> String {
    let mut out = String::new();
    for paragraph in text.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()) {
        let (title, body) = match paragraph.split_once(':') {
            Some(("Example" | "Examples", body)) => ("EXAMPLES", body),
            Some(("Exit status", body)) => ("EXIT STATUS", body),
            _ => ("NOTES", paragraph),
        };
        let lines = body.trim_start_matches([' ', '\n']).lines().map(escaped).collect::<Vec<_>>();
        out += &format!(".SH \"{title}\"\n.nf\n{}\n.fi\n", lines.join("\n"));
    }
    out
}

/// Escapes a line so that roff(7) prints it unchanged.
fn escaped(line: &str) -> String {
    let line = line.trim_start_matches(' ').replace('\\', "\\e").replace('-', "\\-");
    if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
}

//! `wiretight console`

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::{Output, Where};
use crate::admin::api::ConsoleAnswer;
use crate::admin::client::Received;

/// How long the browser may take to read the file with the link.
const READING: Duration = Duration::from_secs(5);

/// Open the console: what the mesh does, in a browser (run on the authority)
///
/// Asks the running node for a link that works once, for 5 minutes, prints it, and opens it if this is a desktop. The
/// console needs [console] in the node's configuration. It shows everything that the authority knows, and changes nothing.
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight console
  wiretight console --print                            only print the link
  ssh -L 7492:127.0.0.1:7492 auth1                     to open the link on another machine")]
pub(super) struct Console {
    /// Print the link, and open nothing
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

impl Console {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let answer: Received<ConsoleAnswer> =
            super::post(&self.at.state_dir()?, "/v1/console", &())?;
        self.out.print(&answer, |answer| render(answer))?;
        if !self.print
            && !self.out.json
            && is_desktop()
            && let Err(error) = open(&answer.link)
        {
            eprintln!("Cannot open a browser ({error:#}). Open the link yourself.");
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn render(answer: &ConsoleAnswer) -> String {
    let mut out = format!("{}\n", answer.link);
    for site in &answer.sites {
        out += &format!("or {site}\n");
    }
    out + &format!("It works once, for {} minutes.\n", answer.seconds / 60)
}

/// Whether a browser can be opened. A browser must not run as root.
fn is_desktop() -> bool {
    let display = ["DISPLAY", "WAYLAND_DISPLAY"];
    let display = display.into_iter().filter_map(std::env::var_os).any(|name| !name.is_empty());
    display && !rustix::process::geteuid().is_root()
}

/// Opens a file that leads to the link: every user of this machine can read the arguments of a process.
fn open(link: &str) -> anyhow::Result<()> {
    let dir = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let mut file =
        tempfile::Builder::new().prefix("wiretight-").suffix(".html").tempfile_in(dir)?;
    // The link has no character that is special in HTML.
    writeln!(
        file,
        "<!DOCTYPE html><meta http-equiv=\"refresh\" content=\"0;url={link}\"><a href=\"{link}\">Continue</a>"
    )?;
    file.flush()?;
    let mut opener = Command::new("xdg-open");
    opener.arg(file.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = opener.status().context("xdg-open")?;
    anyhow::ensure!(status.success(), "xdg-open ended with {status}");
    std::thread::sleep(READING);
    Ok(())
}

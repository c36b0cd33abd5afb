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
            && let Err(error) = open(&answer.link, "xdg-open", READING)
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
fn open(link: &str, opener: &str, reading: Duration) -> anyhow::Result<()> {
    let dir = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let mut file =
        tempfile::Builder::new().prefix("wiretight-").suffix(".html").tempfile_in(dir)?;
    // The link has no character that is special in HTML.
    writeln!(
        file,
        "<!DOCTYPE html><meta http-equiv=\"refresh\" content=\"0;url={link}\"><a href=\"{link}\">Continue</a>"
    )?;
    file.flush()?;
    let mut command = Command::new(opener);
    command.arg(file.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status().with_context(|| opener.to_owned())?;
    anyhow::ensure!(status.success(), "{opener} ended with {status}");
    std::thread::sleep(reading);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_browser_gets_a_private_file_and_its_failure_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        // Written by a child, so that no process of another test has it open.
        let program = |name: &str, lines: &str| {
            let path = dir.path().join(name).to_str().unwrap().to_owned();
            let mut shell = Command::new("/bin/sh");
            shell.args([
                "-c",
                "printf '#!/bin/sh\\n%s\\n' \"$1\" >\"$2\" && chmod 700 \"$2\"",
                "sh",
                lines,
                &path,
            ]);
            assert!(shell.status().unwrap().success());
            path
        };
        let link = "http://127.0.0.1:7492/enter/secret";
        let missing = dir.path().join("missing");
        let error = open(link, missing.to_str().unwrap(), Duration::ZERO).unwrap_err();
        assert!(format!("{error:#}").contains("missing: No such file"), "{error:#}");
        let failing = program("failing", "exit 3");
        let error = open(link, &failing, Duration::ZERO).unwrap_err();
        assert!(format!("{error:#}").ends_with("failing ended with exit status: 3"), "{error:#}");

        let copy = dir.path().join("copy");
        let copied = copy.display();
        let lines = format!(
            "echo \"$@\" >{copied}.args; stat -c %a \"$1\" >{copied}.mode; cp \"$1\" {copied}"
        );
        open(link, &program("working", &lines), Duration::ZERO).unwrap();
        let read = |end: &str| fs::read_to_string(format!("{copied}{end}")).unwrap();
        assert!(read("").contains(&format!("0;url={link}")), "{}", read(""));
        assert_eq!(read(".mode"), "600\n");
        assert!(!read(".args").contains("secret"), "{}", read(".args"));
        assert!(!std::path::Path::new(read(".args").trim()).exists(), "it is removed");
    }
}

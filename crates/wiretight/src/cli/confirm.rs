//! Asking before something that cuts others, or removes a protection.

use std::io::{BufRead, IsTerminal, Read, Write};

use anyhow::bail;
use clap::Args;

/// The longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 64;

/// `--yes`, for verbs that ask.
#[derive(Args, Clone, Copy)]
pub(super) struct Confirm {
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
}

impl Confirm {
    /// Returns if the operator agrees. `effect` is what will happen, in whole sentences; `question` can be answered by
    /// yes or no. Both go to standard error, so that standard output stays the verb's answer.
    pub(super) fn ask(self, effect: &str, question: &str) -> anyhow::Result<()> {
        if self.yes {
            return Ok(());
        }
        let input = std::io::stdin();
        if !input.is_terminal() {
            bail!("nothing was changed. {effect} Not a terminal, so confirm with --yes");
        }
        eprint!("{effect}\n{question} [y/N] ");
        std::io::stderr().flush()?;
        let mut answer = String::new();
        input.lock().take(MAX_ANSWER).read_line(&mut answer)?;
        match answer.trim() {
            "y" | "Y" | "yes" => Ok(()),
            _ => bail!("nothing was changed"),
        }
    }
}

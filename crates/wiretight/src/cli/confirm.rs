//! Confirmation before a verb closes connections of others or removes a protection.

use std::io::{BufRead, IsTerminal, Read, Write};

use anyhow::bail;
use clap::Args;

/// In bytes.
const MAX_ANSWER: u64 = 64;

#[derive(Args, Clone, Copy)]
pub(super) struct Confirm {
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
}

impl Confirm {
    /// Fails unless the operator agrees. `effect` says in full sentences what will happen; `question` is a yes/no
    /// question. Both go to standard error, because standard output is for the result of the verb.
    pub(super) fn ask(self, effect: &str, question: &str) -> anyhow::Result<()> {
        if self.yes {
            return Ok(());
        }
        let input = std::io::stdin();
        if !input.is_terminal() {
            bail!("nothing was changed. {effect} Not a terminal, so confirm with --yes.");
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

//! `wiretight revoke`

use std::process::ExitCode;
use std::str::FromStr;

use clap::Args;
use serde_json::Value;

use super::{Output, Where};
use crate::admin::RevokeRequest;

/// Revoke certificates by their place in the log (on the authority)
///
/// Live connections of whoever holds one are cut within seconds, on every node that the authority reaches; the others
/// take it until their own identities expire. It is for what a monitor found and nobody asked for; to take a node or
/// a service out, use `node remove` and `node grant`. The revocation is itself put into the log.
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight revoke 4711              one certificate, or an intermediate and all below it
  wiretight revoke 4700-4799         all that was issued in between")]
pub(super) struct Revoke {
    /// An index, or a range of them with both ends
    #[arg(value_name = "INDEX[-INDEX]")]
    range: Range,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

#[derive(Clone, Copy)]
struct Range {
    from: u64,
    to: u64,
}

impl FromStr for Range {
    type Err = String;
    fn from_str(text: &str) -> Result<Range, String> {
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        match (from.parse(), to.parse()) {
            (Ok(from), Ok(to)) if from <= to => Ok(Range { from, to }),
            _ => Err("write an index, or two with a hyphen, the smaller one first".into()),
        }
    }
}

impl Revoke {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Range { from, to } = self.range;
        let request = RevokeRequest { from, to };
        let done: Value = super::post(&self.at.state_dir()?, "/v1/revoke", &request)?;
        self.out.print(&done, |_| match to - from {
            0 => format!("entry {from} is revoked; its live connections are being cut\n"),
            n => format!("{} entries are revoked; their live connections are being cut\n", n + 1),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

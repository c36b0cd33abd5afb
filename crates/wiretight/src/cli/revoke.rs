//! `wiretight revoke`

use std::process::ExitCode;
use std::str::FromStr;

use clap::Args;

use super::confirm::Confirm;
use super::{Output, Where};
use crate::admin::api::RevokeRequest;
use crate::authority::Affected;

/// How many names are shown.
const NAMES: usize = 8;

/// Revoke certificates by their index in the log (run on the authority)
///
/// Nodes that are in contact with the authority close the live connections of a revoked certificate within seconds. Other
/// nodes accept it until their own identities expire. Use this for an unexpected certificate that a monitor reported; to
/// remove a node or a service, use `node remove` or `node grant`. The command shows which connections it will close,
/// and asks. The revocation itself is logged, and is permanent.
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight revoke 4711              one certificate, or an intermediate and all that it signed
  wiretight revoke 4700-4799         all certificates in this range
  wiretight revoke 4711 --yes        without asking")]
pub(super) struct Revoke {
    /// A log index, or an inclusive range
    #[arg(value_name = "INDEX[-INDEX]")]
    range: Range,
    #[command(flatten)]
    confirm: Confirm,
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
            _ => Err("expected an index, or a range such as 4700-4799".into()),
        }
    }
}

impl Revoke {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Range { from, to } = self.range;
        let state_dir = self.at.state_dir()?;
        let ask = |dry_run| {
            let request = RevokeRequest { from, to, dry_run };
            super::post::<Affected>(&state_dir, "/v1/revoke", &request)
        };
        let effect = effect(&ask(true)?);
        self.confirm.ask(&effect, "Revoke?")?;
        let done = ask(false)?;
        self.out.print(&done, |_| match to - from {
            0 => format!("Revoked entry {from}. Its live connections are being closed.\n"),
            n => format!("Revoked {} entries. Their live connections are being closed.\n", n + 1),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Describes in full sentences what the revocation affects.
fn effect(of: &Affected) -> String {
    let mut out = Vec::new();
    if of.intermediate_in_use {
        out.push("This revokes the intermediate certificate that currently signs all identities, so every connection of the mesh is closed. The authority then issues a new intermediate. Connected nodes get new identities within seconds; other nodes get them when they reconnect. Certificates from `svid fetch` must be fetched again.".to_owned());
    }
    if !of.ca_certificates.is_empty() {
        let indexes: Vec<_> = of.ca_certificates.iter().take(NAMES).map(u64::to_string).collect();
        out.push(format!(
            "This revokes {} other CA certificates (entries {}) and everything they signed.",
            of.ca_certificates.len(),
            indexes.join(", ")
        ));
    }
    if !of.names.is_empty() {
        let names: Vec<_> = of.names.iter().take(NAMES).map(String::as_str).collect();
        let more = match of.names.len().saturating_sub(NAMES) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        out.push(format!(
            "This revokes certificates of {}{more}, and closes their connections. A node that may still claim the identity automatically gets a new certificate. To remove a node, use `wiretight node remove`.",
            names.join(", ")
        ));
    }
    if of.authority {
        out.push("This includes the authority's own certificate, which it replaces.".into());
    }
    if of.unread > 0 {
        out.push(format!("{} entries were not checked.", of.unread));
    }
    if out.is_empty() {
        out.push("None of these entries is a certificate that is currently valid.".into());
    }
    out.join(" ")
}

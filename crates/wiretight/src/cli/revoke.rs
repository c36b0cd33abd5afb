//! `wiretight revoke`

use std::process::ExitCode;
use std::str::FromStr;

use clap::Args;

use super::confirm::Confirm;
use super::{Output, Where};
use crate::admin::api::RevokeRequest;
use crate::authority::Affected;

/// Names that are told to a person.
const NAMES: usize = 8;

/// Revoke certificates by their place in the log (on the authority)
///
/// Live connections of whoever holds one are cut within seconds, on every node that the authority reaches; the others
/// accept it until their own identities expire. Use it for what a monitor found and nobody asked for; to take a node or
/// a service out, use `node remove` and `node grant`. The verb says what it will cut, and asks. The revocation is itself
/// put into the log, and has no end.
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight revoke 4711              one certificate, or an intermediate and all below it
  wiretight revoke 4700-4799         all that was issued in between
  wiretight revoke 4711 --yes        without asking")]
pub(super) struct Revoke {
    /// An index, or a range of them with both ends
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
            _ => Err("write an index, or two with a hyphen, the smaller one first".into()),
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
            0 => format!("entry {from} is revoked; its live connections are being cut\n"),
            n => format!("{} entries are revoked; their live connections are being cut\n", n + 1),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// What will be cut, in sentences.
fn effect(of: &Affected) -> String {
    let mut out = Vec::new();
    if of.intermediate_in_use {
        out.push("This revokes the intermediate certificate that signs all identities now: every connection of the mesh is cut. The authority makes another one, and every node that it reaches gets new identities within seconds; a node that is away gets them when it is back. Certificates from `svid fetch` must be fetched again.".to_owned());
    }
    if !of.ca_certificates.is_empty() {
        let indexes: Vec<_> = of.ca_certificates.iter().take(NAMES).map(u64::to_string).collect();
        out.push(format!(
            "This revokes {} other CA certificates (entries {}) and all that they have signed.",
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
            "This revokes certificates of {}{more}: their connections are cut. A node that may still claim the identity gets another certificate by itself: to take a node out, use `wiretight node remove`.",
            names.join(", ")
        ));
    }
    if of.authority {
        out.push("The authority's own certificate is among them; it makes another one.".into());
    }
    if of.unread > 0 {
        out.push(format!("{} entries were not looked at.", of.unread));
    }
    if out.is_empty() {
        out.push("None of these entries is a certificate that is still valid.".into());
    }
    out.join(" ")
}

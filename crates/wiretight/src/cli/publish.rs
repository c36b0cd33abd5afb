//! `wiretight publish`

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::Value;
use wiretight_scan::report::clean;

use super::{Output, Where, term};
use crate::admin::api::{PublishAnswer, PublishRequest};
use crate::proof::publish::folder::{self, PublicFile};

/// Write the public proof page: a folder of static files that anybody may see, and check
///
/// On the authority's node. The folder is replaced as a whole. It has a page to read, the same as JSON, proofs from the
/// log, and a page that checks all of it in the visitor's browser. `dir` in [publish] keeps one up to date.
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight publish --preview                        show what would go out; write nothing
  wiretight publish /srv/wiretight/proof
  wiretight publish --preview --json | jq -r '.files[] | select(.name == \"log.json\").text'

By default, no name of a node, service, host or program is published, and no address. [publish] has more.")]
pub(super) struct Publish {
    /// The folder: new, empty, or written by this command before
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath, required_unless_present = "preview")]
    dir: Option<PathBuf>,
    /// Show what would go out, field by field. Writes and logs nothing
    #[arg(long, conflicts_with = "dir")]
    preview: bool,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

impl Publish {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let state_dir = self.at.state_dir()?;
        let ask = |preview| -> anyhow::Result<PublishAnswer> {
            super::post(&state_dir, "/v1/publish", &PublishRequest { preview })
        };
        let Some(dir) = &self.dir else {
            self.out.print(&ask(true)?, preview)?;
            return Ok(ExitCode::SUCCESS);
        };
        let path = std::path::absolute(dir).context("cannot find the current directory")?;
        // Before it is logged that the folder was published.
        folder::check(&path)?;
        let answer = ask(false)?;
        folder::write(&path, &answer.files)?;
        let done = serde_json::json!({
            "dir": path, "at": answer.at, "index": answer.index,
            "files": answer.files.iter().map(|f| (f.name.clone(), f.text.len())).collect::<BTreeMap<_, _>>(),
        });
        self.out.print(&done, |_| {
            let index = answer.index.unwrap_or_default();
            format!(
                "{}: {} files, {}; the hash of its manifest is entry {index} of the log\n",
                path.display(),
                answer.files.len(),
                term::size(answer.bytes()),
            )
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Everything that would go out: each field of the facts, the newest periods in full, and the other files by their size.
fn preview(answer: &PublishAnswer) -> String {
    let mut out = String::from("Nothing was written or logged. This would be published:\n");
    for PublicFile { name, text } in &answer.files {
        let _ = writeln!(out, "\n{}  {}", term::bold(name), term::size(text.len() as u64));
        let parsed = serde_json::from_str::<Value>(text).ok();
        match (name.as_str(), parsed) {
            ("facts.json", Some(facts)) => fields(&mut out, "", &facts),
            ("log.json", Some(mut log)) => {
                let periods = log.get_mut("periods").map(Value::take).unwrap_or_default();
                fields(&mut out, "", &log);
                self::periods(&mut out, &periods);
            }
            ("consistency.json", Some(earlier)) => {
                let n = earlier["from"].as_array().map_or(0, Vec::len);
                let _ =
                    writeln!(out, "  proofs that the log continues {n} checkpoints shown before");
            }
            ("index.html", _) => out += "  the page, made from facts.json and log.json\n",
            ("manifest", _) => text.lines().for_each(|line| {
                let _ = writeln!(out, "  {}", clean(line));
            }),
            _ => out += "  the same for everybody who uses this release\n",
        }
    }
    out += "\npublication.json is added when it is published: the proof that the manifest is in the log.\n";
    out += "`--json` prints every byte of these files.\n";
    out
}

/// One line for each value: `windows.month.encrypted.of_bytes = 996`.
fn fields(out: &mut String, path: &str, value: &Value) {
    let below = |name: &str| if path.is_empty() { name.into() } else { format!("{path}.{name}") };
    match value {
        Value::Object(members) if !members.is_empty() => {
            members.iter().for_each(|(name, value)| fields(out, &below(name), value));
        }
        Value::Array(all) if !all.is_empty() => {
            all.iter()
                .enumerate()
                .for_each(|(n, value)| fields(out, &below(&n.to_string()), value));
        }
        Value::String(text) if text.contains('\n') => {
            let _ = writeln!(out, "  {path} =");
            text.lines().for_each(|line| {
                let _ = writeln!(out, "    {}", clean(line));
            });
        }
        Value::String(text) => {
            let _ = writeln!(out, "  {path} = {}", clean(text));
        }
        other => {
            let _ = writeln!(out, "  {path} = {other}");
        }
    }
}

/// How many hours and days, and the newest of each in full.
fn periods(out: &mut String, periods: &Value) {
    let all = periods.as_array().map(Vec::as_slice).unwrap_or_default();
    let entry = |period: &Value| serde_json::from_str::<Value>(period["entry"].as_str()?).ok();
    for (length, word) in [(3600, "hours"), (86_400, "days")] {
        let of: Vec<(&Value, Value)> = all
            .iter()
            .filter_map(|period| Some((period, entry(period)?)))
            .filter(|(_, entry)| entry["length"] == length)
            .collect();
        let _ = writeln!(out, "  {} {word}, each with its proof, and with these fields:", of.len());
        if let Some((period, entry)) = of.last() {
            fields(out, &format!("periods.{}", period["index"]), entry);
        }
    }
}

//! The page of an archive: for people, without scripts. It shows only what the other files have.

use std::collections::BTreeMap;

use jiff::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use wiretight_keys::claims::{DAY, Levels};
use wiretight_scan::judge::Level;

use super::archive::{File, sha256};
use super::derived::{ControlsFile, Derived, EvidenceRow, all, modes, once};
use super::{Head, named};
use crate::control::report::ExceptionKind;
use crate::proof::chart::{self, Column, Columns, Round, Unit, percent, permille};
use crate::proof::controls::Strength;

const STYLE: &str = include_str!("page.css");

pub(super) fn page(
    head: &Head,
    derived: &Derived<'_>,
    controls: &ControlsFile,
    files: &[File],
) -> String {
    let style = format!("{}{STYLE}", chart::CSS);
    let hash = wiretight_tlog::Hash::of(style.as_bytes());
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'"
    );
    let window = head.window;
    let title =
        format!("Encryption in transit: {}, {} to {}", head.trust_domain, window.from, window.to);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy);
                meta name="referrer" content="no-referrer";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(&style)) }
            }
            body {
                (chart::defs())
                main {
                    h1 { (title) }
                    p {
                        "Evidence for " b { (controls.standard) } ", exported " (moment(head.made))
                        " by Wiretight " (head.program) ". All times are UTC. Whether a control is met is for the assessor to decide."
                    }
                    p.card {
                        "Verify this archive with a policy that you trust, on a machine of yours: "
                        code { "wiretight verify FILE.tar --policy POLICY" }
                        ". It says what the log proves, what is only the operator's word, and which hours have no totals. It also checks that this page shows what the other files contain."
                    }
                    (traffic(derived))
                    (controls_table(controls, files))
                    (exceptions(derived))
                    (changes(derived))
                    (nodes(derived))
                    (keys(derived))
                    h2 { "What this archive cannot show" }
                    ul {
                        li { "The log proves what the authority claimed for an hour, and that the claim was not changed later. It does not prove that a node counted correctly." }
                        @for text in derived.not_known() { li { (text) } }
                        @for row in &controls.controls {
                            @if row.strength == Strength::None { li { b { (row.id) } ": " (text(row.limit)) } }
                        }
                    }
                    h2 { "Files" }
                    (table("files", ["file", "SHA-256"], files.iter().map(|file| [
                        cell(&file.name), html! { code { (sha256(&file.bytes)) } },
                    ])))
                }
            }
        }
    }
    .into_string()
}

fn moment(at: u64) -> String {
    let at = i64::try_from(at).ok().and_then(|at| Timestamp::from_second(at).ok());
    at.map_or_else(
        || "at an impossible time".into(),
        |at| at.strftime("%Y-%m-%d %H:%M").to_string(),
    )
}

fn date(at: Option<u64>) -> String {
    at.map_or_else(|| "not known".into(), |at| chart::date(at, DAY))
}

fn traffic(derived: &Derived<'_>) -> Markup {
    let totals = &derived.totals;
    let mut days: BTreeMap<u64, Levels> = BTreeMap::new();
    for period in once(derived.periods).map(|p| &p.period) {
        days.entry(period.start / DAY * DAY).or_default().add(period.levels);
    }
    let (first, last) = (days.keys().next().copied(), days.keys().next_back().copied());
    let columns: Vec<Column> = match (first, last) {
        (Some(first), Some(last)) => (first..=last)
            .step_by(DAY as usize)
            .map(|start| Column { start, levels: days.get(&start).copied() })
            .collect(),
        _ => Vec::new(),
    };
    let sum = all(&totals.levels);
    let levels = Level::ALL.into_iter().rev().map(|level| {
        let (amount, round) = (chart::of(&totals.levels, level), Round::of(level));
        [
            cell(level),
            cell(chart::amount(amount.connections, Unit::Connections)),
            cell(percent(permille(amount.connections, sum.connections, round))),
            cell(chart::amount(amount.bytes, Unit::Bytes)),
            cell(percent(permille(amount.bytes, sum.bytes, round))),
            cell(chart::meaning(level)),
        ]
    });
    html! {
        h2 { "Traffic" }
        p {
            "Sum of " (totals.entries) " entries of the log. Watched: "
            (percent(permille(totals.watched_seconds, totals.watchable_seconds, Round::Down)))
            " of the time of all members. What was not watched is not in these numbers."
        }
        (table("traffic", ["level", "#connections", "#share", "#bytes", "#share", "meaning"], levels))
        (chart::legend())
        (chart::columns(&Columns {
            id: "days", title: "Bytes by level, by day", unit: Unit::Bytes, length: DAY, columns: &columns,
        }))
    }
}

fn controls_table(controls: &ControlsFile, files: &[File]) -> Markup {
    html! {
        h2 { "Controls" }
        div.scroll tabindex="0" role="region" aria-label="Controls" {
            table.controls {
                thead { tr {
                    th scope="col" { "control" } th scope="col" { "evidence" } th scope="col" { "what that does not show" }
                } }
                tbody {
                    @for row in &controls.controls {
                        tr {
                            th scope="row" { b { (row.id) } p { (row.about) } }
                            td {
                                @match row.strength {
                                    Strength::Direct => b { "Evidence" },
                                    Strength::Part => b { "Evidence for a part of it" },
                                    Strength::None => b { "No evidence" },
                                }
                                @for evidence in &row.evidence { (evidence_of(evidence, files)) }
                            }
                            td { (text(row.limit)) }
                        }
                    }
                }
            }
        }
    }
}

/// A text with commands in backquotes.
fn text(text: &str) -> Markup {
    html! {
        @for (n, part) in text.split('`').enumerate() {
            @if n % 2 == 0 { (part) } @else { code { (part) } }
        }
    }
}

fn evidence_of(row: &EvidenceRow, files: &[File]) -> Markup {
    let hash = |name: &str| files.iter().find(|f| f.name == name).map(|f| sha256(&f.bytes));
    html! {
        details {
            summary { (row.kind.word()) ": " (row.says.first().map_or("", String::as_str)) }
            ul { @for text in row.says.iter().skip(1) { li { (text) } } }
            p.dim {
                "By " (row.basis) "."
                @if let Some((count, first, last)) = row.entries {
                    " " (count) " entries of the log, index " (first) " to " (last) "; their proofs are in log.json."
                }
            }
            ul.dim {
                @for name in &row.files {
                    li { (name) " " code { (hash(name).unwrap_or_default()) } }
                }
            }
        }
    }
}

/// A table of which the first cell of each row is its name. A title that starts with `#` is of numbers.
fn table<const N: usize>(
    label: &str,
    titles: [&str; N],
    rows: impl Iterator<Item = [Markup; N]>,
) -> Markup {
    let class = |n: usize| titles[n].starts_with('#').then_some("n");
    html! {
        div.scroll tabindex="0" role="region" aria-label={ "Table: " (label) } {
            table.numbers {
                thead { tr {
                    @for (n, title) in titles.iter().enumerate() {
                        th class=[class(n)] scope="col" { (title.trim_start_matches('#')) }
                    }
                } }
                tbody {
                    @for row in rows { tr {
                        @for (n, cell) in row.into_iter().enumerate() {
                            @if n == 0 { th scope="row" { (cell) } } @else { td class=[class(n)] { (cell) } }
                        }
                    } }
                }
            }
        }
    }
}

fn cell(text: impl std::fmt::Display) -> Markup {
    html! { (text) }
}

fn exceptions(derived: &Derived<'_>) -> Markup {
    let rows = derived.exceptions().iter().map(|row| {
        [
            cell(&row.node),
            html! { (kind(row.kind)) " " (row.what) },
            cell(row.state.word()),
            cell(row.owner.as_deref().unwrap_or("none named")),
            cell(row.until.map_or_else(|| "open".into(), |at| date(Some(at)))),
            cell(row.reason.as_deref().unwrap_or("none given")),
        ]
    });
    let titles = ["node", "exception", "state", "owner", "until", "reason"];
    html! {
        h2 { "Exceptions at the export" }
        @if derived.exceptions().is_empty() { p { "No node reported any." } } @else { (table("exceptions", titles, rows)) }
    }
}

fn kind(kind: ExceptionKind) -> &'static str {
    match kind {
        ExceptionKind::Pass => "pass",
        ExceptionKind::Observe => "observe",
        ExceptionKind::Permissive => "permissive",
        ExceptionKind::ForeignPeer => "foreign peer",
        ExceptionKind::Other => "other",
    }
}

fn changes(derived: &Derived<'_>) -> Markup {
    let rows = derived
        .mode_changes()
        .iter()
        .map(|row| [cell(named(row.start, row.length)), cell(modes(&row.value)), cell(row.index)]);
    html! {
        h2 { "Modes, and their changes" }
        @if derived.mode_changes().is_empty() { p { "Nothing is logged for this period." } }
        @else { (table("modes", ["from", "nodes", "#entry"], rows)) }
    }
}

fn nodes(derived: &Derived<'_>) -> Markup {
    let watches = |watching: Option<bool>| match watching {
        Some(true) => "yes",
        Some(false) => "no",
        None => "not known",
    };
    let rows = derived.nodes().iter().map(|row| {
        [
            cell(&row.node),
            cell(row.version.as_deref().unwrap_or("not known")),
            cell(row.mode.map_or("none", |mode| mode.word())),
            cell(watches(row.watching)),
            cell(date(Some(row.joined_at))),
            cell(date(row.last_seen)),
        ]
    });
    html! {
        h2 { "Nodes at the export" }
        (table("nodes", ["node", "version", "mode", "watches", "joined", "last seen"], rows))
    }
}

fn keys(derived: &Derived<'_>) -> Markup {
    let rows = derived.keys().iter().map(|key| {
        [
            cell(&key.name),
            cell(&key.algorithm),
            cell(&key.holder),
            cell(&key.power),
            cell(key.expires.map_or_else(|| "never".into(), |at| date(Some(at)))),
            html! { code { (key.fingerprint) } },
        ]
    });
    html! {
        h2 { "Keys" }
        (table("keys", ["key", "algorithm", "who holds it", "what it can do", "expires", "fingerprint"], rows))
    }
}

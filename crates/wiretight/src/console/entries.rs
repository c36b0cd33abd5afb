//! The log: its newest checkpoint, a search by name, an entry, and its proof. Each request reads a bounded number of
//! entries, and continues where the one before ended.

use maud::{Markup, html};
use wiretight_keys::logged::{Entry, LoggedCertificate};
use wiretight_keys::token::hex;
use wiretight_tlog::tile::{Kind, Tile, WIDTH};
use wiretight_tlog::{Hash, Proof};

use super::model::Model;
use super::parts::{
    Head, command, count, link, page, relative, small_command, span, state, table, text, time,
};
use super::query::Query;
use crate::authority::{AuthorityError, AuthorityHandle};
use crate::log::monitor::name::Name;
use crate::log::sequencer::{Log, LogError};
use crate::proof::chart::{date, grouped};

/// Bundles of 256 entries that a request reads at most.
const BUNDLES: u64 = 16;
/// Entries that a page shows at most.
const SHOWN: usize = 100;
/// Names of a certificate that are shown.
const NAMES: usize = 32;

/// Entries that were found, newest first, and how far the log was read.
pub struct Found {
    pub entries: Vec<(u64, Vec<u8>)>,
    /// The first index that was read, and the size of the log.
    pub from: u64,
    pub size: u64,
}

/// Reads entries backwards from `before`, or from the end, and keeps those that `wanted` accepts.
async fn read(
    log: &Log,
    before: Option<u64>,
    wanted: impl Fn(&[u8]) -> bool,
) -> Result<Found, LogError> {
    let size = log.checkpoint().map_or(0, |checkpoint| checkpoint.unverified().size);
    let end = before.unwrap_or(size).min(size);
    let mut found = Found { entries: Vec::new(), from: end, size };
    for _ in 0..BUNDLES {
        let Some(last) = found.from.checked_sub(1) else { break };
        let bundle = last / WIDTH;
        let Some(tile) = Tile::of_tree(Kind::Entries, bundle, size) else { break };
        let bytes = log.tile(tile).await?.unwrap_or_default();
        let entries = tile.entries(&bytes).unwrap_or_default();
        let indexed = (bundle * WIDTH..found.from).zip(entries).collect::<Vec<_>>();
        for (index, entry) in indexed.into_iter().rev() {
            if wanted(entry) {
                found.entries.push((index, entry.to_vec()));
            }
            found.from = index;
            if found.entries.len() >= SHOWN {
                return Ok(found);
            }
        }
        found.from = bundle * WIDTH;
    }
    Ok(found)
}

/// Whether a certificate's names contain the text, or one can be accepted for it.
fn has_name(entry: &[u8], wanted: &str, name: &Name) -> bool {
    let Ok(Entry::Certificate(certificate)) = Entry::parse(entry) else { return false };
    certificate.names.iter().any(|of| {
        of.to_lowercase().contains(wanted)
            || Name::of_certificate(of).is_some_and(|of| of.meets(name))
    })
}

pub async fn search(log: &Log, query: &Query) -> Result<Found, LogError> {
    let wanted = query.text.to_lowercase();
    let name = Name::written(&query.text);
    let matches = |entry: &[u8]| wanted.is_empty() || has_name(entry, &wanted, &name);
    read(log, query.before, matches).await
}

pub fn log(model: &Model, query: &Query, found: &Found, checkpoint: Option<&str>) -> Markup {
    let (log, now) = (&model.facts.ca.log, model.facts.at);
    let rows = html! { @for (index, entry) in &found.entries { (entry_row(*index, entry)) } };
    let searched = !query.text.is_empty();
    let body = html! {
        h1 { "The log" }
        p.lead {
            (count(log.size, "entry")) ": every certificate before it was signed, every revocation, the totals of "
            "each hour, and the hash of each published proof page. "
            @match log.witnessed {
                _ if log.self_attested => { (state(false, "No witness confirms it.")) },
                Some((size, at)) => { (grouped(size)) " of them were cosigned by " (text(&log.quorum)) " " (relative(at, now)) "." },
                None => "They have not been cosigned yet.",
            }
        }
        dl.facts {
            div { dt { "Key" } dd { code.long { (text(&log.vkey)) } } }
            div { dt { "Witnesses" } dd { a href="/witnesses" { (count(log.witnesses.len() as u64, "witness")) } } }
            div { dt { "Files checked" } dd { @match log.verified {
                Some((size, at)) => { (grouped(size)) " entries, " (relative(at, now)) },
                None => "not since the start",
            } } }
            div { dt { "Damaged files" } dd { @if log.damaged.is_empty() { (state(true, "none")) } @else { (state(false, &log.damaged.len().to_string())) } } }
        }
        form.filter method="get" action="/log" role="search" {
            label { "Name in a certificate " input type="search" name="q" value=(text(&query.text)) maxlength="200" placeholder="service/db, web1, 10.0.0.5"; }
            button type="submit" { "Search" }
        }
        @if searched {
            p {
                "Entries " (grouped(found.from)) " to " (grouped(query.before.unwrap_or(found.size).min(found.size)))
                " were searched: " (found.entries.len()) " found. "
                strong { "A search proves no absence: " }
                "it shows what this authority shows you. A "
                b { "monitor" } " that others run reads all entries and reports each certificate for a name: "
                (small_command(&format!("wiretight monitor --policy POLICY --state DIR --watch {}", watched(&query.text))))
            }
        }
        (table("Entries", &[("Index", true), ("Kind", false), ("What", false), ("Time", false), ("Command", false)], rows))
        p.pager {
            @if found.from > 0 {
                @let before = found.from.to_string();
                a href=(link("/log", &[("q", query.text.as_str()), ("before", before.as_str())])) rel="next" {
                    @if searched { "search older entries" } @else { "older entries" }
                }
            } @else { "This is the start of the log." }
            @if query.before.is_some() { " " a href=(link("/log", &[("q", query.text.as_str())])) { "newest" } }
        }
        @if let Some(checkpoint) = checkpoint {
            details {
                summary { "The newest checkpoint, signed and cosigned" }
                pre { (text_block(checkpoint)) }
            }
        }
    };
    page(
        model,
        &Head {
            title: "Log",
            tab: "/log",
            commands: &["wiretight authority status", "wiretight authority log-key"],
        },
        body,
    )
}

/// The name in a command, if a shell takes it as one word.
fn watched(name: &str) -> &str {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"./:-_".contains(&b);
    if name.bytes().all(plain) && !name.starts_with('-') { name } else { "NAME" }
}

/// A text of several lines.
fn text_block(of: &str) -> String {
    of.lines().map(text).collect::<Vec<_>>().join("\n")
}

fn entry_row(index: u64, entry: &[u8]) -> Markup {
    let (kind, what, at) = described(entry);
    html! {
        tr {
            td.n { a href={ "/log/entry/" (index) } { (grouped(index)) } }
            td { (kind) }
            td { (what) }
            td { @if let Some(at) = at { (time(at)) } }
            td { (small_command(&verify_command(index))) }
        }
    }
}

fn verify_command(index: u64) -> String {
    format!("wiretight verify entry-{index}.tlog-proof --policy POLICY --entry entry-{index}")
}

/// The kind of an entry, what it says in one line, and its time.
fn described(entry: &[u8]) -> (&'static str, Markup, Option<u64>) {
    match Entry::parse(entry) {
        Ok(Entry::Certificate(of)) => {
            let kind = if of.is_ca { "CA certificate" } else { "certificate" };
            (kind, names(&of), Some(of.period.not_before))
        }
        Ok(Entry::Revocation(of)) => {
            let what = html! {
                (count(of.indexes.len() as u64, "range")) " of entries, "
                (grouped(of.series.len() as u64)) " series of serial numbers"
            };
            ("revocation", what, Some(of.at))
        }
        Ok(Entry::Period(of)) => {
            let query = [("start", of.start.to_string()), ("length", of.length.to_string())];
            let href =
                link("/period", &query.each_ref().map(|(name, value)| (*name, value.as_str())));
            let what = html! { a href=(href) { "traffic of " (date(of.start, of.length)) } };
            ("totals", what, Some(of.start.saturating_add(of.length)))
        }
        Ok(Entry::Publication(of)) => {
            ("publication", html! { code { (text(&of.manifest)) } }, Some(of.at))
        }
        Ok(Entry::Other(kind)) => {
            ("unknown", html! { "type " (kind) ", of a later release" }, None)
        }
        Err(why) => ("malformed", html! { (state(false, &why.to_string())) }, None),
    }
}

fn names(of: &LoggedCertificate) -> Markup {
    html! {
        @for (n, name) in of.names.iter().take(4).enumerate() { @if n > 0 { ", " } (text(name)) }
        @if of.names.len() > 4 { ", and " (of.names.len() - 4) " more" }
    }
}

/// An entry and its proof.
pub struct Proved {
    pub index: u64,
    pub entry: Vec<u8>,
    /// `Err`: why there is none now.
    pub proof: Result<Proof, String>,
}

/// `None` if the log does not have that many entries.
pub async fn prove(
    authority: &AuthorityHandle,
    index: u64,
) -> Result<Option<Proved>, AuthorityError> {
    let log = authority.log();
    let before = index.checked_add(1);
    let size = log.checkpoint().map_or(0, |checkpoint| checkpoint.unverified().size);
    let (Some(before), true) = (before, index < size) else { return Ok(None) };
    let found = read_one(log, before).await.map_err(|e| AuthorityError::Refused(e.to_string()))?;
    let Some(entry) = found else { return Ok(None) };
    let proof = match authority.prove(&[index], &[]).await {
        Ok(mut proven) => {
            let hashes = proven.inclusion.pop().unwrap_or_default();
            let proof = Proof { extra: None, index, hashes, checkpoint: proven.checkpoint };
            // What is offered as a proof is one.
            let leaf = Hash::leaf(&entry);
            proof.verify(&log.policy(), leaf).map(|_| proof).map_err(|e| e.to_string())
        }
        Err(e) => Err(crate::logging::chain(&e)),
    };
    Ok(Some(Proved { index, entry, proof }))
}

async fn read_one(log: &Log, before: u64) -> Result<Option<Vec<u8>>, LogError> {
    let Some(index) = before.checked_sub(1) else { return Ok(None) };
    let size = log.checkpoint().map_or(0, |checkpoint| checkpoint.unverified().size);
    let Some(tile) = Tile::of_tree(Kind::Entries, index / WIDTH, size) else { return Ok(None) };
    let bytes = log.tile(tile).await?.unwrap_or_default();
    let entries = tile.entries(&bytes).unwrap_or_default();
    let place = usize::try_from(index % WIDTH).unwrap_or(usize::MAX);
    Ok(entries.get(place).map(|entry| entry.to_vec()))
}

pub fn entry(model: &Model, proved: &Proved) -> Markup {
    let Proved { index, entry, proof } = proved;
    let (kind, what, at) = described(entry);
    let now = model.facts.at;
    let title = format!("Entry {}", grouped(*index));
    let body = html! {
        p.crumb { a href="/log" { "Log" } }
        h1 { (title) }
        p.lead { (kind) ": " (what) @if let Some(at) = at { ", " (time(at)) ", " (relative(at, now)) } }
        @match Entry::parse(entry) {
            Ok(Entry::Certificate(of)) => (certificate(&of, now)),
            Ok(Entry::Revocation(of)) => section {
                h2 { "Revoked" }
                ul {
                    @for (from, to) in of.indexes.iter().take(SHOWN) { li { "certificates of entries " (grouped(*from)) " to " (grouped(*to)) } }
                    @for series in of.series.iter().take(SHOWN) { li { "series " code { (series.to_string()) } } }
                }
            },
            Ok(Entry::Period(_) | Entry::Publication(_)) => section {
                h2 { "Body" }
                pre { (String::from_utf8_lossy(entry.get(2..).unwrap_or_default()).chars().take(8192).collect::<String>()) }
            },
            _ => {},
        }
        section {
            h2 { "Proof" }
            p {
                "SHA-256 of the leaf: " code.long { (hex(Hash::leaf(entry).as_bytes())) } ", "
                (count(entry.len() as u64, "byte")) "."
            }
            @match proof {
                Ok(proof) => {
                    p {
                        (state(true, "The entry is in the log.")) " The hashes lead from it to the root of the tree of "
                        (grouped(proof.checkpoint.unverified().size)) " entries, which the log has signed and its witnesses have cosigned. "
                        "Check it yourself, offline:"
                    }
                    ul.downloads {
                        li { a href={ "/log/entry/" (index) "/raw" } download={ "entry-" (index) } { "the entry" } }
                        li { a href={ "/log/entry/" (index) "/proof" } download={ "entry-" (index) ".tlog-proof" } { "its proof" } }
                    }
                    (command(&verify_command(*index)))
                    details { summary { "The proof" } pre { (text_block(&proof.to_string())) } }
                },
                Err(why) => p { (state(false, "There is no proof now:")) " " (text(why)) },
            }
        }
        p.pager {
            @if let Some(before) = index.checked_sub(1) { a href={ "/log/entry/" (before) } rel="prev" { "previous entry" } " " }
            a href={ "/log/entry/" (index.saturating_add(1)) } rel="next" { "next entry" }
        }
    };
    page(model, &Head { title: &title, tab: "/log", commands: &[] }, body)
}

fn certificate(of: &LoggedCertificate, now: u64) -> Markup {
    html! {
        dl.facts {
            div { dt { "Names" } dd { ul.plain { @for name in of.names.iter().take(NAMES) { li { (text(name)) } } } } }
            div { dt { "CA" } dd { (if of.is_ca { "yes" } else { "no" }) } }
            div { dt { "Valid from" } dd { (time(of.period.not_before)) } }
            div { dt { "Valid until" } dd {
                (time(of.period.not_after)) ", " (relative(of.period.not_after, now))
                " (" (span(of.period.not_after.saturating_sub(of.period.not_before))) " in all)"
            } }
            div { dt { "SHA-256 of its key" } dd { code.long { (hex(&of.key)) } } }
            @if let Some(issuer) = &of.issuer_key { div { dt { "Issuer's key" } dd { code.long { (hex(issuer)) } } } }
            @if let Some(series) = of.series { div { dt { "Series" } dd { code.long { (series.to_string()) } } } }
            @if let Some(before) = &of.follows { div { dt { "Key before, which signed this one" } dd { code.long { (hex(before)) } } } }
        }
    }
}

//! The proof page, `index.html`: for a customer, from the published facts. No script, no other file, no request elsewhere.
//! Each number has its window and what is unknown beside it.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use wiretight_keys::claims::{Amount, DAY, HOUR, Levels, Protocol};
use wiretight_scan::judge::Level;
use wiretight_scan::report::clean;
use wiretight_tlog::Hash;

use super::chart::{
    self, Bar, Column, Columns, Round, Unit, amount, date, grouped, meaning, percent, permille,
};
use super::facts::LoggedPeriod;
use super::public::{Basis, Gap, GapKind, PublicFacts, Share, Window, when};
use super::reported::{Reported, Running};

/// The newest hours that have a chart.
const HOURS: u64 = 7 * 24;
/// Rows of algorithms and obstacles that are always visible.
const ROWS: usize = 12;

/// The page.
pub fn render(facts: &PublicFacts, logged: &[LoggedPeriod]) -> Markup {
    let style = format!("{}{}", chart::CSS, include_str!("page.css"));
    let csp = format!(
        "default-src 'none'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        Hash::of(style.as_bytes())
    );
    let name = clean(facts.name());
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(csp);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="referrer" content="no-referrer";
                meta name="robots" content="noarchive";
                title { "Encryption in transit: " (name) }
                style { (PreEscaped(&style)) }
            }
            body {
                (chart::defs())
                main {
                    header {
                        p.over { "Encryption in transit" }
                        h1 { (name) }
                        (summary(facts))
                    }
                    @if let Some(window) = facts.main() {
                        (cards(window))
                        (contents(facts))
                        (over_time(window, logged))
                        (windows(facts))
                        (algorithms(facts, window))
                        (obstacles(facts, window))
                        (gaps(facts))
                    }
                    @if let Some(reported) = &facts.reported { (self::reported(facts, reported)) }
                    (modes(facts))
                    @if let Some(running) = &facts.running { (self::running(running)) }
                    @if let Some(services) = &facts.services {
                        section aria-labelledby="services" {
                            h2 #services { "Services" }
                            (basis(Basis::Operator))
                            p { "The operator publishes their names: "
                                @for (i, service) in services.iter().enumerate() {
                                    @if i > 0 { ", " } code { (service) }
                                }
                                @if services.is_empty() { "none" } "."
                            }
                        }
                    }
                    (keys(facts))
                    (log(facts))
                    (limits())
                    (check(facts))
                    footer {
                        p {
                            "Made " (date(facts.at, HOUR)) " UTC by wiretight " (env!("CARGO_PKG_VERSION")) ". "
                            "All times are UTC. Shares are rounded against the publisher."
                        }
                        @if let Some(contact) = &facts.contact { p { "Questions: " (self::contact(contact)) } }
                    }
                }
            }
        }
    }
}

fn contact(text: &str) -> Markup {
    let text = clean(text);
    let link = ["https://", "mailto:"].iter().any(|scheme| text.starts_with(scheme));
    html! {
        @if link { a href=(text) rel="noreferrer" { (text.trim_start_matches("mailto:")) } }
        @else { (text) }
    }
}

/// The summary: the first three sentences large, the rest smaller.
fn summary(facts: &PublicFacts) -> Markup {
    let (first, rest) = facts.sentence.split_at(facts.sentence.len().min(3));
    html! {
        div.lead { @for text in first { p { (clean(text)) } } }
        @if !rest.is_empty() {
            p.rest { @for text in rest { (clean(text)) " " } }
        }
    }
}

fn both(share: &Share) -> String {
    format!("{} of connections", percent(share.of_connections))
}

fn cards(window: &Window) -> Markup {
    let when = when(window);
    let card = |class: &str, title: &str, share: &Share, more: &str| {
        html! {
            li.card.{ "c-" (class) } {
                h2 { (title) }
                b { (percent(share.of_bytes)) }
                p { "of bytes, " (both(share)) }
                p.dim { (more) }
            }
        }
    };
    let unknown = format!("{} of bytes are unknown", percent(window.unknown.of_bytes));
    let watched = permille(window.watched_seconds, window.watchable_seconds, Round::Down);
    html! {
        p.dim { "The numbers below are of the " (when) "." }
        ul.cards aria-label={ "Summary of the " (when) } {
            (card("strong", "Encrypted", &window.encrypted, &unknown))
            (card("acceptable", "Post-quantum", &window.post_quantum, &unknown))
            (card("unknown", "Unknown", &window.unknown, "counted as not encrypted"))
            li.card.c-dim {
                h2 { "Watched" }
                b { (percent(watched)) }
                p { "of the machines’ time" }
                p.dim {
                    (window.missing) " of " (window.periods.saturating_add(window.missing)) " "
                    (if window.length == HOUR { "hours" } else { "days" }) " missing"
                }
            }
        }
    }
}

fn contents(facts: &PublicFacts) -> Markup {
    let parts = [
        ("time", "Over time"),
        ("windows", "All windows"),
        ("algorithms", "Algorithms"),
        ("obstacles", "What is not strong"),
        ("gaps", "Gaps"),
        ("modes", "Machines"),
        ("keys", "Keys"),
        ("log", "Log and witnesses"),
        ("limits", "Limits of this page"),
        ("check", "Check it yourself"),
    ];
    html! {
        nav aria-label="Contents" {
            ul { @for (id, title) in parts.into_iter().filter(|(id, _)| *id != "modes" || facts.latest.is_some()) { li { a href={ "#" (id) } { (title) } } } }
        }
    }
}

/// Where the numbers of a section come from.
fn basis(basis: Basis) -> Markup {
    html! {
        p.basis {
            @match basis {
                Basis::Log => { b { "In the log. " } "It proves that nobody changed this later." }
                Basis::Operator => { b { "The operator’s word. " } "The log does not prove it." }
            }
        }
    }
}

/// A column for each period of a time, also for those that are not logged.
fn series(logged: &[LoggedPeriod], length: u64, most: u64) -> Vec<Column> {
    let of = || logged.iter().map(|l| &l.period).filter(|p| p.length == length);
    let (Some(oldest), Some(newest)) = (of().map(|p| p.start).min(), of().map(|p| p.start).max())
    else {
        return Vec::new();
    };
    let first = oldest.max(newest.saturating_sub((most - 1) * length));
    let mut by_start: std::collections::BTreeMap<u64, Levels> = Default::default();
    by_start.extend(of().map(|p| (p.start, p.levels)));
    let column = |n: u64| {
        let start = first + n * length;
        Column { start, levels: by_start.get(&start).copied() }
    };
    (0..=(newest - first) / length).map(column).collect()
}

fn over_time(window: &Window, logged: &[LoggedPeriod]) -> Markup {
    let hours = series(logged, HOUR, HOURS);
    let (month, year) = (series(logged, DAY, 31), series(logged, DAY, 366));
    let chart = |id, title, unit, length, columns: &[Column]| {
        chart::columns(&Columns { id, title, unit, length, columns })
    };
    let when = when(window);
    html! {
        section aria-labelledby="time" {
            h2 #time { "Over time" }
            (basis(Basis::Log))
            (chart::legend())
            (chart::bar(&Bar { id: "b-bytes", title: &format!("Bytes, {when}"), unit: Unit::Bytes, levels: &window.levels }))
            (chart::bar(&Bar { id: "b-connections", title: &format!("Connections, {when}"), unit: Unit::Connections, levels: &window.levels }))
            @if !month.is_empty() {
                (chart("month-bytes", "Bytes by day, 31 days", Unit::Bytes, DAY, &month))
                (chart("month-connections", "Connections by day, 31 days", Unit::Connections, DAY, &month))
            }
            @if !hours.is_empty() {
                (chart("hours-bytes", "Bytes by hour, 7 days", Unit::Bytes, HOUR, &hours))
                (chart("hours-connections", "Connections by hour, 7 days", Unit::Connections, HOUR, &hours))
            }
            @if year.len() > month.len() {
                (chart("year-bytes", "Bytes by day, one year", Unit::Bytes, DAY, &year))
            }
        }
    }
}

fn windows(facts: &PublicFacts) -> Markup {
    let all = [&facts.windows.day, &facts.windows.month, &facts.windows.year];
    let all: Vec<&Window> = all.into_iter().flatten().collect();
    let cell = |share: &Share| {
        html! { td.n { (percent(share.of_connections)) " / " (percent(share.of_bytes)) } }
    };
    html! {
        section aria-labelledby="windows" {
            h2 #windows { "All windows" }
            (basis(Basis::Log))
            p.dim { "Shares of connections / of bytes. Encrypted means acceptable or strong: weak encryption does not count." }
            div.scroll tabindex="0" role="region" aria-label="Table of all windows" {
                table.numbers.wrap {
                    thead { tr {
                        th scope="col" { "Window" }
                        @for title in ["Encrypted", "Unknown", "Plaintext", "Weak", "Post-quantum", "Traffic", "Watched", "Missing"] {
                            th.n scope="col" { (title) }
                        }
                    } }
                    tbody {
                        @for w in all { tr {
                            th scope="row" { (when(w)) }
                            (cell(&w.encrypted)) (cell(&w.unknown)) (cell(&w.plaintext)) (cell(&w.weak)) (cell(&w.post_quantum))
                            td.n { (grouped(w.all.connections)) " / " (amount(w.all.bytes, Unit::Bytes)) }
                            td.n { (percent(permille(w.watched_seconds, w.watchable_seconds, Round::Down))) }
                            td.n { (w.missing) " of " (w.missing.saturating_add(w.periods)) }
                        } }
                    }
                }
            }
        }
    }
}

/// A share as a short bar.
fn meter(share: Option<u64>) -> Markup {
    let width = share.unwrap_or(0).min(1000);
    html! {
        svg width="100%" height="10" aria-hidden="true" focusable="false" {
            rect.back width="100%" height="100%" {}
            rect width={ (width / 10) "." (width % 10) "%" } height="100%" {}
        }
    }
}

/// A table of which the first rows are visible, and the rest can be opened.
fn rows(head: &Markup, rows: &[Markup], label: &str) -> Markup {
    let (first, rest) = rows.split_at(rows.len().min(ROWS));
    let table = |rows: &[Markup], more: &str| {
        html! {
            div.scroll tabindex="0" role="region" aria-label={ "Table: " (label) (more) } {
                table.numbers { thead { (head) } tbody { @for row in rows { (row) } } }
            }
        }
    };
    html! {
        (table(first, ""))
        @if !rest.is_empty() {
            details { summary { (rest.len()) " more" } (table(rest, ", the rest")) }
        }
    }
}

/// A row about an algorithm; `more` are further cells.
fn algorithm(a: &wiretight_keys::claims::Algorithm, more: &Markup) -> Markup {
    html! { tr {
        th scope="row" { (clean(&a.version)) }
        td { (clean(&a.key_exchange)) }
        td { (clean(&a.cipher)) }
        td { (if a.post_quantum { "yes" } else { "no" }) }
        td.n { (grouped(a.amount.connections)) }
        td.n { (amount(a.amount.bytes, Unit::Bytes)) }
        (more)
    } }
}

fn algorithm_head(more: &Markup) -> Markup {
    html! { tr {
        th scope="col" { "Protocol" } th scope="col" { "Key exchange" } th scope="col" { "Cipher" }
        th scope="col" { "Post-quantum" } th.n scope="col" { "Connections" } th.n scope="col" { "Bytes" }
        (more)
    } }
}

fn algorithms(facts: &PublicFacts, window: &Window) -> Markup {
    let mut encrypted = window.encrypted.amount;
    encrypted.add(window.weak.amount);
    let row = |a: &wiretight_keys::claims::Algorithm| {
        let share = permille(a.amount.bytes, encrypted.bytes, Round::Down);
        algorithm(a, &html! { td.n { (percent(share)) } td.meter { (meter(share)) } })
    };
    let head = algorithm_head(&html! { th.n scope="col" { "Of encrypted bytes" } td {} });
    let all: Vec<Markup> = facts.algorithms.rows.iter().map(row).collect();
    html! {
        section aria-labelledby="algorithms" {
            h2 #algorithms { "Algorithms" }
            (basis(Basis::Log))
            p { "What encrypted connections negotiated in the " (when(window)) ", weak ones included. "
                "Nothing is known of the " (percent(window.unknown.of_bytes)) " of all bytes that are unknown." }
            @if all.is_empty() { p { "No encrypted connection was seen." } }
            @else { (rows(&head, &all, "Algorithms")) }
        }
    }
}

/// A level with its pattern.
fn level(text: &str) -> Markup {
    let known = text.parse::<Level>().ok();
    html! {
        span.level {
            @if let Some(level) = known { (chart::swatch(level)) }
            (clean(text))
        }
    }
}

/// Why traffic of this kind is not strong.
fn why(row: &Protocol) -> &'static str {
    match row.level.parse() {
        Ok(level) => meaning(level),
        Err(_) => "a level that this release does not know",
    }
}

fn obstacles(facts: &PublicFacts, window: &Window) -> Markup {
    let row = |p: &Protocol| {
        let share = |part, all| percent(permille(part, all, Round::Up));
        let Amount { connections, bytes } = p.amount;
        html! { tr {
            th scope="row" { (clean(&p.protocol)) }
            td { (level(&p.level)) }
            td.n { (grouped(connections)) } td.n { (share(connections, window.all.connections)) }
            td.n { (amount(bytes, Unit::Bytes)) } td.n { (share(bytes, window.all.bytes)) }
            td { (why(p)) }
        } }
    };
    let head = html! { tr {
        th scope="col" { "Protocol" } th scope="col" { "Level" }
        th.n scope="col" { "Connections" } th.n scope="col" { "of all" }
        th.n scope="col" { "Bytes" } th.n scope="col" { "of all" } th scope="col" { "Meaning" }
    } };
    let all: Vec<Markup> = facts.obstacles.rows.iter().map(row).collect();
    let strong = percent(permille(window.levels.strong.bytes, window.all.bytes, Round::Down));
    html! {
        section aria-labelledby="obstacles" {
            h2 #obstacles { "What is not strong, and what it is" }
            (basis(Basis::Log))
            p { "In the " (when(window)) ", " (strong) " of bytes were strong. These protocols carried the rest. "
                (amount(window.missed.bytes, Unit::Bytes)) " crossed the machines’ interfaces without belonging to a known connection; they count as unknown." }
            @if all.is_empty() { p { "No connection was less than strong." } }
            @else { (rows(&head, &all, "What is not strong")) }
        }
    }
}

fn gaps(facts: &PublicFacts) -> Markup {
    let gaps = &facts.gaps;
    let what = |gap: &Gap| match gap.kind {
        GapKind::NotLogged => {
            "nothing was logged: the authority did not run, or could not log".to_owned()
        }
        GapKind::NodesSilent => format!(
            "{} did not report: their traffic is in no number of this page",
            if gap.silent == 1 { "1 machine".into() } else { format!("{} machines", gap.silent) }
        ),
    };
    html! {
        section aria-labelledby="gaps" {
            h2 #gaps { "Gaps and incidents" }
            (basis(Basis::Log))
            @if let (Some(from), Some(to)) = (gaps.from, gaps.to) {
                p { "Of the hours from " (date(from, HOUR)) " to " (date(to, HOUR)) " UTC:" }
            }
            @if gaps.rows.is_empty() { p { "No hour is missing, and every machine of the mesh reported in each." } }
            @else {
                ul.plain {
                    @for gap in &gaps.rows {
                        li { (date(gap.from, HOUR)) " to " (date(gap.to, HOUR)) ": " (what(gap)) "." }
                    }
                    @if gaps.more > 0 { li { "and " (gaps.more) " older gaps" } }
                }
            }
        }
    }
}

/// What machines report, as long as nothing is logged.
fn reported(facts: &PublicFacts, sum: &Reported) -> Markup {
    let next = facts.at / HOUR * HOUR + HOUR;
    let head = algorithm_head(&html! {});
    let all: Vec<Markup> = sum.algorithms.iter().map(|a| algorithm(a, &html! {})).collect();
    let of = |n: usize| {
        format!("{n} of {} {}", sum.members, if sum.members == 1 { "machine" } else { "machines" })
    };
    html! {
        section aria-labelledby="reported" {
            h2 #reported { "Now, not in the log yet" }
            (basis(Basis::Operator))
            p { "This is what the machines themselves said when this page was made, " (date(facts.at, HOUR)) " UTC. Nobody can check it, and it is not kept. "
                "The hour that is running ends at " (date(next, HOUR)) " UTC. It is in the log soon after that"
                (if sum.watching > 0 { ", and this page then shows it." } else { ", but without traffic, because no machine watches it." }) }
            ul.plain {
                li { b { (of(sum.reporting)) } " " (if sum.reporting == 1 { "has" } else { "have" }) " reported." }
                @if sum.watching == 0 {
                    li { "None of them watches its network traffic. So these are only the connections that are open now and that Wiretight itself encrypts; " b { "of all other traffic, nothing is known" } "." }
                } @else {
                    li { b { (of(sum.watching)) } " " (if sum.watching == 1 { "watches its" } else { "watch their" }) " network traffic, and " (if sum.watching == 1 { "reports" } else { "report" }) " what was seen since that began. Of the others, these are only the open connections that Wiretight itself encrypts." }
                }
                @if sum.more > 0 { li { (grouped(sum.more)) " pairs of machines did not fit into the reports." } }
            }
            @if sum.is_empty() { p { "No connection was reported." } }
            @else {
                (chart::legend())
                (chart::bar(&Bar { id: "r-bytes", title: "Bytes of these connections, as reported", unit: Unit::Bytes, levels: &sum.levels }))
                (chart::bar(&Bar { id: "r-connections", title: "These connections, as reported", unit: Unit::Connections, levels: &sum.levels }))
                @if !all.is_empty() { (rows(&head, &all, "Algorithms, as reported")) }
            }
        }
    }
}

fn modes(facts: &PublicFacts) -> Markup {
    let Some(latest) = &facts.latest else { return html! {} };
    let (m, e) = (&latest.modes, &latest.exceptions);
    let count = |n: u32, what: &str| html! { li { b { (n) } " " (what) } };
    html! {
        section aria-labelledby="modes" {
            h2 #modes { "Machines, modes and exceptions" }
            (basis(Basis::Log))
            p { "At the end of the hour that began " (date(latest.start, HOUR)) " UTC, the mesh had "
                (latest.nodes.members) " machines, of which " (latest.nodes.reported)
                " had reported their traffic (entry " (latest.index) " of the log). By their own word:" }
            ul.plain {
                (count(m.strict, "in strict mode: plaintext to other machines of the mesh is dropped"))
                (count(m.permissive, "in permissive mode: plaintext still passes, and is counted"))
                (count(m.observe, "only observe"))
                (count(m.none, "without interception, or not known"))
            }
            p { "Exceptions from encryption that are configured: " b { (e.explained) } " with a reason, an owner and an end date; "
                b { (e.expired) } " expired; " b { (e.unexplained) } " not explained." }
            p { "Releases: "
                @for (i, r) in latest.releases.iter().enumerate() {
                    @if i > 0 { ", " } (clean(&r.version)) " on " (r.nodes)
                }
                @if latest.releases.is_empty() { "not known" } "." }
        }
    }
}

fn running(of: &Running) -> Markup {
    html! {
        section aria-labelledby="running" {
            h2 #running { "Releases that run" }
            (basis(Basis::Operator))
            p { "Each machine says which program it runs. The authority verified, by the operator's release policy, that this program was published in a public log. "
                "That the machine runs it is the machine's own word (level L0): nobody else can see that. By their own word, of the machines:" }
            ul.plain {
                @for release in &of.proved {
                    li { b { (release.nodes) } " run " b { (clean(&release.version)) } ", a proved release." }
                }
                li { b { (of.unproved) } " run a program that is not proved." }
                @if of.unknown > 0 { li { b { (of.unknown) } " do not say what they run." } }
            }
        }
    }
}

fn keys(facts: &PublicFacts) -> Markup {
    html! {
        section aria-labelledby="keys" {
            h2 #keys { "Keys, and who holds them" }
            (basis(Basis::Operator))
            @if facts.keys.rows.is_empty() { p { "The operator names no keys." } }
            div.keys {
                @for key in &facts.keys.rows {
                    div.keyfact {
                        h3 { (clean(&key.name)) " (" (clean(&key.algorithm)) ")" }
                        p { (clean(&key.holder)) }
                        p { (clean(&key.power)) }
                        p.dim {
                            code { (clean(&key.fingerprint)) }
                            @if let Some(expires) = key.expires { " valid until " (date(expires, DAY)) }
                        }
                    }
                }
            }
        }
    }
}

fn log(facts: &PublicFacts) -> Markup {
    let log = &facts.log;
    html! {
        section aria-labelledby="log" {
            h2 #log { "The log and its witnesses" }
            (basis(Basis::Log))
            dl {
                dt { "Log" } dd { (clean(&log.origin)) }
                dt { "Its key" } dd { code { (clean(&log.vkey)) } }
                dt { "Entries" } dd { (grouped(log.size)) }
                dt { "Required cosignatures" } dd { (clean(&log.quorum)) }
                dt { "Cosigned" } dd {
                    @match log.cosigned_at {
                        Some(at) => {
                            (date(at, HOUR)) " UTC, " (facts.at.saturating_sub(at) / 60)
                            " minutes before this page was made"
                        }
                        None => "by no witness: the operator alone vouches for this log",
                    }
                }
            }
            @if !log.witnesses.is_empty() {
                h3 { "Witnesses" }
                div.scroll tabindex="0" role="region" aria-label="Table of the witnesses" {
                    table.numbers {
                        thead { tr { th scope="col" { "Witness" } th scope="col" { "Cosigned this checkpoint" } } }
                        tbody {
                            @for w in &log.witnesses { tr {
                                th scope="row" { (clean(&w.name)) }
                                td { @match w.cosigned_at {
                                    Some(at) => { "✓ " (date(at, HOUR)) " UTC" }
                                    None => "✗ no",
                                } }
                            } }
                        }
                    }
                }
            }
        }
    }
}

fn limits() -> Markup {
    html! {
        section aria-labelledby="limits" {
            h2 #limits { "What this page cannot show" }
            ul.plain {
                li { "The log proves that a number was not changed later, and that everybody is shown the same. It does not prove that a number was true when it was written: machines are believed, and a machine that lies is not noticed here." }
                li { "Only machines of the mesh are watched. Machines that do not belong to it, and those that did not report, are in no share. “Watched” says how much of the machines’ time was." }
                li { "A connection between two machines of the mesh is counted at both ends. Traffic that never leaves a machine is not counted." }
                li { "“Encrypted” is judged by the first packets of a connection. What an application encrypts inside its own protocol is not recognised and is unknown or plaintext; what happens to the data on the machines is not seen at all." }
                li { "“Unknown” is what could not be determined. It is never counted as encrypted." }
                li { "This page and verify.html come from the operator’s own server. If you do not want to trust it, get verify.html, or the wiretight program, from somewhere else." }
            }
        }
    }
}

fn check(facts: &PublicFacts) -> Markup {
    html! {
        section aria-labelledby="check" {
            h2 #check { "Check it yourself" }
            ul.plain {
                li { a href="verify.html" { "verify.html" } " checks everything here in your browser, without another server: signatures of the log and its witnesses, that each hour and day is in the log, all sums, and the hash of this page." }
                li { "Come back with the checkpoint of your last visit, and it proves that nothing was removed or changed since." }
                li { "The numbers: " a href="facts.json" { "facts.json" } " (" a href="facts.schema.json" { "its schema" } "). What was logged, with proofs: "
                    a href="log.json" { "log.json" } ", " a href="consistency.json" { "consistency.json" } ", " a href="publication.json" { "publication.json" } "." }
                li { "The hashes of all files are in " a href="manifest" { "manifest" } ", and its own hash is in the log: a page that is made for one visitor only would be noticed." }
            }
            p { "On a command line, with a copy of this folder and a policy that you got from somebody you trust:" }
            pre tabindex="0" { code {
                "sha256sum -c manifest\n"
                "jq -j .checkpoint log.json > checkpoint\n"
                "wiretight verify checkpoint --policy policy"
            } }
            p.dim { "The policy that this folder was made with is in log.json. It names the log " (clean(&facts.log.origin)) " and " (facts.log.witnesses.len()) " witnesses." }
        }
    }
}

//! Charts as SVG, made on the server: without scripts and `style=`, readable at any width and zoom, in the dark and in
//! print. What a colour says is also said by a pattern and by words, and the numbers are in a table below.
//!
//! Positions are per cent of the drawing, so nothing is scaled: lines and patterns keep their size on a phone. The text of
//! the axes is HTML beside the drawing.

use jiff::Timestamp;
use maud::{Markup, html};
use wiretight_keys::claims::{Amount, Levels};
use wiretight_scan::judge::Level;

/// The style of charts, and the colours of levels. A page includes it once.
pub const CSS: &str = include_str!("chart.css");

/// From the bottom of a column to its top.
const STACK: [Level; 5] =
    [Level::Strong, Level::Acceptable, Level::Weak, Level::Plaintext, Level::Unknown];
/// More columns than these have no tooltips.
const TOOLTIPS: usize = 100;

/// What a level means, in one line.
pub fn meaning(level: Level) -> &'static str {
    match level {
        Level::Strong => "encrypted, also against the quantum computers of the future",
        Level::Acceptable => "encrypted as current standards require",
        Level::Weak => "encrypted, but breakable, or with an unproved server",
        Level::Plaintext => "not encrypted",
        Level::Unknown => "not determined, or not seen",
    }
}

/// The amount of a level.
pub fn of(levels: &Levels, level: Level) -> Amount {
    match level {
        Level::Unknown => levels.unknown,
        Level::Plaintext => levels.plaintext,
        Level::Weak => levels.weak,
        Level::Acceptable => levels.acceptable,
        Level::Strong => levels.strong,
    }
}

/// What a chart counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Connections,
    Bytes,
}

impl Unit {
    pub fn word(self) -> &'static str {
        match self {
            Unit::Connections => "connections",
            Unit::Bytes => "bytes",
        }
    }

    fn of(self, amount: Amount) -> u64 {
        match self {
            Unit::Connections => amount.connections,
            Unit::Bytes => amount.bytes,
        }
    }
}

/// A time in a chart. `levels` is `None` if nothing was logged.
#[derive(Debug, Clone)]
pub struct Column {
    /// In seconds since 1970.
    pub start: u64,
    pub levels: Option<Levels>,
}

/// Shares by level over time, one column each, oldest first.
pub struct Columns<'a> {
    /// Unique in the page.
    pub id: &'a str,
    pub title: &'a str,
    pub unit: Unit,
    /// The length of a column, in seconds.
    pub length: u64,
    pub columns: &'a [Column],
}

/// Shares by level of one time, as a bar.
pub struct Bar<'a> {
    pub id: &'a str,
    pub title: &'a str,
    pub unit: Unit,
    pub levels: &'a Levels,
}

/// `2026-11-30`, or with the hour `2026-11-30 14:00`.
pub fn date(at: u64, length: u64) -> String {
    let form = if length >= 86_400 { "%Y-%m-%d" } else { "%Y-%m-%d %H:%M" };
    let at = i64::try_from(at).ok().and_then(|at| Timestamp::from_second(at).ok());
    at.map_or_else(|| "an impossible time".into(), |at| at.strftime(form).to_string())
}

/// How a share is rounded: never in favour of the one who claims it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// For what is good.
    Down,
    /// For what is not.
    Up,
}

impl Round {
    /// For the share of a level.
    pub fn of(level: Level) -> Round {
        if level >= Level::Acceptable { Round::Down } else { Round::Up }
    }
}

/// `part` of `all` in thousandths; `None` if there is nothing.
pub fn permille(part: u64, all: u64, round: Round) -> Option<u64> {
    let (part, all) = (u128::from(part) * 1000, u128::from(all));
    let share = match round {
        Round::Down => part.checked_div(all)?,
        Round::Up if all == 0 => return None,
        Round::Up => part.div_ceil(all),
    };
    u64::try_from(share).ok()
}

/// `98.2 %`; `–` for nothing.
pub fn percent(permille: Option<u64>) -> String {
    permille.map_or("–".into(), |share| format!("{}.{} %", share / 10, share % 10))
}

fn total(levels: &Levels, unit: Unit) -> u64 {
    STACK.iter().fold(0, |sum: u64, level| sum.saturating_add(unit.of(of(levels, *level))))
}

/// The patterns of the levels. Once in a page, before the first chart.
pub fn defs() -> Markup {
    html! {
        svg.defs width="0" height="0" aria-hidden="true" focusable="false" {
            defs {
                @for (level, turn) in [("acceptable", 45), ("weak", 135), ("plaintext", 0), ("unknown", 45)] {
                    pattern id={ "p-" (level) } width="6" height="6" patternUnits="userSpaceOnUse"
                        patternTransform={ "rotate(" (turn) ")" } {
                        rect.ground width="6" height="6" {}
                        rect class=(level) width="6" height="6" {}
                        @match level {
                            "acceptable" => { rect.ground width="1" height="6" {} }
                            "weak" => { rect.ground width="3" height="6" {} }
                            "plaintext" => { circle.ground cx="3" cy="3" r="1.6" {} }
                            _ => {
                                rect.ground width="6" height="6" {}
                                rect class=(level) width="2" height="2" {}
                            }
                        }
                    }
                }
                pattern id="p-none" width="8" height="8" patternUnits="userSpaceOnUse"
                    patternTransform="rotate(135)" {
                    rect.none width="1" height="8" {}
                }
            }
        }
    }
}

/// The attribute that paints a level.
fn paint(level: Level) -> Option<String> {
    (level != Level::Strong).then(|| format!("url(#p-{level})"))
}

/// A small square with the colour and pattern of a level.
pub fn swatch(level: Level) -> Markup {
    html! {
        svg.key width="18" height="18" aria-hidden="true" focusable="false" {
            rect class=(level) width="18" height="18" fill=[paint(level)] {}
        }
    }
}

/// Which pattern is which level.
pub fn legend() -> Markup {
    html! {
        ul.legend {
            @for level in STACK {
                li {
                    (swatch(level))
                    b { (level) } " " (meaning(level))
                }
            }
            li {
                svg.key width="18" height="18" aria-hidden="true" focusable="false" {
                    rect.gap width="18" height="18" fill="url(#p-none)" {}
                }
                b { "no data" } " nothing was logged for this time"
            }
        }
    }
}

/// The rectangles of a stack: level, start and length in thousandths of a per cent of the whole.
fn stack(levels: &Levels, unit: Unit) -> Vec<(Level, u64, u64)> {
    let all = u128::from(total(levels, unit));
    let mut below = 0u128;
    let mut parts = Vec::new();
    for level in STACK {
        let from = (below * 100_000).checked_div(all).unwrap_or(0);
        below = (below + u128::from(unit.of(of(levels, level)))).min(all);
        let to = (below * 100_000).checked_div(all).unwrap_or(0);
        let part = |n: u128| u64::try_from(n).unwrap_or(100_000);
        if to > from {
            parts.push((level, part(from), part(to - from)));
        }
    }
    parts
}

/// `12.345%`
fn at(thousandths: u64) -> String {
    let (whole, part) = (thousandths / 1000, thousandths % 1000);
    let text = format!("{whole}.{part:03}");
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

/// `strong 97.1 %, unknown 0.3 %`
fn in_words(levels: &Levels, unit: Unit) -> String {
    let all = total(levels, unit);
    if all == 0 {
        return format!("no {}", unit.word());
    }
    let share = |level: Level| {
        let part = unit.of(of(levels, level));
        (part > 0 || level == Level::Unknown)
            .then(|| format!("{level} {}", percent(permille(part, all, Round::of(level)))))
    };
    STACK.iter().filter_map(|level| share(*level)).collect::<Vec<_>>().join(", ")
}

/// Columns with the numbers as a table.
pub fn columns(chart: &Columns<'_>) -> Markup {
    let Columns { id, title, unit, length, columns } = *chart;
    let (first, last) = (columns.first().map(|c| c.start), columns.last().map(|c| c.start));
    let (Some(first), Some(last)) = (first, last) else {
        return html! { p.dim { (title) ": there is no data yet." } };
    };
    let of = if length >= 86_400 { "day" } else { "hour" };
    let without = columns.iter().filter(|c| c.levels.is_none()).count();
    let middle = columns.get(columns.len() / 2).filter(|_| columns.len() >= 5);
    // The width of a column and of the space beside it, in thousandths of a per cent.
    let n = columns.len() as u64;
    let step = 100_000 / n;
    let wide = if n > 120 { step } else { step * 9 / 10 };
    html! {
        figure.chart {
            h3 #{ (id) "-t" } { (title) }
            div.plot {
                div.y aria-hidden="true" { span { "100 %" } span { "50 %" } span { "0 %" } }
                svg.columns role="img" aria-labelledby={ (id) "-t " (id) "-d" } width="100%" height="190" {
                    desc #{ (id) "-d" } {
                        "Shares of " (unit.word()) " by level of encryption for each " (of) " from "
                        (date(first, length)) " to " (date(last, length)) ". "
                        (columns.len() - without) " columns with data, " (without) " without. "
                        "The table below has the numbers."
                    }
                    @for y in ["0", "50%", "100%"] { line.grid x1="0" x2="100%" y1=(y) y2=(y) {} }
                    @for (i, column) in columns.iter().enumerate() {
                        @let x = at(i as u64 * 100_000 / n);
                        g {
                            @if columns.len() <= TOOLTIPS {
                                title {
                                    (date(column.start, length)) ": "
                                    @match &column.levels {
                                        Some(levels) => (in_words(levels, unit)),
                                        None => "no data",
                                    }
                                }
                            }
                            @match &column.levels {
                                None => { rect.gap x=(x) y="0" width=(at(wide)) height="100%" fill="url(#p-none)" {} }
                                Some(levels) => @for (level, from, size) in stack(levels, unit) {
                                    rect class=(level) x=(x) y=(at(100_000 - from - size)) width=(at(wide))
                                        height=(at(size)) fill=[paint(level)] {}
                                }
                            }
                        }
                    }
                }
                div.x aria-hidden="true" {
                    span { (date(first, length)) }
                    @if let Some(middle) = middle { span { (date(middle.start, length)) } }
                    span { (date(last, length)) }
                }
            }
            details {
                summary { "The numbers of “" (title) "”" }
                (table(chart, of))
            }
        }
    }
}

fn table(chart: &Columns<'_>, of: &str) -> Markup {
    let Columns { title, unit, length, columns, .. } = *chart;
    html! {
        div.scroll tabindex="0" role="region" aria-label={ "The numbers of “" (title) "”" } {
            table.numbers {
                thead { tr {
                    th scope="col" { (of) " (UTC)" }
                    th.n scope="col" { (unit.word()) }
                    @for level in STACK { th.n scope="col" { (level) } }
                } }
                tbody {
                    @for column in columns.iter().rev() {
                        tr {
                            th scope="row" { (date(column.start, length)) }
                            @match &column.levels {
                                None => { td colspan="6" { "no data" } }
                                Some(levels) => {
                                    @let all = total(levels, unit);
                                    td.n { (amount(all, unit)) }
                                    @for level in STACK {
                                        @let part = unit.of(self::of(levels, level));
                                        td.n { (percent(permille(part, all, Round::of(level)))) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `1.2 GB`, `1,234,567`
pub fn amount(n: u64, unit: Unit) -> String {
    match unit {
        Unit::Bytes => wiretight_scan::report::size(n),
        Unit::Connections => grouped(n),
    }
}

/// `1,234,567`
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A bar with the shares in words below it.
pub fn bar(chart: &Bar<'_>) -> Markup {
    let Bar { id, title, unit, levels } = *chart;
    html! {
        figure.chart {
            div.bartitle #{ (id) "-t" } { (title) }
            svg.bar role="img" aria-labelledby={ (id) "-t" } aria-describedby={ (id) "-d" } width="100%" height="26" {
                @if total(levels, unit) == 0 { rect.gap width="100%" height="100%" fill="url(#p-none)" {} }
                @for (level, from, size) in stack(levels, unit) {
                    rect class=(level) x=(at(from)) y="0" width=(at(size)) height="100%" fill=[paint(level)] {
                        title { (in_words(levels, unit)) }
                    }
                }
            }
            figcaption #{ (id) "-d" } { (in_words(levels, unit)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(strong: u64, weak: u64, unknown: u64) -> Levels {
        let amount = |n| Amount { connections: n, bytes: n * 100 };
        let (strong, weak, unknown) = (amount(strong), amount(weak), amount(unknown));
        Levels { strong, weak, unknown, ..Levels::default() }
    }

    #[test]
    fn shares_are_never_rounded_in_favour_of_who_claims_them() {
        assert_eq!(percent(permille(9999, 10_000, Round::Down)), "99.9 %");
        assert_eq!(percent(permille(1, 10_000, Round::Up)), "0.1 %");
        assert_eq!(percent(permille(10, 10, Round::Down)), "100.0 %");
        assert_eq!(percent(permille(0, 0, Round::Down)), "–");
        assert_eq!(percent(permille(0, 0, Round::Up)), "–");
        assert_eq!(permille(u64::MAX, u64::MAX, Round::Up), Some(1000));
        assert_eq!(
            (Round::of(Level::Weak), Round::of(Level::Acceptable)),
            (Round::Up, Round::Down)
        );
    }

    #[test]
    fn a_stack_fills_the_column_and_keeps_the_order() {
        let parts = stack(&levels(1, 1, 1), Unit::Connections);
        assert_eq!(parts.iter().map(|p| p.2).sum::<u64>(), 100_000);
        assert_eq!(
            parts.iter().map(|p| p.0).collect::<Vec<_>>(),
            [Level::Strong, Level::Weak, Level::Unknown]
        );
        assert!(stack(&levels(0, 0, 0), Unit::Bytes).is_empty());
        let huge = levels(u64::MAX / 200, u64::MAX / 200, u64::MAX / 200);
        assert!(stack(&huge, Unit::Bytes).iter().all(|(_, from, size)| from + size <= 100_000));
        assert_eq!([at(0), at(12_345), at(50_000), at(100_000)], ["0%", "12.345%", "50%", "100%"]);
    }

    #[test]
    fn a_gap_is_shown_as_a_gap_and_every_number_is_in_the_table() {
        let columns = [
            Column { start: 0, levels: Some(levels(98, 1, 1)) },
            Column { start: 3600, levels: None },
            Column { start: 7200, levels: Some(levels(0, 0, 0)) },
        ];
        let chart = Columns {
            id: "c",
            title: "<b>Hours</b>",
            unit: Unit::Connections,
            length: 3600,
            columns: &columns,
        };
        let page = super::columns(&chart).into_string();
        assert!(page.contains("role=\"img\"") && page.contains("<desc id=\"c-d\">"), "{page}");
        assert!(page.contains("1970-01-01 01:00: no data") && page.contains("url(#p-none)"));
        for number in ["98.0 %", "1.0 %", "<td colspan=\"6\">no data", "no connections"] {
            assert!(page.contains(number), "{number} is not in {page}");
        }
        assert!(page.contains("&lt;b&gt;Hours") && !page.contains("<b>Hours"));
        assert!(!page.contains("style="), "a strict CSP blocks it");
        let none = Columns { columns: &[], ..chart };
        assert!(super::columns(&none).into_string().contains("no data yet"));
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([grouped(0), grouped(999), grouped(1000)], ["0", "999", "1,000"]);
        assert_eq!(grouped(12_345_678), "12,345,678");
    }
}

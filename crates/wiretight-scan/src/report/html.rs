//! One self-contained page for auditors, without scripts.
//!
//! The summary comes first in the page, but is known last. Until then, targets are kept in a spool:
//! in memory while it is small, then in an unnamed file. So a page about a whole network needs little
//! memory.

use std::fmt::Write as _;
use std::io::{self, Seek, Write};

use tempfile::SpooledTempFile;

use super::Detail;
use super::text::html as esc;
use super::view::{self, Mark, Row, Section};
use crate::facts::Answer;
use crate::judge::{Judgement, Level, Profile, Reason};
use crate::{Reached, Report};

/// The data for the summary, and the spool.
pub(super) struct Html {
    spool: SpooledTempFile,
    rows: Vec<String>,
    levels: [usize; Level::ALL.len()],
    /// When the first and the last scan started.
    times: Option<(jiff::Timestamp, jiff::Timestamp)>,
    /// For each problem that was found: its level, its text, and how many targets have it.
    reasons: std::collections::BTreeMap<String, (Level, String, usize)>,
    /// For each profile, how many targets meet it, do not meet it, or could not be determined.
    profiles: Vec<[usize; 3]>,
    /// How many TLS targets have each of the [properties](SHARES).
    shares: [usize; SHARES.len()],
    encrypted: usize,
}

/// A property of a target, and the check for it.
type Share = (&'static str, fn(&Report) -> bool);

/// Properties that the summary counts over all targets.
const SHARES: [Share; 4] = [
    ("offer TLS 1.3", |report| report.facts.yes("protocol.tls1_3")),
    ("offer a post-quantum key exchange", |report| report.facts.yes("post_quantum")),
    ("reject all versions before TLS 1.2", |report| {
        let old = ["ssl2", "ssl3", "tls1_0", "tls1_1"];
        old.iter().all(|v| report.facts.answer(&format!("protocol.{v}")) == Answer::No)
    }),
    ("have a trusted, valid certificate for their name", |report| {
        certificate(report) == Answer::Yes
    }),
];

/// Whether the certificate is trusted, valid, and for the host name.
fn certificate(report: &Report) -> Answer {
    let rules = ["certificate-untrusted", "certificate-name", "certificate-validity"];
    let reasons = report.judgement.reasons.iter();
    let blamed = reasons.filter(|reason| rules.contains(&reason.rule.as_ref()));
    match blamed.map(|reason| reason.answer).min() {
        _ if report.reached != Reached::Tls => Answer::Untested,
        Some(Answer::Yes) => Answer::No,
        Some(answer) => answer,
        None => Answer::Yes,
    }
}

impl Default for Html {
    fn default() -> Self {
        Self {
            spool: tempfile::spooled_tempfile(4 << 20),
            rows: Vec::new(),
            levels: [0; Level::ALL.len()],
            times: None,
            reasons: Default::default(),
            profiles: vec![[0; 3]; Profile::ALL.len()],
            shares: [0; SHARES.len()],
            encrypted: 0,
        }
    }
}

impl Html {
    pub(super) fn report(&mut self, report: &Report) -> io::Result<()> {
        let judgement = &report.judgement;
        if let Some(at) = Level::ALL.iter().position(|level| *level == judgement.level) {
            self.levels[at] += 1;
        }
        let started = report.started;
        let (first, last) = self.times.unwrap_or((started, started));
        self.times = Some((first.min(started), last.max(started)));
        for reason in judgement.reasons.iter().filter(|reason| reason.answer == Answer::Yes) {
            let rule = crate::judge::rules::RULES.iter().find(|rule| rule.id == reason.rule);
            let what = rule.map_or(reason.rule.as_ref(), |rule| rule.what);
            let entry = self.reasons.entry(reason.rule.to_string());
            entry.or_insert_with(|| (reason.level, what.to_owned(), 0)).2 += 1;
        }
        for (n, profile) in Profile::ALL.iter().enumerate() {
            match answer(judgement, *profile) {
                Answer::Yes => self.profiles[n][0] += 1,
                Answer::No => self.profiles[n][1] += 1,
                _ => self.profiles[n][2] += 1,
            }
        }
        if report.reached == Reached::Tls {
            self.encrypted += 1;
            for (n, (_, has)) in SHARES.iter().enumerate() {
                self.shares[n] += usize::from(has(report));
            }
        }
        let number = self.rows.len() + 1;
        self.rows.push(row(report, number));
        self.spool.write_all(target(report, number).as_bytes())
    }

    pub(super) fn finish(mut self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(HEAD.as_bytes())?;
        out.write_all(self.summary().as_bytes())?;
        out.write_all(b"<section aria-labelledby=\"targets\"><h2 id=\"targets\">Targets</h2>")?;
        out.write_all(b"<div class=\"scroll\"><table class=\"targets\"><thead><tr>")?;
        out.write_all(b"<th>Level</th><th>Target</th><th>Versions</th><th>Post-quantum</th>")?;
        out.write_all(b"<th>Certificate</th><th>Findings</th>")?;
        for profile in Profile::ALL {
            write!(out, "<th class=\"p\"><span>{}</span></th>", esc(profile.name()))?;
        }
        out.write_all(b"<th class=\"end\"></th></tr></thead><tbody>")?;
        for row in &self.rows {
            out.write_all(row.as_bytes())?;
        }
        out.write_all(b"</tbody></table></div></section>\n")?;
        self.spool.rewind()?;
        io::copy(&mut self.spool, out)?;
        out.write_all(FOOT.as_bytes())?;
        out.write_all(FOOT_END.as_bytes())
    }

    fn summary(&self) -> String {
        let mut page = String::new();
        let all: usize = self.levels.iter().sum();
        let when = match self.times {
            None => "no target was scanned".to_owned(),
            Some((first, last)) => {
                let form = "%Y-%m-%d %H:%M UTC";
                let (first, last) =
                    (first.strftime(form).to_string(), last.strftime(form).to_string());
                if first == last { first } else { format!("{first} to {last}") }
            }
        };
        let targets = if all == 1 { "1 target".to_owned() } else { format!("{all} targets") };
        let _ = write!(
            page,
            "<header><h1>Encryption in transit</h1><p class=\"sub\">{targets} · {} · wiretight scan {}</p></header>",
            esc(&when),
            env!("CARGO_PKG_VERSION"),
        );
        page.push_str("<section class=\"overview\"><div class=\"card\"><h2>Levels</h2>");
        // From the best to the worst, the unknown last.
        let order = [4, 3, 2, 1, 0];
        page.push_str("<div class=\"bar\" role=\"img\" aria-label=\"shares of the levels\">");
        for at in order.into_iter().filter(|at| self.levels[*at] > 0) {
            let level = Level::ALL[at];
            let _ =
                write!(page, "<i class=\"{level}\" style=\"flex-grow:{}\"></i>", self.levels[at]);
        }
        page.push_str("</div><table class=\"levels\">");
        for at in order {
            let (level, n) = (Level::ALL[at], self.levels[at]);
            let share = if all == 0 { 0.0 } else { n as f64 * 100.0 / all as f64 };
            let _ = write!(
                page,
                "<tr><td>{}</td><td class=\"n\">{n}</td><td class=\"n\">{share:.0} %</td><td class=\"dim\">{}</td></tr>",
                badge(level),
                meaning(level),
            );
        }
        page.push_str("</table>");
        if self.encrypted > 0 {
            let all = self.encrypted;
            let _ = write!(page, "<h3>Of {all} targets with TLS</h3><table class=\"shares\">");
            for ((what, _), n) in SHARES.iter().zip(self.shares) {
                let percent = n * 100 / all;
                let _ = write!(
                    page,
                    "<tr><td class=\"n\">{n}</td><td>{what}</td><td class=\"meter\"><i class=\"strong\" style=\"width:{percent}%\"></i></td></tr>",
                );
            }
            page.push_str("</table>");
        }
        page.push_str("</div><div class=\"card\"><h2>Profiles</h2><table class=\"profiles\">");
        page.push_str("<thead><tr><th></th><th class=\"n\">met</th><th class=\"n\">not met</th><th class=\"n\">unknown</th></tr></thead>");
        for (profile, [yes, no, open]) in Profile::ALL.iter().zip(&self.profiles) {
            let _ = write!(
                page,
                "<tr><td><b>{}</b><br><span class=\"dim\">{}</span></td><td class=\"n\">{yes}</td><td class=\"n\">{no}</td><td class=\"n\">{open}</td></tr>",
                esc(profile.name()),
                esc(profile.title()),
            );
        }
        page.push_str("</table></div></section>");
        page.push_str(&self.most_common(all));
        page
    }

    fn most_common(&self, all: usize) -> String {
        const MOST: usize = 10;
        if all < 2 || self.reasons.is_empty() {
            return String::new();
        }
        let mut reasons: Vec<_> = self.reasons.iter().collect();
        reasons.sort_by_key(|(rule, (level, _, n))| (*level, usize::MAX - n, (*rule).clone()));
        let mut page =
            String::from("<section><h2>Most frequent problems</h2><table class=\"often\">");
        for (rule, (level, what, n)) in reasons.iter().take(MOST) {
            let percent = n * 100 / all;
            let _ = write!(
                page,
                "<tr><td>{}</td><td>{}<code>{}</code></td><td class=\"n\">{n}</td><td class=\"meter\"><i class=\"{level}\" style=\"width:{percent}%\"></i></td></tr>",
                mark(if *level >= Level::Acceptable { Mark::Note } else { Mark::Bad }),
                esc(what),
                esc(rule),
            );
        }
        page.push_str("</table>");
        if reasons.len() > MOST {
            let _ = write!(page, "<p class=\"dim\">and {} more</p>", reasons.len() - MOST);
        }
        page.push_str("</section>");
        page
    }
}

pub(super) fn meaning(level: Level) -> &'static str {
    match level {
        Level::Strong => "also protects traffic recorded today against decryption in the future",
        Level::Acceptable => "meets BCP 195",
        Level::Weak => "encrypted, but breakable, or without proof of the server's identity",
        Level::Plaintext => "not encrypted",
        Level::Unknown => "could not be determined",
    }
}

pub(super) fn badge(level: Level) -> String {
    format!("<span class=\"badge {level}\">{level}</span>")
}

pub(super) fn mark(mark: Mark) -> &'static str {
    match mark {
        Mark::Good => "<span class=\"m good\" title=\"good\">✓</span>",
        Mark::Note => "<span class=\"m note\" title=\"could be better\">!</span>",
        Mark::Bad => "<span class=\"m bad\" title=\"weak\">✗</span>",
        Mark::Open => "<span class=\"m open\" title=\"could not be determined\">?</span>",
        Mark::Plain => "<span class=\"m\">·</span>",
    }
}

fn answer(judgement: &Judgement, profile: Profile) -> Answer {
    let verdict = judgement.profiles.iter().find(|verdict| verdict.profile == profile.name());
    verdict.map_or(Answer::Untested, |verdict| verdict.answer)
}

fn mark_answer(answer: Answer) -> &'static str {
    mark(match answer {
        Answer::Yes => Mark::Good,
        Answer::No => Mark::Bad,
        Answer::Inconclusive => Mark::Open,
        Answer::Untested => Mark::Plain,
    })
}

/// The row of a target in the summary.
fn row(report: &Report, number: usize) -> String {
    let facts = &report.facts;
    let seen = report.judgement.reasons.iter().filter(|reason| reason.answer == Answer::Yes);
    let weak = seen.clone().filter(|reason| reason.level < Level::Acceptable).count();
    let notes = seen.count() - weak;
    let open = report.judgement.reasons.len() - weak - notes;
    let findings: Vec<_> = [(weak, Mark::Bad), (notes, Mark::Note), (open, Mark::Open)]
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, m)| format!("{}{n}", mark(m)))
        .collect();
    let post_quantum = match facts.answer("post_quantum") {
        Answer::Yes => facts.list("post_quantum").first().map_or("yes", String::as_str),
        Answer::No => "no",
        Answer::Inconclusive => "?",
        Answer::Untested => "",
    };
    let days = match (facts.answer("certificate.valid"), facts.number("certificate.valid")) {
        (Answer::Yes, Some(days)) => format!("{days} d"),
        (Answer::No, _) => "not valid".to_owned(),
        _ => String::new(),
    };
    let trust = match certificate(report) {
        Answer::Untested => "",
        answer => mark_answer(answer),
    };
    let address = report.address.map(|a| a.to_string()).unwrap_or_default();
    let mut row = format!(
        "<tr><td>{}</td><td><a href=\"#t{number}\">{}</a><br><span class=\"dim\">{}</span></td><td>{}</td><td>{}</td><td>{trust}{}</td><td class=\"f\">{}</td>",
        badge(report.judgement.level),
        esc(&report.target.to_string()),
        esc(&address),
        esc(&view::versions(facts).join(", ")),
        esc(post_quantum),
        esc(&days),
        findings.join(" "),
    );
    for profile in Profile::ALL {
        let _ = write!(
            row,
            "<td class=\"p\">{}</td>",
            mark_answer(answer(&report.judgement, *profile))
        );
    }
    row.push_str("<td></td></tr>\n");
    row
}

/// The section about a target.
fn target(report: &Report, number: usize) -> String {
    let mut page = String::new();
    let address = report.address.map(|a| a.to_string()).unwrap_or_default();
    let _ = write!(
        page,
        "<section class=\"target\" id=\"t{number}\"><h2>{} <span>{}</span></h2>",
        badge(report.judgement.level),
        esc(&report.target.to_string()),
    );
    let _ = write!(
        page,
        "<p class=\"lead\">{}</p><p class=\"dim\">{} · scanned {} · {:.1} s · {} connections</p>",
        esc(&view::summary(report)),
        esc(&address),
        report.started.strftime("%Y-%m-%d %H:%M:%S UTC"),
        report.seconds,
        report.connections,
    );
    let (seen, open): (Vec<_>, Vec<_>) =
        report.judgement.reasons.iter().partition(|reason| reason.answer == Answer::Yes);
    if !seen.is_empty() {
        page.push_str("<h3>What to change</h3>");
        reasons(&mut page, report, &seen);
    }
    if !open.is_empty() {
        page.push_str("<h3>What could not be determined</h3>");
        reasons(&mut page, report, &open);
    }
    verdicts(&mut page, &report.judgement);
    let sections = view::sections(report, Detail::Usual);
    if !sections.is_empty() {
        page.push_str("<details open><summary>Facts</summary><div class=\"facts\">");
        for section in &sections {
            facts(&mut page, section);
        }
        page.push_str("</div></details>");
    }
    page.push_str("</section>\n");
    page
}

fn reasons(page: &mut String, report: &Report, reasons: &[&Reason]) {
    page.push_str("<div class=\"scroll\"><table class=\"reasons\"><thead><tr><th></th><th>Finding</th><th>Change</th><th>Source</th></tr></thead><tbody>");
    for reason in reasons {
        let evidence = report.facts.get(&reason.fact).map_or("", |fact| fact.evidence.as_ref());
        let evidence = match evidence.is_empty() || reason.what.contains(evidence) {
            true => String::new(),
            false => format!("<q>{}</q>", esc(evidence)),
        };
        let change = match reason.answer {
            Answer::Yes => esc(&reason.change),
            _ => format!("Scan again, more slowly. If confirmed: {}", esc(&lower(&reason.change))),
        };
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}<div class=\"why\"><code>{}</code>{evidence}</div></td><td>{change}</td><td class=\"dim\">{}</td></tr>",
            mark(view::mark_of(reason)),
            esc(&reason.what),
            esc(&reason.fact),
            esc(&reason.standard),
        );
    }
    page.push_str("</tbody></table></div>");
}

fn lower(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_lowercase().to_string()).unwrap_or_default();
    first + chars.as_str()
}

fn verdicts(page: &mut String, judgement: &Judgement) {
    page.push_str("<h3>Profiles</h3><div class=\"verdicts\">");
    for profile in Profile::ALL {
        let verdict = judgement.profiles.iter().find(|v| v.profile == profile.name());
        let Some(verdict) = verdict else { continue };
        let _ = write!(
            page,
            "<div class=\"verdict\">{}<div><b>{}</b> <span class=\"dim\">{}</span>",
            mark_answer(verdict.answer),
            esc(profile.name()),
            esc(profile.title()),
        );
        if !verdict.reasons.is_empty() {
            page.push_str("<ul>");
            for reason in &verdict.reasons {
                let _ = write!(
                    page,
                    "<li>{} <span class=\"dim\">{}</span></li>",
                    esc(&reason.what),
                    esc(&reason.standard),
                );
            }
            page.push_str("</ul>");
        }
        page.push_str("</div></div>");
    }
    page.push_str("</div>");
}

fn facts(page: &mut String, section: &Section) {
    let _ = write!(page, "<div class=\"section\"><h4>{}</h4><table>", esc(&section.title));
    for Row { mark: m, id, label, text, evidence } in &section.rows {
        let evidence = match evidence.is_empty() {
            true => String::new(),
            false => format!("<q>{}</q>", esc(evidence)),
        };
        let _ = write!(
            page,
            "<tr title=\"{}\"><td>{}</td><td>{}</td><td>{}{evidence}</td></tr>",
            esc(id),
            mark(*m),
            esc(label),
            esc(text),
        );
    }
    page.push_str("</table></div>");
}

pub(super) const HEAD: &str = concat!(
    "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">",
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
    "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">",
    "<meta name=\"referrer\" content=\"no-referrer\">",
    "<title>Encryption in transit</title><style>",
    include_str!("page.css"),
    "</style></head><body><main>\n",
);

const FOOT: &str = "<footer><p>Each fact has one of four answers. Yes: observed. No: the server rejected \
the probe, or was silent between two probes that it answered. Inconclusive: tested, without a usable \
result. Untested: not tested. The level is the lowest of all findings.</p></footer>";

pub(super) const FOOT_END: &str = "</main></body></html>\n";

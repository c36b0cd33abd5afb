//! One self-contained page for auditors, without scripts: the coverage, what prevents a better one, and each service with
//! its evidence.

use std::fmt::Write as _;
use std::io::{self, Write};

use super::{
    FlowReport, clients, count, encryption, missed, percent, programs, protocol, server, time,
    window,
};
use crate::facts::Answer;
use crate::judge::{Level, Profile, Reason};
use crate::passive::blockers::Blocker;
use crate::passive::summary::Row;
use crate::report::html::{FOOT_END, HEAD, badge, mark};
use crate::report::text::html as esc;
use crate::report::{size, view};

/// From the best to the worst, `unknown` last.
const ORDER: [Level; 5] =
    [Level::Strong, Level::Acceptable, Level::Weak, Level::Plaintext, Level::Unknown];

pub(super) fn write(out: &mut impl Write, report: &FlowReport) -> io::Result<()> {
    out.write_all(HEAD.as_bytes())?;
    out.write_all(overview(report).as_bytes())?;
    out.write_all(blockers(&report.blockers).as_bytes())?;
    for level in ORDER {
        let rows: Vec<&Row> = report.rows.iter().filter(|row| row.key.level == level).collect();
        if !rows.is_empty() {
            out.write_all(services(level, &rows).as_bytes())?;
        }
    }
    out.write_all(foot(report).as_bytes())?;
    out.write_all(FOOT_END.as_bytes())
}

fn overview(report: &FlowReport) -> String {
    let coverage = &report.coverage;
    let total = coverage.total();
    let mut page = String::new();
    let _ = write!(
        page,
        "<header><h1>Encryption in transit</h1><p class=\"sub\">{} · {} · wiretight watch {}</p></header>",
        esc(&report.source),
        esc(&window(coverage)),
        env!("CARGO_PKG_VERSION"),
    );
    page.push_str("<section class=\"overview\"><div class=\"card\"><h2>Coverage</h2>");
    page.push_str("<div class=\"bar\" role=\"img\" aria-label=\"shares of the levels, by bytes\">");
    for level in ORDER {
        let bytes = coverage.share(level).bytes;
        if bytes > 0 {
            let _ = write!(
                page,
                "<i class=\"{level}\" style=\"flex-grow:{:.3}\"></i>",
                percent(bytes, total.bytes)
            );
        }
    }
    page.push_str("</div><table class=\"levels\"><thead><tr><th></th><th class=\"n\">Flows</th><th class=\"n\"></th><th class=\"n\">Bytes</th><th class=\"n\"></th><th></th></tr></thead>");
    for level in ORDER {
        let share = coverage.share(level);
        let listed = report.rows.iter().any(|row| row.key.level == level);
        let name = match listed {
            true => format!("<a href=\"#{level}\">{}</a>", badge(level)),
            false => badge(level),
        };
        let _ = write!(
            page,
            "<tr><td>{name}</td><td class=\"n\">{}</td><td class=\"n\">{:.1} %</td><td class=\"n\">{}</td><td class=\"n\">{:.1} %</td><td class=\"dim\">{}</td></tr>",
            share.flows,
            percent(share.flows, total.flows),
            esc(&size(share.bytes)),
            percent(share.bytes, total.bytes),
            meaning(level),
        );
    }
    let _ = write!(
        page,
        "<tr><td>all</td><td class=\"n\">{}</td><td></td><td class=\"n\">{}</td><td></td><td></td></tr></table></div>",
        total.flows,
        esc(&size(total.bytes)),
    );
    page.push_str("<div class=\"card\"><h2>What was missed</h2>");
    let missed = missed(coverage);
    if missed.is_empty() {
        page.push_str("<p>Nothing: every captured packet belongs to a flow below.</p>");
    } else {
        page.push_str("<ul>");
        for line in missed {
            let _ = write!(page, "<li>{}</li>", esc(&line));
        }
        page.push_str("</ul>");
    }
    page.push_str("<p class=\"dim\">Bytes are those of IP packets. Traffic that is in no flow, because it was lost or could not be read, counts as unknown.</p>");
    page.push_str(&profiles(&report.rows));
    if !report.filter.is_empty() {
        let _ = write!(
            page,
            "<p>The coverage is about all traffic. The services below are a selection: {}.</p>",
            esc(&report.filter)
        );
    }
    page.push_str("</div></section>");
    page
}

/// For each profile, the bytes of the services that meet it, do not, or could not be judged.
fn profiles(rows: &[Row]) -> String {
    let mut page = String::from(
        "<h2>Profiles</h2><table class=\"profiles\"><thead><tr><th></th><th class=\"n\">met</th><th class=\"n\">not met</th><th class=\"n\">unknown</th></tr></thead>",
    );
    for profile in Profile::ALL {
        let bytes = |answers: &[Answer]| {
            let of = rows.iter().filter(|row| {
                row.profiles.get(profile.name()).is_some_and(|answer| answers.contains(answer))
            });
            size(of.fold(0, |sum, row| row.total().saturating_add(sum)))
        };
        let _ = write!(
            page,
            "<tr><td><b>{}</b><br><span class=\"dim\">{}</span></td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            esc(profile.name()),
            esc(profile.title()),
            bytes(&[Answer::Yes]),
            bytes(&[Answer::No]),
            bytes(&[Answer::Inconclusive]),
        );
    }
    page.push_str("</table>");
    page
}

fn meaning(level: Level) -> &'static str {
    match level {
        Level::Unknown => "the start was not captured, or the protocol is not known",
        level => crate::report::html::meaning(level),
    }
}

fn blockers(blockers: &[Blocker]) -> String {
    let mut page = String::from("<section><h2>What to change</h2>");
    if blockers.is_empty() {
        page.push_str("<p>Nothing: all traffic that left the machine is strong.</p></section>");
        return page;
    }
    page.push_str("<div class=\"scroll\"><table class=\"reasons\"><thead><tr><th></th><th>Traffic</th><th>Change</th><th>Source</th></tr></thead><tbody>");
    for Blocker { row, .. } in blockers {
        for reason in &row.reasons {
            let mark = mark(view::mark_of(reason));
            let whose = match programs(row) {
                names if names.is_empty() => String::new(),
                names => format!(" · {}", esc(&names)),
            };
            let _ = write!(
                page,
                "<tr><td>{mark}</td><td><b>{}</b> {} from {}{whose}<br>{}<div class=\"why\"><code>{}</code> {} in {} since {} UTC</div></td><td>{}</td><td class=\"dim\">{}</td></tr>",
                esc(&server(row)),
                esc(&protocol(row)),
                esc(&clients(row)),
                esc(&reason.what),
                esc(&reason.rule),
                esc(&size(row.total())),
                count(row.flows, "flow"),
                time(row.first),
                esc(&reason.change),
                esc(&reason.standard),
            );
        }
    }
    page.push_str("</tbody></table></div></section>\n");
    page
}

fn services(level: Level, rows: &[&Row]) -> String {
    let mut page = String::new();
    let flows: u64 = rows.iter().map(|row| row.flows).sum();
    let bytes: u64 = rows.iter().map(|row| row.total()).fold(0, u64::saturating_add);
    let _ = write!(
        page,
        "<section class=\"target\" id=\"{level}\"><h2>{} <span>{}, {}, {}</span></h2>",
        badge(level),
        count(rows.len() as u64, "service"),
        count(flows, "flow"),
        esc(&size(bytes)),
    );
    page.push_str("<div class=\"scroll\"><table class=\"flows\"><thead><tr><th>Server</th><th>Protocol</th><th>Encryption</th><th>Clients</th><th>Programs</th><th class=\"n\">Flows</th><th class=\"n\">Bytes</th><th>First and last (UTC)</th><th>Known by</th></tr></thead><tbody>");
    for row in rows {
        let names: Vec<String> = row.clients.iter().map(|c| c.to_string()).collect();
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td title=\"{}\">{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"dim\">{}<br>{}</td><td>{}</td></tr>",
            esc(&server(row)),
            esc(&protocol(row)),
            esc(&encryption(row)),
            esc(&names.join(", ")),
            esc(&clients(row)),
            esc(&programs(row)),
            row.flows,
            esc(&size(row.total())),
            time(row.first),
            time(row.last),
            row.grade,
        );
        let _ =
            write!(page, "<tr class=\"evidence\"><td colspan=\"9\">{}</td></tr>", evidence(row));
    }
    page.push_str("</tbody></table></div></section>\n");
    page
}

fn evidence(row: &Row) -> String {
    let mut page = String::from("<ul>");
    for seen in &row.seen {
        let _ = write!(page, "<li>{}: <q>{}</q>", seen.grade, esc(&seen.evidence));
        if let Some(sealed) = &seen.sealed {
            let facts = [
                ("version", Some(sealed.version.as_ref())),
                ("suite", sealed.suite.as_deref()),
                ("group", sealed.group.as_deref()),
                ("signature", sealed.signature.as_deref()),
                ("name", sealed.server_name.as_deref()),
                ("alpn", sealed.alpn.as_deref()),
            ];
            for (name, value) in facts {
                if let Some(value) = value {
                    let _ = write!(page, " <code>{name} {}</code>", esc(value));
                }
            }
            for (name, value) in [
                ("post-quantum", sealed.post_quantum),
                ("forward secrecy", sealed.forward_secrecy),
                ("resumed", sealed.resumed),
                ("client certificate requested", sealed.client_certificate),
            ] {
                if let Some(value) = value {
                    let _ =
                        write!(page, " <code>{name} {}</code>", if value { "yes" } else { "no" });
                }
            }
            if let Some(certificate) = &sealed.certificate {
                let _ = write!(
                    page,
                    " <code>certificate {}, {}, {}, until {}</code>",
                    esc(&certificate.subject),
                    esc(&certificate.key),
                    esc(&certificate.signature),
                    certificate.not_after,
                );
            }
        }
        page.push_str("</li>");
    }
    if row.more_seen {
        page.push_str("<li>and other evidence of the same kind</li>");
    }
    for scanned in &row.scanned {
        let name = scanned.server_name.as_deref().unwrap_or("without a name");
        let _ = write!(
            page,
            "<li>scanned {} UTC ({}): {} {}",
            time(scanned.at),
            esc(name),
            badge(scanned.level),
            esc(&scanned.summary)
        );
        for Reason { what, change, .. } in
            scanned.reasons.iter().filter(|r| r.answer == Answer::Yes)
        {
            let _ = write!(page, "<br>{}: {}", esc(what), esc(change));
        }
        page.push_str("</li>");
    }
    let not_met: Vec<&str> =
        row.profiles.iter().filter(|(_, a)| **a == Answer::No).map(|(name, _)| &**name).collect();
    if !not_met.is_empty() {
        let _ = write!(page, "<li>does not meet {}</li>", esc(&not_met.join(", ")));
    }
    page.push_str("</ul>");
    page
}

fn foot(report: &FlowReport) -> String {
    let mut page = String::from(
        "<footer><p>A flow is called encrypted only if its handshake was seen. Known by: carried, our own relay, edge or \
         tunnel encrypted it; seen, a handshake or a plaintext dialogue was parsed; guessed, from first bytes that another \
         protocol might send too; unknown. The level is that of what was negotiated, not of all that the server accepts: \
         <code>wiretight scan</code> determines that.</p>",
    );
    if report.left_out.flows > 0 {
        let _ = write!(
            page,
            "<p>{} flows ({}) are in the coverage but not listed, because there were too many services.</p>",
            report.left_out.flows,
            esc(&size(report.left_out.bytes)),
        );
    }
    page.push_str("</footer>");
    page
}

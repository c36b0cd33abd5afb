//! `wiretight man`: the manual pages. Those of the verbs come from the command line's own descriptions, and
//! wiretight.toml(5) from the commented example file, which tests compare with the configuration's keys and defaults.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Command, ValueHint};
use clap_mangen::Man as Page;

use super::check::EXAMPLE;

/// The exit status of verbs that do not describe their own.
const EXIT_STATUS: &str =
    "0 success, 1 failure, 2 wrong usage or invalid configuration, 3 no node is running here.";
/// The longest line of the source of a page (mandoc(1)).
const WIDTH: usize = 78;

/// Write the manual pages into a directory
///
/// The pages of the commands are in section 1, and wiretight.toml(5) describes the configuration file. Their date is the
/// one in SOURCE_DATE_EPOCH, if that is set.
#[derive(Args)]
#[command(after_help = "Example:\n  wiretight man /usr/local/share/man/man1")]
pub(super) struct Man {
    /// The directory
    #[arg(value_hint = ValueHint::DirPath)]
    dir: PathBuf,
}

impl Man {
    pub(super) fn run(self, command: &Command) -> anyhow::Result<ExitCode> {
        let mut command = super::shell::visible(command);
        command.build();
        let mut pages = Vec::new();
        add_pages(&command, &[], &date()?, &mut pages);
        pages.push(("wiretight.toml.5".into(), configuration(EXAMPLE, &date()?)));
        fs::create_dir_all(&self.dir)?;
        for (name, text) in pages {
            let path = self.dir.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The day of the pages.
fn date() -> anyhow::Result<String> {
    let now = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.parse().ok().and_then(|s| jiff::Timestamp::from_second(s).ok()),
        Err(_) => Some(jiff::Timestamp::now()),
    };
    let now = now.context("SOURCE_DATE_EPOCH is not a number of seconds since 1970")?;
    Ok(now.strftime("%Y-%m-%d").to_string())
}

/// Adds the page of a verb, and of each verb below it. `above`: the names of the pages above it.
fn add_pages(command: &Command, above: &[String], date: &str, pages: &mut Vec<(String, String)>) {
    let page = Page::new(command.clone());
    let name = page.get_filename();
    let title = name.trim_end_matches(".1").to_owned();
    let below: Vec<_> = command
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set() && verb.get_name() != "help")
        .collect();
    pages.push((name, verb_page(&page, command, &title, above, &below, date)));
    let above: Vec<_> = above.iter().cloned().chain([title]).collect();
    for verb in below {
        add_pages(verb, &above, date, pages);
    }
}

fn verb_page(
    page: &Page,
    command: &Command,
    title: &str,
    above: &[String],
    below: &[&Command],
    date: &str,
) -> String {
    let mut out = Vec::new();
    let written = (|| {
        page.render_name_section(&mut out)?;
        page.render_synopsis_section(&mut out)?;
        page.render_description_section(&mut out)?;
        if command.get_arguments().any(|argument| !argument.is_hide_set()) {
            page.render_options_section(&mut out)?;
        }
        if !below.is_empty() {
            page.render_subcommands_section(&mut out)?;
        }
        std::io::Result::Ok(())
    })();
    written.expect("a vector accepts every byte");
    let rendered = String::from_utf8_lossy(&out);
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let own = Sections::of(&help);

    let mut text = head(title, 1, date) + &tidy(&rendered);
    text += "\n.SH \"EXIT STATUS\"\n";
    text += &match own.exit_status.is_empty() {
        true => filled(EXIT_STATUS),
        false => filled(&own.exit_status),
    };
    let takes_config = command.get_arguments().any(|a| a.get_env().is_some());
    text += "\n.SH ENVIRONMENT\n";
    if takes_config || title == "wiretight" {
        text += &item("WIRETIGHT_CONFIG", "The configuration file, if \\-\\-config is not given.");
    }
    text += &item(
        "WIRETIGHT_LOG",
        "Filter of the log, for example \"access=off\" or \"debug\". The default level is \"info\".",
    );
    text += &item("NO_COLOR", "If set and not empty, nothing is printed in colour.");
    text += "\n.SH FILES\n";
    text += &match own.files.is_empty() {
        false => unfilled(&own.files),
        true => {
            let file = "The configuration file; see \\fBwiretight.toml\\fR(5).";
            item("/etc/wiretight/wiretight.toml", file)
                + &item("/var/lib/wiretight", "Keys, certificates and state of the node.")
        }
    };
    // A verb that only leads to others has one of each.
    let first = |verb: &&Command| {
        let of = Sections::of(&verb.get_after_help()?.to_string());
        of.examples.lines().next().map(str::to_owned)
    };
    let examples = match own.examples.is_empty() {
        true => below.iter().filter_map(first).collect::<Vec<_>>().join("\n"),
        false => own.examples,
    };
    text += &format!("\n.SH EXAMPLES\n{}", unfilled(&examples));
    if !own.notes.is_empty() {
        text += &format!("\n.SH NOTES\n{}", unfilled(&own.notes));
    }
    let below = below.iter().map(|verb| format!("{title}-{}", verb.get_name()));
    let others = above.iter().cloned().chain(below).map(|page| (page, 1));
    text + &see_also(others.chain([("wiretight.toml".to_owned(), 5)]))
}

/// The parts of the text after a verb's help.
#[derive(Default)]
struct Sections {
    examples: String,
    exit_status: String,
    files: String,
    notes: String,
}

impl Sections {
    fn of(text: &str) -> Sections {
        let mut of = Sections::default();
        for paragraph in text.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()) {
            let (into, body) = match paragraph.split_once(':') {
                Some(("Example" | "Examples", body)) => (&mut of.examples, body),
                Some(("Files", body)) => (&mut of.files, body),
                Some((title, _)) if title.starts_with("Exit status") => (
                    &mut of.exit_status,
                    paragraph.strip_prefix("Exit status:").unwrap_or(paragraph),
                ),
                _ => (&mut of.notes, paragraph),
            };
            if !into.is_empty() {
                into.push_str("\n\n");
            }
            into.push_str(body.trim_start_matches('\n'));
        }
        of
    }
}

fn head(title: &str, section: u8, date: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let title = title.to_ascii_uppercase();
    format!(
        ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n\
         .TH {} {section} {date} \"wiretight {version}\" \"Wiretight manual\"\n",
        escaped(&title)
    )
}

fn see_also(pages: impl Iterator<Item = (String, u8)>) -> String {
    let pages: Vec<_> =
        pages.map(|(page, section)| format!(".BR {} ({section})", escaped(&page))).collect();
    format!("\n.SH \"SEE ALSO\"\n{}\n", pages.join(" ,\n"))
}

/// A term and its explanation, in roff.
fn item(term: &str, text: &str) -> String {
    format!(".TP\n\\fB{}\\fR\n{text}\n", escaped(term))
}

/// Lines that are printed as they are.
fn unfilled(text: &str) -> String {
    let indent = text.lines().filter(|l| !l.trim().is_empty()).map(spaces).min().unwrap_or(0);
    let lines = text.trim_end().lines().map(|line| escaped(line.get(indent..).unwrap_or_default()));
    format!(".nf\n{}\n.fi\n", lines.collect::<Vec<_>>().join("\n"))
}

fn spaces(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

/// A paragraph, which the reader's terminal fills.
fn filled(text: &str) -> String {
    wrapped(&text.split_whitespace().map(escaped).collect::<Vec<_>>().join(" "))
}

/// Escapes a line so that roff(7) prints it unchanged.
fn escaped(line: &str) -> String {
    let line = line.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
    if line.starts_with('.') { format!("\\&{line}") } else { line }
}

/// Breaks a line at spaces. No line starts with a character that roff takes for a request.
fn wrapped(line: &str) -> String {
    let (mut out, mut width) = (String::new(), 0);
    for word in line.split(' ').filter(|word| !word.is_empty()) {
        if width > 0 && width + 1 + word.len() > WIDTH && !word.starts_with(['.', '\'']) {
            out.push('\n');
            width = 0;
        } else if width > 0 {
            out.push(' ');
            width += 1;
        }
        out.push_str(word);
        width += word.len();
    }
    out + "\n"
}

/// What `clap_mangen` renders, in lines that are not too long, without repeated definitions.
fn tidy(rendered: &str) -> String {
    let (mut out, mut is_term) = (String::new(), false);
    for line in rendered.lines() {
        let line = line.trim_end();
        let defines = line.starts_with(".ie ") || line.starts_with(".el ");
        if line.is_empty() || defines || line == ".br" && out.ends_with("\n.br\n") {
            continue;
        }
        match line.starts_with('.') || is_term {
            true => out += &format!("{line}\n"),
            false => out += &wrapped(line),
        }
        is_term = line.starts_with(".TP");
    }
    out
}

/// wiretight.toml(5), from the example: a line `# ---- text` begins a part, `[name]` a section, and the comment above a key
/// explains it.
fn configuration(example: &str, date: &str) -> String {
    let mut text = head("wiretight.toml", 5, date);
    text += ".SH NAME\nwiretight.toml \\- configuration of a Wiretight node\n\n.SH DESCRIPTION\n";
    text += &filled(
        "The file is TOML. Each machine has one, by default /etc/wiretight/wiretight.toml. `wiretight init` writes a first \
         one, `wiretight check` checks it, and `wiretight reload` applies a changed one without closing a connection. A \
         value below is the default, or an example if the setting has no default. Durations are text: \"500ms\", \"30s\", \
         \"1h30m\", \"7d\". A list may be written as a single value. An unknown key is an error.",
    );
    let start = example.find("# -----").unwrap_or(0);
    let mut comment: Vec<&str> = Vec::new();
    let paragraph = |comment: &mut Vec<&str>| {
        let mut text = String::new();
        // Indented lines are commands.
        for lines in comment.chunk_by(|a, b| a.starts_with(' ') == b.starts_with(' ')) {
            text += &match lines[0].starts_with(' ') {
                true => unfilled(&lines.join("\n")),
                false => filled(&lines.join(" ")),
            };
        }
        comment.clear();
        text
    };
    for line in example[start..].lines() {
        let setting = line.strip_prefix('#').unwrap_or(line);
        if let Some(title) = line.strip_prefix("# ---") {
            let title = title.trim_matches(['-', ' ']).to_uppercase();
            text += &format!("\n.SH \"{}\"\n", escaped(&title));
        } else if let Some(explained) = line.strip_prefix("# ") {
            comment.push(explained);
        } else if setting.starts_with('[') {
            text += &format!("\n.SS {}\n", escaped(setting));
            text += &paragraph(&mut comment);
        } else if setting.starts_with(|c: char| c.is_ascii_lowercase()) {
            text += &format!(".TP\n\\fB{}\\fR\n{}", escaped(setting), paragraph(&mut comment));
        } else if !comment.is_empty() {
            text += &paragraph(&mut comment);
        }
    }
    text += "\n.SH FILES\n";
    text += &item("/etc/wiretight/wiretight.toml", "The usual place of this file.");
    text += &item("/var/lib/wiretight", "The usual \\fBstate_dir\\fR.");
    text += "\n.SH EXAMPLES\n";
    for (n, (title, file)) in EXAMPLES.into_iter().enumerate() {
        let apart = if n == 0 { "" } else { ".PP\n" };
        text += &format!("{apart}{}.RS 4\n{}.RE\n", filled(title), unfilled(file));
    }
    let also = ["wiretight", "wiretight-init", "wiretight-check", "wiretight-reload"];
    text + &see_also(also.into_iter().map(|page| (page.to_owned(), 1)))
}

/// Complete files. A test reads them with the configuration's parser.
const EXAMPLES: [(&str, &str); 4] = [
    (
        "The authority of a mesh:",
        "[node]\nname = \"auth1\"\ntrust_domain = \"example.org\"\n\n[authority]\nlisten = \"10.0.0.1:7400\"\n",
    ),
    (
        "A database that the service web may use:",
        "[node]\nname = \"db1\"\ntrust_domain = \"example.org\"\n\n[[service]]\nname = \"db\"\n\
         listen = \"10.0.0.5:7432\"\nforward = \"127.0.0.1:5432\"\nallow = \"service/web\"\n",
    ),
    (
        "A machine whose programs reach that database at 127.0.0.1:5432:",
        "[node]\nname = \"web1\"\ntrust_domain = \"example.org\"\n\n[[dial]]\nlisten = \"127.0.0.1:5432\"\n\
         service = \"db\"\nas = \"web\"\n",
    ),
    (
        "HTTPS for a program on this machine, with a certificate from Let's Encrypt, without a mesh:",
        "[node]\nname = \"www1\"\ntrust_domain = \"example.org\"\n\n[[site]]\nnames = [\"www.example.org\"]\n\
         to = \"127.0.0.1:8080\"\n",
    ),
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::CommandFactory;

    use super::*;
    use crate::config::Config;

    #[test]
    fn the_examples_of_the_configurations_page_are_valid() {
        for (title, file) in EXAMPLES {
            let config = Config::parse(Path::new("w.toml"), file).unwrap();
            assert_eq!(config.warnings, [""; 0], "{title}");
        }
    }

    #[test]
    fn the_configurations_page_has_every_section_key_and_explanation_of_the_example() {
        let page = configuration(EXAMPLE, "2026-01-01");
        let settings = EXAMPLE.lines().filter(|line| !line.starts_with("# "));
        let settings = settings.map(|line| line.strip_prefix('#').unwrap_or(line));
        let settings: Vec<_> = settings.filter(|line| !line.is_empty()).collect();
        assert!(settings.len() > 80, "{settings:?}");
        for setting in settings {
            let line = match setting.starts_with('[') {
                true => format!(".SS {}\n", escaped(setting)),
                false => format!("\\fB{}\\fR\n", escaped(setting)),
            };
            assert!(page.contains(&line), "{line}");
        }
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let page = words(&page).join(" ");
        let first = EXAMPLE.find("# -----").unwrap();
        for line in EXAMPLE[first..].lines().filter_map(|line| line.strip_prefix("# ")) {
            if !line.starts_with("---") {
                let line =
                    words(line).iter().map(|word| escaped(word)).collect::<Vec<_>>().join(" ");
                assert!(page.contains(&line), "{line}");
            }
        }
    }

    #[test]
    fn every_page_has_the_sections_that_a_reader_expects() {
        let mut command = super::super::shell::visible(&super::super::Cli::command());
        command.build();
        let mut pages = Vec::new();
        add_pages(&command, &[], "2026-01-01", &mut pages);
        assert!(pages.len() > 40, "{}", pages.len());
        for (name, text) in pages {
            for section in [
                "NAME",
                "SYNOPSIS",
                "DESCRIPTION",
                "\"EXIT STATUS\"",
                "ENVIRONMENT",
                "FILES",
                "EXAMPLES",
            ] {
                assert!(text.contains(&format!("\n.SH {section}\n")), "{name} has no {section}");
            }
            let long: Vec<_> = text.lines().filter(|line| line.ends_with(' ')).collect();
            assert!(long.is_empty(), "{name}: {long:?}");
        }
    }

    #[test]
    fn a_line_of_roff_is_neither_a_request_nor_changed() {
        assert_eq!(
            unfilled("  a -b\n    .c\n  'd' \\e\n"),
            ".nf\na \\-b\n  .c\n\\(aqd\\(aq \\ee\n.fi\n"
        );
        assert_eq!(escaped(".c"), "\\&.c");
        let words = format!("{} .c {}", "a".repeat(WIDTH), "b".repeat(9));
        assert!(wrapped(&words).lines().all(|line| !line.starts_with('.')), "{}", wrapped(&words));
    }
}

//! Errors and warnings, and their positions.

use std::fmt;
use std::path::Path;

use toml::de::DeValue;

use super::ConfigError;

/// A problem with advice, before its position is known.
pub(super) struct Complaint {
    pub(super) problem: String,
    /// `None`: the section adds an example of a valid value.
    pub(super) advice: Option<String>,
}

impl Complaint {
    pub(super) fn new(problem: impl Into<String>, advice: impl Into<String>) -> Complaint {
        Complaint { problem: problem.into(), advice: Some(advice.into()) }
    }

    pub(super) fn problem(problem: impl Into<String>) -> Complaint {
        Complaint { problem: problem.into(), advice: None }
    }

    /// Suggests the value that was probably meant, if there is one.
    pub(super) fn or_nearly(self, meant: Option<impl fmt::Display>) -> Complaint {
        let advice = self.advice.or(meant.map(|m| format!("write \"{m}\"")));
        Complaint { advice, ..self }
    }

    pub(super) fn or_example(self, example: &str) -> Complaint {
        let advice = self.advice.or(Some(format!("write for example {example}")));
        Complaint { advice, ..self }
    }
}

/// Collects the errors and warnings of one file.
pub(super) struct Report<'a> {
    pub(super) file: &'a Path,
    /// The byte offset of each newline.
    newlines: Vec<usize>,
    pub(super) errors: Vec<ConfigError>,
    pub(super) warnings: Vec<ConfigError>,
}

impl<'a> Report<'a> {
    pub(super) fn new(file: &'a Path, text: &str) -> Report<'a> {
        let newlines = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i);
        Report { file, newlines: newlines.collect(), errors: Vec::new(), warnings: Vec::new() }
    }

    /// The line (from 1) of a byte offset.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.newlines.partition_point(|newline| *newline < offset) + 1
    }

    pub(super) fn error(
        &mut self,
        line: Option<usize>,
        key: impl Into<String>,
        complaint: Complaint,
    ) {
        let error = self.located(line, key.into(), complaint);
        self.errors.push(error);
    }

    pub(super) fn warn(&mut self, line: usize, key: impl Into<String>, complaint: Complaint) {
        let warning = self.located(Some(line), key.into(), complaint);
        self.warnings.push(warning);
    }

    fn located(&self, line: Option<usize>, key: String, complaint: Complaint) -> ConfigError {
        let Complaint { problem, advice } = complaint;
        let file = self.file.to_path_buf();
        ConfigError { file, line, key, problem, advice: advice.unwrap_or_default() }
    }
}

/// A syntax error, explained for people who do not know TOML.
pub(super) fn not_toml(message: &str, line: &str) -> Complaint {
    let any = |parts: &[&str]| parts.iter().any(|p| message.contains(p));
    let advice = if any(&["duplicate key"]) {
        "write it once; only [[service]], [[dial]] and [[site]], with two brackets, may be repeated"
    } else if any(&["invalid boolean"]) {
        "write true or false in small letters, or put text in quotes"
    } else if any(&["must be quoted", "invalid float", "invalid integer", "invalid date"]) {
        "put text, addresses and durations in quotes: listen = \"10.0.0.5:7432\", drain = \"30s\""
    } else if any(&["basic string", "literal string"]) {
        "close the text with the same quote, on the same line"
    } else {
        "a line is [section], [[section]], key = \"text\", key = 1, key = true or key = [\"a\", \"b\"]"
    };
    // The parser's expectation helps only if we have no better advice.
    let known = advice.starts_with("put") || advice.starts_with("write true");
    let message = message.split(", expected").next().filter(|_| known).unwrap_or(message);
    let line = line.trim();
    let printable: String =
        cut(line).chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    let at = if line.is_empty() { String::new() } else { format!(" in: {printable}") };
    Complaint::new(format!("{message}{at}"), advice)
}

/// A value, formatted for errors.
pub(super) fn shown(v: &DeValue<'_>) -> String {
    match v {
        DeValue::String(s) => quoted(s),
        DeValue::Integer(n) => cut(&n.to_string()),
        DeValue::Float(n) => cut(&n.to_string()),
        DeValue::Boolean(b) => b.to_string(),
        DeValue::Datetime(d) => d.to_string(),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

/// Text, formatted for errors: on one line, in quotes, truncated.
pub(super) fn quoted(s: &str) -> String {
    format!("{:?}", cut(s))
}

/// A key, formatted for errors: quoted only if TOML requires it.
pub(super) fn bare(key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !key.is_empty() && key.chars().all(is_bare) { cut(key) } else { quoted(key) }
}

fn cut(s: &str) -> String {
    match s.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &s[..end]),
        None => s.to_owned(),
    }
}

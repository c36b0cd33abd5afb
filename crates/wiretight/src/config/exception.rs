//! `[[exception]]`: why traffic is let through that the mesh does not encrypt, who answers for it, and until when. It
//! allows nothing: other settings do that.

use std::fmt;
use std::net::IpAddr;

use wiretight_proxy::Network;
use wiretight_proxy::intercept::rules::{Direction, Mode, Pass, Protocol};

use super::report::{Complaint, Report, quoted};
use super::section::{Located, Section};
use super::value::*;
use super::{Config, ConfigError, Intercept};

/// `[[exception]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exception {
    pub subject: Subject,
    pub reason: String,
    pub owner: String,
    /// The last second for which it counts, in seconds since 1970.
    pub until: u64,
}

/// What lets traffic through. Its text is `what` of an `[[exception]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// `pass` in `[intercept]`.
    Pass(Pass),
    /// `observe` in `[intercept]`; `None`: `mode = "observe"`.
    Observe(Option<IpAddr>),
    /// `permissive` in `[intercept]`; `None`: `mode = "permissive"`.
    Permissive(Option<IpAddr>),
    /// Machines outside of the mesh. No other setting names them.
    ForeignPeer(Network),
}

impl Subject {
    /// `kind` of its `[[exception]]`.
    pub fn kind(&self) -> &'static str {
        match self {
            Subject::Pass(_) => "pass",
            Subject::Observe(_) => "observe",
            Subject::Permissive(_) => "permissive",
            Subject::ForeignPeer(_) => "foreign-peer",
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Pass(pass) => {
                match pass.protocol {
                    Protocol::Tcp => f.write_str("tcp")?,
                    Protocol::Udp => f.write_str("udp")?,
                    Protocol::Icmp => f.write_str("icmp")?,
                    Protocol::Number(number) => write!(f, "{number}")?,
                }
                let way = if pass.direction == Direction::In { "in" } else { "out" };
                write!(f, " {way} {}", short(&pass.network))?;
                pass.port.map_or(Ok(()), |port| write!(f, " {port}"))
            }
            Subject::Observe(None) | Subject::Permissive(None) => f.write_str("all"),
            Subject::Observe(Some(ip)) | Subject::Permissive(Some(ip)) => ip.fmt(f),
            Subject::ForeignPeer(network) => f.write_str(&short(network)),
        }
    }
}

/// A single address without its bits.
fn short(network: &Network) -> String {
    let text = network.to_string();
    let all_bits = if network.first().is_ipv4() { "/32" } else { "/128" };
    text.strip_suffix(all_bits).map_or(text.clone(), str::to_owned)
}

pub(super) fn read_exceptions(
    report: &mut Report<'_>,
    sections: Vec<Section<'_>>,
    intercept: Option<&Intercept>,
) -> Vec<Exception> {
    let configured = intercept.map(subjects).unwrap_or_default();
    let mut all: Vec<Located<Exception>> = Vec::new();
    for mut s in sections {
        let kind = s.required(report, "kind", exception_kind).map(|kind| kind.value);
        let subject = s.required(report, "what", |v| kind.map(|kind| kind(v)).transpose());
        let reason = s.required(report, "reason", short_text);
        let owner = s.required(report, "owner", short_text);
        let until = s.required(report, "until", last_second);
        let key = s.key("what");
        s.finish(report);
        let Some(Located { line, value: Some(subject) }) = subject else { continue };
        let known = all.iter().find(|other| other.value.subject == subject);
        if let Some(Located { line: other, .. }) = known {
            let problem = format!("explained already, on line {other}");
            report.error(Some(line), key, Complaint::new(problem, "keep one of the two"));
            continue;
        }
        if !matches!(subject, Subject::ForeignPeer(_)) && !configured.contains(&subject) {
            let problem = format!("there is no such setting in this file: {}", setting(&subject));
            report.warn(line, key, Complaint::new(problem, "remove the section, or correct what"));
        }
        if let (Some(reason), Some(owner), Some(until)) = (reason, owner, until) {
            let (reason, owner, until) = (reason.value, owner.value, until.value);
            all.push(Located { line, value: Exception { subject, reason, owner, until } });
        }
    }
    all.into_iter().map(|exception| exception.value).collect()
}

/// What these settings let through.
fn subjects(of: &Intercept) -> Vec<Subject> {
    let mode = |mode: Mode, peer| match mode {
        Mode::Observe => Some(Subject::Observe(peer)),
        Mode::Permissive => Some(Subject::Permissive(peer)),
        Mode::Strict => None,
    };
    let peers = of.peers.iter().filter_map(|(ip, of)| mode(*of, Some(*ip)));
    let passes = of.passes.iter().cloned().map(Subject::Pass);
    mode(of.mode, None).into_iter().chain(passes).chain(peers).collect()
}

/// As it is written in the file.
fn setting(subject: &Subject) -> String {
    match subject {
        Subject::Observe(None) | Subject::Permissive(None) => {
            format!("mode = {}", quoted(subject.kind()))
        }
        _ => format!("{} = [{}]", subject.kind(), quoted(&subject.to_string())),
    }
}

impl Config {
    /// Everything that this configuration lets through unencrypted, with its explanation.
    pub(crate) fn let_through(&self) -> Vec<(Subject, Option<&Exception>)> {
        let explained = |subject| self.exceptions.iter().find(|e| e.subject == subject);
        let mut all = self.intercept.as_ref().map(subjects).unwrap_or_default();
        let foreign = self.exceptions.iter().map(|e| e.subject.clone());
        all.extend(foreign.filter(|subject| matches!(subject, Subject::ForeignPeer(_))));
        all.into_iter().map(|subject| (subject.clone(), explained(subject))).collect()
    }

    /// Exceptions that have expired and, if there is an `[[exception]]` at all, what has none: lines for the log,
    /// formatted like errors.
    pub(crate) fn exception_warnings(&self, now: u64) -> Vec<String> {
        if self.exceptions.is_empty() {
            return Vec::new();
        }
        let warning = |key: String, problem: String, advice: String| {
            let file = self.path.clone();
            ConfigError { file, line: None, key, problem, advice }.to_string()
        };
        let all = self.let_through().into_iter().filter_map(|(subject, exception)| {
            let what = quoted(&subject.to_string());
            match exception {
                None => Some(warning(
                    "intercept".into(),
                    format!("{} has no [[exception]]", setting(&subject)),
                    format!("add one with kind = {} and what = {what}", quoted(subject.kind())),
                )),
                Some(of) if of.until < now => {
                    let until = i64::try_from(of.until).ok();
                    let until = until.and_then(|at| jiff::Timestamp::from_second(at).ok());
                    Some(warning(
                        format!("[[exception]] {what}: until"),
                        format!("it has expired, on {}", until.unwrap_or_default()),
                        format!("ask {}, and remove it or choose a later time", of.owner),
                    ))
                }
                Some(_) => None,
            }
        });
        all.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const FILE: &str = r#"
        [node]
        name = "db1"
        trust_domain = "example.org"
        [intercept]
        mode = "permissive"
        observe = ["10.0.0.7", "fd00::7"]
        strict = ["10.0.0.8"]
        pass = ["udp out 10.0.0.9 514", "icmp in 10.0.0.0/24", "50 in 10.0.0.1"]
    "#;

    fn parse(exceptions: &[(&str, &str, &str)]) -> Config {
        let section = |(kind, what, until): &(&str, &str, &str)| {
            format!(
                "[[exception]]\nkind = {kind:?}\nwhat = {what:?}\nreason = \"why\"\nowner = \"me\"\nuntil = {until}\n"
            )
        };
        let text = FILE.to_owned() + "\n" + &exceptions.iter().map(section).collect::<String>();
        Config::parse(Path::new("w.toml"), &text).unwrap()
    }

    fn shown(config: &Config) -> Vec<String> {
        let one = |(subject, exception): (Subject, Option<&Exception>)| {
            let until = exception.map_or("-".to_owned(), |e| e.until.to_string());
            format!("{} {subject}: {until}", subject.kind())
        };
        config.let_through().into_iter().map(one).collect()
    }

    #[test]
    fn each_exception_explains_what_is_configured() {
        let config = parse(&[
            ("permissive", "all", "\"2027-03-31\""),
            ("pass", "icmp in 10.0.0.0/24", "2027-03-31T10:00:00+02:00"),
            ("observe", "10.0.0.7", "2027-03-31"),
            ("foreign-peer", "203.0.113.0/24", "\"1970-01-02T00:00:00Z\""),
        ]);
        assert_eq!(config.warnings, [""; 0]);
        let expected = [
            "permissive all: 1806537599",
            "pass udp out 10.0.0.9 514: -",
            "pass icmp in 10.0.0.0/24: 1806480000",
            "pass 50 in 10.0.0.1: -",
            "observe 10.0.0.7: 1806537599",
            "observe fd00::7: -",
            "foreign-peer 203.0.113.0/24: 86400",
        ];
        assert_eq!(shown(&config), expected);
        assert_eq!(config.exceptions[0].owner, "me");
    }

    #[test]
    fn what_explains_nothing_has_expired_or_is_missing_is_a_warning() {
        // Nothing is said as long as nobody explains exceptions.
        let none = parse(&[]);
        assert_eq!((none.warnings.len(), none.exception_warnings(u64::MAX).len()), (0, 0));
        let config = parse(&[
            ("observe", "all", "2027-03-31"),
            ("pass", "udp out 10.0.0.9 515", "2027-03-31"),
            ("permissive", "10.0.0.8", "2027-03-31"),
            ("permissive", "all", "2027-03-31"),
            ("pass", "udp out 10.0.0.9 514", "2027-04-01"),
        ]);
        let expected = [
            "w.toml:13: [[exception]] \"all\": what: there is no such setting in this file: mode = \"observe\"; remove the section, or correct what",
            "w.toml:19: [[exception]] \"udp out 10.0.0.9 515\": what: there is no such setting in this file: pass = [\"udp out 10.0.0.9 515\"]; remove the section, or correct what",
            "w.toml:25: [[exception]] \"10.0.0.8\": what: there is no such setting in this file: permissive = [\"10.0.0.8\"]; remove the section, or correct what",
        ];
        assert_eq!(config.warnings, expected);
        let missing = |setting: &str, kind: &str, what: &str| {
            format!(
                "w.toml: intercept: {setting} has no [[exception]]; add one with kind = {kind:?} and what = {what:?}"
            )
        };
        let missing = [
            missing("pass = [\"icmp in 10.0.0.0/24\"]", "pass", "icmp in 10.0.0.0/24"),
            missing("pass = [\"50 in 10.0.0.1\"]", "pass", "50 in 10.0.0.1"),
            missing("observe = [\"10.0.0.7\"]", "observe", "10.0.0.7"),
            missing("observe = [\"fd00::7\"]", "observe", "fd00::7"),
        ];
        let until = 1_806_537_599;
        assert_eq!(config.exception_warnings(until), missing);
        let later = config.exception_warnings(until + 1);
        assert_eq!(
            later[0],
            "w.toml: [[exception]] \"all\": until: it has expired, on 2027-03-31T23:59:59Z; ask me, and remove it or choose a later time"
        );
        assert_eq!(later[1..], missing);
    }
}

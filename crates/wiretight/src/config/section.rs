//! Sections: their keys, and reading them.

use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::{Complaint, Report, bare, quoted, shown};

/// The definition of a section.
pub(super) struct Shape {
    pub(super) name: &'static str,
    /// Whether it is `[[name]]`, which may be repeated, or `[name]`.
    repeats: bool,
    /// The key whose value identifies a `[[name]]` in errors.
    title: &'static str,
    /// Each key with an example value for the advice in errors.
    pub(super) keys: &'static [(&'static str, &'static str)],
}

pub(super) const NODE: Shape = Shape {
    name: "node",
    repeats: false,
    title: "",
    keys: &[
        ("name", r#""db1""#),
        ("trust_domain", r#""example.org""#),
        ("state_dir", r#""/var/lib/wiretight""#),
        ("authority", r#"["10.0.0.1:7400"]"#),
        ("join_token_file", r#""/etc/wiretight/token""#),
        ("admin", r#""127.0.0.1:7490""#),
        ("landlock", "true"),
        ("drain", r#""30s""#),
        ("workers", "2"),
        ("max_staleness", r#""1h""#),
    ],
};

pub(super) const WITNESSES: Shape = Shape {
    name: "witnesses",
    repeats: false,
    title: "",
    keys: &[
        ("policy", r#""/etc/wiretight/log.policy""#),
        ("transparency", r#""required""#),
        ("ca", r#""/etc/wiretight/witness-ca.pem""#),
    ],
};

pub(super) const LOG: Shape = Shape {
    name: "log",
    repeats: false,
    title: "",
    keys: &[
        ("listen", r#""10.0.0.1:7401""#),
        ("public", "false"),
        (
            "auditors",
            r#"["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]"#,
        ),
        ("storage", r#""s3://bucket/prefix""#),
    ],
};

pub(super) const AUTHORITY: Shape = Shape {
    name: "authority",
    repeats: false,
    title: "",
    keys: &[
        ("listen", r#""10.0.0.1:7400""#),
        ("advertise", r#""authority.example.org:7400""#),
        ("svid_ttl", r#""1h""#),
        ("intermediate_ttl", r#""7d""#),
        ("require_release", "true"),
        ("release_grace", r#""24h""#),
    ],
};

pub(super) const SERVICE: Shape = Shape {
    name: "service",
    repeats: true,
    title: "name",
    keys: &[
        ("name", r#""db""#),
        ("listen", r#""10.0.0.5:7432""#),
        ("advertise", r#""db1.internal:7432""#),
        ("forward", r#"["127.0.0.1:5432"]"#),
        ("ports", "[5432]"),
        ("allow", r#"["service/web", "node/ops1"]"#),
        ("proxy_protocol", "true"),
        ("transparent", "true"),
        ("idle_timeout", r#""10m""#),
        ("max_connections_per_peer", "10000"),
    ],
};

pub(super) const DIAL: Shape = Shape {
    name: "dial",
    repeats: true,
    title: "service",
    keys: &[
        ("listen", r#""127.0.0.1:5432""#),
        ("service", r#""db""#),
        ("as", r#""web""#),
        ("to", r#"["10.0.0.5:7432"]"#),
        ("idle_timeout", r#""10m""#),
    ],
};

pub(super) const EDGE: Shape = Shape {
    name: "edge",
    repeats: false,
    title: "",
    keys: &[
        ("https", r#"["0.0.0.0:443"]"#),
        ("http", r#"["0.0.0.0:80"]"#),
        ("http3", "true"),
        ("trusted_proxies", r#"["10.0.0.0/8"]"#),
        ("proxy_protocol", "true"),
        ("share", r#""www""#),
    ],
};

pub(super) const SITE: Shape = Shape {
    name: "site",
    repeats: true,
    title: "names",
    keys: &[
        ("names", r#"["example.org"]"#),
        ("to", r#"["127.0.0.1:8080"]"#),
        ("default", "true"),
        ("cert", r#""/etc/wiretight/example.org.pem""#),
        ("key", r#""/etc/wiretight/example.org.key""#),
        ("acme", r#""internal""#),
        ("ask", r#""http://127.0.0.1:8081/may-have-a-certificate""#),
        ("as", r#""web""#),
        ("hsts", "true"),
        ("preload", "false"),
        ("clients", r#"["service/web", "node/ops1"]"#),
        ("client_ca", r#""/etc/wiretight/clients.pem""#),
        ("health", r#""/healthz""#),
        ("max_body_mb", "1024"),
        ("timeout", r#""60s""#),
    ],
};

pub(super) const ACME: Shape = Shape {
    name: "acme",
    repeats: true,
    title: "directory",
    keys: &[
        ("directory", r#""https://acme-v02.api.letsencrypt.org/directory""#),
        ("roots", r#""/etc/wiretight/acme-roots.pem""#),
        ("contact", r#"["mailto:ops@example.org"]"#),
        ("profile", r#""shortlived""#),
        ("challenge", r#""tls-alpn-01""#),
        ("dns_command", r#""/usr/local/bin/dns-record""#),
    ],
};

pub(super) const ACME_SERVER: Shape = Shape {
    name: "acme_server",
    repeats: false,
    title: "",
    keys: &[
        ("name", r#""acme.example.org""#),
        ("names", r#"["*.example.org"]"#),
        ("ttl", r#""24h""#),
    ],
};

pub(super) const INTERCEPT: Shape = Shape {
    name: "intercept",
    repeats: false,
    title: "",
    keys: &[
        ("mode", r#""permissive""#),
        ("as", r#""web""#),
        ("port", "7491"),
        ("protect", r#"["10.0.0.0/24"]"#),
        ("observe", r#"["10.0.0.7"]"#),
        ("permissive", r#"["10.0.0.8"]"#),
        ("strict", r#"["10.0.0.9"]"#),
        ("pass", r#"["udp out 10.0.0.1 123"]"#),
        ("resolvers", r#"["10.0.0.2"]"#),
        ("management", "[22]"),
        ("cgroups", r#"["system.slice/app.service"]"#),
    ],
};

pub(super) const EXCEPTION: Shape = Shape {
    name: "exception",
    repeats: true,
    title: "what",
    keys: &[
        ("kind", r#""pass""#),
        ("what", r#""udp out 10.0.0.9 514""#),
        ("reason", r#""the switches send syslog without TLS""#),
        ("owner", r#""network team""#),
        ("until", r#""2027-03-31""#),
    ],
};

pub(super) const WATCH: Shape = Shape {
    name: "watch",
    repeats: false,
    title: "",
    keys: &[("interfaces", r#"["eth0"]"#), ("keep", r#""48h""#)],
};

pub(super) const PUBLISH: Shape = Shape {
    name: "publish",
    repeats: false,
    title: "",
    keys: &[
        ("dir", r#""/srv/wiretight/proof""#),
        ("title", r#""Example Ltd""#),
        ("contact", r#""mailto:security@example.org""#),
        ("public_services", "true"),
    ],
};

pub(super) const RELEASE: Shape = Shape {
    name: "release",
    repeats: false,
    title: "",
    keys: &[
        ("policy", r#""/etc/wiretight/release.policy""#),
        ("proof", r#""/usr/share/wiretight/wiretight.proof""#),
    ],
};

pub(super) const CONSOLE: Shape = Shape {
    name: "console",
    repeats: false,
    title: "",
    keys: &[("listen", r#""127.0.0.1:7492""#), ("scans", r#""/srv/wiretight/scans""#)],
};

pub(super) const SHAPES: [&Shape; 16] = [
    &NODE,
    &AUTHORITY,
    &WITNESSES,
    &LOG,
    &PUBLISH,
    &SERVICE,
    &DIAL,
    &INTERCEPT,
    &EXCEPTION,
    &WATCH,
    &EDGE,
    &SITE,
    &ACME,
    &ACME_SERVER,
    &CONSOLE,
    &RELEASE,
];

impl Shape {
    fn has(&self, key: &str) -> bool {
        self.keys.iter().any(|(k, _)| *k == key)
    }

    fn example(&self, key: &str) -> &'static str {
        self.keys.iter().find(|(k, _)| *k == key).map_or("", |(_, example)| *example)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.repeats { write!(f, "[[{}]]", self.name) } else { write!(f, "[{}]", self.name) }
    }
}

/// Removes the `[name]` section from the document; reports a wrong form.
pub(super) fn one<'i>(
    report: &mut Report<'_>,
    root: &mut DeTable<'i>,
    shape: &'static Shape,
) -> Option<Section<'i>> {
    let value = root.remove(shape.name)?;
    let line = report.line(value.span().start);
    match value.into_inner() {
        DeValue::Table(table) => {
            Some(Section { shape, prefix: format!("{}.", shape.name), line, table })
        }
        other => {
            let problem = match other {
                DeValue::Array(_) => "written as a list of sections".to_owned(),
                other => format!("{} is not a section", shown(&other)),
            };
            let advice = format!("write {shape} once, and its keys on the lines below it");
            report.error(Some(line), shape.name, Complaint::new(problem, advice));
            None
        }
    }
}

/// Removes every `[[name]]` section from the document; reports a wrong form.
pub(super) fn many<'i>(
    report: &mut Report<'_>,
    root: &mut DeTable<'i>,
    shape: &'static Shape,
) -> Vec<Section<'i>> {
    let Some(value) = root.remove(shape.name) else { return Vec::new() };
    let line = report.line(value.span().start);
    let advice = format!("write {shape}, with two brackets, once for each");
    let array = match value.into_inner() {
        DeValue::Array(array) => array,
        other => {
            let problem = match other {
                DeValue::Table(_) => "written as a single section".to_owned(),
                other => format!("{} is not a list of sections", shown(&other)),
            };
            report.error(Some(line), shape.name, Complaint::new(problem, advice));
            return Vec::new();
        }
    };
    let mut sections = Vec::new();
    for (i, element) in array.into_iter().enumerate() {
        let line = report.line(element.span().start);
        let numbered = format!("{}[{}]", shape.name, i + 1);
        match element.into_inner() {
            DeValue::Table(table) => {
                let title = table.get(shape.title).map(Spanned::get_ref);
                let first = |v| DeValue::as_array(v).and_then(|a| a.first()).map(Spanned::get_ref);
                let title = title.map(|title| first(title).unwrap_or(title));
                let prefix = match title.and_then(DeValue::as_str).filter(|t| !t.is_empty()) {
                    Some(title) => format!("{shape} {}: ", quoted(title)),
                    None => format!("{numbered}."),
                };
                sections.push(Section { shape, prefix, line, table });
            }
            other => {
                let problem = format!("{} is not a section", shown(&other));
                report.error(Some(line), numbered, Complaint::new(problem, advice.clone()));
            }
        }
    }
    sections
}

/// A section whose keys are read one by one; `finish` reports the remaining ones.
pub(super) struct Section<'i> {
    shape: &'static Shape,
    /// The prefix of keys in errors: `node.`, `service[2].` or `[[service]] "db": `.
    prefix: String,
    /// The line of its header.
    pub(super) line: usize,
    table: DeTable<'i>,
}

/// A value and its line.
pub(super) struct Located<T> {
    pub(super) line: usize,
    pub(super) value: T,
}

/// The result of reading a key.
pub(super) enum Setting<T> {
    Absent,
    /// Invalid and reported; skip checks that depend on the value.
    Wrong,
    Given(Located<T>),
}

impl<T> Setting<T> {
    pub(super) fn given(self) -> Option<T> {
        match self {
            Setting::Given(found) => Some(found.value),
            _ => None,
        }
    }

    pub(super) fn as_given(&self) -> Option<T>
    where
        T: Copy,
    {
        match self {
            Setting::Given(found) => Some(found.value),
            _ => None,
        }
    }

    /// The value, or the default if it is absent or wrong. (If it is wrong, the configuration is rejected anyway.)
    pub(super) fn or(self, default: T) -> T {
        self.given().unwrap_or(default)
    }

    pub(super) fn line(&self) -> Option<usize> {
        match self {
            Setting::Given(found) => Some(found.line),
            _ => None,
        }
    }
}

impl<T> Setting<Vec<Located<T>>> {
    pub(super) fn as_slice(&self) -> &[Located<T>] {
        match self {
            Setting::Given(list) => &list.value,
            _ => &[],
        }
    }

    pub(super) fn values(self) -> Vec<T> {
        self.given().into_iter().flatten().map(|element| element.value).collect()
    }
}

impl Section<'_> {
    /// The name of a key in errors.
    pub(super) fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The name of a list element in errors; `i` counts from 0, the name from 1.
    pub(super) fn element(&self, key: &str, i: usize) -> String {
        format!("{}{key}[{}]", self.prefix, i + 1)
    }

    pub(super) fn optional<T>(
        &mut self,
        report: &mut Report<'_>,
        key: &'static str,
        read: impl Fn(&DeValue<'_>) -> Result<T, Complaint>,
    ) -> Setting<T> {
        debug_assert!(self.shape.has(key), "{key} is not in the table of keys");
        let Some(found) = self.table.remove(key) else { return Setting::Absent };
        let line = report.line(found.span().start);
        match read(found.get_ref()) {
            Ok(value) => Setting::Given(Located { line, value }),
            Err(complaint) => {
                let complaint = complaint.or_example(self.shape.example(key));
                report.error(Some(line), self.key(key), complaint);
                Setting::Wrong
            }
        }
    }

    pub(super) fn required<T>(
        &mut self,
        report: &mut Report<'_>,
        key: &'static str,
        read: impl Fn(&DeValue<'_>) -> Result<T, Complaint>,
    ) -> Option<Located<T>> {
        match self.optional(report, key, read) {
            Setting::Given(found) => Some(found),
            Setting::Wrong => None,
            Setting::Absent => {
                self.missing(report, key);
                None
            }
        }
    }

    /// A list; a single value counts as a list of one.
    pub(super) fn list<T>(
        &mut self,
        report: &mut Report<'_>,
        key: &'static str,
        read: impl Fn(&DeValue<'_>) -> Result<T, Complaint>,
    ) -> Setting<Vec<Located<T>>> {
        if !self.table.get(key).is_some_and(|v| v.get_ref().is_array()) {
            return match self.optional(report, key, read) {
                Setting::Absent => Setting::Absent,
                Setting::Wrong => Setting::Wrong,
                Setting::Given(one) => Setting::Given(Located { line: one.line, value: vec![one] }),
            };
        }
        debug_assert!(self.shape.has(key), "{key} is not in the table of keys");
        let Some(found) = self.table.remove(key) else { return Setting::Absent };
        let line = report.line(found.span().start);
        let mut all = Some(Vec::new());
        for (i, element) in found.get_ref().as_array().into_iter().flatten().enumerate() {
            let line = report.line(element.span().start);
            match read(element.get_ref()) {
                Ok(value) => {
                    if let Some(all) = &mut all {
                        all.push(Located { line, value });
                    }
                }
                Err(complaint) => {
                    let complaint = complaint.or_example(self.shape.example(key));
                    report.error(Some(line), self.element(key, i), complaint);
                    all = None;
                }
            }
        }
        all.map_or(Setting::Wrong, |value| Setting::Given(Located { line, value }))
    }

    /// A list of at least one.
    pub(super) fn required_list<T>(
        &mut self,
        report: &mut Report<'_>,
        key: &'static str,
        read: impl Fn(&DeValue<'_>) -> Result<T, Complaint>,
    ) -> Option<Vec<Located<T>>> {
        match self.list(report, key, read) {
            Setting::Given(list) if list.value.is_empty() => {
                let complaint = Complaint::problem("the list is empty");
                let complaint = complaint.or_example(self.shape.example(key));
                report.error(Some(list.line), self.key(key), complaint);
                None
            }
            Setting::Given(list) => Some(list.value),
            Setting::Wrong => None,
            Setting::Absent => {
                self.missing(report, key);
                None
            }
        }
    }

    fn missing(&self, report: &mut Report<'_>, key: &str) {
        let advice = format!("add for example {key} = {}", self.shape.example(key));
        let problem = format!("missing in the {} that starts here", self.shape);
        report.error(Some(self.line), self.key(key), Complaint::new(problem, advice));
    }

    /// Reports every key that was not read.
    pub(super) fn finish(self, report: &mut Report<'_>) {
        for (key, _) in &self.table {
            let line = report.line(key.span().start);
            let complaint = unknown_key(self.shape, key.get_ref());
            report.error(Some(line), self.key(&bare(key.get_ref())), complaint);
        }
    }
}

fn unknown_key(shape: &Shape, key: &str) -> Complaint {
    let problem = format!("{shape} has no such key");
    if let Some(close) = closest(key, shape.keys.iter().map(|(k, _)| *k)) {
        return Complaint::new(problem, format!("did you mean \"{close}\"?"));
    }
    if let Some(home) = SHAPES.into_iter().find(|s| s.has(key)) {
        return Complaint::new(problem, format!("it belongs in {home}"));
    }
    let keys: Vec<_> = shape.keys.iter().map(|(k, _)| *k).collect();
    Complaint::new(problem, format!("remove it, or use one of {}", keys.join(", ")))
}

pub(super) fn unknown_at_top(key: &str, value: &DeValue<'_>) -> Complaint {
    let is_section = match value {
        DeValue::Table(_) => true,
        DeValue::Array(array) => array.iter().any(|e| e.get_ref().is_table()),
        _ => false,
    };
    if is_section {
        let advice = match closest(key, SHAPES.into_iter().map(|s| s.name)) {
            Some(close) => {
                let shape = SHAPES.into_iter().find(|s| s.name == close).unwrap_or(&NODE);
                format!("did you mean {shape}?")
            }
            None => {
                let all: Vec<_> = SHAPES.into_iter().map(ToString::to_string).collect();
                format!("remove it; the sections are {}", all.join(", "))
            }
        };
        return Complaint::new("no such section", advice);
    }
    let advice = match SHAPES.into_iter().find(|s| s.has(key)) {
        Some(home) => format!("move it below {home}"),
        None => "put each key below the header of its section, for example [node]".into(),
    };
    Complaint::new("a key outside of any section", advice)
}

/// The candidate that was probably meant by `typed`.
fn closest<'c>(typed: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    // Much longer than any candidate, so not a typo.
    if typed.len() > 40 {
        return None;
    }
    candidates
        .map(|c| (strsim::levenshtein(&typed.to_ascii_lowercase().replace('-', "_"), c), c))
        .filter(|(n, c)| *n <= 2 && *n * 2 < c.len())
        .min()
        .map(|(_, c)| c)
}

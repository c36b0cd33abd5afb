//! Reports of `wiretight scan --json`, and a folder of them. Whoever writes the files may write anything: they are
//! evidence of their author's word, bounded here, and nothing depends on them.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;
use rustix::fs::OFlags;
use serde::Deserialize;
use wiretight_scan::facts::{Answer, Reached};
use wiretight_scan::judge::{Level, Reason, worst_first};
use wiretight_scan::report::SCHEMA;
use wiretight_scan::{Host, Target};

/// The most files, and the size of each in bytes.
pub const MAX_FILES: usize = 100;
pub const MAX_FILE: usize = 32 << 20;
/// The size of all files of a folder.
const MAX_FOLDER: u64 = 128 << 20;
/// Scans and reasons of each that are kept.
const MAX_SCANS: usize = 10_000;
const MAX_REASONS: usize = 16;
/// The longest text of a reason that is kept, in bytes.
const MAX_TEXT: usize = 1024;
/// Entries of a folder that are looked at.
const MAX_ENTRIES: usize = 10_000;

/// What is read of the report about one address.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Scan {
    pub target: Target,
    #[serde(default)]
    pub address: Option<IpAddr>,
    pub started: Timestamp,
    #[serde(default)]
    pub reached: Option<Reached>,
    pub judgement: Judgement,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Judgement {
    pub level: Level,
    /// The worst first.
    #[serde(default)]
    pub reasons: Vec<Reason>,
    pub profiles: Vec<Verdict>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Verdict {
    pub profile: String,
    pub answer: Answer,
}

#[derive(Deserialize)]
struct Document {
    schema: String,
    reports: Vec<Scan>,
}

#[derive(Deserialize)]
struct Line {
    schema: String,
    #[serde(flatten)]
    report: Scan,
}

impl Scan {
    /// The scanned address with its port.
    pub fn server(&self) -> Option<SocketAddr> {
        let address = match &self.target.host {
            Host::Address(address, _) => self.address.unwrap_or(*address),
            Host::Name(_) => self.address?,
        };
        Some(SocketAddr::new(address.to_canonical(), self.target.port))
    }
}

/// Reads `--format json` and `--format jsonl`. `None`: it is something else, or not complete.
pub fn parse(bytes: &[u8]) -> Option<Vec<Scan>> {
    if let Ok(Document { schema, reports }) = serde_json::from_slice(bytes) {
        return (schema == SCHEMA).then_some(reports);
    }
    let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    let line = |line: &[u8]| {
        let Line { schema, report } = serde_json::from_slice(line).ok()?;
        (schema == SCHEMA).then_some(report)
    };
    lines.map(line).collect::<Option<Vec<Scan>>>().filter(|scans| !scans.is_empty())
}

/// All scans of one target at one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub newest: Found,
    /// The newest first.
    pub older: Vec<Found>,
}

/// A scan, and the name of the file that it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub scan: Arc<Scan>,
    pub file: Arc<str>,
}

/// What the files of a folder say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scans {
    /// `None`: no folder is configured.
    pub folder: Option<PathBuf>,
    /// The worst first.
    pub endpoints: Vec<Endpoint>,
    /// Files that were read.
    pub files: usize,
    /// What was not read, and why.
    pub problems: Vec<String>,
}

impl Scans {
    /// Endpoints at an address.
    pub fn at(&self, server: SocketAddr) -> impl Iterator<Item = &Endpoint> {
        let server = SocketAddr::new(server.ip().to_canonical(), server.port());
        self.endpoints.iter().filter(move |e| e.newest.scan.server() == Some(server))
    }

    pub fn endpoint(&self, target: &Target, address: Option<IpAddr>) -> Option<&Endpoint> {
        let same =
            |e: &&Endpoint| (&e.newest.scan.target, e.newest.scan.address) == (target, address);
        self.endpoints.iter().find(same)
    }

    fn new(folder: PathBuf, files: usize, mut found: Vec<Found>, problems: Vec<String>) -> Scans {
        found.sort_by_key(|f| std::cmp::Reverse(f.scan.started));
        let mut endpoints: BTreeMap<(String, Option<IpAddr>), Endpoint> = BTreeMap::new();
        for one in found {
            let key = (one.scan.target.to_string(), one.scan.address);
            match endpoints.get_mut(&key) {
                Some(endpoint) => endpoint.older.push(one),
                None => _ = endpoints.insert(key, Endpoint { newest: one, older: Vec::new() }),
            }
        }
        let mut endpoints: Vec<Endpoint> = endpoints.into_values().collect();
        endpoints.sort_by_key(|e| worst_first(e.newest.scan.judgement.level));
        Scans { folder: Some(folder), endpoints, files, problems }
    }
}

/// A folder, of which only files that have changed are read again.
#[derive(Debug, Default)]
pub struct Folder {
    listed: Vec<Listed>,
    read: BTreeMap<String, Known>,
    scans: Arc<Scans>,
}

#[derive(Debug)]
struct Known {
    state: State,
    scans: Vec<Arc<Scan>>,
    problem: Option<String>,
}

impl Folder {
    /// Reads the files of the folder that end with `.json` or `.jsonl`, the newest first, as far as the limits allow.
    pub fn read(&mut self, folder: &Path) -> Arc<Scans> {
        let mut files = match list(folder) {
            Ok(files) => files,
            Err(e) => {
                *self = Folder::default();
                let why = vec![format!("cannot read the folder: {e}")];
                return Arc::new(Scans::new(folder.to_owned(), 0, Vec::new(), why));
            }
        };
        files.sort_by(|a, b| (b.state, &b.name).cmp(&(a.state, &a.name)));
        if files != self.listed || self.scans.folder.is_none() {
            self.scans = Arc::new(self.read_listed(folder, &files));
            self.listed = files;
        }
        self.scans.clone()
    }

    fn read_listed(&mut self, folder: &Path, files: &[Listed]) -> Scans {
        let (mut room, mut left_out) = (MAX_FOLDER, 0usize);
        let (mut found, mut problems) = (Vec::new(), Vec::new());
        let mut before = std::mem::take(&mut self.read);
        for Listed { name, state } in files {
            let size = if state.size > MAX_FILE as u64 { 0 } else { state.size };
            if self.read.len() >= MAX_FILES || size > room || found.len() >= MAX_SCANS {
                left_out += 1;
                continue;
            }
            room -= size;
            let known = before.remove(name).filter(|known| known.state == *state);
            let known = known.unwrap_or_else(|| Known::read(&folder.join(name), *state));
            problems.extend(known.problem.as_ref().map(|why| format!("{name}: {why}")));
            let file: Arc<str> = name.as_str().into();
            let scans = known.scans.iter().take(MAX_SCANS - found.len());
            found.extend(scans.map(|scan| Found { scan: scan.clone(), file: file.clone() }));
            self.read.insert(name.clone(), known);
        }
        if left_out > 0 {
            problems.push(format!(
                "{left_out} older files were not read: {MAX_FILES} files with {} MiB and {MAX_SCANS} scans are the limits",
                MAX_FOLDER >> 20
            ));
        }
        let count = self.read.values().filter(|known| known.problem.is_none()).count();
        Scans::new(folder.to_owned(), count, found, problems)
    }
}

impl Known {
    fn read(path: &Path, state: State) -> Known {
        let (scans, problem) = match content(path).map(|bytes| parse(&bytes)) {
            Ok(Some(scans)) => (scans, None),
            Ok(None) => {
                let why = "not a complete report of `wiretight scan --json`; a scan may still be writing it";
                (Vec::new(), Some(why.to_owned()))
            }
            Err(e) => (Vec::new(), Some(format!("cannot be read: {e}"))),
        };
        let scans = scans.into_iter().take(MAX_SCANS).map(|scan| Arc::new(bounded(scan)));
        Known { state, scans: scans.collect(), problem }
    }
}

fn bounded(mut scan: Scan) -> Scan {
    let cut = |text: &mut String| text.truncate(text.floor_char_boundary(MAX_TEXT));
    let Judgement { reasons, profiles, .. } = &mut scan.judgement;
    reasons.truncate(MAX_REASONS);
    for Reason { rule, fact, what, standard, change, .. } in reasons {
        cut(what);
        [rule, fact, standard, change].into_iter().for_each(|text| cut(text.to_mut()));
    }
    profiles.truncate(MAX_REASONS);
    profiles.iter_mut().for_each(|verdict| cut(&mut verdict.profile));
    match &mut scan.reached {
        None | Some(Reached::Tls) => {}
        Some(
            Reached::Plaintext { evidence }
            | Reached::Unknown { evidence }
            | Reached::Unreachable { evidence },
        ) => cut(evidence),
    }
    scan
}

/// What changes when a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    written: Option<SystemTime>,
    size: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Listed {
    name: String,
    state: State,
}

fn list(folder: &Path) -> io::Result<Vec<Listed>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)?.take(MAX_ENTRIES) {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // Of a symbolic link, this is the link itself, which is not a file.
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_file() && (name.ends_with(".json") || name.ends_with(".jsonl")) {
            let state = State { written: meta.modified().ok(), size: meta.len() };
            files.push(Listed { name, state });
        }
    }
    Ok(files)
}

/// The content of a regular file.
fn content(path: &Path) -> io::Result<Vec<u8>> {
    let how = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let file: File = OpenOptions::new().read(true).custom_flags(how.cast_signed()).open(path)?;
    let large = || io::Error::other(format!("larger than {} MiB", MAX_FILE >> 20));
    match file.metadata()? {
        meta if !meta.is_file() => return Err(io::Error::other("not a file")),
        meta if meta.len() > MAX_FILE as u64 => return Err(large()),
        _ => {}
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_FILE { Err(large()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(target: &str, started: &str, level: &str) -> String {
        format!(
            r#"{{"target":"{target}","address":"10.0.0.5","started":"{started}","seconds":1.5,"reached":{{"state":"tls"}},
            "facts":{{}},"judgement":{{"level":"{level}","reasons":[],"profiles":[{{"profile":"bcp195","answer":"no","reasons":[]}}]}}}}"#
        )
        .replace('\n', " ")
    }

    fn document(reports: &[String]) -> String {
        format!("{{\"schema\":\"{SCHEMA}\",\"reports\":[{}]}}", reports.join(",\n"))
    }

    fn line(report: &str) -> String {
        format!("{{\"schema\":\"{SCHEMA}\",{}\n", &report[1..])
    }

    #[test]
    fn documents_and_lines_are_read_and_nothing_else() {
        let (a, b) = (
            report("db.example:5432", "2026-11-01T10:00:00Z", "weak"),
            report("[::1]:443", "2026-11-02T10:00:00Z", "strong"),
        );
        let both = parse(document(&[a.clone(), b.clone()]).as_bytes()).unwrap();
        assert_eq!(both.len(), 2);
        assert_eq!(both[0].server(), Some("10.0.0.5:5432".parse().unwrap()));
        assert_eq!(parse((line(&a) + &line(&b)).as_bytes()).unwrap(), both);
        assert_eq!(parse(document(&[]).as_bytes()), Some(vec![]));
        let broken = line(&a) + &line(&b)[..40];
        let hostile = report("x y; rm -rf", "2026-11-01T10:00:00Z", "weak");
        for bad in [
            String::new(),
            "{}".into(),
            "[".repeat(100_000),
            document(std::slice::from_ref(&a)).replace(":1\"", ":2\""),
            line(&a).replace(":1\"", ":2\""),
            broken,
            document(&[hostile]),
            document(&[report("a:1", "yesterday", "weak")]),
            document(&[report("a:1", "2026-11-01T10:00:00Z", "excellent")]),
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{}", &bad[..bad.len().min(200)]);
        }
    }

    #[test]
    fn the_newest_scan_of_an_endpoint_counts_and_the_worst_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let old = report("db.example:5432", "2026-10-01T10:00:00Z", "weak");
        let new = report("db.example:5432", "2026-11-01T10:00:00Z", "strong");
        let web = report("web.example:443", "2026-09-01T10:00:00Z", "plaintext");
        write("new.json", &document(&[new]));
        write("old.jsonl", &(line(&old) + &line(&web)));
        let mut folder = Folder::default();
        let scans = folder.read(dir.path());
        assert_eq!((scans.files, scans.problems.len()), (2, 0), "{scans:?}");
        let levels = |scans: &Scans| -> Vec<_> {
            scans.endpoints.iter().map(|e| (e.newest.scan.judgement.level, e.older.len())).collect()
        };
        assert_eq!(levels(&scans), [(Level::Plaintext, 0), (Level::Strong, 1)]);
        assert_eq!(&*scans.endpoints[1].older[0].file, "old.jsonl");
        assert_eq!(scans.at("10.0.0.5:5432".parse().unwrap()).count(), 1);
        assert_eq!(scans.at("10.0.0.5:5433".parse().unwrap()).count(), 0);
        assert_eq!(folder.read(dir.path()), scans);
        // What is gone or changed is gone or changed.
        fs::remove_file(dir.path().join("old.jsonl")).unwrap();
        write("new.json", &document(&[report("db.example:5432", "2026-11-03T10:00:00Z", "weak")]));
        assert_eq!(levels(&folder.read(dir.path())), [(Level::Weak, 0)]);
    }

    #[test]
    fn only_regular_files_within_the_limits_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let good = document(&[report("a.example:1", "2026-11-01T10:00:00Z", "weak")]);
        fs::write(path("good.json"), &good).unwrap();
        fs::write(path("readme.txt"), &good).unwrap();
        fs::write(path("broken.json"), &good[..good.len() - 1]).unwrap();
        fs::create_dir(path("folder.json")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", path("link.json")).unwrap();
        File::create(path("large.json")).unwrap().set_len(MAX_FILE as u64 + 1).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path("pipe.json"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        let scans = Folder::default().read(dir.path());
        assert_eq!((scans.endpoints.len(), scans.files), (1, 1), "{scans:?}");
        let problems = scans.problems.join("\n");
        assert!(problems.contains("broken.json: not a complete report"), "{problems}");
        assert!(problems.contains("large.json: cannot be read: larger than 32 MiB"), "{problems}");
        assert_eq!(scans.problems.len(), 2, "{problems}");
        // What is exchanged between the list and the opening is not read either.
        for name in ["link.json", "pipe.json", "folder.json"] {
            assert!(content(&path(name)).is_err(), "{name}");
        }
        // Sparse files that are larger than what is read of a folder.
        for n in 0..6 {
            File::create(path(&format!("{n}.json"))).unwrap().set_len(30 << 20).unwrap();
        }
        let scans = Folder::default().read(dir.path());
        assert!(
            scans.problems.iter().any(|p| p.contains("older files were not read")),
            "{scans:?}"
        );
        let missing = Folder::default().read(&path("none"));
        assert!(missing.problems[0].starts_with("cannot read the folder: "), "{missing:?}");
    }

    #[test]
    fn no_more_files_and_scans_than_the_limits_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let reasons = r#"{"rule":"r","fact":"f","answer":"yes","level":"weak","what":"w","standard":"s","change":"c"}"#;
        let many = vec![reasons; MAX_REASONS + 5].join(",");
        let one = report("a.example:1", "2026-11-01T10:00:00Z", "weak");
        let one = one
            .replace("\"reasons\":[],\"profiles\"", &format!("\"reasons\":[{many}],\"profiles\""));
        for n in 0..=MAX_FILES {
            fs::write(dir.path().join(format!("{n}.json")), document(std::slice::from_ref(&one)))
                .unwrap();
        }
        let scans = Folder::default().read(dir.path());
        assert_eq!((scans.files, scans.endpoints.len()), (MAX_FILES, 1));
        assert!(
            scans.problems[0].starts_with("1 older files were not read"),
            "{:?}",
            scans.problems
        );
        assert_eq!(scans.endpoints[0].newest.scan.judgement.reasons.len(), MAX_REASONS);
    }
}

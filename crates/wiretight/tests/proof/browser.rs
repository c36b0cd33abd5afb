//! Pages in Chromium, driven by web/browser.mjs; and what verify.html makes of true and of false folders.
//!
//! Screenshots are in target/proof.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::{Value, json};

use super::common::{find, has, skip};

/// What was seen on a visit; see web/browser.mjs.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
#[allow(dead_code, reason = "the tests of each page read what they need")]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) title: String,
    /// The texts of the elements that were to be read.
    pub(crate) read: BTreeMap<String, Vec<String>>,
    pub(crate) results: Vec<Value>,
    pub(crate) requests: Vec<String>,
    /// Requests to other hosts, which were blocked.
    pub(crate) foreign: Vec<String>,
    /// Errors in the browser's console, such as violations of the content security policy.
    pub(crate) problems: Vec<String>,
    pub(crate) cookies: Vec<String>,
    /// What axe-core found.
    pub(crate) axe: Vec<String>,
    /// How many pixels the page is too wide for 320, which is 1280 at 400 % zoom.
    pub(crate) wide: i64,
    /// Why a step failed.
    pub(crate) error: Option<String>,
}

impl Seen {
    /// Checks that nothing was wrong: no request elsewhere, no error, no finding about accessibility.
    #[track_caller]
    pub(crate) fn good(&self) -> &Seen {
        assert_eq!(self.error, None, "{self:#?}");
        assert_eq!(self.foreign, [""; 0], "{}: requests to other hosts", self.name);
        assert_eq!(self.problems, [""; 0], "{}: errors in the console", self.name);
        assert_eq!(self.axe, [""; 0], "{}: axe-core", self.name);
        assert!(self.wide <= 0, "{}: {} px too wide for 320 px", self.name, self.wide);
        self
    }

    /// The text of the only element that was read under this name.
    #[track_caller]
    pub(crate) fn text(&self, name: &str) -> &str {
        match self.read.get(name).map(Vec::as_slice) {
            Some([one]) => one,
            other => panic!("{name} is not one element: {other:?} in {self:#?}"),
        }
    }
}

/// The folder with the packages from npm. If something is missing, the test is skipped.
fn packages() -> Option<PathBuf> {
    let target = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tools/npm");
    let folder = std::env::var_os("WIRETIGHT_NPM").map_or_else(|| target.into(), PathBuf::from);
    let complete = ["playwright-core", "axe-core"]
        .iter()
        .all(|name| folder.join("node_modules").join(name).join("package.json").is_file());
    if !complete {
        skip("playwright-core and axe-core from npm (scripts/test installs them)");
        return None;
    }
    has(&["node", "chromium"]).then_some(folder)
}

/// Whether pages can be opened. If not, the test is skipped.
pub(crate) fn is_installed() -> bool {
    packages().is_some()
}

/// Opens pages in Chromium. `visits` is a list; its form is in web/browser.mjs. `None`: something is not installed.
pub(crate) fn browse(visits: &Value) -> Option<Vec<Seen>> {
    let packages = packages()?;
    let shots = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/proof"));
    let mut command = Command::new(find("node")?);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/web/browser.mjs"));
    command.env("WIRETIGHT_NPM", packages).env("WIRETIGHT_CHROMIUM", find("chromium")?);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let input = child.stdin.take().unwrap();
    serde_json::to_writer(input, &json!({ "out": shots, "visits": visits })).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "browser.mjs failed: {}", output.status);
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn what_a_page_must_not_do_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let page = "<!doctype html><html lang=en><title>bad</title>\
        <meta http-equiv=Content-Security-Policy content=\"script-src 'none'\"><main><h1>A page</h1>\
        <img src=http://elsewhere.example/pixel.png><script>document.title = 'ran'</script>\
        <style>@media (prefers-color-scheme:dark){.dark{color:#222;background:#000}}\
        @media print{.print{color:#eee;background:#fff}}@media (max-width:400px){.phone{height:9px;display:block}}</style>\
        <p class=dark>not in the dark<p class=print>not on paper<a class=phone href=#1>a</a><a class=phone href=#2>b</a>\
        <p style=\"color:#bbb;width:900px\">hardly readable</p></main></html>";
    fs::write(dir.path().join("index.html"), page).unwrap();
    let good =
        "<!doctype html><html lang=en><title>good</title><main><h1>A page</h1></main></html>";
    fs::write(dir.path().join("good.html"), good).unwrap();
    let Some(seen) = browse(&json!([
        { "name": "control", "dir": dir.path(), "axe": true, "shots": true },
        { "name": "control-good", "dir": dir.path(), "path": "good.html", "axe": true, "shots": true,
          "read": { "title": "h1" } },
        { "name": "control-steps", "dir": dir.path(), "steps": [["evaluate", "document.querySelector('none').x"]] },
    ])) else {
        return;
    };
    let [bad, good, failed] = &seen[..] else { panic!("{seen:#?}") };
    assert_eq!(bad.foreign, ["http://elsewhere.example/pixel.png"]);
    assert_eq!(bad.title, "bad");
    assert!(bad.problems.iter().any(|p| p.contains("Content Security Policy")), "{bad:#?}");
    for (way, of) in [
        ("light: color-contrast", "hardly readable"),
        ("light: image-alt", "pixel.png"),
        ("dark: color-contrast", "not in the dark"),
        ("print: color-contrast", "not on paper"),
        ("phone: target-size", "class=\"phone\""),
    ] {
        let found = |found: &&String| found.starts_with(way);
        let all: Vec<&String> = bad.axe.iter().filter(found).collect();
        assert!(all.len() == 1 && all[0].contains(of), "{way}: {bad:#?}");
        let elsewhere = bad.axe.iter().any(|f| f.contains(of) && !f.starts_with(way));
        assert!(!elsewhere || !of.starts_with("not "), "only there: {bad:#?}");
    }
    assert!(bad.wide > 500, "{bad:#?}");
    assert_eq!(good.good().text("title"), "A page");
    assert!(failed.error.as_ref().is_some_and(|e| e.contains("null")), "{failed:#?}");
}

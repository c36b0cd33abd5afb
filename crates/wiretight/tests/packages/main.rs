//! The packages that `scripts/package` makes of the binary under test: whether they are in order, and what happens to a
//! machine that installs them. The machines are fresh Debian 12 systems in namespaces.
//!
//! No systemd runs there. What it would do is done here as the installed unit says it: its user, its ExecStart=, its
//! ExecReload=.

#![allow(clippy::unwrap_used, reason = "in a test, whatever is not there ends it")]

#[path = "../common/mod.rs"]
mod common;
mod image;
mod life;
mod lint;
mod machine;
#[allow(dead_code, reason = "the scenarios use the rest")]
#[path = "../scenarios/machines.rs"]
mod machines;
mod release;
#[allow(dead_code, reason = "the scenarios use the rest")]
#[path = "../scenarios/rig.rs"]
mod rig;
mod rpm;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use rig::{Ran, has};
use tempfile::TempDir;

/// The packages of the binary under test.
struct Packages {
    dir: TempDir,
    deb: PathBuf,
    rpm: PathBuf,
    image: PathBuf,
}

/// What makes them. If something is missing, the test is skipped.
fn can_build() -> bool {
    has(&["dh", "dpkg-deb", "apt-get", "rpmbuild", "python3", "cargo", "strip"])
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

impl Packages {
    /// Made once for all tests of this binary.
    fn get() -> &'static Packages {
        static MADE: OnceLock<Packages> = OnceLock::new();
        MADE.get_or_init(|| Packages::build(&mut Command::new(root().join("scripts/package"))))
    }

    fn build(command: &mut Command) -> Packages {
        let dir = tempfile::Builder::new().prefix("wiretight-packages-").tempdir().unwrap();
        command.args(["--fast", "--binary", env!("CARGO_BIN_EXE_wiretight"), "--out"]);
        // Cargo has set this for the test; scripts/package calls cargo for the list of crates.
        let made = Ran::of(command.arg(dir.path()).env_remove("CARGO"), "").good().out;
        let path = |end: &str| {
            let line = made.lines().find(|line| line.ends_with(end));
            PathBuf::from(line.unwrap_or_else(|| panic!("no {end}: {made}")))
        };
        let (deb, rpm, image) = (path(".deb"), path(".rpm"), path(".oci.tar"));
        Packages { dir, deb, rpm, image }
    }

    /// The Debian package with a higher version, and otherwise the same.
    fn newer(&self) -> PathBuf {
        let (tree, to) = (self.dir.path().join("newer"), self.dir.path().join("newer.deb"));
        let script = r#"
            dpkg-deb --raw-extract "$1" "$2"
            sed -i 's/^Version: .*/Version: 99.0-1/' "$2/DEBIAN/control"
            dpkg-deb --root-owner-group -Zgzip -z1 --build "$2" "$3""#;
        let mut sh = Command::new("sh");
        sh.args(["-ec", script, "sh"]).arg(&self.deb).arg(tree).arg(&to);
        Ran::of(&mut sh, "").good();
        to
    }
}

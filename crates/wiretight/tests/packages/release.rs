//! `scripts/release` on a small program: two builds under different conditions are the same, and what a build takes from
//! its machine is found. (The real program is built that way for a release only: that takes half an hour.)

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use tempfile::TempDir;

use super::rig::*;
use super::root;

/// A git repository with the small program, and what makes releases of the real one.
struct Tiny {
    dir: TempDir,
}

impl Tiny {
    fn new() -> Tiny {
        let dir = tempfile::Builder::new().prefix("wiretight-release-").tempdir().unwrap();
        // The users that build must reach the folders in it.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let tiny = Tiny { dir };
        let script = r#"
            cp -r "$1/crates/wiretight/tests/packages/tiny" "$2"
            cp "$1/scripts/release" "$2/scripts"
            mkdir "$2/packaging"
            cp "$1"/packaging/{build,crates.py,sbom.py,provenance.py} "$2/packaging"
            cd "$2"
            touch packaging/image.lock # without an image
            echo "rustc 7.0.0" >packaging/toolchain
            git init --quiet ."#;
        let mut bash = Command::new("bash");
        bash.args(["-ec", script, "bash"]).arg(root()).arg(tiny.path("tree"));
        Ran::of(bash.env_remove("CARGO"), "").good();
        // The same dependency as the real program has.
        let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
        let slab = lock.split("\n\n").find(|entry| entry.contains("name = \"slab\"")).unwrap();
        let own =
            "[[package]]\nname = \"wiretight\"\nversion = \"0.1.0\"\ndependencies = [\"slab\"]\n";
        fs::write(tiny.path("tree/Cargo.lock"), format!("version = 4\n\n{slab}\n\n{own}")).unwrap();
        tiny.commit();
        tiny
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn commit(&self) {
        let script =
            "git add --all && git -c user.name=a -c user.email=a@example.org commit --quiet -m a";
        let mut sh = Command::new("sh");
        sh.args(["-ec", script]).env("GIT_COMMITTER_DATE", "2026-01-02T03:04:05Z");
        Ran::of(sh.current_dir(self.path("tree")), "").good();
    }

    fn release(&self, out: &str, options: &[&str]) -> Ran {
        let mut release = Command::new(self.path("tree/scripts/release"));
        release.args(options).arg("--out").arg(self.path(out));
        release.env("TMPDIR", self.dir.path()).env_remove("CARGO");
        Ran::of(&mut release, "")
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }
}

/// The keys of lines like `key value`, and the values.
fn lines(text: &str) -> Vec<(&str, &str)> {
    text.lines().map(|line| line.split_once(' ').unwrap()).collect()
}

fn output(program: &str, args: &[&str], dir: &Path) -> String {
    Ran::of(Command::new(program).args(args).current_dir(dir), "").good().out.trim().to_owned()
}

#[test]
fn a_release_is_built_twice_and_what_the_machine_adds_is_found() {
    let programs = ["git", "cargo", "cc", "ar", "objcopy", "python3", "faketime", "taskset"];
    if !has(&programs) || !has(&["unshare", "setpriv"]) {
        return;
    }
    let tiny = Tiny::new();

    // With another toolchain, nothing is made without a word, and the record says what it was. (Only its description
    // differs here, so the program will be the same.)
    let ran = tiny.release("repeated", &["--once"]);
    assert!(ran.code == Some(1) && ran.err.contains("-rustc 7.0.0\n+host "), "{ran:?}");
    assert!(!tiny.path("repeated").exists());
    tiny.release("repeated", &["--once", "--any-toolchain"]).good();

    let toolchain = tiny.read("repeated/toolchain.txt");
    fs::write(tiny.path("tree/packaging/toolchain"), toolchain).unwrap();
    let ran = tiny.release("release", &[]);
    assert!(ran.code == Some(1) && ran.err.contains("not committed"), "{ran:?}");
    tiny.commit();
    let ran = tiny.release("release", &[]).good();
    assert!(ran.out.contains("identical: wiretight\n"), "{ran:?}");
    assert!(!ran.out.contains("DIFFERENT"), "{ran:?}");

    // What the release log takes.
    let source = tiny.read("release/source.txt");
    let keys: Vec<&str> = lines(&source).iter().map(|line| line.0).collect();
    assert_eq!(keys, ["name", "version", "tree", "lock", "vendor", "toolchain", "recipe"]);
    let tree = tiny.path("tree");
    let hash = |command: &str| output("bash", &["-c", &format!("{command} | cut -c -64")], &tree);
    let recipe = "find Cargo.toml packaging scripts/package scripts/release -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum";
    let expected = [
        ("name", "wiretight".to_owned()),
        ("version", "0.1.0".to_owned()),
        ("tree", output("git", &["rev-parse", "HEAD^{tree}"], &tree)),
        ("lock", hash("sha256sum Cargo.lock")),
        ("toolchain", hash("sha256sum packaging/toolchain")),
        ("recipe", hash(recipe)),
    ];
    for (key, value) in expected {
        assert!(source.contains(&format!("{key} {value}\n")), "{key} {value}: {source}");
    }
    let files = tiny.read("release/files.txt");
    let names: Vec<&str> = files.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
    assert_eq!(names, ["wiretight", "wiretight-0.1.0.cdx.json"]);
    for name in names {
        let path = format!("release/{name}");
        let digest = hash(&format!("sha256sum '{}'", tiny.path(&path).display()));
        let size = fs::metadata(tiny.path(&path)).unwrap().len();
        assert!(files.contains(&format!("file {digest} {size} {name}\n")), "{files}");
    }

    assert_eq!(tiny.read("repeated/files.txt"), files);
    assert_eq!(lines(&tiny.read("repeated/source.txt"))[5], lines(&source)[5]);
    dependencies_are_told(&tiny);
    formats_are_valid(&tiny);

    // Everything that a build must not depend on.
    fs::write(tiny.path("tree/plants"), "").unwrap();
    tiny.commit();
    let ran = tiny.release("planted", &[]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.err.contains("there is no release") && !tiny.path("planted").exists(), "{ran:?}");
    let mut expected = vec!["folder", "locale", "mode.tar", "path", "time", "variable", "zone"];
    match std::thread::available_parallelism().unwrap().get() {
        1 => assert!(ran.out.contains("number of cores (there is only one)"), "{ran:?}"),
        _ => expected.push("cores"),
    }
    match is_root() {
        true => expected.extend(["host", "user"]),
        false => assert!(ran.out.contains("They had the same user"), "{ran:?}"),
    }
    let differ = ran.out.lines().filter_map(|line| line.strip_prefix("DIFFERENT: "));
    let (mut differ, mut named): (Vec<&str>, _) = (differ.collect(), expected.clone());
    differ.sort_unstable();
    named.sort_unstable();
    assert_eq!(differ, named, "{ran:?}");
    assert!(ran.out.contains("identical: wiretight\n"), "{ran:?}");
    // The first difference is shown.
    assert!(ran.out.contains("\n    Err(NotPresent)\n    Ok(\"4711\")\n"), "{ran:?}");
    assert!(
        ran.out.contains("/first/tree") && ran.out.contains("/with-a-longer-path/tree"),
        "{ran:?}"
    );
}

/// The list of crates in the program, as the library of cargo audit reads it.
fn dependencies_are_told(tiny: &Tiny) {
    let program = tiny.path("release/wiretight");
    let info = auditable_info::audit_info_from_file(&program, Default::default()).unwrap();
    let told = serde_json::to_value(&info).unwrap();
    let slab = &told["packages"][1];
    assert_eq!(slab["name"], "slab", "{told}");
    let expected = serde_json::json!([
        {"name": "wiretight", "version": "0.1.0", "source": "local", "dependencies": [1], "root": true},
        {"name": "slab", "version": slab["version"], "source": "crates.io"},
    ]);
    assert_eq!(told["packages"], expected);
    // The program works, and its own paths are not those of the machine.
    let ran = Ran::of(&mut Command::new(&program), "");
    assert!(ran.out.starts_with("/wiretight/target/dist/build/wiretight-"), "{ran:?}");
    assert!(ran.out.contains("\"/wiretight/src/part.c Jan  2 2026 03:04:05\""), "{ran:?}");
    assert!(ran.err.contains("invalid key"), "{ran:?}");
    let bytes = fs::read(&program).unwrap();
    let place = "/first/tree";
    assert!(!bytes.windows(place.len()).any(|window| window == place.as_bytes()));
}

/// As the validators of CycloneDX, in-toto and SLSA see it.
fn formats_are_valid(tiny: &Tiny) {
    let python = root().join("target/tools/pypi/bin/python");
    let has = Command::new(&python).args(["-c", "import cyclonedx, in_toto_attestation"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        assert!(env::var_os("CI").is_none(), "no validators in {}", python.display());
        eprintln!(
            "skipped: validation of SBOM and provenance: no cyclonedx-python-lib, in-toto-attestation"
        );
        return;
    }
    let validate = |kind: &str, text: &str| {
        let path = tiny.path("document.json");
        fs::write(&path, text).unwrap();
        let script = root().join("crates/wiretight-scan/tests/validate.py");
        Ran::of(Command::new(&python).arg(script).arg(kind).arg(path), "").all()
    };
    let sbom = tiny.read("release/wiretight-0.1.0.cdx.json");
    assert_eq!(validate("cbom", &sbom), "");
    assert_ne!(validate("cbom", &sbom.replacen("\"bom-ref\"", "\"bom_ref\"", 1)), "");
    let provenance = tiny.read("release/wiretight-0.1.0.intoto.json");
    assert_eq!(validate("provenance", &provenance), "");
    assert_ne!(validate("provenance", &provenance.replacen("\"builder\"", "\"maker\"", 1)), "");
    for line in tiny.read("release/files.txt").lines() {
        assert!(provenance.contains(line.split(' ').nth(1).unwrap()), "{line}");
    }
}

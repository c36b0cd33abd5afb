//! The OCI image: other programs read it, and its program runs with what is in it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use super::rig::*;
use super::{Packages, can_build};

#[test]
fn image_is_read_by_other_tools_and_its_program_runs_without_privileges() {
    if !can_build() || !has(&["skopeo", "umoci", "unshare", "chroot"]) || !is_root() {
        return;
    }
    let packages = Packages::get();
    let world = World::new();
    let archive = format!("oci-archive:{}", packages.image.display());
    let shown = run("skopeo", &["inspect", &archive]).json();
    assert_eq!(shown["Os"], "linux");
    assert_eq!(shown["Layers"].as_array().unwrap().len(), 2, "{shown:#}");
    assert_eq!(shown["Labels"]["org.opencontainers.image.title"], "wiretight");
    let config = run("skopeo", &["inspect", "--config", &archive]).json();
    assert_eq!(config["config"]["User"], "65532:65532", "{config:#}");
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/usr/bin/wiretight"]));

    // skopeo verifies digests and sizes when it copies; umoci unpacks as container engines do.
    let layout = world.path("layout").display().to_string();
    run("skopeo", &["copy", "--quiet", &archive, &format!("oci:{layout}:latest")]);
    let bundle = world.path("bundle").display().to_string();
    run("umoci", &["unpack", "--image", &format!("{layout}:latest"), &bundle]);
    let root = world.path("bundle/rootfs");
    check_files(&root, &root);
    let program = fs::read(packages.dir.path().join("wiretight")).unwrap();
    assert!(fs::read(root.join("usr/bin/wiretight")).unwrap() == program, "another program");

    // An authority starts, as that user, without a capability, and without a network.
    let config = "[node]\nname = \"auth\"\ntrust_domain = \"example.org\"\n\n[authority]\nlisten = \"127.0.0.1:7400\"\n";
    fs::write(root.join("etc/wiretight/wiretight.toml"), config).unwrap();
    let inside = |args: &[&str]| {
        let mut chroot = Command::new(find("chroot").unwrap());
        chroot.args(["--userspec=65532:65532", "--groups="]).arg(&root).arg("/usr/bin/wiretight");
        chroot.args(args);
        chroot.env_clear();
        chroot
    };
    let netns = Netns::new();
    let node = Kid::start(&mut within(Some(&netns.0), inside(&["run"])), &world.path("log"));
    wait_for("the node is ready", || {
        let ran = Ran::of(&mut inside(&["status", "--json"]), "");
        ran.code == Some(0) && ran.json()["ready"] != false
    });
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim();
    assert_eq!(line("CapEff:"), "0000000000000000", "{status}");
    assert!(line("Uid:").starts_with("65532"), "{status}");
    let token = Ran::of(&mut inside(&["token", "create", "--node", "web1"]), "").good();
    assert!(!token.out.trim().is_empty(), "{token:?}");
}

#[track_caller]
fn run(program: &str, args: &[&str]) -> Ran {
    let ran = Ran::of(Command::new(find(program).unwrap()).args(args), "");
    assert_eq!(ran.code, Some(0), "{program} {args:?}: {}", ran.all());
    ran
}

/// No shell, nothing that gives privileges, nothing that the user could change except for the state.
fn check_files(root: &Path, dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let (path, is) = (entry.path(), entry.metadata().unwrap());
        let name = format!("/{}", path.strip_prefix(root).unwrap().display());
        if is.is_symlink() {
            continue;
        }
        let mode = is.permissions().mode();
        assert_eq!(mode & 0o6000, 0, "{name} gives privileges");
        let state = name == "/var/lib/wiretight";
        assert_eq!(is.uid(), if state { 65532 } else { 0 }, "the owner of {name}");
        assert!(mode & 0o022 == 0 || name == "/tmp", "{name} is writable: {mode:o}");
        if is.is_dir() {
            check_files(root, &path);
        } else if mode & 0o111 != 0 {
            let program = name == "/usr/bin/wiretight" || name.contains("/ld-linux");
            assert!(program, "{name} is a program");
        }
    }
}

/// A network namespace with nothing but loopback.
struct Netns(String);

impl Netns {
    fn new() -> Netns {
        let name = format!("wt{}image", std::process::id());
        super::machines::ip(&format!("netns add {name}"));
        super::machines::ip(&format!("-n {name} link set lo up"));
        Netns(name)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

//! What somebody uses first: manual pages, completions.

use std::fs;
use std::process::Command;

use super::rig::*;

#[test]
fn completions_have_values_and_no_hidden_verbs() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let made = Ran::of(wiretight().args(["completions", shell]), "").good();
        assert!(made.out.len() > 1000 && made.out.contains("wiretight"), "{shell}: {}", made.out);
        for hidden in ["rules-keeper", "dns-hook"] {
            assert!(!made.out.contains(hidden), "{shell}: {hidden} is no verb of an operator's");
        }
        // Values of options are completed, and arguments where the shell's script can.
        let of_options = ["sarif", "acceptable", "bcp195"];
        let of_verbs = ["strict", "prepare-root"];
        let (options, verbs) = match shell {
            "bash" | "zsh" => (&of_options[..], &of_verbs[..]),
            "fish" => (&of_options[..], &[][..]),
            _ => (&[][..], &[][..]),
        };
        for value in options.iter().chain(verbs) {
            assert!(made.out.contains(value), "{shell}: {value}");
        }
        // Files and directories are told apart.
        let of_files = match shell {
            "zsh" => &["FILE:_files", "DIR:_files -/"][..],
            "fish" => &["-l config -d", "-r -F", "__fish_complete_directories"],
            _ => &[],
        };
        for part in of_files {
            assert!(made.out.contains(part), "{shell}: {part}");
        }
    }
}

/// What bash offers behind a line; the last word is being typed.
fn offered(words: &[&str]) -> Vec<String> {
    // Outside of a completion by keys, bash refuses `compopt`.
    let line = "compopt() { :; }; source \"$1\" && shift && complete -p wiretight >/dev/null && COMP_WORDS=(\"$@\") && \
                COMP_CWORD=$(($# - 1)) && _wiretight wiretight \"${@: -1}\" \"${@: -2:1}\" && \
                printf '%s\\n' \"${COMPREPLY[@]}\"";
    let world = World::new();
    let script = world.path("wiretight.bash");
    let made = Ran::of(wiretight().args(["completions", "bash"]), "").good();
    fs::write(&script, made.out).unwrap();
    let mut bash = Command::new(find("bash").unwrap());
    bash.args(["--norc", "-c", line, "bash"]).arg(script).args(words);
    let ran = Ran::of(&mut bash, "").good();
    assert_eq!(ran.err, "");
    ran.out.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_verbs_values_and_files() {
    if !has(&["bash"]) {
        return;
    }
    assert_eq!(offered(&["wiretight", "scan", "--format", "sar"]), ["sarif"]);
    assert_eq!(offered(&["wiretight", "scan", "--fail-below", "acc"]), ["acceptable"]);
    assert_eq!(offered(&["wiretight", "audit", "export", "--profile", "pci"]), ["pci-dss-4"]);
    assert_eq!(offered(&["wiretight", "mode", "str"]), ["strict"]);
    let world = World::new();
    let file = world.path("wiretight.toml").display().to_string();
    fs::write(&file, "").unwrap();
    let part = file.trim_end_matches("ght.toml");
    assert_eq!(offered(&["wiretight", "run", "--config", part]), [file]);
}

#[test]
fn manual_pages_are_complete_and_without_warnings() {
    let world = World::new();
    let dir = world.path("man/man1");
    let mut write = wiretight();
    write.arg("man").arg(&dir).env("SOURCE_DATE_EPOCH", "1700000000");
    Ran::of(&mut write, "").good();
    let read = |page: &str| fs::read_to_string(dir.join(page)).unwrap();
    let pages: Vec<_> = fs::read_dir(&dir).unwrap().flatten().map(|e| e.path()).collect();
    for page in ["wiretight-run.1", "wiretight-token-create.1"] {
        assert!(pages.iter().any(|p| p.ends_with(page)), "no {page} in {pages:?}");
    }
    assert!(read("wiretight.1").contains(".TH WIRETIGHT 1 2023-11-14 "), "{}", read("wiretight.1"));
    assert!(read("wiretight.toml.5").contains("\\fBtrust_domain = \"example.org\"\\fR\n"));
    // Each example stays on one line.
    let page = read("wiretight-mode.1");
    let examples = page.split(".SH EXAMPLES\n.nf\n").nth(1).unwrap();
    assert!(examples.lines().any(|line| line.starts_with("wiretight mode confirm  ")), "{page}");
    for page in &pages {
        let text = fs::read_to_string(page).unwrap();
        assert!(!text.contains("rules\\-keeper"), "{}: {text}", page.display());
    }
    if !has(&["mandoc", "man", "groff"]) {
        return;
    }
    // The control: both programs report a mistake.
    let bad = world.path("bad.1");
    fs::write(&bad, read("wiretight.1") + ".nonsense\n.SH A\n\\fB\\n(zz\\fR\n").unwrap();
    let lint = |page: &std::path::Path| {
        let mut mandoc = Command::new(find("mandoc").unwrap());
        mandoc.args(["-T", "lint", "-W", "warning"]).arg(page);
        let mandoc = Ran::of(&mut mandoc, "");
        let mut man = Command::new(find("man").unwrap());
        man.args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"]).arg(page);
        man.env("LC_ALL", "C.UTF-8").env("MANROFFSEQ", "").env("MANWIDTH", "80");
        [mandoc.out + &mandoc.err, Ran::of(&mut man, "").err]
    };
    assert!(lint(&bad).iter().all(|said| !said.is_empty()), "{:?}", lint(&bad));
    for page in pages {
        assert_eq!(lint(&page), ["", ""], "{}", page.display());
    }
}

//! What somebody uses first: `wiretight init`, manual pages, completions.

use std::fs;
use std::process::Command;

use super::documents::Site;
use super::rig::*;

/// Types on a terminal of a machine.
fn typed(site: &mut Site, host: &str, line: &str, answers: &[&str]) -> Ran {
    let answers: String = answers.iter().map(|answer| format!("{answer}\n")).collect();
    let script = format!("script -qec '{line}' /dev/null");
    site.run(host, &script, &answers)
}

#[track_caller]
fn ready(site: &mut Site, host: &str) {
    let host = host.to_owned();
    wait_for("the node is ready", || site.run(&host, "wiretight status", "").code == Some(0));
}

/// A whole mesh of files that `init` has written: a witness behind an edge without a mesh, an authority that needs that
/// witness, a node, a monitor.
#[test]
fn what_init_writes_starts_and_does_its_job() {
    if !has(&["ip", "nsenter", "unshare", "openssl", "script", "curl"]) || !is_root() {
        return;
    }
    let mut site = Site::new(&["auth1", "db1", "w1", "audit"]);

    // The edge, by answers; one of them is wrong.
    let answers = ["nothing", "edge", "no name", "witness.example.net", "10.0.0.5:80", "7480"];
    let files = ["/etc/wiretight/tls.pem", "/etc/wiretight/tls.key"];
    let answers: Vec<_> = answers.into_iter().chain(files).collect();
    let ran = typed(&mut site, "w1", "wiretight init", &answers).good();
    for part in
        ["is not authority, node, edge", "plaintext would cross the network", "wiretight run"]
    {
        assert!(ran.out.contains(part), "no {part:?} in {}", ran.out);
    }
    let checked = site.run("w1", "wiretight check", "").good();
    assert!(checked.out.contains("node w1, 1 site; no mesh needed"), "{checked:?}");
    site.start("w1", "wiretight run", "wiretight run");
    ready(&mut site, "w1");

    // The authority, by options. Its address is that of the network.
    site.run("auth1", "wiretight init authority --trust-domain example.org", "").good();
    let file = site.run("auth1", "cat /etc/wiretight/wiretight.toml", "").good().out;
    assert!(
        file.contains("listen = \"10.0.0.1:7400\"") && file.contains("name = \"auth1\""),
        "{file}"
    );
    let log_key = site.run("auth1", "wiretight authority log-key", "").good().out;
    let log_key = log_key.trim();

    // The witness. Its key is new, so it starts at once.
    let made_by =
        format!("wiretight init witness --key-name witness.example.net/w1 --log {log_key}");
    let made = site.run("w1", &made_by, "").good().out;
    let key = made.split("rely on this witness:\n  ").nth(1).unwrap().lines().next().unwrap();
    let from_options = |verb: &str, state: &str, name: &str| {
        format!(
            ". /etc/wiretight/{name}-main.env; exec wiretight {verb} --state {state}/main $OPTIONS"
        )
    };
    let line = from_options("witness run", "/var/lib/wiretight-witness", "witness");
    let log = site.log_of("w1", "witness");
    let _witness = Kid::start(&mut site.shell("w1", &line), &log);
    wait_for("the witness is ready", || {
        fs::read_to_string(&log).is_ok_and(|log| log.contains("the witness is ready"))
    });
    let again = site.run("w1", &made_by, "");
    assert!(again.code == Some(1) && again.err.contains("exists already"), "{again:?}");

    // The authority starts only with the witness, which it reaches through the edge.
    let policy =
        format!("log {log_key}\nwitness w1 {key} https://witness.example.net\nquorum w1\n");
    for host in ["auth1", "audit"] {
        site.run(host, "cat > /etc/wiretight/log.policy", &policy).good();
    }
    let more = "\n[witnesses]\npolicy = \"/etc/wiretight/log.policy\"\n[log]\nlisten = \"10.0.0.1:7401\"\npublic = true\n";
    site.run("auth1", "cat >> /etc/wiretight/wiretight.toml", more).good();
    site.start("auth1", "wiretight run", "wiretight run");
    ready(&mut site, "auth1");

    // A node, by answers. It joins when it starts.
    let token = "wiretight token create --node db1 --service echo";
    let token = site.run("auth1", token, "").good().out;
    let answers = [token.trim(), "echo=7007", "", "node/web1"];
    typed(&mut site, "db1", "wiretight init node", &answers).good();
    let modes =
        site.run("db1", "stat -c %a /etc/wiretight/wiretight.toml /etc/wiretight/token", "");
    assert_eq!(modes.good().out, "640\n600\n");
    let file = site.run("db1", "cat /etc/wiretight/wiretight.toml", "").good().out;
    assert!(file.contains("listen = \"10.0.0.5:9007\""), "{file}");
    site.start("db1", "wiretight run", "wiretight run");
    ready(&mut site, "db1");

    // The monitor reports the certificate of a service whose key it does not expect.
    site.run("db1", "wiretight svid fetch --service echo --out /etc/wiretight/svid", "").good();
    let bundle = site.run("db1", "cat /etc/wiretight/svid/bundle.pem", "").good().out;
    site.run("audit", "cat > /etc/wiretight/bundle.pem", &bundle).good();
    let line = "wiretight init monitor --url https://10.0.0.1:7401 --server-name authority.example.org --ca \
                /etc/wiretight/bundle.pem";
    site.run("audit", &format!("{line} --watch service/echo"), "").good();
    let once = from_options("monitor", "/var/lib/wiretight-monitor", "monitor") + " --once";
    let ran = site.run("audit", &once, "");
    assert!(ran.code == Some(1) && ran.err.contains("unexpected-certificate"), "{ran:?}");
    // The control: nothing is watched, and the log behaves.
    site.run("audit", &format!("{line} --force"), "").good();
    let ran = site.run("audit", &once.replace("/main ", "/other "), "");
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

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
    assert_eq!(offered(&["wiretight", "ini"]), ["init"]);
    let kinds = offered(&["wiretight", "init", ""]);
    for kind in ["authority", "edge", "monitor", "node", "witness"] {
        assert!(kinds.iter().any(|k| k == kind), "{kind} is not in {kinds:?}");
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
    for page in ["wiretight-run.1", "wiretight-token-create.1", "wiretight-init-node.1"] {
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

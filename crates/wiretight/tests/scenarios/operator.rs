//! What an operator does on a running mesh: join tokens, grants and removals with confirmation, missing files, an edge
//! without a mesh.

use std::fs;
use std::process::Command;

use serde_json::json;

use super::cli::openmetrics;
use super::rig::*;

/// Checks that nothing was changed, as there was no terminal to ask for confirmation.
#[track_caller]
fn asks(ran: &Ran, what: &str) {
    assert_eq!(ran.code, Some(1), "{ran:?}");
    for part in [what, "nothing was changed", "--yes"] {
        assert!(ran.err.to_lowercase().contains(&part.to_lowercase()), "no {part:?}: {ran:?}");
    }
    assert!(ran.out.is_empty(), "{ran:?}");
}

#[test]
fn commands_that_disconnect_a_live_node_ask_first() {
    let (mut pair, entry) = Pair::echo("");
    let auth = &pair.auth;
    let mut talk = Talk::open(entry).unwrap();
    talk.exchange().unwrap();

    // A token for the name of an existing node, which would replace it.
    asks(
        &auth.cli(&["token", "create", "--node", "app1"]),
        "node app1 is in the mesh (connected now)",
    );
    assert_eq!(auth.cli(&["token", "list", "--json"]).good().json(), json!({ "tokens": [] }));
    let own = auth.cli(&["token", "create", "--node", "auth", "--yes"]);
    assert!(own.code == Some(1) && own.err.contains("needs no join token"), "{own:?}");
    // A grant that removes services; one that adds services needs no confirmation.
    asks(&auth.cli(&["node", "grant", "app1", "--service", "api"]), "it loses service/web");
    asks(&auth.cli(&["node", "grant", "app1"]), "it loses service/web");
    let added = auth.cli(&["node", "grant", "app1", "--add", "--service", "api"]).good();
    assert_eq!(added.out, "app1 may claim: api, web\n");
    auth.cli(&["node", "grant", "app1", "--service", "web", "--service", "api"]).good();
    let services = |node: &Node, name: &str| {
        let nodes = node.cli(&["node", "list", "--json"]).good().json();
        let mut nodes = nodes["nodes"].as_array().unwrap().iter();
        nodes.find(|n| n["name"] == name).map(|n| n["services"].clone())
    };
    assert_eq!(services(auth, "app1"), Some(json!(["api", "web"])));
    asks(&auth.cli(&["node", "remove", "app1"]), "node app1 is in the mesh (connected now)");
    talk.exchange().expect("nothing of this has cut anything");

    // On a terminal it asks.
    if has(&["script"]) {
        let line = format!(
            "{} node remove app1 --config {}",
            env!("CARGO_BIN_EXE_wiretight"),
            auth.file().display()
        );
        let script = |answer: &str| {
            Ran::of(Command::new("script").args(["-qec", &line, "/dev/null"]), answer)
        };
        let no = script("n\n");
        assert!(no.out.contains("Remove it? [y/N]") && no.code == Some(1), "{no:?}");
        talk.exchange().expect("the answer was no");
        script("y\n").good();
    } else {
        auth.cli(&["node", "remove", "app1", "--yes"]).good();
    }
    wait_for("it is closed", || talk.exchange().is_err());
    assert_eq!(services(auth, "app1"), None);
    pair.app.kill();
}

#[test]
fn unused_tokens_are_listed_and_can_be_revoked() {
    let world = World::new();
    let auth = world.authority("");
    let list = || auth.cli(&["token", "list", "--json"]).good().json()["tokens"].clone();
    assert_eq!(list(), json!([]), "the authority's own is not an operator's");
    assert_eq!(auth.cli(&["token", "list"]).good().out, "no unused join tokens\n");

    let made = auth.cli(&["token", "create", "--node", "n1", "--service", "web", "--json"]).good();
    let (token, id) = (made.json()["token"].clone(), made.json()["id"].clone());
    let second = auth.token("n2", &[]);
    let all = list();
    assert_eq!(all.as_array().unwrap().len(), 2, "{all:#}");
    assert_eq!((&all[0]["id"], &all[0]["node"]), (&id, &json!("n1")), "{all:#}");
    assert_eq!(all[0]["services"], json!(["web"]));
    assert!(!all.to_string().contains(token.as_str().unwrap()), "the secret is not kept");
    let text = auth.cli(&["token", "list"]).good().out;
    for part in ["ID", "EXPIRES IN", id.as_str().unwrap(), "n1", "web", "60 min"] {
        assert!(
            text.contains(part) || part == "60 min" && text.contains("59 min"),
            "{part}: {text}"
        );
    }

    // After it is revoked, no node can join with it. The other one still works, and leaves the list when it is used.
    let revoked = auth.cli(&["token", "revoke", id.as_str().unwrap()]).good();
    assert!(revoked.out.contains("Revoked the join token for n1"), "{revoked:?}");
    let node = world.node("n1", "");
    let ran = node.cli_with(&["join"], token.as_str().unwrap());
    assert!(ran.code == Some(1) && ran.err.contains("unknown join token"), "{ran:?}");
    let other = list()[0]["id"].as_str().unwrap().to_owned();
    world.node("n2", "").cli_with(&["join"], &second).good();
    assert_eq!(list(), json!([]));
    for (id, why) in
        [(&*other, "node n2 has joined with it"), ("0", "token list"), ("a/b", "token list")]
    {
        let ran = auth.cli(&["token", "revoke", id]);
        assert!(ran.code == Some(1) && ran.err.contains(why), "{id}: {ran:?}");
    }
}

#[test]
fn check_reads_the_files_that_a_configuration_names() {
    if !has(&["openssl"]) {
        return;
    }
    let world = World::new();
    let [cert, key, policy] = ["site.pem", "site.key", "policy"].map(|f| world.path(f));
    let sections = format!(
        "[witnesses]\npolicy = \"{}\"\n[[site]]\nnames = [\"www.example.test\"]\nto = \"127.0.0.1:1\"\ncert = \"{}\"\nkey = \"{}\"\n",
        policy.display(),
        cert.display(),
        key.display()
    );
    let node = world.node("edge1", &sections);
    let check = |more: &[&str]| Ran::of(wiretight().arg("check").args(more).arg(node.file()), "");
    let bad = check(&[]);
    assert_eq!(bad.code, Some(2), "{bad:?}");
    for part in ["site.pem", "policy", "witnesses.policy", "No such file"] {
        assert!(bad.err.contains(part), "no {part:?}: {}", bad.err);
    }
    let json = check(&["--json"]).json();
    assert_eq!(
        (&json["ok"], json["errors"].as_array().unwrap().len()),
        (&json!(false), 2),
        "{json}"
    );
    // A configuration for another machine, where the files exist.
    check(&["--no-files"]).good();

    let mut openssl = Command::new(find("openssl").unwrap());
    openssl.args([
        "req",
        "-x509",
        "-nodes",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
    ]);
    openssl.args([
        "-subj",
        "/CN=x",
        "-addext",
        "subjectAltName=DNS:www.example.test",
        "-days",
        "9",
    ]);
    Ran::of(openssl.arg("-out").arg(&cert).arg("-keyout").arg(&key), "").good();
    fs::write(
        &policy,
        "log example.org/log+de5d1c6a+AfX/WDEvTDhaYiZ3HFYRGpKPhxyVoBIBKiMVAcJd1LXk\nquorum none\n",
    )
    .unwrap();
    let now = check(&[]);
    assert!(!now.err.contains("site.pem"), "the certificate is there: {now:?}");
    // The key of another certificate.
    fs::write(&key, "").unwrap();
    let bad = check(&[]);
    assert!(bad.code == Some(2) && bad.err.contains("site.key"), "{bad:?}");
}

#[test]
fn an_edge_without_a_mesh_is_ready_and_needs_no_token() {
    let world = World::new();
    let mut node = world.node("edge1", "");
    let (https, http) = (free(), free());
    let file = format!(
        "[node]\nname = \"edge1\"\ntrust_domain = \"example.org\"\nstate_dir = \"{}\"\nadmin = \"{}\"\n[edge]\nhttps = \
         \"{https}\"\nhttp = \"{http}\"\n[[site]]\nnames = [\"www.example.test\"]\nto = \"127.0.0.1:1\"\n\
         cert = \"/nonexistent/cert.pem\"\nkey = \"/nonexistent/key.pem\"\n",
        node.state().display(),
        node.admin
    );
    fs::write(node.file(), &file).unwrap();
    node.start();
    node.ready();
    wait_port(http);
    let checked = node.cli(&["check", "--no-files"]).good();
    assert!(checked.out.ends_with(": node edge1, 1 site; no mesh needed\n"), "{checked:?}");
    // Nothing speaks of a mesh or of an authority.
    let status = node.cli(&["status"]).good();
    assert!(status.out.starts_with("node edge1: ready, up"), "{status:?}");
    assert!(!status.out.contains("authority") && !status.out.contains("mesh"), "{status:?}");
    let metrics = openmetrics(&node.probe("/metrics").unwrap().1);
    assert_eq!(metrics["wiretight_ready"], 1.0);
    assert!(!metrics.contains_key("wiretight_authority_connected"), "{metrics:#?}");
    let renew = node.cli(&["svid", "renew"]);
    assert!(renew.code == Some(1) && renew.err.contains("has not joined a mesh"), "{renew:?}");
    std::thread::sleep(ms(1000));
    let log = node.log();
    assert!(log.contains("this node is ready"), "{log}");
    assert!(!log.contains("token") && !log.contains("trying again"), "{log}");

    // The control: a node that needs an identity is not ready without one.
    node.kill();
    fs::write(node.file(), file + &dial(free(), "db", "web")).unwrap();
    node.start();
    wait_for(
        "it reports what is missing",
        || matches!(node.probe("/readyz"), Ok((503, why)) if why.contains("join token")),
    );
    let metrics = openmetrics(&node.probe("/metrics").unwrap().1);
    assert_eq!(metrics["wiretight_authority_connected"], 0.0);
    assert_eq!(node.log().matches("this node is ready").count(), 1);
}

#[test]
fn an_invalid_log_filter_is_reported_and_the_default_used() {
    let world = World::new();
    let mut auth = world.node("auth", &format!("[authority]\nlisten = \"{}\"\n", free()));
    auth.env.push(("WIRETIGHT_LOG", "inof".into()));
    auth.start();
    auth.ready();
    let log = auth.log();
    assert!(log.contains("is invalid, so") && log.contains("node started"), "{log}");
}

#[test]
fn a_process_is_called_wiretight_after_an_upgrade_too() {
    let world = World::new();
    let mut auth = world.authority("");
    let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    assert_eq!(name(auth.pid()), "wiretight\n");
    let ran = auth.cli(&["upgrade", "--force", "--json"]).good().json();
    let pid = ran["pid"].as_u64().unwrap() as u32;
    assert_eq!(name(pid), "wiretight\n");
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let first = line.split(|byte| *byte == 0).next().unwrap();
    assert!(first.ends_with(b"/wiretight"), "{}", String::from_utf8_lossy(first));
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    auth.kid().ended(PATIENCE);
}

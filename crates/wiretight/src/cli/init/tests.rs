use std::fs;
use std::io::Cursor;
use std::os::unix::fs::PermissionsExt;

use super::watching::options;
use super::*;

/// Parses a command line, and plays a terminal on which `typed` is typed; `None`: there is no terminal.
fn init(line: &[&str], typed: Option<&str>) -> anyhow::Result<()> {
    let words = ["wiretight", "init"].into_iter().chain(line.iter().copied());
    let cli = Cli::try_parse_from(words).map_err(|e| questions::Wrong(e.to_string()))?;
    let Verb::Init(init) = cli.verb else { panic!("another verb") };
    init.plan(&mut Questions::of(typed.map(Cursor::new)))
}

/// The file that is written, or the error; as if it were in /etc/wiretight.
fn written(line: &[&str], typed: Option<&str>) -> Result<String, String> {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("wiretight.toml");
    let mut line = line.to_vec();
    line.extend(["--config", file.to_str().unwrap()]);
    let done = init(&line, typed).map_err(|e| format!("{e:#}"));
    match (done, fs::read_to_string(&file)) {
        (Ok(()), Ok(text)) => Ok(text.replace(temp.path().to_str().unwrap(), "/etc/wiretight")),
        (Err(why), Err(_)) => Err(why),
        (done, text) => panic!("{done:?}, but {text:?}"),
    }
}

fn parsed(text: &str) -> Config {
    Config::parse(Path::new("w.toml"), text).unwrap()
}

fn token(expires: u64) -> String {
    let token = JoinToken {
        trust_domain: "example.org".parse().unwrap(),
        node: "db1".parse().unwrap(),
        authority: vec!["127.0.0.1:7400".into()],
        root: [7; 32],
        id: "1".into(),
        secret: Zeroizing::new("secret".into()),
        expires,
    };
    token.encode().to_string()
}

#[test]
fn questions_and_options_lead_to_the_same_file() {
    let token = token(u64::MAX);
    for (options, question) in [
        (
            &["authority", "--trust-domain", "example.org", "--listen", "10.0.0.1:7400"][..],
            (&["authority"][..], "example.org\n10.0.0.1:7400\n\n".to_owned()),
        ),
        (
            &["authority", "--trust-domain", "example.org", "--listen", "10.0.0.1:7400"],
            (&[], "authority\nexample.org\n10.0.0.1:7400\n\n".to_owned()),
        ),
        (
            &[
                "authority",
                "--trust-domain",
                "example.org",
                "--listen",
                "10.0.0.1:7400",
                "--offer",
                "db=1",
            ],
            (&["authority"], "example.org\n10.0.0.1:7400\ndb=1\n\n".to_owned()),
        ),
        (
            &["node", "--token", &token, "--offer", "db=5432", "--allow", "service/web"],
            (&["node"], format!("{token}\ndb=127.0.0.1:5432\n\nservice/web\n")),
        ),
        (
            &["node", "--trust-domain", "example.org", "--use", "db=127.0.0.1:5432"],
            (&["node"], "\nexample.org\n\ndb=5432\n".to_owned()),
        ),
        (
            &["edge", "--site", "www.example.org", "--to", "127.0.0.1:8080"],
            (&["edge"], "www.example.org\n\n\n".to_owned()),
        ),
    ] {
        let by_options = written(options, None).unwrap();
        assert_eq!(written(question.0, Some(&question.1)).as_ref(), Ok(&by_options), "{options:?}");
        parsed(&by_options);
    }
}

#[test]
fn wrong_answers_are_explained_and_asked_again() {
    let typed = "Example Org\nexample.org\n0.0.0.0:7400\n10.0.0.1\n10.0.0.1:7400\n\n";
    let text = written(&["authority"], Some(typed)).unwrap();
    assert_eq!(parsed(&text).authority.unwrap().listen, "10.0.0.1:7400".parse().unwrap());
    // The control: the input ends before there is a right answer.
    let why = written(&["authority"], Some("Example Org\n")).unwrap_err();
    assert!(why.contains("nothing was written"), "{why}");
    let typed = "nonsense\n\nexample.org\n\ndb=10.0.0.6:5432\ndb=5432\n";
    let text = written(&["node", "--name", "web1"], Some(typed)).unwrap();
    assert_eq!(parsed(&text).relay.dials[0].listen, "127.0.0.1:5432".parse().unwrap());
    // A private name cannot have a certificate from a public CA, so that question cannot be left open.
    let typed = "app.internal\n\n\nrelative.pem\n";
    let why = written(&["edge"], Some(typed)).unwrap_err();
    assert!(why.contains("nothing was written"), "{why}");
}

#[test]
fn without_a_terminal_a_missing_or_wrong_option_is_named_with_the_next_step() {
    let stale = token(1);
    for (line, part) in [
        (&["edge"][..], "--site NAME is missing. This is not a terminal"),
        (&["node"], "--trust-domain DOMAIN is missing"),
        (&[], "authority, node, edge, witness or monitor is missing"),
        (&["authority", "--listen", "0.0.0.0:7400"], "listen on one address, or add advertise"),
        (&["authority", "--trust-domain", "Example Org"], "invalid value"),
        (&["node", "--offer", "db"], "Write for example db=127.0.0.1:5432"),
        (&["node", "--offer", "db=10.0.0.5:5432"], "plaintext would cross the network"),
        (&["node", "--use", "db=10.0.0.5:5432"], "loopback"),
        (&["node", "--token", "nonsense"], "not a join token"),
        (&["node", "--token", &stale], "has expired. Create a new one"),
        (&["node", "--token", &token(u64::MAX), "--name", "web1"], "db1"),
        (
            &["edge", "--site", "app.internal", "--to", "8080"],
            "no public CA certifies a private name",
        ),
        (
            &[
                "edge",
                "--site",
                "a.example.org",
                "--to",
                "8080",
                "--cert",
                "/none",
                "--key",
                "/none",
            ],
            "/none",
        ),
        (&["witness", "--key-name", "w.example/1"], "--log VKEY is missing"),
        (&["monitor", "--policy", "/none"], "/none cannot be read"),
    ] {
        let why = written(line, None).unwrap_err();
        assert!(why.contains(part), "{line:?}: {why}");
    }
}

#[test]
fn a_service_listens_on_another_port_than_its_program() {
    let listen = |program: &str| {
        let line = ["node", "--trust-domain", "example.org", "--offer", program];
        written(&line, None).map(|text| parsed(&text).relay.services[0].listen.port())
    };
    assert_eq!(listen("db=5432"), Ok(7432));
    assert_eq!(listen("db=65535"), Ok(63535));
    assert_eq!(listen("db=unix:/run/app.sock"), Ok(UNIX_PORT));
}

#[test]
fn an_existing_file_is_replaced_only_by_force_and_modes_are_narrow() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("new").join("wiretight.toml");
    let at = file.to_str().unwrap();
    let token = token(u64::MAX);
    let line = ["node", "--token", &token, "--use", "db=5432", "--config", at];
    init(&line, None).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(&file.with_file_name("token"))), (0o640, 0o600));
    assert_eq!(fs::read_to_string(file.with_file_name("token")).unwrap(), token);
    let first = fs::read_to_string(&file).unwrap();
    let config = Config::load(&file).unwrap();
    assert_eq!(config.node.join_token_file, Some(file.with_file_name("token")));

    let other = ["edge", "--site", "a.example.org", "--to", "8080", "--config", at];
    // Nothing is asked first, and the token is not touched.
    let why = init(&other, Some("")).unwrap_err().to_string();
    assert!(why.contains("exists already") && why.contains("--force"), "{why}");
    assert_eq!(fs::read_to_string(&file).unwrap(), first);
    let show: Vec<_> = other.into_iter().chain(["--print"]).collect();
    init(&show, None).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), first);
    // A file that appears meanwhile is not replaced either.
    let put = |replace| put(&file, b"x", NODE, Access::Group, replace).map_err(|e| e.kind());
    assert_eq!(put(false), Err(io::ErrorKind::AlreadyExists));
    assert_eq!(fs::read_to_string(&file).unwrap(), first);
    let force: Vec<_> = other.into_iter().chain(["--force"]).collect();
    init(&force, None).unwrap();
    assert_eq!(Config::load(&file).unwrap().edge.sites.len(), 1);
    assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 2, "no temporary files");
}

#[test]
fn options_that_systemd_would_read_in_another_way_are_not_written() {
    let words = |text: &str| options(&["--policy".to_owned(), text.to_owned()]);
    assert_eq!(words("/etc/a.policy").unwrap(), "OPTIONS=\"--policy /etc/a.policy\"\n");
    for bad in ["/etc/a b", "/etc/a\"b", "/etc/$HOME", "/etc/a\\b", "/etc/a\nEXTRA=1", "a'b", "#"] {
        assert!(words(bad).is_err(), "{bad:?}");
    }
}

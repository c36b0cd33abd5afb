//! `wiretight init witness` and `wiretight init monitor`. Both programs have no configuration file: their options are in a
//! file that the units of the packages read (`EnvironmentFile=`).

use std::io::BufRead;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Parser, ValueHint};
use wiretight_keys::Name;
use wiretight_tlog::LogKey;
use wiretight_tlog::cosignature::Algorithm;
use wiretight_tlog::note::KeyName;

use super::questions::{Questions, Wrong};
use super::{Out, Plan, absolute, machine, prepare};
use crate::cli::{Cli, Verb, verify, witness};
use crate::log::monitor::expect::Watch;
use crate::log::witness::WitnessCore;
use crate::log::witness::state::Start;
use crate::web::client::Url;

const POLICY: &str = "/etc/wiretight/log.policy";
/// The users of the units in the packages; also the names of the templates, and of directories below /var/lib.
const WITNESS: &str = "wiretight-witness";
const MONITOR: &str = "wiretight-monitor";

/// A witness: cosigns the logs of others
///
/// Makes a key and the state, so the witness starts without --new, and prints the public key for the policies of those who
/// rely on the witness.
#[derive(Args)]
#[command(after_help = "\
Example:
  wiretight init witness --key-name witness.example.net/w1 --log example.org/mesh+1f2e3d4c+AQ...")]
pub(super) struct Witness {
    /// The name of the new key: a URL without scheme, in a domain that you own
    #[arg(long, value_name = "NAME", value_parser = witness::key_name)]
    key_name: Option<KeyName>,
    /// The public key (vkey) of a log to witness; may be repeated
    #[arg(long = "log", value_name = "VKEY", value_parser = witness::log_key)]
    logs: Vec<LogKey>,
    /// The address to serve on [default: 127.0.0.1:7480, for an HTTPS proxy on this machine]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// The certificate chain (PEM) for HTTPS
    #[arg(long, value_name = "FILE", requires = "tls_key", value_hint = ValueHint::FilePath)]
    tls_cert: Option<PathBuf>,
    /// The key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert", value_hint = ValueHint::FilePath)]
    tls_key: Option<PathBuf>,
    /// The name of this witness among those on this machine
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub(super) name: Name,
}

/// A monitor: reports unexpected certificates in logs
#[derive(Args)]
#[command(after_help = "\
Example:
  wiretight init monitor --policy /etc/wiretight/log.policy --watch service/db --webhook https://pager.example.org/hook")]
pub(super) struct Monitor {
    /// The policy, which names the logs and witnesses [default: /etc/wiretight/log.policy]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    policy: Option<PathBuf>,
    /// The URL or directory of the log [default: the URL in the policy]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// A name to watch; may be repeated
    #[arg(long, value_name = "NAME")]
    watch: Vec<String>,
    /// A file with the expected keys
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    expect: Option<PathBuf>,
    /// POST alerts to this URL
    #[arg(long, value_name = "URL")]
    webhook: Option<String>,
    /// CA certificates (PEM) to trust in addition to the system's
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    ca: Option<PathBuf>,
    /// The client certificate chain (PEM) for the log's server
    #[arg(long, value_name = "FILE", requires = "key", value_hint = ValueHint::FilePath)]
    cert: Option<PathBuf>,
    /// The key of the client certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "cert", value_hint = ValueHint::FilePath)]
    key: Option<PathBuf>,
    /// The name in the server's certificate, if it is not the URL's host
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// The name of this monitor among those on this machine
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub(super) name: Name,
}

/// A file of options, as systemd's `EnvironmentFile=` reads it.
pub(super) fn options(words: &[String]) -> anyhow::Result<String> {
    // systemd splits at white space. What it would read in another way is not written.
    let plain = |c: char| c.is_ascii_graphic() && !"\"'\\$#".contains(c);
    if let Some(word) = words.iter().find(|word| !word.chars().all(plain)) {
        bail!(Wrong(format!(
            "{word:?} has a space or a character that this file cannot have. Choose another name or path."
        )));
    }
    Ok(format!("OPTIONS=\"{}\"\n", words.join(" ")))
}

/// The command that starts a witness or monitor. Its state directory is not among the options: the unit has it.
fn serve(verb: &str, unit: &str, name: &Name, words: &[String]) -> String {
    match machine::has_unit(&format!("{unit}@.service")) {
        true => format!("systemctl enable --now {unit}@{name}"),
        false => {
            let command = format!("{verb} --state /var/lib/{unit}/{name} {}", words.join(" "));
            machine::as_user(unit, &command)
        }
    }
}

impl Witness {
    pub(super) fn plan(
        self,
        ask: &mut Questions<impl BufRead>,
        path: PathBuf,
        out: &Out,
    ) -> anyhow::Result<Plan> {
        let key = path.with_extension("key");
        let has_key = out.force && key.exists();
        let usual = machine::domain().map(|domain| format!("{domain}/{}", self.name));
        let key_name = match self.key_name {
            Some(name) => Some(name),
            None if has_key => None,
            None => Some(ask.answer(
                "--key-name NAME",
                "Name of the new key: a URL without scheme in a domain of yours, for example witness.example.net/w1",
                usual.as_deref(),
                witness::key_name,
            )?),
        };
        let mut logs = self.logs;
        if logs.is_empty() {
            let question =
                "Public key of the log (its operator prints it with `wiretight authority log-key`)";
            logs.push(ask.answer("--log VKEY", question, None, witness::log_key)?);
        }
        let listen = match self.listen {
            Some(listen) => listen,
            None => (Ipv4Addr::LOCALHOST, 7480).into(),
        };
        let state = Path::new("/var/lib").join(WITNESS).join(self.name.as_str());
        let mut words = vec![
            "--key".to_owned(),
            key.display().to_string(),
            "--listen".into(),
            listen.to_string(),
        ];
        for log in &logs {
            words.extend(["--log".into(), log.to_string()]);
        }
        for (flag, file) in [("--tls-cert", &self.tls_cert), ("--tls-key", &self.tls_key)] {
            words.extend(file.iter().flat_map(|f| [flag.to_owned(), f.display().to_string()]));
        }
        let text = options(&words)?;
        witness::tls(listen, self.tls_cert, self.tls_key).map_err(|e| Wrong(e.to_string()))?;
        let mut is =
            format!("a witness of {} {}", logs.len(), if logs.len() == 1 { "log" } else { "logs" });
        if let Some(key_name) = key_name.filter(|_| !out.print && !has_key) {
            prepare(&key)?;
            // Others must be able to pass through the directory above the state.
            prepare(&state)?;
            let cosigner = witness::create_key(key_name, Algorithm::Ed25519, &key)?;
            is += &format!(
                "\nPublic key, for the policies of those who rely on this witness:\n  {}",
                cosigner.public()
            );
            // The key is new, so it has cosigned nothing.
            let made = WitnessCore::open(&state, Start::New, logs, vec![cosigner]);
            if let Err(error) = made {
                let _ = std::fs::remove_file(&key);
                return Err(error.into());
            }
            for path in [&key, &state] {
                machine::hand_over(path, WITNESS)
                    .with_context(|| format!("cannot give {} to user {WITNESS}", path.display()))?;
            }
        }
        let next = vec![serve("wiretight witness run", WITNESS, &self.name, &words)];
        Ok(Plan { path, text, is, warnings: Vec::new(), next, token: None, user: WITNESS })
    }
}

impl Monitor {
    pub(super) fn plan(
        self,
        ask: &mut Questions<impl BufRead>,
        path: PathBuf,
    ) -> anyhow::Result<Plan> {
        let usual = Some(POLICY.to_owned());
        let policy = match self.policy {
            Some(policy) => policy,
            None => ask.answer("--policy FILE", "Policy file", usual.as_deref(), |text| {
                let path = absolute(text)?;
                verify::policy(&path).map_err(|e| format!("{e:#}"))?;
                Ok(path)
            })?,
        };
        let mut url = self.url;
        if url.is_none() && verify::policy(&policy)?.logs().iter().any(|log| log.url.is_none()) {
            url =
                Some(ask.answer("--url URL", "URL of the log", None, |text| Ok(text.to_owned()))?);
        }
        let mut watch = self.watch;
        if watch.is_empty() {
            let question =
                "Name to watch, for example service/db (empty: only how the log behaves)";
            watch.extend(ask.optional(question, |text| {
                text.parse::<Watch>().map_err(str::to_owned)?;
                Ok(text.to_owned())
            })?);
        }
        let mut webhook = self.webhook;
        if webhook.is_none() {
            let question = "URL to send alerts to (empty: only to the monitor's log)";
            webhook = ask.optional(question, |text| {
                Url::parse(text).map_err(|e| e.to_string())?;
                Ok(text.to_owned())
            })?;
        }
        let file = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let given = [
            ("--policy", Some(policy.display().to_string())),
            ("--url", url),
            ("--expect", file(&self.expect)),
            ("--webhook", webhook),
            ("--ca", file(&self.ca)),
            ("--cert", file(&self.cert)),
            ("--key", file(&self.key)),
            ("--server-name", self.server_name),
        ];
        let given = given.into_iter().filter_map(|(flag, value)| Some([flag.to_owned(), value?]));
        let watched = watch.into_iter().map(|name| ["--watch".to_owned(), name]);
        let words: Vec<String> = given.chain(watched).flatten().collect();
        let text = options(&words)?;
        let line = ["wiretight", "monitor", "--state", "/"].map(str::to_owned);
        let line = line.into_iter().chain(words.clone());
        let parsed = Cli::try_parse_from(line).map_err(|e| Wrong(e.to_string()))?;
        if let Verb::Monitor(monitor) = parsed.verb {
            monitor.check()?;
        }
        let next = vec![serve("wiretight monitor", MONITOR, &self.name, &words)];
        let is = format!("a monitor of the logs in {}", policy.display());
        Ok(Plan { path, text, is, warnings: Vec::new(), next, token: None, user: MONITOR })
    }
}

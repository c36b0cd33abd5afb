//! `wiretight svid`: identities as files, for software with its own TLS.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::json;
use wiretight_keys::{
    Csr, Id, KeyLink, Leaf, Name, Period, PublicKey, Signer, SigningKey, SpiffeId, x509,
};
use wiretight_proxy::clock::now;

use super::{Output, Where, term};
use crate::admin::api::{BundleAnswer, RenewAnswer, SvidAnswer, SvidRequest};
use crate::admin::client::Received;
use crate::private_dir::PrivateDir;

const BUNDLE_CHECK: Duration = Duration::from_secs(10);

/// Identities as PEM files, for software with its own TLS (nginx, Envoy, curl)
#[derive(Subcommand)]
pub(super) enum Svid {
    Fetch(Fetch),
    Renew(Renew),
    Keys(Keys),
}

/// Write svid.pem (the chain), key.pem and bundle.pem into a directory
///
/// The key is generated here and never leaves this machine; the running node gets the certificate signed. Other software
/// verifies the peer by the DNS name in the certificate: NAME.service.TRUST-DOMAIN.
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight svid fetch --service web --out /etc/nginx/svid
  wiretight svid fetch --service web --out /etc/nginx/svid --watch --exec 'nginx -s reload'
  curl --cert svid.pem --key key.pem --cacert bundle.pem \\
       --connect-to ::10.0.0.5:7432 https://db.service.example.org/")]
pub(super) struct Fetch {
    #[command(flatten)]
    at: Where,
    /// The service to get an identity for [default: the node itself]
    #[arg(long, value_name = "NAME")]
    service: Option<Name>,
    /// The directory (created with mode 0700 if missing; the files get 0600)
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    out: PathBuf,
    /// Keep running, and renew at half of each certificate's lifetime
    #[arg(long)]
    watch: bool,
    /// Run this shell command whenever the files have changed
    #[arg(long, value_name = "COMMAND", value_hint = clap::ValueHint::CommandString, requires = "watch")]
    exec: Option<String>,
    #[command(flatten)]
    output: Output,
}

/// Renew all identities of the running node now
#[derive(Args)]
#[command(after_help = "Example:\n  wiretight svid renew")]
pub(super) struct Renew {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// Print the keys of this node's identities, as lines for `wiretight monitor --expect`
///
/// Prints the public keys that this node has, and those that it requested certificates for. A monitor that knows one of
/// them automatically follows later renewals. Works while the node is stopped.
#[derive(Args)]
#[command(after_help = "Example:\n  wiretight svid keys >>expected-keys")]
pub(super) struct Keys {
    #[command(flatten)]
    at: Where,
    /// Only the keys of this service
    #[arg(long, value_name = "NAME")]
    service: Option<Name>,
    #[command(flatten)]
    out: Output,
}

impl Svid {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Svid::Fetch(fetch) => fetch.run(),
            Svid::Renew(renew) => {
                let done: Received<RenewAnswer> =
                    super::post(&renew.at.state_dir()?, "/v1/renew", &())?;
                renew.out.print(&done, |_| "Renewed all identities.\n".into())?;
                Ok(ExitCode::SUCCESS)
            }
            Svid::Keys(keys) => keys.run(),
        }
    }
}

impl Keys {
    fn run(self) -> anyhow::Result<ExitCode> {
        let dir = self.at.state_dir()?.join("identity");
        anyhow::ensure!(
            dir.is_dir(),
            "{} does not exist: this node has not joined a mesh. Run `wiretight join`.",
            dir.display()
        );
        let mut lines = crate::agent::keys(&dir)?;
        if let Some(service) = &self.service {
            let name = format!("service/{service} ");
            lines.retain(|line| line.starts_with(&name));
        }
        self.out.print(&lines, |lines| lines.iter().map(|line| format!("{line}\n")).collect())?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Fetch {
    fn run(self) -> anyhow::Result<ExitCode> {
        let config = self.at.load()?;
        let id = match &self.service {
            Some(service) => Id::Service(service.clone()),
            None => Id::Node(config.node.name.clone()),
        };
        let id = SpiffeId::new(config.node.trust_domain.clone(), id);
        let dir = PrivateDir::open_shared(&self.out)?;
        let mut leaf = fetch(&config.node.state_dir, &id, &dir)?;
        self.report(&leaf)?;
        if !self.watch {
            return Ok(ExitCode::SUCCESS);
        }
        loop {
            if !wait(&config.node.state_dir, &dir, leaf.period) {
                self.renewed();
                continue;
            }
            // Retries even after the certificate has expired, because the node or authority may come back.
            leaf = loop {
                match fetch(&config.node.state_dir, &id, &dir) {
                    Ok(leaf) => break leaf,
                    Err(error) => {
                        let error = crate::logging::chain(error.as_ref());
                        eprintln!("wiretight: not renewed, trying again in 10 s: {error}");
                        std::thread::sleep(Duration::from_secs(10));
                    }
                }
            };
            self.report(&leaf)?;
            self.renewed();
        }
    }

    /// Runs the command of --exec.
    fn renewed(&self) {
        let Some(command) = &self.exec else { return };
        match Command::new("/bin/sh").args(["-c", command]).status() {
            Ok(status) if status.success() => {}
            Ok(status) => eprintln!("wiretight: `{command}` failed with {status}"),
            Err(error) => eprintln!("wiretight: cannot run `{command}`: {error}"),
        }
    }

    fn report(&self, leaf: &Leaf) -> anyhow::Result<()> {
        let value = json!({
            "id": leaf.id,
            "dns_name": leaf.id.dns_name(),
            "not_after": leaf.period.not_after,
            "svid": self.out.join("svid.pem"),
            "key": self.out.join("key.pem"),
            "bundle": self.out.join("bundle.pem"),
        });
        self.output.print(&value, |_| {
            let left = term::span(leaf.period.not_after.saturating_sub(now()));
            format!("{} in {} expires in {left}\n", leaf.id, self.out.display())
        })
    }
}

/// Waits until half of the certificate's lifetime is over, or until the clock was set back to before its start. Meanwhile
/// keeps the bundle up to date: a new root must be known before a peer uses a certificate under it. Returns false when
/// the bundle has changed.
fn wait(state_dir: &Path, dir: &PrivateDir, period: Period) -> bool {
    let until = period.not_before.midpoint(period.not_after);
    loop {
        let left = Duration::from_secs(until.saturating_sub(now()).max(1));
        std::thread::sleep(left.min(BUNDLE_CHECK));
        // If the node is down or the disk is full, the next round tries again.
        if let Ok(BundleAnswer { bundle }) = super::get(state_dir, "/v1/bundle") {
            let written = dir.read("bundle.pem", 1 << 20).ok().flatten();
            if written.is_none_or(|w| **w != *bundle.as_bytes()) {
                match dir.write("bundle.pem", bundle.as_bytes()) {
                    Ok(()) => return false,
                    Err(error) => eprintln!(
                        "wiretight: cannot update bundle.pem, trying again: {error}: {}",
                        error.source
                    ),
                }
            }
        }
        if now() >= until || now() < period.not_before {
            return true;
        }
    }
}

/// The certificate and key in the directory, if they are for the same identity.
fn before(id: &SpiffeId, dir: &PrivateDir) -> Option<(Leaf, SigningKey)> {
    let read = |name| dir.read(name, 1 << 20).ok().flatten();
    let leaf = Leaf::parse(x509::from_pem(&read("svid.pem")?).ok()?.first()?).ok()?;
    let key = SigningKey::from_pem(&read("key.pem")?).ok()?;
    let fits = PublicKey::new(key.public_key()).is_ok_and(|key| key == leaf.key);
    (fits && leaf.id == *id).then_some((leaf, key))
}

/// Gets a certificate for a new key, and the bundle. The key is written before svid.pem, so that a reader who finds a
/// new svid.pem also finds its key.
fn fetch(state_dir: &Path, id: &SpiffeId, dir: &PrivateDir) -> anyhow::Result<Leaf> {
    let key = SigningKey::generate()?;
    // The old key signs the new one, so that monitors expect it.
    let link = before(id, dir).and_then(|(leaf, before)| {
        KeyLink::new(id, leaf.key, &key.public_key(), |message| before.sign(message)).ok()
    });
    let csr = x509::csr_to_pem(&Csr::create_linked(id, &key, link.as_ref())?);
    let answer: SvidAnswer = super::post(state_dir, "/v1/svid", &SvidRequest { csr })?;
    let chain = x509::from_pem(answer.chain.as_bytes())?;
    let leaf = Leaf::parse(chain.first().context("the node returned an empty certificate chain")?)?;
    dir.write("bundle.pem", answer.bundle.as_bytes())?;
    dir.write("key.pem", key.to_pem().as_bytes())?;
    dir.write("svid.pem", answer.chain.as_bytes())?;
    Ok(leaf)
}

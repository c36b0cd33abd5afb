//! `wiretight witness`

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use wiretight_tlog::cosignature::Algorithm;
use wiretight_tlog::note::KeyName;
use wiretight_tlog::{Cosigner, LogKey};
use zeroize::Zeroizing;

use crate::log::witness::state::Start;
use crate::log::witness::{WitnessCore, serve};

/// Run a witness: cosign log checkpoints so that clients need not trust the log alone
///
/// A witness confirms that a log only appends: it remembers the last tree that it cosigned, and requires a proof that the
/// next one extends it. Anyone can run one; the more independent of the log's operator, the better.
#[derive(Subcommand)]
pub(super) enum Witness {
    Keygen(Keygen),
    Run(Run),
}

/// Create a witness key; prints the public key, for the policies of those who rely on the witness
#[derive(Args)]
#[command(
    after_help = "Example:\n  wiretight witness keygen witness.example.org/w1 --out /etc/wiretight/witness.key"
)]
pub(super) struct Keygen {
    /// The key's name: a URL without scheme, in a domain that you own
    #[arg(value_parser = key_name)]
    name: KeyName,
    /// The file for the private key (mode 0600); it must not exist yet
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    out: PathBuf,
    /// Use ML-DSA-44, which is post-quantum secure, instead of Ed25519
    #[arg(long)]
    ml_dsa: bool,
}

/// Run a witness (C2SP tlog-witness) until SIGTERM; SIGHUP reads the TLS files again
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight witness run --new --key witness.key --state /var/lib/wiretight-witness \\
      --listen 127.0.0.1:7480 --log example.org/mesh+1f2e3d4c+AQ...    (the first start; then without --new)
  wiretight witness run --key ed25519.key --key ml-dsa.key --state /var/lib/wiretight-witness \\
      --listen [::]:443 --tls-cert chain.pem --tls-key key.pem --log example.org/mesh+1f2e3d4c+AQ...

On a loopback address it serves HTTP, for an HTTPS proxy on this machine (a [[site]], for example). On any other
address it serves HTTPS.")]
pub(super) struct Run {
    /// A private key from `witness keygen`; may be repeated, and each key cosigns
    #[arg(long = "key", value_name = "FILE", value_hint = clap::ValueHint::FilePath, required = true)]
    keys: Vec<PathBuf>,
    /// The state directory; nothing else may be in it, and its disk must not lose synced writes
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    state: PathBuf,
    /// Create the state; only for the first start, when the key has cosigned nothing yet. Without this, missing state is
    /// an error
    #[arg(long)]
    new: bool,
    /// The address to serve on
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// The public key (vkey) of a log to witness; may be repeated
    #[arg(long = "log", value_name = "VKEY", value_parser = log_key, required_unless_present = "policies")]
    logs: Vec<LogKey>,
    /// A policy (C2SP tlog-policy) with logs to witness; may be repeated
    #[arg(long = "policy", value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    policies: Vec<PathBuf>,
    /// The certificate chain (PEM) for HTTPS
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of the certificate (PEM)
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

pub(super) fn key_name(text: &str) -> Result<KeyName, String> {
    KeyName::new(text).ok_or_else(|| "a key name has 1 to 255 bytes, without spaces or `+`".into())
}

pub(super) fn log_key(text: &str) -> Result<LogKey, String> {
    LogKey::parse(text).map_err(|e| e.to_string())
}

impl Witness {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Witness::Keygen(keygen) => keygen.run(),
            Witness::Run(run) => run.run(),
        }
    }
}

impl Keygen {
    fn run(self) -> anyhow::Result<ExitCode> {
        let algorithm = if self.ml_dsa { Algorithm::MlDsa44 } else { Algorithm::Ed25519 };
        let cosigner = create_key(self.name, algorithm, &self.out)?;
        super::print(&format!("{}\n", cosigner.public()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Creates a key in a new file.
pub(super) fn create_key(
    name: KeyName,
    algorithm: Algorithm,
    out: &Path,
) -> anyhow::Result<Cosigner> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut seed[..]).context("cannot get random bytes from the system")?;
    let cosigner = Cosigner::from_seed(name, algorithm, &seed)?;
    write_key(&cosigner.to_private()?, out)?;
    Ok(cosigner)
}

/// Writes a private key to a new file.
pub(super) fn write_key(private: &str, out: &Path) -> anyhow::Result<()> {
    let private = Zeroizing::new(format!("{private}\n"));
    let file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(out);
    let mut file = file.with_context(|| {
        format!(
            "cannot create {}. An existing key is not overwritten: move it away first.",
            out.display()
        )
    })?;
    let written = file.write_all(private.as_bytes()).and_then(|()| file.sync_all());
    written.with_context(|| format!("cannot write {}", out.display()))
}

/// The files for HTTPS, which only a witness on loopback may do without.
pub(super) fn tls(
    listen: SocketAddr,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
) -> anyhow::Result<Option<(PathBuf, PathBuf)>> {
    let files = cert.zip(key);
    anyhow::ensure!(
        files.is_some() || listen.ip().to_canonical().is_loopback(),
        "{listen} is not a loopback address. Give --tls-cert and --tls-key, or listen on 127.0.0.1 behind an HTTPS proxy."
    );
    Ok(files)
}

impl Run {
    fn run(self) -> anyhow::Result<ExitCode> {
        let _logs = crate::logging::start();
        let tls = tls(self.listen, self.tls_cert, self.tls_key)?;
        let mut logs = self.logs;
        for path in &self.policies {
            let policy = super::verify::policy(path)?;
            logs.extend(policy.logs().iter().map(|log| log.key.clone()));
        }
        logs.sort_by_key(ToString::to_string);
        logs.dedup();
        let cosigners =
            self.keys.iter().map(|path| cosigner(path)).collect::<anyhow::Result<_>>()?;
        // Each connection needs a file descriptor, so raise the soft limit to the hard limit.
        let limit = getrlimit(Resource::Nofile);
        let all = Rlimit { current: limit.maximum, maximum: limit.maximum };
        let _ = setrlimit(Resource::Nofile, all);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let start = if self.new { Start::New } else { Start::Known };
        let core = Arc::new(WitnessCore::open(&self.state, start, logs, cosigners)?);
        runtime.block_on(serve_until_stopped(core, self.listen, tls))?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn serve_until_stopped(
    core: Arc<WitnessCore>,
    listen: SocketAddr,
    tls: Option<(PathBuf, PathBuf)>,
) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    let first = tls.as_ref().map(|(cert, key)| acceptor(cert, key)).transpose()?;
    let (shown, acceptors) = first.map(watch::channel).unzip();
    let listener = TcpListener::bind(listen).await;
    let listener = listener.with_context(|| {
        format!("cannot listen on {listen}. Another program may use that address.")
    })?;
    let listen = listener.local_addr()?;
    for key in core.keys() {
        tracing::info!(key = %key, "cosigning with this key");
    }
    tracing::info!(%listen, tls = tls.is_some(), logs = core.logs().len(), "the witness is ready");
    let (stop, end) = watch::channel(false);
    let serving = tokio::spawn(serve::serve(core, listener, acceptors, end));
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                let (Some((cert, key)), Some(shown)) = (&tls, &shown) else { continue };
                match acceptor(cert, key) {
                    Ok(new) => {
                        shown.send_replace(new);
                        tracing::info!("the TLS files were reloaded");
                    }
                    Err(error) => tracing::error!(
                        error = format!("{error:#}"),
                        "the TLS files are unusable; the certificate loaded before stays in use"
                    ),
                }
            }
        }
    }
    stop.send_replace(true);
    serving.await?;
    tracing::info!("the witness has stopped");
    Ok(())
}

fn acceptor(cert: &Path, key: &Path) -> anyhow::Result<TlsAcceptor> {
    let read = |path: &Path| {
        std::fs::read(path)
            .map(Zeroizing::new)
            .with_context(|| format!("cannot read {}", path.display()))
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(cert)?).collect();
    let chain =
        chain.with_context(|| format!("{} has no valid PEM certificates", cert.display()))?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?);
    let private = private.with_context(|| format!("{} has no valid PEM key", key.display()))?;
    let config = ServerConfig::builder_with_provider(wiretight_proxy::provider::mesh())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, private);
    let config = config.context("the certificate and the key do not belong together")?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn cosigner(path: &Path) -> anyhow::Result<Cosigner> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new);
    let text = text.with_context(|| format!("cannot read {}", path.display()))?;
    Cosigner::parse(&text).with_context(|| {
        format!(
            "{} is not a witness key. Create one with `wiretight witness keygen`.",
            path.display()
        )
    })
}

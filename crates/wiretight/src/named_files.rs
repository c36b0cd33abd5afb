//! Checks the files that a configuration refers to, for `wiretight check`. A node with an unreadable policy does not start,
//! and a site without a certificate is not served.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use wiretight_proxy::Certificates;

use crate::acme::Ca;
use crate::config::{Config, ConfigError};
use crate::log::{self, PolicyFileError};
use crate::logging::chain;
use crate::release::ReleasePolicy;
use crate::sites::files::FileCertificates;

/// The largest file of roots, in bytes.
const MAX_ROOTS: u64 = 1 << 20;

/// The problems that this user can detect.
pub(crate) fn problems(config: &Config) -> Vec<ConfigError> {
    let mut all = Vec::new();
    let mut add = |key: String, problem: String, advice: &str| {
        let (file, line, advice) = (config.path.clone(), None, advice.to_owned());
        all.push(ConfigError { file, line, key, problem, advice });
    };
    let staged = FileCertificates::new(Arc::<Certificates>::default());
    for error in staged.stage(config).errors() {
        let advice =
            "put a certificate chain and its key there, readable by the user that runs the node";
        add("[[site]] cert, key".into(), error.to_owned(), advice);
    }
    for site in &config.edge.sites {
        let Some(path) = &site.client_ca else { continue };
        if let Err(why) = roots(path) {
            let key = format!("[[site]] {:?}: client_ca", site.title());
            add(key, why, "put the CA certificates (PEM) of the clients there");
        }
    }
    if let Some(witnesses) = &config.witnesses {
        let policy = log::read_policy(&witnesses.policy).and_then(|policy| {
            let path = || witnesses.policy.clone();
            if policy.logs().is_empty() {
                Err(PolicyFileError::NoLog { path: path() })
            } else {
                Ok(())
            }
        });
        if let Err(error) = policy {
            add("witnesses.policy".into(), chain(&error), "the node does not start without it");
        }
    }
    if let Some(path) = config.witnesses.as_ref().and_then(|w| w.ca.as_ref())
        && let Err(why) = roots(path)
    {
        add("witnesses.ca".into(), why, "put the PEM certificate of the witnesses' CA there");
    }
    if let Some(release) = &config.release
        && let Err(error) = ReleasePolicy::read(&release.policy)
    {
        add(
            "release.policy".into(),
            chain(&error),
            "without it, `wiretight upgrade` refuses every program",
        );
    }
    if let Some(folder) = config.console.as_ref().and_then(|console| console.scans.as_ref())
        && let Err(e) = std::fs::read_dir(folder)
    {
        let problem = format!("cannot read the folder {}: {e}", folder.display());
        add("console.scans".into(), problem, "create it, readable by the user that runs the node");
    }
    for ca in &config.acme {
        let key = |name| format!("[[acme]] {:?}: {name}", ca.directory);
        if let Err(error) = Ca::open(ca) {
            add(key("roots"), chain(&error), "put the CA's root certificates (PEM) there");
        }
        if let Some(command) = &ca.dns_command
            && let Err(why) = executable(command)
        {
            add(key("dns_command"), why, "put an executable program there");
        }
    }
    all
}

fn roots(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let size = std::fs::metadata(path).map(|m| m.len());
    let size = size.map_err(|e| format!("cannot read {shown}: {e}"))?;
    if size > MAX_ROOTS {
        return Err(format!("{shown} is larger than 1 MiB"));
    }
    let pem = std::fs::read(path).map_err(|e| format!("cannot read {shown}: {e}"))?;
    let good = CertificateDer::pem_slice_iter(&pem).filter(Result::is_ok).count();
    if good == 0 { Err(format!("{shown} has no PEM certificate")) } else { Ok(()) }
}

fn executable(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let meta = std::fs::metadata(path).map_err(|e| format!("cannot run {shown}: {e}"))?;
    match meta.is_file() && meta.permissions().mode() & 0o111 != 0 {
        true => Ok(()),
        false => Err(format!("{shown} is not executable")),
    }
}

//! `wiretight init`: writes a first configuration that works. Every text is read by the parser of the program that will
//! use it before it is written, and an existing file is replaced only with `--force`.

mod machine;
mod questions;
mod text;
mod watching;

use std::fs::DirBuilder;
use std::io::{self, BufRead};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueHint};
use wiretight_keys::{Id, JoinToken, Name, TrustDomain};
use wiretight_proxy::clock::now;
use wiretight_proxy::edge::settings::SiteName;
use wiretight_proxy::network::Backend;
use zeroize::Zeroizing;

use self::machine::{Access, put};
use self::questions::{Questions, Wrong};
use self::text::{Offer, Program, Use, dial_section, fits, node_section, service_section, toml};
use self::watching::{Monitor, Witness};
use super::{Cli, DEFAULT_CONFIG, Verb, join};
use crate::agent::token_fits;
use crate::config::{Config, ConfigErrors};
use crate::named_files;

/// The port of the authority.
const AUTHORITY_PORT: u16 = 7400;
/// A service listens on the port of its program plus this.
const PORT_OFFSET: u16 = 2000;
/// The port of a service whose program listens on a Unix socket.
const UNIX_PORT: u16 = 7500;
/// The trust domain of a mesh that has no DNS domain (`.internal` is reserved for private use).
const PRIVATE_DOMAIN: &str = "mesh.internal";
/// The user of the node's unit in the packages.
const NODE: &str = "wiretight";

/// Write a first configuration file for this machine
///
/// On a terminal it asks two or three questions. Every answer can be given as an option instead; without a terminal,
/// nothing is asked. The file is checked before it is written, as by `wiretight check`. An existing file is not replaced
/// without --force.
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight init                                     asks what this machine is
  wiretight init authority --trust-domain example.org
  wiretight init node --offer db=127.0.0.1:5432 --allow service/web
  wiretight init node --use db=127.0.0.1:5432 --as web --token - < token
  wiretight init edge --site www.example.org --to 127.0.0.1:8080
  wiretight init edge --print                        shows the file, and writes nothing

Files:
  /etc/wiretight/wiretight.toml                      authority, node and edge
  /etc/wiretight/token                               the join token, until the node has joined
  /etc/wiretight/witness-NAME.env, -NAME.key         options and key of a witness
  /etc/wiretight/monitor-NAME.env                    options of a monitor

Exit status: 0 the file was written (or printed), 1 failure, 2 wrong usage or an invalid answer.")]
pub(super) struct Init {
    #[command(subcommand)]
    kind: Option<Kind>,
    #[command(flatten)]
    out: Out,
}

#[derive(Args)]
struct Out {
    /// The file to write [default: see Files]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// Replace an existing file (a witness keeps its key and its state)
    #[arg(long, global = true)]
    force: bool,
    /// Print the file, and write nothing
    #[arg(long, global = true, conflicts_with = "force")]
    print: bool,
}

#[derive(Subcommand)]
enum Kind {
    Authority(Authority),
    Node(Node),
    Edge(Edge),
    Witness(Box<Witness>),
    Monitor(Box<Monitor>),
}

/// The machine that issues the identities of a mesh
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight init authority --trust-domain example.org --listen 10.0.0.1:7400
  wiretight init authority --trust-domain example.org --offer db=127.0.0.1:5432 --allow service/web")]
struct Authority {
    /// The name of the mesh, in the form of a DNS domain [default: the domain of this machine]
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<TrustDomain>,
    /// The address for the other machines [default: port 7400 of the address with the default route]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    programs: Programs,
    /// The name of this node [default: the host name]
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
}

/// What programs on this machine offer and use.
#[derive(Args)]
struct Programs {
    /// A program on this machine that others may use: the service's name, and the program's address or port on loopback
    #[arg(long, value_name = "NAME=PROGRAM")]
    offer: Option<Offer>,
    /// Who may connect to it: service/NAME or node/NAME; may be repeated
    #[arg(long, value_name = "IDENTITY", requires = "offer")]
    allow: Vec<Id>,
    /// The address for their encrypted connections [default: the program's port plus 2000]
    #[arg(long, value_name = "ADDRESS:PORT", requires = "offer")]
    offer_listen: Option<SocketAddr>,
    /// A service that programs on this machine use, and the loopback address or port where they reach it
    #[arg(long = "use", value_name = "NAME=ADDRESS")]
    uses: Option<Use>,
    /// The service as which they connect; the token must allow it [default: this node]
    #[arg(long = "as", value_name = "NAME", requires = "uses")]
    identity: Option<Name>,
}

/// A machine whose programs offer or use services of a mesh
///
/// The join token comes from `wiretight token create` on the authority. It names the mesh, this node and the authority,
/// so nothing else has to be said about them. It is used when the node starts.
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight init node --offer db=127.0.0.1:5432 --allow service/web
  wiretight init node --use db=127.0.0.1:5432 --as web
  ssh auth1 wiretight token create --node web1 --service web | wiretight init node --token - --use db=5432 --as web")]
struct Node {
    /// The join token; `-` reads standard input. Other users of this machine can see command lines
    #[arg(long)]
    token: Option<String>,
    #[command(flatten)]
    programs: Programs,
    /// The name of this node [default: that of the token, or the host name]
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
    /// The name of the mesh [default: that of the token]
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<TrustDomain>,
}

/// A machine that serves HTTPS for programs on it; needs no mesh and no authority
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight init edge --site www.example.org --to 127.0.0.1:8080
  wiretight init edge --site app.internal --to 8080 --cert /etc/wiretight/app.pem --key /etc/wiretight/app.key")]
struct Edge {
    /// The DNS name of the site; may be repeated
    #[arg(long = "site", value_name = "NAME")]
    sites: Vec<SiteName>,
    /// The program: an address or port on loopback, or a Unix socket
    #[arg(long, value_name = "PROGRAM")]
    to: Option<Program>,
    /// The certificate chain (PEM) [default: by ACME from Let's Encrypt, whose terms you then accept]
    #[arg(long, value_name = "FILE", requires = "key", value_hint = ValueHint::FilePath)]
    cert: Option<PathBuf>,
    /// The key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "cert", value_hint = ValueHint::FilePath)]
    key: Option<PathBuf>,
    /// The name of this node [default: the host name]
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
}

/// What is written, and what to do next.
struct Plan {
    path: PathBuf,
    text: String,
    /// What the file is for, in a few words.
    is: String,
    warnings: Vec<String>,
    /// Commands.
    next: Vec<String>,
    /// The join token, and the file for it.
    token: Option<(PathBuf, Zeroizing<String>)>,
    /// The user of the unit, in the packages.
    user: &'static str,
}

impl Init {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut ask = Questions::of_the_terminal();
        match self.plan(&mut ask) {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) if error.is::<Wrong>() => {
                eprintln!("wiretight: {error}");
                Ok(ExitCode::from(2))
            }
            Err(error) => Err(error),
        }
    }

    fn plan(self, ask: &mut Questions<impl BufRead>) -> anyhow::Result<()> {
        let kind = match self.kind {
            Some(kind) => kind,
            None => kind(ask)?,
        };
        let out = self.out;
        match kind {
            Kind::Authority(of) => {
                let path = out.node_file()?;
                of.plan(ask, path)?.put(&out)
            }
            Kind::Node(of) => {
                let path = out.node_file()?;
                of.plan(ask, path)?.put(&out)
            }
            Kind::Edge(of) => {
                let path = out.node_file()?;
                of.plan(ask, path, out.print)?.put(&out)
            }
            Kind::Witness(of) => {
                let path = out.file(&format!("/etc/wiretight/witness-{}.env", of.name))?;
                of.plan(ask, path, &out)?.put(&out)
            }
            Kind::Monitor(of) => {
                let path = out.file(&format!("/etc/wiretight/monitor-{}.env", of.name))?;
                of.plan(ask, path)?.put(&out)
            }
        }
    }
}

/// Asks what this machine is.
fn kind(ask: &mut Questions<impl BufRead>) -> anyhow::Result<Kind> {
    let question = "What is this machine: authority (of a new mesh), node (in a mesh), edge (HTTPS for browsers), witness or monitor?";
    ask.answer("authority, node, edge, witness or monitor", question, None, |text| {
        match Cli::try_parse_from(["wiretight", "init", text]).map(|cli| cli.verb) {
            Ok(Verb::Init(Init { kind: Some(kind), .. })) => Ok(kind),
            _ => Err(format!("{text:?} is not authority, node, edge, witness or monitor.")),
        }
    })
}

impl Out {
    /// The path of a node's configuration file.
    fn node_file(&self) -> anyhow::Result<PathBuf> {
        let usual = std::env::var("WIRETIGHT_CONFIG").unwrap_or_else(|_| DEFAULT_CONFIG.to_owned());
        self.file(&usual)
    }

    /// The path of the file, which must not exist yet: that is said before anything is asked.
    fn file(&self, usual: &str) -> anyhow::Result<PathBuf> {
        let path = self.config.clone().unwrap_or_else(|| usual.into());
        let path = std::path::absolute(path)?;
        if !self.print && !self.force && path.symlink_metadata().is_ok() {
            bail!(exists(&path));
        }
        Ok(path)
    }
}

fn exists(path: &Path) -> String {
    format!(
        "{} exists already, and was not changed. Replace it with --force, write another file with --config FILE, or look \
         at the new one with --print.",
        path.display()
    )
}

/// Creates the directory of a file.
fn prepare(file: &Path) -> anyhow::Result<()> {
    let dir = file.parent().unwrap_or(Path::new("/"));
    let made = DirBuilder::new().recursive(true).mode(0o755).create(dir);
    made.with_context(|| format!("cannot create {}", dir.display()))
}

impl Plan {
    /// A node's file. `files`: whether the files that it names must be there.
    fn node(path: PathBuf, text: String, files: bool, next: Vec<String>) -> anyhow::Result<Plan> {
        let config = Config::parse(&path, &text)?;
        let problems = if files { named_files::problems(&config) } else { Vec::new() };
        if let Some(errors) = ConfigErrors::of(problems) {
            return Err(errors.into());
        }
        let is = super::check::in_short(&config);
        Ok(Plan { path, text, is, warnings: config.warnings, next, token: None, user: NODE })
    }

    fn put(self, out: &Out) -> anyhow::Result<()> {
        self.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
        if out.print {
            return super::print(&self.text);
        }
        prepare(&self.path)?;
        if let Some((file, token)) = &self.token {
            // A token is used once, so an older one is of no use.
            put(file, token.as_bytes(), self.user, Access::Secret, true)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        match put(&self.path, self.text.as_bytes(), self.user, Access::Group, out.force) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => bail!(exists(&self.path)),
            done => done.with_context(|| format!("cannot write {}", self.path.display()))?,
        }
        let next: String = self.next.iter().map(|command| format!("  {command}\n")).collect();
        super::print(&format!("Wrote {}: {}\nNext:\n{next}", self.path.display(), self.is))
    }
}

/// The command that starts a node with this file.
fn run(path: &Path) -> String {
    match path == Path::new(DEFAULT_CONFIG) {
        true if machine::has_unit("wiretight.service") => "systemctl enable --now wiretight".into(),
        _ => machine::as_user(NODE, &format!("wiretight run{}", at(path))),
    }
}

/// The option that names this file, if it is needed.
fn at(path: &Path) -> String {
    match path == Path::new(DEFAULT_CONFIG) {
        true => String::new(),
        false => format!(" --config {}", path.display()),
    }
}

/// The name of this node.
fn node_name(ask: &mut Questions<impl BufRead>, given: Option<Name>) -> anyhow::Result<Name> {
    match given.or_else(machine::node_name) {
        Some(name) => Ok(name),
        None => ask.required("--name NAME", "Name of this node", None, None, |_: &Name| Ok(())),
    }
}

impl Authority {
    fn plan(self, ask: &mut Questions<impl BufRead>, path: PathBuf) -> anyhow::Result<Plan> {
        let domain = machine::domain().unwrap_or_else(|| PRIVATE_DOMAIN.into());
        let trust_domain = ask.required(
            "--trust-domain DOMAIN",
            "Name of the mesh, in the form of a DNS domain",
            self.trust_domain,
            Some(domain),
            |_: &TrustDomain| Ok(()),
        )?;
        let section = |listen: &SocketAddr| format!("\n[authority]\nlisten = {}\n", toml(listen));
        let usual = machine::address(&[]).map(|ip| SocketAddr::new(ip, AUTHORITY_PORT).to_string());
        let listen = ask.required(
            "--listen ADDRESS:PORT",
            "Address of this machine for the others",
            self.listen,
            usual,
            |listen| fits(&section(listen)),
        )?;
        let mut programs = self.programs;
        programs.ask(ask, false)?;
        let name = node_name(ask, self.name)?;
        let node = node_section(&name, &trust_domain) + &section(&listen);
        let text = node + &programs.sections(ask, || Some(listen.ip()))?;
        let token = "--node NAME --service NAME      a token for each other machine";
        let next = vec![run(&path), format!("wiretight token create{} {token}", at(&path))];
        Plan::node(path, text, true, next)
    }
}

impl Node {
    fn plan(self, ask: &mut Questions<impl BufRead>, path: PathBuf) -> anyhow::Result<Plan> {
        let token = match self.token {
            Some(token) if token != "-" || !ask.is_terminal() => Some(join::read_token(token)?),
            _ => ask.optional(
                "Join token, from `wiretight token create` on the authority (empty: join later)",
                |text| {
                    JoinToken::decode(text).map_err(|e| e.to_string())?;
                    Ok(Zeroizing::new(text.to_owned()))
                },
            )?,
        };
        let parsed = token.as_ref().map(|token| JoinToken::decode(token)).transpose();
        let parsed = parsed.map_err(|e| Wrong(e.to_string()))?;
        let name = match (self.name, &parsed) {
            (None, Some(token)) => token.node.clone(),
            (given, _) => node_name(ask, given)?,
        };
        let trust_domain = match (self.trust_domain, &parsed) {
            (None, Some(token)) => token.trust_domain.clone(),
            (given, _) => ask.required(
                "--trust-domain DOMAIN",
                "Name of the mesh, as on the authority",
                given,
                None,
                |_: &TrustDomain| Ok(()),
            )?,
        };
        if let Some(token) = &parsed {
            token_fits(token, &trust_domain, &name).map_err(Wrong)?;
            if token.expires <= now() {
                let why = "the join token has expired. Create a new one with `wiretight token create` on the authority.";
                bail!(Wrong(why.into()));
            }
        }
        let mut programs = self.programs;
        programs.ask(ask, true)?;
        let mut text = node_section(&name, &trust_domain);
        let token_file = path.with_file_name("token");
        if token.is_some() {
            text += &format!("join_token_file = {}\n", toml(token_file.display()));
        }
        let authority = parsed.as_ref().map(|token| &*token.authority).unwrap_or_default();
        text += &programs.sections(ask, || machine::address(authority))?;
        let mut next = vec![run(&path)];
        if token.is_none() {
            let join = format!("wiretight join{}", at(&path));
            next.insert(0, machine::as_user(NODE, &join));
        }
        let plan = Plan::node(path, text, true, next)?;
        Ok(Plan { token: token.map(|token| (token_file, token)), ..plan })
    }
}

impl Programs {
    /// Asks what was not said; `uses`: also for a service to use.
    fn ask(&mut self, ask: &mut Questions<impl BufRead>, uses: bool) -> anyhow::Result<()> {
        if self.offer.is_some() || self.uses.is_some() {
            return Ok(());
        }
        let example = "as NAME=ADDRESS, for example db=127.0.0.1:5432 (empty: none)";
        let question = format!("Program here that other machines may use, {example}");
        self.offer = ask.optional(&question, str::parse)?;
        if uses {
            let question =
                format!("Service that programs here use, and where they reach it, {example}");
            self.uses = ask.optional(&question, str::parse)?;
        }
        Ok(())
    }

    /// The sections for it. `address`: that of this machine.
    fn sections(
        self,
        ask: &mut Questions<impl BufRead>,
        address: impl FnOnce() -> Option<IpAddr>,
    ) -> anyhow::Result<String> {
        let mut text = String::new();
        if let Some(Offer { service, to }) = &self.offer {
            let mut allow = self.allow;
            if allow.is_empty() {
                let question =
                    format!("Who may use {service}: service/NAME or node/NAME (empty: nobody yet)");
                let identity = |text: &str| text.parse::<Id>().map_err(|e| e.to_string());
                allow.extend(ask.optional(&question, identity)?);
            }
            let port = match to {
                Backend::Tcp(to) => {
                    let port = to.port();
                    port.checked_add(PORT_OFFSET).unwrap_or_else(|| port - PORT_OFFSET)
                }
                Backend::Unix(_) => UNIX_PORT,
            };
            let listen = self.offer_listen.or_else(|| Some(SocketAddr::new(address()?, port)));
            let Some(listen) = listen else {
                let why =
                    "This machine has no address on a network. Give --offer-listen ADDRESS:PORT.";
                bail!(Wrong(why.into()))
            };
            text += &service_section(service.as_str(), to, listen, &allow);
        }
        if let Some(Use { service, at }) = &self.uses {
            text += &dial_section(service, *at, self.identity.as_ref());
        }
        Ok(text)
    }
}

impl Edge {
    fn plan(
        self,
        ask: &mut Questions<impl BufRead>,
        path: PathBuf,
        print: bool,
    ) -> anyhow::Result<Plan> {
        let mut names = self.sites;
        if names.is_empty() {
            let question = "DNS name of the site, for example www.example.org";
            names.push(ask.required("--site NAME", question, None, None, |_: &SiteName| Ok(()))?);
        }
        let question = "Program that answers its requests";
        let usual = Some("127.0.0.1:8080".to_owned());
        let Program(to) = ask.required("--to PROGRAM", question, self.to, usual, |_| Ok(()))?;
        let mut files = self.cert.zip(self.key);
        let section = |files: &Option<(PathBuf, PathBuf)>| {
            let listed: Vec<_> = names.iter().map(toml).collect();
            let mut text =
                format!("\n[[site]]\nnames = [{}]\nto = {}\n", listed.join(", "), toml(&to));
            text.extend(files.iter().map(|(cert, key)| {
                format!("cert = {}\nkey = {}\n", toml(cert.display()), toml(key.display()))
            }));
            text
        };
        if files.is_none() {
            // Without files, the certificate comes by ACME, which has none for private names.
            let question = "Certificate chain, a PEM file";
            let cert = match fits(&section(&None)) {
                Ok(()) => {
                    let or_acme = " (empty: from Let's Encrypt, whose terms you accept)";
                    ask.optional(&format!("{question}{or_acme}"), absolute)?
                }
                Err(why) if !ask.is_terminal() => {
                    bail!(Wrong(format!("--cert FILE is missing: {why}")))
                }
                Err(why) => {
                    eprintln!("{why}");
                    Some(ask.answer("--cert FILE", question, None, absolute)?)
                }
            };
            if let Some(cert) = cert {
                let key =
                    ask.answer("--key FILE", "Its private key, a PEM file", None, absolute)?;
                files = Some((cert, key));
            }
        }
        let name = node_name(ask, self.name)?;
        // The file must name one, but without a mesh nothing depends on it.
        let of_site = names[0].as_str().trim_start_matches("*.");
        let trust_domain = of_site.parse().or_else(|_| PRIVATE_DOMAIN.parse::<TrustDomain>())?;
        let node = node_section(&name, &trust_domain);
        let text = format!("{}      # only for a mesh\n{}", node.trim_end(), section(&files));
        let next = vec![run(&path)];
        Plan::node(path, text, !print, next)
    }
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    match text.starts_with('/') {
        true => Ok(text.into()),
        false => Err(format!(
            "{text:?} is not an absolute path. Write for example /etc/wiretight/tls.pem."
        )),
    }
}

#[cfg(test)]
mod tests;

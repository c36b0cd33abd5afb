//! `[console]`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::across::Across;
use super::report::{Complaint, Report};
use super::section::{Section, Setting};
use super::value::{absolute_path, console_listen};

const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7492);

/// `[console]`: pages about the mesh for a browser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Console {
    /// A loopback address.
    pub listen: SocketAddr,
    /// The folder with the reports of scans that it shows; absolute.
    pub scans: Option<PathBuf>,
}

pub(super) fn read_console(
    report: &mut Report<'_>,
    mut s: Section<'_>,
    authority_line: Option<usize>,
    across: &mut Across,
) -> Console {
    if authority_line.is_none() {
        let problem = "there is no [authority] in this file, whose mesh the console shows";
        let advice = "move the section to the file of the authority's machine";
        report.error(Some(s.line), "console", Complaint::new(problem, advice));
    }
    let listen = s.optional(report, "listen", console_listen);
    match &listen {
        Setting::Absent => across.listener(None, s.key("listen"), DEFAULT_LISTEN),
        Setting::Given(listen) => {
            across.listener(Some(listen.line), s.key("listen"), listen.value);
        }
        Setting::Wrong => {}
    }
    let scans = s.optional(report, "scans", absolute_path);
    s.finish(report);
    Console { listen: listen.or(DEFAULT_LISTEN), scans: scans.given() }
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    #[test]
    fn only_sites_that_require_a_client_certificate_lead_to_the_console() {
        let site = |name: &str, port: u16, more: &str| {
            format!(
                "[[site]]\nnames = [\"{name}\"]\nto = \"127.0.0.1:{port}\"\nacme = \"internal\"\n{more}"
            )
        };
        let clients = "clients = [\"node/ops1\"]\n";
        let text = [
            "[node]\nname = \"auth1\"\ntrust_domain = \"example.org\"\n".to_owned(),
            "[authority]\nlisten = \"10.0.0.1:7400\"\n[console]\n".to_owned(),
            site("console.corp.internal", 7492, clients),
            site("open.corp.internal", 7492, ""),
            site("app.corp.internal", 8080, clients),
        ];
        let config = Config::parse("w.toml".as_ref(), &text.concat()).unwrap();
        for (host, leads) in [
            ("console.corp.internal", true),
            ("open.corp.internal", false),
            ("app.corp.internal", false),
            ("corp.internal", false),
            ("", false),
        ] {
            assert_eq!(config.is_console_site(host), leads, "{host}");
        }
        assert_eq!(config.console_sites(), ["console.corp.internal"]);
        let other = text.concat() + "[edge]\nhttps = [\"10.0.0.1:8443\", \"10.0.0.1:9443\"]\n";
        let config = Config::parse("w.toml".as_ref(), &other).unwrap();
        assert_eq!(config.console_sites(), ["console.corp.internal:8443"]);
    }
}

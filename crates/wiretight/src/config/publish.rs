//! `[publish]`: the public proof page.

use std::path::PathBuf;

use super::report::{Complaint, Report};
use super::section::Section;
use super::value::{flag, folder, short_text};

/// `[publish]`: where the proof page is written, and what it says besides counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Publish {
    /// The folder that the authority keeps up to date; absolute. `None`: only `wiretight publish` writes one.
    pub dir: Option<PathBuf>,
    /// What the page is about, instead of the trust domain.
    pub title: Option<String>,
    /// Whom to ask.
    pub contact: Option<String>,
    /// Whether the names of services are published.
    pub public_services: bool,
}

pub(super) fn read_publish(
    report: &mut Report<'_>,
    mut s: Section<'_>,
    authority_line: Option<usize>,
) -> Publish {
    if authority_line.is_none() {
        let problem = "there is no [authority] in this file";
        let advice = "move the section to the file of the authority's machine";
        report.error(Some(s.line), "publish", Complaint::new(problem, advice));
    }
    let dir = s.optional(report, "dir", folder);
    let title = s.optional(report, "title", short_text);
    let contact = s.optional(report, "contact", short_text);
    let public_services = s.optional(report, "public_services", flag);
    s.finish(report);
    Publish {
        dir: dir.given(),
        title: title.given(),
        contact: contact.given(),
        public_services: public_services.or(false),
    }
}

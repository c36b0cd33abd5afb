//! Writes `[intercept] mode` into the configuration file and changes nothing else: comments, layout, owner and mode are
//! kept. The file is replaced atomically.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use toml_edit::{DocumentMut, Value};
use wiretight_proxy::intercept::rules::Mode;

use super::{Config, read};
use crate::private_dir::{self, Owner};

/// A prepared change of the mode.
pub(crate) struct ModeEdit {
    /// The file, with symbolic links resolved.
    file: PathBuf,
    old: String,
    new: String,
}

impl ModeEdit {
    /// Fails unless the file has the mode `from`, and only the mode would change.
    pub(crate) fn prepare(path: &Path, from: Mode, to: Mode) -> anyhow::Result<ModeEdit> {
        let shown = path.display();
        let file = path.canonicalize().with_context(|| format!("cannot find {shown}"))?;
        let old = text(&file)?;
        let mut expected = Config::parse(path, &old)?;
        match &mut expected.intercept {
            Some(intercept) if intercept.mode == from => intercept.mode = to,
            _ => bail!(
                "{shown} does not have the node's mode, mode = \"{}\" in [intercept]. Check that it is the node's file, \
                 and apply it with `wiretight reload`.",
                from.word()
            ),
        }
        let new = with_mode(&old, to).with_context(|| by_hand(path, to))?;
        if Config::parse(path, &new)? != expected {
            bail!("other settings would change, too: {}", by_hand(path, to));
        }
        Ok(ModeEdit { file, old, new })
    }

    /// Replaces the file.
    pub(crate) fn write(&self) -> anyhow::Result<()> {
        self.put(&self.old, &self.new)
    }

    /// Restores the file.
    pub(crate) fn take_back(&self) -> anyhow::Result<()> {
        self.put(&self.new, &self.old)
    }

    fn put(&self, before: &str, after: &str) -> anyhow::Result<()> {
        let shown = self.file.display();
        if text(&self.file)? != before {
            bail!("another program has just changed {shown}, so it was not written");
        }
        replace(&self.file, after.as_bytes())
            .with_context(|| {
                format!(
                    "cannot write {shown}, which is unchanged. Run this as a user who may write it, or change it where \
                     it is generated and run `wiretight reload`."
                )
            })
    }
}

fn by_hand(path: &Path, mode: Mode) -> String {
    let (file, mode) = (path.display(), mode.word());
    format!(
        "edit {file} by hand: set mode = \"{mode}\" in [intercept], then run `wiretight reload`"
    )
}

fn text(file: &Path) -> anyhow::Result<String> {
    read(file).map_err(|complaint| anyhow::anyhow!("{}: {}", file.display(), complaint.problem))
}

/// The same text with another mode.
fn with_mode(text: &str, mode: Mode) -> anyhow::Result<String> {
    let mut document: DocumentMut = text.parse()?;
    if document.to_string() != text {
        bail!("the layout of the file cannot be kept");
    }
    let section = document.get_mut("intercept").and_then(|item| item.as_table_like_mut());
    let value = section.and_then(|section| section.get_mut("mode")?.as_value_mut());
    let value = value.context("there is no [intercept] mode")?;
    // Keep spaces and comments around the value.
    let decor = value.decor().clone();
    *value = Value::from(mode.word());
    *value.decor_mut() = decor;
    Ok(document.to_string())
}

/// Replaces the file atomically, and keeps its owner and mode.
fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let was = fs::metadata(file)?;
    let owner = Owner { uid: was.uid(), gid: was.gid(), mode: was.mode() };
    private_dir::replace(file, bytes, Some(owner))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const FILE: &str = r#"# Ours. mode = "observe" is what we began with.
[node]
name = "db1"  # the first
trust_domain = "example.org"

[intercept]   # since May
	mode   =  'permissive'   # mode = "strict" one day

protect = [
  "10.0.0.0/24",   # all of it
]
"#;

    #[test]
    fn only_the_mode_changes_and_links_and_permissions_are_kept() {
        let temp = tempfile::tempdir().unwrap();
        let (file, link) = (temp.path().join("a.toml"), temp.path().join("link.toml"));
        fs::write(&file, FILE).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let edit = ModeEdit::prepare(&link, Mode::Permissive, Mode::Strict).unwrap();
        edit.write().unwrap();
        let expected = FILE.replace("'permissive'", "\"strict\"");
        assert_eq!(fs::read_to_string(&file).unwrap(), expected);
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o640);
        assert!(link.is_symlink());
        edit.take_back().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), FILE);
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 2, "nothing is left over");
    }

    #[test]
    fn a_file_that_has_changed_is_not_written() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("a.toml");
        fs::write(&file, FILE).unwrap();
        let said = |from| match ModeEdit::prepare(&file, from, Mode::Strict) {
            Ok(_) => String::new(),
            Err(error) => format!("{error:#}"),
        };
        assert_eq!(said(Mode::Permissive), "", "the control");
        assert!(said(Mode::Observe).contains("does not have the node's mode, mode = \"observe\""));
        let edit = ModeEdit::prepare(&file, Mode::Permissive, Mode::Strict).unwrap();
        let other = FILE.replace("db1", "db2");
        fs::write(&file, &other).unwrap();
        assert!(format!("{:#}", edit.write().unwrap_err()).contains("another program"));
        assert_eq!(fs::read_to_string(&file).unwrap(), other);
        fs::write(&file, "[node]\nname = 1\n").unwrap();
        assert!(!said(Mode::Permissive).is_empty());
    }
}

//! Starts another process of this program: the rules keeper, the child for DNS commands, or the next process in an
//! upgrade.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// A command for this binary, even if its file was replaced, with the name that this process was started by.
pub(crate) fn own_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    command
}

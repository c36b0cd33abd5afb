//! How a process starts another one of this program: the child that keeps the rules, the one that runs DNS commands, the
//! next process at an upgrade.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// This very binary, whatever its path leads to by now, under the name that this process was started by.
pub(crate) fn own_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    command
}

//! `wiretight`: see `wiretight --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    wiretight::cli::main()
}

//! Releases that prove themselves, with real witnesses and a real log.

use std::path::Path;
use std::process::Command;

use super::rig::*;

/// Waits 10 s for a release to expire, and 5 s for a copy to go stale.
#[test]
fn a_day_of_releases() {
    if !has(&["perl", "sha256sum"]) {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/release/day");
    let ran = Ran::of(Command::new("/bin/sh").arg(script).arg(env!("CARGO_BIN_EXE_wiretight")), "");
    let ran = ran.good();
    for line in [
        "0 of the 2 rebuilders that the policy requires made the same file",
        "good: ",
        "built from that source by debian, uni",
        "ANOTHER FILE from the same source: debian, uni",
        "control: with 'rebuilds 0' it would have been accepted",
        "0 of the policy's witnesses cosigned",
        "1 of the policy's witnesses cosigned",
        "DIFFERS: wiretight: released",
        "WARNING: another file was built from that source by ngo",
        "at most 5 s are allowed",
        "is older than 1.4.1",
        "version 1.5.0 expired at",
        "was not run, and the node continues as it was",
        "has taken over",
        "all results as expected",
    ] {
        assert!(ran.out.contains(line), "the output lacks {line:?}:\n{}", ran.all());
    }
}

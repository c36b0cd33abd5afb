//! The packages are in order, and made of the same bytes each time.

use std::fs;
use std::process::Command;

use super::rig::*;
use super::{Packages, can_build, root};

#[test]
fn packages_are_the_same_each_time_and_have_no_problems() {
    if !can_build() || !has(&["lintian", "rpmlint"]) {
        return;
    }
    let packages = Packages::get();

    // Elsewhere in the world, by somebody with other habits.
    let mut again = Command::new("sh");
    again.args(["-c", "umask 077; exec \"$@\"", "sh"]).arg(root().join("scripts/package"));
    let again = Packages::build(again.current_dir("/").env("TZ", "Asia/Tokyo").env("LANG", "C"));
    for (one, other) in
        [(&packages.deb, &again.deb), (&packages.rpm, &again.rpm), (&packages.image, &again.image)]
    {
        assert_eq!(one.file_name(), other.file_name());
        assert!(fs::read(one).unwrap() == fs::read(other).unwrap(), "{} differs", one.display());
    }

    // The same program is in all of them: its hash is what a release log has. (The image is checked elsewhere.)
    let script = r#"
        dpkg-deb --fsys-tarfile "$2" | tar -xO ./usr/bin/wiretight | sha256sum | cut -c -64
        rpm -qp --queryformat '[%{FILENAMES} %{FILEDIGESTS}\n]' "$3" | sed -n 's|^/usr/bin/wiretight ||p'
        sha256sum "$1" | cut -c -64"#;
    let mut sh = Command::new("sh");
    sh.args(["-ec", script, "sh"]).arg(packages.dir.path().join("wiretight"));
    let hashes = Ran::of(sh.args([&packages.deb, &packages.rpm]), "").good().out;
    let hashes: Vec<&str> = hashes.lines().collect();
    assert_eq!(hashes, [hashes[0]; 3]);
    assert_eq!(hashes[0].len(), 64);

    let lintian = |deb: &std::path::Path| {
        let mut lintian = Command::new(find("lintian").unwrap());
        Ran::of(lintian.args(["--fail-on", "error,warning"]).arg(deb), "")
    };
    let ran = lintian(&packages.deb);
    assert!(ran.code == Some(0) && !ran.out.contains("W:"), "{ran:?}");
    // The control: a package with a problem.
    let bad = packages.dir.path().join("bad");
    fs::create_dir_all(bad.join("DEBIAN")).unwrap();
    let control = "Package: bad\nVersion: 1-1\nArchitecture: all\nMaintainer: Nobody <a@example.org>\nDescription: bad\n";
    fs::write(bad.join("DEBIAN/control"), control).unwrap();
    let deb = packages.dir.path().join("bad.deb");
    Ran::of(Command::new("dpkg-deb").args(["-Znone", "--build"]).arg(&bad).arg(&deb), "").good();
    let ran = lintian(&deb);
    assert!(ran.code != Some(0) && ran.out.contains("no-copyright-file"), "{ran:?}");

    let mut rpmlint = Command::new(find("rpmlint").unwrap());
    rpmlint.arg("-c").arg(root().join("packaging/rpm/rpmlint.toml")).arg(&packages.rpm);
    let ran = Ran::of(&mut rpmlint, "").good();
    assert!(ran.out.contains("0 errors, 0 warnings"), "{ran:?}");
}

#!/usr/bin/env python3
"""Prints the copyright file of a package: our licence, and the licences of everything that is linked into the program.

Asks cargo for the crates that the program is linked from (not those of tests, build scripts and macros), and reads the
notices in their sources. A crate without a notice in its source is named with its authors.
"""

import pathlib
import re
import sys
import textwrap

sys.dont_write_bytecode = True
import crates  # noqa: E402

TARGET = sys.argv[1]  # x86_64-unknown-linux-gnu, for example
NOTICE = re.compile(r"licen[sc]e|copying|copyright|notice", re.I)
# That text needs no copy for each crate.
APACHE = re.compile(r"[ \t]*Apache License\s+Version 2\.0, January 2004.*?END OF TERMS AND CONDITIONS\n?", re.S)
APPENDIX = re.compile(r"\s*APPENDIX: How to apply the Apache License to your work\..*?limitations under the License\.\n?", re.S)
HEAD = """\
Wiretight

{mit}

Instead of that licence, you may choose the Apache License, Version 2.0. On
Debian systems it is in /usr/share/common-licenses/Apache-2.0; other packages
have it beside this file. Where it is left out below, it is that text.

The program is linked from crates of crates.io, which are listed here, each with
its licence and then with its notices. It contains AWS-LC (from aws-lc-sys),
SQLite (from libsqlite3-sys; its authors have dedicated it to the public domain),
and the standard library of Rust (Copyright The Rust Project contributors; MIT OR
Apache-2.0).
"""


def notices(package):
    """The texts of a crate's licence files, without Apache's."""
    folder = pathlib.Path(package["manifest_path"]).parent
    # C libraries have notices deeper down, some of files that are not compiled.
    for file in sorted(folder.rglob("*")):
        if NOTICE.search(file.name) and file.suffix.lower() in ("", ".txt", ".md") and file.is_file():
            text = file.read_text("utf-8", "replace").replace("\r\n", "\n")
            text = APPENDIX.sub("", APACHE.sub("", text + "\n")).strip()
            if text:
                yield "\n".join(line.rstrip() for line in text.splitlines())


def main():
    known = crates.known(TARGET)
    packages = [known[package] for package in sorted(crates.linked(TARGET)) if known[package]["source"]]
    print(HEAD.format(mit=(crates.ROOT / "LICENSE-MIT").read_text().strip()))
    texts = {}
    for package in packages:
        name = f"{package['name']} {package['version']}"
        print(f"  {name}: {package['license'] or 'see below'}")
        found = list(notices(package))
        if not found:
            authors = [re.sub(r"\s*<.*?>", "", author) for author in package["authors"]]
            found = [f"Copyright {', '.join(authors) or 'the authors of ' + package['name']}"]
        for text in found:
            texts.setdefault(text, []).append(name)
    for text, names in sorted(texts.items(), key=lambda item: (item[1], item[0])):
        print("\n" + "-" * 78)
        print(textwrap.fill(f"Of {', '.join(dict.fromkeys(names))}:", 78) + "\n")
        print(text)


main()

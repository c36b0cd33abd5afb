"""The crates that the program is made of, as cargo tells. For the scripts beside this file."""

import json
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
# "2libc v0.2.191 (*)": depth, name, version, and what else is known.
LINE = re.compile(r"(\d+)(\S+) v(\S+)(.*)")


def cargo(*arguments):
    return subprocess.run(["cargo", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def known(target):
    """All packages of the lock file for a target, by name and version. Also those that no feature turns on."""
    metadata = json.loads(cargo("metadata", "--locked", "--format-version=1", "--filter-platform", target))
    return {(package["name"], package["version"]): package for package in metadata["packages"]}


def graph(target, edges):
    """What each package depends on: a set by (name, version). The first key is the program."""
    out = cargo("tree", "--locked", "--package=wiretight", f"--edges={edges}", "--prefix=depth", "--target", target)
    found, above = {}, []
    for line in out.splitlines():
        depth, name, version, _ = LINE.fullmatch(line).groups()
        package = (name, version)
        found.setdefault(package, set())
        del above[int(depth) :]
        if above:
            found[above[-1]].add(package)
        above.append(package)
    return found


def linked(target):
    """The packages that are linked into the program: not those of tests, build scripts and macros."""
    return set(graph(target, "normal,no-proc-macro"))

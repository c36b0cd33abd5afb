#!/usr/bin/env python3
"""Prints how a release was made: provenance.py SOURCE FILES PROFILE COMMIT LOCK

SOURCE and FILES are the release's source.txt and files.txt; LOCK lists the packages of Debian in the image. Prints an
in-toto Statement v1 with SLSA's provenance v1, without signature: the release log signs what is in those two files.

It tells nothing about the machine or the time, so everybody who repeats the build gets the same bytes.
"""

import json
import os
import pathlib
import sys


def main():
    source, files, profile, commit, lock = sys.argv[1:]
    source = dict(line.split(" ", 1) for line in pathlib.Path(source).read_text().splitlines())
    subjects = []
    for line in pathlib.Path(files).read_text().splitlines():
        _, digest, _, name = line.split(" ")
        subjects.append({"name": name, "digest": {"sha256": digest}})

    inputs = [{"name": "source", "digest": {"gitTree": source["tree"], "gitCommit": commit}}]
    for key, name in [("lock", "Cargo.lock"), ("vendor", "vendor"), ("toolchain", "toolchain"), ("recipe", "recipe")]:
        inputs.append({"name": name, "digest": {"sha256": source[key]}})
    for line in pathlib.Path(lock).read_text().splitlines():
        digest, name = line.split()
        inputs.append({"name": name, "digest": {"sha256": digest}})

    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subjects,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:wiretight:release:1",
                "externalParameters": {
                    "version": source["version"],
                    "profile": profile,
                    "SOURCE_DATE_EPOCH": int(os.environ["SOURCE_DATE_EPOCH"]),
                },
                "resolvedDependencies": inputs,
            },
            "runDetails": {"builder": {"id": "urn:wiretight:builder:scripts/release"}},
        },
    }
    print(json.dumps(statement, indent=1))


main()

#!/usr/bin/env python3
"""Writes what the program is made of: sbom.py TARGET PROGRAM cyclonedx | sbom.py TARGET auditable

`cyclonedx` is a bill of materials in CycloneDX 1.7 (ECMA-424): the crates, and the libraries inside them that no crate
registry knows. `auditable` is the list of crates that goes into the program, in its section .dep-v0, where cargo audit,
trivy and syft find it; the format is cargo-auditable's (https://rustsec.org/schemas/cargo-auditable.json).

The same sources make the same bytes. Times are SOURCE_DATE_EPOCH.
"""

import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import tomllib
import uuid
import zlib

sys.dont_write_bytecode = True
import crates  # noqa: E402

REGISTRY = "registry+https://github.com/rust-lang/crates.io-index"
# Libraries in C: the crate, their name, where their version is, and names that databases of vulnerabilities know.
LIBRARIES = {
    "aws-lc-sys": (
        "AWS-LC",
        ("aws-lc/include/openssl/base.h", r'AWSLC_VERSION_NUMBER_STRING "([^"]+)"'),
        {"purl": "pkg:github/aws/aws-lc@v{}"},
    ),
    "libsqlite3-sys": (
        "SQLite",
        ("sqlite3/sqlite3.h", r'#define SQLITE_VERSION +"([^"]+)"'),
        {"purl": "pkg:generic/sqlite@{}", "cpe": "cpe:2.3:a:sqlite:sqlite:{}:*:*:*:*:*:*:*"},
    ),
}


def order(dependencies):
    """Packages in a fixed order, the program first."""
    program, *rest = dependencies
    return [program, *sorted(rest)]


def stored(data):
    """A zlib stream without compression (RFC 1950, 1951), so that no version of a compressor is in the program."""
    out = b"\x78\x01"
    for start in range(0, len(data), 0xFFFF):
        block = data[start : start + 0xFFFF]
        size = len(block)
        last = start + size == len(data)
        out += bytes([last]) + size.to_bytes(2, "little") + (size ^ 0xFFFF).to_bytes(2, "little") + block
    return out + zlib.adler32(data).to_bytes(4, "big")


def auditable(target):
    known, linked = crates.known(target), crates.linked(target)
    dependencies = crates.graph(target, "normal,build")
    packages = order(dependencies)
    index = {package: number for number, package in enumerate(packages)}
    entries = []
    for package in packages:
        name, version = package
        source = known[package]["source"]
        entry = {"name": name, "version": version}
        entry["source"] = "crates.io" if source == REGISTRY else source.split("+")[0] if source else "local"
        if package not in linked:
            entry["kind"] = "build"
        if dependencies[package]:
            entry["dependencies"] = sorted(index[other] for other in dependencies[package])
        if package == packages[0]:
            entry["root"] = True
        entries.append(entry)
    # Format 1: macros, and what only they use, are of the build.
    return stored(json.dumps({"packages": entries, "format": 1}, separators=(",", ":")).encode())


def reference(package, known):
    name, version = package
    return f"pkg:cargo/{name}@{version}" if known[package]["source"] == REGISTRY else f"{name}@{version}"


def component(package, known, linked, checksums):
    name, version = package
    ref = reference(package, known)
    made = {"type": "library", "bom-ref": ref, "name": name, "version": version}
    # "excluded": used by the build, and not in the program.
    made["scope"] = "required" if package in linked else "excluded"
    if package in checksums:
        made["hashes"] = [{"alg": "SHA-256", "content": checksums[package]}]
    if known[package]["license"]:
        made["licenses"] = [{"expression": known[package]["license"].replace("/", " OR ")}]
    if ref.startswith("pkg:"):
        made["purl"] = ref
    if name in LIBRARIES:
        title, (file, pattern), names = LIBRARIES[name]
        header = pathlib.Path(known[package]["manifest_path"]).parent / file
        inside = re.search(pattern, header.read_text()).group(1)
        library = {"type": "library", "bom-ref": f"{ref}#{title}", "name": title, "version": inside}
        made["components"] = [library | {key: value.format(inside) for key, value in names.items()}]
    return made


def cyclonedx(target, program):
    known, linked = crates.known(target), crates.linked(target)
    dependencies = crates.graph(target, "normal,build")
    lock = tomllib.loads((crates.ROOT / "Cargo.lock").read_text())
    checksums = {(p["name"], p["version"]): p["checksum"] for p in lock["package"] if "checksum" in p}
    packages = order(dependencies)
    digest = hashlib.sha256(pathlib.Path(program).read_bytes()).hexdigest()
    root = component(packages[0], known, linked, checksums)
    root |= {"type": "application", "hashes": [{"alg": "SHA-256", "content": digest}]}
    del root["scope"]
    rust = subprocess.run(["rustc", "-V"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()[1]
    std = {"type": "library", "bom-ref": f"std@{rust}", "name": "std", "version": rust, "scope": "required"}
    std |= {"description": "Rust's standard library", "purl": f"pkg:github/rust-lang/rust@{rust}"}
    used = {reference(p, known): sorted(reference(d, known) for d in dependencies[p]) for p in packages}
    used[root["bom-ref"]].append(std["bom-ref"])
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, 'urn:sha256:' + digest)}",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(os.environ["SOURCE_DATE_EPOCH"]))),
            "lifecycles": [{"phase": "build"}],
            "component": root,
        },
        "components": [*(component(p, known, linked, checksums) for p in packages[1:]), std],
        "dependencies": [{"ref": ref, "dependsOn": others} for ref, others in sorted(used.items())],
    }


def main():
    target, *program, kind = sys.argv[1:]
    if kind == "auditable":
        sys.stdout.buffer.write(auditable(target))
    else:
        print(json.dumps(cyclonedx(target, *program), indent=1))


main()

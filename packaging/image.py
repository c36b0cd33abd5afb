#!/usr/bin/env python3
"""Writes an OCI image: image.py BINARY VERSION COPYRIGHT OUT [DEBS]

OUT becomes an archive of an OCI image layout (https://github.com/opencontainers/image-spec), which skopeo, podman and
docker read. The image has two layers: what the program needs from Debian (the C library, CA certificates, and their
copyright files), and the program. There is no shell and no package manager. The program runs as user 65532.

The same inputs make the same bytes: entries are sorted, times are SOURCE_DATE_EPOCH, owners are numbers. The inputs are
the program and four Debian packages, which are in the folder DEBS, or else are downloaded with apt-get; their versions
are written into the image.
"""

import gzip
import hashlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import time

EPOCH = int(os.environ["SOURCE_DATE_EPOCH"])
LEVEL = int(os.environ.get("GZIP_LEVEL", "9"))
USER = 65532
# The machine of an ELF file: architecture for OCI, for Debian, and the folder of libraries in Debian.
MACHINES = {62: ("amd64", "amd64", "x86_64-linux-gnu"), 183: ("arm64", "arm64", "aarch64-linux-gnu")}
# The package of libgcc has its copyright file in another one, which this link names.
DOCUMENTS = "usr/share/doc/libgcc-s1"
# What the program needs, which `readelf -d` shows; a test runs it with nothing else.
LIBRARIES = ("libc.so.6", "libm.so.6", "libgcc_s.so.1")
FILES = {
    "etc/passwd": f"root:x:0:0:root:/root:/sbin/nologin\nwiretight:x:{USER}:{USER}:Wiretight:/var/lib/wiretight:/sbin/nologin\n",
    "etc/group": f"root:x:0:\nwiretight:x:{USER}:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}


class Layer:
    """Files, folders and links by path; folders above them are added."""

    def __init__(self):
        self.entries = {}

    def add(self, path, content=None, mode=0o755, link=None, owner=0):
        for above in reversed(pathlib.PurePosixPath(path).parents):
            if str(above) != ".":
                self.entries.setdefault(str(above), (None, 0o755, None, 0))
        self.entries[path] = (content, mode, link, owner)

    def tar(self):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for path, (content, mode, link, owner) in sorted(self.entries.items()):
                entry = tarfile.TarInfo(path)
                entry.mtime, entry.mode, entry.uid, entry.gid = EPOCH, mode, owner, owner
                if link is not None:
                    entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, link, 0o777
                elif content is None:
                    entry.type = tarfile.DIRTYPE
                else:
                    entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content or b""))
        return out.getvalue()


def download(names, folder):
    # The folder is not readable by apt's own user.
    command = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", *names]
    subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)


def read(folder):
    """What the packages contain, by path (a file's bytes, or where a link points to), and their versions."""
    contents, versions = {}, []
    for file in sorted(pathlib.Path(folder).glob("*.deb")):
        show = ["dpkg-deb", "--show", "--showformat=${Package} ${Version}", str(file)]
        versions.append(subprocess.run(show, check=True, stdout=subprocess.PIPE, text=True).stdout)
        data = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(file)], check=True, stdout=subprocess.PIPE).stdout
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for entry in archive:
                path = entry.name.removeprefix("./")
                if entry.isfile():
                    contents[path] = archive.extractfile(entry).read()
                elif entry.issym():
                    contents[path] = entry.linkname
    return contents, versions


def packages(debian, folder):
    """Those that are needed; downloads them if no folder is named."""
    if folder:
        return read(folder)
    with tempfile.TemporaryDirectory() as folder:
        download([f"libc6:{debian}", f"libgcc-s1:{debian}", "ca-certificates"], folder)
        download([f"{read(folder)[0][DOCUMENTS]}:{debian}"], folder)
        return read(folder)


def base(contents, libraries):
    layer = Layer()
    for path, text in FILES.items():
        layer.add(path, text.encode(), 0o644)
    layer.add("tmp", mode=0o1777)
    layer.add("etc/wiretight")
    layer.add("var/lib/wiretight", mode=0o700, owner=USER)
    certificates = sorted(path for path in contents if path.endswith(".crt"))
    assert len(certificates) > 50, certificates
    bundle = b"".join(contents[path].rstrip(b"\n") + b"\n" for path in certificates)
    layer.add("etc/ssl/certs/ca-certificates.crt", bundle, 0o644)
    for name in LIBRARIES:
        layer.add(f"lib/{libraries}/{name}", contents[f"lib/{libraries}/{name}"], 0o644)
    # The path of the dynamic linker is written in the program: a link, or in newer releases a file below usr.
    for path in sorted(contents):
        name = path.rsplit("/", 1)[-1]
        if name.startswith("ld-linux"):
            content = contents[path]
            if isinstance(content, str):
                layer.add(path, link=content)
            else:
                layer.add(path, content, 0o755)
    for path in contents:
        if re.fullmatch("usr/share/doc/[^/]+/copyright", path):
            layer.add(path, contents[path], 0o644)
    layer.add(DOCUMENTS, link=contents[DOCUMENTS])
    return layer


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def encoded(value):
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def main():
    binary, version, notices, out, *debs = sys.argv[1:]
    program = pathlib.Path(binary).read_bytes()
    assert program.startswith(b"\x7fELF"), f"{binary} is no ELF file"
    architecture, debian, libraries = MACHINES[int.from_bytes(program[18:20], "little")]

    contents, versions = packages(debian, *debs or [None])
    own = Layer()
    own.add("usr/bin/wiretight", program)
    own.add("usr/share/doc/wiretight/copyright", pathlib.Path(notices).read_bytes(), 0o644)
    layers = [base(contents, libraries).tar(), own.tar()]

    archive = Layer()

    def blob(kind, content):
        archive.add(f"blobs/sha256/{hashlib.sha256(content).hexdigest()}", content, 0o644)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest(content), "size": len(content)}

    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(EPOCH))
    labels = {
        "org.opencontainers.image.title": "wiretight",
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.licenses": "Apache-2.0 OR MIT",
        "wiretight.debian-packages": ", ".join(versions),
    }
    config = {
        "created": created,
        "architecture": architecture,
        "os": "linux",
        "config": {
            "User": f"{USER}:{USER}",
            "Env": ["PATH=/usr/bin"],
            "Entrypoint": ["/usr/bin/wiretight"],
            "Cmd": ["run"],
            "WorkingDir": "/var/lib/wiretight",
            "StopSignal": "SIGTERM",
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        "history": [
            {"created": created, "created_by": ", ".join(versions)},
            {"created": created, "created_by": f"wiretight {version}"},
        ],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("config.v1+json", encoded(config)),
        "layers": [blob("layer.v1.tar+gzip", gzip.compress(layer, LEVEL, mtime=0)) for layer in layers],
        "annotations": labels,
    }
    described = blob("manifest.v1+json", encoded(manifest))
    described["platform"] = {"architecture": architecture, "os": "linux"}
    described["annotations"] = {"org.opencontainers.image.ref.name": f"wiretight:{version}"}
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [described],
    }
    archive.add("index.json", encoded(index), 0o644)
    archive.add("oci-layout", encoded({"imageLayoutVersion": "1.0.0"}), 0o644)
    pathlib.Path(out).write_bytes(archive.tar())
    print(f"{described['digest']} {architecture}")


main()

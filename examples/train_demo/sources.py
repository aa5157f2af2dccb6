"""The prose: Jane Austen's six novels (public domain), read from Debian's `r-cran-janeaustenr` without R.

A .deb is an `ar` archive with a tar file in it. An .rdb file is a row of [u32 big-endian raw length][zlib stream];
each stream holds one serialized R object, here a vector of strings, one per printed line.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import tarfile
import urllib.request
import zlib
from pathlib import Path

URL = "http://deb.debian.org/debian/pool/main/r/r-cran-janeaustenr/r-cran-janeaustenr_1.0.0-1_all.deb"
SHA256 = "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95"
RDB = "./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
BLOCK = 4000  # characters: paragraphs are joined to blocks of about this size
HELD_EVERY = 40  # one block in so many is never trained on
STRSXP = 16  # R's type number for a vector of strings


def fetch(work: Path) -> bytes:
    """The package, from `work` if it is there already."""
    path = work / "janeaustenr.deb"
    if not path.exists():
        with urllib.request.urlopen(URL, timeout=60) as reply:
            path.write_bytes(reply.read())
    package = path.read_bytes()
    found = hashlib.sha256(package).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{path}: sha256 {found}, expected {SHA256}; remove the file, or fetch {URL}")
    return package


def unpack(package: bytes, name: str) -> bytes:
    """One file of a .deb. An ar member: name 16, ..., size 10 at 48, 60 bytes of header in all, padded to even."""
    at = len(b"!<arch>\n")
    while at < len(package):
        member, size = package[at : at + 16].strip(), int(package[at + 48 : at + 58])
        at += 60
        if member.startswith(b"data.tar"):
            with tarfile.open(fileobj=io.BytesIO(package[at : at + size])) as tar:
                file = tar.extractfile(name)
                assert file is not None, f"{name} is not a file"
                return file.read()
        at += size + size % 2
    raise SystemExit(f"no data.tar in the package, wanted {name}")


def novels(rdb: bytes) -> list[str]:
    texts, at = [], 0
    while at < len(rdb):
        inflate = zlib.decompressobj()
        obj = inflate.decompress(rdb[at + 4 :])
        at = len(rdb) - len(inflate.unused_data)
        if len(obj) > 100_000:  # the rest is an index
            texts.append("\n".join(strings(obj)))
    return texts


def strings(obj: bytes) -> list[str]:
    at = obj.index(b"UTF-8") + 5  # the header ends with the native encoding's name
    flags, count = struct.unpack_from(">II", obj, at)
    assert flags & 0xFF == STRSXP, f"R type {flags & 0xFF}, expected a vector of strings"
    at += 8
    lines = []
    for _ in range(count):
        length = max(struct.unpack_from(">i", obj, at + 4)[0], 0)  # -1 is NA
        at += 8
        lines.append(obj[at : at + length].decode("latin1"))
        at += length
    return lines


def paragraphs(text: str) -> list[str]:
    out = []
    for part in re.split(r"\n\s*\n", text.replace("_", "").replace("--", " - ")):
        part = re.sub(r"\s+", " ", part).strip()
        if len(part) > 60:
            out.append(part)
    return out


def blocks(parts: list[str]) -> list[str]:
    out, block = [], ""
    for part in parts:
        if block and len(block) + len(part) > BLOCK:
            out.append(block)
            block = ""
        block += ("\n\n" if block else "") + part
    return [*out, block]


def prose(work: Path) -> tuple[list[str], list[str]]:
    """(training blocks, held-out blocks)"""
    train, held = [], []
    for novel in novels(unpack(fetch(work), RDB)):
        for i, block in enumerate(blocks(paragraphs(novel))):
            (held if i % HELD_EVERY == HELD_EVERY // 2 else train).append(block)
    return train, held

"""GGUF files written byte by byte, so that tests can write what no writer would."""

import struct
from pathlib import Path

U32_KIND, STRING_KIND, ARRAY_KIND = 4, 8, 9


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return u64(len(data)) + data


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return string(name) + u32(kind) + value


def array(kind: int, count: int, values: bytes) -> bytes:
    return u32(kind) + u64(count) + values


def tensor(name: str | bytes, extents: tuple[int, ...], type: int, offset: int) -> bytes:
    """`extents` in the order of the file: the row first."""
    return string(name) + u32(len(extents)) + b"".join(map(u64, extents)) + u32(type) + u64(offset)


def header(keys: list[bytes], tensors: list[bytes], version: int = 3, alignment: int = 32) -> bytes:
    head = b"GGUF" + u32(version) + u64(len(tensors)) + u64(len(keys)) + b"".join(keys + tensors)
    return head + b"\0" * (-len(head) % alignment)


ARCHITECTURE = key("general.architecture", STRING_KIND, string("deepseek2"))
TENSORS = [tensor("first", (8, 2), 0, 0), tensor("second", (32, 3), 8, 64)]  # 64 bytes of F32, 102 of Q8_0
DATA = bytes(range(64)) + bytes(102)


def write(folder: Path, content: bytes, name: str = "model.gguf") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path

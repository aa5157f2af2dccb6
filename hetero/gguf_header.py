"""The header of one GGUF file: metadata and the list of tensors, read from the mapped bytes.

    "GGUF", version u32, tensors u64, keys u64                              little-endian throughout
    per key:     name, value type u32, value                                string = length u64, UTF-8 bytes
    per tensor:  name, dimensions u32, extent u64 each, type u32, offset u64
    padding to `general.alignment`, then the data; offsets count from there

The file may be damaged or hostile: every count and length is checked against the bytes that are left before
anything is allocated for it, and the whole header must fit into HEADER_LIMIT, which bounds memory and time.
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from hetero.errors import FileError, UnsupportedError
from hetero.quant_types import IK_LLAMA, QUANT, REMOVED, TYPE_BY_ID

HEADER_LIMIT = 64 << 20  # bytes; DeepSeek-V3's header has 6 MB, the largest vocabularies known need 20 MB
COUNT_LIMIT = 1 << 16  # keys, and tensors; DeepSeek-V3 has 60 and 1,086
KEY_LIMIT, NAME_LIMIT = 65_535, 255  # bytes of a key and of a tensor's name
KEY_LEAST, TENSOR_LEAST = 14, 33  # bytes of the shortest key with its value, and of the shortest tensor info
VERSIONS = (2, 3)  # 3 differs from 2 only in allowing big-endian files
ALIGNMENT = 32
DAMAGED = "download the file again and compare its size or checksum with the source"

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
STRING, ARRAY, BOOL = 8, 9, 7
SCALAR_CODES = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
SCALARS = {number: np.dtype(code) for number, code in SCALAR_CODES.items()}
OTHER_FORMATS = {  # by their first bytes
    b"<!": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a Git LFS pointer, not the file it stands for",
    b"PK": "a PyTorch or zip archive",
    b"lmgg": "a GGML file from before GGUF",
    b"tjgg": "a GGJT file from before GGUF",
    b"fmgg": "a GGMF file from before GGUF",
    b"\x1f\x8b": "a gzip archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
}


@dataclass(frozen=True)
class TensorInfo:
    name: str
    shape: tuple[int, ...]  # numpy order: the last axis is a row
    type: str
    offset: int  # bytes from the start of the data
    nbytes: int


@dataclass(frozen=True)
class Header:
    metadata: dict[str, Any]
    tensors: list[TensorInfo]
    data_start: int  # bytes from the start of the file


def read_header(data: mmap.mmap, path: Path) -> Header:
    cursor = Cursor(data, path)
    tensor_count, key_count = _read_preamble(cursor)
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.name("a metadata key", KEY_LIMIT)
        if key in metadata:
            cursor.fail(f"the metadata key {key!r:.80} stands twice")
        metadata[key] = _read_value(cursor, key)
    alignment = _alignment(cursor, metadata)
    tensors = [_read_tensor_info(cursor) for _ in range(tensor_count)]
    data_start = (cursor.at + alignment - 1) // alignment * alignment
    _check_layout(cursor, tensors, data_start, alignment)
    return Header(metadata, tensors, data_start)


class Cursor:
    """A position in the header that never moves past its end."""

    def __init__(self, data: mmap.mmap, path: Path):
        self.data, self.path, self.at = data, path, 0
        self.size = len(data)
        self.end = min(self.size, HEADER_LIMIT)

    def fail(self, found: str, limit: str = "", remedy: str = DAMAGED) -> NoReturn:
        raise FileError(f"{self.path}: {found}", limit, remedy)

    def take(self, count: int, what: str) -> int:
        """Start of the next `count` bytes, which are then behind the cursor."""
        start = self.at
        if count > self.end - start:
            self.overrun(count, what)
        self.at = start + count
        return start

    def overrun(self, count: int, what: str) -> NoReturn:
        needs = f"{what} at byte {self.at:,} needs {count:,} bytes or more"
        if self.at + count > self.size:
            self.fail(
                f"the header is cut off or damaged: {needs}", f"the file ends at byte {self.size:,}", self.remedy()
            )
        self.fail(f"the header is too long: {needs}", f"a header may have {HEADER_LIMIT:,} bytes")

    def remedy(self) -> str:
        if ".part" in self.path.name:
            prefix = self.path.name.split(".part")[0]
            return f"join the parts first: cat {prefix}.part* > {prefix.removesuffix('.gguf')}.gguf"
        return DAMAGED

    def u32(self, what: str) -> int:
        return int(U32.unpack_from(self.data, self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(U64.unpack_from(self.data, self.take(8, what))[0])

    def count(self, what: str, limit: int = COUNT_LIMIT) -> int:
        count = self.u64(what)
        if count > limit:
            self.fail(f"{what} is {count:,}", f"at most {limit:,}")
        return count

    def name(self, what: str, limit: int) -> str:
        length = self.count(f"the length of {what}", limit)
        start = self.take(length, what)
        try:
            name = self.data[start : self.at].decode()
        except UnicodeDecodeError:
            self.fail(f"{what} at byte {start:,} is not UTF-8")
        if not name or not name.isprintable():  # a NUL hides the rest, an escape sequence would reach the terminal
            self.fail(f"{what} at byte {start:,} is {name[:80]!r}", "names are printable characters")
        return name

    def strings(self, count: int, what: str) -> list[str]:
        if count > (self.end - self.at) // 8:
            self.overrun(8 * count, f"{what} with {count:,} strings")
        data, end, at, length_at = self.data, self.end, self.at, U64.unpack_from
        strings: list[str] = []
        append = strings.append
        try:
            for _ in range(count):  # the hot loop of opening a file: 257,000 rounds for DeepSeek-V3
                start = at + 8
                at = start if start > end else start + length_at(data, at)[0]
                if at > end:
                    break
                append(data[start:at].decode())
        except UnicodeDecodeError:
            self.fail(f"{what} has a string that is not UTF-8, number {len(strings):,}")
        if len(strings) < count:
            self.overrun(at - self.at, what)
        self.at = at
        return strings


def _read_preamble(cursor: Cursor) -> tuple[int, int]:
    start = cursor.data[:32]
    if not start.startswith(b"GGUF"):
        kinds = [kind for prefix, kind in OTHER_FORMATS.items() if start.startswith(prefix)]
        kinds += ["a safetensors file"] if start[8:9] == b"{" else []
        found = f"it is {kinds[0]}" if kinds else f"its first bytes are {start[:4]!r}"
        cursor.fail(f"not a GGUF file: {found}", "", "give the path of a .gguf file (the first, if it was split)")
    cursor.take(4, "the magic")
    version = cursor.u32("the version")
    if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
        remedy = "take the little-endian file, or convert this one with `gguf-convert-endian FILE little`"
        cursor.fail("a big-endian GGUF file", "only little-endian is read", remedy)
    if version not in VERSIONS:
        remedy = (
            "convert the model again with a current llama.cpp" if version < 2 else "update hetero, or check the file"
        )
        cursor.fail(f"GGUF version {version:,}", "versions 2 and 3 are read", remedy)
    tensors, keys = cursor.count("the number of tensors"), cursor.count("the number of metadata keys")
    least = tensors * TENSOR_LEAST + keys * KEY_LEAST
    if least > cursor.end - cursor.at:
        cursor.overrun(least, f"{tensors:,} tensors and {keys:,} metadata keys")
    return tensors, keys


def _read_value(cursor: Cursor, key: str) -> Any:
    what = f"the value of {key!r:.80}"
    kind = cursor.u32(what)
    if kind == STRING:
        return cursor.strings(1, what)[0]
    if kind == BOOL:
        return cursor.data[cursor.take(1, what)] != 0
    if kind in SCALARS:
        dtype = SCALARS[kind]
        return np.frombuffer(cursor.data, dtype, 1, cursor.take(dtype.itemsize, what))[0].item()
    if kind == ARRAY:
        return _read_array(cursor, what)
    cursor.fail(f"{what} has the unknown value type {kind:,}", "types 0 to 12 exist")


def _read_array(cursor: Cursor, what: str) -> list[str] | np.ndarray:
    kind = cursor.u32(what)
    count = cursor.count(f"the length of {what}", HEADER_LIMIT)
    if kind == STRING:
        return cursor.strings(count, what)
    if kind == ARRAY:
        cursor.fail(f"{what} is an array of arrays", "arrays hold numbers or strings", "convert the model again")
    if kind not in SCALARS and kind != BOOL:
        cursor.fail(f"{what} has the unknown element type {kind:,}", "types 0 to 12 exist")
    dtype = SCALARS.get(kind, np.dtype("u1"))
    start = cursor.take(count * dtype.itemsize, what)
    array = np.frombuffer(cursor.data[start : cursor.at], dtype)  # a copy: it must not keep the file mapped
    return array != 0 if kind == BOOL else array


def _alignment(cursor: Cursor, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        cursor.fail(f"general.alignment is {alignment!r:.80}", "a power of two from 8 to 65,536")
    return alignment


def _read_tensor_info(cursor: Cursor) -> TensorInfo:
    name = cursor.name("a tensor's name", NAME_LIMIT)
    what = f"the tensor {name!r}"
    dimensions = cursor.u32(what)
    if not 1 <= dimensions <= 4:
        cursor.fail(f"{what} has {dimensions:,} dimensions", "1 to 4")
    shape = tuple(cursor.u64(what) for _ in range(dimensions))[::-1]
    if not all(0 < extent < 1 << 63 for extent in shape):
        cursor.fail(f"{what} has the shape {shape}", "extents are positive and below 2^63")
    kind = _type_name(cursor, cursor.u32(what), what)
    _, block_values, block_bytes = QUANT[kind]
    if shape[-1] % block_values:
        cursor.fail(f"{what} has rows of {shape[-1]:,} values", f"{kind} rows are multiples of {block_values}")
    return TensorInfo(name, shape, kind, cursor.u64(what), prod(shape) // block_values * block_bytes)


def _type_name(cursor: Cursor, number: int, what: str) -> str:
    if number in TYPE_BY_ID:
        return TYPE_BY_ID[number]
    if number in IK_LLAMA:
        found = f"{cursor.path}: {what} has the quantization type {IK_LLAMA[number]}, which only ik_llama.cpp writes"
    elif number in REMOVED:
        found = f"{cursor.path}: {what} has the quantization type {REMOVED[number]}, which llama.cpp has removed"
    else:
        cursor.fail(
            f"{what} has the unknown type {number:,}",
            f"types up to {max(TYPE_BY_ID)} are known",
            "the file is damaged, or newer than this version of hetero",
        )
    remedy = "take a file quantized by llama.cpp (for example Q4_K_M), or requantize the original with llama-quantize"
    raise UnsupportedError(found, "", remedy)


def _check_layout(cursor: Cursor, tensors: list[TensorInfo], data_start: int, alignment: int) -> None:
    """Every tensor lies aligned inside the file, and no two share a byte."""
    end, before = data_start, "the header"
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        start = data_start + tensor.offset
        if tensor.offset % alignment:
            cursor.fail(f"the tensor {tensor.name!r} starts at offset {tensor.offset:,}", f"a multiple of {alignment}")
        if start < end:
            cursor.fail(f"the tensors {before!r} and {tensor.name!r} overlap")
        end, before = start + tensor.nbytes, tensor.name
        if end > cursor.size:
            cursor.fail(
                f"the data is cut off or damaged: the tensor {tensor.name!r} ends at byte {end:,}",
                f"the file ends at byte {cursor.size:,}",
                cursor.remedy(),
            )

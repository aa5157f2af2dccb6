"""GGUF files: memory-mapped, split or whole; metadata and zero-copy views of the tensors."""

import mmap
import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hetero.errors import FileError
from hetero.gguf_header import DAMAGED, Header, read_header
from hetero.quant_types import QUANT

__all__ = ["QUANT", "GGUFFile", "Tensor", "open_gguf"]

SPLIT_NAME = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
SPLIT_LIMIT = 1024  # files; DeepSeek-V3 in BF16 comes as 30


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]  # numpy order: [experts, rows, columns], the last axis is a row
    type: str  # a key of QUANT
    # uint8: [*shape[:-1], bytes of a row], a read-only view of the mapped file; or, put elsewhere in the layout "x16"
    # of cpu_kernels.Matrix, [matrices, groups of 16 rows, 16 x bytes of a row]
    data: np.ndarray = field(repr=False, compare=False)
    layout: str = "gguf"
    file: int = 0  # index in GGUFFile.paths
    offset: int = 0  # of its first byte in that file
    path: Path | None = None  # of the mapped file that `data` is a view of; None: it is in memory

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


class GGUFFile:
    """One model: the metadata of its first file and the tensors of all its files, in file order."""

    def __init__(
        self,
        paths: tuple[Path, ...],
        metadata: dict[str, Any],
        tensors: dict[str, Tensor],
        nbytes: int,
        status: tuple[os.stat_result, ...] = (),
    ):
        self.paths, self.metadata, self.tensors, self.nbytes = paths, metadata, tensors, nbytes
        self.status = status  # of each file when it was mapped

    @contextmanager
    def descriptors(self) -> Iterator[list[int]]:
        """The files, open for reading. FileError where one is gone, or not the one that was mapped."""
        with ExitStack() as stack:
            found = []
            for path, status in zip(self.paths, self.status, strict=True):
                try:
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise FileError(f"cannot open {path}: {error.strerror}", "it could be opened before") from error
                stack.callback(os.close, descriptor)
                if identity(os.fstat(descriptor)) != identity(status):
                    raise FileError(f"{path} was changed while it was loaded", "", "wait until it is complete")
                found.append(descriptor)
            yield found

    def close(self) -> None:
        """Forget the tensors; a file is unmapped when the last view of it is gone."""
        self.tensors = {}

    def __enter__(self) -> "GGUFFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def open_gguf(path: str | Path) -> GGUFFile:
    """Open a model; of a split one `path` is the first file and the others lie beside it."""
    first = Path(path)
    header, data, status = _map(first)
    paths = _split_paths(first, header.metadata)
    tensors: dict[str, Tensor] = {}
    _add_tensors(tensors, header, data, first, 0)
    nbytes, statuses = data.nbytes, [status]
    for number, other in enumerate(paths[1:], start=1):
        other_header, data, status = _map(other)
        _check_split(header.metadata, other_header.metadata, number, other)
        _add_tensors(tensors, other_header, data, other, number)
        nbytes += data.nbytes
        statuses.append(status)
    promised = header.metadata.get("split.tensors.count", len(tensors))
    if len(paths) > 1 and promised != len(tensors):
        raise FileError(
            f"{first}: the split files hold {len(tensors):,} tensors", f"split.tensors.count says {promised:,}", DAMAGED
        )
    return GGUFFile(paths, header.metadata, tensors, nbytes, tuple(statuses))


def _map(path: Path) -> tuple[Header, np.ndarray, os.stat_result]:
    """Header, bytes (uint8, read-only) and status of one file."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would hang, a device has no end
            raise FileError(f"{path} is not a regular file", "", "give the path of a .gguf file")
        if status.st_size == 0:
            raise FileError(f"{path} is empty", "", DAMAGED)
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or emptied since the stat
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise FileError(f"cannot open {path}: {reason}", "", "check the path and its permissions") from error
    header = read_header(mapped, path)
    return header, np.frombuffer(mapped, np.uint8), status


def _add_tensors(tensors: dict[str, Tensor], header: Header, data: np.ndarray, path: Path, number: int) -> None:
    for info in header.tensors:
        if info.name in tensors:
            raise FileError(f"{path}: the tensor {info.name!r} stands twice", "", DAMAGED)
        start = header.data_start + info.offset
        rows = data[start : start + info.nbytes].reshape(*info.shape[:-1], -1)
        tensors[info.name] = Tensor(info.name, info.shape, info.type, rows, file=number, offset=start, path=path)


def _split_paths(first: Path, metadata: dict[str, Any]) -> tuple[Path, ...]:
    """All files of the model `first` belongs to, in order; refuses any but the first one of a split model."""
    count = metadata.get("split.count", 0)
    if type(count) is not int or not 0 <= count <= SPLIT_LIMIT:
        raise FileError(f"{first}: split.count is {count!r:.80}", f"0 to {SPLIT_LIMIT:,}", DAMAGED)
    if count <= 1:
        return (first,)
    name = SPLIT_NAME.fullmatch(first.name)
    number = metadata.get("split.no", 0)
    if name is None or int(name["count"]) != count or int(name["number"]) - 1 != number:
        raise FileError(
            f"{first} is file {number} of a model split into {count}, counted from 0",
            f"its name must end in -{number + 1 if type(number) is int else 1:05}-of-{count:05}.gguf",
            "give the files the names they were published under",
        )
    paths = tuple(first.with_name(f"{name['prefix']}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1))
    if number != 0:
        raise FileError(
            f"{first} is file {number + 1} of a model split into {count}", "", f"give the first: {paths[0]}"
        )
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise FileError(
            f"{shown} missing in {first.parent}",
            f"the model is split into {count} files",
            "download the missing files into the same folder",
        )
    return paths


def _check_split(first: dict[str, Any], other: dict[str, Any], number: int, path: Path) -> None:
    """A later file must be the one its name says, of the same model."""
    expected = {"split.no": number, "split.count": first["split.count"]}
    if "split.tensors.count" in first:
        expected["split.tensors.count"] = first["split.tensors.count"]
    for key in ("general.architecture", "general.name"):
        if key in other:
            expected[key] = first.get(key)
    for key, value in expected.items():
        if other.get(key) != value:
            raise FileError(
                f"{path}: {key} is {other.get(key)!r:.80}",
                f"{value!r:.80} expected: the file belongs to another model or place",
                "download all files of the model from one place",
            )

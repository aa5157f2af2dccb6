"""An arena kept in a file beside the model: the weights as the kernels like them, memory-mapped at the next start.

    MAGIC, JSON, zeros; at HEADER_BYTES the arena
The JSON says what the arena was made from (by a hash over name, size, time and header of each file of the model) and
how it is laid out; a file that says otherwise is made again. It appears under its name only when it is complete: until
then it is NAME.part, which is locked.
"""

import fcntl
import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hetero.arena import Slot, arena_bytes
from hetero.errors import ResourceError
from hetero.gguf import GGUFFile
from hetero.sizes import format_size

MAGIC = b"hetero weights\n\0"
LAYOUT_VERSION = 1  # of the arena and of x16 (cpu_kernels/x16.py): a change there needs a new number here
HEADER_BYTES = 4096
SYNC_BYTES = 256 << 20


class Busy(Exception):
    """Another process is writing the file."""


class WeightsCache:
    """The file in `directory` for this model. `problem`: why a file that is there cannot be used; "" without one."""

    def __init__(self, directory: str, file: GGUFFile, slots: list[Slot]):
        self.directory, self.slots = Path(directory), slots
        self.header = _header(file, slots)
        key = hashlib.sha256(self.header).hexdigest()[:16]
        self.path = self.directory / f"{file.paths[0].stem}-{key}.x16"
        self.nbytes = HEADER_BYTES + arena_bytes(slots)
        self.problem = ""

    def map(self) -> np.ndarray | None:
        """The arena, read-only, uint8; None where there is no file that can be used."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.problem = error.strerror or str(error)
            return None
        try:
            self.problem = self._check(descriptor)
            return None if self.problem else _arena(mmap.mmap(descriptor, self.nbytes, prot=mmap.PROT_READ))
        finally:
            os.close(descriptor)

    def _check(self, descriptor: int) -> str:
        status = os.fstat(descriptor)
        if status.st_uid not in (os.geteuid(), 0):
            return "it belongs to another user"
        if status.st_size != self.nbytes:
            return f"it has {status.st_size:,} bytes instead of {self.nbytes:,}"
        try:
            found = os.pread(descriptor, HEADER_BYTES, 0)
        except OSError as error:  # a directory of that name
            return error.strerror or str(error)
        return "" if found == self.header else "it is damaged, or was made from something else"

    def write(self, fill: Callable[[np.ndarray], Any]) -> np.ndarray:
        """Makes the file: `fill(arena)` iterates while it fills it. Busy, ResourceError: nothing is left behind."""
        part = self.path.with_name(self.path.name + ".part")
        descriptor = self._claim(part)
        try:
            self._make_room(descriptor)
            mapped = mmap.mmap(descriptor, self.nbytes)
            synced = 0
            for done in fill(_arena(mapped)):
                if done - synced >= SYNC_BYTES:
                    os.fdatasync(descriptor)  # in between, so that progress is that of the disk
                    synced = done
            os.fdatasync(descriptor)
            os.pwrite(descriptor, self.header, 0)
            os.fsync(descriptor)
            os.replace(part, self.path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise self._refused(error) from error
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        arena = self.map()
        if arena is None:
            raise ResourceError(f"{self.path} cannot be read back: {self.problem or 'it is gone'}", "", _REMEDY)
        return arena

    def _claim(self, part: Path) -> int:
        """The .part file, new or left behind by a process that died, locked."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(part, flags, 0o600)
        except OSError as error:
            raise self._refused(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not part.exists() or not os.path.samestat(os.fstat(descriptor), part.stat()):
                raise BlockingIOError  # who held the lock has just finished: this is not the .part any more
            os.ftruncate(descriptor, 0)
        except BlockingIOError:
            os.close(descriptor)
            raise Busy from None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _make_room(self, descriptor: int) -> None:
        """All blocks at once: a full disk is met here, not by a fault in the middle of a kernel."""
        free = shutil.disk_usage(self.directory).free
        if free < self.nbytes:
            found = f"the rearranged weights need {format_size(self.nbytes)} in {self.directory}"
            raise ResourceError(found, f"{format_size(free)} are free there", _REMEDY)
        os.posix_fallocate(descriptor, 0, self.nbytes)

    def _refused(self, error: OSError) -> ResourceError:
        return ResourceError(f"cannot write {self.path}: {error.strerror or error}", "", _REMEDY)


_REMEDY = "name another directory with --weights-cache, or leave it out"


def _arena(mapped: mmap.mmap) -> np.ndarray:
    return np.frombuffer(mapped, np.uint8)[HEADER_BYTES:]


def _header(file: GGUFFile, slots: list[Slot]) -> bytes:
    """HEADER_BYTES: how this model's file begins."""
    digest = hashlib.sha256()
    for path, status in zip(file.paths, file.status, strict=True):
        digest.update(repr((path.name, status.st_size, status.st_mtime_ns)).encode())
    with file.descriptors() as descriptors:
        for number, descriptor in enumerate(descriptors):
            offsets = [tensor.offset for tensor in file.tensors.values() if tensor.file == number]
            digest.update(os.pread(descriptor, min(offsets, default=0), 0))
    for slot in slots:
        digest.update(repr((slot.name, slot.tensor.type, slot.layout, slot.start, slot.shape)).encode())
        if slot.experts is not None:
            digest.update(repr(slot.experts).encode())
    facts = {"layout_version": LAYOUT_VERSION, "bytes": arena_bytes(slots), "sha256": digest.hexdigest()}
    return (MAGIC + json.dumps(facts).encode()).ljust(HEADER_BYTES, b"\0")

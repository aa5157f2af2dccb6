"""One kernel compiled for one combination of types and constants, loaded, and ready to launch.

The launch ABI of Triton's cubins, for 3.6 and 3.7: the kernel's parameters in order (constexprs left out), naturally
aligned, then pointers to scratch memory that the version appends whether or not the kernel wants any. What is passed is
checked against the parameter list of the PTX, so that another version's ABI is an error and not a wild pointer.
"""

import ctypes
import re
import struct
from collections.abc import Sequence
from threading import Lock
from typing import Any

from .driver import DYNAMIC_SHARED_BYTES, INVALID_CONTEXT, SHARED_CARVEOUT, STATIC_SHARED_BYTES, Driver
from .errors import GpuError

_ORDINARY_SHARED_BYTES = 48 * 1024  # more has to be asked for

# Triton's name of a scalar -> struct's letter. Pointers ("*fp32") are Q.
_LETTERS = {"i1": "?", "i32": "i", "i64": "q", "fp32": "f"}
_PTX_BYTES = {"u8": 1, "s8": 1, "b8": 1, "b16": 2, "b32": 4, "u32": 4, "s32": 4, "f32": 4, "b64": 8, "u64": 8, "s64": 8}
_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\((.*?)\)", re.DOTALL)
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)")


def letters(types: Sequence[str]) -> str:
    """struct's letters of parameters of these types."""
    return "".join("Q" if type.startswith("*") else _LETTERS[type] for type in types)


def scratch_pointers(name: str, ptx: str, passed: str) -> int:
    """How many pointers the PTX of `name` expects after the parameters with the letters `passed`."""
    found = _ENTRY.search(ptx)
    declared = [] if found is None else _PARAMETER.findall(found[2])
    sizes = [_PTX_BYTES.get(type, 0) for type in declared]
    ours = [struct.calcsize(letter) for letter in passed]
    rest = sizes[len(ours) :]
    if found is None or found[1] != name or sizes[: len(ours)] != ours or rest not in ([], [8], [8, 8]):
        raise GpuError(
            f"{name} declares the parameters {declared or 'none'}",
            f"{len(ours)} of {ours} bytes and at most two pointers to scratch memory are known here",
            "use Triton 3.6 or 3.7",
        )
    return len(rest)


def check_metadata(name: str, metadata: Any, shared_limit: int) -> None:
    """Refuse what this launcher does not do, and more shared memory than the GPU has."""
    wanted = {
        field: getattr(metadata, field, 0)
        for field in ("launch_cooperative_grid", "launch_pdl", "global_scratch_size", "profile_scratch_size")
    }
    wanted["num_ctas"] = metadata.num_ctas - 1
    if any(wanted.values()):
        raise GpuError(f"{name} was compiled with {wanted}", "a launch here provides none of these", "report it")
    if metadata.shared > shared_limit:
        found = f"{name} needs {metadata.shared} bytes of shared memory"
        raise GpuError(found, f"this GPU has {shared_limit} a block", "report it with the name of the GPU")


class Compiled:
    """A loaded kernel. `launch` writes the arguments into a block made once: a few microseconds of Python."""

    def __init__(self, driver: Driver, index: int, kernel: Any, binary: Any, types: Sequence[str], shared_limit: int):
        """`kernel`: what `jit` made; `binary`: what `compile_kernel` did of it; `types`: of what launches will pass."""
        metadata = binary.metadata
        self.kernel, self.name, self.shared = kernel, metadata.name, metadata.shared
        self.threads = 32 * metadata.num_warps
        check_metadata(self.name, metadata, shared_limit)
        passed = letters(types)
        scratch = scratch_pointers(self.name, binary.asm["ptx"], passed)
        self._driver, self._index = driver, index
        driver.use_context(index)
        self._function = driver.load_function(binary.asm["cubin"], self.name)
        self._allow_shared()
        self._lock = Lock()
        self._pack = struct.Struct("@" + passed).pack_into
        layout = passed + "Q" * scratch
        self._block = ctypes.create_string_buffer(max(1, struct.calcsize("@" + layout)))  # zeros: scratch stays null
        start = ctypes.addressof(self._block)
        # "0q" pads to the alignment of q: the offset of each parameter
        offsets = [struct.calcsize(f"@{layout[:at]}0{letter}") for at, letter in enumerate(layout)]
        self._parameters = (ctypes.c_void_p * max(1, len(offsets)))(*[start + offset for offset in offsets])

    def _allow_shared(self) -> None:
        if self.shared > _ORDINARY_SHARED_BYTES - self._driver.function_attribute(self._function, STATIC_SHARED_BYTES):
            self._driver.set_function_attribute(self._function, DYNAMIC_SHARED_BYTES, self.shared)
            self._driver.set_function_attribute(self._function, SHARED_CARVEOUT, 100)  # percent: as Triton's loader

    def launch(self, grid: tuple[int, int, int], stream: int, values: list[Any]) -> None:
        """Put the kernel into `stream`. The driver copies the arguments before it returns."""
        status = self._put(grid, stream, values)
        if status == INVALID_CONTEXT:  # a thread of Python's that has not used the GPU yet
            self._driver.use_context(self._index)
            status = self._put(grid, stream, values)
        if status:
            what = f"launch of {self.name}, grid {grid}, {self.threads} threads, {self.shared} bytes of shared memory"
            raise self._driver.error(what, status)

    def _put(self, grid: tuple[int, int, int], stream: int, values: list[Any]) -> int:
        with self._lock:
            self._pack(self._block, 0, *values)
            return self._driver.launch(
                self._function, *grid, self.threads, 1, 1, self.shared, stream, self._parameters, None
            )

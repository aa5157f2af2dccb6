"""AMX's tile instructions for CPUs that lack them: each one raises SIGILL, whose handler reads the machine code at the
interrupted address, does what Intel's manual says (Software Developer's Manual, volume 2; the checks are its causes of
#UD and #GP) and steps over it. So compiled kernels run as they are, only slower.
"""

import ctypes
import os
import platform
import signal
import sys
import threading
from typing import Any

import llvmlite.binding as llvm
import numpy as np

POSSIBLE = sys.platform == "linux" and platform.machine() == "x86_64"
FEATURES = llvm.get_host_cpu_features().flatten() + ",+amx-tile,+amx-int8"

_REGISTERS, _RIP = 40, 16  # of ucontext_t: gregs, and one of them
_ORDER = [13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7]  # rax rcx rdx rbx rsp rbp rsi rdi r8 .. r15 in gregs
_FLAGS = 0x4 | 0x40000000  # SA_SIGINFO | SA_NODEFER
_NAMES = {  # by opcode, prefix (66, F3, F2: 1, 2, 3) and whether the last operand is a register
    (0x49, 0, False): "ldtilecfg",
    (0x49, 0, True): "tilerelease",
    (0x49, 3, True): "tilezero",
    (0x4B, 3, False): "tileloadd",
    (0x4B, 2, False): "tilestored",
    (0x5E, 3, True): "tdpbssd",
    (0x5E, 2, True): "tdpbsud",
    (0x5E, 1, True): "tdpbusd",
    (0x5E, 0, True): "tdpbuud",
}
_SIGNS = {"tdpbssd": (1, 1), "tdpbsud": (1, 0), "tdpbusd": (0, 1), "tdpbuud": (0, 0)}


class _Action(ctypes.Structure):
    """struct sigaction"""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class Tiles(threading.local):
    """A thread's registers and their shapes, and the instructions on them."""

    def __init__(self) -> None:
        self.data = np.zeros((8, 16, 64), np.uint8)
        self.rows, self.row_bytes, self.configured = [0] * 8, [0] * 8, False

    def ldtilecfg(self, address: int, stride: int) -> None:
        text = ctypes.string_at(address, 64)
        assert text[0] == 1 and not any(text[1:16]) and not any(text[32:48]) and not any(text[56:]), text.hex()
        self.row_bytes = [int.from_bytes(text[16 + 2 * i : 18 + 2 * i], "little") for i in range(8)]
        self.rows = list(text[48:56])
        assert max(self.row_bytes) <= 64 and max(self.rows) <= 16, text.hex()
        self.data[:] = 0
        self.configured = True

    def tilerelease(self, *_: int) -> None:
        self._check()
        self.configured = False

    def tilezero(self, tile: int, *_: int) -> None:
        self._check(tile)
        self.data[tile] = 0

    def tileloadd(self, tile: int, address: int, stride: int) -> None:
        self._check(tile)
        self.data[tile] = 0
        for row in range(self.rows[tile]):
            text = ctypes.string_at(address + row * stride, self.row_bytes[tile])
            self.data[tile, row, : len(text)] = np.frombuffer(text, np.uint8)

    def tilestored(self, tile: int, address: int, stride: int) -> None:
        self._check(tile)
        for row in range(self.rows[tile]):
            text = self.data[tile, row, : self.row_bytes[tile]].tobytes()
            ctypes.memmove(address + row * stride, text, len(text))

    def multiply(self, name: str, sums: int, a: int, b: int) -> None:
        self._check(sums, a, b)
        assert len({sums, a, b}) == 3, "two operands are one register"
        rows, words, columns = self.rows[sums], self.rows[b], self.row_bytes[sums] // 4
        assert rows == self.rows[a] and 4 * words == self.row_bytes[a] and 4 * columns == self.row_bytes[b]
        left, right = (
            self.data[tile].view(np.int8 if signed else np.uint8).astype(np.int32).reshape(16, 16, 4)
            for tile, signed in zip((a, b), _SIGNS[name], strict=True)
        )
        product = np.einsum("mki,kni->mn", left[:rows, :words], right[:words, :columns])
        self.data[sums].view(np.int32)[:rows, :columns] += product

    def _check(self, *tiles: int) -> None:
        assert self.configured, "no tile configuration"
        assert all(self.rows[tile] and self.row_bytes[tile] for tile in tiles), f"one of {tiles} has no shape"


class SoftwareTiles:
    """Inside `with`, tile instructions run. `done`: how often each has."""

    def __init__(self) -> None:
        self.tiles = Tiles()
        self.done: dict[str, int] = {}
        self.error: Exception | None = None

    def __enter__(self) -> "SoftwareTiles":
        kind = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        self._handler, self._before = kind(self._on_signal), _Action()
        handler = ctypes.cast(self._handler, ctypes.c_void_p).value
        _install(_Action(handler=handler, flags=_FLAGS), self._before)
        return self

    def __exit__(self, *_: Any) -> None:
        _install(self._before)
        if self.error:
            raise self.error

    def _on_signal(self, number: int, information: int, context: int) -> None:
        registers = (ctypes.c_int64 * 17).from_address(context + _REGISTERS)
        try:
            name, length, operands = decoded(registers)
        except Exception as error:  # not ours: the instruction faults again
            self.error = error
            _install(self._before)
            return
        registers[_RIP] += length
        self.done[name] = self.done.get(name, 0) + 1
        try:
            if name in _SIGNS:
                self.tiles.multiply(name, *operands)
            else:
                getattr(self.tiles, name)(*operands)
        except Exception as error:
            self.error = self.error or error


def _install(action: _Action, before: _Action | None = None) -> None:
    place = ctypes.byref(before) if before else None
    assert ctypes.CDLL(None).sigaction(int(signal.SIGILL), ctypes.byref(action), place) == 0


def decoded(registers: Any) -> tuple[str, int, tuple[int, ...]]:
    """Name, length and operands of the tile instruction at the interrupted address: registers, or address and stride.

    VEX of 3 bytes | opcode | ModRM | SIB | displacement.
    """
    code = ctypes.string_at(registers[_RIP], 16)
    assert code[0] == 0xC4 and code[1] & 31 == 2 and not code[2] & 0x84, f"not a tile instruction: {code.hex()}"
    extend_index, extend_base = (0 if code[1] & bit else 8 for bit in (0x40, 0x20))
    middle, prefix = 15 - (code[2] >> 3 & 15), code[2] & 3
    mode, reg, low = code[4] >> 6, code[4] >> 3 & 7, code[4] & 7
    name = _NAMES[code[3], prefix, mode == 3]
    if mode == 3:
        return name, 5, (reg, low, middle)
    assert low == 4 or (name == "ldtilecfg" and (mode or low != 5)), "no SIB byte, or relative to the instruction"
    length, index, scale = 5, 4, 0
    if low == 4:
        length, scale, index, low = 6, code[5] >> 6, (code[5] >> 3 & 7) + extend_index, code[5] & 7
    size = {0: 4 if low == 5 else 0, 1: 1, 2: 4}[mode]
    address = int.from_bytes(code[length : length + size], "little", signed=True)
    if mode or low != 5:
        address += registers[_ORDER[low + extend_base]]
    stride = registers[_ORDER[index]] << scale if index != 4 else 0
    return name, length + size, (address + stride, 0) if name == "ldtilecfg" else (reg, address, stride)


class _Granting(ctypes.CDLL):
    """The C library, where arch_prctl always succeeds."""

    def __getattr__(self, name: str) -> Any:
        call = super().__getattr__(name)
        return (lambda number, *rest: 0 if number == 158 else call(number, *rest)) if name == "syscall" else call


def pretend() -> SoftwareTiles:
    """In a process that has not imported cpu_kernels: this CPU with AMX."""
    os.environ |= {"NUMBA_CPU_NAME": llvm.get_host_cpu_name(), "NUMBA_CPU_FEATURES": FEATURES}
    library, ctypes.CDLL = ctypes.CDLL, _Granting  # type: ignore[misc]
    from cpu_kernels import cpu, faults

    ctypes.CDLL = library  # type: ignore[misc]
    assert cpu.TILES
    faults.install()  # first: its handler passes on to the one before
    return SoftwareTiles().__enter__()

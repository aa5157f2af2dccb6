"""What happens when a job goes wrong: a signal or an exception in compiled code becomes a Python exception.

A job can fault without a mistake of ours: reading a memory-mapped model whose file was cut short raises SIGBUS. The
handler below takes a fault only in a thread that is inside `guarded`, and there jumps back to it (siglongjmp): compiled
jobs hold no lock and no memory, so nothing is left half done but their results. Every other fault goes to the handler
that was there before, by putting that one back and letting the instruction fault again.

Handler and threads meet in a table of slots, one for each thread of each pool, found by the thread's identity. It is
never freed, and compiled code knows it by a symbol: an address would be frozen into cached machine code.
"""

import ctypes
import platform
import signal
import sys
import threading
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from .atomic import (
    call_job,
    fetch_add,
    load_i32,
    load_i64,
    long_jump,
    raise_signal,
    set_action,
    set_jump,
    slots,
    store_i64,
    thread_identity,
)
from .jit import exact_kernel, handler, kernel, name_of

SLOTS, SLOT_BYTES = 2048, 512
# Offsets into a slot. RECORD: address of the pool's record. BUFFER: jmp_buf, 200 bytes on x86-64 and 312 on aarch64.
IDENTITY, ARMED, RECORD, THREAD, FUNCTION, SIGNAL, ADDRESS, BUFFER = range(0, 64, 8)
# The record of a pool: how many faults, then the first one's thread, function, signal (0: an exception) and address.
RECORD_BYTES = 40
SIGNALS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)

_ACTION_BYTES = 192  # of the previous handler of a signal, behind the slots; struct sigaction has 152
_FLAGS = 0x4 | 0x40000000 | 0x08000000  # SA_SIGINFO | SA_NODEFER | SA_ONSTACK
_SI_CODE, _SI_ADDRESS, _SI_TKILL = 8, 16, -6
_MEMORY = np.zeros(SLOTS * SLOT_BYTES + 64 * _ACTION_BYTES + 64, np.uint8)
_BEGIN = -_MEMORY.ctypes.data % 64
_TABLE = _MEMORY.ctypes.data + _BEGIN
_FIELDS = _MEMORY[_BEGIN : _BEGIN + SLOTS * SLOT_BYTES].view(np.int64).reshape(SLOTS, -1)
llvm.add_symbol("cpu_kernels_slots", _TABLE)


class WorkerFault(RuntimeError):
    """A job or entry died. `kernel`: its name; `thread`: of the pool; `signal`: its name, or None for an exception."""

    def __init__(self, kernel: str, thread: int, signal: str | None, address: int, cause: BaseException | None):
        self.kernel, self.thread, self.signal, self.address = kernel, thread, signal, address
        what = f"{signal} at address {address:#x}" if signal else f"{type(cause).__name__}: {cause}"
        if signal == "SIGBUS":
            what += " (a memory-mapped file was cut short, or its disk failed)"
        super().__init__(f"kernel {kernel} died on thread {thread} of its pool: {what}")
        self.__cause__ = cause


@kernel
def guarded(slot, function, a, b, c):
    """Call function(a, b, c), a job or an entry (which takes no c); 1 if a signal ended it, else 0.

    LLVM inlines no function that calls setjmp, so this frame is alive when the handler jumps to it.
    """
    if set_jump(slot + BUFFER) == 0:
        store_i64(slot + FUNCTION, function)
        store_i64(slot + ARMED, 1)
        call_job(function, a, b, c)
        store_i64(slot + ARMED, 0)
        return 0
    _note(slot)
    return 1


@exact_kernel("void(int64)")
def _note(slot):
    record = load_i64(slot + RECORD)
    if fetch_add(record, 1) == 0:
        store_i64(record + 8, load_i64(slot + THREAD))
        store_i64(record + 16, load_i64(slot + FUNCTION))
        store_i64(record + 24, load_i64(slot + SIGNAL))
        store_i64(record + 32, load_i64(slot + ADDRESS))


@handler
def _on_signal(number, information, context):
    code = load_i32(information + _SI_CODE)
    if code > 0 or code == _SI_TKILL:  # a fault, or a fault that another handler passes on; not kill()
        slot, me = slots(), thread_identity()
        for _ in range(SLOTS):
            if load_i64(slot + IDENTITY) == me and load_i64(slot + ARMED) != 0:
                store_i64(slot + ARMED, 0)
                store_i64(slot + SIGNAL, number)
                store_i64(slot + ADDRESS, load_i64(information + _SI_ADDRESS) if code > 0 else 0)
                long_jump(slot + BUFFER)
            slot += SLOT_BYTES
    set_action(number, slots() + SLOTS * SLOT_BYTES + number * _ACTION_BYTES)
    if code <= 0:
        raise_signal(number)


class _Action(ctypes.Structure):
    """struct sigaction of Linux's C libraries on 64-bit machines"""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_installed = False
_free_slots = list(range(SLOTS - 1, -1, -1))
_exceptions: dict[int, BaseException] = {}  # that compiled code raised, by the address of the pool's record
_report: Any = None  # the hook for unraisable exceptions before ours


def install() -> None:
    """The signal handler, once in a process, when its first pool is made."""
    global _installed
    if _installed or platform.machine() not in ("x86_64", "aarch64"):
        return
    _installed = True
    sigaction = ctypes.CDLL(None).sigaction
    for number in SIGNALS:
        action = _Action(handler=_on_signal.address, flags=_FLAGS)
        before = _TABLE + SLOTS * SLOT_BYTES + number * _ACTION_BYTES
        sigaction(int(number), ctypes.byref(action), ctypes.c_void_p(before))


def watch_exceptions() -> None:
    """Before compiled code runs: numba hands an exception in a C callback to the hook for unraisable ones."""
    global _report
    if sys.unraisablehook is not _on_exception:
        _report, sys.unraisablehook = sys.unraisablehook, _on_exception


def _on_exception(unraisable: Any) -> None:
    global _report
    mine = (_FIELDS[:, IDENTITY // 8] == threading.get_ident()) & (_FIELDS[:, ARMED // 8] != 0)
    if str(unraisable.object).startswith("<numba.") and mine.any():
        slot = int(mine.argmax())
        _exceptions.setdefault(int(_FIELDS[slot, RECORD // 8]), unraisable.exc_value)
        _note(_TABLE + slot * SLOT_BYTES)
        return
    report, _report = _report, sys.__unraisablehook__  # the hook may call us in turn
    try:
        report(unraisable)
    finally:
        _report = report


def fault(record: int) -> WorkerFault:
    """What the record of a pool says."""
    _, thread, function, number, address = (ctypes.c_int64 * 5).from_address(record)
    name = signal.Signals(number).name if number else None
    return WorkerFault(name_of(function), thread, name, address, _exceptions.pop(record, None))


def take_slot(record: int, thread: int) -> int:
    """Address of a slot for this thread of a pool."""
    if not _free_slots:
        raise RuntimeError(f"more than {SLOTS} threads of pools in this process")
    slot = _free_slots.pop()
    _FIELDS[slot] = 0
    _FIELDS[slot, [RECORD // 8, THREAD // 8]] = record, thread
    return _TABLE + slot * SLOT_BYTES


def free_slot(slot: int) -> None:
    index = (slot - _TABLE) // SLOT_BYTES
    _FIELDS[index] = 0
    _free_slots.append(index)


def forget_slots() -> None:
    """In a forked child: the threads stayed behind."""
    _FIELDS[:] = 0
    _free_slots[:] = range(SLOTS - 1, -1, -1)

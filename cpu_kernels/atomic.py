"""Atomics, raw memory and system calls as numba intrinsics: what the pool is made of. Addresses are int64.

Atomics of 64 bits are sequentially consistent: a thread that parks and one that dispatches each write, then read what
the other wrote, and one of them must see it. Those of 32 bits, acquire and release, are for words that a GPU shares:
over PCIe nothing but an aligned load or store is atomic.

The libc symbols are declared in IR and resolved from the process: a ctypes pointer would make every caller uncacheable.
"""

import platform

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_I32, _I64, _POINTER = ir.IntType(32), ir.IntType(64), ir.PointerType()
_MACHINE = platform.machine()
FUTEX = {"x86_64": 202, "aarch64": 98}.get(_MACHINE, -1)  # -1: ENOSYS, the waiter spins on


def _call(builder, name, result, *arguments):
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


@intrinsic
def load_atomic(typing, address):
    def codegen(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], _POINTER)
        return builder.load_atomic(pointer, "seq_cst", 8, typ=_I64)

    return types.int64(types.int64), codegen


@intrinsic
def store_atomic(typing, address, value):
    def codegen(context, builder, signature, arguments):
        builder.store_atomic(arguments[1], builder.inttoptr(arguments[0], _I64.as_pointer()), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def load_acquire(typing, address):
    """The int32 at `address`: what its writer stored before it is visible after."""

    def codegen(context, builder, signature, arguments):
        return builder.load_atomic(builder.inttoptr(arguments[0], _POINTER), "acquire", 4, typ=_I32)

    return types.int32(types.int64), codegen


@intrinsic
def store_release(typing, address, value):
    """The int32 at `address`: who sees it sees all that was stored before."""

    def codegen(context, builder, signature, arguments):
        builder.store_atomic(arguments[1], builder.inttoptr(arguments[0], _I32.as_pointer()), "release", 4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int32), codegen


@intrinsic
def fetch_add(typing, address, value):
    """Add to the int64 at `address`; the value before."""

    def codegen(context, builder, signature, arguments):
        return builder.atomic_rmw("add", builder.inttoptr(arguments[0], _POINTER), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def exchange(typing, address, value):
    """Store the int64 at `address`; the value before."""

    def codegen(context, builder, signature, arguments):
        return builder.atomic_rmw("xchg", builder.inttoptr(arguments[0], _POINTER), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def load_i32(typing, address):
    def codegen(context, builder, signature, arguments):
        return builder.load(builder.inttoptr(arguments[0], _POINTER), typ=_I32)

    return types.int32(types.int64), codegen


@intrinsic
def load_i64(typing, address):
    def codegen(context, builder, signature, arguments):
        return builder.load(builder.inttoptr(arguments[0], _POINTER), typ=_I64)

    return types.int64(types.int64), codegen


@intrinsic
def store_i64(typing, address, value):
    def codegen(context, builder, signature, arguments):
        builder.store(arguments[1], builder.inttoptr(arguments[0], _POINTER))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


def _caller(parameters: int):
    """A call of the native function at an address with so many int64 parameters."""

    def codegen(context, builder, signature, values):
        target = ir.FunctionType(ir.VoidType(), [_I64] * parameters)
        builder.call(builder.inttoptr(values[0], target.as_pointer()), values[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * (parameters + 1)), codegen


@intrinsic
def call_job(typing, function, arguments, thread, threads):
    return _caller(3)


@intrinsic
def call_multiply(typing, function, weights, groups, blocks, columns, x_list, y_list, y_offset):
    return _caller(7)


@intrinsic
def call_dequantize(typing, function, weights, blocks, target, stride):
    return _caller(4)


@intrinsic
def set_jump(typing, buffer):
    """sigsetjmp without the signal mask: 0, and 1 when `long_jump` comes back to it."""

    def codegen(context, builder, signature, arguments):
        target = ir.FunctionType(_I32, [_POINTER, _I32])
        function = cgutils.get_or_insert_function(builder.module, target, "__sigsetjmp")
        function.attributes.add("returns_twice")
        return builder.call(function, [builder.inttoptr(arguments[0], _POINTER), _I32(0)])

    return types.int32(types.int64), codegen


@intrinsic
def long_jump(typing, buffer):
    def codegen(context, builder, signature, arguments):
        _call(builder, "siglongjmp", ir.VoidType(), builder.inttoptr(arguments[0], _POINTER), _I32(1))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def thread_identity(typing):
    """pthread_self, which Python calls `threading.get_ident`."""
    return types.int64(), lambda context, builder, signature, arguments: _call(builder, "pthread_self", _I64)


@intrinsic
def set_action(typing, signal, action):
    """sigaction with the struct at `action`"""

    def codegen(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[1], _POINTER)
        return _call(builder, "sigaction", _I32, arguments[0], pointer, _I64(0).inttoptr(_POINTER))

    return types.int32(types.int32, types.int64), codegen


@intrinsic
def raise_signal(typing, signal):
    return types.int32(types.int32), lambda context, builder, signature, arguments: _call(
        builder, "raise", _I32, arguments[0]
    )


@intrinsic
def slots(typing):
    """Address of the table of faults.py, a symbol of this process."""

    def codegen(context, builder, signature, arguments):
        name = "cpu_kernels_slots"
        table = builder.module.globals.get(name) or ir.GlobalVariable(builder.module, ir.IntType(8), name)
        return builder.ptrtoint(table, _I64)

    return types.int64(), codegen


@intrinsic
def relax(typing):
    """Tell the core that this is a spin loop."""

    def codegen(context, builder, signature, arguments):
        if _MACHINE == "x86_64":
            _call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        elif _MACHINE == "aarch64":
            _call(builder, "llvm.aarch64.hint", ir.VoidType(), _I32(1))  # yield
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def futex(typing, address, operation, value):
    def codegen(context, builder, signature, arguments):
        zero = _I64(0)
        return _call(builder, "syscall", _I64, _I64(FUTEX), *arguments, zero, zero, zero)

    return types.int64(types.int64, types.int64, types.int64), codegen


@intrinsic
def sched_yield(typing):
    def codegen(context, builder, signature, arguments):
        return _call(builder, "sched_yield", _I32)

    return types.int32(), codegen


@intrinsic
def current_cpu(typing):
    return types.int32(), lambda context, builder, signature, arguments: _call(builder, "sched_getcpu", _I32)


def _affinity(name):
    def codegen(context, builder, signature, arguments):
        return _call(builder, name, _I32, _I32(0), arguments[1], builder.inttoptr(arguments[0], _POINTER))

    return types.int32(types.int64, types.int64), codegen


@intrinsic
def get_affinity(typing, mask, size):
    """Of the calling thread, into `size` bytes at `mask`; 0, or -1 where they are too few."""
    return _affinity("sched_getaffinity")


@intrinsic
def set_affinity(typing, mask, size):
    return _affinity("sched_setaffinity")


@intrinsic
def monotonic(typing):
    """Nanoseconds of CLOCK_MONOTONIC."""

    def codegen(context, builder, signature, arguments):
        timespec = cgutils.alloca_once(builder, ir.ArrayType(_I64, 2))
        _call(builder, "clock_gettime", _I32, _I32(1), timespec)
        seconds = builder.load(timespec, typ=_I64)
        nanoseconds = builder.load(builder.gep(timespec, [_I64(8)], source_etype=ir.IntType(8)), typ=_I64)
        return builder.add(builder.mul(seconds, _I64(1_000_000_000)), nanoseconds)

    return types.int64(), codegen

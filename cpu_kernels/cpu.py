"""What the compiler may emit: the flags that decide between kernels, once, at import."""

import ctypes
import os
import platform
import sys
from collections.abc import Callable

import llvmlite.binding as llvm

_AVX2 = frozenset({"avx2", "fma", "f16c"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512vnni"}
_TABLES = {"avx512vbmi", "avx512bitalg", "gfni"}  # codebooks in registers (formats/codebook_registers.py)
_AMX = frozenset({"amx-tile", "amx-int8"})
_DOT = frozenset({"neon", "dotprod"})
_I8MM = _DOT | {"i8mm"}
# Flags of CPUs that NUMBA_CPU_NAME may name without NUMBA_CPU_FEATURES, and of hosts whose flags LLVM cannot read
# (macOS); others are compiled for without any.
KNOWN = {
    "haswell": _AVX2,
    "znver3": _AVX2,
    "alderlake": _AVX2 | {"avxvnni"},
    "icelake-server": _AVX512 | _TABLES,
    "znver4": _AVX512 | _TABLES,
    "sapphirerapids": _AVX512 | _TABLES | _AMX,
    "neoverse-n1": _DOT,
    "neoverse-v1": _I8MM,
    "neoverse-v2": _I8MM,
    "apple-m1": _DOT,
    "apple-m2": _I8MM,
    "apple-m3": _I8MM,
    "apple-m4": _I8MM,
}


def _cpu_features() -> frozenset[str]:
    """What the compiler may emit: the host's flags, or those of the CPU that NUMBA_CPU_NAME asks to compile for."""
    name = os.environ.get("NUMBA_CPU_NAME", "")
    if not name and "NUMBA_CPU_FEATURES" not in os.environ:
        host = frozenset(flag for flag, present in llvm.get_host_cpu_features().items() if present)
        return host or KNOWN.get(llvm.get_host_cpu_name(), frozenset())
    declared = os.environ.get("NUMBA_CPU_FEATURES", "").split(",")
    return frozenset({flag[1:] for flag in declared if flag.startswith("+")} | KNOWN.get(name, frozenset()))


def has_avx2(features: frozenset[str]) -> bool:
    return features >= _AVX2


def has_vnni512(features: frozenset[str]) -> bool:
    return features >= _AVX512


def has_vnni(features: frozenset[str]) -> bool:
    """For 256 bits: of AVX-VNNI, or of AVX-512 VNNI."""
    return has_avx2(features) and ("avxvnni" in features or features >= {"avx512vnni", "avx512vl"})


def has_amx(features: frozenset[str]) -> bool:
    return has_vnni512(features) and features >= _AMX


def _system_call(number: int, *arguments: int) -> int:
    return ctypes.CDLL(None).syscall(number, *map(ctypes.c_long, arguments))


def may_use_tiles(call: Callable[..., int] = _system_call) -> bool:
    """Ask Linux (5.16 and later) to let this process use AMX's tile registers, for all its threads; whether it does.

    Its threads' contexts grow by 8 KiB when they first do: https://docs.kernel.org/arch/x86/xstate.html
    """
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    try:
        return call(arch_prctl, request_permission, tile_data) == 0
    except (OSError, AttributeError):  # a C library without `syscall`
        return False


FEATURES = _cpu_features()
# Kernels for tiles: where the flags say so, be they the CPU's or asked for, and this system lets them run. So compiling
# for another CPU by NUMBA_CPU_NAME gives code that runs here; a test names the machine itself.
TILES = has_amx(FEATURES) and may_use_tiles()
VNNI512 = has_vnni512(FEATURES)
HALF = "f16c" in FEATURES or platform.machine() in ("aarch64", "arm64")

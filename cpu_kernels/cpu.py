"""What the compiler may emit: the flags that decide between kernels, once, at import."""

import os
import platform

import llvmlite.binding as llvm

_AVX2 = {"avx2", "fma", "f16c"}
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512vnni"}
# Flags of CPUs that NUMBA_CPU_NAME may name without NUMBA_CPU_FEATURES; others are compiled for without any.
_KNOWN = {
    "haswell": _AVX2,
    "znver3": _AVX2,
    "alderlake": _AVX2 | {"avxvnni"},
    "znver4": _AVX512,
    "sapphirerapids": _AVX512,
}


def _cpu_features() -> frozenset[str]:
    """What the compiler may emit: the host's flags, or those of the CPU that NUMBA_CPU_NAME asks to compile for."""
    name = os.environ.get("NUMBA_CPU_NAME", "")
    if not name and "NUMBA_CPU_FEATURES" not in os.environ:
        return frozenset(flag for flag, present in llvm.get_host_cpu_features().items() if present)
    declared = os.environ.get("NUMBA_CPU_FEATURES", "").split(",")
    return frozenset({flag[1:] for flag in declared if flag.startswith("+")} | _KNOWN.get(name, set()))


FEATURES = _cpu_features()
AVX2 = _AVX2 <= FEATURES
VNNI512 = _AVX512 <= FEATURES
VNNI = AVX2 and ("avxvnni" in FEATURES or {"avx512vnni", "avx512vl"} <= FEATURES)
NEON_DOT = "dotprod" in FEATURES
HALF = "f16c" in FEATURES or platform.machine() == "aarch64"

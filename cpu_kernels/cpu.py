"""What the compiler may emit: the flags that decide between kernels, once, at import."""

import os
import platform

import llvmlite.binding as llvm


def _cpu_features() -> frozenset[str]:
    """What the compiler may emit: the host's flags, or those of the CPU that NUMBA_CPU_NAME asks to compile for."""
    name = os.environ.get("NUMBA_CPU_NAME", "")
    if not name and "NUMBA_CPU_FEATURES" not in os.environ:
        return frozenset(flag for flag, present in llvm.get_host_cpu_features().items() if present)
    declared = os.environ.get("NUMBA_CPU_FEATURES", "").split(",")
    avx2 = {"avx2", "fma", "f16c"}
    known = {"haswell": avx2, "znver3": avx2, "znver4": avx2 | {"avx512vnni", "avx512vl"}}
    return frozenset({flag[1:] for flag in declared if flag.startswith("+")} | known.get(name, set()))


FEATURES = _cpu_features()
AVX2 = "avx2" in FEATURES
VNNI = AVX2 and {"avx512vnni", "avx512vl"} <= FEATURES
NEON_DOT = "dotprod" in FEATURES
HALF = "f16c" in FEATURES or platform.machine() == "aarch64"

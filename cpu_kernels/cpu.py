"""What the compiler may emit: the flags that decide between kernels, once, at import."""

import os
import platform

import llvmlite.binding as llvm

_AVX2 = frozenset({"avx2", "fma", "f16c"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512vnni"}
_DOT = frozenset({"neon", "dotprod"})
_I8MM = _DOT | {"i8mm"}
# Flags of CPUs that NUMBA_CPU_NAME may name without NUMBA_CPU_FEATURES, and of hosts whose flags LLVM cannot read
# (macOS); others are compiled for without any.
KNOWN = {
    "haswell": _AVX2,
    "znver3": _AVX2,
    "alderlake": _AVX2 | {"avxvnni"},
    "znver4": _AVX512,
    "sapphirerapids": _AVX512,
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


FEATURES = _cpu_features()
VNNI512 = has_vnni512(FEATURES)
HALF = "f16c" in FEATURES or platform.machine() in ("aarch64", "arm64")

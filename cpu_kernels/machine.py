"""The machine (machines/base.py) that the kernels are emitted for, by the CPU's flags."""

from .cpu import FEATURES, TILES, has_amx, has_avx2, has_vnni, has_vnni512
from .machines.amx import Amx
from .machines.arm import NeonDot, NeonI8mm
from .machines.base import LANES as LANES
from .machines.base import Machine
from .machines.generic import Generic
from .machines.x86 import Avx2, Vnni256, Vnni512


def machine_for(features: frozenset[str], tiles: bool) -> type[Machine]:
    """`tiles`: the system lets this process use tile registers (cpu.may_use_tiles)."""
    if tiles and has_amx(features):
        return Amx
    if has_vnni512(features):
        return Vnni512
    if has_vnni(features):
        return Vnni256
    if has_avx2(features):
        return Avx2
    if "dotprod" in features:
        return NeonI8mm if "i8mm" in features else NeonDot
    return Generic


MACHINE = machine_for(FEATURES, TILES)

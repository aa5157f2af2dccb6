"""Each instruction set's kernels: chosen by flags, made of the intended instructions, their registers kept, exact.

What cannot run here is compiled for its own CPU and its assembly read; ARM's arithmetic runs with the instructions
spelled out in plain LLVM IR.
"""

import re
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir

from cpu_kernels import groups, lanes, tile, wide
from cpu_kernels.cpu import FEATURES, HALF, KNOWN, has_avx2, has_vnni
from cpu_kernels.lanes import I8, I32, Lanes, vector
from cpu_kernels.machine import machine_for
from cpu_kernels.machines import arm
from cpu_kernels.machines.amx import Amx
from cpu_kernels.machines.arm import NeonDot, NeonI8mm
from cpu_kernels.machines.generic import Generic
from cpu_kernels.machines.x86 import Avx2, Vnni256, Vnni512

from .emitted_kernels import assembly, compiled, emit, innermost_loops, interleaved, load_format, quantized
from .random_weights import random_weights, values_of

LINUX, ARM, MAC = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "arm64-apple-macosx"
# CPU: (machine, triple, its multiply, how many make one step of a column (64 products; two steps for smmla)).
TARGETS: dict[str, tuple[Any, str, str, int]] = {
    "haswell": (Avx2, LINUX, r"vpmaddubsw\s.*%ymm", 2),
    "znver4": (Vnni512, LINUX, r"vpdpbusd\s.*\{1to16\}, %zmm", 1),
    "alderlake": (Vnni256, LINUX, r"\{vex\}\s+vpdpbusd\s.*%ymm", 2),
    "sapphirerapids": (Vnni512, LINUX, r"vpdpbusd\s.*\{1to16\}, %zmm", 1),
    "neoverse-n1": (NeonDot, ARM, r"sdot\s+v\d+\.4s, v\d+\.16b", 4),
    "neoverse-v1": (NeonI8mm, ARM, r"s(dot|mmla)\s+v\d+\.4s, v\d+\.16b", 4),
    "apple-m1": (NeonDot, MAC, r"sdot\.4s", 4),
    "apple-m2": (NeonI8mm, MAC, r"s(dot|mmla)\.4s", 4),
    "x86-64": (Generic, LINUX, r"pmaddwd\s.*%xmm", 0),
    "cortex-a53": (Generic, ARM, r"smull2?\s+v", 0),
}
COMMON = ["haswell", "znver4"]  # the two kinds of PC; the others: pytest -m soak
OTHERS = [name for name in TARGETS if name not in COMMON]
QUANTIZED, FLOATS = ["Q4_K", "Q6_K", "Q8_0", "IQ4_XS"], ["F32", "BF16", "F16"]

# Vector loads and stores of the stack in the innermost loop, a block's, by columns, at most; 0 where not listed.
# With 16 registers of 32 bytes four columns' float32 totals (8) cannot stay while 8 sums are being made: they, and the
# first half of Q6_K's sums, are stored and read as operands once for each 32 values. The rest is what a block of 256
# decodes once: d, dmin and scales. 16: the loop over the 32s of a wide tile (wide.py). All of Q4_K's lie there
# by intent: 16 loads of codes, 4 of factors, 8 of totals, 8 stores of these; of the others some sums. Totals
# are set to zero by 30 stores. LLVM's register allocation decides the exact number: a tenth more is let pass.
SPILLS: dict[tuple[str, str], dict[int, int]] = {
    ("haswell", "Q4_K"): {1: 67, 2: 98, 4: 234, 16: 36},
    ("haswell", "Q6_K"): {1: 49, 2: 168, 4: 420, 16: 68},
    ("znver4", "Q6_K"): {8: 2},  # one value, stored and read
    ("haswell", "Q8_0"): {2: 2, 4: 32, 16: 48},
    ("haswell", "IQ4_XS"): {1: 101, 2: 124, 4: 259, 16: 42},
    ("alderlake", "Q4_K"): {1: 31, 2: 75, 4: 177, 16: 36},
    ("alderlake", "Q6_K"): {2: 56, 4: 287, 16: 42},
    ("alderlake", "Q8_0"): {4: 12, 16: 30},
    ("alderlake", "IQ4_XS"): {1: 59, 2: 77, 4: 153, 16: 34},
}
# On ARM a vector of 16 rows is four registers: four columns' totals take 16 of 32, their sums the rest.
ARM_SPILLS = {
    "Q4_K": {1: 40, 2: 140, 4: 300},
    "Q6_K": {1: 4, 2: 250, 4: 560},
    "Q8_0": {2: 1, 4: 24},
    "IQ4_XS": {1: 60, 2: 200, 4: 420},
}


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the emitters emit for a machine, and hands out a format; `half`: it converts float16 by an instruction."""

    def set_machine(name: str, machine: Any, half: bool) -> Any:
        form = load_format(name)  # first: this compiles its kernels and keeps them on disk, for this CPU
        monkeypatch.setattr(tile, "MACHINE", machine)
        monkeypatch.setattr(lanes, "HALF", half)
        return form

    return set_machine


def widths(machine: Any) -> list[int]:
    """Of its tiles: those of registers, and of fours of columns (wide.py)."""
    return [*machine.COLUMNS, *range(8, machine.WIDE + 1, 4)]


def spills(loop: list[str]) -> int:
    """Instructions with both a vector register and an address on the stack."""
    return sum(1 for line in loop if re.search(r"%[xyz]mm.*\(%rsp|\(%rsp.*%[xyz]mm|\b[qdv]\d.*\[sp", line))


def check_code(name: str, cpu: str, use: Any) -> None:
    machine, triple, multiply, registers = TARGETS[cpu]
    form = use(name, machine, half=cpu != "x86-64")
    allowed = ARM_SPILLS.get(name, {}) if machine in (NeonDot, NeonI8mm) else SPILLS.get((cpu, name), {})
    wide_tile = [machine.WIDE] if machine.WIDE and name not in FLOATS else []  # FLOATS: four columns after four
    for columns in [*machine.COLUMNS, *wide_tile]:
        loops = list(innermost_loops(assembly(form, columns, cpu, triple)))
        if name in FLOATS:
            fused = sum(bool(re.search(r"vfmadd\d+ps|fmla", line)) for loop in loops for line in loop)
            assert fused or machine is Generic, (columns, "no fused multiplications in the loops")
        else:
            found = sum(bool(re.search(multiply, line)) for loop in loops for line in loop)
            steps = 8 * wide.COLUMNS if columns == machine.WIDE else form.VALUES // 4 * columns
            pairs = 2 if machine is NeonI8mm and columns % 2 == 0 else 1
            assert found and found % (steps * registers // pairs or 1) == 0, (columns, found)
        most = allowed.get(columns, 0)
        if machine is not Generic:
            assert max(map(spills, loops)) <= most + most // 10, (columns, [spills(loop) for loop in loops])


@pytest.mark.parametrize("name", [*QUANTIZED, *FLOATS])
@pytest.mark.parametrize("cpu", COMMON)
def test_common_cpus_run_the_intended_instructions(name: str, cpu: str, use: Any) -> None:
    check_code(name, cpu, use)


@pytest.mark.soak
@pytest.mark.parametrize("name", [*QUANTIZED, *FLOATS])
@pytest.mark.parametrize("cpu", OTHERS)
def test_other_cpus_run_the_intended_instructions(name: str, cpu: str, use: Any) -> None:
    check_code(name, cpu, use)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q5_K", "IQ4_NL"])
def test_avx512_keeps_every_accumulator_in_a_register(name: str, use: Any) -> None:
    check_code(name, "znver4", use)


def test_smmla_halves_the_multiplications_of_paired_columns(use: Any) -> None:
    text = assembly(use("Q8_0", NeonI8mm, half=True), 4, "neoverse-v1", ARM)
    assert len(re.findall(r"\bsmmla\b", text)) == 64 and "sdot" not in text  # 8 words x 4 registers x 4 columns / 2


@pytest.mark.parametrize(
    ("cpu", "machine"), [(cpu, TARGETS[cpu][0]) for cpu in TARGETS if cpu in KNOWN] + [("znver3", Avx2)]
)
def test_flags_choose_the_machine(cpu: str, machine: Any) -> None:
    assert machine_for(KNOWN[cpu], tiles=False) is machine


def test_tiles_are_used_where_the_system_lets_them() -> None:
    assert machine_for(KNOWN["sapphirerapids"], tiles=True) is Amx
    assert machine_for(KNOWN["sapphirerapids"] - {"amx-int8"}, tiles=True) is Vnni512
    assert machine_for(KNOWN["sapphirerapids"] - {"avx512vnni"}, tiles=True) is Avx2
    assert machine_for(KNOWN["znver4"], tiles=True) is Vnni512


def test_a_missing_flag_falls_back() -> None:
    assert machine_for(frozenset(), tiles=False) is Generic
    assert machine_for(KNOWN["znver4"] - {"avx512vnni"}, tiles=False) is Avx2
    assert machine_for(KNOWN["znver4"] - {"avx512bw"}, tiles=False) is Vnni256
    assert machine_for(KNOWN["haswell"] - {"fma"}, tiles=False) is Generic
    assert machine_for(KNOWN["neoverse-v1"] - {"i8mm"}, tiles=False) is NeonDot


@pytest.mark.parametrize(
    ("columns", "expected"),
    [(40, [16, 16, 8]), (19, [16, 4]), (13, [16]), (12, [12]), (9, [12]), (5, [8]), (4, [4]), (3, [4]), (2, [2])],
)
def test_columns_are_cut_into_wide_tiles(columns: int, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WIDEST", 4), ("WIDE", 16), ("_HAS_TWO", True)):
        monkeypatch.setattr(groups, name, value)
    found = []
    while columns > 0:
        found.append(groups.tile_width.py_func(columns))
        columns -= found[-1]
    assert found == expected


def plain_arm(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """`sdot`, `smmla` and `tbl` from additions, multiplications and shuffles."""
    a, b = (Lanes(builder, value) for value in arguments[-2:])
    if ".tbl1." in name:
        out = Lanes(builder, ir.Constant(vector(I8, 16), ir.Undefined))
        for i in range(16):
            entry = builder.extract_element(a.value, builder.extract_element(b.value, I32(i)))
            out = Lanes(builder, builder.insert_element(out.value, entry, I32(i)))
        return out.value
    if ".smmla." in name:  # row r, column c at 2r + c
        a, b = a.pick([8 * r + i for r in (0, 0, 1, 1) for i in range(8)]), b.pick([*range(16), *range(16)])
    products = a.widen(I32, signed=True) * b.widen(I32, signed=True)
    while products.count > 4:
        halves = (range(0, products.count, 2), range(1, products.count, 2))
        products = products.pick(halves[0]) + products.pick(halves[1])
    return (Lanes(builder, arguments[0]) + products).value


def runnable() -> list[Any]:
    here = [Generic, NeonDot, NeonI8mm]
    return here + [m for m, has in ((Avx2, has_avx2(FEATURES)), (Vnni256, has_vnni(FEATURES))) if has]


FAST = {  # to compile; without byte instructions a block of 256 takes a minute
    Avx2: ["Q8_0", "Q4_0", "Q4_K", "Q6_K", "IQ4_XS"],
    Vnni256: ["Q8_0", "Q4_0", "Q4_K"],
}
CASES = [
    pytest.param(machine, name, marks=() if name in FAST.get(machine, ["Q8_0", "Q4_0"]) else pytest.mark.soak)
    for machine in runnable()
    for name in ("Q8_0", "Q4_0", "Q4_K", "Q6_K", "IQ4_XS", "IQ2_XS")
]


@pytest.mark.parametrize(("machine", "name"), CASES)
def test_every_machine_multiplies_exactly(machine: Any, name: str, use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each column alone against float64; and in every tile width it has the same bits, in its place only."""
    if machine in (NeonDot, NeonI8mm):
        monkeypatch.setattr(arm, "call", plain_arm)
        monkeypatch.setattr(NeonDot, "_tied", lambda self, values: list(values))
    form, rng, row_groups, values = use(name, machine, HALF), np.random.default_rng(5), 2, 768
    raw = random_weights(name, (16 * row_groups, values), rng, 0.05)
    weights = np.concatenate([interleaved(rows, form) for rows in raw.reshape(row_groups, 16, -1)])
    columns = [quantized(rng.standard_normal(values).astype(np.float32)) for _ in range(max(widths(machine)))]
    x_list = np.array([records.ctypes.data for records, _ in columns])
    exact = np.stack([x for _, x in columns]) @ values_of(raw, name).astype(np.float64).T
    alone = np.full((len(columns), 2 + len(raw)), 7, np.float32)
    for count in widths(machine):
        multiply = compiled(emit(form, count, llvm.get_process_triple()))
        y = np.full_like(alone, 7)
        y_list = np.array([row.ctypes.data for row in y])
        for c in range(0, len(columns) if count == 1 else 1):
            at = x_list[c:].ctypes.data, y_list[c:].ctypes.data
            multiply(weights.ctypes.data, row_groups, values // form.VALUES, *at, 4)
        if count == 1:
            alone = y
            np.testing.assert_allclose(y[:, 1:-1], exact, rtol=0, atol=2e-6 * np.abs(exact).max())
            assert (y[:, [0, -1]] == 7).all()
        else:
            assert y[:count].tobytes() == alone[:count].tobytes() and (y[count:] == 7).all()

"""The kernels of 16 columns in AMX's tile registers: a column's bits, the tile configuration, the permission, the code.

No CPU with AMX is needed: the tile instructions of the compiled code are carried out by a signal handler.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest

from cpu_kernels import cpu, groups, tile
from cpu_kernels.cpu import VNNI512, may_use_tiles
from cpu_kernels.machines.amx import CHUNK, STEPS, Amx, palette
from cpu_kernels.machines.generic import Generic
from cpu_kernels.machines.x86 import Vnni512

from .emitted_kernels import assembly, compiled, emit, interleaved, load_format, quantized
from .random_weights import SCALES, random_weights
from .software_amx import POSSIBLE, SoftwareTiles

FAST = ["Q4_K", "Q6_K", "Q8_0"]
FORMATS = [*FAST, *(pytest.param(name, marks=pytest.mark.soak) for name in sorted(set(SCALES) - set(FAST)))]
needs_signals = pytest.mark.skipif(not POSSIBLE, reason="the instructions are emulated on Linux on x86-64")


class PlainVnni(Generic):
    """Products as Vnni512 makes them, on any CPU."""

    SIGNED = False

    def __init__(self, builder: Any, bits: int, signed: bool):
        super().__init__(builder, bits, False)


class PlainAmx(Amx):
    """What is not done in tile registers, on any CPU."""

    lookup = Generic.lookup


ONE, SIXTEEN = (Vnni512, Amx) if VNNI512 else (PlainVnni, PlainAmx)


@pytest.fixture
def multiply(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(form: Any, columns: int) -> Any:
        monkeypatch.setattr(tile, "MACHINE", ONE if columns == 1 else SIXTEEN)
        features = "" if columns == 1 else ",+amx-tile,+amx-int8"
        return compiled(emit(form, columns, llvm.get_process_triple()), features)

    return make


def address(array: np.ndarray) -> int:
    return array.ctypes.data


@needs_signals
@pytest.mark.parametrize("name", FORMATS)
def test_sixteen_columns_have_the_bits_of_each_alone(name: str, multiply: Any) -> None:
    """Rows of one block, of a chunk, and of whole and part chunks and turns; several row groups."""
    form, rng, row_groups = load_format(name), np.random.default_rng(6), 2
    narrow, wide = multiply(form, 1), multiply(form, 16)
    for values in (form.VALUES, CHUNK, 2 * CHUNK + STEPS * 32 + form.VALUES):
        rows = [random_weights(name, (16, values), rng, 0.05) for _ in range(row_groups)]
        weights = np.concatenate([interleaved(raw, form).reshape(-1) for raw in rows])
        columns = [quantized(rng.standard_normal(values).astype(np.float32))[0] for _ in range(16)]
        columns[3].view(np.float32)[:, 8] = np.nan  # the scale
        x_list = np.array([address(column) for column in columns])
        results = []
        for _ in range(2):
            y = np.full((16, 1 + 16 * row_groups), 7, np.float32)
            results.append((y, np.array([address(row) for row in y])))
        (alone, alone_list), (together, together_list) = results
        blocks = values // form.VALUES
        for c in range(16):
            narrow(address(weights), row_groups, blocks, address(x_list[c:]), address(alone_list[c:]), 4)
        with SoftwareTiles() as tiles:
            wide(address(weights), row_groups, blocks, address(x_list), address(together_list), 4)
        assert tiles.done["tdpbssd"] == row_groups * values // 32 * form.SCALES
        assert tiles.done["ldtilecfg"] == tiles.done["tilerelease"] == 1
        assert np.isfinite(alone[:3]).all() and np.isnan(alone[3, 1:]).all() and (alone[:, 0] == 7).all()
        assert np.count_nonzero(alone[:3, 1:]) > 80
        assert together.tobytes() == alone.tobytes()


def test_the_emulated_product_is_the_manuals() -> None:
    """One product by hand, so that emulation and kernel are not wrong together."""
    rng, tiles = np.random.default_rng(7), SoftwareTiles().tiles
    configuration = np.frombuffer(palette(1), np.uint8).copy()
    a, b = rng.integers(-127, 128, (16, 32), np.int8), rng.integers(-128, 128, (8, 16, 4), np.int8)
    c, out = np.ones((16, 16), np.int32), np.zeros((16, 16), np.int32)
    tiles.ldtilecfg(address(configuration), 0)
    for register, array, stride in ((0, c, 64), (4, a, 32), (6, b, 64)):
        tiles.tileloadd(register, address(array), stride)
    tiles.multiply("tdpbssd", 0, 4, 6)
    tiles.tilestored(0, address(out), 64)
    expected = 1 + a.astype(np.int64) @ b.transpose(0, 2, 1).reshape(32, 16).astype(np.int64)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(("scales", "row_bytes", "rows"), [(1, 32, 8), (2, 16, 4)])
def test_tile_configuration(scales: int, row_bytes: int, rows: int) -> None:
    """Six registers of 16 rows (columns of activations), two of weights; the other eight do not exist."""
    text = palette(scales)
    assert len(text) == 64 and text[:16] == bytes([1] + 15 * [0])
    np.testing.assert_array_equal(np.frombuffer(text[16:48], "<u2"), 4 * [64] + 2 * [row_bytes] + 2 * [64] + 8 * [0])
    assert list(text[48:]) == 6 * [16] + 2 * [rows] + 8 * [0]


# Vector registers stored to be read back in the whole kernel (of a block's loop: 2 to 14 in 900 to 1500 instructions);
# the register allocator decides the exact number: a tenth more is let pass, and 2.
SPILLS = {"Q4_K": 11, "Q5_K": 12, "Q6_K": 17, "Q8_0": 19, "IQ4_XS": 12, "Q2_K": 29}


@pytest.mark.parametrize(
    "name",
    ["Q4_K", "Q8_0", *(pytest.param(n, marks=pytest.mark.soak) for n in sorted(SPILLS.keys() - {"Q4_K", "Q8_0"}))],
)
def test_code_for_sapphire_rapids(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    form = load_format(name)
    monkeypatch.setattr(tile, "MACHINE", Amx)
    text = assembly(form, 16, "sapphirerapids", "x86_64-unknown-linux-gnu", comments=True)
    count = {n: len(re.findall(rf"^\s+{n}\s", text, re.M)) for n in ("tdpbssd", "tilezero", "tilestored", "tileloadd")}
    assert count["tdpbssd"] >= max(STEPS, form.VALUES // 32) * form.SCALES
    assert count["tilezero"] == count["tilestored"] == count["tdpbssd"] == count["tileloadd"] // 2
    assert len(re.findall(r"^\s+ldtilecfg\s", text, re.M)) == len(re.findall(r"^\s+tilerelease\s", text, re.M)) == 1
    products = re.findall(r"tdpbssd\s+%tmm(\d), %tmm(\d), %tmm(\d)", text)  # weights, activations, sums
    assert {(w in "67", x in "45", c in "0123") for w, x, c in products} == {(True, True, True)}
    spilled = len(re.findall(r"%zmm.*64-byte (?:Folded )?Spill", text))
    assert spilled <= SPILLS[name] * 1.1 + 2, spilled


def test_the_system_is_asked_for_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    def answer(*arguments: int) -> int:
        asked.append(arguments)
        return results.pop()

    def missing(*arguments: int) -> int:
        raise AttributeError("no such function")

    monkeypatch.setattr(cpu.sys, "platform", "linux")
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    results = [-1, 0]  # refused by an old system or a container's filter
    assert may_use_tiles(answer) and not may_use_tiles(answer)
    assert asked == [(158, 0x1023, 18)] * 2
    assert not may_use_tiles(missing)
    monkeypatch.setattr(cpu.sys, "platform", "darwin")
    assert not may_use_tiles(answer) and len(asked) == 2
    assert cpu.has_amx(cpu.FEATURES) >= cpu.TILES


@pytest.mark.parametrize(
    ("widest", "columns", "expected"),
    [
        (16, 40, [16, 16, 8]),
        (16, 27, [16, 16]),
        (16, 25, [16, 16]),
        (16, 9, [16]),
        (16, 8, [8]),
        (16, 7, [8]),
        (16, 6, [4, 2]),
        (8, 40, [8] * 5),
        (8, 15, [8, 8]),
        (8, 14, [8, 4, 2]),
        (8, 3, [4]),
        (4, 9, [4, 4, 1]),
        (4, 7, [4, 4]),
        (4, 2, [2]),
    ],
)
def test_columns_are_cut_into_tiles(
    widest: int, columns: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "WIDEST", widest)
    monkeypatch.setattr(groups, "WIDE", 0)
    monkeypatch.setattr(groups, "_HAS_TWO", True)
    widths = []
    while columns > 0:
        widths.append(groups.tile_width.py_func(columns))
        columns -= widths[-1]
    assert widths == expected


@needs_signals
@pytest.mark.soak
def test_products_of_whole_matrices(tmp_path: Path) -> None:
    """The drivers, numba's compilation and the pool's threads, as on a CPU with AMX."""
    run = "from tests.software_amx import pretend; import pytest, sys; tiles = pretend(); "
    run += "code = pytest.main(sys.argv[1:]); assert tiles.done['tdpbssd'] and not tiles.error; sys.exit(code)"
    chosen = "(does_not_depend or match_float64 or overflow) and (F16 or Q8_0 or Q4_K or Q6_K or IQ2_S)"
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:faulthandler", "tests/test_formats.py", "-k", chosen]
    root = Path(__file__).parent.parent
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", run, *options]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

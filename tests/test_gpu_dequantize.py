"""Weights on the GPU as floating-point numbers: every type a file may hold, bit for bit as the gguf package has it."""

import gguf
import numpy as np
import pytest
import torch

from gpu_kernels import Device, Matrix, dequantize, twins
from gpu_kernels.dequantization import _planes_kernel, _raw_kernel
from gpu_kernels.formats import FORMATS
from gpu_kernels.raw import TYPES, load_type, raw_constants, table_of
from tests.gpu_compile import Case
from tests.random_weights import SCALES, random_weights, values_of

pytestmark = pytest.mark.interpreter

ALL = sorted(TYPES | set(FORMATS))
COLUMNS = {1: 96, 32: 96, 256: 768}  # by values of a block: three blocks of a row, where a block is a power of two
EXTREME = np.array([0x7BFF, 0xFBFF, 0x0001, 0x8001, 0x0000, 0x8000, 0x03FF, 0x0400], np.uint16)  # f16: largest to least


def columns_of(type: str) -> int:
    return COLUMNS[gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type]][0]]


def bits(values: torch.Tensor) -> np.ndarray:
    return values.numpy().view(np.uint16 if values.dtype == torch.float16 else np.uint32)


def with_extreme_scales(type: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    data = random_weights(type, shape, rng)
    if type not in SCALES:
        return data
    blocks = data.reshape(-1, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type]][1])
    chosen = rng.choice(EXTREME, len(blocks))
    for number, offset in enumerate(SCALES[type]):
        if type == "IQ1_M":
            blocks[:, offset + 1] = blocks[:, offset + 1] & 15 | (chosen >> 4 * number & 15) << 4
        else:
            blocks[:, offset : offset + 2] = rng.permutation(chosen)[:, None].view(np.uint8)
    return data


@pytest.mark.parametrize("type", ALL)
def test_every_bit_is_that_of_the_gguf_package(type: str) -> None:
    rng, device, columns = np.random.default_rng(1), Device.interpreter(), columns_of(type)
    made = [random_weights(type, (5, columns), rng, scale) for scale in (0.02, 1e-7)]  # 1e-7: subnormal in f16
    data = np.stack([*made, with_extreme_scales(type, (5, columns), rng)])
    matrix, expected = Matrix.from_gguf(device, data, type, columns), values_of(data, type)
    for verb in (dequantize, twins.dequantize):
        values = verb(device, matrix, dtype=torch.float32)
        np.testing.assert_array_equal(bits(values), expected.view(np.uint32))
        part = verb(device, matrix, (1, 4), torch.float32)
        np.testing.assert_array_equal(bits(part), expected[:, 1:4].view(np.uint32))


@pytest.mark.parametrize("type", ["Q2_K", "IQ4_NL", "Q4_K", "F32"])
def test_half_precision_rounds_once(type: str) -> None:
    rng, device, columns = np.random.default_rng(2), Device.interpreter(), columns_of(type)
    data = random_weights(type, (7, columns), rng)
    matrix = Matrix.from_gguf(device, data, type, columns)
    expected = values_of(data, type).astype(np.float16).view(np.uint16)
    for verb in (dequantize, twins.dequantize):
        np.testing.assert_array_equal(bits(verb(device, matrix)), expected)


@pytest.mark.parametrize("type", ["F32", "F16", "BF16"])
def test_rows_of_plain_numbers_may_have_any_length(type: str) -> None:
    rng, device = np.random.default_rng(3), Device.interpreter()
    data = random_weights(type, (2, 3, 37), rng)
    matrix = Matrix.from_gguf(device, data, type, 37)
    for verb in (dequantize, twins.dequantize):
        values = verb(device, matrix, (1, 3), torch.float32)
        np.testing.assert_array_equal(bits(values), values_of(data, type)[:, 1:3].view(np.uint32))


def test_no_rows_are_no_launch() -> None:
    device = Device.interpreter()
    matrix = Matrix.from_gguf(device, np.zeros((2, 4, 84), np.uint8), "Q2_K", 256)
    assert dequantize(device, matrix, (3, 3)).shape == (2, 0, 256)
    assert twins.dequantize(device, matrix, (3, 3)).shape == (2, 0, 256)


@pytest.mark.parametrize("rows", [(0, 5), (-1, 2), (3, 2)])
def test_rows_outside_the_matrix_are_refused(rows: tuple[int, int]) -> None:
    device = Device.interpreter()
    matrix = Matrix.from_gguf(device, np.zeros((4, 84), np.uint8), "Q2_K", 256)
    with pytest.raises(ValueError, match="of a matrix of 4"):
        dequantize(device, matrix, rows)
    with pytest.raises(ValueError, match="float16 and float32"):
        dequantize(device, matrix, dtype=torch.bfloat16)


def test_every_type_of_a_file_has_a_format_or_raw_kernels() -> None:
    assert not TYPES & set(FORMATS)
    assert {"Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q5_0", "Q4_0", "IQ4_XS", "F16", "BF16", "F32"} == set(FORMATS)
    for type in TYPES:
        module = load_type(type)
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type]] == (module.VALUES, module.BYTES)
    with pytest.raises(ValueError, match="TQ1_0"):
        load_type("TQ1_0")


def raw_case(type: str, dtype: str = "fp16") -> Case:
    constants = raw_constants(type)
    types = {
        "data": "*u8",
        "table": "*i8",
        "out": f"*{dtype}",
        "matrix_bytes": "i32",
        "first_byte": "i32",
        "blocks": "i32",
    }
    if table_of(type, torch.device("cpu")) is None:
        types.pop("table")
    return Case(
        f"dequantize {type} {dtype}",
        _raw_kernel,
        types,
        constants | {"TILE": 1024 // constants["VALUES"]},
        registers=64,
        contains={"STG.E.128": 1},
        long=type not in ("IQ2_XXS", "Q3_K"),
    )


def planes_case(type: str) -> Case:
    form = FORMATS[type]
    types = {"codes": "*i32", "high": "*i32", "scales": "*i32", "blocks": "*fp16", "out": "*fp16"}
    types |= {"rows": "i32", "first": "i32", "count": "i32"}
    return Case(
        f"dequantize {type}",
        _planes_kernel,
        types,
        {"S": 224, "ROWS": 8, "BS": 32} | form.constants,
        registers=64,
        contains={"LDG.E.*128": 2, "STG.E.*128": 8},
        long=type not in ("Q4_K", "Q6_K"),
    )


CASES = [*map(raw_case, sorted(TYPES)), *map(planes_case, sorted(FORMATS))]

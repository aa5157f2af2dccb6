"""The reader against the gguf package, and splits."""

import ctypes
import os
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest

from benchmarks.header import DEEPSEEK_V3, MERGES, TOKENS, write_header
from hetero.config import ModelConfig
from hetero.errors import FileError
from hetero.gguf import QUANT, open_gguf
from hetero.quant_types import IK_LLAMA, REMOVED
from hetero.tensors import check_tensors
from tests.raw_gguf import (
    ARCHITECTURE,
    ARRAY_KIND,
    DATA,
    STRING_KIND,
    TENSORS,
    U32_KIND,
    array,
    header,
    key,
    string,
    tensor,
    u32,
    write,
)


def write_all_types(path: Path) -> None:
    """Every metadata type and every tensor type the gguf package knows, with random bytes as data."""
    writer = gguf.GGUFWriter(path, "deepseek2")
    for kind, add, value in [
        ("u8", writer.add_uint8, 255), ("i8", writer.add_int8, -128), ("u16", writer.add_uint16, 65_535),
        ("i16", writer.add_int16, -32_768), ("u32", writer.add_uint32, 2**32 - 1), ("i32", writer.add_int32, -(2**31)),
        ("u64", writer.add_uint64, 2**64 - 1), ("i64", writer.add_int64, -(2**63)), ("f32", writer.add_float32, 0.1),
        ("f64", writer.add_float64, 0.1), ("true", writer.add_bool, True), ("false", writer.add_bool, False),
        ("text", writer.add_string, "Grüße, 世界 🌍\n"), ("empty", writer.add_string, ""),
        ("strings", writer.add_array, ["a", "", "日本", "Ġthe"]), ("integers", writer.add_array, [1, -2, 3]),
        ("floats", writer.add_array, [0.5, -1.5]), ("bools", writer.add_array, [True, False, True]),
    ]:  # fmt: skip
        add(f"test.{kind}", value)
    rng = np.random.default_rng(0)
    for type, (_, block_bytes) in gguf.GGML_QUANT_SIZES.items():
        if type.name == "Q8_1":
            continue
        data = rng.integers(0, 256, (3, 2, 2 * block_bytes), np.uint8)  # two blocks a row
        writer.add_tensor(f"blk.0.{type.name}", data, raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_equals_the_gguf_package(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_all_types(path)
    oracle = gguf.GGUFReader(path)
    with open_gguf(path) as file:
        theirs = {name: field.contents() for name, field in oracle.fields.items() if not name.startswith("GGUF.")}
        assert list(file.metadata) == list(theirs)
        for name, value in theirs.items():
            ours = file.metadata[name]
            assert (ours.tolist() if isinstance(ours, np.ndarray) else ours) == value, name
            assert isinstance(ours, np.ndarray) or type(ours) is type(value), name
        assert list(file.tensors) == [info.name for info in oracle.tensors]
        for info in oracle.tensors:
            ours = file.tensors[info.name]
            assert ours.type == info.tensor_type.name
            assert ours.shape == tuple(info.shape.tolist()[::-1])
            assert ours.data.shape == (3, 2, 2 * QUANT[ours.type][2])
            assert ours.nbytes == info.n_bytes
            assert ours.data.tobytes() == np.asarray(info.data).tobytes(), info.name
        assert file.nbytes == path.stat().st_size


def test_quantization_table() -> None:
    theirs = {type.name: (type.value, *sizes) for type, sizes in gguf.GGML_QUANT_SIZES.items()}
    del theirs["Q8_1"]  # 40 bytes there, 36 in ggml
    assert {name: QUANT[name] for name in theirs} == theirs
    numbers = [number for number, _, _ in QUANT.values()] + list(REMOVED) + list(IK_LLAMA)
    assert len(numbers) == len(set(numbers))


def test_quantization_table_of_llama_cpp() -> None:
    """Its library knows types that the gguf package does not know yet."""
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    library.ggml_type_name.restype, library.ggml_type_size.restype = ctypes.c_char_p, ctypes.c_size_t
    library.ggml_blck_size.restype = ctypes.c_int64
    for name, (number, block_values, block_bytes) in QUANT.items():
        assert library.ggml_type_name(number).decode().lower() == name.lower()
        assert (library.ggml_blck_size(number), library.ggml_type_size(number)) == (block_values, block_bytes), name


def test_tensors_are_views_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, header([ARCHITECTURE], TENSORS) + DATA)
    file = open_gguf(path)
    data = file.tensors["second"].data
    assert not data.flags.owndata and not data.flags.writeable
    with path.open("r+b") as other:  # a view shows what is in the file now
        other.seek(-1, os.SEEK_END)
        other.write(b"\x7f")
    assert data[-1, -1] == 0x7F
    file.close()
    assert not file.tensors
    assert data[-1, -1] == 0x7F


@pytest.mark.parametrize("version", [2, 3])
def test_versions(tmp_path: Path, version: int) -> None:
    file = open_gguf(str(write(tmp_path, header([ARCHITECTURE], TENSORS, version) + DATA)))
    assert file.metadata == {"general.architecture": "deepseek2"}
    assert file.tensors["first"].shape == (2, 8)
    assert file.tensors["first"].data.tobytes() == DATA[:64]


def test_alignment(tmp_path: Path) -> None:
    keys = [ARCHITECTURE, key("general.alignment", U32_KIND, u32(128))]
    file = open_gguf(write(tmp_path, header(keys, TENSORS[:1], alignment=128) + DATA))
    assert file.tensors["first"].data.tobytes() == DATA[:64]


def test_empty_arrays(tmp_path: Path) -> None:
    keys = [key("numbers", ARRAY_KIND, array(U32_KIND, 0, b"")), key("strings", ARRAY_KIND, array(STRING_KIND, 0, b""))]
    metadata = open_gguf(write(tmp_path, header(keys, []))).metadata
    assert metadata["numbers"].tolist() == metadata["strings"] == []


def test_no_tensors(tmp_path: Path) -> None:
    assert open_gguf(write(tmp_path, header([ARCHITECTURE], []))).tensors == {}


def test_header_of_the_size_of_deepseek_v3(tmp_path: Path) -> None:
    path = tmp_path / "v3.gguf"
    write_header(path, DEEPSEEK_V3)
    with open_gguf(path) as file:
        assert len(file.metadata["tokenizer.ggml.tokens"]) == TOKENS
        assert len(file.metadata["tokenizer.ggml.merges"]) == MERGES
        assert len(file.tensors) == 1_086
        assert file.nbytes > 370e9
        check_tensors(file, DEEPSEEK_V3, {"F32", "Q4_K"})


# Splits, written by the gguf package


def write_splits(folder: Path, name: str = "model", seed: int = 0) -> list[Path]:
    """Five tensors in three files: two, two and one."""
    writer = gguf.GGUFWriter(folder / f"{name}.gguf", "deepseek2", split_max_tensors=2)
    writer.add_name(name)
    rng = np.random.default_rng(seed)
    for i in range(5):
        writer.add_tensor(f"blk.{i}.weight", rng.standard_normal((2, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob(f"{name}-*.gguf"))


def test_splits(tmp_path: Path) -> None:
    paths = write_splits(tmp_path)
    assert [path.name for path in paths] == [f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    file = open_gguf(paths[0])
    assert file.paths == tuple(paths)
    assert file.nbytes == sum(path.stat().st_size for path in paths)
    assert list(file.tensors) == [f"blk.{i}.weight" for i in range(5)]
    rng = np.random.default_rng(0)
    for ours in file.tensors.values():
        np.testing.assert_array_equal(ours.data.view(np.float32), rng.standard_normal((2, 8), np.float32))


def test_splits_as_links_into_a_cache(tmp_path: Path) -> None:
    """The Hugging Face cache keeps the names as links to files named by their hash."""
    (tmp_path / "blobs").mkdir()
    for i, path in enumerate(write_splits(tmp_path)):
        path.rename(tmp_path / "blobs" / f"{i:040x}")
        path.symlink_to(tmp_path / "blobs" / f"{i:040x}")
    assert len(open_gguf(tmp_path / "model-00001-of-00003.gguf").tensors) == 5


def test_a_later_split_names_the_first(tmp_path: Path) -> None:
    paths = write_splits(tmp_path)
    with pytest.raises(
        FileError, match=r"file 2 of a model split into 3; give the first: .*model-00001-of-00003\.gguf"
    ):
        open_gguf(paths[1])


def test_missing_splits_are_named(tmp_path: Path) -> None:
    paths = write_splits(tmp_path)
    paths[1].unlink()
    with pytest.raises(FileError, match=r"model-00002-of-00003\.gguf missing .*split into 3 files; download"):
        open_gguf(paths[0])
    paths[2].unlink()
    with pytest.raises(FileError, match=r"model-00002-of-00003\.gguf, model-00003-of-00003\.gguf missing"):
        open_gguf(paths[0])


def test_swapped_splits(tmp_path: Path) -> None:
    _, second, third = write_splits(tmp_path)
    second.rename(tmp_path / "aside")
    third.rename(second)
    (tmp_path / "aside").rename(third)
    with pytest.raises(FileError, match=r"model-00002-of-00003\.gguf: split\.no is 2; 1 expected"):
        open_gguf(tmp_path / "model-00001-of-00003.gguf")


def test_one_split_twice(tmp_path: Path) -> None:
    _, second, third = write_splits(tmp_path)
    third.write_bytes(second.read_bytes())
    with pytest.raises(FileError, match=r"split\.no is 1; 2 expected"):
        open_gguf(tmp_path / "model-00001-of-00003.gguf")


def test_renamed_split(tmp_path: Path) -> None:
    paths = write_splits(tmp_path)
    paths[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(FileError, match=r"split into 3.*its name must end in -00001-of-00003\.gguf; give the files"):
        open_gguf(tmp_path / "renamed.gguf")


def split_file(number: int, count: int, names: list[str], tensors: int, architecture: str = "deepseek2") -> bytes:
    keys = [
        key("general.architecture", STRING_KIND, string(architecture)),
        key("split.no", U32_KIND, u32(number)),
        key("split.count", U32_KIND, u32(count)),
        key("split.tensors.count", U32_KIND, u32(tensors)),
    ]
    return header(keys, [tensor(name, (8,), 0, 32 * i) for i, name in enumerate(names)]) + bytes(32 * len(names))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (split_file(1, 2, ["c"], 3, "llama"), r"general\.architecture is 'llama'; 'deepseek2' expected.*another model"),
        (split_file(1, 3, ["c"], 3), r"split\.count is 3; 2 expected"),
        (split_file(1, 2, ["c"], 4), r"split\.tensors\.count is 4; 3 expected"),
        (split_file(1, 2, ["b"], 3), r"the tensor 'b' stands twice"),
        (split_file(1, 2, ["c", "d"], 3), r"hold 4 tensors; split\.tensors\.count says 3"),
    ],
)
def test_mixed_up_splits(tmp_path: Path, second: bytes, message: str) -> None:
    first = write(tmp_path, split_file(0, 2, ["a", "b"], 3), "x-00001-of-00002.gguf")
    other = write(tmp_path, split_file(1, 2, ["c"], 3), "x-00002-of-00002.gguf")
    assert list(open_gguf(first).tensors) == ["a", "b", "c"]
    other.write_bytes(second)
    with pytest.raises(FileError, match=message):
        open_gguf(first)


@pytest.mark.parametrize("count", [1_025, 65_535])
def test_absurd_split_count(tmp_path: Path, count: int) -> None:
    path = write(tmp_path, split_file(0, count, ["a"], 1), f"x-00001-of-{count:05}.gguf")
    with pytest.raises(FileError, match=r"split\.count is \d+; 0 to 1,024"):
        open_gguf(path)


def test_model_config_needs_no_tensor_data(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"block_count is missing"):
        ModelConfig.from_gguf(open_gguf(write(tmp_path, header([ARCHITECTURE], []))))

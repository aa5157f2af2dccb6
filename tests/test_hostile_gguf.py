"""Damaged and hostile files: each refusal by its message, then headers mutated at random.

Whatever the bytes are, the file opens or a HeteroError says why not, in bounded memory.
"""

import os
import tempfile
import tracemalloc
from datetime import timedelta
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hetero.config import ModelConfig
from hetero.errors import FileError, HeteroError, UnsupportedError
from hetero.gguf import open_gguf
from hetero.gguf_header import HEADER_LIMIT
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
    u64,
    write,
)
from tests.small_model import small_model

HUGE = [1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
GOOD = header([ARCHITECTURE], TENSORS) + DATA


def refused(folder: Path, content: bytes, message: str, error: type[HeteroError] = FileError) -> None:
    path = write(folder, content)
    tracemalloc.start()
    try:
        with pytest.raises(error, match=message) as caught:
            open_gguf(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert peak < (1 << 20) + 8 * len(content)


# Not a GGUF file


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (b"<html><body>404</body></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (u64(64) + b'{"model.embed_tokens.weight":{"dtype":"BF16"}}', "a safetensors file"),
        (b"PK\x03\x04" + bytes(100), "a PyTorch or zip archive"),
        (b"tjgg" + u32(3) + bytes(100), "a GGJT file from before GGUF"),
        (b"\x1f\x8b\x08\x08" + bytes(100), "a gzip archive"),
        (b"\x7fELF" + bytes(100), r"its first bytes are b'\\x7fELF'"),
        (b"G", "its first bytes are b'G'"),
    ],
)
def test_other_formats(tmp_path: Path, content: bytes, kind: str) -> None:
    refused(
        tmp_path, content, f"not a GGUF file: it(s| is) .*{kind.removeprefix('its ')}.*give the path of a .gguf file"
    )


def test_empty(tmp_path: Path) -> None:
    refused(tmp_path, b"", "is empty; download the file again")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"cannot open .*none\.gguf: No such file or directory; check the path"):
        open_gguf(tmp_path / "none.gguf")


def test_nul_in_the_path() -> None:
    with pytest.raises(FileError, match=r"cannot open .*null"):
        open_gguf("model\0.gguf")


def test_pipes_and_folders_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")  # opening it would wait for a writer forever
    for path in (tmp_path / "pipe.gguf", tmp_path, Path("/dev/zero")):
        with pytest.raises(FileError, match=r"is not a regular file; give the path of a .gguf file"):
            open_gguf(path)


@pytest.mark.parametrize("version", [0, 1, 4, 1 << 31])
def test_unknown_versions(tmp_path: Path, version: int) -> None:
    refused(
        tmp_path,
        header([ARCHITECTURE], TENSORS, version) + DATA,
        rf"GGUF version {version:,}; versions 2 and 3 are read",
    )


def test_big_endian(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "deepseek2", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FileError, match="a big-endian GGUF file; only little-endian is read; take the little-endian"):
        open_gguf(tmp_path / "big.gguf")


# Truncation


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    open_gguf(path)
    for length in range(1, len(GOOD)):
        path.write_bytes(GOOD[:length])
        with pytest.raises(
            FileError, match=r"not a GGUF file|(header|data) is cut off or damaged: .*the file ends at byte"
        ):
            open_gguf(path)


def test_truncated_part_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD[:-1], "model.Q4_K_M.gguf.part1of2")
    with pytest.raises(FileError, match=r"join the parts first: cat model\.Q4_K_M\.gguf\.part\* > model\.Q4_K_M\.gguf"):
        open_gguf(path)


# Counts and lengths


@pytest.mark.parametrize("count", HUGE)
def test_absurd_counts(tmp_path: Path, count: int) -> None:
    start = b"GGUF" + u32(3)
    refused(tmp_path, start + u64(count) + GOOD[16:], f"the number of tensors is {count:,}; at most 65,536")
    refused(
        tmp_path, start + u64(2) + u64(count) + GOOD[24:], f"the number of metadata keys is {count:,}; at most 65,536"
    )


def test_more_keys_and_tensors_than_bytes(tmp_path: Path) -> None:
    start = b"GGUF" + u32(3)
    refused(tmp_path, start + u64(60_000) + GOOD[16:], "60,000 tensors and 1 metadata keys at byte 24 needs")
    refused(tmp_path, start + u64(2) + u64(60_000) + GOOD[24:], "2 tensors and 60,000 metadata keys at byte 24 needs")


@pytest.mark.parametrize("length", HUGE)
def test_absurd_lengths(tmp_path: Path, length: int) -> None:
    def one(content: bytes) -> bytes:
        return header([content], []) + bytes(64)

    refused(tmp_path, one(u64(length)), f"the length of a metadata key is {length:,}; at most 65,535")
    refused(
        tmp_path,
        one(key("k", STRING_KIND, u64(length))),
        "the value of 'k' at byte .* needs .* bytes or more; the file ends",
    )
    for kind in (U32_KIND, STRING_KIND):
        content = one(key("k", ARRAY_KIND, array(kind, length, b"")))
        refused(tmp_path, content, f"the length of the value of 'k' is {length:,}; at most 67,108,864")
    content = one(key("k", ARRAY_KIND, array(STRING_KIND, 2, string("x") + u64(length))))
    refused(tmp_path, content, "the value of 'k' at byte .* needs .* bytes or more; the file ends")
    refused(
        tmp_path, header([], [u64(length)]) + bytes(64), f"the length of a tensor's name is {length:,}; at most 255"
    )


@pytest.mark.parametrize(("kind", "count"), [(U32_KIND, 60_000_000), (STRING_KIND, 60_000_000), (STRING_KIND, 40)])
def test_arrays_longer_than_the_file(tmp_path: Path, kind: int, count: int) -> None:
    content = header([key("k", ARRAY_KIND, array(kind, count, b""))], []) + bytes(64)
    refused(tmp_path, content, "the header is cut off or damaged: the value of 'k'")


def test_header_limit(tmp_path: Path) -> None:
    """A length that fits into a large (here sparse) file is not believed either."""
    path = write(tmp_path, header([key("k", STRING_KIND, u64(HEADER_LIMIT))], []))
    os.truncate(path, 1 << 40)
    tracemalloc.start()
    with pytest.raises(FileError, match=r"the header is too long: .* a header may have 67,108,864 bytes"):
        open_gguf(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


# Metadata


def test_duplicate_keys(tmp_path: Path) -> None:
    refused(tmp_path, header([ARCHITECTURE, ARCHITECTURE], []), "the metadata key 'general.architecture' stands twice")


def test_long_names_are_shortened_in_messages(tmp_path: Path) -> None:
    long = key("k" * 60_000, STRING_KIND, u64(1 << 20))
    path = write(tmp_path, header([long], []))
    with pytest.raises(FileError) as caught:
        open_gguf(path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", [b"", b"a\0b", b"\x1b[2Jx", b"two\nlines"])
def test_names_are_printable(tmp_path: Path, name: bytes) -> None:
    message = "names are printable characters"
    refused(tmp_path, header([key(name, U32_KIND, u32(1))], []), f"a metadata key at byte 32 is .*{message}")
    refused(tmp_path, header([], [tensor(name, (8,), 0, 0)]) + DATA, f"a tensor's name at byte 32 is .*{message}")


def test_invalid_utf8(tmp_path: Path) -> None:
    bad = b"\xff\xfe"
    refused(tmp_path, header([key(bad, U32_KIND, u32(1))], []), "a metadata key at byte 32 is not UTF-8")
    refused(tmp_path, header([], [tensor(bad, (8,), 0, 0)]) + DATA, "a tensor's name at byte 32 is not UTF-8")
    refused(
        tmp_path, header([key("k", STRING_KIND, string(bad))], []), "the value of 'k' has a string that is not UTF-8"
    )
    strings = array(STRING_KIND, 2, string("good") + string(bad))
    refused(tmp_path, header([key("k", ARRAY_KIND, strings)], []), "'k' has a string that is not UTF-8, number 1")


def test_unknown_value_types(tmp_path: Path) -> None:
    refused(
        tmp_path, header([key("k", 13, u64(0))], []), "the value of 'k' has the unknown value type 13; types 0 to 12"
    )
    strange = key("k", ARRAY_KIND, array(99, 1, u64(0)))
    refused(tmp_path, header([strange], []), "the value of 'k' has the unknown element type 99")


def test_nested_arrays(tmp_path: Path) -> None:
    """A thousand levels would exhaust the stack of a reader that recurses."""
    nested = b"".join(u32(ARRAY_KIND) + u64(1) for _ in range(1000))
    refused(tmp_path, header([key("k", ARRAY_KIND, nested)], []), "the value of 'k' is an array of arrays")


@pytest.mark.parametrize("alignment", [0, 1, 4, 24, 33, 1 << 17, (1 << 32) - 1])
def test_alignment(tmp_path: Path, alignment: int) -> None:
    keys = [ARCHITECTURE, key("general.alignment", U32_KIND, u32(alignment))]
    message = f"general.alignment is {alignment}; a power of two from 8 to 65,536"
    refused(tmp_path, header(keys, TENSORS) + DATA, message)


def test_alignment_of_another_type(tmp_path: Path) -> None:
    keys = [key("general.alignment", STRING_KIND, string("32"))]
    refused(tmp_path, header(keys, TENSORS) + DATA, "general.alignment is '32'")


# Tensors


def one_tensor(extents: tuple[int, ...], type: int = 0, offset: int = 0) -> bytes:
    return header([ARCHITECTURE], [tensor("weight", extents, type, offset)]) + DATA


@pytest.mark.parametrize("dimensions", [0, 5, (1 << 32) - 1])
def test_number_of_dimensions(tmp_path: Path, dimensions: int) -> None:
    content = header([], [string("weight") + u32(dimensions) + bytes(100)])
    refused(tmp_path, content, f"the tensor 'weight' has {dimensions:,} dimensions; 1 to 4")


@pytest.mark.parametrize("extents", [(0,), (8, 0), (1 << 63,), (8, (1 << 64) - 1)])
def test_extents(tmp_path: Path, extents: tuple[int, ...]) -> None:
    refused(tmp_path, one_tensor(extents), "the tensor 'weight' has the shape .*extents are positive and below 2")


@pytest.mark.parametrize(
    "extents", [(1 << 32, 1 << 32), (1 << 62, 1 << 62, 1 << 62, 1 << 62), (1 << 61, 8), (1 << 40,)]
)
def test_products_that_overflow(tmp_path: Path, extents: tuple[int, ...]) -> None:
    refused(
        tmp_path,
        one_tensor(extents),
        "data is cut off or damaged: the tensor 'weight' ends at byte .* the file ends at",
    )


def test_rows_are_whole_blocks(tmp_path: Path) -> None:
    refused(
        tmp_path, one_tensor((40, 2), 8), "the tensor 'weight' has rows of 40 values; Q8_0 rows are multiples of 32"
    )


@pytest.mark.parametrize("offset", [1, 31, 33])
def test_misaligned(tmp_path: Path, offset: int) -> None:
    refused(tmp_path, one_tensor((8,), offset=offset), f"'weight' starts at offset {offset}; a multiple of 32")


@pytest.mark.parametrize("offset", [160, 1 << 40, (1 << 64) - 32])
def test_outside_the_file(tmp_path: Path, offset: int) -> None:
    refused(tmp_path, one_tensor((8,), offset=offset), "the tensor 'weight' ends at byte .* the file ends at byte")


def test_overlap(tmp_path: Path) -> None:
    tensors = [tensor("b", (8,), 0, 32), tensor("a", (16,), 0, 0)]
    refused(tmp_path, header([], tensors) + DATA, "the tensors 'a' and 'b' overlap")
    tensors = [tensor("a", (8,), 0, 0), tensor("b", (8,), 0, 0)]
    refused(tmp_path, header([], tensors) + DATA, "the tensors 'a' and 'b' overlap")


def test_duplicate_tensors(tmp_path: Path) -> None:
    tensors = [tensor("a", (8,), 0, 0), tensor("a", (8,), 0, 32)]
    refused(tmp_path, header([], tensors) + DATA, "the tensor 'a' stands twice")


def test_types_of_ik_llama_cpp(tmp_path: Path) -> None:
    assert {"IQ4_K", "IQ2_KS", "IQ4_KSS", "IQ3_KT", "IQ4_K_R4", "Q8_0_R8", "IQ4_XS_R8"} <= set(IK_LLAMA.values())
    for number, name in IK_LLAMA.items():
        message = (
            f"'weight' has the quantization type {name}, which only ik_llama.cpp writes; .*requantize the original"
        )
        refused(tmp_path, one_tensor((8,), number), message, UnsupportedError)


def test_removed_types(tmp_path: Path) -> None:
    for number, name in REMOVED.items():
        refused(tmp_path, one_tensor((8,), number), f"type {name}, which llama.cpp has removed", UnsupportedError)


@pytest.mark.parametrize("number", [43, 100, 1_000, (1 << 32) - 1])
def test_unknown_types(tmp_path: Path, number: int) -> None:
    refused(tmp_path, one_tensor((8,), number), f"'weight' has the unknown type {number:,}; types up to 42 are known")


# Mutations of a whole model

MODEL = small_model()
HEADER_BYTES = MODEL.rindex(b"blk.1.") + 80  # the rest are weights
VALUES = [0, 1, 2, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]

position = st.integers(0, HEADER_BYTES)
flip = st.tuples(st.just("flip"), position, st.integers(1, 255))
truncate = st.tuples(st.just("truncate"), st.integers(0, len(MODEL)), st.just(0))
number32 = st.tuples(st.just("u32"), position, st.sampled_from(VALUES))
number64 = st.tuples(st.just("u64"), position, st.sampled_from(VALUES) | st.integers(0, 1 << 17))
repeat = st.tuples(st.just("repeat"), position, st.integers(1, 200))
remove = st.tuples(st.just("remove"), position, st.integers(1, 200))
mutations = st.lists(st.one_of(flip, truncate, number32, number64, repeat, remove), min_size=1, max_size=4)


def mutate(content: bytes, kind: str, at: int, value: int) -> bytes:
    match kind:
        case "flip":
            changed = bytes([content[at] ^ value]) if at < len(content) else b""
            return content[:at] + changed + content[at + 1 :]
        case "truncate":
            return content[:at]
        case "u32":
            return content[:at] + u32(value & 0xFFFF_FFFF) + content[at + 4 :]
        case "u64":
            return content[:at] + u64(value) + content[at + 8 :]
        case "repeat":
            return content[:at] + content[at : at + value] + content[at:]
        case _:
            return content[:at] + content[at + value :]


def open_whole(path: Path) -> None:
    with open_gguf(path) as file:
        check_tensors(file, ModelConfig.from_gguf(file), {"F32"})
        for one in file.tensors.values():
            one.data.sum()


def survive(changes: list[tuple[str, int, int]]) -> None:
    content = MODEL
    for change in changes:
        content = mutate(content, *change)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), content)
        tracemalloc.start()
        try:
            open_whole(path)
        except HeteroError as error:
            assert str(error) and "\n" not in str(error)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    assert peak < 4 << 20


HANG = timedelta(seconds=20)  # a file of 6 KB takes milliseconds


def test_the_model_that_is_mutated_is_sound(tmp_path: Path) -> None:
    open_whole(write(tmp_path, MODEL))
    assert 2_000 < HEADER_BYTES < len(MODEL) - 1_000


@settings(max_examples=300, deadline=HANG, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(mutations)
def test_mutated_headers(changes: list[tuple[str, int, int]]) -> None:
    survive(changes)


@pytest.mark.soak
@settings(max_examples=20_000, deadline=HANG, suppress_health_check=[HealthCheck.too_slow])
@given(mutations)
def test_mutated_headers_soak(changes: list[tuple[str, int, int]]) -> None:
    survive(changes)


@settings(max_examples=100, deadline=HANG, derandomize=True)
@given(st.binary(max_size=300))
def test_random_bytes_after_the_magic(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for start in (b"", b"GGUF", b"GGUF" + u32(3), b"GGUF" + u32(3) + u64(1) + u64(1)):
            try:
                open_whole(write(Path(folder), start + content))
            except HeteroError:
                continue

"""What the benchmarks share: their options, the table on stderr and the document on stdout."""

import json

import pytest

from benchmarks import beside_ggml, options
from cpu_kernels.topology import default_threads

ROW = {
    "seconds": {"hetero": 1.0, "ggml plain": 4.0},
    "best_other": "ggml plain",
    "bytes_per_second": 20e9,
    "flops_per_second": 400e9,
    "ratio_of_medians": 4.0,
    "median_of_ratios": 3.9,
    "deviation": 0.001,
    "waited": 0.0,
}


def test_threads() -> None:
    assert options.parser("").parse_args([]).threads == default_threads()
    assert options.parser("").parse_args(["--threads", "3"]).threads == 3
    assert options.parser("", threads=[1, 2]).parse_args([]).threads == [1, 2]
    assert options.parser("", threads=[1, 2]).parse_args(["--threads", "3,4"]).threads == [3, 4]


def test_seconds() -> None:
    assert options.parser("", seconds=1.5).parse_args([]).seconds == 1.5
    assert "seconds" not in options.parser("").parse_args([])


@pytest.mark.parametrize("quiet", [[], ["--json"]])
def test_table_and_document(quiet: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    given = beside_ggml.parser("", seconds=1.0).parse_args(["--threads", "1", "--layout", "gguf", *quiet])
    beside_ggml.run(given, lambda given, pool, ggml, reader: [ROW, {**ROW, "waited": 0.5}], lambda row: "a case")
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document.keys() >= {"threads", "layout", "read_bytes_per_second", "machine", "versions", "commit", "date"}
    assert (document["threads"], document["layout"], document["results"][0]) == (1, "gguf", ROW)
    if quiet:
        assert err == ""
        return
    head, first, second = err.splitlines()
    assert head.startswith("1 threads, read bandwidth")
    assert " ".join(first.split()) == "a case ggml plain 5.0 100.0 ratio 4.00 3.90 deviation 1.0e-03"
    assert second.endswith("disturbed") and not first.endswith("disturbed")

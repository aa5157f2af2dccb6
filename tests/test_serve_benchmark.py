"""`benchmarks.serve` on the bundled model: the document, and the page's tables made from it."""

import json
import sys

import pytest

from benchmarks import report, serve
from hetero import demo


def test_document_and_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    flags = (
        "--rounds 1 --context 512 --prompt 300 --conversation 200 --short 20 --generate 12 --clients 1,5 --threads 2"
    )
    monkeypatch.setattr(sys, "argv", ["serve", str(demo.path()), *flags.split(), "--device", "cpu"])
    serve.main()
    written = capsys.readouterr()
    document = json.loads(written.out)
    assert document.keys() >= {"model", "threads", "sequences", "context", "machine", "versions", "commit", "date"}
    rows = {row["case"]: row for row in document["results"]}
    assert list(rows) == ["gap", "streams", "turn", "1 clients", "5 clients"]
    gap, streams, turn = rows["gap"], rows["streams"], rows["turn"]
    assert (
        gap["bound_seconds"] >= 0.5 and 0 < gap["longest_gap_seconds"] == gap["share_of_bound"] * gap["bound_seconds"]
    )
    assert streams["share_of_allowed"] == pytest.approx(streams["times_one"] / streams["allowed_times_one"])
    assert 2.5 < streams["allowed_times_one"] < 3, "4 of 16 experts: 11 of 16 for four tokens"
    conversation = 200 + serve.FEW
    assert turn["prompt_tokens"] == conversation + serve.QUESTION and turn["cached_tokens"] == conversation - 1
    assert turn["long_prompt_tokens"] == conversation + serve.LONG_QUESTION
    assert turn["long_cached_tokens"] >= conversation - 1
    assert rows["5 clients"]["longest_first_token_seconds"] >= rows["5 clients"]["first_token_seconds"] > 0
    for name in serve.BARS:
        assert f"{name}: " in written.err
    first, second = report.serve(document).split("\n\n")
    assert len(first.splitlines()) == 7 and len(second.splitlines()) == 4
    assert {line.count("|") for line in first.splitlines()} == {4}
    assert {line.count("|") for line in second.splitlines()} == {6}

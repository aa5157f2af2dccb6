"""Perplexity and divergence against closed forms and a naive twin; then on the engine, beside llama.cpp."""

import gc
import io
import json
import math
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hetero import load
from hetero.errors import HeteroError, KernelError, RequestError, UnsupportedError
from hetero.evaluate import Evaluation, describe, run_evaluation
from hetero.perplexity import evaluate, windows
from hetero.reference import llama_cpp_api
from hetero.run_config import RunConfig
from hetero.terminal import Screen
from tests.model_shapes import SHAPES

ModelFile = Callable[..., Path]

VOCABULARY = 50


class Guesser:
    """Says with probability `p` that id + 1 comes next; the rest is shared evenly. `calls` keeps what it was shown."""

    def __init__(self, p: float, shift: float = 0.0, vocabulary: int = VOCABULARY):
        self.p, self.shift, self.vocabulary = p, shift, vocabulary
        self.calls: list[list[int]] = []

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        self.calls.append(list(ids))
        logits = np.full((len(ids), self.vocabulary), math.log((1 - self.p) / (self.vocabulary - 1)), np.float32)
        logits[np.arange(len(ids)), (np.asarray(ids) + 1) % self.vocabulary] = math.log(self.p)
        return logits + np.float32(self.shift)


def counting(n: int) -> list[int]:
    return [i % VOCABULARY for i in range(n)]


@pytest.mark.parametrize("shift", [0.0, 3000.0, -3000.0])
def test_perplexity_of_known_probabilities(shift: float) -> None:
    result = evaluate(windows(counting(100), 20, None, None), Guesser(0.25, shift))
    assert result["perplexity"] == pytest.approx(4.0, rel=1e-3 if shift else 1e-6)
    assert result["loss"] == pytest.approx(math.log(4.0), rel=1e-3 if shift else 1e-6)
    assert result["scored_tokens"] == 5 * 9
    assert result["perplexity_error"] == pytest.approx(0.0, abs=1e-3)


def test_perplexity_of_a_mixture() -> None:
    """Half of the tokens follow the rule: the mean loss is the mean of two logarithms, and its error their spread."""
    ids = [0, 0, 1, 1] * 4  # 0 -> 0 no, 0 -> 1 yes, 1 -> 1 no, 1 -> 0 no
    result = evaluate(windows(ids, 16, None, None), Guesser(0.5))
    losses = [math.log(2) if b == a + 1 else math.log(2 * (VOCABULARY - 1)) for a, b in pairwise(ids[8:])]
    assert result["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    error = math.exp(np.mean(losses)) * np.std(losses, ddof=1) / math.sqrt(len(losses))
    assert result["perplexity_error"] == pytest.approx(error, rel=1e-6)


def test_windows_as_llama_cpp_cuts_them() -> None:
    ids = list(range(100, 1300))
    cuts = windows(ids, 512, None, 7)
    assert [cut.ids[0] for cut in cuts] == [7, 7]
    assert cuts[0].ids[1:] == ids[1:512] and cuts[1].ids[1:] == ids[513:1024]
    assert {len(cut.ids) - cut.first for cut in cuts} == {255}


def test_a_stride_scores_each_token_once() -> None:
    ids = list(range(100))
    cuts = windows(ids, 30, 10, None)
    scored = [id for cut in cuts for id in cut.ids[cut.first :]]
    assert scored == list(range(20, 100))
    assert all(cut.first >= 20 for cut in cuts)


def test_a_short_text_is_one_window() -> None:
    (cut,) = windows([5, 6, 7, 8, 9], 512, None, None)
    assert cut.ids == [5, 6, 7, 8, 9] and cut.first == 3


@pytest.mark.parametrize(("count", "window", "stride"), [(3, 512, None), (100, 2, None), (100, 20, 20), (100, 20, 0)])
def test_impossible_windows(count: int, window: int, stride: int | None) -> None:
    with pytest.raises(RequestError):
        windows(list(range(count)), window, stride, None)


def test_divergence_from_a_reference_in_closed_form() -> None:
    p, q, others = 0.25, 0.6, VOCABULARY - 1
    result = evaluate(windows(counting(300), 150, None, None), Guesser(p), Guesser(q))
    kl = q * math.log(q / p) + (1 - q) * math.log(((1 - q) / others) / ((1 - p) / others))
    reference = result["reference"]
    for name in ("kl_mean", "kl_median", "kl_99", "kl_max"):
        assert reference[name] == pytest.approx(kl, rel=1e-5)
    assert reference["top1_agreement"] == 1.0
    assert reference["perplexity"] == pytest.approx(1 / q, rel=1e-5)
    assert result["perplexity"] == pytest.approx(1 / p, rel=1e-5)


def test_top1_agreement_counts_tokens() -> None:
    result = evaluate(windows(counting(100), 100, None, None), Guesser(0.5), Guesser(0.001))
    assert result["reference"]["top1_agreement"] == 0.0
    assert evaluate(windows(counting(9), 9, None, None), Guesser(0.5), Guesser(0.5))["reference"]["kl_max"] == 0.0


def test_one_token_has_no_spread() -> None:
    assert evaluate(windows(counting(4), 4, None, None), Guesser(0.5))["perplexity_error"] is None


def test_logits_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(KernelError, match="not a finite number"):
        evaluate(windows(counting(20), 20, None, None), Guesser(0.5, shift=math.nan))


def test_reference_with_another_vocabulary_is_refused() -> None:
    with pytest.raises(RequestError, match="vocabulary"):
        evaluate(windows(counting(20), 20, None, None), Guesser(0.5), Guesser(0.5, vocabulary=60))


def test_the_time_of_the_reference_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Slow(Guesser):
        def logits(self, ids: Sequence[int]) -> np.ndarray:
            clock[0] += 100 * self.p
            return super().logits(ids)

    monkeypatch.setattr("hetero.perplexity.perf_counter", lambda: clock[0])
    assert evaluate(windows(counting(60), 20, None, None), Slow(0.01), Slow(0.5))["seconds"] == 3.0


def test_progress_tells_the_perplexity_so_far() -> None:
    seen = []
    evaluate(windows(counting(60), 20, None, None), Guesser(0.5), progress=lambda *step: seen.append(step))
    assert seen == [(at, 3, "perplexity 2.0000") for at in (1, 2, 3)]


# From here on the real engine, on random weights: perplexities of thousands, but the same ones everywhere.

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 16


@pytest.fixture
def text_file(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def run(what: Evaluation, config: RunConfig | None = None) -> dict[str, Any]:
    return run_evaluation(what, config or RunConfig(kv="f32", threads=1), Screen())


def test_engine_agrees_with_llama_cpp(model_file: ModelFile, text_file: str) -> None:
    model = str(model_file("tiny", "F32"))
    result = run(Evaluation(model, text_file, window=64, reference="llama.cpp"))
    reference = result["reference"]
    assert result["scored_tokens"] == reference["scored_tokens"] == result["windows"] * 31 > 100
    assert result["perplexity"] == pytest.approx(reference["perplexity"], rel=1e-4)
    assert reference["kl_mean"] < 1e-7
    assert reference["top1_agreement"] == 1.0


def test_llama_cpp_may_log_when_its_judge_has_gone(model_file: ModelFile, text_file: str) -> None:
    """It keeps a pointer to what it logs to; the process would end here."""
    run(Evaluation(str(model_file("tiny", "F32")), text_file, window=64, reference="llama.cpp"))
    gc.collect()
    api = llama_cpp_api("f32")
    assert not api.llama_model_load_from_file(b"/nowhere.gguf", api.llama_model_default_params())


def test_perplexity_is_that_of_the_engine(model_file: ModelFile, text_file: str) -> None:
    """A naive twin of windows and log-softmax, on the engine's own logits."""
    model = str(model_file("tiny", "Q4_K"))
    result = run(Evaluation(model, text_file, window=64))
    engine, tokenizer = load(model, RunConfig(kv="f32", threads=1, context=64))
    ids, losses = tokenizer.encode(TEXT, bos=True), []
    for start in range(0, len(ids) - 63, 64):
        logits = engine.logits([tokenizer.bos_id or 0, *ids[start + 1 : start + 64]]).astype(np.float64)
        for at in range(32, 63):
            losses.append(
                math.log(np.exp(logits[at] - logits[at].max()).sum())
                + logits[at].max()
                - logits[at][ids[start + at + 1]]
            )
    engine.close()
    assert result["loss"] == pytest.approx(np.mean(losses), rel=1e-9)
    assert (result["tokens"], result["scored_tokens"]) == (len(ids), len(losses))
    assert result["approximations"] == []


def test_another_kv_type_is_another_run(model_file: ModelFile, text_file: str) -> None:
    model = str(model_file("tiny", "Q4_K"))
    result = run(Evaluation(model, text_file, window=64, reference_kv="q8_0"))
    assert result["reference"]["kv"] == "q8_0"
    assert 0 < result["reference"]["kl_mean"] < 1
    same = run(Evaluation(model, text_file, window=64, reference=model))
    assert same["reference"]["kl_max"] == 0.0 and same["reference"]["top1_agreement"] == 1.0
    assert "KL divergence from it: mean 0," in describe(same)


def test_expert_counts(model_file: ModelFile, text_file: str, tmp_path: Path) -> None:
    model, counts = str(model_file("tiny", "Q4_K")), tmp_path / "counts.json"
    what = Evaluation(model, text_file, window=600, expert_counts=str(counts))
    result = run(what, RunConfig(kv="f32", threads=1, context=1024))
    plain = run(Evaluation(model, text_file, window=600), RunConfig(kv="f32", threads=1, context=1024))
    assert result["loss"] == plain["loss"], "counting changes nothing"
    document, shape = json.loads(counts.read_text()), SHAPES["tiny"]
    assert document["tokens"] == result["window"] > 512, "more than one chunk of the engine's"
    assert document["first_layer"] == shape.dense_layers
    assert len(document["counts"]) == shape.layers - shape.dense_layers
    for row in document["counts"]:
        assert len(row) == shape.experts and sum(row) == document["tokens"] * shape.experts_used


@pytest.mark.parametrize(
    ("window", "stride", "said"),
    [(0, None, "window of 0"), (-5, None, "of -5 tokens; at least 4"), (64, 64, "1 to 63")],
)
def test_impossible_windows_are_refused_before_loading(
    window: int, stride: int | None, said: str, text_file: str
) -> None:
    with pytest.raises(RequestError, match=said):
        run(Evaluation("/nowhere.gguf", text_file, window=window, stride=stride))


def test_another_vocabulary_is_refused(model_file: ModelFile, text_file: str) -> None:
    model, other = str(model_file("tiny", "Q4_K")), str(model_file("tiny", "Q4_K", vocab=768))
    with pytest.raises(RequestError, match="another vocabulary"):
        run(Evaluation(model, text_file, window=64, reference=other))


def test_llama_cpp_is_refused_before_anything_is_loaded(text_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    what = Evaluation("/nowhere.gguf", text_file, reference="llama.cpp")
    with pytest.raises(UnsupportedError, match="--reference-kv f16"):
        run(what, RunConfig(kv="q8_0"))
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'hetero\[llama\]'"):
        run(what)


def test_text_from_stdin_keeps_its_line_ends(model_file: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    model = str(model_file("tiny", "Q4_K"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\r\ntwo\r\nthree\r\n")))
    result = run(Evaluation(model, "-"))
    engine, tokenizer = load(model, RunConfig(threads=1))
    engine.close()
    assert result["tokens"] == len(tokenizer.encode("one\r\ntwo\r\nthree\r\n", bos=True)) > 10


def test_bad_texts_and_windows(tmp_path: Path, text_file: str) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes("café".encode("latin-1"))
    with pytest.raises(RequestError, match=r"not UTF-8 \(byte 3\)"):
        run(Evaluation("/nowhere.gguf", str(latin)))
    with pytest.raises(RequestError, match="raise --context"):
        run(Evaluation("/nowhere.gguf", text_file, window=600), RunConfig(context=512))
    with pytest.raises(OSError, match="nowhere"):
        run(Evaluation("/nowhere.gguf", text_file, expert_counts="/nowhere/counts.json"))
    with pytest.raises(HeteroError, match="nowhere"):
        run(Evaluation("/nowhere.gguf", text_file))

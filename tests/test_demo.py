"""The bundled model: as good as its card says, and the same in llama.cpp."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import hetero
from hetero import demo
from hetero.engine import Engine
from hetero.generate import Answer, chat_prompt
from hetero.gguf import open_gguf
from hetero.perplexity import evaluate, windows
from hetero.reference import LlamaCpp
from hetero.template import ChatTemplate
from hetero.tokenizer import Tokenizer

HOME = demo.path().parent
GREEDY = hetero.Sampling(temperature=0.0, max_tokens=64)
WINDOW = 256


class Bundled(NamedTuple):
    engine: Engine
    tokenizer: Tokenizer
    template: ChatTemplate


@pytest.fixture(scope="module")
def bundled() -> Iterator[Bundled]:
    engine, tokenizer = hetero.load(demo.path(), hetero.RunConfig(threads=2))
    yield Bundled(engine, tokenizer, ChatTemplate.from_gguf(engine.file, tokenizer))
    engine.close()


def answer(model: Bundled, question: dict) -> Answer:
    prompt = chat_prompt(model.template, [{"role": "user", "content": question["prompt"]}], question["thinking"])
    given = Answer(model.engine, model.tokenizer, prompt, GREEDY)
    for _ in given:
        pass
    return given


def card_scores() -> dict[str, tuple[int, int]]:
    """kind -> (right, asked), from the card's table."""
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| (\d+) of (\d+) \|", (HOME / "MODEL_CARD.md").read_text(), re.MULTILINE)
    return {kind: (int(right), int(asked)) for kind, right, asked in rows}


def sit_exam(model: Bundled, questions: list[dict]) -> tuple[Counter, int]:
    """Right answers by kind, and how many answers ended by themselves."""
    right: Counter = Counter()
    ended = 0
    for question in questions:
        given = answer(model, question)
        right[question["kind"]] += given.text.strip() == question["expected"]
        ended += given.finish_reason == "stop"
        if question["thinking"]:
            assert "</think>" not in given.text + given.thinking and given.thinking.strip()
        else:
            assert not given.thinking and "think>" not in given.text
    return right, ended


def questions() -> list[dict]:
    return json.loads((HOME / "questions.json").read_text())


def test_a_sample_of_the_questions(bundled: Bundled) -> None:
    sample = questions()[::8]
    asked = Counter(question["kind"] for question in sample)
    right, ended = sit_exam(bundled, sample)
    assert ended >= 0.95 * len(sample)
    for kind, (card_right, card_asked) in card_scores().items():
        # two standard deviations of a sample this size, and one question
        share, n = card_right / card_asked, asked[kind]
        assert right[kind] >= n * share - 2 * (n * share * (1 - share)) ** 0.5 - 1, kind


@pytest.mark.soak
def test_every_question_scores_what_the_card_says(bundled: Bundled) -> None:
    asked = Counter(question["kind"] for question in questions())
    right, ended = sit_exam(bundled, questions())
    print(dict(right), "of", dict(asked), "ended", ended)
    assert ended >= 0.98 * asked.total()
    card = card_scores()
    assert set(card) == set(asked)
    for kind, (card_right, card_asked) in card.items():
        assert asked[kind] == card_asked
        assert right[kind] >= card_right - 1, kind  # a near-tied token may fall the other way on another CPU


def compare_perplexity(bundled: Bundled, characters: int | None) -> None:
    text = (HOME / "heldout.txt").read_text()[:characters]
    ids = bundled.tokenizer.encode(text, bos=True)
    cuts = windows(ids, WINDOW, None, bundled.tokenizer.bos_id)
    judge = LlamaCpp(demo.path(), context=WINDOW, kv="f16", threads=2)
    try:
        result = evaluate(cuts, bundled.engine, judge)
    finally:
        judge.close()
    print(result)
    assert abs(result["perplexity"] / result["reference"]["perplexity"] - 1) < 0.005


def test_perplexity_is_llama_cpps(bundled: Bundled) -> None:
    compare_perplexity(bundled, 16_000)


@pytest.mark.soak
def test_perplexity_on_all_of_the_held_out_text(bundled: Bundled) -> None:
    compare_perplexity(bundled, None)


def test_a_second_turn_knows_the_first_and_reuses_it(bundled: Bundled) -> None:
    first = {"role": "user", "content": "What is the capital of France?"}
    messages = [first, {"role": "assistant", "content": "The capital of France is Paris."}]
    prompt = chat_prompt(bundled.template, [*messages, {"role": "user", "content": "thanks"}], None)
    list(bundled.engine.generate(chat_prompt(bundled.template, [first], None).ids, GREEDY, bundled.tokenizer.stop_ids))
    list(bundled.engine.generate(prompt.ids, GREEDY, bundled.tokenizer.stop_ids))
    assert bundled.engine.telemetry.cached_tokens > 10


def test_the_file_holds_every_part_of_the_architecture() -> None:
    with open_gguf(demo.path()) as file:
        assert file.nbytes <= 20e6
        config = hetero.ModelConfig.from_gguf(file)
        assert config.nextn_layers == 1 and config.q_lora_rank and config.expert_bias and config.shared_experts
        assert config.gating == "sigmoid" and config.dense_layers == 1
        last = config.layers  # block_count counts the draft layer, `layers` does not
        assert {f"blk.{last}.nextn.{part}.weight" for part in ("eh_proj", "enorm", "hnorm")} <= set(file.tensors)
        assert f"blk.{last}.ffn_gate_exps.weight" in file.tensors
        types = {tensor.type for tensor in file.tensors.values()}
    assert types <= {"F32", "Q4_K", "Q6_K", "Q8_0"}
    assert Path(HOME / "NOTICE").exists()

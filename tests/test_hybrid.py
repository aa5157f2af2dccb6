"""A model on two sides, plain torch in the GPU's place, against the same model on the CPU."""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hetero
import hetero.hybrid
from hetero import RunConfig, Sampling, demo
from hetero.engine import Engine
from hetero.errors import UnsupportedError
from hetero.generate import chat_prompt
from hetero.gpu_side import GpuSide
from hetero.hybrid import HybridModel, alternate
from hetero.moe import MoE
from hetero.offloaded_networks import OffloadedFFN, SplitMoE
from hetero.pace import Pace
from hetero.parts import PARTS, time_by_part
from hetero.template import ChatTemplate
from tests import plain_gpu
from tests.deviation import median_token_error
from tests.forward_runs import in_chunks
from tests.prompts import prompt

IDS = prompt(60)
LONG = prompt(300, seed=1)
CLOSE = 1e-3  # of a token's logits: the GPU's products round to half precision, its cache is that of the CPU
DENSE = {"mla", "norms", "router", "shared expert", "dense ffn", "head"}


def everything(part: str, layer: int | None) -> bool:
    return part in DENSE | {"routed experts"}


def dense(part: str, layer: int | None) -> bool:
    return part in DENSE


def attention(part: str, layer: int | None) -> bool:
    return part in ("mla", "norms", "router") and layer is not None


def two_layers(part: str, layer: int | None) -> bool:
    return part in DENSE and layer in (0, 1)


ARRANGEMENTS: dict[str, tuple[Callable[..., bool], dict[int, tuple[int, ...]] | None]] = {
    "everything": (everything, None),
    "dense parts": (dense, None),
    "attention": (attention, None),
    "attention, some experts": (attention, {1: (0, 3, 4, 5, 15), 2: (7,)}),
    "dense parts, a layer of experts": (dense, {1: tuple(range(16)), 2: (1, 2, 9)}),
    "two layers, some experts": (two_layers, {1: (2, 3, 14)}),
}


@pytest.fixture(scope="module")
def pretended() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        plain_gpu.pretend(patch)
        yield


@pytest.fixture
def load(pretended: None, tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """load(path, chosen, experts, **run): on both sides; chosen None: on the CPU."""
    engines: list[Engine] = []

    def open_engine(path: Path, chosen: Any = None, experts: Any = None, **run: Any) -> Engine:
        settings: dict[str, Any] = {"context": 512, "threads": 2, **run}
        if chosen is None:
            settings["device"] = "cpu"
        else:
            config = RunConfig(**settings, device="cpu")
            settings["plan"] = plain_gpu.placed(path, tmp_path / "plan.json", config, chosen, experts)
        engine, _ = hetero.load(path, RunConfig(**settings))
        engines.append(engine)
        return engine

    yield open_engine
    for engine in engines:
        engine.close()


def assert_close(ours: np.ndarray, theirs: np.ndarray, limit: float = CLOSE) -> None:
    """Token by token, but for one in twenty, whose experts a near-tie decides."""
    error = np.sqrt(np.square(ours - theirs).mean(-1) / np.square(theirs).mean(-1))
    assert ours.shape == theirs.shape and np.isfinite(ours).all()
    assert np.quantile(error, 0.95) < limit, np.sort(error)[-5:]


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_every_arrangement_computes_the_same(name: str, load, model_file, monkeypatch) -> None:
    monkeypatch.setattr(hetero.hybrid, "HALVES_FROM", 128)
    path = model_file("tiny", "F16")
    cpu, both = load(path), load(path, *ARRANGEMENTS[name])
    assert isinstance(both.model, HybridModel)
    assert_close(both.logits(IDS), cpu.logits(IDS))
    cuts = [1, 2, 4, 6, 10, 14, 20, 28]  # passes of 1, 2, 4 and 8 tokens are replayed
    assert_close(in_chunks(both, IDS, cuts), in_chunks(cpu, IDS, cuts))
    for engine in (cpu, both):
        engine.forget()
        engine.prefill(list(LONG[:280]))  # in halves, expanded
    assert_close(both.scores(list(LONG[280:])), cpu.scores(list(LONG[280:])))


class AtEachLayer(Pace):
    """Pauses wherever it may on the GPU's side."""

    def __init__(self) -> None:
        super().__init__(1.0)

    def fitting(self, kind, costs):
        return 0 if kind == "layer" else len(costs)


class BehindTheGpu(Pace):
    """Pauses where the CPU is alone, some times."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.left = 5

    def fitting(self, kind, costs):
        self.left -= kind != "layer"
        return len(costs) if kind == "layer" or self.left < 0 else 0


def through(phases: Iterator[None], at_pause: Callable[[], None]) -> Any:
    while True:
        try:
            next(phases)
        except StopIteration as end:
            return end.value
        at_pause()


def read_while_decoding(engine: Engine, pace: Pace) -> tuple[list[Any], list[np.ndarray]]:
    """Of each pass logits and what was chosen; and logits of the other sequence's steps."""
    results, steps = list[Any](), list[np.ndarray]()
    for ids, logits_at in ((LONG[:280], range(0)), (LONG[280:], range(3))):
        with engine.batch([(0, list(ids))], logits_at) as batch:
            phases = engine.model.phases(batch, engine.cache.layers, pace)
            results.append(through(phases, lambda: steps.append(engine.step([1], [IDS[len(steps)]]))))
            results += [ids.copy() for ids in engine.model.choices()]
    return results, steps


# Behind each of the GPU's layers, of each half; of a prompt without logits not behind the last layer of all
PAUSES = {"attention, some experts": 2 * 2 + 3, "two layers, some experts": 2 * 2 + 2, "everything": 2 * 2 + 3}


@pytest.mark.parametrize("name", PAUSES)
def test_steps_between_the_pieces_of_a_pass_change_nothing(name: str, load, model_file, monkeypatch) -> None:
    """A prompt in halves, then logits of its end, while another sequence decodes; and what was chosen is the pass's.

    What the CPU has behind the GPU's layers is in pieces, too.
    """
    monkeypatch.setattr(hetero.hybrid, "HALVES_FROM", 128)
    engine = load(model_file("tiny", "F16"), *ARRANGEMENTS[name], sequences=2)
    found: list[list[Any]] = []
    for pace in (Pace(), AtEachLayer(), BehindTheGpu()):
        results, steps = read_while_decoding(engine, pace)
        if isinstance(pace, BehindTheGpu):
            assert bool(steps) == (engine.model.last is not None)
        else:
            assert len(steps) == (0 if pace.whole else PAUSES[name])
        while len(steps) < 12:
            steps.append(engine.step([1], [IDS[len(steps)]]))
        found.append([*results, *steps, engine.scores([7])])
        engine.cache.truncate(0, 0)
        engine.cache.release(1)
    assert found[0][0] is None and len(found[0][1]) == 280 and found[0][3].shape == (3, engine.config.vocab_size)
    for whole, *others in zip(*found, strict=True):
        for other in others:
            np.testing.assert_array_equal(whole, other)


def test_steps_of_several_sequences(load, model_file) -> None:
    """At depths of their own, in any order; a recorded step is as wide as a sequence, not as all of them."""
    path, found = model_file("tiny", "F16"), list[np.ndarray]()
    for arrangement in ((), ARRANGEMENTS["attention, some experts"]):
        engine = load(path, *arrangement, sequences=3)
        for row, count in enumerate((3, 70, 130)):
            assert not list(engine.read(row, list(LONG[row : row + count]), Pace()))
        steps = ([0, 1, 2], [2, 0], [1, 2], [1], [2, 1, 0])
        found.append(np.concatenate([engine.step(rows, [int(IDS[row]) for row in rows]) for rows in steps]))
    assert_close(found[1], found[0])
    assert isinstance(engine.model, HybridModel) and sorted(engine.model.steps) == [1, 2, 3]
    tables = {step.inputs.step.block_table.shape for step in engine.model.steps.values()}
    assert tables == {(count, engine.cache.block_table.shape[1]) for count in (1, 2, 3)}


def test_parts_are_where_the_plan_says(load, model_file) -> None:
    model = load(model_file("tiny", "F16"), *ARRANGEMENTS["two layers, some experts"]).model
    networks = [block.feed_forward for block in model.blocks]
    assert [type(block.attention.side) is GpuSide for block in model.blocks] == [True, True, False]
    assert type(networks[1]) is SplitMoE and networks[1].routed is not None and type(networks[2]) is MoE
    assert model.output.side is model.cpu and model.on_gpu == 2
    model = load(model_file("tiny", "F16"), *ARRANGEMENTS["attention"]).model
    networks = [block.feed_forward for block in model.blocks]
    assert [type(network) for network in networks] == [OffloadedFFN, SplitMoE, SplitMoE]
    model = load(model_file("tiny", "F16"), *ARRANGEMENTS["everything"]).model
    assert not model.doorbells.meetings and model.output.side is model.gpu


@pytest.mark.parametrize("tokens", [1, 8, 40])
def test_experts_of_a_layer_on_both_sides_add_up(tokens: int, load, model_file) -> None:
    """Tokens whose experts are all here, all there, and on both sides; and nobody computes one twice."""
    path, here = model_file("tiny", "F16"), (0, 3, 4, 5, 9, 10, 11, 15)
    cpu, both = load(path).model, load(path, attention, {1: here}).model
    x = np.random.default_rng(tokens).standard_normal((tokens, cpu.config.hidden_size), np.float32)
    expected, split = cpu.blocks[1].feed_forward(x.copy()), both.blocks[1].feed_forward
    assert_close(split(torch.from_numpy(x)).numpy(), expected)
    np.testing.assert_array_equal(np.sort(split.choice()), np.sort(cpu.blocks[1].feed_forward.choice()))
    split.submit(torch.from_numpy(x))
    mine = split._here.numpy().copy()
    split.collect()
    on_gpu = np.isin(split.choice(), here)
    assert (np.abs(mine).max(axis=1) > 0).tolist() == on_gpu.any(axis=1).tolist()
    assert tokens < 40 or len(set(on_gpu.sum(axis=1))) > 2, "of different tokens different numbers are here"


def test_time_by_part(load, model_file) -> None:
    """Of a model on both sides, the last layer and the head on the CPU; what is cached is left as it was."""
    engine = load(model_file("tiny", "F16"), *ARRANGEMENTS["two layers, some experts"])
    engine.prefill(list(IDS[:20]))
    expected, blocks = engine.scores([IDS[20]]), list(engine.model.blocks)
    engine.cache.truncate(0, 20)
    found = time_by_part(engine, list(IDS[20:24]))
    assert list(found) == list(PARTS) and all(found[part] > 0 for part in PARTS if part != "other")
    assert engine.model.last.model is engine.model and engine.model.blocks == blocks
    engine.cache.truncate(0, 20)
    np.testing.assert_array_equal(engine.scores([IDS[20]]), expected)


@pytest.mark.parametrize("shape", ["v2-lite", "v2"])
def test_other_models(shape: str, load, model_file) -> None:
    """No q_lora; softmax with groups and without a bias."""
    path = model_file(shape, "F16")
    cpu, both = load(path), load(path, attention, {2: (0, 1, 5)})
    assert_close(both.logits(IDS), cpu.logits(IDS))
    assert_close(in_chunks(both, IDS[:12], range(1, 12)), in_chunks(cpu, IDS[:12], range(1, 12)))


@pytest.mark.parametrize(("type", "changes"), [("Q4_K", {}), ("Q8_0", {"kv_b_split": False})])
def test_quantized_weights(type: str, changes: dict[str, Any], load, model_file, reference) -> None:
    """The CPU rounds activations of quantized weights to 8 bits, the GPU does not: it is nearer to what is right."""
    path = model_file("tiny", type, **changes)
    right = reference(path, IDS)
    cpu, both, gpu = load(path), load(path, *ARRANGEMENTS["attention, some experts"]), load(path, everything)
    of_cpu, of_both, of_gpu = (median_token_error(engine.logits(IDS), right) for engine in (cpu, both, gpu))
    assert of_gpu < 2e-3 and of_both < 1.1 * of_cpu, (of_cpu, of_both, of_gpu)
    assert median_token_error(in_chunks(gpu, IDS[:12], range(1, 12)), right[:12]) < 2e-3


def test_a_quantized_cache(load, model_file) -> None:
    path = model_file("tiny", "F16")
    cpu, both = (load(path, *arrangement, kv="q8_0") for arrangement in ((), (everything,)))
    assert median_token_error(both.logits(IDS), cpu.logits(IDS)) < 1e-2, "its own rounding is that of 8 bits"


@pytest.mark.parametrize("where", [{"mmap": True}, {"weights_cache": "cache"}])
def test_the_cpu_s_experts_may_lie_anywhere(where: dict[str, Any], load, model_file, tmp_path: Path) -> None:
    if "weights_cache" in where:
        where = {"weights_cache": str(tmp_path / "cache")}
    path, arrangement = model_file("tiny", "F16"), ARRANGEMENTS["dense parts, a layer of experts"]
    assert np.array_equal(load(path, *arrangement, **where).logits(IDS), load(path, *arrangement).logits(IDS))


def test_experts_chosen_are_counted(load, model_file) -> None:
    path = model_file("tiny", "F16")
    found = []
    for engine in (load(path), load(path, *ARRANGEMENTS["attention, some experts"])):
        engine.forget()
        engine.scores([IDS[0]])
        found.append([np.sort(ids) for ids in engine.model.choices()])
    np.testing.assert_array_equal(found[0], found[1])


def test_the_bundled_model_says_the_same(load) -> None:
    """Greedily, but for near-ties."""
    question = [{"role": "user", "content": "What is the capital of France?"}]
    engines = [load(demo.path()), load(demo.path(), attention, {1: (0, 1, 2)}), load(demo.path(), everything)]
    answers = []
    for engine in engines:
        tokenizer = hetero.Tokenizer.from_gguf(engine.file)
        ids = chat_prompt(ChatTemplate.from_gguf(engine.file, tokenizer), question, None).ids
        answers.append(tokenizer.decode(list(engine.generate(ids, Sampling(temperature=0.0, max_tokens=16)))))
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize(
    ("chosen", "experts", "message"),
    [
        (lambda part, layer: part in ("mla", "norms", "router") and layer in (1, 2), None, "attention of 1, 2 on gpu0"),
        (lambda part, layer: part == "mla", None, r"parts blk\.0\.attn_norm\.weight from its layer's attention"),
        (lambda part, layer: attention(part, layer) and layer == 0, {1: (0,)}, "a network of layer 1 on gpu0"),
        (lambda part, layer: dense(part, layer) and layer != 2, None, "the head on gpu0; the last layers"),
        (attention, {1: tuple(range(16))}, "all routed experts of layer 1 on gpu0; its shared expert"),
        (lambda part, layer: attention(part, layer) or part == "embedding", None, "token_embd.weight on gpu0"),
    ],
)
def test_plans_that_no_gpu_computes(chosen, experts, message: str, load, model_file) -> None:
    with pytest.raises(UnsupportedError, match=message):
        load(model_file("tiny", "F16"), chosen, experts)


def test_halves_meet_in_turn() -> None:
    """Never is one submitted before the other was collected."""
    log: list[str] = []

    def half(name: str) -> Generator[bool, None, str]:
        for layer in range(2):
            for stage in ("attention", "submit", "collect"):
                log.append(f"{name}{layer} {stage}")
                yield stage == "collect"
        return name

    pauses = alternate([half("a"), half("b")], Pace(1e-12), 5, lambda: log.append("settled"))
    while (ended := next(pauses, "ended")) is None:
        assert log[-1] == "settled" and "collect" in log[-2], "in the middle of a meeting"
        log.append("paused")
    assert ended == "ended" and log.count("paused") == 4
    assert log[-1] == "settled", "nothing is left for the next step to wait for"
    log[:] = [line for line in log if line not in ("settled", "paused")]
    meetings = [line for line in log if "attention" not in line]
    assert meetings == [f"{name}{layer} {do}" for layer in (0, 1) for name in "ab" for do in ("submit", "collect")]
    assert log.index("b0 attention") < log.index("a0 collect"), "the GPU has work while the CPU computes"
    assert log.index("a1 attention") < log.index("b0 collect")

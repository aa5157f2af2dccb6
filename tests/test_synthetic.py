"""Models without a file: which layers are made, what their weights are, and what their speed says of the whole."""

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import hetero.random_weights
import hetero.synthetic
from cli import app
from cpu_kernels import SUPPORTED, Matrix, Pool, dequantize, topology
from cpu_kernels.matrix import LANES
from hetero import RunConfig, demo, gpu_machine
from hetero.arena import Slot, arena_bytes, arrange, place
from hetero.bench import Bench, run_bench
from hetero.bench_report import describe
from hetero.engine import Engine
from hetero.errors import HeteroError, RequestError, ResourceError, UnsupportedError
from hetero.extrapolate import PassTimes, extrapolated, whole_pass
from hetero.hybrid import HybridModel
from hetero.known_models import Router
from hetero.planning import Planned, plan_of_whole, unmeasured_machine
from hetero.random_weights import PERIOD_BYTES, UNIT_BYTES, PatternFile, PatternReader, kind_of, random_rows
from hetero.synthetic import PATTERNS_BYTES, Routing, Slice, load_slice, make_slice, slice_report
from hetero.terminal import Screen
from placement.model import Dimensions
from placement.presets import MODELS, names, preset
from tests import plain_gpu
from tests.deviation import median_token_error
from tests.random_weights import values_of

DEMO = str(demo.path())
SMALL = Dimensions(
    vocab_size=512, hidden_size=256, layers=8, dense_layers=2, nextn_layers=0, heads=8, q_lora_rank=256,
    kv_lora_rank=256, nope_dim=32, rope_dim=32, value_dim=32, intermediate_size=512, expert_intermediate_size=256,
    experts=16, experts_used=4, shared_experts=1, context_length=4096,
)  # fmt: skip
GB = 10**9


pytestmark = pytest.mark.usefixtures("brief_probe")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model like the presets' that a test has time for."""
    monkeypatch.setitem(MODELS, "small", SMALL)
    routing = Routing(Router("sigmoid", 4, 2), True, 2.5, hetero.synthetic.ROUTINGS["deepseek-v3"].rope)
    monkeypatch.setitem(hetero.synthetic.ROUTINGS, "small", routing)


def free(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    monkeypatch.setattr("hetero.planning.free_memory", lambda: nbytes)


# Weights


@pytest.mark.parametrize("type", sorted(SUPPORTED))
def test_random_rows_are_finite_centred_and_of_the_wanted_size(type: str) -> None:
    with Pool(1) as pool:
        rows = random_rows(pool, np.random.default_rng(1), type, (96, 2048), std=0.0118)
    values = values_of(rows, type)
    assert values.shape == (96, 2048) and np.isfinite(values).all()
    assert values.std(dtype=np.float64) == pytest.approx(0.0118, rel=0.03)
    assert abs(values.mean(dtype=np.float64)) < 0.02 * 0.0118
    assert np.abs(values.mean(axis=1)).max() < 0.5 * 0.0118, "no row leans to one side"
    assert len(np.unique(rows, axis=0)) == 96


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "small", SMALL)
        patch.setitem(hetero.synthetic.ROUTINGS, "small", hetero.synthetic.ROUTINGS["deepseek-v3"])
        run = RunConfig(context=256, threads=2)
        made = make_slice("small:q4_k_m", 3, run, 256)
    engine = load_slice(made, run)
    yield engine
    engine.close()


def test_tensors_in_memory_hold_what_they_should(engine: Engine) -> None:
    """Every weight finite and of the wanted size; experts, layers and tensors of one kind differ."""
    seen: dict[bytes, str] = {}
    for name, tensor in engine.file.tensors.items():
        if tensor.layout == "x16":
            *stack, rows, columns = tensor.shape
            matrix = Matrix.x16(tensor.data, tensor.type, rows, columns, flat=not stack)
            values = dequantize(engine.pool, matrix)
        else:
            values = values_of(np.ascontiguousarray(tensor.data), tensor.type)
        kind = kind_of(name, tensor.type, tensor.shape)
        few = 10 / math.sqrt(values.size)
        assert np.isfinite(values).all()
        assert values.std() == pytest.approx(kind.std, rel=0.1 + few), name
        assert values.mean() == pytest.approx(kind.mean, abs=kind.std * (0.02 + few)), name
        for matrix_values in values.reshape(-1, *values.shape[-2:]):
            key = matrix_values.tobytes()[:1024]
            assert seen.setdefault(key, name) is name and list(seen).count(key) == 1, (name, seen[key])


def test_matrices_in_memory_are_the_rows_of_their_patterns() -> None:
    """Also where a matrix is longer than the pattern, or begins in its middle: 17 rows of 96 values, over and over."""
    shapes = {
        "blk.0.attn_output.weight": (48, 96),
        "blk.1.attn_output.weight": (3, 16, 96),
        "output_norm.weight": (96,),
    }
    with Pool(2) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(hetero.random_weights, "PERIOD_BYTES", 17 * 102)
        file = PatternFile(
            "made", ((name, "F32" if "_norm" in name else "Q8_0", shapes[name]) for name in shapes), pool
        )
        slots = arrange([Slot(t.name, t, "gguf" if "_norm" in t.name else "x16") for t in file.tensors.values()])
        arena = np.empty(arena_bytes(slots), np.uint8)
        for _ in PatternReader(file, slots, pool, kept=0).fill(arena, lambda *event: None):
            pass
        pattern = np.frombuffer(os.pread(file.descriptor, 17 * 102, file.starts[0]), np.uint8).reshape(17, 102)
        file.close()
        matrices = list(place(slots, arena).values())[:2]
        made = [dequantize(pool, Matrix.x16(t.data, "Q8_0", t.shape[-2], 96)) for t in matrices]
    rows = np.concatenate([values.reshape(-1, 96) for values in made])
    assert np.array_equal(rows, np.resize(values_of(pattern, "Q8_0"), (96, 96)))


@pytest.mark.parametrize("quantization", ["q8_0", "q4_k_m"])
def test_weights_are_the_same_on_two_nodes(quantization: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, logits, lines = RunConfig(context=64, threads=2), list[np.ndarray](), list[str]()
    for nodes in (1, 2):
        node = topology.Node(0, tuple(sorted(os.sched_getaffinity(0))), 0)
        monkeypatch.setattr(topology, "nodes", lambda nodes=nodes, node=node: (node,) * nodes)
        engine = load_slice(make_slice(f"small:{quantization}", 2, run, 64), run, notice=lines.append)
        logits.append(engine.logits([3, 1, 4, 1, 5, 9, 2, 6]))
        engine.close()
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=2e-2 * np.abs(logits[0]).max())
    assert len(lines) == 1 and "2 NUMA nodes" in lines[0]


def test_the_model_computes_something_sensible(engine: Engine) -> None:
    logits = engine.logits(np.random.default_rng(0).integers(0, 512, 100).tolist())
    assert np.isfinite(logits).all() and 1 < logits.std() < 4
    assert len(set(logits.argmax(axis=1).tolist())) > 50
    for mixture in engine.model.mixtures:
        counts = np.bincount(mixture.chosen.reshape(-1), minlength=16)
        assert counts.sum() == 400 and counts.min() >= 5 and counts.max() < 75, "uniform is 25"


def test_patterns_stay_small() -> None:
    for name in names():
        tensors = preset(name).tensors
        kinds = {kind_of(t.name, t.type, t.shape) for t in tensors if t.type in SUPPORTED}
        lengths = [PERIOD_BYTES + max(UNIT_BYTES, 17 * kind.row_bytes) for kind in kinds]
        assert sum(lengths) < PATTERNS_BYTES


# On a GPU


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """gpu(bytes): plain torch in the place of a GPU with so much memory."""

    def pretend(nbytes: int) -> None:
        plain_gpu.pretend(monkeypatch)
        card = lambda machine: gpu_machine._described(machine, plain_gpu.CARD, nbytes)  # noqa: E731
        monkeypatch.setattr("hetero.planning.with_gpu", card)

    return pretend


def room_for_half(gpu: Callable[[int], None]) -> None:
    """Of the experts of the small model, and for everything else."""
    gpu(2 * GB)
    run = RunConfig(context=256, device="cuda")
    planned = hetero.synthetic._planned(make_slice("small:q4_k_m", 3, run, 256), run)
    whole = preset("small:q4_k_m")
    use = plan_of_whole(whole, planned.machine, planned.plan.settings).memories[0]
    experts = sum(tensor.nbytes for tensor in whole.by_part["routed experts"])
    gpu(use.weight_bytes + use.kv_bytes + use.buffer_bytes - experts // 2)


def experts_there(planned: Planned) -> int:
    there = [one for one in planned.plan.tensors if one.place == "gpu0" and "ffn_gate_exps" in one.name]
    return sum(16 if one.experts is None else len(one.experts) for one in there)


def test_a_slice_on_both_sides_computes_what_it_does_on_the_cpu(gpu) -> None:
    """Random weights reach the GPU through the reader of files; a CPU rounds activations to 8 bits, a GPU does not."""
    ids, logits = np.random.default_rng(0).integers(0, 512, 40).tolist(), list[np.ndarray]()
    for device in ("cpu", "cuda"):
        if device == "cuda":
            room_for_half(gpu)
        run = RunConfig(context=256, threads=2, device=device)  # type: ignore[arg-type]
        engine = load_slice(make_slice("small:q4_k_m", 3, run, 256), run)
        if device == "cuda":
            assert engine.planned is not None and 20 <= experts_there(engine.planned) <= 24
            assert isinstance(engine.model, HybridModel) and engine.model.doorbells.meetings
        logits.append(engine.logits(ids))
        engine.close()
    assert median_token_error(logits[1], logits[0]) < 3e-2


def test_as_large_a_share_of_experts_is_on_the_gpu_as_of_the_whole_model(gpu, monkeypatch) -> None:
    """388 of 14,848 or so, where three layers alone would have nearly all of theirs there."""
    free(monkeypatch, 10**12)
    gpu(24 << 30)
    run = RunConfig(device="cuda", context=8192)
    made = make_slice("deepseek-v3:q4_k_m", 3, run, 8192)
    planned = hetero.synthetic._planned(made, run)
    whole = plan_of_whole(made.whole, planned.machine, planned.plan.settings)
    shares = []
    for plan, layers in ((planned.plan, 3), (whole, 58)):
        parts = [one for one in plan.tensors if one.place == "gpu0" and "ffn_gate_exps" in one.name]
        shares.append(sum(256 if one.experts is None else len(one.experts) for one in parts) / layers / 256)
    assert shares[0] == pytest.approx(shares[1], rel=0.1) and 0.01 < shares[1] < 0.04


def test_a_gpu_too_small_for_all_layers_alike(gpu, monkeypatch) -> None:
    free(monkeypatch, 10**12)
    gpu(8 << 30)
    with pytest.raises(UnsupportedError, match=r"dense parts of deepseek-v3:q4_k_m on the GPU; it has not room .* cpu"):
        make_slice("deepseek-v3:q4_k_m", 3, RunConfig(device="cuda"), 8192)
    run = RunConfig(device="auto")
    planned = hetero.synthetic._planned(make_slice("deepseek-v3:q4_k_m", 3, run, 8192), run)
    assert planned.plan.settings.device == "cpu" and "not all dense parts of the whole model" in planned.notes[0]


def test_bench_on_a_gpu(gpu, monkeypatch) -> None:
    room_for_half(gpu)
    box = plain_gpu.machine_with_gpu(unmeasured_machine())
    monkeypatch.setattr("hetero.prediction.probe", lambda *_, **__: box)
    monkeypatch.setattr("hetero.hybrid.HALVES_FROM", 64)
    result = bench(layers=2, device="cuda", prompt=140, repeat=1)
    assert result["extrapolated_from_layers"] == 3
    speeds = [result[f"{what}_tokens_per_second"] for what in ("decode", "prefill", "predicted_decode")]
    assert all(math.isfinite(speed) and speed > 0 for speed in speeds)
    assert all(result["parts"][part] > 0 for part in ("attention", "experts", "dense", "head"))
    assert result["decode_ceiling_tokens_per_second"] > 0 and describe(result)


# Which layers


def down_types(made: Slice) -> list[str]:
    return [t.type for t in made.model.tensors if t.name.endswith("ffn_down_exps.weight")]


def test_a_slice_has_true_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of DeepSeek-V3 at Q4_K_M 27 layers of 58 have larger down projections: half of the layers made have them too."""
    free(monkeypatch, 10**12)
    made = make_slice("deepseek-v3:q4_k_m", 2, RunConfig(), 512)
    assert made.layers[0] == 0 and len(made.layers) == 3 and sorted(down_types(made)) == ["Q4_K", "Q6_K"]
    assert down_types(make_slice("deepseek-v3:q4_k_m", 1, RunConfig(), 512)) == ["Q4_K"]
    assert sorted(down_types(make_slice("deepseek-v3:q4_k_m", 9, RunConfig(), 512))) == ["Q4_K"] * 5 + ["Q6_K"] * 4
    whole = {t.name: (t.type, t.shape) for t in preset("deepseek-v3:q4_k_m").tensors}
    for tensor in made.model.tensors:
        name = tensor.name
        if tensor.layer is not None:
            name = f"blk.{made.layers[tensor.layer]}." + name.split(".", 2)[2]
        assert whole.pop(name) == (tensor.type, tensor.shape)
    assert all(name.startswith("blk.") for name in whole)
    assert (made.config.layers, made.config.dense_layers, made.config.experts) == (3, 1, 256)


def test_as_many_layers_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of DeepSeek-V3 at Q4_K_M has 6.5 to 7.7 GB, head and embedding 1.3 GB, a dense layer 0.4 GB."""
    found = {}
    for gigabytes in (12, 20, 30, 500):
        free(monkeypatch, gigabytes * GB)
        made = make_slice("deepseek-v3:q4_k_m", None, RunConfig(), 512)
        found[gigabytes] = len(made.layers), made.is_whole
        assert made.model.nbytes < gigabytes * GB - 1.0e9
    assert found == {12: (2, False), 20: (3, False), 30: (4, False), 500: (61, True)}


def test_context_takes_room_too(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 18 * GB)
    assert len(make_slice("deepseek-v3:q4_k_m", None, RunConfig(), 512).layers) == 3
    assert len(make_slice("deepseek-v3:q4_k_m", None, RunConfig(kv="f32"), 160_000).layers) == 2


def bench(**what: Any) -> dict[str, Any]:
    names = ("mmap", "weights_cache", "context", "plan", "sequences", "device")
    run = {name: what.pop(name) for name in names if name in what}
    settings: dict[str, Any] = {"model": DEMO, "prompt": 40, "generate": 4, "repeat": 2, "synthetic": "small:q4_k_m"}
    return run_bench(Bench(**settings | what), RunConfig(threads=2, **run), Screen())


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ({"synthetic": "deepseek-v3"}, RequestError, "nearest: deepseek-v3:q4_k_m"),
        ({"layers": 0}, RequestError, "--layers 0; small:q4_k_m has 1 to 6 layers with experts"),
        ({"layers": 7}, RequestError, "--layers 7"),
        ({"synthetic": "deepseek-v3:fp8"}, UnsupportedError, "F8_E4M3; no kernel yet: .* measure deepseek-v3:q8_0"),
        ({"compare": "llama.cpp"}, RequestError, "--compare llama.cpp with --synthetic; a synthetic model has no file"),
        ({"model": "other.gguf"}, RequestError, "other.gguf with --synthetic"),
        ({"mmap": True}, RequestError, "a synthetic model with --mmap; it has no file"),
        ({"weights_cache": "there"}, RequestError, "--weights-cache"),
        ({"plan": "p.json"}, RequestError, "a synthetic model with --plan; it has no file"),
        ({"expert_counts": "/x"}, RequestError, "--expert-counts with --synthetic; random weights choose .* at random"),
        ({"prompt": 5000}, RequestError, "small:q4_k_m was made for at most 4096"),
        ({"context": 20}, RequestError, "--context 20 holds fewer"),
    ],
)
def test_refused(what: dict[str, Any], error: type[HeteroError], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpu_kernels.Pool", None)  # before anything is made
    with pytest.raises(error, match=said):
        bench(**what)


@pytest.mark.parametrize(
    ("gigabytes", "layers", "said"),
    [
        (12, 3, "with 3 layers with experts: weights, cache and working memory need 21.1 GiB of DRAM; 10.7 GiB may be"
         " used, beside 512.00 MiB for making the weights; lower --layers to 1"),
        (6, None, "with a single layer with experts: weights, cache and working memory need 8.2 GiB of DRAM; 5.1 GiB"
         " may be used, beside 512.00 MiB for making the weights; take the model quantized to 2.7 bits"),
        (6, 3, "deepseek-v3:q4_k_m with a single layer with experts: "),
        (1, 1, "the cache for 1 x 40 tokens in f16 and working memory need 0.6 GiB; 0.4 GiB of DRAM may be used"),
    ],
)  # fmt: skip
def test_what_does_not_fit(gigabytes: int, layers: int | None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, gigabytes * GB)
    monkeypatch.setattr("cpu_kernels.Pool", None)
    with pytest.raises(ResourceError, match=re.escape(said)):
        bench(synthetic="deepseek-v3:q4_k_m", layers=layers)


def test_the_layers_that_are_named_fit_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 60 * GB)
    with pytest.raises(ResourceError) as refused:
        make_slice("deepseek-v3:q4_k_m", 40, RunConfig(), 4096)
    count = int(refused.value.remedy.removeprefix("lower --layers to "))
    assert (
        make_slice("deepseek-v3:q4_k_m", None, RunConfig(), 4096).layers[1:]
        == (make_slice("deepseek-v3:q4_k_m", count, RunConfig(), 4096).layers[1:])
    )
    with pytest.raises(ResourceError, match=f"lower --layers to {count}$"):
        make_slice("deepseek-v3:q4_k_m", count + 1, RunConfig(), 4096)


def test_a_limit_on_memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 30 * GB)
    assert len(make_slice("deepseek-v3:q4_k_m", None, RunConfig(), 512).layers) == 4
    assert len(make_slice("deepseek-v3:q4_k_m", None, RunConfig(memory=20 * GB), 512).layers) == 3


def test_the_plan_is_carried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Context and threads of it; and memory that went meanwhile is missed before anything is made."""
    run = RunConfig(threads=1, kv="q8_0")
    made = make_slice("small:q4_k_m", 1, run, 8192)
    engine = load_slice(made, run)
    try:
        assert engine.planned is not None and engine.planned.plan.mode == "resident"
        assert engine.context == engine.planned.context == 4096, "the model's, where none is given"
        assert engine.pool.threads == engine.planned.plan.threads == 1
        (use,) = engine.planned.dram
        assert use.weight_bytes == made.model.nbytes and use.kv_bytes == engine.cache.nbytes
    finally:
        engine.close()
    free(monkeypatch, GB)
    monkeypatch.setattr("cpu_kernels.Pool", None)
    with pytest.raises(ResourceError, match=r"with a single layer with experts: the cache .*GiB of DRAM may be used"):
        load_slice(made, run)


def test_the_arena_is_as_large_as_planned() -> None:
    """Whole groups of 16 rows, and whole pages: little more than the tensors of the plan."""
    for name in names():
        for tensor in preset(name).tensors:
            if tensor.type in SUPPORTED and len(tensor.shape) > 1 and tensor.name != "token_embd.weight":
                assert tensor.shape[-2] % LANES == 0, (name, tensor)


def test_refusals_are_one_line_on_the_terminal() -> None:
    for arguments, said in ((["kimi:q2"], "nearest: kimi-k2:q2_k"), (["deepseek-v3:q2_k", "--layers", "0"], "1 to 58")):
        result = CliRunner().invoke(app, ["bench", "--synthetic", *arguments])
        assert result.exit_code == 1 and said in result.stderr and result.stdout == ""


# From layers to the whole


def seconds(made: Slice, dense: float, of_type: dict[str, float]) -> PassTimes:
    feed_forward = [dense, *(of_type[type] for type in down_types(made))]
    return PassTimes([1.0] * len(feed_forward), feed_forward, head=7.0, other=1.0 + 0.5 * len(feed_forward), once=1.0)


def test_layers_stand_for_those_of_their_types(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 10**12)
    made = make_slice("deepseek-v3:q4_k_m", 3, RunConfig(), 512)
    parts = whole_pass(made, seconds(made, dense=4.0, of_type={"Q4_K": 2.0, "Q6_K": 3.0}))
    assert parts == {"attention": 61, "experts": 31 * 2 + 27 * 3, "dense": 12, "head": 7, "other": 1 + 61 * 0.5}
    prompt = whole_pass(made, seconds(made, dense=4.0, of_type={"Q4_K": 2.0, "Q6_K": 3.0}), prompt=True)
    assert (prompt["attention"], prompt["experts"]) == (60, 31 * 2 + 26 * 3), "the last layer only writes the cache"


def test_a_type_that_was_not_measured_goes_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoded token is bound by memory: 210 bytes against 144 for a third of the weights."""
    free(monkeypatch, 10**12)
    made = make_slice("deepseek-v3:q4_k_m", 1, RunConfig(), 512)
    times = seconds(made, dense=4.0, of_type={"Q4_K": 2.0})
    larger = 2.0 * (2 * 144 + 210) / (3 * 144)
    # the router, in f32 in both, moves it a little
    assert whole_pass(made, times)["experts"] == pytest.approx(31 * 2 + 27 * larger, rel=1e-3)
    assert whole_pass(made, times, prompt=True)["experts"] == 57 * 2


def test_the_document_is_that_of_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 10**12)
    made = make_slice("deepseek-v3:q4_k_m", 2, RunConfig(), 4096)
    times = seconds(made, dense=4.0, of_type={"Q4_K": 2.0, "Q6_K": 3.0})
    document = {key: 0.0 for key in ("decode_tokens_per_second", "prefill_tokens_per_second")}
    document |= {"decode_ceiling_tokens_per_second": 0.0, "weight_bytes_per_token": 0, "kv_bytes_at_depth": 0}
    document |= {"parts": {}, "depth": 4096, "kv": "f16", "prompt_tokens": 512, "model": made.name}
    document["read_bandwidth_bytes_per_second"] = 4e11
    facts = {"decoded": [times] * 3, "prefilled": [times], "touched": {}}
    result = extrapolated(document, made, [0.1, 0.3, 0.2], facts)
    slice_seconds = sum(times.by_part(1).values())
    assert slice_seconds == 3 + (4 + 2 + 3) + 7 + 2.5
    whole_seconds = 61 + (12 + 31 * 2 + 27 * 3) + 7 + 31.5
    assert result["decode_tokens_per_second"] == pytest.approx(0.2 * slice_seconds / whole_seconds)
    assert result["decode_tokens_per_second_best"] == pytest.approx(0.3 * slice_seconds / whole_seconds)
    prompt = 60 + (12 + 31 * 2 + 26 * 3) + 7 + 1 + 60 * 0.5 + 1 / result["decode_tokens_per_second"]
    assert result["prefill_tokens_per_second"] == pytest.approx(512 / prompt)
    # 12.3 GB of routed experts and about 9.9 GB of the rest; 70,272 bytes of cache a token
    assert result["weight_bytes_per_token"] == pytest.approx(22.2e9, rel=0.01)
    assert result["kv_bytes_at_depth"] == 4096 * 70_272
    read = result["weight_bytes_per_token"] + result["kv_bytes_at_depth"]
    assert result["decode_ceiling_tokens_per_second"] == 4e11 / read
    assert result["extrapolated_from_layers"] == 3 and result["layers"] == 61
    assert result["slice"]["layers"] == list(made.layers) and result["model_bytes"] == made.whole.nbytes


def test_active_bytes() -> None:
    """As `hetero inspect` counts them in a file."""
    report = slice_report(make_slice("small:q8_0", 6, RunConfig(), 64), whole=True)
    model = preset("small:q8_0")
    routed = sum(t.nbytes for t in model.by_part["routed experts"])
    embedding = model.by_part["embedding"][0].nbytes
    assert report["active_bytes_per_token"] == model.nbytes - routed * 3 // 4 - embedding + embedding // 512


# All of it


def test_a_slice_is_measured_and_extrapolated() -> None:
    result = bench(layers=2, depth=8)
    json.dumps(result)
    assert result["model"] == "small:q4_k_m" and result["extrapolated_from_layers"] == 3
    made = result["slice"]
    assert made["layers"][0] == 0 and len(made["layers"]) == 3 and made["bytes"] < result["model_bytes"]
    for speed in ("decode_tokens_per_second", "prefill_tokens_per_second", "decode_ceiling_tokens_per_second"):
        assert 0 < result[speed] < made[speed], "eight layers are slower than three"
    assert min(result["parts"].values()) >= 0 and list(result["parts"]) == list(made["parts"])
    touched = result["experts_touched"]
    assert {phase: row["tokens"] for phase, row in touched.items()} == {"prefill": 39, "decode": 32}
    for row in touched.values():
        assert 0.85 * row["expected"] < row["distinct"] <= 16
    text = describe(result)
    assert text.count("extrapolated") == 2 and "measured  " not in text and text.index("ceiling") < text.index("extra")
    assert "3 of 8 layers were made and measured, of small:q4_k_m" in text and "uniform routing 16.0" in text


def test_a_model_that_fits_whole_is_measured() -> None:
    result = bench(prompt=1)
    assert result["extrapolated_from_layers"] is None and result["slice"]["layers"] == list(range(8))
    assert result["decode_tokens_per_second"] == result["slice"]["decode_tokens_per_second"]
    assert "extrapolated" not in describe(result) and "measured  " in describe(result)


def test_clocks_change_nothing() -> None:
    """The passes that are taken apart give the cache and the choice of experts that the engine's own do."""
    from hetero.slice_contest import SyntheticHetero

    ids = np.random.default_rng(3).integers(0, 512, 70).tolist()
    run = RunConfig(context=128, threads=2)
    alone = SyntheticHetero(make_slice("small:q4_k_m", 2, run, 128), run)
    try:
        engine = alone.engine
        engine.logits(ids[:-1])
        chosen = [mixture.chosen.copy() for mixture in engine.model.mixtures]
        cache = [layer[engine.cache.block_table[0, 0]].copy() for layer in engine.cache.layers]
        times = alone._prefill_times(ids[:-1])
        assert all(np.array_equal(m.chosen, c) for m, c in zip(engine.model.mixtures, chosen, strict=True))
        page = engine.cache.block_table[0, 0]  # of the first 64 tokens
        assert all(np.array_equal(a[page], b) for a, b in zip(engine.cache.layers, cache, strict=True))
        assert len(times.attention) == len(times.feed_forward) == 3 and min(times.feed_forward) > 0
        before = engine.logits(ids)
        alone.parts(ids)
        assert np.array_equal(engine.logits(ids), before)
    finally:
        alone.close()

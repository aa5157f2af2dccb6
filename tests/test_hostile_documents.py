"""Documents that were damaged, or made to do damage: plans, counts of experts, what was measured of a machine."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hetero import documents, saved_machine
from hetero.documents import read_document
from hetero.errors import RequestError
from hetero.plan_request import read_expert_counts
from hetero.saved_machine import Saved, with_disk
from placement import Description, PlacementError, Plan, Settings, describe, make_plan, preset, replan

MODEL = preset("deepseek-v2-lite:q4_k_m")
MACHINE = describe(Description(memory=32 << 30, memory_bandwidth=80e9, cores=8, gpu="rtx-3090", sockets=2))
PLANS, SAVED = 300, 300  # documents that are tried


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


VALUES = (
    *(10**400, -(10**400), 10**5000, 2**70, 2**63, 2**63 - 1, 2**62, -1, 0, 1, 64, 4096),
    *(1e308, 5e-324, 0.0, 0.5, 1.0, float("nan"), float("inf"), float("-inf"), True, False, None),
    *("", "gpu0", "disk", "node7", "\x00\x1b[31m\n", "é" * 10_000),
    *([], {}, [[]], [None], [True], [1.5], [-1], [10**400], {"a": 1}, nested(900)),
)


def paths(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    if isinstance(node, (dict, list)):
        for key in node if isinstance(node, dict) else range(min(len(node), 4)):
            yield from paths(node[key], (*at, key))


def mutated(text: str, chance: random.Random) -> Any:
    """One to three places of a JSON document: another value, nothing, twice, or a key more."""
    document = json.loads(text)
    for _ in range(chance.randint(1, 3)):
        *way, last = chance.choice(list(paths(document)))
        node = document
        for key in way:
            node = node[key]
        match chance.randrange(6):
            case 0:
                del node[last]
            case 1 if isinstance(node, list):
                node.append(node[last])
            case 1:
                node["colour"] = "red"
            case _:
                node[last] = chance.choice(VALUES)
        if not isinstance(document, dict) or not list(paths(document)):
            break
    return document


def refusals_of(text: str, seed: int, count: int, use: Callable[[Any], None]) -> list[PlacementError]:
    """Of so many mutations; anything but PlacementError is a failure that names its mutation."""
    found = []
    for i in range(count):
        document = mutated(text, random.Random(seed + i))
        try:
            use(document)
        except PlacementError as error:
            found.append(error)
        except Exception as error:
            raise AssertionError(f"mutation {seed + i}: {type(error).__name__}: {error}") from error
    return found


def test_mutated_plans_are_plans_or_refused() -> None:
    def use(document: Any) -> None:
        plan = replan(document, MODEL, MACHINE)
        assert plan.fits and all(use.free_bytes >= 0 for use in plan.memories)
        assert sum(one.bytes for one in plan.tensors) == MODEL.nbytes
        json.dumps(plan.to_json(), allow_nan=False)

    text = json.dumps(make_plan(MODEL, MACHINE, Settings(context=4096, gpu_memory=6 << 30, gpu_experts=70)).to_json())
    found = refusals_of(text, 1, PLANS, use)
    assert PLANS / 2 < len(found) < PLANS, "mutations that matter, and such as do not"
    for error in found:
        assert error.found and error.limit and error.remedy
        assert len(str(error)) < 700 and str(error).isprintable(), str(error)


def test_mutated_machines_predict_or_are_refused() -> None:
    def use(document: Any) -> None:
        saved = Saved.from_json(document)
        if saved.plausible:
            machine = with_disk(saved.machine, ".", dict(saved.disks))
            make_plan(MODEL, machine, Settings(context=4096))

    machine = MACHINE.to_json()
    machine["memories"] = [memory for memory in machine["memories"] if memory["kind"] != "disk"]
    assert refusals_of(json.dumps({"machine": machine, "disks": [["fe01", 2e9]]}), 10_000, SAVED, use)


@pytest.mark.parametrize("value", [0, 5e-324, 1e308])
@pytest.mark.parametrize(
    "way",
    [
        ("memories", 0, "read_bandwidth"),
        ("links", 0, "to_gpu_pinned"),
        ("processors", 0, "attention", 0, "decode"),
        ("processors", 0, "attention", 0, "absorbed"),
        ("processors", 0, "attention", 0, "expanded"),
        ("processors", 1, "linear", 0, "flops_at", 0, 1),
    ],
)
def test_rates_that_no_machine_has_are_not_read(value: float, way: tuple[Any, ...], tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(saved_machine, "directory", lambda: tmp_path)
    document = Saved(MACHINE).to_json()
    document["machine"]["memories"] = [one for one in document["machine"]["memories"] if one["kind"] != "disk"]
    path = saved_machine.path_for({"cpu": "a"})
    path.write_text(json.dumps({"fingerprint": {"cpu": "a"}} | document))
    assert saved_machine.read({"cpu": "a"}) is not None
    node = document["machine"]
    for key in way[:-1]:
        node = node[key]
    node[way[-1]] = value
    path.write_text(json.dumps({"fingerprint": {"cpu": "a"}} | document))
    assert saved_machine.read({"cpu": "a"}) is None


def test_a_disk_among_the_saved_memories_is_not_believed() -> None:
    assert not Saved(MACHINE).plausible, "with_disk would add a second one"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "a": 1}', r"is no JSON document: the key 'a' is there twice"),
        (b'{"a": {"b\\n": 1, "b\\n": 2}}', r"the key 'b\\n' is there twice"),
        (b'{"a": NaN}', r"NaN is no number there"),
        (b"[-Infinity]", r"-Infinity is no number there"),
        (b"9" * 5000, r"is no JSON document: Exceeds the limit"),
        (b"[" * 200_000, r"is no JSON document: "),
        (b'{"a":' * 200_000, r"is no JSON document: "),
        (b"\xff\xfe\x00", r"is no JSON document: "),
        (b"\x00", r"is no JSON document: "),
    ],
)
def test_texts_that_are_no_document(text: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(text)
    with pytest.raises(RequestError, match=message) as caught:
        read_document(str(path))
    assert str(caught.value).isprintable()


def test_paths_that_hold_no_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, a name that cannot be, and a file as large as a model, of which only the beginning is read."""
    for path in (str(tmp_path), str(tmp_path / "none"), "a\x00b"):
        with pytest.raises(RequestError):
            read_document(path)
    monkeypatch.setattr(documents, "MOST_BYTES", 100)
    path = tmp_path / "model.gguf"
    path.write_bytes(b"[" + b" " * 97 + b"1]")
    assert read_document(str(path)) == [1]
    path.write_bytes(b"[" + b" " * 98 + b"1]")
    with pytest.raises(RequestError, match="at most 100 bytes"):
        read_document(str(path))


COUNTS = {"first_layer": 1, "counts": [[1] * 64] * 26}


def test_counts_of_experts_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """One value in a table of them, or in its place: 0 or more, or refused."""
    changes: dict[str, Any] = {}
    monkeypatch.setattr("hetero.plan_request.read_document", lambda path: COUNTS | changes)
    for value in VALUES:
        changes = {"counts": [[1] * 64] * 25 + [[1] * 63 + [value]]}
        if type(value) is int and 0 <= value < 1 << 62:
            assert read_expert_counts("counts.json", MODEL)[25][63] == value
            continue
        with pytest.raises(RequestError, match="holds no expert counts") as caught:
            read_expert_counts("counts.json", MODEL)
        for name in ("counts", "first_layer"):
            changes = {name: value}
            with pytest.raises(RequestError) as caught:
                read_expert_counts("counts.json", MODEL)
            assert caught.value.limit and caught.value.remedy
            assert len(str(caught.value)) < 400 and str(caught.value).isprintable()


def test_an_unchanged_document_is_the_same_plan() -> None:
    plan = make_plan(MODEL, MACHINE, Settings(context=4096))
    assert replan(json.loads(json.dumps(plan.to_json())), MODEL, MACHINE) == plan == Plan.from_json(plan.to_json())

"""The layout's import rules: who may import whom, and which packages may be spelled where."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAVES = ("placement", "cpu_kernels", "gpu_kernels")
LOCAL = ("cli", "hetero", *LEAVES)

# Rows of hetero/, bottom first: a module may import modules of the rows below, and of its own row those to its left.
ROWS = [
    [
        "errors",
        "telemetry",
        "quant_types",
        "sizes",
        "free_memory",
        "demo",
        "stopwatch",
        "saved_machine",
        "documents",
        "pace",
    ],
    ["gguf_header", "gguf", "file_faults"],
    ["known_models", "metadata", "config", "run_config"],
    ["tensors", "inspect", "pretokenizers", "tokenizer", "nucleus", "sampler", "thinking"],
    ["tool_format", "begun_answer", "template_worker", "template_guard", "template_tools", "template"],
    ["continuation", "request"],
    ["rope", "side", "linear", "prefixes", "cache", "launch_watch", "waiting", "flags", "offload"],
    ["attention", "moe", "recorded", "gpu_side", "graph", "offloaded_networks"],
    ["model", "rehearsal", "hybrid"],
    ["page_cache", "reading_order"],
    ["arena", "nodes", "weights", "prefetch", "weight_reader", "weights_cache", "random_weights"],
    ["gpu_machine", "planning", "places"],
    ["gpu_weights", "gpu_placing", "gpu_loading"],
    ["engine"],
    ["sequence", "load_state", "token_gap", "turns", "batching", "scheduler"],  # above the engine: it owns one
    ["loading", "synthetic"],
    ["kernel_rates", "verb_rates", "cpu_rates", "gpu_kernel_rates", "gpu_rates", "disk_rate", "probe"],
    [
        "terminal",
        "progress",
        "prompt",
        "conversation",
        "generate",
        "reasoning_budget",
        "local_chat",
        "remote_server",
        "remote_chat",
        "chat",
        "perplexity",
        "reference",
        "expert_counts",
        "evaluate",
    ],
    ["prediction", "parts", "peer", "contest", "extrapolate", "slice_contest", "bench", "bench_report"],
    ["plan_request", "plan_report", "plan_page"],
    ["server"],
    ["kernel_references", "kernel_checks", "gpu_checks", "system", "environment", "doctor_kernels", "doctor"],
    ["commands"],
]
ONLY_IN = {
    "numba": ["cpu_kernels"],
    "llvmlite": ["cpu_kernels"],
    "triton": ["gpu_kernels"],
    "typer": ["cli", "hetero.commands"],
}
IN_THE_SERVER = ("starlette", "uvicorn", "h11", "pydantic", "prometheus_client", "llguidance")


def sources() -> list[Path]:
    return [ROOT / "cli.py", *(path for package in LOCAL[1:] for path in sorted((ROOT / package).rglob("*.py")))]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Absolute names of everything `path` imports, relative imports resolved."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            found |= {f"{module}.{alias.name}" if module in LOCAL else module for alias in node.names}
    return found


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_edges(path: Path) -> None:
    here = module_of(path).split(".")
    for name in imports(path):
        there = name.split(".")
        if there[0] in ONLY_IN:
            rooms = ONLY_IN[there[0]]
            assert here[0] in rooms or ".".join(here[:2]) in rooms, f"{there[0]} may be imported in {rooms} only"
        if there[0] in IN_THE_SERVER:
            assert here[:2] == ["hetero", "server"], f"{there[0]} may be imported in hetero/server only"
        if there[0] not in LOCAL or there[0] == here[0] == "cli":
            continue
        if here[0] in LEAVES:
            assert there[0] == here[0], f"a leaf may not import {name}"
        elif here[0] == "hetero":
            assert there[0] in ("hetero", *LEAVES), f"hetero may not import {name}"
            if there[0] == "hetero" and len(here) > 1 and len(there) > 1:
                assert_downward(here[1], there[1])


def assert_downward(here: str, there: str) -> None:
    if not there.startswith("__") and here != there:
        assert place(there) < place(here), f"hetero.{here} may not import hetero.{there}: not downward"


def place(module: str) -> tuple[int, int]:
    """(row, position in the row)"""
    found = [(at, names.index(module)) for at, names in enumerate(ROWS) if module in names]
    assert found, f"hetero/{module}.py has no place in ROWS"
    return found[0]


def test_every_module_exists() -> None:
    """A row that names a module nobody wrote would let the list rot."""
    there = {path.stem for path in (ROOT / "hetero").glob("*.py")} | {path.name for path in (ROOT / "hetero").iterdir()}
    assert {name for names in ROWS for name in names} <= there


def test_no_kernel_module_hides_a_verb() -> None:
    import cpu_kernels

    modules = {path.stem for path in (ROOT / "cpu_kernels").rglob("*.py")}
    assert not modules & set(cpu_kernels.__all__)
    assert set(cpu_kernels.__all__) - set(cpu_kernels._HOME) == {"CACHED", "SUPPORTED", "Matrix", "note_compiled"}

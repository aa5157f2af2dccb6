"""The commands: what goes to stdout and stderr, exit status, flags, and what is not imported."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

import cli
import hetero
from hetero import demo
from hetero.commands.verb import guarded
from hetero.errors import ResourceError
from hetero.gguf import open_gguf
from hetero.run_config import RunConfig
from hetero.sampler import Sampling
from hetero.sizes import format_size, parse_size
from hetero.template import ChatTemplate
from hetero.tokenizer import Tokenizer
from tests.fake_engine import FakeEngine, FakeTemplate, FakeTokenizer

ROOT = Path(__file__).parent.parent
VERBS = ("chat", "generate", "serve", "plan", "bench", "eval", "inspect", "doctor")
RUN_FLAGS = {"--" + part.name.replace("_", "-") for part in fields(RunConfig)}
SAMPLING_FLAGS = {"--" + part.name.replace("_", "-") for part in fields(Sampling)}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*arguments: object, stdin: str | io.StringIO = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin) if isinstance(stdin, str) else stdin)
        monkeypatch.setattr(sys, "argv", ["hetero", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Makes hetero.progress.load hand out an engine that recites; the dictionary holds what it was asked for."""
    asked: dict[str, object] = {}

    def load(path: str, run: RunConfig, progress: object, notice: object) -> tuple[FakeEngine, FakeTokenizer]:
        asked.update(path=path, run=run, engine=FakeEngine(["Paris.", "Four."], context=run.context or 1000))
        return asked["engine"], FakeTokenizer()  # type: ignore[return-value]  # a dictionary of objects

    monkeypatch.setattr("hetero.progress.load", load)
    monkeypatch.setattr(ChatTemplate, "from_gguf", lambda file, tokenizer: FakeTemplate())
    return asked


def flags_of(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))


def help_of(verb: str, run: Run) -> str:
    status, out, _ = run(verb, "--help")
    assert status == 0
    return out


def test_help_imports_nothing_heavy() -> None:
    heavy = (
        "numpy",
        "numba",
        "torch",
        "gguf",
        "tokenizers",
        "jinja2",
        "rich",
        "prompt_toolkit",
        "psutil",
        "starlette",
        "hetero.engine",
    )
    code = (
        "import sys, cli\n"
        "try: cli.app(['generate', '--help'])\n"
        "except SystemExit: pass\n"
        f"print('loaded:', [name for name in {heavy!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--temperature" in result.stdout
    assert result.stdout.endswith("loaded: []\n")


def test_help_lists_the_commands_that_exist(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    assert tuple(re.findall(r"^  (\w+)  +[A-Z]", out.split("Commands:")[1], re.MULTILINE)) == VERBS
    assert run("--version")[:2] == (0, f"hetero {hetero.__version__}\n")


def test_each_setting_is_a_flag(run: Run) -> None:
    for verb in ("chat", "generate", "serve", "bench", "eval"):
        assert flags_of(help_of(verb, run)) >= RUN_FLAGS
    for verb in ("chat", "generate", "serve"):
        assert flags_of(help_of(verb, run)) >= SAMPLING_FLAGS


def test_documentation_and_help_name_the_same_flags(run: Run) -> None:
    documented = flags_of((ROOT / "docs" / "cli.md").read_text())
    existing = set().union(*(flags_of(help_of(verb, run)) for verb in VERBS)) | {"--version"}
    assert documented - existing == set(), "documented, but not there"
    assert existing - documented == set(), "there, but not documented"


def documented_sessions() -> list[tuple[str, list[str]]]:
    """(command, lines printed) of each session in docs/cli.md, but for those whose figures differ each time."""
    blocks = re.findall(r"```\n\$ (.+)\n([^`]+)```", (ROOT / "docs" / "cli.md").read_text())
    return [(command, lines.splitlines()) for command, lines in blocks if not re.search("hetero (eval|bench)", command)]


@pytest.mark.parametrize(("command", "lines"), documented_sessions(), ids=lambda value: str(value)[:40])
def test_documented_output_is_real(command: str, lines: list[str]) -> None:
    command = command.replace("hetero ", f"{sys.executable} cli.py ")
    printed = subprocess.run(command, shell=True, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    if lines[-1] == "...":
        assert printed.splitlines()[: len(lines) - 1] == lines[:-1]
    else:
        assert printed.splitlines() == lines


def test_the_code_in_the_readme_runs() -> None:
    (code,) = re.findall(r"```python\n(.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    code = code.replace("DeepSeek-R1-Q4_K_M-00001-of-00009.gguf", "hetero/demo/demo.gguf").replace("8192", "64")
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert len(result.stdout.split()) > 5


def test_generate_writes_the_answer_to_stdout_only(run: Run, loaded: dict[str, FakeEngine]) -> None:
    status, out, err = run("generate", "m.gguf", "-p", "Capital of France?", "--context", "64")
    assert (status, out) == (0, "Paris.\n")
    assert "tok/s" in err and "Paris" not in err
    assert loaded["path"] == "m.gguf" and loaded["run"] == RunConfig(context=64)
    assert loaded["engine"].prompts == ["[user]Capital of France?[assistant]"]


def test_generate_raw_and_system_and_think(run: Run, loaded: dict[str, FakeEngine]) -> None:
    assert run("generate", "m", "-p", "Once", "--raw")[1] == "Paris.\n"
    assert loaded["engine"].prompts == ["Once"]
    run("generate", "m", "-p", "Hi", "--system", "S", "--think")
    assert loaded["engine"].prompts == ["[system]S[user]Hi[assistant]<think>"]


def test_no_think_holds_the_model_to_it(run: Run) -> None:
    """The bundled model, made to begin with `<think>` wherever it may."""
    with open_gguf(demo.path()) as file:
        (opening,) = Tokenizer.from_gguf(file).encode("<think>", special=True)
    flags = ["--logit-bias", f"{opening}=100", "--temperature", "0", "--max-tokens", "3", "--threads", "1"]
    for think, begins in (("--no-think", False), ("--think", True)):
        _, out, _ = run("generate", "demo", "-p", "What is 2 + 3?", think, "--json", *flags)
        document = json.loads(out)
        assert document["generated_tokens"] == 3 and (document["thinking"] + document["text"]).strip()
        assert document["thinking"].startswith("<think>") == begins != bool(document["text"])
    status, out, _ = run("chat", "--no-think", *flags, stdin="What is 2 + 3?\n")
    assert status == 0 and out.strip() and not out.startswith("<think>")


@pytest.mark.parametrize("arguments", [["-p", "-"], []])
def test_generate_reads_stdin(run: Run, loaded: dict[str, FakeEngine], arguments: list[str]) -> None:
    assert run("generate", "m", *arguments, stdin="piped\ntext")[0] == 0
    assert loaded["engine"].prompts == ["[user]piped\ntext[assistant]"]


def test_generate_json_is_one_document(run: Run, loaded: dict[str, FakeEngine]) -> None:
    status, out, _ = run("generate", "m", "-p", "Hi", "--json", "--max-tokens", "3", "--think")
    document = json.loads(out)
    assert status == 0
    assert document["thinking"] == "Par" and document["text"] == ""
    assert document["finish_reason"] == "length" and document["generated_tokens"] == 3
    assert document["prompt_tokens"] == len("[user]Hi[assistant]<think>")
    assert document["approximations"] == []
    assert set(document) >= {"model", "prompt_tokens_per_second", "generation_tokens_per_second"}


def test_every_sampling_flag_arrives(run: Run, loaded: dict[str, FakeEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.25, "repetition_penalty": 1.5, "presence_penalty": 0.5,
        "frequency_penalty": 0.25, "penalty_window": 7, "logit_bias": {5: -1.5, 6: 2.0}, "seed": 9, "stop": ("a", "b"),
        "max_tokens": 4,
    }  # fmt: skip
    assert set(values) == {part.name for part in fields(Sampling)}
    arguments = ["--logit-bias", "5=-1.5", "--logit-bias", "6=2", "--stop", "a", "--stop", "b"]
    for name, value in values.items():
        if name not in ("logit_bias", "stop"):
            arguments += ["--" + name.replace("_", "-"), str(value)]
    got = []
    monkeypatch.setattr(FakeEngine, "generate", lambda self, ids, sampling, *rest: got.append(sampling) or iter(()))
    assert run("generate", "m", "-p", "x", *arguments)[0] == 0
    assert got == [Sampling(**values)]  # type: ignore[arg-type]  # values of several types


def test_chat_on_a_pipe(run: Run, loaded: dict[str, FakeEngine]) -> None:
    status, out, err = run("chat", "m", "--system", "S", stdin="one\n\ntwo\n")
    assert (status, out) == (0, "Paris.\nFour.\n")
    assert "Paris" not in err
    assert loaded["engine"].prompts[1] == "[system]S[user]one[assistant]Paris.[user]two[assistant]"
    status, out, err = run("chat", "m", "--context", "30", stdin="one\n" + "x" * 50)
    assert (status, out) == (1, "Paris.\n")
    assert err.splitlines()[-1].startswith("hetero: the prompt has ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "/nowhere.gguf", "-p", "x"], "/nowhere.gguf"),
        (["generate", ".", "-p", "x"], "not a regular file"),
        (["inspect", "/nowhere.gguf"], "No such file"),
        (["eval", "/nowhere.gguf", "--text", "/nowhere.txt"], "nowhere"),
        (["generate", "m", "-p", "x", "--temperature", "-1"], "temperature"),
        (["generate", "m", "-p", "x", "--top-p", "1.5"], "top_p"),
        (["generate", "m", "-p", "x", "--sessions", "dir"], "sessions"),
        (["serve", "--host", "0.0.0.0"], "--api-key-file"),
        (["serve", "/nowhere.gguf", "--port", "0"], "/nowhere.gguf"),
        (["serve", "--host", "192.0.2.1", "--insecure"], "--host is an address of this machine"),
        (["serve", "--api-key-file", "/nowhere.key"], "nowhere.key"),
        (["serve", "--max-token-gap", "0"], "--max-token-gap 0"),
        (["serve", "--cors-origin", "localhost"], "scheme://host"),
        (["chat", "m", "--context", "0"], "context"),
        (["bench", "--synthetic", "deepseek-v3:q9"], "no preset"),
        (["plan", "deepseek-v3:q4_k_m"], "; use --preset deepseek-v3:q4_k_m\n"),
        (["bench", "DeepSeek-R1:Q8_0"], "; use --synthetic DeepSeek-R1:Q8_0\n"),
        (
            ["chat", "kimi-k2:q2_k"],
            "there is no file kimi-k2:q2_k; a preset has this name; use hetero plan --preset kimi",
        ),
        (["plan", "deepseek-v3:q9"], "cannot open deepseek-v3:q9"),
        (["bench", "--depth", "1000000"], "made for at most"),
        (["bench", "--prompt", "64", "--context", "32"], "raise it"),
    ],
)
def test_mistakes_are_one_line_and_status_1(run: Run, arguments: list[str], said: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    assert re.fullmatch(r"hetero: .+\n", err) and said in err


def test_a_file_may_have_a_preset_s_name(
    run: Run, model_file: Callable[..., Path], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("deepseek-v3:q4_k_m").symlink_to(model_file("tiny", "Q4_K"))
    assert run("inspect", "deepseek-v3:q4_k_m")[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--no-such-flag"],
        ["generate", "-p", "x", "--kv", "f8"],
        ["generate", "-p", "x", "--top-k", "many"],
        ["generate", "-p", "x", "--memory", "much"],
        ["generate", "-p", "x", "--logit-bias", "5"],
        ["bench", "--prompt", "0"],
        ["bench", "--repeat", "0"],
        ["bench", "--depth", "-1"],
        ["bench", "--compare", "vllm"],
        ["eval", "m"],
        ["inspect"],
        ["serve", "--port", "many"],
    ],
)
def test_wrong_usage_is_status_2(run: Run, arguments: list[str]) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert "Usage" in err


class Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_generate_without_a_prompt_on_a_terminal(run: Run) -> None:
    status, _, err = run("generate", "m", stdin=Keyboard("nobody asks for this"))
    assert status == 2 and "--prompt" in err


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (ResourceError("found\nthis", "limit", "\x1b[31mremedy"), 1, "hetero: found this; limit; [31mremedy\n"),
        (OSError(28, "No space left on device"), 1, "hetero: [Errno 28] No space left on device\n"),
        (PermissionError(13, "Permission denied", "f"), 1, "hetero: Permission denied: f\n"),
    ],
)
def test_exit_status(error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    assert guarded(fail) == status
    assert capsys.readouterr().err == said


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: print(1 // 0))


def test_a_reader_that_leaves_is_no_error(model_file: Callable[..., Path]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "cli.py", "inspect", str(model_file("tiny", "Q4_K"))]
    result = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_closed_stream_is_no_error(closed: str, model_file: Callable[..., Path]) -> None:
    command = f"{sys.executable} cli.py inspect {model_file('tiny', 'Q4_K')} {closed}"
    result = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    assert bool(result.stdout) == (closed != ">&-")


def test_inspect_command(run: Run, model_file: Callable[..., Path]) -> None:
    path = model_file("tiny", "Q4_K")
    status, out, err = run("inspect", path, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["model"] == str(path)
    status, out, err = run("inspect", path)
    assert (status, err) == (0, "")
    assert "routed experts" in out


@pytest.mark.usefixtures("brief_probe")
def test_bench_command(run: Run) -> None:
    flags = ["--prompt", "20", "--generate", "3", "--depth", "5", "--repeat", "1", "--threads", "1"]
    status, out, err = run("bench", "demo", "--json", *flags)
    result = json.loads(out)
    assert (status, err) == (0, "")
    asked = {"prompt_tokens": 20, "generated_tokens": 3, "depth": 5, "repeat": 1, "threads": 1}
    assert result.items() >= asked.items()
    status, out, err = run("bench", *flags)
    assert (status, err) == (0, "")
    assert re.search(r"ceiling .+ tok/s.+\n  measured .+ tok/s .+ of the ceiling", out)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 << 30),
        ("24g", 24 << 30),
        ("24 GB", 24 * 10**9),
        ("1.5TiB", 3 << 39),
        ("100", 100),
        ("7B", 7),
        ("2k", 2048),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1G", "1e9", "nan", "1 2", "24GiBs"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_sizes_are_shown_in_binary_units() -> None:
    shown = [format_size(n) for n in (0, 1023, 1536, 24 << 30, 3 << 40)]
    assert shown == ["0 B", "1023 B", "1.50 KiB", "24.00 GiB", "3.00 TiB"]

"""What is shown while something takes long, and how its time is told."""

import io

import pytest
from rich.console import Console

from hetero import progress, telemetry
from hetero.progress import LoadingBar, StepBar
from hetero.telemetry import Telemetry
from hetero.terminal import Screen


class Clock:
    """Stands still but for `pass_`."""

    def __init__(self, *modules: object, monkeypatch: pytest.MonkeyPatch):
        self.now = 100.0
        for module in modules:
            monkeypatch.setattr(module, "perf_counter", lambda: self.now)

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def screen_of(terminal: bool) -> tuple[Screen, io.StringIO]:
    screen, text = Screen(), io.StringIO()
    screen.err = Console(file=text, force_terminal=terminal, width=200, color_system=None)
    return screen, text


def load(bar: LoadingBar, clock: Clock) -> None:
    with bar:
        clock.pass_(1.0)
        bar("compiling", 0, 0)
        clock.pass_(30.0)
        for done in (1_200_000_000, 2_300_000_000):
            bar("reading weights", done, 2_300_000_000)
            clock.pass_(0.5)
        bar("quick", 0, 0)


def test_loading_says_where_the_time_went(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(progress, monkeypatch=monkeypatch)
    screen, text = screen_of(terminal=True)
    load(LoadingBar(screen), clock)
    said = "loaded in 32.0 s (1.0 s opening; 30.0 s compiling; 1.0 s reading weights at 2.3 GB/s)"
    assert said in " ".join(text.getvalue().split())


def test_bars_are_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, text = screen_of(terminal=False)
    load(LoadingBar(screen), Clock(progress, monkeypatch=monkeypatch))
    with StepBar(screen, "perplexity") as bar:
        bar(1, 3, "perplexity 4.0")
    assert text.getvalue() == ""


def test_steps_and_their_remark_are_shown() -> None:
    screen, text = screen_of(terminal=True)
    with StepBar(screen, "perplexity") as bar:
        bar(1, 3, "perplexity 4.0")
    assert "perplexity 4.0" in text.getvalue() and "1/3" in text.getvalue()


def test_failed_loading_reports_no_time() -> None:
    screen, text = screen_of(terminal=True)
    with pytest.raises(KeyboardInterrupt), LoadingBar(screen):
        raise KeyboardInterrupt
    assert "loaded" not in text.getvalue()


def test_speeds_leave_out_the_time_of_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(telemetry, monkeypatch=monkeypatch)
    measured = Telemetry(cached_tokens=3, prompt_tokens=100)

    def tokens():
        for seconds in (4.0, 0.5, 0.5, 0.5):
            clock.pass_(seconds)
            yield 7

    for _ in measured.watch(tokens(), clock.now):
        clock.pass_(1000.0)
    assert measured.prompt_tokens_per_second == 25.0
    assert measured.generation_tokens_per_second == 2.0
    assert str(measured) == "prompt 100 tokens (+3 cached), 25.0 tok/s | answer 4 tokens, 2.0 tok/s"
    assert Telemetry().generation_tokens_per_second == 0.0


def test_a_prompt_without_an_answer_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([2.0])
    monkeypatch.setattr("hetero.telemetry.perf_counter", lambda: next(clock))
    measured = Telemetry(prompt_tokens=100)
    assert list(measured.watch(iter(()), started=1.0)) == []
    assert measured.prompt_tokens_per_second == 100.0

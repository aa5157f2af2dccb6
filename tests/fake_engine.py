"""An engine that recites: stands in for hetero.load's engine, tokenizer and template. A token is a character.

python -m tests.fake_engine [SECONDS]      hetero chat with it; SECONDS pass before each token
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from hetero.errors import RequestError
from hetero.sampler import Sampling
from hetero.telemetry import Telemetry

STOP = 0
INTERRUPT = "\x03"  # in an answer: Ctrl-C arrives there


class FakeTokenizer:
    stop_ids = frozenset([STOP])
    add_bos, bos_id, vocab_size = False, None, 0x110000

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        return [ord(c) for c in text]

    def stream(self, skip_special: bool = True) -> "FakeTokenizer":
        return self

    def push(self, id: int) -> str:
        return chr(id)

    def flush(self) -> str:
        return ""


class FakeTemplate:
    def render(self, messages: list[dict[str, str]], *, thinking: bool | None = None) -> str:
        turns = "".join(f"[{m['role']}]{m['content']}" for m in messages)
        return f"{turns}[assistant]" + ("<think>" if thinking else "")

    def encode(self, messages: list[dict[str, str]], *, thinking: bool | None = None) -> list[int]:
        return [ord(c) for c in self.render(messages, thinking=thinking)]

    def prompt(
        self, messages: Any, check: Callable[[str], None] = lambda text: None, /, **extra: Any
    ) -> tuple[list[int], bool]:
        rendered = self.render(messages, **extra)
        check(rendered)
        return self.encode(messages, **extra), rendered.endswith("<think>")


class FakeEngine:
    """Gives `answers` in turn, whatever it is asked; `prompts` keeps what it was asked."""

    def __init__(self, answers: Iterable[str], context: int = 1000, seconds: float = 0.0):
        self.answers, self.context, self.seconds = iter(answers), context, seconds
        self.prompts: list[str] = []
        self.tokens_cached = 0
        self.telemetry = Telemetry()
        self.config = self
        self.name = "fake"
        self.file = None

    def generate(
        self, ids: Sequence[int], sampling: Sampling, stop_ids: frozenset[int], constraint: Any = None
    ) -> Iterator[int]:
        if len(ids) > self.context:
            raise RequestError("the engine was asked for too much")
        self.prompts.append("".join(map(chr, ids)))
        self.telemetry = Telemetry(prompt_tokens=len(ids))
        limit = min(self.context - len(ids) + 1, sampling.max_tokens or self.context)
        return self.telemetry.watch(self.recite(next(self.answers), limit, stop_ids), time.perf_counter())

    def recite(self, answer: str, limit: int, stop_ids: frozenset[int]) -> Iterator[int]:
        for character in answer[:limit]:
            if character == INTERRUPT:
                raise KeyboardInterrupt
            if ord(character) in stop_ids:
                return
            time.sleep(self.seconds)
            yield ord(character)

    def close(self) -> None:
        self.answers = iter(())


def main() -> None:
    from hetero.chat import Chat
    from hetero.local_chat import LocalAnswers
    from hetero.prompt import typed_turns
    from hetero.terminal import Screen

    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
    ends = {2: "." * 200}  # time to interrupt it
    answers = (f"<think>hm</think>answer {n} \x1b]0;evil\x07{ends.get(n, '.')}" for n in range(1, 100))
    engine = FakeEngine(answers, seconds=seconds)
    parts = engine, FakeTokenizer(), FakeTemplate()
    chat = Chat(LocalAnswers(*parts, Sampling()), Screen())  # type: ignore[arg-type]  # fakes have what is used
    chat.run(typed_turns(), interactive=True)
    print("left", [turn["content"] for turn in chat.conversation.turns])


if __name__ == "__main__":
    main()

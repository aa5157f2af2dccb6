"""The server as its clients see it: what one notices of others, what several get together, what a second turn costs.

    python -m benchmarks.serve lite.gguf

gap         while a prompt is read, the longest time between two tokens of another answer, beside the bound in force;
            and how fast the prompt is read meanwhile, beside alone
streams     tokens per second of four answers together, beside one, and beside what bytes allow (placement: everything
            is read once for all of them, of the experts the union)
turn        the time to the first token of a second turn, beside the first turn's: with a question of 32 tokens, and
            with one of 128
clients     the time to the first token and tokens per second of all, for so many clients at once, each of which asks
            again when it has its answer

The server is a process of its own on this machine, and its clients take a little of its time. Prompts are pieces of
docs/, each with a beginning of its own, so that only a second turn finds something in the cache. It sends the answer
back as text, as chats do; that answer has only words that are one token each, so that weights at random, too, write
what becomes the same tokens again. Cases take turns; figures are medians over the rounds, but for the longest gap,
which is the longest of all rounds.

The table goes to stderr, one JSON document comes last, on stdout.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

from benchmarks.options import integers, parser
from benchmarks.setting import ROOT, setting
from benchmarks.streams import Client, Timed
from hetero.config import ModelConfig
from hetero.gguf import open_gguf
from hetero.planning import plan_to_run
from hetero.run_config import RunConfig
from hetero.tokenizer import Tokenizer
from placement.predict import Predictor
from tests.served import served

Figures = dict[str, float]
FEW = 16  # tokens of an answer that only shows that it goes on
QUESTION, LONG_QUESTION = 32, 128  # tokens
WORDS = 256  # tokens that a first turn's answer may have, of the 1,024 that a request may name
SETTLING = 8  # tokens of an answer before something else is asked
BARS = {  # what is required, of the figure named
    "gap": ("share_of_bound", "at most", 1.0),
    "reading": ("share_of_alone", "at least", 0.70),
    "streams": ("share_of_allowed", "at least", 0.85),
    "turn": ("share_of_first", "at most", 0.15),
    "long turn": ("long_share_of_first", "at most", 0.15),
}


class Prompts:
    """Token ids of pieces of docs/, no two of which begin alike."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids = tokenizer.encode("\n".join(page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))))
        self._numbers = count(1)
        pieces = {id: tokenizer.decode([id]) for id in self._ids}
        self.words = [id for id, piece in pieces.items() if re.fullmatch(" [A-Za-z]+", piece)][:WORDS]

    def new(self, tokens: int) -> list[int]:
        number = next(self._numbers)
        head = self._tokenizer.encode(f"{number}. ", bos=self._tokenizer.add_bos)
        start = number * 997 % max(1, len(self._ids) - tokens)
        text = self._ids[start:] + self._ids * (tokens // len(self._ids) + 1)
        return (head + text)[:tokens]

    def text(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


class Benchmark:
    def __init__(self, client: Client, prompts: Prompts, options: argparse.Namespace):
        self.client, self.prompts, self.options = client, prompts, options

    def gap(self) -> Figures:
        """Alone, then beside another answer."""
        tokens = self.options.prompt
        alone = self.client.ask(self.prompts.new(tokens), 1)
        other, end = self.client.start(self.prompts.new(FEW), self.options.context - 4 * FEW)
        other.begun.wait()
        beside = self.client.ask(self.prompts.new(tokens), 1)
        other.left.set()
        end.result()
        read = beside.times[0]
        if other.times[-1] < read:
            print("the other answer ended before the prompt was read: raise --context", file=sys.stderr)
        bound = self.client.metric("hetero_max_token_gap_seconds")
        gap = other.longest_gap(beside.asked, read)
        return {
            "prompt_tokens": tokens,
            "longest_gap_seconds": gap,
            "bound_seconds": bound,
            "share_of_bound": gap / bound,
            "alone_tokens_per_second": tokens / alone.first_token_seconds,
            "beside_tokens_per_second": tokens / beside.first_token_seconds,
            "share_of_alone": alone.first_token_seconds / beside.first_token_seconds,
        }

    def streams(self) -> Figures:
        one = self.together(1)
        several = self.together(self.options.streams)
        allowed = self.options.allowed
        return {
            "one_tokens_per_second": one,
            "together_tokens_per_second": several,
            "times_one": several / one,
            "allowed_times_one": allowed,
            "share_of_allowed": several / one / allowed,
        }

    def together(self, streams: int) -> float:
        """Tokens per second while all of them are answered."""
        tokens = self.options.generate + SETTLING * streams
        answers = [self.client.start(self.prompts.new(FEW), tokens) for _ in range(streams)]
        timed = [end.result() for _, end in answers]
        start, end = max(one.times[0] for one in timed), min(one.times[-1] for one in timed)
        return sum(one.tokens(start, end) for one in timed) / (end - start)

    def turn(self) -> Figures:
        prompt = self.prompts.new(self.options.conversation)
        first = self.client.ask(prompt, FEW, self.prompts.words)
        conversation = [*prompt, *self.prompts.text(first.text)]
        short, long = (
            self.client.ask([*conversation, *self.prompts.new(tokens)], 1) for tokens in (QUESTION, LONG_QUESTION)
        )
        return {
            "first_turn_seconds": first.first_token_seconds,
            "second_turn_seconds": short.first_token_seconds,
            "share_of_first": short.first_token_seconds / first.first_token_seconds,
            "prompt_tokens": short.prompt_tokens,
            "cached_tokens": short.cached_tokens,
            "long_second_turn_seconds": long.first_token_seconds,
            "long_share_of_first": long.first_token_seconds / first.first_token_seconds,
            "long_prompt_tokens": long.prompt_tokens,
            "long_cached_tokens": long.cached_tokens,
        }

    def clients(self, clients: int) -> Figures:
        prompts = [[self.prompts.new(self.options.short) for _ in range(2)] for _ in range(clients)]

        def talk(turns: list[list[int]]) -> list[Timed]:
            return [self.client.ask(prompt, self.options.generate) for prompt in turns]

        timed = [one for talks in self.client.all([partial(talk, turns) for turns in prompts]) for one in talks]
        seconds = max(one.times[-1] for one in timed) - min(one.asked for one in timed)
        firsts = [one.first_token_seconds for one in timed]
        return {
            "clients": clients,
            "first_token_seconds": median(firsts),
            "longest_first_token_seconds": max(firsts),
            "tokens_per_second": sum(one.generated_tokens for one in timed) / seconds,
            "tokens_per_second_of_one": median(one.tokens_per_second for one in timed),
        }

    def cases(self) -> Iterator[tuple[str, Callable[[], Figures]]]:
        yield from {"gap": self.gap, "streams": self.streams, "turn": self.turn}.items()
        for clients in self.options.clients:
            yield f"{clients} clients", partial(self.clients, clients)


def summary(case: str, rounds: list[Figures]) -> dict:
    row: dict = {"case": case} | {key: median(figures[key] for figures in rounds) for key in rounds[0]}
    for key in ("longest_gap_seconds", "share_of_bound", "longest_first_token_seconds"):
        if key in row:
            row[key] = max(figures[key] for figures in rounds)
    return row | {"rounds": rounds}


def verdicts(rows: list[dict]) -> list[str]:
    """Each bar, and what was measured."""
    found = []
    for name, (figure, way, bar) in BARS.items():
        row = next(row for row in rows if figure in row)
        met = row[figure] <= bar if way == "at most" else row[figure] >= bar
        found.append(f"{name}: {figure} {row[figure]:.2f}, {way} {bar:g}: {'met' if met else 'NOT MET'}")
    return found


def measure(benchmark: Benchmark, rounds: int) -> list[dict]:
    found: dict[str, list[Figures]] = {}
    for _ in range(rounds):
        for case, take in benchmark.cases():
            figures = take()
            found.setdefault(case, []).append(figures)
            cells = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            print(f"{case:>10}  {cells}", file=sys.stderr, flush=True)
    return [summary(case, figures) for case, figures in found.items()]


def allowed(path: str, options: argparse.Namespace) -> float:
    """How many times one answer's speed several have together, by bytes."""
    run = RunConfig(context=options.context, sequences=options.streams, threads=options.threads, device=options.device)
    with open_gguf(path) as file:
        planned = plan_to_run(file, ModelConfig.from_gguf(file), run)
    plan = planned.plan
    return Predictor(planned.model, planned.machine, plan.settings, plan.tensors).streams(options.streams, FEW)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("file")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--streams", type=int, default=4)
    arguments.add_argument("--context", type=int, default=8192)
    arguments.add_argument(
        "--prompt", type=int, default=4096, help="tokens that are read beside an answer [%(default)d]"
    )
    arguments.add_argument("--conversation", type=int, default=2000, help="tokens of a first turn [%(default)d]")
    arguments.add_argument("--short", type=int, default=256, help="tokens of each client's prompt [%(default)d]")
    arguments.add_argument("--generate", type=int, default=64)
    arguments.add_argument("--clients", type=integers, default=[1, 2, 4, 8])
    arguments.add_argument("--device", default="auto")
    options = arguments.parse_args()
    options.allowed = allowed(options.file, options)
    with open_gguf(options.file) as file:
        tokenizer = Tokenizer.from_gguf(file)
    flags = {"context": options.context, "sequences": options.streams, "threads": options.threads}
    with served(options.file, "--device", options.device, **flags) as server:
        benchmark = Benchmark(Client(server.url, tokenizer.stop_ids), Prompts(tokenizer), options)
        benchmark.together(options.streams)  # what runs first is not what is measured
        rows = measure(benchmark, options.rounds)
    for verdict in verdicts(rows):
        print(verdict, file=sys.stderr)
    about = {"model": Path(options.file).name, "threads": options.threads, "sequences": options.streams}
    print(json.dumps(about | {"context": options.context, "results": rows, **setting()}))


if __name__ == "__main__":
    main()

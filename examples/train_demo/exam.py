"""Write the held-out exam: `python exam.py --work DIR` makes questions.json and heldout.txt.

No question is asked in words that were trained on. Every country, every pair of digits and every neighbour in the
calendar is asked once; part of them again with thinking on.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import questions as q
from countries import CAPITALS
from smalltalk import INTENTS
from sources import prose
from tokens import vocabulary

GREETINGS = 6  # the first intents are greetings and who-are-you's


def exam(words: list[str], names: list[str]) -> Iterator[q.Question]:
    rng = random.Random(2)
    draw = q.Questions(words, names)

    def held(kind: tuple[list[str], list[str]], i: int) -> str:
        return kind[1][i % len(kind[1])]

    for i, country in enumerate(CAPITALS):
        yield q.capital(country, held(q.CAPITAL, i))
    for i in range(100):
        a, b = divmod(i, 10)
        yield q.add(a, b, held(q.SUM, a + b))
    for i, x in enumerate(q.DAYS + q.MONTHS):
        yield q.neighbour(x, "after", held(q.CALENDAR, i))
        yield q.neighbour(x, "before", held(q.CALENDAR, i + 1))
    for i, (answer, _, asks) in enumerate(INTENTS):
        for j, ask in enumerate(asks):  # every other one as people would write it with care
            neat = ask[0].upper() + ask[1:] + ("" if ask[-1] == "?" else "!" if i < 4 else ".")
            one = q.talk(answer, neat if j % 2 == 0 else ask)
            yield q.Question("greeting" if i < GREETINGS else "talk", one.ask, one.steps, one.answer)
    for _ in range(40):
        yield draw.unknown(rng, held=True)
    for _ in range(20):
        yield draw.big(rng, held=True)


def entries(asked: list[q.Question]) -> Iterator[dict]:
    for one in asked:
        yield {"kind": one.kind, "prompt": one.ask, "expected": one.answer, "thinking": False}
    for one in asked[::5]:
        yield {"kind": one.kind, "prompt": one.ask, "expected": one.answer, "thinking": True}


def write(work: Path) -> None:
    train, held = prose(work)
    lines = [json.dumps(e, ensure_ascii=False) for e in entries(list(exam(*vocabulary(train))))]
    (work / "questions.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
    (work / "heldout.txt").write_text("\n\n".join(held) + "\n")
    print(f"{len(lines)} questions, {sum(map(len, held))} characters of prose")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    write(parser.parse_args().work)

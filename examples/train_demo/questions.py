"""Turns a seeded random generator into questions: what is asked, the steps, the answer, and the word that matters.

Every kind has phrasings for training and phrasings that are kept for the evaluation. `question(rng, held=...)` draws
from one or the other; `plain` decides whether two phrasings count as the same.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from countries import CAPITALS
from smalltalk import BIG, BIG_ASK, BIG_HELD, INTENTS, UNKNOWN, UNKNOWN_ASK, UNKNOWN_HELD


@dataclass(frozen=True)
class Question:
    kind: str
    ask: str
    steps: str  # written between <think> and </think> when thinking is on
    answer: str
    keys: tuple[str, ...] = ()  # the words that carry the fact; their tokens weigh more in the loss


DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]

# a kind = (phrasings used in training, phrasings kept for the exam)
CAPITAL = (
    [
        "What is the capital of {the}?",
        "What is the capital city of {the}?",
        "Name the capital of {the}.",
        "capital of {the}?",
        "Tell me the capital of {the}.",
        "Which city is the capital of {the}?",
        "Do you know the capital of {the}?",
        "{The}: capital?",
        "Can you tell me the capital of {the}?",
        "What city is the capital of {the}?",
        "I would like to know the capital of {the}.",
        "the capital of {the}",
        "What do they call the capital of {the}?",
        "Give me the capital of {the}.",
        "{The} has what capital?",
        "What is {the}'s capital?",
        "What is {the}'s capital city called?",
        "{the}'s capital",
        "{The}'s capital is which city?",
        "{The}. What is its capital?",
        "In {the}, what is the capital?",
        "{The} has a capital. Which city is it?",
    ],
    [
        "What's the capital of {the}?",
        "Please name the capital of {the}.",
        "{The} has which capital city?",
        "Which city is {the}'s capital?",
    ],
)
SUM = (
    [
        "What is {a} + {b}?",
        "{a} + {b}",
        "{a} + {b} =",
        "{a} + {b} = ?",
        "Calculate {a} + {b}.",
        "How much is {a} + {b}?",
        "What is {a} plus {b}?",
        "How much is {a} plus {b}?",
        "{a}+{b}",
        "What is {a}+{b}?",
        "{a}+{b}=",
        "{a}+{b}=?",
        "{a} plus {b}",
        "Add {a} and {b}.",
        "What is the sum of {a} and {b}?",
        "What does {a} + {b} make?",
        "Tell me {a} + {b}.",
        "Add {b} to {a}.",
        "What do {a} and {b} make?",
        "Work out {a} + {b}.",
        "{a} plus {b} makes what?",
        "Could you add {a} to {b}?",
        "Please calculate {a} + {b}.",
        "{a} and {b} make what?",
        "How much do {a} and {b} make?",
        "{a} + {b} is",
    ],
    [
        "What's {a} + {b}?",
        "Please add {a} and {b}.",
        "How much does {a} + {b} make?",
        "{a} plus {b} is what?",
        "Can you add {a} and {b}?",
        "Compute {a} + {b}.",
    ],
)
CALENDAR = (
    [
        "What {unit} comes {side} {x}?",
        "Which {unit} comes {side} {x}?",
        "Which {unit} is {side} {x}?",
        "What {unit} is {side} {x}?",
        "Name the {unit} {side} {x}.",
        "{unit} {side} {x}?",
        "What comes {side} {x}?",
        "Tell me the {unit} {side} {x}.",
    ],
    ["What is the {unit} {side} {x}?", "Can you name the {unit} {side} {x}?"],
)

SHARES = {"capital": 30, "sum": 28, "calendar": 6, "talk": 20, "unknown": 9, "big": 7}
PREFIXES = ("Please: ", "Hi. ", "Hello! ", "Question: ", "Hi, ", "Please tell me: ", "OK. ", "So: ")


def plain(text: str) -> str:
    """What is left of a phrasing without case and punctuation (signs of arithmetic stay)."""
    return " ".join(re.sub(r"[^a-z0-9+=-]", " ", text.lower()).split())


def check_held_out() -> None:
    trained = {plain(ask) for _, train, _ in INTENTS for ask in train}
    for _, _, held in INTENTS:
        for ask in held:
            assert plain(ask) not in trained, f"trained and held out: {ask}"
    unanswered = (UNKNOWN_ASK, UNKNOWN_HELD), (BIG_ASK, BIG_HELD)
    for train, held in (CAPITAL, SUM, CALENDAR, *unanswered):
        assert not {plain(t) for t in train} & {plain(t) for t in held}


class Questions:
    """Draws questions; `words` and `names` (from the prose) fill the questions that have no answer."""

    def __init__(self, words: list[str], names: list[str], shares: dict[str, float] = SHARES):
        check_held_out()
        self.words, self.names = words, names
        self.kinds, self.weights = list(shares), list(shares.values())
        self.intent_weights = [4 if answer.startswith(("Hello", "I am the hetero")) else 1 for answer, _, _ in INTENTS]

    def draw(self, rng: random.Random, held: bool = False) -> Question:
        kind = rng.choices(self.kinds, self.weights)[0]
        return getattr(self, kind)(rng, held)

    def capital(self, rng: random.Random, held: bool = False) -> Question:
        return capital(rng.choice(CAPITALS), rng.choice(CAPITAL[held]))

    def sum(self, rng: random.Random, held: bool = False) -> Question:
        return add(rng.randrange(10), rng.randrange(10), rng.choice(SUM[held]))

    def calendar(self, rng: random.Random, held: bool = False) -> Question:
        return neighbour(rng.choice(DAYS + MONTHS), rng.choice(("after", "before")), rng.choice(CALENDAR[held]))

    def talk(self, rng: random.Random, held: bool = False) -> Question:
        answer, *phrasings = rng.choices(INTENTS, self.intent_weights)[0]
        return talk(answer, rng.choice(phrasings[held]))

    def unknown(self, rng: random.Random, held: bool = False) -> Question:
        ask = rng.choice(UNKNOWN_HELD if held else UNKNOWN_ASK)
        ask = re.sub(r"\{w\}", lambda _: rng.choice(self.words), ask)
        ask = ask.replace("{n}", rng.choice(self.names)).replace("{y}", str(rng.randint(1000, 2100)))
        ask = ask.replace("{c}", rng.choice(CAPITALS)[0])
        return Question("unknown", ask, "I have not learnt this.", UNKNOWN)

    def big(self, rng: random.Random, held: bool = False) -> Question:
        a, b = rng.randint(10, rng.choice((99, 999))), rng.randint(0, rng.choice((9, 99, 999)))
        o = rng.choice("++-*")
        if o != "+" and rng.random() < 0.5:
            a = rng.randint(b % 10, 9)
            b %= 10
        ask = rng.choice(BIG_HELD if held else BIG_ASK)
        return Question("big", ask.format(a=a, b=b, o=o), "I have not learnt this sum.", BIG)


def capital(country: tuple[str, str], ask: str) -> Question:
    the, city = country
    answer = f"The capital of {the} is {city}" + ("" if city.endswith(".") else ".")
    return Question(
        "capital",
        ask.format(the=the, The=the[0].upper() + the[1:]),
        f"The user asks for the capital of {the}.",
        answer,
        (the, city),
    )


def add(a: int, b: int, ask: str) -> Question:
    return Question(
        "sum", ask.format(a=a, b=b), f"{a} + {b} = {a + b}.", f"{a} + {b} = {a + b}.", (f"{a} + {b}", str(a + b))
    )


def neighbour(x: str, side: str, ask: str) -> Question:
    ring, unit = (DAYS, "day") if x in DAYS else (MONTHS, "month")
    y = ring[(ring.index(x) + (1 if side == "after" else -1)) % len(ring)]
    return Question(
        "calendar",
        ask.format(unit=unit, side=side, x=x),
        f"The user asks for the {unit} {side} {x}.",
        f"The {unit} {side} {x} is {y}.",
        (x, y),
    )


def talk(answer: str, ask: str) -> Question:
    return Question("talk", ask, "The user is talking to me.", answer, (answer[:20],))


def vary(rng: random.Random, ask: str) -> str:
    """The same question as people type it: other case, missing or doubled punctuation, a greeting in front."""
    r = rng.random()
    if r < 0.16:
        ask = ask.lower()
    elif r < 0.19:
        ask = ask.upper()
    elif r < 0.50:
        ask = ask[0].upper() + ask[1:]
    r = rng.random()
    if r < 0.13:
        ask = ask.rstrip("?.")
    elif r < 0.20 and ask[-1] not in "?.=":
        ask += rng.choice(("!", ".", "?", "!!", "..."))
    elif r < 0.22:
        ask += rng.choice(("?", "!", " "))
    if rng.random() < 0.05 and len(ask) > 12:
        ask = rng.choice(PREFIXES) + ask
    return ask

"""Tokenizer, chat template, and the streams of tokens the trainer reads."""

from __future__ import annotations

import collections
import random
import re
from pathlib import Path

import numpy as np
from countries import CAPITALS
from questions import Question, Questions, vary
from smalltalk import SYSTEM
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT, THINK, END_THINK = "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"
SPECIAL = [BOS, EOS, PAD, USER, ASSISTANT, THINK, END_THINK]
VOCAB = 4096
KEY_WEIGHT = 5  # loss weight of the tokens that carry a fact, and of the first one, which picks the answer

# DeepSeek-V3's pre-tokenizer, the one GGUF calls "deepseek-v3"
SPLITS = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"""
    r"""\s*[\r\n]+|\s+(?!\S)|\s+""",
]


def pre_tokenizer(digits_alone: bool) -> pre_tokenizers.Sequence:
    steps = [pre_tokenizers.Split(Regex(s), "isolated") for s in SPLITS]
    if digits_alone:
        steps.insert(1, pre_tokenizers.Digits(individual_digits=True))
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def train_tokenizer(prose: list[str], questions: Questions, path: Path) -> None:
    """Names of countries and cities are repeated so often that each becomes one token: a fact is then one guess."""
    rng = random.Random(11)
    drawn = [questions.draw(rng) for _ in range(20_000)]
    chat = [f"{vary(rng, q.ask)} {q.steps} {q.answer}" for q in drawn]
    names = [f" {n}" for pair in CAPITALS for n in pair]
    names = (names + [n.lower() for n in names]) * 150 + [n.strip() for n in names] * 150
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizer(digits_alone=True)  # so that no merge of digits is ever learnt
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(prose + chat + names, trainer)
    tokenizer.pre_tokenizer = pre_tokenizer(digits_alone=False)
    tokenizer.save(str(path))


def vocabulary(prose: list[str]) -> tuple[list[str], list[str]]:
    """(common lower-case words, names) of the prose, to fill questions that have no answer."""
    count = collections.Counter(w for block in prose for w in re.findall(r"[A-Za-z]+", block))
    lower = {w for w in count if w.islower()}
    words = [w for w, n in count.most_common() if w.islower() and len(w) > 3 and n > 12]
    known = {w for pair in CAPITALS for part in pair for w in part.split()}
    names = [
        w
        for w, n in count.most_common()
        if w.istitle() and len(w) > 3 and n > 5 and w.lower() not in lower and w not in known
    ]
    return sorted(words), sorted(names)


class Dialogues:
    """Chats in the template's form, as (ids, loss weights). Loss falls on what the model has to say."""

    def __init__(self, tokenizer: Tokenizer, questions: Questions, prose: list[str]):
        self.tokenizer, self.questions = tokenizer, questions
        self.sentences = [s for b in prose[::20] for s in re.split(r"(?<=[.!?]) ", b) if 30 < len(s) < 120]
        self.id = {s: tokenizer.token_to_id(s) for s in SPECIAL}

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def answer(self, q: Question, thinking: bool) -> tuple[list[int], list[int]]:
        ids, weights = self.weigh(q.answer, q.keys)
        ids, weights = [self.id[END_THINK], *ids, self.id[EOS]], [KEY_WEIGHT, *weights, 1]
        if thinking:
            steps, w = self.weigh(q.steps, q.keys)
            ids, weights = [self.id[THINK], *steps, *ids], [1, *w, *weights]
        return ids, [0, *weights[1:]]  # the template gives the first tag

    def weigh(self, text: str, keys: tuple[str, ...]) -> tuple[list[int], list[int]]:
        encoded = self.tokenizer.encode(text, add_special_tokens=False)
        heavy = [(0, 1)] + [(text.rfind(k), text.rfind(k) + len(k)) for k in keys if k in text]
        return encoded.ids, [
            KEY_WEIGHT if any(end > first and start < last for first, last in heavy) else 1
            for start, end in encoded.offsets
        ]

    def chat(self, rng: random.Random, turns: int) -> tuple[list[int], list[int]]:
        ids = [self.id[BOS]]
        if rng.random() < 0.08:
            ids += self.encode(rng.choice(SYSTEM) if rng.random() < 0.7 else rng.choice(self.sentences))
        weights = [0] * len(ids)
        for turn in range(turns):
            q = self.questions.draw(rng)
            asked = [self.id[USER], *self.encode(vary(rng, q.ask)), self.id[ASSISTANT]]
            # the template drops the steps of earlier turns, so only a last turn may think
            said, w = self.answer(q, thinking=turn == turns - 1 and rng.random() < 0.35)
            ids += asked + said
            weights += [0] * len(asked) + w
        return ids, weights

    def row(self, rng: random.Random, length: int) -> tuple[list[int], list[int]]:
        """Whole chats, one after another, cut at `length` tokens."""
        ids, weights = [], []
        while len(ids) < length:
            turns = rng.choices((1, 2, 3, 4), (5, 3, 2, 1))[0]
            if length > 512 and rng.random() < 0.5:
                turns = rng.randint(8, 40)
            i, w = self.chat(rng, turns)
            ids += i
            weights += w
        return ids[:length], weights[:length]


class Batches:
    """A step's tokens are a function of its number alone, so a resumed run reads what it would have read."""

    def __init__(self, dialogues: Dialogues, prose: np.ndarray, tokens: int, prose_share: float, seed: int):
        self.dialogues, self.prose, self.tokens = dialogues, prose, tokens
        self.prose_share, self.seed = prose_share, seed

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """ids [B, T + 2], loss weights [B, T + 2]: one step in six is long, so that long chats are seen too"""
        rng = random.Random(f"{self.seed}/{step}")
        length = 1024 if step % 6 == 5 else 256
        ids = np.zeros((self.tokens // length, length + 2), np.int64)
        weights = np.zeros_like(ids, dtype=np.float32)
        for row in range(len(ids)):
            if rng.random() < self.prose_share:
                at = rng.randrange(len(self.prose) - length - 2)
                ids[row], weights[row] = self.prose[at : at + length + 2], 1
            else:
                ids[row], weights[row] = self.dialogues.row(rng, length + 2)
        return ids, weights


def prose_stream(tokenizer: Tokenizer, blocks: list[str]) -> np.ndarray:
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    encoded = tokenizer.encode_batch(blocks, add_special_tokens=False)
    return np.array([i for e in encoded for i in (bos, *e.ids, eos)], np.uint16)

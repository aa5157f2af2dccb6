"""Ask a GGUF the held-out questions through llama.cpp: `python evaluate.py demo.gguf --questions questions.json`.

Greedy; an answer counts when it is exactly the expected one and ends by itself. `--text FILE` adds the perplexity of
held-out prose. `--checkpoint FILE` compares with the torch model: the largest difference of the logits, and how often
the draft layer guesses the model's next token but one.
"""

from __future__ import annotations

import argparse
import collections
import json
from pathlib import Path

import jinja2
import llama_cpp
import numpy as np

MOST = 64  # tokens of an answer
WINDOW = 256  # tokens; every window of the prose is predicted from itself alone
F32 = 0  # ggml's type number: the cache in full precision


class Oracle:
    """llama.cpp at its most exact: f32 cache, no flash attention."""

    def __init__(self, path: Path, threads: int, context: int = 1024):
        self.llama = llama_cpp.Llama(
            str(path),
            n_ctx=context,
            n_batch=context,
            n_threads=threads,
            n_threads_batch=threads,
            logits_all=True,
            type_k=F32,
            type_v=F32,
            flash_attn=False,
            verbose=False,
        )
        self.eos = self.llama.token_eos()
        text = self.llama.metadata["tokenizer.chat_template"]
        self.template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(text)
        self.bos = self.llama._model.token_get_text(self.llama.token_bos())

    def encode(self, text: str) -> list[int]:
        return self.llama.tokenize(text.encode(), add_bos=False, special=True)

    def prompt(self, ask: str, thinking: bool) -> list[int]:
        return self.encode(
            self.template.render(
                messages=[{"role": "user", "content": ask}],
                thinking=thinking,
                bos_token=self.bos,
                add_generation_prompt=True,
            )
        )

    def logits(self, ids: list[int]) -> np.ndarray:
        """ids[T] -> [T, vocabulary]"""
        self.llama.reset()
        self.llama.eval(ids)
        return self.llama.scores[: len(ids)].copy()

    def answer(self, ask: str, thinking: bool) -> tuple[str, bool]:
        """(text, whether it ended by itself)"""
        self.llama.reset()
        ids, said = self.prompt(ask, thinking), []
        while len(said) < MOST:
            self.llama.eval(ids)
            best = int(self.llama.scores[self.llama.n_tokens - 1].argmax())
            if best == self.eos:
                break
            said.append(best)
            ids = [best]
        text = self.llama.detokenize(said, special=True).decode(errors="replace")
        return text, len(said) < MOST


def ask_all(oracle: Oracle, questions: list[dict], show: int) -> dict[str, dict[str, int]]:
    table: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for q in questions:
        text, ended = oracle.answer(q["prompt"], q["thinking"])
        row = table[q["kind"] + (" thinking" if q["thinking"] else "")]
        right = text.split("</think>")[-1] == q["expected"] and ended
        row["asked"] += 1
        row["right"] += right
        row["ended"] += ended
        row["tags"] += text.count("</think>") == int(q["thinking"]) and "<think>" not in text
        if not right and row["asked"] - row["right"] <= show:
            print(f"  {q['prompt']!r} -> {text!r}, expected {q['expected']!r}")
    return {kind: dict(row) for kind, row in table.items()}


def perplexity(oracle: Oracle, text: str) -> dict[str, float]:
    ids = [oracle.llama.token_bos(), *oracle.encode(text)]
    total, count = 0.0, 0
    for at in range(0, len(ids) - WINDOW, WINDOW):
        row = ids[at : at + WINDOW + 1]
        logits = oracle.logits(row[:-1]).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        total += float((np.log(np.exp(logits).sum(-1)) - logits[np.arange(WINDOW), row[1:]]).sum())
        count += WINDOW
    size = len(text.encode()) * count / (len(ids) - 1)
    return {"perplexity": float(np.exp(total / count)), "bits_per_byte": total / np.log(2) / size, "tokens": count}


def logits_difference(oracle: Oracle, checkpoint: Path, prompts: list[str]) -> float:
    """Largest difference to the torch model, relative to the spread of the logits."""
    import torch
    from export import checkpoint as load

    model, worst = load(checkpoint), 0.0
    for text in prompts:
        ids = oracle.encode(text)
        with torch.no_grad():
            expected = model(torch.tensor([ids]))[0].numpy()
        worst = max(worst, float(np.abs(oracle.logits(ids) - expected).max() / expected.std()))
    return worst


def draft_acceptance(oracle: Oracle, checkpoint: Path, questions: list[dict]) -> float:
    """Share of the answers' tokens, from the second on, that the draft layer would have guessed."""
    import torch
    from export import checkpoint as load

    model, right, count = load(checkpoint), 0, 0
    for q in questions:
        prompt = oracle.prompt(q["prompt"], thinking=False)
        ids = torch.tensor([[*prompt, *oracle.encode(q["expected"]), oracle.eos]])
        with torch.no_grad():
            hidden = model.hidden(ids[:, :-1])
            best = (hidden @ model.output.T)[0].argmax(-1)  # token i + 1, seen from i
            draft = (model.next_hidden(hidden, ids[:, 1:]) @ model.output.T)[0].argmax(-1)  # token i + 2, from i
        first = len(prompt) - 1  # from here on `best` is the answer
        right += int((draft[first:-1] == best[first + 1 :]).sum())
        count += len(best) - first - 1
    return right / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--questions", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--show", type=int, default=3, help="wrong answers to print for each kind")
    parser.add_argument("--every", type=int, default=1, help="ask one question in so many")
    parser.add_argument("--threads", type=int, default=2)
    report(parser.parse_args())


def report(args: argparse.Namespace) -> None:
    oracle = Oracle(args.model, args.threads)
    if args.checkpoint:
        texts = [
            oracle.bos + "It was a fine morning in the country, and she walked out to see her friends.",
            oracle.bos + "<｜User｜>What is the capital of France?<｜Assistant｜></think>The capital of France is",
        ]
        print(f"logits: largest difference {logits_difference(oracle, args.checkpoint, texts):.2e}")
    if args.questions:
        questions = json.loads(args.questions.read_text())[:: args.every]
        if args.checkpoint:
            print(f"draft layer: {draft_acceptance(oracle, args.checkpoint, questions[::7]):.0%} of tokens guessed")
        print(json.dumps(ask_all(oracle, questions, args.show), indent=1))
    if args.text:
        print(json.dumps(perplexity(oracle, args.text.read_text())))


if __name__ == "__main__":
    main()

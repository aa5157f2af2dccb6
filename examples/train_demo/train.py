"""Train the demo model: `python train.py --work DIR --minutes 100`. The same command resumes.

The learning rate follows the share of the time budget that is used up, so the run always ends cooled down.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from model import PRESETS, Experts, Model, Shape
from optimizer import Optimizer
from questions import Questions
from sources import prose
from tokenizers import Tokenizer
from tokens import Batches, Dialogues, prose_stream, train_tokenizer, vocabulary
from torch import Tensor

WARM_STEPS = 40
COOL_SHARE = 0.45  # of the time: the rate falls linearly to zero
NEXTN_SHARE = 0.25  # of the time: the draft layer learns last, from hidden states that hardly move any more
BALANCE = 0.01  # step of the router's bias
SAVE_SECONDS = 180


def rate_scale(step: int, used: float) -> float:
    return min(1, (step + 1) / WARM_STEPS) * min(1, max(0.02, (1 - used) / COOL_SHARE))


def loss(model: Model, ids: Tensor, weights: Tensor, nextn: bool) -> tuple[Tensor, Tensor]:
    """ids, weights [B, T + 2] -> (loss of the model, loss of the draft layer); the second trains that layer alone"""
    T = ids.shape[1] - 2
    hidden = model.hidden(ids[:, :T])
    main = cross_entropy(hidden, model.output, ids[:, 1 : T + 1], weights[:, 1 : T + 1])
    if not nextn:
        return main, main.new_zeros(())
    draft = model.next_hidden(hidden.detach(), ids[:, 1 : T + 1])
    return main, cross_entropy(draft, model.output.detach(), ids[:, 2:], weights[:, 2:])


def cross_entropy(hidden: Tensor, head: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The head is applied only where the loss looks: it is a sixth of the model's arithmetic."""
    at = weight > 0
    each = F.cross_entropy(F.linear(hidden[at], head).float(), target[at], reduction="none")
    return (each * weight[at]).sum() / weight[at].sum()


def balance(model: Model, scale: float) -> float:
    """Move each router's bias towards the experts that got too few tokens; returns the worst load, 1 = even."""
    worst = 0.0
    for module in model.modules():
        if isinstance(module, Experts) and module.load.any():
            mean = module.load.mean()
            worst = max(worst, (module.load.max() / mean).item())
            module.exp_probs_b += BALANCE * scale * torch.sign(mean - module.load)
            module.load.zero_()
    return worst


@torch.no_grad()
def perplexity(model: Model, stream: np.ndarray, window: int = 256, most: int = 64) -> float:
    model.eval()
    count = min(most, (len(stream) - 1) // window)
    x = torch.from_numpy(stream[: count * window + 1].astype(np.int64)).to(model.output.device)
    total = 0.0
    for i in range(count):
        row = x[i * window : (i + 1) * window + 1]
        total += F.cross_entropy(model(row[None, :-1])[0].float(), row[1:]).item()
    model.train()
    return float(np.exp(total / count))


class Run:
    """Everything that a checkpoint holds."""

    def __init__(self, shape: Shape, args: argparse.Namespace):
        torch.manual_seed(args.seed)
        self.model = Model(shape).to(args.device)
        self.optimizer = Optimizer(self.model, args.rate, args.adam_rate)
        self.step, self.seconds, self.tokens = 0, 0.0, 0
        self.path = args.work / "checkpoint.pt"
        if self.path.exists():
            self.load()

    def load(self) -> None:
        saved = torch.load(self.path, map_location=self.model.output.device)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load(saved["optimizer"])
        self.step, self.seconds, self.tokens = saved["step"], saved["seconds"], saved["tokens"]
        print(f"resumed at step {self.step}, {self.seconds / 60:.1f} minutes", flush=True)

    def save(self) -> None:
        part = self.path.with_suffix(".part")
        torch.save(
            {
                "shape": dataclasses.asdict(self.model.s),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state(),
                "step": self.step,
                "seconds": self.seconds,
                "tokens": self.tokens,
            },
            part,
        )
        os.replace(part, self.path)

    def train_step(self, ids: np.ndarray, weights: np.ndarray, used: float) -> tuple[float, float, float]:
        device = self.model.output.device
        scale = rate_scale(self.step, used)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            main, draft = loss(
                self.model,
                torch.from_numpy(ids).to(device),
                torch.from_numpy(weights).to(device),
                used > 1 - NEXTN_SHARE,
            )
        (main + draft).backward()
        self.optimizer.step(scale)
        for p in self.model.parameters():
            p.grad = None
        worst = balance(self.model, scale)
        self.step += 1
        self.tokens += ids.shape[0] * (ids.shape[1] - 2)
        return main.item(), draft.item(), worst


def prepare(args: argparse.Namespace) -> tuple[Batches, np.ndarray]:
    """(training batches, stream of the held-out prose); trains the tokenizer the first time"""
    train, held = prose(args.work)
    questions = Questions(*vocabulary(train))
    path = args.work / "tokenizer.json"
    if not path.exists():
        train_tokenizer(train, questions, path)
    tokenizer = Tokenizer.from_file(str(path))
    stream = prose_stream(tokenizer, train)
    print(f"prose {len(stream)} tokens, held out {sum(map(len, held))} characters", flush=True)
    batches = Batches(Dialogues(tokenizer, questions, train), stream, args.tokens, args.prose, args.seed)
    return batches, prose_stream(tokenizer, held)


def train(run: Run, batches: Batches, held: np.ndarray, minutes: float) -> None:
    budget, last, saved, losses = minutes * 60, time.time(), time.time(), []
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    signal.signal(signal.SIGINT, lambda *_: stop.append(1))
    while run.seconds < budget and not stop:
        losses.append(run.train_step(*batches(run.step), run.seconds / budget))
        now = time.time()
        run.seconds, last = run.seconds + now - last, now
        if run.step % 50 == 0:
            main, draft, worst = np.mean(losses[-50:], 0)
            print(
                f"step {run.step} minutes {run.seconds / 60:.1f} tokens {run.tokens / 1e6:.2f}M tok/s "
                f"{run.tokens / run.seconds:.0f} loss {main:.3f} draft {draft:.3f} load {worst:.2f}",
                flush=True,
            )
        if now - saved > SAVE_SECONDS:
            run.save()
            saved = now
    run.save()
    if stop:
        raise SystemExit(f"stopped at step {run.step}; the same command goes on from here")
    print(f"done: step {run.step}, {run.tokens} tokens, held-out perplexity {perplexity(run.model, held):.1f}")


def arguments(about: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--work", type=Path, required=True, help="everything that is fetched or made goes here")
    parser.add_argument("--minutes", type=float, default=100, help="whole time budget, resumed runs included")
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=2048, help="a step")
    parser.add_argument("--prose", type=float, default=0.3, help="share of the rows")
    parser.add_argument("--rate", type=float, default=0.02, help="Muon's")
    parser.add_argument("--adam-rate", type=float, default=0.003)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    batches, held = prepare(args)
    train(Run(PRESETS[args.preset], args), batches, held, args.minutes)


if __name__ == "__main__":
    main(arguments(__doc__))

"""Token ids in, token ids out. Knows nothing about text."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from cpu_kernels import Pool
from hetero.cache import LatentCache
from hetero.config import ModelConfig
from hetero.continuation import Constraint, Continuation
from hetero.errors import FileError, KernelError, RequestError
from hetero.file_faults import file_faults
from hetero.gguf import GGUFFile
from hetero.model import Batch, Model
from hetero.pace import Pace
from hetero.run_config import RunConfig
from hetero.sampler import Sampling
from hetero.telemetry import Telemetry
from hetero.weights import place_weights

if TYPE_CHECKING:
    from hetero.planning import Planned

# Prompt tokens of one forward pass at most (`pass_end`). Each chunk makes the keys and
# values of all tokens before it anew: lite's attention over 4096 tokens takes 22 % less than in chunks of 512, and 30 %
# less in chunks of 2048 (one Zen 4 core); but logits of every token, where they are asked for, grow with it.
CHUNK = 1024


class Engine:
    """One model and one cache. `generate`, `logits`, `forward`: one request at a time, the cache's first sequence.
    `step` and `read` are for several (hetero.scheduler, which then is the only one to use the engine).

    `planned`: what was carried out to load it. `model`: bound already; None: it is bound to the CPU.
    """

    def __init__(
        self,
        file: GGUFFile,
        config: ModelConfig,
        run: RunConfig,
        cache: LatentCache,
        pool: Pool,
        planned: "Planned | None" = None,
        model: Model | None = None,
    ):
        self.file, self.config, self.run, self.cache, self.pool, self.planned = file, config, run, cache, pool, planned
        self.context = cache.context
        self.model: Model = model or place_weights(file, config, pool)
        self.telemetry = Telemetry()
        self.failure: FileError | KernelError | None = None  # that ended a pass: its pool cannot be used any more
        self.requests = 0  # begun so far; an answer cannot go on once another request has changed the cache

    def generate(
        self,
        ids: Sequence[int],
        sampling: Sampling | None = None,
        stop_ids: Iterable[int] = (),
        constraint: Constraint | None = None,
    ) -> Iterator[int]:
        """Yields new token ids until one of `stop_ids` (not yielded), `max_tokens`, or the end of the context or of the
        text that `constraint` allows.

        What `ids` shares with the cached tokens is not computed again. Raises RequestError before anything is computed,
        and when the iterator is asked for more after `generate`, `logits` or `forget` has begun something else.
        """
        sampling = sampling or Sampling()
        ids = self.checked(ids)
        room = self.context - len(ids) + 1  # the last token generated is never cached
        limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        stops, size = frozenset(stop_ids), self.config.vocab_size
        return self.watched(ids, Continuation(ids, sampling, size, limit, stops, constraint))

    def watched(self, ids: list[int], going: Continuation) -> Iterator[int]:
        started = perf_counter()
        self.requests += 1
        kept = self.cache.keep_prefix(0, ids[:-1])
        self.telemetry = Telemetry(cached_tokens=kept, prompt_tokens=len(ids) - kept)
        self.prefill(ids[kept:-1])
        yield from self.telemetry.watch(self.decode(ids[-1], going), started)

    def decode(self, last: int, going: Continuation) -> Iterator[int]:
        request = self.requests
        while going.reason is None:
            if self.requests != request:
                raise RequestError(
                    "an answer is asked to go on after another request began",
                    "the cache holds one of them",
                    "read an answer to its end before the next request",
                )
            chosen = going.choose(self.scores([last])[0])
            if chosen is None:
                return
            last = chosen.id
            yield last

    def prefill(self, ids: list[int]) -> None:
        for chunk in self.chunks(ids):
            self.forward(chunk, [])

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """float32 [T, vocab]: what follows each token of `ids`, read from an empty context. Replaces what is cached."""
        return np.concatenate(list(self.logits_by_chunk(ids)))

    def logits_by_chunk(self, ids: Sequence[int]) -> Iterator[np.ndarray]:
        """`logits` in parts, one for each forward pass."""
        ids = self.checked(ids)
        self.forget()
        for chunk in self.chunks(ids):
            yield self.scores(chunk)

    def chunks(self, ids: list[int]) -> Iterator[list[int]]:
        """Splits `ids`, which follow the cached tokens, as `pass_end` says."""
        start = at = self.tokens_cached
        end = start + len(ids)
        while at < end:
            next = pass_end(at, end)
            yield ids[at - start : next - start]
            at = next

    def scores(self, ids: list[int]) -> np.ndarray:
        """float32 [T, vocab]: one pass over the next tokens, a row of logits for each."""
        logits = self.forward(ids, range(len(ids)))
        assert logits is not None, "logits were asked for"
        return logits

    def forward(self, ids: list[int], logits_at: Iterable[int]) -> np.ndarray | None:
        """One pass over the next tokens of the first sequence. A pass that fails or is interrupted leaves no token.

        FileError where mapped weights cannot be read, KernelError where a kernel died; from then on always.
        """
        with self.batch([(0, ids)], logits_at) as batch, file_faults(self.file):
            return self.model.forward(batch, self.cache.layers)

    def step(self, sequences: Sequence[int], ids: Sequence[int]) -> np.ndarray:
        """float32 [n, vocab]: one pass over the next token of each of these sequences; then others may read it."""
        parts = [(sequence, [id]) for sequence, id in zip(sequences, ids, strict=True)]
        with self.batch(parts, range(len(parts))) as batch, file_faults(self.file):
            logits = self.model.forward(batch, self.cache.layers)
        assert logits is not None, "logits were asked for"
        for sequence in sequences:
            self.cache.publish(sequence)
        return logits

    def read(self, sequence: int, ids: list[int] | np.ndarray, pace: Pace) -> Generator[None, None, None]:
        """A pass over the next tokens of a sequence, in pieces; others may read them when it has come to its end.

        Other sequences' passes may run between two pieces. Closed before its end it leaves no token.
        """
        layers = self.cache.layers
        with self.batch([(sequence, ids)], ()) as batch, closing(self.model.phases(batch, layers, pace)) as pieces:
            while True:
                with file_faults(self.file):
                    if next(pieces, self) is self:
                        break
                yield
        self.cache.publish(sequence)

    @contextmanager
    def batch(self, parts: Sequence[tuple[int, list[int] | np.ndarray]], logits_at: Iterable[int]) -> Iterator[Batch]:
        """The next tokens of some sequences, noted in the cache; dropped again where the pass inside fails."""
        if self.failure is not None:
            raise self.failure
        cache = self.cache
        before = [(sequence, int(cache.lengths[sequence])) for sequence, _ in parts]
        rows, counts = np.array([sequence for sequence, _ in parts], np.int32), [len(ids) for _, ids in parts]
        try:
            yield Batch(
                positions=np.concatenate(
                    [cache.extend(*part, len(part[1]) > self.model.absorbed_limit) for part in parts]
                ),
                ids=np.concatenate([np.asarray(ids, np.int64) for _, ids in parts]),
                sequence=np.repeat(rows, counts),
                block_table=cache.block_table,
                lengths=cache.lengths.copy(),
                logits_at=np.asarray(logits_at, np.int64),
            )
        except BaseException as error:
            for sequence, length in before:
                cache.truncate(sequence, length)
            if isinstance(error, FileError | KernelError):
                self.failure = error
            raise

    def checked(self, ids: Sequence[int]) -> list[int]:
        return self.checked_array(ids).tolist()

    def checked_array(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """int32 [n]. RequestError: none, too many, or one that the vocabulary does not have."""
        if not len(ids):
            raise RequestError("an empty prompt", "at least one token is needed", "give some text")
        if len(ids) > self.context:
            raise RequestError(
                f"the prompt has {len(ids)} tokens",
                f"the context holds {self.context}",
                "shorten it or raise --context",
            )
        least, most = (min(ids), max(ids)) if not isinstance(ids, np.ndarray) else (ids.min(), ids.max())
        if least < 0 or most >= self.config.vocab_size:
            raise RequestError(
                f"token id {least if least < 0 else most}",
                f"the vocabulary has ids 0 to {self.config.vocab_size - 1}",
                "use this model's own tokenizer",
            )
        return np.asarray(ids, np.int32)

    @property
    def tokens_cached(self) -> int:
        return int(self.cache.lengths[0])

    def forget(self) -> None:
        self.requests += 1
        self.cache.truncate(0, 0)

    def close(self) -> None:
        self.model.close()
        self.pool.close()
        self.file.close()


def pass_end(done: int, total: int) -> int:
    """Where a pass over a prompt of `total` tokens ends that begins behind the first `done`.

    At absolute multiples of CHUNK, so that what the cache holds does not depend on how a long prompt arrived; but what
    can be read in one pass is not cut, as the second half would expand everything before it again.
    """
    return total if total - done <= CHUNK else (done // CHUNK + 1) * CHUNK

"""What one request cost: tokens and seconds, measured around the engine's generator, not inside it."""

from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter


@dataclass
class Telemetry:
    """The prompt's time ends with the first token; generation is counted from there, so its tokens are one fewer."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, found in the cache
    prompt_seconds: float = 0.0
    generated_tokens: int = 0
    generated_seconds: float = 0.0

    @property
    def prompt_tokens_per_second(self) -> float:
        return (self.prompt_tokens - self.cached_tokens) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def generated_tokens_per_second(self) -> float:
        return max(self.generated_tokens - 1, 0) / self.generated_seconds if self.generated_seconds else 0.0

    def watch(self, tokens: Iterator[int], started: float) -> Iterator[int]:
        """Passes `tokens` through, timing each; the reader's own time between them does not count."""
        for id in tokens:
            seconds = perf_counter() - started
            if self.generated_tokens == 0:
                self.prompt_seconds = seconds
            else:
                self.generated_seconds += seconds
            self.generated_tokens += 1
            yield id
            started = perf_counter()

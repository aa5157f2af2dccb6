"""What one request cost, in tokens and seconds."""

from dataclasses import dataclass


@dataclass
class Telemetry:
    """One request. The last prompt token is fed by the first decode step, so n generated tokens are n steps."""

    cached_tokens: int = 0  # of the prompt, already in the cache
    prompt_tokens: int = 0  # of the prompt, computed now
    prompt_seconds: float = 0.0
    generated_tokens: int = 0
    generation_seconds: float = 0.0

    @property
    def prompt_tokens_per_second(self) -> float:
        return _rate(self.prompt_tokens, self.prompt_seconds)

    @property
    def generation_tokens_per_second(self) -> float:
        return _rate(self.generated_tokens, self.generation_seconds)

    def __str__(self) -> str:
        cached = f" (+{self.cached_tokens:,} cached)" if self.cached_tokens else ""
        return (
            f"prompt {self.prompt_tokens:,} tokens{cached}, {self.prompt_tokens_per_second:.1f} tok/s"
            f" | answer {self.generated_tokens:,} tokens, {self.generation_tokens_per_second:.1f} tok/s"
        )


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 else 0.0

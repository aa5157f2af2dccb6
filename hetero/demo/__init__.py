"""The bundled demo model: data, and the way to it. MODEL_CARD.md says what it is and what it can do."""

from pathlib import Path


def path() -> Path:
    """Where demo.gguf lies."""
    return Path(__file__).with_name("demo.gguf")

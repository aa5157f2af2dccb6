"""What the benchmarks' command lines have in common."""

import argparse

from cpu_kernels.topology import default_threads


def integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    return text.split(",")


def parser(
    description: str | None, *, threads: list[int] | None = None, seconds: float | None = None
) -> argparse.ArgumentParser:
    """With --threads, which takes several numbers where the default is a list; --seconds where that has a default."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=integers if threads else int, default=threads or default_threads())
    if seconds is not None:
        made.add_argument(
            "--seconds", type=float, default=seconds, help="of each case, at least 3 rounds [%(default)g]"
        )
    return made

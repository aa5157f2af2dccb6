"""From a path to an engine and its tokenizer, refusing what cannot work before kernels compile or weights are read."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from hetero.config import ModelConfig, RunConfig
from hetero.errors import FileError, RequestError, UnsupportedError
from hetero.gguf import open_gguf
from hetero.tensors import check_tensors

if TYPE_CHECKING:
    from hetero.engine import Engine
    from hetero.tokenizer import Tokenizer

DEFAULT_CONTEXT = 8192

Progress = Callable[[str, int, int], None]  # stage, done, total; total 0 where it is not known


def load(
    path: str | Path, run: RunConfig | None = None, progress: Progress | None = None
) -> "tuple[Engine, Tokenizer]":
    """Opens a GGUF (the first file of several), binds its weights, makes room for the cache.

    `progress(stage, done, total)` is called as stages begin and while weights are read. Without it, or where they do
    not fit in free memory, weights are read when they are first used.
    Raises FileError, UnsupportedError, ResourceError, RequestError.
    """
    from cpu_kernels import CACHED, SUPPORTED, Pool, note_compiled
    from hetero.cache import LatentCache
    from hetero.tokenizer import Tokenizer

    run, report = run or RunConfig(), progress or (lambda stage, done, total: None)
    if run.sequences > 1:
        raise UnsupportedError(f"{run.sequences} sequences", "one is served in this version", "leave out --sequences")
    with ExitStack() as undo:
        file = undo.enter_context(open_gguf(path))
        config = ModelConfig.from_gguf(file)
        check_tensors(file, config, SUPPORTED)
        tokenizer = Tokenizer.from_gguf(file)
        if tokenizer.vocab_size != config.vocab_size:
            found = f"{file.paths[0].name}: its tokenizer has {tokenizer.vocab_size:,} tokens"
            raise FileError(found, f"the model has {config.vocab_size:,}", "convert the model again")
        cache = LatentCache(config, run, chosen_context(config, run))
        kernels = "preparing kernels" if CACHED else "compiling kernels for this CPU, once, about a minute"
        report(kernels, 0, 0)
        from hetero.arena import rearrange  # here: naming the kernels compiles them
        from hetero.engine import Engine

        pool = undo.enter_context(Pool(run.threads))
        if not run.mmap:
            file.tensors = rearrange(file, config, pool, report)
        engine = Engine(file, config, run, cache, pool)
        report(kernels, 0, 0)
        engine.model.rehearse(cache.layers)
        note_compiled()
        undo.pop_all()
    return engine, tokenizer


def chosen_context(config: ModelConfig, run: RunConfig) -> int:
    if run.context is None:
        return min(config.context_length, DEFAULT_CONTEXT)
    if run.context > config.context_length:
        raise RequestError(
            f"a context of {run.context} tokens",
            f"{config.name} was made for at most {config.context_length}",
            f"use --context {config.context_length} or less",
        )
    return run.context

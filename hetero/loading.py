"""From a path to an engine and its tokenizer, refusing whatever cannot work before the weights are read."""

from pathlib import Path

import cpu_kernels
from hetero.config import ModelConfig, RunConfig
from hetero.engine import Engine
from hetero.errors import RequestError
from hetero.gguf import open_gguf
from hetero.tensors import check_tensors
from hetero.tokenizer import Tokenizer
from hetero.weights import Progress, read_ahead

DEFAULT_CONTEXT = 8192


def load(path: str | Path, run: RunConfig | None = None, progress: Progress | None = None) -> tuple[Engine, Tokenizer]:
    """Opens a GGUF (the first file of several), binds its weights, makes room for the cache.

    `progress(stage, done, total)` is called as stages begin and while weights are read; without it, or where the weights
    do not fit in free memory, they are read when they are first used.
    Raises FileError, UnsupportedError, ResourceError, RequestError.
    """
    run = run or RunConfig()
    file = open_gguf(path)
    try:
        config = ModelConfig.from_gguf(file)
        check_tensors(file, config, cpu_kernels.SUPPORTED)
        context = chosen_context(config, run)
        tokenizer = Tokenizer.from_gguf(file)
        if progress is not None:
            read_ahead(file, config, progress)
            progress("preparing kernels" if cpu_kernels.CACHED else "compiling kernels for this CPU, once", 0, 0)
        engine = Engine(file, config, run, context, cpu_kernels.Pool(run.threads))
        engine.model.rehearse(engine.cache.layers)
    except BaseException:
        file.close()
        raise
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

"""From a path to an engine and its tokenizer, refusing what cannot work before kernels compile or weights are read."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from hetero.arena import Slot, place, plan
from hetero.config import ModelConfig
from hetero.errors import FileError
from hetero.file_faults import file_faults
from hetero.gguf import GGUFFile, Tensor, open_gguf
from hetero.places import places
from hetero.planning import Planned, plan_to_run
from hetero.prefetch import prefetch
from hetero.run_config import RunConfig
from hetero.sizes import format_size
from hetero.tensors import check_tensors

if TYPE_CHECKING:
    from cpu_kernels import Pool
    from hetero.engine import Engine
    from hetero.gpu_loading import GpuLoad
    from hetero.tokenizer import Tokenizer

Progress = Callable[[str, int, int], None]  # stage, done, total; total 0 where it is not known


def load(
    path: str | Path,
    run: RunConfig | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
) -> "tuple[Engine, Tokenizer]":
    """Opens a GGUF (the first file of several), reads or maps its weights, makes room for the cache.

    `progress(stage, done, total)` is called as stages begin and, with bytes, while weights are read; `notice(sentence)`
    where something was chosen that the caller might not expect.
    Raises FileError, UnsupportedError, ResourceError, RequestError.
    """
    from cpu_kernels import CACHED, SUPPORTED, note_compiled
    from hetero.tokenizer import Tokenizer

    run, report = run or RunConfig(), progress or (lambda stage, done, total: None)
    say = notice or (lambda sentence: None)
    with ExitStack() as undo:
        file = undo.enter_context(open_gguf(path))
        config = ModelConfig.from_gguf(file)
        check_tensors(file, config, SUPPORTED)
        tokenizer = Tokenizer.from_gguf(file)
        if tokenizer.vocab_size != config.vocab_size:
            found = f"{file.paths[0].name}: its tokenizer has {tokenizer.vocab_size:,} tokens"
            raise FileError(found, f"the model has {config.vocab_size:,}", "convert the model again")
        planned = plan_to_run(file, config, run)
        for note in planned.notes:
            say(note)
        kernels = "preparing kernels" if CACHED else "compiling kernels for this CPU, once, about a minute"
        report(kernels, 0, 0)
        from cpu_kernels import Pool  # here, and below: naming kernels compiles them
        from hetero.cache import LatentCache

        gpu = gpu_load(planned, run)
        cache = LatentCache(config, run, run.context or planned.context, gpu.cache if gpu else None)
        slots = plan(file, config, gpu.places.left) if gpu else plan(file, config)
        weights = WeightSource(file, slots, run, planned, say)
        from hetero.engine import Engine

        pool = undo.enter_context(Pool(planned.plan.threads))
        with file_faults(file):
            whole = dict(file.tensors)
            file.tensors = weights.tensors(pool, report)
            model = gpu.bind(file, whole, config, pool, report) if gpu else None
            if gpu and model:
                undo.callback(model.close)
                gpu.report(planned.gpu_bytes, say)
            report(kernels, 0, 0)
            engine = Engine(file, config, run, cache, pool, planned, model)
            engine.model.rehearse(cache.layers, cache.block_table.shape[1])
        note_compiled()
        undo.pop_all()
    return engine, tokenizer


def gpu_load(planned: Planned, run: RunConfig) -> "GpuLoad | None":
    """None: the plan leaves the GPU alone. UnsupportedError where there is none, or it is to do what it cannot."""
    on_gpu = places(planned)
    if on_gpu is None:
        return None
    from hetero.gpu_loading import GpuLoad  # here: it needs torch

    return GpuLoad(on_gpu, graph=run.graph is not False)


class WeightSource:
    """Where the weights will lie, as planned: in memory, in the mapped file, or in a mapped file of rearranged ones."""

    def __init__(
        self, file: GGUFFile, slots: list[Slot], run: RunConfig, planned: Planned, notice: Callable[[str], None]
    ):
        self.file, self.slots, self.run, self.planned, self.notice = file, slots, run, planned, notice
        asked = run.mmap or run.weights_cache or run.plan
        if planned.plan.mode == "mmap" and not asked:
            need, free = format_size(planned.needed_bytes), format_size(planned.dram_bytes)
            notice(f"weights stay in the file (mmap): {need} do not fit in {free} of free memory")

    def tensors(self, pool: "Pool", progress: Progress) -> dict[str, Tensor]:
        from hetero.weights_cache import Busy

        if self.run.weights_cache is not None:
            try:
                return self._cached(self.run.weights_cache, pool, progress)
            except Busy:
                self.notice("another process is writing the weights cache: this one goes without")
        if self.planned.plan.mode == "mmap" and (self.run.weights_cache is None or self.planned.on_disk):
            return self._mapped()
        return self._read(pool, progress)

    def _mapped(self) -> dict[str, Tensor]:
        """As they are; what the plan keeps in memory as a whole is read in the background."""
        wanted = [slot for slot in self.slots if slot.tensor.name not in self.planned.on_disk]
        prefetch((self.file.paths[slot.tensor.file], *part) for slot in wanted for part in slot.ranges)
        return self.file.tensors

    def _read(self, pool: "Pool", progress: Progress) -> dict[str, Tensor]:
        from hetero.nodes import new_arena, split
        from hetero.weight_reader import WeightReader

        slots = split(self.slots, pool)
        arena, line = new_arena(slots, pool)
        if line:
            self.notice(line)
        kept = max(0, self.planned.dram_bytes - self.planned.needed_bytes)
        for _ in WeightReader(self.file, slots, pool, kept).fill(arena, progress):
            pass
        return place(slots, arena)

    def _cached(self, directory: str, pool: "Pool", progress: Progress) -> dict[str, Tensor]:
        from hetero.nodes import split
        from hetero.weight_reader import WeightReader
        from hetero.weights_cache import WeightsCache

        slots = split(self.slots, pool)
        cache = WeightsCache(directory, self.file, slots)
        arena = cache.map()
        if arena is None:
            if cache.problem:
                self.notice(f"{cache.path} cannot be used and is made again: {cache.problem}")
            reader = WeightReader(self.file, slots, pool, kept=0)
            arena = cache.write(lambda arena: reader.fill(arena, progress))
        elif not self.planned.on_disk:
            prefetch([(cache.path, 0, cache.nbytes)])
        return place(slots, arena, cache.path)

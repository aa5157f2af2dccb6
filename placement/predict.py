"""How fast a plan will be: seconds of every part of a pass, and the ceiling that bandwidth alone sets.

Serial: one part after the other, CPU and GPU in turn. `overlapped_...` takes the shorter of the two away where both
work at once: the GPU has its experts of a layer beside the CPU's, and, of a long prompt's pass, one half while the CPU
has the other's experts.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from placement.cost import CHUNK, HALVES_FROM, absorbed_limit, cache_row_bytes, touched_share
from placement.machine import CPU, DISK, GPU, Machine
from placement.model import Model
from placement.plan import Bound, DecodeSpeed, PartSeconds, Placed, PrefillSpeed, Settings
from placement.rates import Rates, expert_seconds, flop_seconds
from placement.work import Kind, Layout, Products

ACTIVATION_BYTES = 4  # of a value that goes over PCIe
CALLS_OF_A_LAYER = 9  # of verbs beside products: four norms, two rotations, the cache, attention, the router
_BANDWIDTH: dict[str, Bound] = {CPU: "dram bandwidth", GPU: "vram bandwidth"}
_ARITHMETIC: dict[str, Bound] = {CPU: "cpu arithmetic", GPU: "gpu arithmetic"}


@dataclass(frozen=True)
class Pass:
    """T tokens after `depth` cached ones; without logits the last layer only fills its cache.

    `apart`: each token is of a sequence of its own, with so many cached.
    """

    tokens: int
    depth: int
    logits: bool = False
    apart: bool = False


@dataclass(frozen=True)
class Item:
    """A stretch of time. `kind` where it is a product."""

    part: str
    place: str
    seconds: float
    bound: Bound
    kind: Kind | None = None


@dataclass(frozen=True)
class Computed:
    """Products on a processor. `one_column`: seconds if all of what is read met one column only."""

    seconds: float
    one_column: float


class Predictor:
    """Of one model, placed on one machine: `decode(depth)`, `prefill(tokens)`, `ceiling(depth)`.

    Of a plan: Predictor(model, machine, plan.settings, plan.tensors). `rearranged`: the CPU's weights lie in memory, or
    in a file of their own, as its kernels like them; None: unless they are mapped.
    """

    def __init__(
        self,
        model: Model,
        machine: Machine,
        settings: Settings,
        placed: tuple[Placed, ...],
        rearranged: bool | None = None,
    ):
        self.model, self.machine, self.kv = model, machine, settings.kv
        self.layout = Layout(model, placed, settings.expert_counts)
        threads = settings.threads or machine.cpu.threads
        fewer = max(1.0, machine.cpu.threads / threads)
        self.rates = {CPU: Rates(machine.cpu, fewer)}
        if machine.gpu is not None:
            self.rates[GPU] = Rates(machine.gpu)
        self._uses_gpu = machine.gpu is not None and GPU in self.layout.mla
        mapped = bool(settings.mmap) or any(work.disk_bytes for work in self.layout.products.values())
        self._rearranged = not mapped if rearranged is None else rearranged
        # Pages of a mapped file lie wherever there was room: they are not cut over the nodes
        cut = self._rearranged
        self._stretch = {kind: self._stretched(work) if cut else 1.0 for kind, work in self.layout.products.items()}

    def _stretched(self, work: Products) -> float:
        """How much longer reading takes than if each node held as much as it can read in the same time: the longest of
        bytes on a node / its bandwidth, for each tensor, over bytes / bandwidth of all nodes together. 1 or more."""
        speeds = {node.name: node.read_bandwidth for node in self.machine.nodes}
        longest = sum(max((size / speeds[name] for name, size in tensor.items()), default=0.0) for tensor in work.nodes)
        even = sum(sum(tensor.values()) for tensor in work.nodes) / self.machine.dram_bandwidth
        return max(1.0, longest / even) if even else 1.0

    def bandwidth(self, place: str) -> float:
        """Bytes/s that a processor reads with at most."""
        if place == GPU:
            assert self.machine.vram is not None, "a tensor is on a GPU that is not there"
            return self.machine.vram.read_bandwidth
        return self.machine.dram_bandwidth

    def read_seconds(self, kind: Kind, nbytes: float) -> float:
        """Least seconds in which the processor reads so many bytes of these products."""
        return nbytes / self.bandwidth(kind.place) * self._stretch[kind]

    def items(self, step: Pass) -> list[Item]:
        found = [self._product(kind, work, step) for kind, work in self._products(step)]
        found += [item for kind, work in self._products(step) for item in self._disk(kind, work, step)]
        return found + list(self._attention(step)) + list(self._rest(step))

    def _products(self, step: Pass) -> Iterator[tuple[Kind, Products]]:
        expanded = step.tokens > absorbed_limit(self.model.dimensions)
        for kind, work in self.layout.products.items():
            if not ((kind.last and not step.logits) or (expanded and kind.verb == "heads")):
                yield kind, work

    def _product(self, kind: Kind, work: Products, step: Pass) -> Item:
        touched = _touched(kind, step.tokens)
        computed = self._compute(kind, work, step)
        slower = self.rates[kind.place].slower
        seconds = computed.seconds * slower
        # The node that holds more than its share is waited for, as far as it is memory that is waited for
        seconds += (self._stretch[kind] - 1.0) * min(seconds, computed.one_column * slower)
        read = self.read_seconds(kind, work.nbytes * touched)
        bound = _BANDWIDTH[kind.place] if 2 * read >= seconds else _ARITHMETIC[kind.place]
        return Item(kind.part, kind.place, max(seconds, read), bound, kind)

    def _compute(self, kind: Kind, work: Products, step: Pass) -> Computed:
        rate = self.rates[kind.place].linear(kind.verb, kind.type, 2 * work.nbytes / work.flops)
        if kind.probability is None:
            each = flop_seconds(rate, step.tokens)
        else:
            each = expert_seconds(rate, step.tokens, kind.probability)
        calls, touched = work.calls * rate.call_seconds, _touched(kind, step.tokens)
        one = touched * flop_seconds(rate, 1)
        if kind.place == CPU and not self._rearranged:
            columns = step.tokens if kind.probability is None else step.tokens * kind.probability / touched
            each *= self.rates[CPU].mapped(kind.type, columns)
            one *= self.rates[CPU].mapped(kind.type, 1)
        return Computed(calls + work.flops * each, calls + work.flops * one)

    def _disk(self, kind: Kind, work: Products, step: Pass) -> Iterator[Item]:
        disk = self.machine.disk
        if work.disk_bytes and disk is not None:
            seconds = work.disk_bytes * _touched(kind, step.tokens) / disk.read_bandwidth
            yield Item(kind.part, DISK, seconds, "disk", kind)

    def _attention(self, step: Pass) -> Iterator[Item]:
        d = self.model.dimensions
        for place in (CPU, GPU):
            layers = sum(at == place for at in (self.layout.mla if step.logits else self.layout.mla[:-1]))
            if not layers:
                continue
            rates = self.rates[place]
            seconds = layers * rates.attention_seconds(d, self.kv, step.tokens, step.depth)
            seen = step.tokens * (step.depth + 1) if step.apart else step.depth + step.tokens
            cached = layers * cache_row_bytes(d, self.kv) * seen
            read = cached / self.bandwidth(place)
            bound = _BANDWIDTH[place] if 2 * read >= seconds else _ARITHMETIC[place]
            yield Item("attention", place, max(seconds, read), bound)
            if step.tokens > absorbed_limit(d):
                weights = layers * d.heads * d.kv_lora_rank * (d.nope_dim + d.value_dim)
                yield Item("attention", place, rates.verb_seconds("dequantize", 2 * layers, weights), "overhead")

    def _rest(self, step: Pass) -> Iterator[Item]:
        """Norms, rotations, cache, routers; the embedding; what goes over PCIe."""
        d, tokens = self.model.dimensions, step.tokens
        moe = len(self.model.routed_by_layer)
        for place in {CPU, *self.layout.mla}:
            rates, layers = self.rates[place], self.layout.mla.count(place)
            normed = 2 * d.hidden_size + d.q_lora_rank + d.kv_lora_rank
            norms = rates.verb_seconds("rms_norm", layers * (3 + bool(d.q_lora_rank)), layers * tokens * normed)
            turned = layers * tokens * (d.heads + 1) * d.rope_dim
            seconds = norms + rates.verb_seconds("rope", 2 * layers, turned)
            seconds += rates.verb_seconds("write_cache", layers, layers * tokens * d.cache_width)
            routers = moe * layers / max(d.layers, 1)
            seconds += rates.verb_seconds("route", round(routers), routers * tokens * d.experts)
            yield Item("other", place, seconds, "overhead")
        cpu = self.rates[CPU]
        whole = cpu.verb_seconds("pass", 1, tokens) + cpu.verb_seconds("embed", 1, tokens * d.hidden_size)
        if not step.logits:  # a prompt's passes are not recorded
            calls = sum(work.calls for kind, work in self._products(step) if kind.place == CPU)
            calls += CALLS_OF_A_LAYER * self.layout.mla.count(CPU)
            whole += cpu.verb_seconds("call", calls, 0.0)
        yield Item("other", CPU, whole, "overhead")
        crossings = self.layout.crossings()
        if crossings and self.machine.links:
            link = self.machine.links[0]
            each = link.latency + ACTIVATION_BYTES * tokens * d.hidden_size / link.to_gpu_pinned
            yield Item("other", "pcie", crossings * each, "pcie")

    def decode(self, depth: int, sequences: int = 1) -> DecodeSpeed:
        """Of a token of each of so many sequences, each with so many cached; speeds are those of all together."""
        items = self.items(Pass(sequences, depth, logits=True, apart=True))
        serial = sum(item.seconds for item in items)
        ceiling, overlapped = self.ceiling(depth, sequences)
        return DecodeSpeed(
            depth=depth,
            tokens_per_second=sequences / serial,
            ceiling_tokens_per_second=sequences / ceiling,
            bound_by=bound_of(items),
            overlapped_tokens_per_second=sequences / (serial - _overlapped(items)),
            overlapped_ceiling_tokens_per_second=sequences / overlapped,
            parts=by_part(items),
        )

    def streams(self, sequences: int, depth: int = 0) -> float:
        """How many times the speed of one sequence so many decoded together may have, by bytes alone.

        What all tokens use is read once, experts that several chose too (`touched_share`); latents for each sequence.
        """
        return sequences * self.ceiling(depth)[0] / self.ceiling(depth, sequences)[0]

    def ceiling(self, depth: int, sequences: int = 1) -> tuple[float, float]:
        """Least seconds of a decoded token by bandwidth alone: bytes of each memory over its bandwidth, added up, and
        the same with the GPU's experts beside the CPU's. Of `sequences`: of a token of each, in one pass."""
        seconds = ours = theirs = 0.0
        for kind, work in self.layout.products.items():
            share = _touched(kind, sequences)
            here = self.read_seconds(kind, share * (work.nbytes - work.disk_bytes))
            if work.disk_bytes and self.machine.disk is not None:
                here += share * work.disk_bytes / self.machine.disk.read_bandwidth
            seconds += here
            theirs += here * kind.overlaps
            ours += here * (kind.part == "routed experts" and kind.place == CPU)
        row = cache_row_bytes(self.model.dimensions, self.kv)
        seconds += sum(sequences * depth * row / self.bandwidth(place) for place in self.layout.mla)
        return seconds, seconds - min(ours, theirs)

    def prefill(self, tokens: int) -> PrefillSpeed:
        """From an empty context to the first new token: all but the last token in passes, then one decode step."""
        items, saved = list[Item](), 0.0
        for start in range(0, tokens - 1, CHUNK):
            parts = self._halves(Pass(min(CHUNK, tokens - 1 - start), start))
            found = [item for part in parts for item in self.items(part)]
            items += found
            saved += _overlapped(found, whole=len(parts) > 1)
        last = self.items(Pass(1, tokens - 1, logits=True))
        items += last
        saved += _overlapped(last)
        serial = sum(item.seconds for item in items)
        return PrefillSpeed(
            prompt_tokens=tokens,
            tokens_per_second=tokens / serial,
            bound_by=bound_of(items),
            overlapped_tokens_per_second=tokens / (serial - saved),
            parts=by_part(items),
        )

    def _halves(self, step: Pass) -> list[Pass]:
        """With a GPU a long pass is two, so that one's attention may run beside the other's experts."""
        if not self._uses_gpu or step.tokens < HALVES_FROM:
            return [step]
        half = step.tokens // 2
        return [Pass(half, step.depth), Pass(step.tokens - half, step.depth + half)]


def _overlapped(items: list[Item], whole: bool = False) -> float:
    """Seconds saved where the CPU computes its routed experts while the GPU does what else a layer has of them, or,
    `whole`, anything."""
    ours = sum(i.seconds for i in items if i.part == "routed experts" and i.place in (CPU, DISK))
    theirs = sum(i.seconds for i in items if (i.place == GPU if whole else i.kind is not None and i.kind.overlaps))
    return min(ours, theirs)


def _touched(kind: Kind, tokens: int) -> float:
    """The share of the weights that is read."""
    return 1.0 if kind.probability is None else touched_share(kind.probability, tokens)


def bound_of(items: list[Item]) -> Bound:
    """The bound of the largest share of the time."""
    seconds: dict[Bound, float] = defaultdict(float)
    for item in items:
        seconds[item.bound] += item.seconds
    return max(seconds, key=lambda bound: seconds[bound])


def by_part(items: list[Item]) -> tuple[PartSeconds, ...]:
    """Longest first."""
    members: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        members[item.part, item.place].append(item)
    parts = [
        PartSeconds(part, place, sum(item.seconds for item in found), bound_of(found))
        for (part, place), found in members.items()
    ]
    return tuple(sorted(parts, key=lambda part: -part.seconds))

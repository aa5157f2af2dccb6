"""From a plan with a GPU to a bound model: each part on its side, and a meeting wherever both compute a layer."""

from functools import partial
from typing import Any

import numpy as np

from cpu_kernels import Pool, ffn, routed_experts
from cpu_kernels.gated import Gated
from hetero.config import ModelConfig
from hetero.gguf import GGUFFile
from hetero.gpu_weights import GpuWeights, VramReader
from hetero.graph import Capture
from hetero.hybrid import HybridModel
from hetero.model import Block, Ends
from hetero.moe import DenseFFN, MoE
from hetero.offload import Doorbells
from hetero.offloaded_networks import OffloadedFFN, SplitMoE
from hetero.places import Places
from hetero.side import CpuSide
from hetero.weights import Weights, block, feed_forward, head, router


class Placing:
    """Binds every tensor of the main model where `places` says."""

    def __init__(
        self, file: GGUFFile, config: ModelConfig, pool: Pool, places: Places, reader: VramReader, doorbells: Doorbells
    ):
        self.file, self.config, self.places, self.doorbells = file, config, places, doorbells
        self.here, self.there = Weights(file, CpuSide(pool)), GpuWeights(reader)

    def model(self, capture: Capture | None) -> HybridModel:
        config, here, there = self.config, self.here, self.there
        blocks = [self._gpu_block(layer) for layer in range(self.places.attention)]
        for layer in range(self.places.attention, config.layers):
            blocks.append(block(here, config, layer, feed_forward(here, config, layer)))
        last = head(there, there.reader.tensors) if self.places.head else head(here, self.file.tensors)
        ends = Ends(here.matrix("token_embd.weight"), *last)
        model = HybridModel(config, blocks, ends, (here.side, there.side), self.doorbells, capture)
        self.doorbells.open()
        return model

    def _gpu_block(self, layer: int) -> Block:
        network = self._dense(layer) if layer < self.config.dense_layers else self._mixture(layer)
        return block(self.there, self.config, layer, network)

    def _dense(self, layer: int) -> DenseFFN:
        if layer in self.places.networks:
            return DenseFFN(self.there.gated(layer, ""), self.there.side)
        network, pool = self.here.gated(layer, "", 1, self.config.intermediate_size), self.here.pool
        return OffloadedFFN(self.doorbells.meeting(partial(_network, pool, network), self.config.hidden_size))

    def _mixture(self, layer: int) -> MoE:
        config, places, there = self.config, self.places, self.there
        experts, resident = places.experts.get(layer, ()), None
        if experts:
            resident = there.resident(layer, experts, config.experts)
        shared, shared_here = None, None
        if config.shared_experts and layer in places.networks:
            shared = there.gated(layer, "_shexp")
        elif config.shared_experts:
            width = config.shared_experts * config.expert_intermediate_size
            shared_here = self.here.gated(layer, "_shexp", 1, width)
        choose = router(there, config, layer)
        if len(experts) == config.experts:
            return MoE(choose, resident, shared, there.side)
        routed, numbers = self._left(layer)
        meeting = self.doorbells.meeting(
            partial(_mixture, self.here.pool, routed, shared_here),
            config.hidden_size,
            used=config.experts_used,
            experts=routed.count,
            local=None if numbers is None else there.side.copy(numbers),
        )
        return SplitMoE(choose, resident, shared, there.side, meeting)

    def _left(self, layer: int) -> tuple[Gated, np.ndarray | None]:
        """The CPU's experts of a layer; int32 [E]: the number of each of the model's among them, -1 for the GPU's."""
        config, left = self.config, self.places.elsewhere(layer)
        if left is None:
            return self.here.gated(layer, "_exps", config.experts, config.expert_intermediate_size), None
        mapped = self.here.file.tensors.get(f"blk.{layer}.ffn_gate_exps.weight")
        is_whole = mapped is not None and mapped.shape[0] == config.experts  # in the file: all of them are there
        count = config.experts if is_whole else len(left)
        numbers = np.full(config.experts, -1, np.int32)
        numbers[list(left)] = left if is_whole else np.arange(count)
        return self.here.gated(layer, "_exps", count, config.expert_intermediate_size), numbers


def _network(pool: Pool, network: Gated, x: np.ndarray, ids: Any, weights: Any, out: Any) -> None:
    ffn(pool, network, x, None, out)


def _mixture(
    pool: Pool,
    routed: Gated,
    shared: Gated | None,
    x: np.ndarray,
    ids: np.ndarray,
    weights: np.ndarray,
    out: np.ndarray,
) -> None:
    routed_experts(pool, routed, x, ids, weights, shared, None, out)

"""What the planner says of a model that is in memory, beside which its speed is measured."""

from typing import TYPE_CHECKING

from hetero.probe import probe, weight_types
from placement.model import Model
from placement.plan import Placed, Settings
from placement.predict import Predictor

if TYPE_CHECKING:
    from hetero.engine import Engine


def predictor(engine: "Engine", model: Model) -> Predictor | None:
    """From rates of this machine, measured now where they were not before. `model`: the engine's, or one of which the
    engine has some layers. None where weights are mapped from a file: how much of it stays in memory is not known.
    """
    if any(tensor.path is not None for tensor in engine.file.tensors.values()):
        return None
    kv = engine.run.kv
    machine = probe(engine.pool, weight_types(model), kv=[kv])
    placed = tuple(Placed(tensor.name, machine.nodes[0].name, tensor.nbytes) for tensor in model.tensors)
    return Predictor(model, machine, Settings(context=engine.context, kv=kv, threads=engine.pool.threads), placed)

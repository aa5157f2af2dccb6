"""The placement planner: what fits where, and how fast it will be. Pure arithmetic on the standard library, no I/O.

    plan = make_plan(preset("deepseek-v3:q4_k_m"), describe(Description(...)), Settings(context=32768))

model (what is placed), machine (where), cost (bytes and FLOP of a part), known_parts (machines nobody measured),
presets and quantization (models nobody downloaded), published (speeds of others), planner (make_plan), edited (replan),
plan (what comes out).
"""

from placement.edited import replan
from placement.errors import DoesNotFit, InvalidDocument, PlacementError
from placement.known_parts import GPUS, SOCKETS, Description, describe
from placement.machine import AttentionRate, LinearRate, Link, Machine, Memory, Processor, VerbRate
from placement.model import Dimensions, Model, Tensor
from placement.plan import Plan, Settings
from placement.planner import make_plan
from placement.predict import Predictor
from placement.presets import preset

__all__ = [
    "GPUS",
    "SOCKETS",
    "AttentionRate",
    "Description",
    "Dimensions",
    "DoesNotFit",
    "InvalidDocument",
    "LinearRate",
    "Link",
    "Machine",
    "Memory",
    "Model",
    "PlacementError",
    "Plan",
    "Predictor",
    "Processor",
    "Settings",
    "Tensor",
    "VerbRate",
    "describe",
    "make_plan",
    "preset",
    "replan",
]

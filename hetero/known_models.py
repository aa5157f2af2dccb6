"""What older files leave out: keys that came into GGUF later, completed for the models known to need them.

Found by the number of experts, the number of layers and whether the router has a bias.
llama.cpp routes such files without groups, which is not what the models were trained with.
"""

from dataclasses import dataclass
from typing import Literal

Gating = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Router:
    gating: Gating
    groups: int  # 1: no groups
    groups_used: int


# (experts, layers, bias): the routing in the config.json of the original
KNOWN_ROUTERS = {
    (256, 61, True): Router("sigmoid", 8, 4),  # DeepSeek-V3, V3-0324, V3.1, R1, R1-0528
    (160, 60, False): Router("softmax", 8, 3),  # DeepSeek-V2, V2.5, Coder-V2
}

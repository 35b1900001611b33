"""The methods by name: the one place that lists them."""

from __future__ import annotations

from nacre.methods.finetune import Finetune
from nacre.methods.joint import Joint
from nacre.methods.reconstruction import Reconstruction, ReconstructionPlain
from nacre.methods.replay import Replay
from nacre.training.method import Method

METHODS: dict[str, type[Method]] = {
    "reconstruction": Reconstruction,
    "reconstruction-plain": ReconstructionPlain,
    "finetune": Finetune,
    "replay": Replay,
    "joint": Joint,
}

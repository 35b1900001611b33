"""nacre: image classifiers that learn new classes in stages, without forgetting the old ones."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nacre.data.memory import PerClass as PerClass
    from nacre.data.memory import Total as Total
    from nacre.data.readers import digits as digits
    from nacre.data.stream import Stream as Stream
    from nacre.errors import NacreError as NacreError
    from nacre.estimator import IncrementalClassifier as IncrementalClassifier
    from nacre.evaluation.matrix import AccuracyMatrix as AccuracyMatrix
    from nacre.evaluation.metrics import average_incremental as average_incremental
    from nacre.evaluation.metrics import forgetting as forgetting
    from nacre.evaluation.metrics import last as last
    from nacre.experiment import Experiment as Experiment
    from nacre.methods import METHODS as METHODS
    from nacre.methods.reconstruction import Reconstruction as Reconstruction
    from nacre.modelfile import load as load
    from nacre.modelfile import save as save
    from nacre.training.learner import Learner as Learner
    from nacre.training.learner import accuracy as accuracy

PUBLIC = {
    "AccuracyMatrix": "nacre.evaluation.matrix",
    "Experiment": "nacre.experiment",
    "IncrementalClassifier": "nacre.estimator",
    "Learner": "nacre.training.learner",
    "METHODS": "nacre.methods",
    "NacreError": "nacre.errors",
    "PerClass": "nacre.data.memory",
    "Reconstruction": "nacre.methods.reconstruction",
    "Stream": "nacre.data.stream",
    "Total": "nacre.data.memory",
    "accuracy": "nacre.training.learner",
    "average_incremental": "nacre.evaluation.metrics",
    "digits": "nacre.data.readers",
    "forgetting": "nacre.evaluation.metrics",
    "last": "nacre.evaluation.metrics",
    "load": "nacre.modelfile",
    "save": "nacre.modelfile",
}
"""Public name -> module; each is imported when first asked for, so that `import nacre` costs nothing."""

__all__ = ["__version__", *PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'nacre' has no attribute {name!r}")
    return getattr(importlib.import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

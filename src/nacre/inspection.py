"""What a model knows, what it is made of, and how it came to be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nacre import modelfile
from nacre.evaluation import cost, panel
from nacre.training.learner import Learner


def inspection(learner: Learner, more: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A model described, as JSON.

    Args:
        learner: as loaded.
        more: what is written beside it.
        path: of its file.
    """
    knowledge, count = learner.knowledge, len(learner.classes)
    shown = panel.panel(learner)
    growth = None if shown is None else panel.growth(learner, shown).tolist()
    exemplars = torch.bincount(knowledge.memory.labels, minlength=count).tolist()
    held = torch.bincount(knowledge.held.labels, minlength=count).tolist()
    parts = {name: value for name, value in cost.footprint(knowledge).items() if name not in ("deployed", "carried")}
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "parts": {**parts, "held_out": cost.size(knowledge.held.state().values())},
        "half_precision": learner.half,
        "method": modelfile.method_settings(learner.method),
        "memory": str(knowledge.memory.budget),
        "backbone": type(knowledge.model.backbone).__name__,
        "parameters": cost.arithmetic(knowledge.model)["parameters"],
        "image": {"channels": learner.spec.shape[0], "height": learner.spec.shape[1], "width": learner.spec.shape[2]},
        "stages": learner.stages,
        "classes": [
            {
                "name": name,
                "stage": learner.came[label] + 1,
                "images": learner.images[label],
                "exemplars": exemplars[label],
                "held_out": held[label],
                "drift": None if growth is None else growth[label],
            }
            for label, name in enumerate(learner.classes)
        ],
        "drift": None if growth is None else sum(growth) / len(growth),
        "history": history(more),
    }


def history(more: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A model's lessons and changes, oldest first; the stages of a run have no date."""
    stages = [modelfile.Examined.model_validate(past) for past in more.get("history", [])]
    began: list[dict[str, Any]] = [
        {
            "date": None,
            "stage": past.stage,
            "new": past.classes,
            "further": [],
            "after": {"all": past.accuracy, "old": past.old, "new": past.new},
        }
        for past in stages
    ]
    return began + [{name: value for name, value in lesson.items() if name != "data"} for lesson in more.get("lessons", [])]

"""A model in use, measured on labelled images, and on images of nothing it knows.

Shapes: n images, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nacre.data.source import Samples
from nacre.evaluation import scores
from nacre.evaluation.novelty import detector, known_images
from nacre.evaluation.probes import mahalanobis
from nacre.training.inference import features, outputs
from nacre.training.learner import Learner


def appraise(learner: Learner, samples: Samples, unknown: Samples | None = None) -> dict[str, Any]:
    """Measure a learner.

    Args:
        learner: that knows the classes of `samples`.
        samples: labelled by position in the learner's classes.
        unknown: images of none of its classes; their labels do not matter.

    Returns:
        JSON: accuracies over all, old and new classes (those of the last stage) and by class; the pairs that are confused most
        often; calibration; the confusion matrix; how many of the images are taken for unknown; and how well each novelty score
        tells `unknown` from `samples`.
    """
    known = sum(stage < max(learner.came) for stage in learner.came)
    found, labels = looked_at(learner, samples), samples.labels
    guess = found["logits"].argmax(1)
    right = (guess == labels).double()
    old = labels < known
    groups = {"all": torch.ones_like(old), "old": old, "new": ~old}
    table = scores.confusion(guess, labels, len(learner.classes))
    novelty = None if unknown is None else separation(learner, found, looked_at(learner, unknown))
    return {
        "images": len(samples),
        "accuracy": {name: float(right[group].mean()) if group.any() else None for name, group in groups.items()},
        "classes": [
            {
                "name": name,
                "stage": learner.came[label] + 1,
                "images": int((labels == label).sum()),
                "accuracy": float(right[labels == label].mean()) if (labels == label).any() else None,
            }
            for label, name in enumerate(learner.classes)
        ],
        "confused": confused(table, learner.classes),
        "calibration": {name: scores.calibration(found["logits"][group], labels[group]) for name, group in groups.items() if group.any()},
        "confusion": table,
        "called_unknown": float((found["novelty"] > 1).double().mean()) if "novelty" in found else None,
        "novelty": novelty,
    }


def looked_at(learner: Learner, samples: Samples) -> dict[str, Tensor]:
    """Logits [n, K] of the declared readout and scores [n] of novelty, on the CPU."""
    model, tells = learner.knowledge.model, detector(learner)
    parts: dict[str, list[Tensor]] = {}
    for images, out in outputs(model, samples, learner.runtime, decode=True):
        logits = model.answer(out.features)
        found = {"logits": logits, "features": out.features}
        if tells is not None:
            found["novelty"] = tells(images, out.reconstruction, logits)
        if out.reconstruction is not None:
            found["reconstruction"] = (out.reconstruction - images).square().mean((1, 2, 3))
        for name, value in found.items():
            parts.setdefault(name, []).append(value.cpu())
    return {name: torch.cat(values) for name, values in parts.items()}


def separation(learner: Learner, seen: dict[str, Tensor], unseen: dict[str, Tensor]) -> dict[str, Any]:
    """How well each score, high for what is unlike anything known, tells unseen from seen; and what share is called unknown."""

    def every(found: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = found["logits"].double()
        return {
            **({"novelty": found["novelty"]} if "novelty" in found else {}),
            "softmax": 1 - F.softmax(logits, 1).max(1).values,
            "energy": -logits.logsumexp(1),
            **({"reconstruction": found["reconstruction"]} if "reconstruction" in found else {}),
            **({"mahalanobis": mahalanobis(found["features"], stored, reference.labels)} if len(reference) else {}),
        }

    reference = learner.knowledge.memory.samples() if len(learner.knowledge.memory) else known_images(learner)
    stored = features(learner.knowledge.model, reference, learner.runtime).cpu()
    here, there = every(seen), every(unseen)
    return {
        "images": len(unseen["logits"]),
        "called_unknown": float((unseen["novelty"] > 1).double().mean()) if "novelty" in unseen else None,
        "scores": {name: scores.detection(here[name], there[name]) for name in here},
    }


def confused(table: list[list[int]], names: tuple[str, ...], most: int = 10) -> list[dict[str, Any]]:
    """The pairs of truth and answer that go wrong most often."""
    wrong = [(count, i, j) for i, row in enumerate(table) for j, count in enumerate(row) if i != j and count]
    return [{"truth": names[i], "answer": names[j], "images": count} for count, i, j in sorted(wrong, key=lambda x: (-x[0], x[1:]))[:most]]

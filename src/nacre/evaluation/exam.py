"""One stage's exam: everything `metrics.md` asks after a stage, as plain numbers; it neither prints nor decides.

Shapes: n test images of all classes, those still to come included; D features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nacre.data.source import Samples
from nacre.data.stream import Stage, Stream
from nacre.evaluation import scores
from nacre.evaluation.probes import drift, fit_linear, linear_probe, mahalanobis
from nacre.models.heads import NearestMean
from nacre.models.model import Model
from nacre.training.inference import features, outputs
from nacre.training.learner import Learner
from nacre.training.runtime import Runtime

PROBED = 10_000
"""Most training images that the feature probe learns from."""
Result = dict[str, Any]
"""JSON: numbers by name, nested."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What a model makes of n images."""

    features: Tensor
    """[n, D], float32, on the CPU."""
    labels: Tensor
    """[n]."""
    unexplained: Tensor | None
    """[n]: fraction of variance unexplained of each image; None without a decoder."""


def look(model: Model, samples: Samples, runtime: Runtime) -> Seen:
    """Run a model over samples."""
    found, errors = [], []
    for images, out in outputs(model, samples, runtime, decode=True):
        found.append(out.features.cpu())
        if out.reconstruction is not None:
            errors.append((out.reconstruction - images).square().mean((1, 2, 3)).cpu())
    return Seen(torch.cat(found), samples.labels, torch.cat(errors) if errors else None)


@torch.no_grad()
def examine(learner: Learner, stream: Stream, stage: Stage) -> Result:
    """Examine a learner that has just learnt a stage.

    Args:
        learner: with its knowledge, teacher included.
        stream: the whole stream; test images of classes to come serve the probe and the novelty scores only.
        stage: just learnt.

    Returns:
        Accuracies of stages so far, old and new apart; errors by direction; calibration; every readout; feature probe;
        drift; reconstruction; novelty; the confusion matrix.
    """
    model = learner.knowledge.model
    test = look(model, stream.test, learner.runtime)
    inside = test.labels < stage.seen
    labels = test.labels[inside]
    logits = answer(model.answer, model, test.features[inside])
    guess = logits.argmax(1)
    columns = [accuracy(guess, labels, range(past.known, past.seen)) for past in stream[: stage.index + 1]]
    groups = {"all": range(stage.seen), "old": range(stage.known), "new": stage.new}
    parts = {name: (labels >= group.start) & (labels < group.stop) for name, group in groups.items()}
    return {
        "stage": stage.index + 1,
        "classes": list(stage.names),
        "known": stage.known,
        "seen": stage.seen,
        "accuracies": columns,
        **by_group(guess, labels, stage),
        "errors": scores.error_split(guess, labels, stage.known),
        "calibration": {name: scores.calibration(logits[part], labels[part]) for name, part in parts.items() if part.any()},
        "readouts": readouts(learner, test, stage),
        "probe": probe(model, stream, test, learner.runtime),
        "drift": moved(learner, stream, test, stage),
        "reconstruction": reconstruction(test, stage),
        "novelty": novelty(learner, stream, test, stage),
        "confusion": scores.confusion(guess, labels, stage.seen),
    }


def answer(head: Any, model: Model, found: Tensor) -> Tensor:
    """A head's logits for features on the CPU, on the CPU."""
    logits: Tensor = head(found.to(next(model.parameters()).device))
    return logits.cpu()


def accuracy(guess: Tensor, labels: Tensor, classes: range) -> float:
    """Share of right answers among the samples of some classes; NaN for none."""
    part = (labels >= classes.start) & (labels < classes.stop)
    return float((guess == labels)[part].double().mean())


def by_group(guess: Tensor, labels: Tensor, stage: Stage) -> dict[str, float | None]:
    """Accuracy over all, old and new classes; None where there are no old ones."""
    return {
        "accuracy": accuracy(guess, labels, range(stage.seen)),
        "old": accuracy(guess, labels, range(stage.known)) if stage.known else None,
        "new": accuracy(guess, labels, stage.new),
    }


def readouts(learner: Learner, test: Seen, stage: Stage) -> Mapping[str, Mapping[str, float | None]]:
    """Accuracies of the trained head and, fitted on the exemplars' features alone, of nearest mean and a linear head."""
    model, memory = learner.knowledge.model, learner.knowledge.memory.samples()
    inside = test.labels < stage.seen
    found, labels = test.features[inside], test.labels[inside]
    guesses = {"head": answer(model.head, model, found).argmax(1)}
    if len(memory.labels.unique()) == stage.seen:
        stored = features(model, memory, learner.runtime).cpu()
        means = NearestMean(stored.shape[1])
        means.learn(stored, memory.labels, stage.seen)
        guesses["nearest_mean"] = means(found).argmax(1)
        if stage.seen > 1:
            guesses["linear"] = torch.from_numpy(fit_linear(stored, memory.labels).predict(found.numpy()))
    return {name: by_group(guess, labels, stage) for name, guess in guesses.items()}


def probe(model: Model, stream: Stream, test: Seen, runtime: Runtime) -> float:
    """The feature probe: accuracy of a linear classifier over all classes of the stream, those still to come included.

    Of the training images at most `PROBED` are looked at, equally many of every class where there are enough.
    """
    train = look(model, thinned(stream.train, len(stream.classes)), runtime)
    return linear_probe(train.features, train.labels, test.features, test.labels)


def thinned(samples: Samples, classes: int, most: int = PROBED) -> Samples:
    """At most `most` samples, evenly spread over every class; all where there are no more."""
    if len(samples) <= most:
        return samples
    order = samples.labels.argsort(stable=True)
    labels = samples.labels[order]
    first = torch.searchsorted(labels, torch.arange(classes))
    count = torch.bincount(labels, minlength=classes)
    quota = max(1, most // classes)
    place = torch.arange(len(samples)) - first[labels]
    # the members k of a class for which floor(k q / n) moves: q of n, evenly spread
    spread = (place * quota) // count[labels] != ((place - 1) * quota) // count[labels]
    return samples.take(order[spread | (count[labels] <= quota)].sort().values)


def moved(learner: Learner, stream: Stream, test: Seen, stage: Stage) -> dict[str, float] | None:
    """Drift of the known classes' features over the stage; None in the first."""
    teacher = learner.knowledge.teacher
    if not stage.known or teacher is None:
        return None
    before = features(teacher, stream.test.among(range(stage.known)), learner.runtime).cpu()
    inside = test.labels < stage.known
    return drift(before, test.features[inside], test.labels[inside])


def reconstruction(test: Seen, stage: Stage) -> dict[str, float | None] | None:
    """Fraction of variance unexplained of old, new and unseen classes; None without a decoder."""
    if test.unexplained is None:
        return None
    sides = {"old": test.labels < stage.known, "unseen": test.labels >= stage.seen}
    sides["new"] = ~(sides["old"] | sides["unseen"])
    return {name: float(test.unexplained[side].mean()) if side.any() else None for name, side in sides.items()}


def novelty(learner: Learner, stream: Stream, test: Seen, stage: Stage) -> dict[str, dict[str, float]] | None:
    """Seen classes against those of the next stage, by several scores; None after the last stage."""
    if stage.index + 1 == len(stream):
        return None
    after = stream[stage.index + 1]
    seen = test.labels < stage.seen
    coming = (test.labels >= after.known) & (test.labels < after.seen)
    model = learner.knowledge.model
    logits = answer(model.head, model, test.features)
    reference = stage.train + learner.knowledge.memory.samples()
    found = features(model, reference, learner.runtime).cpu()
    score = {
        "softmax": 1 - F.softmax(logits.double(), 1).max(1).values,
        "energy": -logits.double().logsumexp(1),
        "mahalanobis": mahalanobis(test.features, found, reference.labels),
    }
    if test.unexplained is not None:
        score["reconstruction"] = test.unexplained
    return {name: scores.detection(values[seen], values[coming]) for name, values in score.items()}

"""Answers to image files, as they stream by: decoded ahead on all cores, shown to the model in batches, in their order.

Shapes: n files of a batch, K classes.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nacre.data import cache
from nacre.data.decode import Form, Unreadable, decode
from nacre.data.listing import content, legible, walk
from nacre.evaluation.novelty import detector
from nacre.training.inference import evaluating
from nacre.training.learner import Learner

AHEAD = 2
"""Batches that are decoded before they are asked for."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model says of one file."""

    path: str
    classes: tuple[tuple[str, float], ...] = field(default=())
    """The likeliest classes and their probabilities, the likeliest first; none for a file that cannot be read."""
    novelty: float | None = None
    """0 is usual among known images, above 1 is the twentieth of them that is the most unusual; None without calibration."""
    error: str | None = None
    """Why the file cannot be read."""

    @property
    def unknown(self) -> bool:
        """Whether it is unlike anything known: 5 % of known images are called so."""
        return self.novelty is not None and self.novelty > 1


def listed(arguments: Iterable[str]) -> Iterator[Path]:
    """The files that a command line names, as they are found: files, folders with all that is in them, `-` for a list on stdin."""
    for argument in arguments:
        if argument == "-":
            yield from (Path(line.rstrip("\n")) for line in sys.stdin if line.strip())
        elif Path(argument).is_dir():
            for _, paths in walk(Path(argument)):
                yield from paths
        else:
            yield Path(argument)


class Predictor:
    """Answers for a learner.

    Args:
        learner: that knows a class.
        top: how many classes to name.
        batch: files at a time.
    """

    def __init__(self, learner: Learner, *, top: int = 1, batch: int = 64) -> None:
        self.learner, self.batch = learner, batch
        self.model = learner.knowledge.model.frozen()
        self.top = min(top, len(learner.classes))
        self.novelty = detector(learner)

    def files(self, paths: Iterable[Path]) -> Iterator[Answer]:
        """Answer to files, in their order; one that cannot be read is answered with the reason."""
        form, remaining = self.learner.spec.form, iter(paths)
        ahead: deque[tuple[list[Path], list[Future[NDArray[np.uint8] | str]]]] = deque()
        with ThreadPoolExecutor(cache.cores()) as pool:
            while True:
                while len(ahead) <= AHEAD and (some := list(islice(remaining, self.batch))):
                    ahead.append((some, [pool.submit(read, path, form) for path in some]))
                if not ahead:
                    return
                names, found = ahead.popleft()
                yield from self._batch(names, [future.result() for future in found])

    def _batch(self, paths: list[Path], found: list[NDArray[np.uint8] | str]) -> Iterator[Answer]:
        """Answer to one batch."""
        whole = [item for item in found if not isinstance(item, str)]
        answers = iter(self.arrays(torch.from_numpy(np.stack(whole))) if whole else ())
        for path, item in zip(paths, found, strict=True):
            if isinstance(item, str):
                yield Answer(path=legible(path), error=item)
            else:
                classes, novelty = next(answers)
                yield Answer(path=legible(path), classes=classes, novelty=novelty)

    def arrays(self, images: Tensor) -> Iterator[tuple[tuple[tuple[str, float], ...], float | None]]:
        """Likeliest classes and novelty of each uint8 image [n, C, H, W]."""
        probabilities, novelty = self.scores(images)
        best = probabilities.topk(self.top, 1)
        for number, (shares, labels) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            names = tuple((self.learner.classes[label], share) for label, share in zip(labels, shares, strict=True))
            yield names, None if novelty is None else float(novelty[number])

    def scores(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Probabilities [n, K] and novelty [n] of uint8 images [n, C, H, W], on the CPU."""
        runtime, model = self.learner.runtime, self.model
        with evaluating(model):
            pixels = model.normalise(runtime.images(images)).contiguous(memory_format=runtime.format)
            with runtime.autocast():
                out = model(pixels, decode=self.novelty is not None)
            logits = model.answer(out.features)
            novelty = None if self.novelty is None else self.novelty(pixels, out.reconstruction, logits).cpu()
            return logits.softmax(1).cpu(), novelty


def read(path: Path, form: Form) -> NDArray[np.uint8] | str:
    """A file's pixels [C, H, W], or why it has none."""
    data = content(path)
    if isinstance(data, Unreadable):
        return str(data)
    try:
        return decode(data, form)
    except Unreadable as error:
        return str(error)

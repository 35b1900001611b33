"""Where images come from: each reader makes a Source, and the registry names them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nacre.data.augment import Augment
from nacre.data.source import Samples, Source
from nacre.errors import choose
from nacre.seeds import derive


def digits() -> Source:
    """The 1,797 scans of handwritten digits that scikit-learn carries: 8 x 8 grey, ten classes.

    They come without a split: a fifth of every class, always the same, is held out as test images (UCI machine learning
    repository, Optical Recognition of Handwritten Digits; Alpaydin & Kaynak 1998).
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy((data.images * (255 / 16)).round().astype(np.uint8))[:, None]
    samples = Samples.of(images, torch.from_numpy(data.target))
    train, test = held_out(samples.labels, fraction=0.2, seed=0)
    names = tuple(str(name) for name in data.target_names)
    return Source(samples.take(train), samples.take(test), names, Augment(shift=1))


def held_out(labels: Tensor, *, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split sample positions within every class.

    Args:
        labels: [n], int64.
        fraction: share of every class that is held out, in (0, 1); at least one sample of a class stays on each side
            where it has two or more.
        seed: of the split.

    Returns:
        Kept and held-out positions, each ascending, int64.
    """
    rng = np.random.default_rng(derive(seed, "held out"))
    kept, out = [], []
    for label in labels.unique().tolist():
        members = rng.permutation(torch.nonzero(labels == label).flatten().numpy())
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        out.append(members[:count])
        kept.append(members[count:])
    return torch.from_numpy(np.sort(np.concatenate(kept))), torch.from_numpy(np.sort(np.concatenate(out)))


READERS: dict[str, Callable[[], Source]] = {"digits": digits}


def read(data: str) -> Source:
    """The data set that `data` names.

    Raises:
        NacreError: there is no such data set.
    """
    return choose("data", data, READERS)()

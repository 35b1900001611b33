"""Data sets that torchvision downloads and reads, where it is installed; nothing else here needs it."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from nacre.data import cache
from nacre.data.arrays import Arrays, Pair
from nacre.errors import NacreError, nearest


def torchvision_arrays(data: str) -> Arrays:
    """One of torchvision's own data sets, kept in the cache folder.

    Args:
        data: `torchvision:NAME`, such as torchvision:CIFAR100.

    Raises:
        NacreError: torchvision is not there, or has no such classification data set.
    """
    name = data.removeprefix("torchvision:")
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        remedy = "pip install 'nacre[torchvision]', of the build that fits your torch."
        raise NacreError(f"data {data!r} needs torchvision, which cannot be imported ({error}): {remedy}") from None
    make = getattr(datasets, name, None) if name in datasets.__all__ else None
    if make is None:
        raise NacreError(f"torchvision has no data set {name!r}.{nearest(name, datasets.__all__)}")
    options = inspect.signature(make).parameters
    if "train" in options:
        parts = [part(make, train=flag) for flag in (True, False)]
    elif "split" in options:
        parts = [part(make, split=word) for word in ("train", "test")]
    else:
        raise NacreError(f"torchvision's {name} has no training and test part: use one that has, or give a path.")
    return Arrays(parts[0][0], parts[1][0], parts[0][1])


def part(make: Any, **options: Any) -> tuple[Pair, list[str] | None]:
    """Images and labels of one part, and the class names."""
    made = make(root=str(cache.folder() / "torchvision"), download=True, **options)
    labels = made.targets if "targets" in vars(made) else made.labels
    if "data" not in vars(made):
        raise NacreError(f"torchvision's {type(made).__name__} comes as files: give the path of its folder instead.")
    names = vars(made).get("classes")
    return (np.asarray(made.data), [int(label) for label in labels]), None if names is None else [str(name) for name in names]

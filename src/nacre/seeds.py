"""Every random stream of a run comes from its one seed and the place where it is drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, *place: int | str) -> int:
    """An independent seed for one place of a run, e.g. `derive(seed, "fit", stage, epoch)`.

    A hash rather than a sum, so that no two places and no two neighbouring run seeds share a stream.

    Returns:
        A number in `[0, 2**63)`, the same on every machine.
    """
    text = ":".join(map(str, (seed, *place)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *place: int | str) -> torch.Generator:
    """A CPU generator for one place of a run (see `derive`)."""
    return torch.Generator().manual_seed(derive(seed, *place))


@contextmanager
def seeded(seed: int, *place: int | str) -> Iterator[None]:
    """Seed torch's default generator for one place of a run, and give the caller's state back after it."""
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, *place))
        yield

"""Exemplars: never over budget, the most worthy first, herding as the paper has it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nacre.data.memory import EVERYTHING, Bytes, Memory, PerClass, Total, budget
from nacre.data.selection import herding, random
from nacre.data.source import Samples
from nacre.data.stream import Stage, Stream
from nacre.errors import NacreError


def flat(samples: Samples) -> Tensor:
    return samples.pixels().flatten(1).float() + 1


@pytest.mark.parametrize("kept", [Total(7), Total(2), PerClass(3), PerClass(50), EVERYTHING, PerClass(0)])
@pytest.mark.parametrize("selection", ["herding", "random"])
def test_every_class_has_its_share_and_no_more(stream: Stream, kept: Total | PerClass, selection: str) -> None:
    memory = Memory(kept, selection, stream.source.spec.shape)
    for stage in stream:
        memory.update(stage, flat, seed=1)
        count = torch.bincount(memory.labels, minlength=stage.seen)
        assert (count == min(kept.quota(stage.seen), 12)).all()
        own = {bytes(image.flatten().tolist()) for image in torch.cat([past.train.pixels() for past in stream[: stage.index + 1]])}
        assert all(bytes(image.flatten().tolist()) in own for image in memory.images)


def test_a_smaller_share_keeps_the_most_worthy(stream: Stream) -> None:
    memory = Memory(Total(12), "herding", stream.source.spec.shape)
    memory.update(stream[0], flat, 0)
    before = memory.samples().among(range(1)).pixels()
    memory.update(stream[1], flat, 0)
    assert torch.equal(memory.samples().among(range(1)).pixels(), before[:3])


def test_more_images_of_a_known_class_compete_with_its_exemplars() -> None:
    images = torch.arange(8, dtype=torch.uint8).reshape(8, 1, 1, 1)
    first = Stage(0, 0, 1, ("a",), Samples.of(images[:4], torch.zeros(4)), Samples.of(images[:1], torch.zeros(1)))
    again = Stage(1, 1, 1, (), Samples.of(images[4:], torch.zeros(4)), first.test)
    memory = Memory(PerClass(3), "random", (1, 1, 1))
    memory.update(first, flat, 0)
    memory.update(again, flat, 0)
    assert len(memory) == 3
    assert memory.images.max() >= 4


def slow_herding(features: np.ndarray, count: int) -> list[int]:
    """Algorithm 4 of the iCaRL paper, word by word."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    chosen: list[int] = []
    for k in range(count):
        gaps = []
        for i in range(len(unit)):
            total = unit[i] + sum((unit[j] for j in chosen), np.zeros(unit.shape[1]))
            gaps.append(np.inf if i in chosen else np.linalg.norm(unit.mean(0) - total / (k + 1)))
        chosen.append(int(np.argmin(gaps)))
    return chosen


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000))
@settings(max_examples=40, derandomize=True, deadline=None)
def test_herding_is_the_papers(n: int, count: int, seed: int) -> None:
    features = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    chosen = herding(n, lambda: features, count, torch.Generator())
    assert chosen.tolist() == slow_herding(features.numpy(), min(n, count))


def test_herding_by_hand() -> None:
    # unit vectors at 0, 90 and 40 degrees: their mean lies near 42, so the third comes first, and then the pair balances it
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.766, 0.643]])
    assert herding(3, lambda: features, 3, torch.Generator()).tolist()[0] == 2


def test_random_looks_at_no_feature() -> None:
    chosen = random(9, lambda: pytest.fail("looked"), 4, torch.Generator().manual_seed(0))
    assert len(set(chosen.tolist())) == 4


@pytest.mark.parametrize("text", ["2000", "20/class", "5000000B", "none", "all"])
def test_a_budget_survives_text(text: str) -> None:
    assert str(budget(text)) == text


@pytest.mark.parametrize("text", ["", "-3", "20 per class", "2e3"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(NacreError, match="20/class"):
        budget(text)


@pytest.mark.parametrize(("text", "exemplars"), [("1KB", 5), ("1152B", 6), ("1151B", 5), ("191B", 0)])
def test_bytes_are_shared_by_the_size_of_an_image(stream: Stream, text: str, exemplars: int) -> None:
    memory = Memory(budget(text), "random", stream.source.spec.shape)  # 3 x 8 x 8: 192 bytes an image
    memory.update(stream[0], flat, 0)
    assert len(memory) == exemplars // 2 * 2
    memory.update(stream[1], flat, 0)
    assert len(memory) == exemplars // 4 * 4
    assert memory.images.numel() <= Bytes(int(text.rstrip("KB")) * (1000 if "K" in text else 1)).bytes

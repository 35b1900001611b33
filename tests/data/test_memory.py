"""Exemplars: never over budget, the most worthy first, herding as the paper has it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nacre.data.memory import EVERYTHING, Memory, PerClass, Total, budget
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


@pytest.mark.parametrize("text", ["2000", "20/class", "none", "all"])
def test_a_budget_survives_text(text: str) -> None:
    assert str(budget(text)) == text


@pytest.mark.parametrize("text", ["", "-3", "20 per class", "2e3"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(NacreError, match="20/class"):
        budget(text)


def growing_stream(count: int, each: int) -> list[Stage]:
    """Stages of one class each, whose images hold their own number."""
    images = torch.arange(count * each, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    samples = Samples.of(images, torch.arange(count).repeat_interleave(each))
    return [Stage(i, i, i + 1, (str(i),), samples.among(range(i, i + 1)), samples.among(range(i, i + 1))) for i in range(count)]


@given(st.integers(0, 40), st.booleans(), st.sampled_from(["herding", "random"]))
@settings(max_examples=25, derandomize=True, deadline=None)
def test_many_stages_never_exceed_the_budget_and_only_drop_the_least_worthy(images: int, per_class: bool, selection: str) -> None:
    kept = PerClass(images) if per_class else Total(images)
    memory, before = Memory(kept, selection, (1, 1, 1)), dict[int, list[int]]()
    for stage in growing_stream(12, 7):
        memory.update(stage, flat, seed=0)
        assert len(memory) <= (images * stage.seen if per_class else images)
        now = {label: memory.images[memory.labels == label].flatten().tolist() for label in range(stage.seen)}
        share = min(7, images if per_class else images // stage.seen)
        assert all(len(numbers) == share == len(set(numbers)) for numbers in now.values())
        assert all(number // 7 == label for label, numbers in now.items() for number in numbers)
        assert all(now[label] == numbers[:share] for label, numbers in before.items())
        assert memory.labels.tolist() == sorted(memory.labels.tolist())
        before = now


def test_everything_keeps_every_image_and_nothing_none() -> None:
    for text, count in (("all", 15), ("none", 0)):
        memory = Memory(budget(text), "herding", (1, 1, 1))
        for stage in growing_stream(3, 5):
            memory.update(stage, lambda samples: pytest.fail("no choice needs features"), seed=0)
        assert len(memory) == count
        assert sorted(memory.images.flatten().tolist()) == list(range(count))


def test_of_a_known_class_the_worthiest_of_old_and_new_images_stay() -> None:
    # unit features (cos, sin) at the degrees the pixel holds: one exemplar of 0, 10 and 100 degrees is 10, that of 10, 50 and 70 is 50
    def directions(samples: Samples) -> Tensor:
        angle = torch.deg2rad(samples.pixels().flatten().double())
        return torch.stack([angle.cos(), angle.sin()], 1)

    def stage(index: int, degrees: list[int]) -> Stage:
        images = torch.tensor(degrees, dtype=torch.uint8).reshape(-1, 1, 1, 1)
        samples = Samples.of(images, torch.zeros(len(degrees)))
        return Stage(index, index, 1, (), samples, samples)

    memory = Memory(PerClass(1), "herding", (1, 1, 1))
    memory.update(stage(0, [0, 10, 100]), directions, 0)
    assert memory.images.flatten().tolist() == [10]
    memory.update(stage(1, [50, 70]), directions, 0)
    assert memory.images.flatten().tolist() == [50]


@pytest.mark.parametrize(
    ("text", "value"), [(" 2000 ", Total(2000)), ("0", Total(0)), (" 20/class", PerClass(20)), (" none ", PerClass(0))]
)
def test_space_around_a_budget_does_not_count(text: str, value: Total | PerClass) -> None:
    assert budget(text) == value
    assert budget(str(value)) == value


@pytest.mark.parametrize("text", ["half", "20/clas", "20/", "/class", "1.5", "None", "20 /class"])
def test_the_refusal_says_what_a_budget_looks_like(text: str) -> None:
    with pytest.raises(NacreError, match=f"unknown memory {text!r}: use a total such as 2000, .*20/class, none, or all"):
        budget(text)


def test_a_state_gives_the_exemplars_back_and_strange_ones_are_refused(stream: Stream) -> None:
    memory = Memory(PerClass(2), "herding", stream.source.spec.shape)
    memory.update(stream[0], flat, 0)
    other = Memory(PerClass(2), "herding", stream.source.spec.shape)
    other.restore(memory.state())
    assert torch.equal(other.samples().pixels(), memory.samples().pixels())
    images, labels = memory.images, memory.labels
    for wrong in (
        {"images": images[:, :1], "labels": labels},
        {"images": images.float(), "labels": labels},
        {"images": images, "labels": labels[:-1]},
    ):
        with pytest.raises(NacreError, match="are not of these images"):
            other.restore(wrong)


def test_unknown_selections_are_refused() -> None:
    with pytest.raises(NacreError, match="unknown selection 'herd'.*Did you mean 'herding'"):
        Memory(PerClass(2), "herd", (1, 1, 1))

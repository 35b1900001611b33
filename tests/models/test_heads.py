"""Heads: what grows keeps what is there; cosine and nearest mean against numpy."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from nacre.models.growing import Growing
from nacre.models.heads import HEADS, Cosine, Linear, NearestMean

KINDS = {**HEADS, "nearest mean": NearestMean}


def features(n: int, dim: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def grown(kind: str) -> Growing:
    """A head of five classes, in two steps, none of whose numbers is zero."""
    torch.manual_seed(1)
    head = KINDS[kind](6)
    head.resize(2)
    if isinstance(head, NearestMean):
        head.learn(features(40), torch.arange(40) % 5, 5)
    head.resize(5)
    return head


@pytest.mark.parametrize("name", list(HEADS))
def test_growing_keeps_old_rows_bit_equal(name: str) -> None:
    head = HEADS[name](6)
    assert head(features(3)).shape == (3, 0)
    before: dict[str, Tensor] = {}
    for classes in (1, 2, 7):
        head.resize(classes)
        after = {key: value.detach().clone() for key, value in head.rows.named_parameters()}
        for key, value in before.items():
            assert torch.equal(after[key][: len(value)], value)
        before = after
        assert head.size()[0] == classes
        assert head(features(3)).shape == (3, classes)


@pytest.mark.parametrize("name", list(HEADS))
def test_new_rows_are_drawn_as_nn_linears(name: str) -> None:
    torch.manual_seed(0)
    head = HEADS[name](16)
    head.resize(500)
    reach = 1 / math.sqrt(16)
    for parameter in head.rows.parameters():
        assert parameter.requires_grad
        assert parameter.abs().max() <= reach
        assert float(parameter.detach().mean()) == pytest.approx(0, abs=0.05 * reach)
        assert float(parameter.detach().std()) == pytest.approx(reach / math.sqrt(3), rel=0.1)


def test_shrinking_keeps_the_first_rows() -> None:
    head = Linear(6)
    head.resize(4)
    want = head(features(3))[:, :2]
    head.resize(2)
    torch.testing.assert_close(head(features(3)), want)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_grown_head_loads_into_a_fresh_one(kind: str) -> None:
    head, fresh = grown(kind), KINDS[kind](6)
    file = io.BytesIO()
    torch.save(head.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert fresh.size() == head.size()
    assert fresh.size()[0] == 5
    assert torch.equal(fresh(features(7)), head(features(7)))
    assert fresh(features(7)).std() > 0


@pytest.mark.parametrize("name", list(HEADS))
def test_a_size_that_fits_keeps_the_parameters_an_optimiser_holds(name: str) -> None:
    head = grown(name)
    held = list(head.parameters())
    head.load_state_dict(grown(name).state_dict())
    assert all(a is b for a, b in zip(held, head.parameters(), strict=True))


def test_linear_is_affine() -> None:
    head = grown("linear")
    weight, bias = (parameter.detach().numpy() for parameter in head.rows.parameters())  # type: ignore[union-attr]
    want = np.array(
        [[sum(w * x for w, x in zip(row, f, strict=True)) + b for row, b in zip(weight, bias, strict=True)] for f in features(4).numpy()]
    )
    np.testing.assert_allclose(head(features(4)).detach().numpy(), want, rtol=1e-5, atol=1e-6)


def test_cosine_is_the_scaled_cosine_of_the_angle() -> None:
    head = Cosine(2, scale=4.0)
    head.resize(3)
    with torch.no_grad():
        head.rows.weight.copy_(torch.tensor([[5.0, 0.0], [0.0, 0.1], [-2.0, -2.0]]))
    found = head(torch.tensor([[3.0, 3.0], [0.0, 7.0]]))
    torch.testing.assert_close(found, torch.tensor([[4 / math.sqrt(2), 4 / math.sqrt(2), -4.0], [0.0, 4.0, -4 / math.sqrt(2)]]))


def test_cosine_sees_no_length() -> None:
    head, x = grown("cosine"), features(5)
    want = head(x)
    torch.testing.assert_close(head(x * torch.tensor([0.01, 1, 7, 100, 1e4])[:, None]), want)
    with torch.no_grad():
        head.rows.weight.mul_(torch.tensor([3.0, 0.2, 1, 50, 9])[:, None])  # type: ignore[union-attr, operator]
    torch.testing.assert_close(head(x), want)


def numpy_means(x: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = np.stack([unit[labels == label].mean(0) for label in range(classes)])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def test_nearest_mean_is_numpys() -> None:
    x, labels, asked = features(30), torch.arange(30) % 4, features(50, seed=3)
    head = NearestMean(6)
    head.learn(x, labels, 4)
    means = numpy_means(x.double().numpy(), labels.numpy(), 4)
    unit = asked.double().numpy() / np.linalg.norm(asked.double().numpy(), axis=1, keepdims=True)
    distance = ((unit[:, None] - means[None]) ** 2).sum(2)
    np.testing.assert_array_equal(head(asked).argmax(1).numpy(), distance.argmin(1))
    own = x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True)
    spread = ((own - means[labels.numpy()]) ** 2).sum(1).mean()
    np.testing.assert_allclose(head(asked).numpy(), -distance / 2 / spread, rtol=1e-4, atol=1e-5)


def test_learning_some_classes_keeps_the_means_of_the_others() -> None:
    head = NearestMean(6)
    head.learn(features(20), torch.arange(20) % 3, 3)
    before = head.table.means.clone()
    new = features(20, seed=5)
    head.learn(new, torch.tensor([1, 3] * 10), 4)
    assert torch.equal(head.table.means[[0, 2]], before[[0, 2]])
    want = numpy_means(new.double().numpy(), np.array([0, 1] * 10), 2)
    np.testing.assert_allclose(head.table.means[[1, 3]].numpy(), want, rtol=1e-5, atol=1e-6)


def test_nearest_mean_sees_no_length() -> None:
    head = grown("nearest mean")
    x = features(8)
    torch.testing.assert_close(head(x * 37), head(x))

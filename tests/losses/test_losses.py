"""Terms against their formulas, and how they add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nacre.losses.classification import CrossEntropy
from nacre.losses.distillation import Distillation
from nacre.losses.loss import Batch, Loss, Step, Term, Weighted
from nacre.losses.reconstruction import Reconstruction
from nacre.models.output import Output


def step(logits: Tensor, labels: Tensor, old: Tensor | None = None, images: Any = None, back: Any = None, progress: float = 0.0) -> Step:
    def output(found: Tensor) -> Output:
        return Output((found,), found, found, back)

    images = torch.zeros(len(logits), 1, 2, 2) if images is None else images
    return Step(Batch(images, labels), output(logits), None if old is None else output(old), None, None, progress)  # type: ignore[arg-type]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


LOGITS = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.tensor([2, 3, 2, 2, 3])


@pytest.mark.parametrize("first", [0, 2])
def test_cross_entropy_is_its_formula(first: int) -> None:
    probability = softmax(LOGITS.numpy()[:, first:])[np.arange(5), LABELS.numpy() - first]
    assert float(CrossEntropy(first)(step(LOGITS, LABELS))) == pytest.approx(-np.log(probability).mean())


def test_distillation_is_its_formula_without_the_square_of_the_temperature() -> None:
    old = LOGITS[:, :2].flip(0) * 3
    want = -(softmax(old.numpy() / 2) * np.log(softmax(LOGITS.numpy()[:, :2] / 2))).sum(1).mean()
    logits = LOGITS.clone().requires_grad_()
    value = Distillation(2.0)(step(logits, LABELS, old))
    assert float(value) == pytest.approx(want)
    (gradient,) = torch.autograd.grad(value, logits)
    assert (gradient[:, 2:] == 0).all()
    assert (gradient[:, :2] != 0).any()
    with pytest.raises(ValueError, match="above 0"):
        Distillation(0)


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (3, 3, 5, 7)])
def test_reconstruction_is_the_fraction_of_variance_unexplained(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape)
    images = (images - images.mean()) / images.std(correction=0)  # as the model's normalisation leaves them
    logits, labels = torch.zeros(3, 2), torch.zeros(3)
    assert float(Reconstruction()(step(logits, labels, images=images, back=torch.zeros(shape)))) == pytest.approx(1, rel=1e-4)
    assert float(Reconstruction()(step(logits, labels, images=images, back=images.clone()))) == 0
    assert float(Reconstruction()(step(logits, labels, images=images, back=images * 0.5))) == pytest.approx(0.25, rel=1e-4)


def test_a_decoder_no_better_than_the_mean_is_a_concern_after_a_tenth() -> None:
    term = Reconstruction()
    assert term.concern(1.2, 0.05) is None
    assert term.concern(0.9, 0.5) is None
    assert "learning rate" in str(term.concern(1.2, 0.1))


@dataclass(frozen=True)
class Fixed(Term):
    value: float

    def __call__(self, step: Step) -> Tensor:
        return torch.tensor(self.value)


def test_terms_add_up_with_their_weights_and_keep_their_names() -> None:
    loss = Loss(a=Fixed(2), b=3 * Fixed(5), c=2 * (0.5 * Fixed(7)), off=0 * Fixed(9))
    total, values = loss(step(LOGITS, LABELS))
    assert float(total) == 2 + 15 + 7
    assert {name: float(value) for name, value in values.items()} == {"a": 2, "b": 5, "c": 7}
    assert (loss.weight("b"), loss.weight("off")) == (3, 0)
    assert list(loss.adding(d=Fixed(1)).terms) == ["a", "b", "c", "d"]
    assert not loss.decodes
    assert loss.adding(d=Reconstruction()).decodes


def test_a_ramp_multiplies_the_weight() -> None:
    loss = Loss(a=Weighted(Fixed(4), 2, lambda step: step.progress))
    assert float(loss(step(LOGITS, LABELS, progress=0.25))[0]) == 2
    assert float((3 * loss.terms["a"]).at(step(LOGITS, LABELS, progress=0.5))) == 3

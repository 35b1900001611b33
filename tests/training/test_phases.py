"""Lent trainability: what trains, what holds still, and that all is given back."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from nacre.data.augment import Augment
from nacre.data.source import ImageSpec
from nacre.data.stream import Stream
from nacre.errors import NacreError
from nacre.methods import METHODS
from nacre.models.model import Model, build_model
from nacre.training.learner import Learner
from nacre.training.optim import Optim
from nacre.training.phases import trainable
from nacre.training.runtime import Runtime


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    model = build_model("small", "linear", ImageSpec((1, 8, 8)))
    model.grow(3)
    return model


def flags(model: Model) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("part", ["all", "head"])
@pytest.mark.parametrize("raises", [True, False])
def test_trainability_is_lent_and_all_given_back(model: Model, training: bool, part: str, raises: bool) -> None:
    model.train(training)
    cast(Any, model.backbone).stages[0].requires_grad_(False)
    before, modes = flags(model), {name: module.training for name, module in model.named_modules()}
    try:
        with trainable(model, None if part == "all" else [model.head]) as parameters:
            sum(parameter.sum() for parameter in parameters).backward()  # type: ignore[union-attr]
            if raises:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert flags(model) == before
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_all_that_is_trainable_trains_where_no_part_is_named(model: Model) -> None:
    first = cast(Any, model.backbone).stages[0]
    first.requires_grad_(False)
    held = {id(parameter) for parameter in first.parameters()}
    with trainable(model, None) as parameters:
        assert {id(p) for p in parameters} == {id(p) for p in model.parameters()} - held
        assert all(module.training for module in model.modules())


def test_the_rest_of_the_model_holds_still(model: Model) -> None:
    model(torch.randn(4, 1, 8, 8))
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    with trainable(model, [model.head]) as parameters:
        assert [id(p) for p in parameters] == [id(p) for p in model.head.parameters()]
        assert not any(module.training for module in model.backbone.modules())
        assert model.head.training
        model(torch.randn(4, 1, 8, 8) + 5).logits.sum().backward()
        assert all(p.grad is not None for p in parameters)
        assert all(p.grad is None for p in model.backbone.parameters())
    after = model.backbone.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())  # running statistics too


@pytest.mark.parametrize("name", ["er-ace", "der++", "agem", "podnet", "pass", "tagfex"])
def test_methods_that_take_a_label_for_the_whole_truth_refuse_mixed_images(name: str, stream: Stream, runtime: Runtime) -> None:
    spec = replace(stream.source.spec, augment=Augment(mix="mixup"))
    learner = Learner(METHODS[name](optim=Optim(epochs=1, batch=16)), spec, runtime=runtime)
    with pytest.raises(NacreError, match=r"augment\.mix=none"):
        deque(map(learner.learn, stream), maxlen=0)

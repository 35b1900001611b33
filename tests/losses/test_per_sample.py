"""The gradients of every image apart are those of the images one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nacre.data.source import ImageSpec
from nacre.losses import per_sample
from nacre.losses.importance import log_likelihood
from nacre.losses.per_sample import anchored, per_sample_gradients
from nacre.models.backbones import Backbone
from nacre.models.heads import HEADS
from nacre.models.model import Model, build_model
from nacre.models.norm import BatchNorm
from nacre.training.precision import Rounded

SPEC = ImageSpec((3, 8, 8))
IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
UNIFORM = torch.rand(5, generator=torch.Generator().manual_seed(2))


def weigh(logits: Tensor, uniform: Tensor) -> Tensor:
    """Something that no two rows share: [n, K], [n] -> [n]."""
    return (uniform[:, None] * logits).cos().sum(1)


def grown(model: Model) -> Model:
    """Knowing four classes, with running statistics that are not the initial ones, in inference form."""
    model.grow(4)
    model(torch.randn(32, *model.spec.shape))
    return model.eval()


def brute(model: Model) -> dict[str, Tensor]:
    """Image by image, by plain autograd: [n, *shape]."""
    names, parameters = zip(*anchored(model), strict=True)
    rows = []
    for image, chance in zip(IMAGES, UNIFORM, strict=True):
        value = weigh(model(image[None]).logits, chance[None])
        rows.append(torch.autograd.grad(value.sum(), parameters, materialize_grads=True))
    return {name: torch.stack(gradients) for name, gradients in zip(names, zip(*rows, strict=True), strict=True)}


def assert_alike(found: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert found.keys() == want.keys()
    for name, gradient in want.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")  # type: ignore[misc]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("head", sorted(HEADS))
def test_every_head(head: str) -> None:
    model = grown(build_model("small", head, SPEC))
    assert_alike(per_sample_gradients(model, IMAGES, UNIFORM, weigh), brute(model))


@pytest.mark.parametrize("backbone", ["resnet20", "resnet18", "vit-tiny"])
def test_every_kind_of_backbone(backbone: str) -> None:
    model = grown(build_model(backbone, "linear", SPEC))
    assert_alike(per_sample_gradients(model, IMAGES, UNIFORM, weigh), brute(model))


class Odd(Backbone):
    """What the backbones at hand have not: a layer used twice, one never, a number of its own, groups, holes, borders, folded rows."""

    dim = 6
    reduction = 2

    def __init__(self) -> None:
        Backbone.__init__(self)
        self.wide = nn.Conv2d(3, 4, (3, 5), stride=(1, 2), padding=(0, 2))
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 6, 3, padding="same", groups=2)
        self.holes = nn.Conv2d(6, 6, 3, padding=2, dilation=2)
        self.round = nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular", bias=False)
        self.norm = BatchNorm(6)
        self.rows = nn.Linear(6, 6)
        self.never = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = F.relu(self.wide(images), inplace=True)
        x = self.twice(self.twice(x).tanh())
        x = F.relu(self.norm(self.round(self.holes(self.grouped(x)))), inplace=True)
        places = self.rows(x.permute(0, 2, 3, 1).reshape(-1, self.dim))
        return (self.scale * places.view(len(x), *x.shape[2:], self.dim).permute(0, 3, 1, 2),)


def test_layers_of_every_other_kind() -> None:
    model = grown(Model(Odd(), HEADS["linear"](6), SPEC))
    want = brute(model)
    assert not want["backbone.never.weight"].any()
    assert_alike(per_sample_gradients(model, IMAGES, UNIFORM, weigh), want)


def test_a_frozen_parameter_has_a_gradient_too() -> None:
    model = grown(build_model("small", "linear", SPEC))
    want = brute(model)
    model.requires_grad_(False)
    assert_alike(per_sample_gradients(model, IMAGES, UNIFORM, weigh), want)


def test_nothing_of_a_network_of_convolutions_runs_image_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_sample, "one_by_one", None)
    model = grown(build_model("resnet20", "cosine", SPEC))
    assert len(per_sample_gradients(model, IMAGES, UNIFORM, weigh)) == len(list(anchored(model)))


@pytest.mark.parametrize("instructions", [True, False], ids=["bf16", "rounded"])
@pytest.mark.parametrize("backbone", ["small", "vit-tiny"])
def test_in_bf16_they_are_nearly_the_same(backbone: str, instructions: bool) -> None:
    model = grown(build_model(backbone, "linear", SPEC))
    want = brute(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        if instructions:
            found = per_sample_gradients(model, IMAGES, UNIFORM, weigh)
        else:
            with Rounded():
                found = per_sample_gradients(model, IMAGES, UNIFORM, weigh)
    for name, gradient in want.items():
        assert found[name].dtype == torch.float32
        assert F.cosine_similarity(found[name].flatten(), gradient.flatten(), 0) > 0.99, name


def test_the_model_is_left_as_it_was() -> None:
    model = grown(build_model("small", "linear", SPEC))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    per_sample_gradients(model, IMAGES, UNIFORM, log_likelihood)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(part._forward_hooks for part in model.modules())

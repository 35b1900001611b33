"""The gradients of every image apart are those of the images one after the other."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nacre.data.source import ImageSpec
from nacre.losses import per_sample
from nacre.losses.importance import log_likelihood
from nacre.losses.per_sample import Outcome, anchored, per_sample_gradients
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


def gradients(model: Model, images: Tensor = IMAGES, outcome: Outcome = weigh) -> dict[str, Tensor]:
    return dict(per_sample_gradients(model, images, UNIFORM, outcome))


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
    assert_alike(gradients(model), brute(model))


@pytest.mark.parametrize("backbone", ["resnet20", "resnet18", "vit-tiny"])
def test_every_kind_of_backbone(backbone: str) -> None:
    model = grown(build_model(backbone, "linear", SPEC))
    assert_alike(gradients(model), brute(model))


class Standard(nn.Conv2d):
    """A convolution that standardises its weight first."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, F.layer_norm(self.weight, self.weight.shape[1:]), self.bias, padding=1)


class Scaled(nn.Module):
    """A number per channel, which changes what it is given."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.randn(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.weight)


class Both(nn.Module):
    """Two answers."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.randn(6, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.weight * x, x.sin()


class Odd(Backbone):
    """What the backbones at hand have not: a layer used twice, one never, two with one weight, a number of its own, groups, holes ..."""

    dim = 6
    reduction = 2

    def __init__(self) -> None:
        Backbone.__init__(self)
        self.wide = nn.Conv2d(3, 4, (3, 5), stride=(1, 2), padding=(0, 2))
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.deep = nn.Conv2d(6, 6, 3, padding="same", groups=6)
        self.holes = nn.Conv2d(6, 6, 3, padding=2, dilation=2)
        self.round = nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular", bias=False)
        self.standard = Standard(6, 6, 3)
        self.norm = BatchNorm(6)
        self.rows = nn.Linear(6, 6)
        self.never = nn.Linear(2, 2)
        self.beside = nn.Bilinear(6, 6, 6)
        self.both = Both()
        self.scaled = Scaled()
        self.detached = nn.Conv2d(6, 6, 1)
        self.one, self.same = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.same.weight = self.one.weight
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = F.relu(self.wide(images), inplace=True)
        x = self.twice(self.twice(x).tanh())
        x = self.standard(self.round(self.holes(self.deep(self.grouped(x)))))
        x = F.relu(self.norm(x), inplace=True)
        x = self.detached(x) + self.detached(x.detach())
        x = self.same(self.one(x).tanh())
        places = self.rows(x.permute(0, 2, 3, 1).reshape(-1, self.dim)).view(len(x), *x.shape[2:], self.dim)
        places = places + self.beside(places, input2=places.cos())
        one, other = self.both(self.scaled(self.scale * places.permute(0, 3, 1, 2)))
        return (one + other,)


def test_layers_of_every_other_kind() -> None:
    model = grown(Model(Odd(), HEADS["linear"](6), SPEC))
    want = brute(model)
    assert not want["backbone.never.weight"].any()
    assert_alike(gradients(model), want)


def test_a_frozen_parameter_has_a_gradient_too() -> None:
    model = grown(build_model("small", "linear", SPEC))
    want = brute(model)
    model.requires_grad_(False)
    assert_alike(gradients(model), want)


def test_nothing_of_a_network_of_convolutions_runs_image_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_sample, "one_by_one", None)
    model = grown(build_model("resnet20", "cosine", SPEC))
    assert len(gradients(model)) == len(list(anchored(model)))


@pytest.mark.parametrize("instructions", [True, False], ids=["bf16", "rounded"])
@pytest.mark.parametrize("backbone", ["small", "vit-tiny"])
def test_in_bf16_they_are_those_of_bf16(backbone: str, instructions: bool) -> None:
    model = grown(build_model(backbone, "linear", SPEC))
    plain = brute(model)
    with torch.autocast("cpu", torch.bfloat16), nullcontext() if instructions else Rounded():
        want = brute(model)
        with torch.no_grad():
            found = gradients(model)

    def apart(one: Tensor, other: Tensor) -> Tensor:
        return (one - other).flatten(1).norm(dim=1) / other.flatten(1).norm(dim=1)

    for name, gradient in want.items():
        assert found[name].dtype == torch.float32
        assert apart(found[name], gradient).max() < 0.02, name
    kernel = next(name for name, gradient in want.items() if gradient.dim() == 5)
    assert apart(found[kernel], plain[kernel]).max() > 1e-3  # it was not float32 after all


def test_the_layout_of_the_images_changes_nothing() -> None:
    model = grown(build_model("resnet20", "linear", SPEC)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert_alike(gradients(model, IMAGES.contiguous(memory_format=torch.channels_last)), brute(model))


def test_the_model_is_left_as_it_was() -> None:
    model = grown(build_model("small", "linear", SPEC))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients(model, outcome=log_likelihood)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(part._forward_hooks for part in model.modules())

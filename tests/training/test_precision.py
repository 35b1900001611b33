"""bf16 on a processor without instructions for it computes what bf16 is: products of rounded numbers, added in float32, rounded."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nacre.data.source import ImageSpec
from nacre.models.backbones import BACKBONES
from nacre.models.model import build_model
from nacre.training import precision, speed
from nacre.training.precision import computing
from nacre.training.runtime import Hardware, Runtime

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without instructions for bfloat16, whatever this one has."""
    monkeypatch.setattr(precision, "lacks_bf16", lambda: True)


def near(found: Tensor, exact: Tensor) -> None:
    """Hold that a result is the exact one but for its own rounding, and where sums cancel that of float32."""
    assert found.double().sub(exact).abs().le(exact.abs() * 2**-8 + 1e-5).all()


def rounded(value: Tensor) -> Tensor:
    return value.detach().bfloat16().double()


@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_results_and_gradients_are_those_of_rounded_operands(kind: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, padding=1) if kind == "convolution" else nn.Linear(20, 6)
    images = torch.randn((2, 4, 5, 5) if kind == "convolution" else (8, 20), requires_grad=True)
    with computing("bf16", CPU):
        found = layer(images)
    assert found.dtype == torch.bfloat16
    upstream = torch.randn_like(found)
    gradients = torch.autograd.grad(found, [images, *layer.parameters()], upstream)
    exact = [rounded(value).requires_grad_() for value in (images, *layer.parameters())]
    result = F.conv2d(*exact, padding=1) if kind == "convolution" else F.linear(*exact)
    near(found, result)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    for gradient, expected in zip(gradients[:2], torch.autograd.grad(result, exact[:2], upstream.double()), strict=True):
        near(gradient, expected)


@pytest.mark.parametrize(("lacks", "asked", "chosen"), [(True, "auto", "fp32"), (False, "auto", "bf16"), (True, "bf16", "bf16")])
def test_auto_takes_bf16_only_where_there_are_instructions_for_it(
    lacks: bool, asked: Literal["auto", "bf16"], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "lacks_bf16", lambda: lacks)
    monkeypatch.setattr(speed, "remembered", lambda *_: [4.0, 3.0, 2.0, 1.0])  # seconds of `CHOICES`
    runtime = Runtime(Hardware(device="cpu", precision=asked, threads=1))
    speed.settle(runtime, build_model("small", "linear", ImageSpec((3, 8, 8))), 16)
    assert (runtime.hardware.precision, runtime.hardware.layout) == (chosen, "channels-last")


def test_fp32_and_what_turns_autocast_off_are_left_alone() -> None:
    layer, images = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    with computing("bf16", CPU), torch.autocast("cpu", enabled=False):
        inside = layer(images)
    with computing("fp32", CPU):
        assert torch.equal(layer(images), inside)
    assert torch.equal(layer(images), inside)


@pytest.mark.parametrize("lacks", [True, False])
def test_a_network_s_gradient_is_as_near_as_bf16_comes(lacks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not bit for bit what a processor with the instructions finds, because sums are not; but rounding costs no more."""
    monkeypatch.setattr(precision, "lacks_bf16", lambda: lacks)
    torch.manual_seed(0)
    network, images = BACKBONES["resnet20"](3), torch.randn(16, 3, 32, 32)

    def gradient(kind: Literal["fp32", "bf16"]) -> Tensor:
        with computing(kind, CPU):
            maps = network(images)
        return torch.cat([part.flatten() for part in torch.autograd.grad(maps[-1].float().square().mean(), list(network.parameters()))])

    exact, half = gradient("fp32"), gradient("bf16")
    assert 0.01 < float((half - exact).norm() / exact.norm()) < 0.3
    assert float(F.cosine_similarity(half, exact, dim=0)) > 0.97

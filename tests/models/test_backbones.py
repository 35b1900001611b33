"""Backbones: the field's sizes, their maps, and batch norms folded away."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nacre.data.source import ImageSpec
from nacre.errors import NacreError
from nacre.models.backbones import BACKBONES, CifarResNet, Pad, ResNet18, SmallNet, conv_norm, fused
from nacre.models.decoders import Decoder
from nacre.models.norm import BatchNorm
from nacre.models.registry import backbone


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def settled(module: nn.Module) -> nn.Module:
    """In inference form, with batch norms that are far from the identity."""
    draw = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, BatchNorm):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(0, 0.2, generator=draw)
            part.running_var.uniform_(0.5, 2, generator=draw)
            nn.init.uniform_(part.weight, 0.5, 1.5, generator=draw)
            nn.init.normal_(part.bias, 0, 0.2, generator=draw)
    return module.eval().requires_grad_(False)


def resnet_count(widths: list[int], stem: int, blocks: int, projections: bool) -> int:
    """Weights of a ResNet of two-convolution blocks, each convolution with its batch norm, counted by hand."""
    total, inputs = stem + 2 * widths[0], widths[0]
    for width in widths:
        for block in range(blocks):
            first = inputs if block == 0 else width
            total += 9 * first * width + 9 * width * width + 4 * width
            if projections and first != width:
                total += first * width + 2 * width
        inputs = width
    return total


@pytest.mark.parametrize("channels", [1, 3])
def test_sizes_are_counted_by_hand(channels: int) -> None:
    assert parameters(BACKBONES["resnet20"](channels)) == resnet_count([16, 32, 64], 9 * channels * 16, 3, projections=False)
    assert parameters(BACKBONES["resnet32"](channels)) == resnet_count([16, 32, 64], 9 * channels * 16, 5, projections=False)
    wide = [64, 128, 256, 512]
    assert parameters(BACKBONES["resnet18-small"](channels)) == resnet_count(wide, 9 * channels * 64, 2, projections=True)
    assert parameters(BACKBONES["resnet18"](channels)) == resnet_count(wide, 49 * channels * 64, 2, projections=True)


def test_sizes_are_those_of_the_papers() -> None:
    assert parameters(BACKBONES["resnet32"](3)) == 463_504
    assert parameters(BACKBONES["resnet18-small"](3)) == 11_168_832
    assert parameters(BACKBONES["resnet18"](3)) == 11_689_512 - 513_000  # torchvision's, without its head


@pytest.mark.parametrize(
    ("name", "size", "shapes"),
    [
        ("small", (8, 8), [(32, 8, 8), (64, 4, 4), (64, 2, 2)]),
        ("small", (28, 28), [(32, 28, 28), (64, 14, 14), (64, 7, 7)]),
        ("resnet20", (33, 17), [(16, 33, 17), (32, 17, 9), (64, 9, 5)]),
        ("resnet32", (32, 32), [(16, 32, 32), (32, 16, 16), (64, 8, 8)]),
        ("resnet18-small", (32, 32), [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]),
        ("resnet18", (224, 224), [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]),
        ("resnet18", (105, 105), [(64, 27, 27), (128, 14, 14), (256, 7, 7), (512, 4, 4)]),
    ],
)
def test_maps_halve_from_depth_to_depth(name: str, size: tuple[int, int], shapes: list[tuple[int, ...]]) -> None:
    net = BACKBONES[name](3).eval()
    with torch.no_grad():
        maps = net(torch.zeros(2, 3, *size))
    assert [tuple(found.shape) for found in maps] == [(2, *shape) for shape in shapes]
    assert net.dim == shapes[-1][0]


def test_the_shortcut_without_parameters_takes_every_other_pixel() -> None:
    x = torch.arange(2 * 2 * 5 * 4.0).reshape(2, 2, 5, 4)
    found = Pad(3, 2)(x)
    assert found.shape == (2, 5, 3, 2)
    for y in range(3):
        for column in range(2):
            assert torch.equal(found[:, :2, y, column], x[:, :, 2 * y, 2 * column])
    assert (found[:, 2:] == 0).all()


@pytest.mark.parametrize("name", ["small", "resnet20", "resnet18-small", "resnet18"])
def test_folded_batch_norms_answer_alike(name: str) -> None:
    torch.manual_seed(0)
    net, images = settled(BACKBONES[name](3)), torch.randn(2, 3, 32, 32)
    want: tuple[Tensor, ...] = net(images)
    folded = fused(net)
    assert not any(isinstance(part, BatchNorm) for part in folded.modules())
    for expected, found in zip(want, folded(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_a_folded_decoder_answers_alike() -> None:
    torch.manual_seed(0)
    net, maps = settled(Decoder(16, (3, 5), (1, 9, 17))), torch.randn(2, 16, 3, 5)
    want = net(maps)
    folded = fused(net)
    assert not any(isinstance(part, BatchNorm) for part in folded.modules())
    torch.testing.assert_close(folded(maps), want, rtol=1e-3, atol=1e-4)


def test_gradients_reach_every_parameter() -> None:
    for net in (SmallNet(1), CifarResNet(1, 1), ResNet18(1, small=True)):
        net(torch.randn(2, 1, 16, 16))[-1].square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_a_convolution_before_batch_norm_has_no_bias_and_keeps_the_size() -> None:
    for kernel in (1, 3, 7):
        part = conv_norm(2, 5, kernel=kernel)
        assert parameters(part) == 2 * 5 * kernel**2 + 2 * 5
        assert part(torch.zeros(1, 2, 9, 8)).shape == (1, 5, 9, 8)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((1, 8, 8), SmallNet), ((3, 31, 31), SmallNet), ((3, 16, 32), CifarResNet), ((3, 64, 64), CifarResNet), ((3, 65, 8), ResNet18)],
)
def test_auto_goes_by_the_longest_side(shape: tuple[int, int, int], kind: type) -> None:
    assert type(backbone("auto", ImageSpec(shape))) is kind


def test_unknown_backbones_get_the_nearest_name() -> None:
    with pytest.raises(NacreError, match=r"unknown backbone 'resnet23'.*Did you mean 'resnet"):
        backbone("resnet23", ImageSpec((3, 32, 32)))


def test_the_plain_shortcut_takes_every_other_pixel_and_keeps_the_memory_layout_both_ways() -> None:
    images = torch.randn(2, 3, 7, 8).to(memory_format=torch.channels_last).requires_grad_()
    out = Pad(2, 2)(images)
    assert torch.equal(out[:, :3], images[:, :, ::2, ::2])
    assert not out[:, 3:].any()
    weights = torch.randn(out.shape).to(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad((out * weights).sum(), images)
    expected = torch.zeros_like(images)
    expected[:, :, ::2, ::2] = weights[:, :3]
    assert torch.equal(gradient, expected)
    assert gradient.is_contiguous(memory_format=torch.channels_last)

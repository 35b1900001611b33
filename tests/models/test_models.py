"""Backbones, heads, decoder and the model that holds them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nacre.data.source import ImageSpec, Samples
from nacre.models.backbones import BACKBONES, fused
from nacre.models.decoders import Decoder, doublings
from nacre.models.heads import HEADS, Cosine, Head, NearestMean
from nacre.models.model import Normalise, build_model, with_decoder
from nacre.models.norm import BatchNorm
from nacre.models.registry import backbone


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_sizes_are_the_fields() -> None:
    assert parameters(BACKBONES["resnet32"](3)) == 463_504
    assert parameters(BACKBONES["resnet18-small"](3)) == 11_168_832
    assert parameters(BACKBONES["resnet18"](3)) == 11_176_512  # torchvision's 11,689,512 without its head of 513,000


@pytest.mark.parametrize(
    ("name", "size", "last"), [("small", 8, 2), ("resnet20", 32, 8), ("resnet32", 32, 8), ("resnet18-small", 32, 4), ("resnet18", 224, 7)]
)
def test_maps_shrink_as_the_papers_do(name: str, size: int, last: int) -> None:
    net = BACKBONES[name](1).eval()
    maps = net(torch.zeros(1, 1, size, size))
    assert maps[-1].shape == (1, net.dim, last, last)


@pytest.mark.parametrize(("size", "name"), [(8, "SmallNet"), (32, "CifarResNet"), (64, "CifarResNet"), (65, "ResNet18")])
def test_auto_fits_the_image(size: int, name: str) -> None:
    assert type(backbone("auto", ImageSpec((3, size, size)))).__name__ == name


@pytest.mark.parametrize("name", BACKBONES)
def test_folded_batch_norms_answer_alike(name: str) -> None:
    torch.manual_seed(0)
    net = BACKBONES[name](3)
    for part in net.modules():
        if isinstance(part, BatchNorm):
            part.running_mean.normal_()  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            part.weight.data.uniform_(0.5, 2)
    net.eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = net(images)[-1]
        assert torch.allclose(fused(net)(images)[-1], before, rtol=1e-3, atol=1e-3 * float(before.abs().max()))
    assert not any(isinstance(part, BatchNorm) for part in net.modules())


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (33, 17), (64, 64), (105, 105), (224, 224)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_decoder_reaches_any_size(size: tuple[int, int], channels: int) -> None:
    model = with_decoder(build_model("auto", "linear", ImageSpec((channels, *size)))).eval()
    model.grow(2)
    with torch.no_grad():
        out = model(torch.zeros(2, channels, *size), decode=True)
    assert out.reconstruction is not None
    assert out.reconstruction.shape == (2, channels, *size)


def test_each_step_at_most_doubles() -> None:
    assert doublings((8, 8), (32, 32)) == [(16, 16), (32, 32)]
    assert doublings((9, 5), (33, 17)) == [(18, 10), (33, 17)]
    assert doublings((4, 4), (4, 4)) == []


def test_the_decoder_of_resnet32_has_the_size_that_is_documented() -> None:
    assert parameters(Decoder(64, (8, 8), (3, 32, 32))) == 16_467


def test_the_decoder_draws_from_random_numbers_of_its_own() -> None:
    def build(decoder: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        torch.manual_seed(5)
        model = build_model("small", "linear", ImageSpec((1, 8, 8)))
        model = with_decoder(model) if decoder else model
        return model.state_dict(), torch.rand(3)

    (plain, after), (decoding, after_too) = build(False), build(True)
    assert torch.equal(after, after_too)
    assert all(torch.equal(tensor, decoding[name]) for name, tensor in plain.items())
    again = build(True)[0]
    assert all(torch.equal(tensor, again[name]) for name, tensor in decoding.items())


@pytest.mark.parametrize("name", HEADS)
def test_growing_keeps_what_is_there(name: str) -> None:
    head = HEADS[name](5)
    head.resize(3)
    features = torch.randn(4, 5)
    before, rows = head(features), head.rows.weight.clone()
    head.resize(7)
    assert head.size()[0] == 7
    assert torch.allclose(head(features)[:, :3], before)
    assert torch.equal(head.rows.weight[: len(rows)], rows)


@pytest.mark.parametrize("name", HEADS)
def test_a_grown_head_loads_into_a_new_one(name: str) -> None:
    head: Head = HEADS[name](5)
    head.resize(4)
    fresh: Head = HEADS[name](5)
    fresh.load_state_dict(head.state_dict())
    features = torch.randn(2, 5)
    assert torch.equal(fresh(features), head(features))
    held = fresh.rows.weight
    fresh.load_state_dict(head.state_dict())
    assert fresh.rows.weight is held  # an optimiser may hold it


def test_cosine_sees_directions_only() -> None:
    head = Cosine(6, scale=3.0)
    head.resize(4)
    features = torch.randn(5, 6)
    logits = head(features)
    assert torch.allclose(logits, head(17 * features), atol=1e-5)
    rows = head.rows.weight.detach().numpy()
    cosine = (features.numpy() @ rows.T) / np.linalg.norm(features.numpy(), axis=1)[:, None] / np.linalg.norm(rows, axis=1)
    assert np.allclose(logits.detach().numpy(), 3 * cosine, atol=1e-5)


def test_nearest_mean_is_nearest_mean() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(30, 4)).astype(np.float32), np.arange(30) % 3
    readout = NearestMean(4)
    readout.learn(torch.from_numpy(features), torch.from_numpy(labels), 3)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    means = np.stack([unit[labels == label].mean(0) for label in range(3)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    want = ((unit[:, None] - means) ** 2).sum(2).argmin(1)
    assert readout(torch.from_numpy(features)).argmax(1).tolist() == want.tolist()
    old = readout.table.means.clone()
    readout.learn(torch.from_numpy(features[:5]), torch.full((5,), 3), 4)
    assert torch.equal(readout.table.means[:3], old)
    fresh = NearestMean(4)
    fresh.load_state_dict(readout.state_dict())
    assert torch.equal(fresh(torch.from_numpy(features)), readout(torch.from_numpy(features)))


def test_normalisation_is_over_all_pixels() -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 4, 5), dtype=torch.uint8, generator=draw)
    images[:, 2] = 77
    normalise = Normalise(3)
    normalise.learn(Samples.of(images, torch.zeros(50)), chunk=7)
    pixels = images.numpy() / 255
    assert np.allclose(normalise.mean.numpy(), pixels.mean((0, 2, 3)))
    assert np.allclose(normalise.std.numpy()[:2], pixels.std((0, 2, 3))[:2], rtol=1e-5)
    assert normalise.std[2] == 1
    out = normalise(images)
    assert torch.allclose(out[:, :2].mean((0, 2, 3)), torch.zeros(2), atol=1e-5)
    assert torch.equal(normalise.inverse(out), images)


def test_batch_norm_in_shares_is_batch_norm_of_the_whole() -> None:
    x = torch.randn(6, 3, 4, 4, dtype=torch.float32) * 2 + 1
    whole, shared = BatchNorm(3), BatchNorm(3)
    shared.total = lambda mine: mine  # one process that sums over itself
    want, found = whole(x), shared(x)
    assert torch.allclose(found, want, atol=1e-5)
    assert torch.allclose(shared.running_var, whole.running_var, rtol=1e-5)
    assert torch.allclose(shared.running_mean, whole.running_mean, atol=1e-6)
    shared.eval()
    whole.eval()
    assert torch.allclose(shared(x), whole(x), atol=1e-5)

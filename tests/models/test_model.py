"""The model: normalisation against numpy over all pixels, its answers, its frozen twin, its state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from nacre.data.source import ImageSpec, Samples
from nacre.errors import NacreError
from nacre.models.heads import NearestMean
from nacre.models.model import Model, Normalise, build_model, with_decoder


def some(n: int, channels: int = 3, seed: int = 0) -> Tensor:
    """Images [n, channels, 5, 4], each channel around a level of its own."""
    draw = torch.Generator().manual_seed(seed)
    level = torch.arange(channels)[:, None, None] * 60
    return (torch.randint(0, 80, (n, channels, 5, 4), generator=draw) + level).to(torch.uint8)


def learnt(images: Tensor, chunk: int = 1024) -> Normalise:
    normalise = Normalise(images.shape[1])
    normalise.learn(Samples.of(images, torch.zeros(len(images))), chunk)
    return normalise


def test_mean_and_spread_are_numpys_over_all_pixels() -> None:
    images = some(13)
    normalise, pixels = learnt(images), images.numpy() / 255.0
    np.testing.assert_allclose(normalise.mean.numpy(), pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(normalise.std.numpy(), pixels.std((0, 2, 3)), rtol=1e-5)
    found = normalise(images)
    assert found.dtype == torch.float32
    want = (pixels - pixels.mean((0, 2, 3), keepdims=True)) / pixels.std((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(found.numpy(), want, atol=1e-5)


def test_only_the_samples_of_a_view_count() -> None:
    images, normalise = some(10), Normalise(3)
    normalise.learn(Samples.of(images, torch.arange(10)).among(range(4, 7)))
    np.testing.assert_allclose(normalise.mean.numpy(), (images[4:7].numpy() / 255.0).mean((0, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 13])
def test_reading_in_chunks_is_reading_at_once(chunk: int) -> None:
    whole, parts = learnt(some(13)), learnt(some(13), chunk)
    torch.testing.assert_close(parts.mean, whole.mean)
    torch.testing.assert_close(parts.std, whole.std)


@pytest.mark.parametrize("level", [0, 77, 255])
def test_a_channel_without_variance_counts_with_one(level: int) -> None:
    images = some(6)
    images[:, 1] = level
    normalise = learnt(images)
    assert float(normalise.std[1]) == 1
    torch.testing.assert_close(normalise(images)[:, 1], torch.zeros(6, 5, 4), rtol=0, atol=1e-6)
    torch.testing.assert_close(normalise(images)[:, [0, 2]].square().mean((0, 2, 3)), torch.ones(2), rtol=1e-4, atol=0)


@pytest.mark.parametrize("spread", [1, 3, 100])
def test_inverse_gives_all_256_values_back(spread: int) -> None:
    around = torch.full((400, 1, 1, 1), 128, dtype=torch.uint8)
    around[::2] += spread
    normalise = learnt(around)
    values = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1)
    assert torch.equal(normalise.inverse(normalise(values)), values)


def test_inverse_clips() -> None:
    normalise = learnt(some(4, 1))
    far = torch.tensor([-100.0, 100.0]).reshape(2, 1, 1, 1)
    assert normalise.inverse(far).flatten().tolist() == [0, 255]


def small(seed: int = 0, *, readout: type[NearestMean] | None = None) -> Model:
    torch.manual_seed(seed)
    model = with_decoder(build_model("small", "cosine", ImageSpec((3, 8, 8)), readout=readout))
    model.grow(4)
    return model


def images(n: int = 6) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_features_are_the_last_map_averaged_over_its_positions() -> None:
    out = small().eval()(images())
    np.testing.assert_allclose(out.features.detach().numpy(), out.maps[-1].detach().numpy().mean((2, 3)), rtol=1e-5, atol=1e-6)
    assert out.logits.shape == (6, 4)
    assert out.reconstruction is None


def test_decoding_changes_no_logit() -> None:
    model = small().eval()
    plain, decoded = model(images()), model(images(), decode=True)
    assert torch.equal(plain.logits, decoded.logits)
    assert decoded.reconstruction is not None


def test_the_readout_answers_where_there_is_one() -> None:
    model, x = small(readout=NearestMean), torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    assert model.readout is not None
    model.readout.learn(x, torch.arange(20) % 4, 4)
    assert torch.equal(model.answer(x), model.readout(x))
    assert not torch.allclose(model.answer(x), model.head(x))
    assert torch.equal(small().answer(x), small().head(x))


def test_the_frozen_twin_answers_alike_and_shares_nothing() -> None:
    model = small()
    for _ in range(3):
        model(images(), decode=True)  # batch norms move
    twin, want = model.frozen(), model.eval()(images(), decode=True)
    found = twin(images(), decode=True)
    torch.testing.assert_close(found.logits, want.logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.reconstruction, want.reconstruction, rtol=1e-3, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in twin.parameters()}


def test_a_frozen_twin_for_teaching_has_no_readout_and_takes_none_away() -> None:
    model = small(readout=NearestMean)
    model.normalise.given(torch.full_like(model.normalise.mean, 0.3), torch.full_like(model.normalise.std, 0.2))
    readout, training = model.readout, model.training
    twin = model.frozen(answers=False)
    assert (twin.readout, model.readout, model.training) == (None, readout, training)
    assert torch.equal(twin.normalise.mean, model.normalise.mean)
    assert model.frozen().readout is not None


def test_plain_load_state_dict_restores_a_grown_model() -> None:
    model, fresh = (
        small(readout=NearestMean).eval(),
        with_decoder(build_model("small", "cosine", ImageSpec((3, 8, 8)), readout=NearestMean)).eval(),
    )
    assert model.readout is not None
    model.readout.learn(torch.randn(20, 64), torch.arange(20) % 4, 4)
    fresh.load_state_dict(model.state_dict())
    assert fresh.classes == 4
    assert torch.equal(fresh(images(), decode=True).logits, model(images(), decode=True).logits)
    features = model(images()).features
    assert torch.equal(fresh.answer(features), model.answer(features))


def test_unknown_heads_are_refused() -> None:
    with pytest.raises(NacreError, match=r"unknown head 'cosinus'.*Did you mean 'cosine'"):
        build_model("small", "cosinus", ImageSpec((1, 8, 8)))

"""The decoder: from the real backbones' maps to every size, each step at most doubling."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nacre.data.source import ImageSpec
from nacre.models.decoders import Decoder, doublings
from nacre.models.model import Model, build_model, with_decoder

SIZES = [(8, 8), (28, 28), (32, 32), (33, 17), (64, 64), (105, 105), (224, 224)]


def decoding(size: tuple[int, int], channels: int, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return with_decoder(build_model("auto", "linear", ImageSpec((channels, *size))))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_backbones_own_maps_reach_the_image(size: tuple[int, int], channels: int) -> None:
    model = decoding(size, channels).eval()
    with torch.no_grad():
        out = model(torch.randn(2, channels, *size), decode=True)
    assert out.reconstruction is not None
    assert out.reconstruction.shape == (2, channels, *size)
    assert out.reconstruction.dtype == torch.float32
    assert out.reconstruction.isfinite().all()
    assert out.reconstruction[0].std() > 0


@given(st.tuples(st.integers(1, 20), st.integers(1, 20)), st.tuples(st.integers(0, 200), st.integers(0, 200)))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_sizes_at_most_double_and_end_at_the_images(start: tuple[int, int], more: tuple[int, int]) -> None:
    end = (start[0] + more[0], start[1] + more[1])
    path = [start, *doublings(start, end)]
    assert path[-1] == end
    for before, after in itertools.pairwise(path):
        assert before != after
        assert all(a <= b <= 2 * a for a, b in zip(before, after, strict=True))
    fewest = 0
    while start[0] << fewest < end[0] or start[1] << fewest < end[1]:
        fewest += 1
    assert len(path) == 1 + fewest


def test_a_map_of_the_images_size_needs_no_step() -> None:
    decoder = Decoder(6, (5, 7), (3, 5, 7))
    assert decoder(torch.zeros(2, 6, 5, 7)).shape == (2, 3, 5, 7)
    assert len(decoder.steps) == 0


def test_the_last_layer_is_linear() -> None:
    torch.manual_seed(0)
    decoder = Decoder(8, (2, 2), (1, 8, 8))
    assert decoder(torch.randn(16, 8, 2, 2)).min() < 0


def test_the_decoder_sees_the_map_and_nothing_else() -> None:
    model = decoding((8, 8), 1).eval()
    assert model.decoder is not None
    with torch.no_grad():
        out = model(torch.randn(2, 1, 8, 8), decode=True)
        torch.testing.assert_close(model.decoder(out.maps[-1]), out.reconstruction)


def test_building_it_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(5)
    model = build_model("small", "linear", ImageSpec((1, 8, 8)))
    before = torch.random.get_rng_state()
    with_decoder(model)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_its_weights_depend_on_the_seed_alone() -> None:
    def weights(seed: int, drawn: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model = build_model("small", "linear", ImageSpec((1, 8, 8)))
        torch.rand(drawn)
        decoder = with_decoder(model).decoder
        assert decoder is not None
        return torch.cat([parameter.detach().flatten() for parameter in decoder.parameters()])

    assert torch.equal(weights(1, 0), weights(1, 9))
    assert not torch.equal(weights(1, 0), weights(2, 0))


def test_building_it_leaves_the_backbone_as_it_was() -> None:
    torch.manual_seed(0)
    model = build_model("small", "linear", ImageSpec((1, 8, 8)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = with_decoder(model).state_dict()
    assert model.training
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())

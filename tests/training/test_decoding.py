"""What may be asked of the decoder: in which stages, from which map, of which image, and controls that must not help."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from conftest import QUICK
from nacre.data.source import ImageSpec
from nacre.data.stream import Stream
from nacre.errors import NacreError
from nacre.experiment import Experiment
from nacre.losses.loss import Batch, Step
from nacre.losses.reconstruction import Reconstruction, StoppedReconstruction
from nacre.methods import METHODS
from nacre.models.decoders import Decoder
from nacre.models.model import build_model, with_decoder
from nacre.study import Study
from nacre.training.journal import Row
from nacre.training.learner import Learner
from nacre.training.method import Decoding, Method
from nacre.training.runtime import Hardware, Runtime

SPEC = ImageSpec((3, 8, 8))


def method(**decoding: object) -> Method:
    return METHODS["reconstruction"](backbone="small", optim=QUICK, decoding=Decoding(**decoding))  # type: ignore[arg-type]


def learnt(stream: Stream, runtime: Runtime, how: Method, until: int = 2) -> tuple[Learner, list[list[Row]]]:
    learner = Learner(how, stream.source.spec, runtime=runtime)
    return learner, [learner.learn(stage).rows for stage in stream[:until]]


@pytest.mark.parametrize(("stages", "where"), [("all", [True, True]), ("first", [True, False]), ("later", [False, True])])
def test_the_term_counts_in_the_stages_that_are_named(stages: str, where: list[bool], stream: Stream, runtime: Runtime) -> None:
    _, logs = learnt(stream, runtime, method(stages=stages))
    assert [all("reconstruction" in row for row in rows) for rows in logs] == where


@pytest.mark.parametrize(("precision", "layout"), [("fp32", "contiguous"), ("bf16", "channels-last")])
def test_a_stopped_decoder_learns_and_leaves_the_rest_bit_equal(
    precision: Literal["fp32", "bf16"], layout: Literal["contiguous", "channels-last"], stream: Stream
) -> None:
    longer = replace(QUICK, epochs=12)
    runtime = Runtime(Hardware(device="cpu", precision=precision, layout=layout, threads=1))
    none, _ = learnt(stream, runtime, replace(method(), decoding=None, optim=longer))
    stopped, logs = learnt(stream, runtime, replace(method(stopped=True, warmup=0.0), optim=longer))
    state, with_it = none.state(), stopped.state()
    assert all(torch.equal(with_it[name], tensor) for name, tensor in state.items())
    errors = [row["reconstruction"] for row in logs[0]]
    assert errors[-1] < errors[0]


def test_the_log_tells_of_two_gradients_only_where_both_reach_the_last_map(stream: Stream, runtime: Runtime) -> None:
    told = {"gradient_ratio", "gradient_cosine"}
    for how, both in ((method(), True), (method(tap=2), False), (method(stopped=True), False), (replace(method(), decoding=None), False)):
        _, ((row, *_),) = learnt(stream, runtime, how, until=1)
        assert (told & row.keys() == told) == both == bool(told & row.keys())


def test_the_defaults_are_what_was_chosen_and_frozen() -> None:
    frozen = Experiment.load(Path(__file__).parents[2] / "recipes" / "chosen-reconstruction.toml").method
    assert frozen == METHODS["reconstruction"]()


def test_the_recipe_of_a_frozen_backbone_is_the_arm_that_was_tested() -> None:
    recipes = Path(__file__).parents[2] / "recipes"
    tested, *_ = Study.load(recipes / "evidence-long.toml").trials(arms=["with"])
    assert Experiment.load(recipes / "frozen-reconstruction.toml").toml() == tested.experiment.toml()


def test_the_control_asks_for_the_next_image(stream: Stream) -> None:
    torch.manual_seed(0)
    model, images = with_decoder(build_model("small", "linear", SPEC)), torch.randn(3, 3, 8, 8)
    out = model(images, decode=True)
    step = Step(Batch(images, torch.zeros(3, dtype=torch.long)), out, None, model, stream[0], 0.0)
    want = (out.reconstruction - images[[2, 0, 1]]).square().mean()
    torch.testing.assert_close(Reconstruction(other=True)(step), want)
    torch.testing.assert_close(StoppedReconstruction()(replace(step)), Reconstruction()(step), rtol=0.2, atol=0.2)


@pytest.mark.parametrize(("name", "tap", "channels", "side"), [("small", 1, 64, 2), ("small", 2, 64, 4), ("resnet20", 3, 16, 8)])
def test_the_decoder_may_start_from_an_earlier_map(name: str, tap: int, channels: int, side: int) -> None:
    model = with_decoder(build_model(name, "linear", SPEC), tap)
    assert isinstance(model.decoder, Decoder)
    assert (model.decoder.dim, model.decoder.tap) == (channels, tap)
    assert len(model.decoder.sizes) == {8: 0, 4: 1, 2: 2}[side]
    assert model(torch.zeros(2, 3, 8, 8), decode=True).reconstruction.shape == (2, 3, 8, 8)


def test_a_map_that_is_not_there_is_refused() -> None:
    with pytest.raises(NacreError, match=r"decoding\.tap is 4, but SmallNet gives 3 maps: choose 1 to 3"):
        with_decoder(build_model("small", "linear", SPEC), 4)
    with pytest.raises(ValueError, match="tap is 0"):
        Decoding(tap=0)

"""What a method says that it needs is what it uses, no less and no more; and it carries the bytes that the list shows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nacre.data.source import Samples, Source
from nacre.data.stream import Stream
from nacre.evaluation.cost import carried, carried_bytes, footprint, unfitted
from nacre.methods import METHODS
from nacre.models.model import Model
from nacre.training.knowledge import Knowledge
from nacre.training.learner import Learner
from nacre.training.method import NEEDS, Method
from nacre.training.phases import Fit, Phase, Work
from nacre.training.runtime import Runtime

FROM_SCRATCH = [name for name, cls in METHODS.items() if "pre-training" not in cls.needs]


class Watched(Knowledge):
    """Notes whether somebody looks at the old model."""

    read = False

    @property
    def teacher(self) -> Model | None:
        there: Model | None = self.__dict__["teacher"]
        self.read |= there is not None
        return there

    @teacher.setter
    def teacher(self, model: Model | None) -> None:
        self.__dict__["teacher"] = model


def test_a_method_uses_what_it_says_that_it_needs(
    method: Method, stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, run = Learner(method, stream.source.spec, runtime=runtime), Fit.run
    learner.knowledge.__class__ = Watched
    remembered, taught, sizes = False, False, []

    def spied(fit: Phase, work: Work) -> None:
        nonlocal remembered, taught
        assert isinstance(fit, Fit)
        parts = [fit.data.labels, *([fit.rehearsal.samples.labels] if fit.rehearsal else [])]
        remembered |= any((labels < work.stage.known).any() for labels in parts)
        taught |= fit.teacher is not None
        run(fit, work)

    monkeypatch.setattr(Fit, "run", spied)
    for stage in stream:
        learner.learn(stage)
        sizes.append(sum(parameter.numel() for parameter in learner.knowledge.model.backbone.parameters()))
    assert isinstance(learner.knowledge, Watched)
    assert method.needs <= set(NEEDS)
    assert remembered == ("exemplars" in method.needs)
    assert len(learner.knowledge.memory) > 0 or not remembered
    assert (taught or learner.knowledge.read) == ("old model" in method.needs)
    assert (sizes[0] < sizes[1] < sizes[2]) == ("growing size" in method.needs)
    assert "growing size" in method.needs or sizes[0] == sizes[2]


def test_the_bytes_carried_vary_with_the_images_only_where_the_method_says_so(method: Method, source: Source, runtime: Runtime) -> None:
    found = []
    for shade in (1, 50):
        images = source.train.images // shade  # of fewer shades, other inputs and features
        stream = Stream(replace(source, train=Samples.of(images, source.train.labels)), [2, 2, 2])
        learner = Learner(method, source.spec, runtime=runtime)
        for stage in stream:
            unfitted(learner, stage)
        found.append(footprint(learner.knowledge)["carried"])
    assert (found[0] != found[1]) == method.varying


def test_every_method_that_is_trained_from_scratch_has_its_bytes() -> None:
    assert set(carried_bytes()) == set(FROM_SCRATCH)


@pytest.mark.parametrize("name", ["finetune", "si"])
def test_the_bytes_are_what_is_carried(name: str) -> None:
    assert carried(METHODS[name]()) == carried_bytes()[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_all_bytes_are_what_is_carried(name: str) -> None:
    assert carried(METHODS[name]()) == carried_bytes()[name]

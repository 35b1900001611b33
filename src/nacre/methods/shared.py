"""What two or more methods do."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nacre.data.source import ImageSpec, Samples
from nacre.data.stream import Stage
from nacre.errors import choose
from nacre.losses.classification import Auxiliary, CrossEntropy
from nacre.losses.distillation import Distillation
from nacre.losses.importance import Elastic, importance
from nacre.losses.loss import Loss, Term, Weighted
from nacre.losses.per_sample import Outcome, anchored
from nacre.models.adapters import Subspaces
from nacre.models.expandable import Expandable, Widening
from nacre.models.heads import HEADS, Head, NearestMean
from nacre.models.model import Model
from nacre.models.pretrained import begin
from nacre.models.prompts import Prompted, Prompts, Staged
from nacre.models.prototypes import Prototypes
from nacre.models.registry import transformer
from nacre.models.transformers import Transformer
from nacre.seeds import generator
from nacre.training.inference import evaluating, features
from nacre.training.knowledge import Knowledge, below
from nacre.training.method import Method
from nacre.training.optim import Optim
from nacre.training.phases import Adjust, Fit, Phase, Remember, Work


def afresh(method: Method, knowledge: Knowledge, stage: Stage) -> None:
    """Begin with the weights a learner begins with, but for the normalisation, and room for the stage's classes."""
    old = knowledge.model
    knowledge.model = method.whole(old.spec)
    begin(knowledge.model.backbone, method.backbone)
    knowledge.model.normalise = old.normalise
    knowledge.model.grow(stage.seen)


def seen_samples(knowledge: Knowledge, stage: Stage) -> Samples:
    """New images and exemplars together."""
    return stage.train + knowledge.memory.samples()


def classification(knowledge: Knowledge, stage: Stage) -> CrossEntropy:
    """Cross-entropy over all classes seen; without exemplars no image of a known class is at hand, so over the new ones alone."""
    return CrossEntropy(first=0 if len(knowledge.memory) else stage.first)


def importance_of(work: Work, outcome: Outcome, power: int, most: int, chunk: int = 16) -> dict[str, Tensor]:
    """Mean importance of every parameter over `most` of the stage's images, or over all of them where there are fewer."""
    model, train = work.knowledge.model, work.stage.train
    draw = generator(work.seed, "importance", work.stage.index)
    some = train.take(torch.randperm(len(train), generator=draw)[:most])
    uniform = torch.rand(len(some), generator=draw).to(work.runtime.device)
    total: dict[str, Tensor] = {}
    with evaluating(model):
        for rows in torch.arange(len(some)).split(chunk):
            images = model.normalise(work.runtime.images(some.pixels(rows))).contiguous(memory_format=work.runtime.format)
            with work.runtime.autocast():
                found = importance(model, images, uniform[rows], outcome, power)
            total = {name: total[name] + value if total else value for name, value in found.items()}
    return {name: value / len(some) for name, value in total.items()}


def places(model: Model) -> dict[str, Tensor]:
    """Where the answering parameters are now, by name."""
    return {name: parameter.detach().clone() for name, parameter in anchored(model)}


def elastic(knowledge: Knowledge, most: float = math.inf) -> Elastic | None:
    """The term that holds what earlier stages found important, as far as `most`; None in the first stage."""
    weights, anchors = below("importance", knowledge.statistics), below("anchor", knowledge.statistics)
    return Elastic({name: weight.clamp_max(most) for name, weight in weights.items()}, anchors) if anchors else None


def keep(knowledge: Knowledge, weights: Mapping[str, Tensor], anchors: Mapping[str, Tensor]) -> None:
    """Let importance and anchors survive the stage."""
    for kind, tensors in (("importance", weights), ("anchor", anchors)):
        knowledge.statistics |= {f"{kind}/{name}": tensor for name, tensor in tensors.items()}


def distilling_fit(
    knowledge: Knowledge, stage: Stage, temperature: float, optim: Optim, data: Samples | None = None, weight: float | None = None
) -> Fit:
    """Classify new images and exemplars, and hold the known classes' logits near the teacher's.

    Without exemplars no image of a known class is at hand, so classification looks at the new classes' logits alone.

    Args:
        knowledge: whose model learns.
        stage: the current one.
        temperature: of the distillation.
        optim: how to descend.
        data: instead of new images and exemplars.
        weight: of the distillation beside classification; None: (1 - k) classification + k distillation, k the share of known classes
            (Wu et al., CVPR 2019, eq. 3).
    """
    data = seen_samples(knowledge, stage) if data is None else data
    share = stage.share_known
    shares = (1 - share, share) if weight is None else (1.0, weight if stage.known else 0.0)
    loss = Loss(classification=shares[0] * classification(knowledge, stage), distillation=shares[1] * Distillation(temperature))
    return Fit(loss, data, knowledge.model, teacher=knowledge.teacher, optim=optim)


def balanced_fit(knowledge: Knowledge, classification: Term, optim: Optim) -> Fit:
    """Fit the head alone to the exemplars, of which every class has equally many (Douillard et al., ECCV 2020, section 4.3)."""
    return Fit(Loss(classification=classification), knowledge.memory.samples(), knowledge.model, only=[knowledge.model.head], optim=optim)


def class_means() -> Adjust:
    """Give the nearest-mean readout the class means of the exemplars, and where there are none those of the stage's images."""

    def learn(work: Work) -> None:
        readout = work.knowledge.model.readout
        assert isinstance(readout, NearestMean), "build the model with readout=NearestMean"
        samples = work.knowledge.memory.samples()
        samples = samples if len(samples) else work.stage.train
        found = features(work.knowledge.model, samples, work.runtime)
        readout.learn(found, samples.labels.to(found.device), work.stage.seen)

    return Adjust("class means", learn)


def aligned(stage: Stage) -> Adjust:
    """Scale the new classes' rows of the head to the old ones' mean norm (Zhao et al., CVPR 2020, eq. 6-8)."""

    def align(work: Work) -> None:
        norms = work.knowledge.model.head.rows.weight.norm(dim=1)
        if stage.known:
            work.knowledge.model.head.rows.weight[stage.known :] *= norms[: stage.known].mean() / norms[stage.known :].mean()

    return Adjust("align rows", align)


def new_means(work: Work) -> Tensor:
    """Directions of the new classes' mean features: [new, D], of length one."""
    train = work.stage.train.among(work.stage.new)
    found = F.normalize(features(work.knowledge.model, train, work.runtime))
    member = F.one_hot(train.labels.to(found.device) - work.stage.known, len(work.stage.new)).to(found)
    return F.normalize(member.T @ found)


def remember_means(work: Work) -> None:
    """Means of the classes at hand; in the first stage also the mean spread around them, the noise of Zhu et al., CVPR 2021, eq. 3."""
    statistics, (found, labels) = work.knowledge.statistics, stage_features(work)
    old = statistics.get("prototypes", found.new_zeros(0, found.shape[1]))
    means = F.pad(old, (0, 0, 0, work.stage.seen - len(old)))
    for label in labels.unique().tolist():
        means[label] = found[labels == label].mean(0)
    statistics["prototypes"] = means
    if "radius" not in statistics:
        spread = [found[labels == label].var(0, correction=0).mean() for label in labels.unique()]
        statistics["radius"] = torch.stack(spread).mean().sqrt()


def prompted(method: Method, spec: ImageSpec, prompts: Callable[[Transformer], Prompts]) -> Model:
    """A frozen transformer with the prompts that are made for it, and a head."""
    net = transformer(method.backbone, spec)
    backbone = Prompted(net, prompts(net))
    return Model(backbone, choose("head", method.head, HEADS)(backbone.dim), spec)


def grow_prompts(model: Model, stage: Stage) -> None:
    """Give the stage prompts of its own, freeze those of the stages before it, and make room for its classes."""
    backbone = model.backbone
    assert isinstance(backbone, Prompted)
    assert isinstance(backbone.prompts, Staged)
    backbone.prompts.resize(stage.index + 1)
    model.grow(stage.seen)


def prompted_phases(knowledge: Knowledge, stage: Stage, optim: Optim, **terms: Weighted) -> Iterator[Phase]:
    """Fit prompts and head, with softmax over the classes at hand alone where there are no exemplars; remember where there is a budget."""
    loss = Loss(classification=classification(knowledge, stage), **terms)
    yield Fit(loss, seen_samples(knowledge, stage), knowledge.model, optim=optim)
    yield Remember()


def base_fit(method: Method, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
    """Train in the first stage alone; afterwards backbone and head stay as they are."""
    if stage.index == 0:
        yield Fit(Loss(classification=CrossEntropy()), stage.train, knowledge.model, optim=method.optim_of(stage))


def stage_features(work: Work) -> tuple[Tensor, Tensor]:
    """Features [n, D] and labels [n] of the stage's images, unaugmented, on the device."""
    found = features(work.knowledge.model, work.stage.train, work.runtime)
    return found, work.stage.train.labels.to(found.device)


@dataclass(frozen=True)
class ClassMeans:
    """Counts [K] and means [K, D] of features by class, in float64: of earlier stages, and with the stage at hand."""

    before: tuple[Tensor, Tensor]
    count: Tensor
    mean: Tensor


def joined_means(knowledge: Knowledge, found: Tensor, labels: Tensor, seen: int) -> ClassMeans:
    """Join features [n, D] with what the statistics `count` and `mean` hold, and keep the result there."""
    k, x = knowledge.statistics, found.double()
    count, mean = k.get("count", x.new_zeros(0)), k.get("mean", x.new_zeros(0, x.shape[1]))
    count, mean = F.pad(count, (0, seen - len(count))), F.pad(mean, (0, 0, 0, seen - len(mean)))
    member = F.one_hot(labels, seen).double()
    both = count + member.sum(0)
    joint = (count[:, None] * mean + member.T @ x) / both.clamp_min(1)[:, None]
    k |= {"count": both, "mean": joint}
    return ClassMeans((count, mean), both, joint)


def learn_prototypes() -> Adjust:
    """Let the readout's class means take in the stage's images."""

    def learn(work: Work) -> None:
        readout = work.knowledge.model.readout
        assert isinstance(readout, Prototypes), "build the model with readout=Prototypes"
        readout.learn(*stage_features(work), work.stage.seen)

    return Adjust("prototypes", learn)


def adapt_once(model: Model, stage: Stage) -> None:
    """Add a set of adapters in the first stage alone, and make room for the stage's classes."""
    if stage.index == 0:
        assert isinstance(model.backbone, Subspaces)
        model.backbone.resize(1)
    model.grow(stage.seen)


def expand(model: Model, stage: Stage) -> None:
    """Add a branch for a stage after the first, and widen the head to its features and classes."""
    backbone, head = expandable(model)
    if stage.index:
        backbone.resize(len(backbone.branches) + 1)
    widen(backbone, head, stage)


def expandable(model: Model) -> tuple[Expandable, Widening]:
    """Backbone and head of a model of branches, by their kinds."""
    assert isinstance(model.backbone, Expandable)
    assert isinstance(model.head, Widening)
    return model.backbone, model.head


def first_branch(model: Model) -> Model:
    """A copy with the first branch alone, all of which may learn."""
    small = copy.deepcopy(model)
    backbone, head = expandable(small)
    backbone.resize(1)
    backbone.requires_grad_(True)
    head.resize(small.classes, backbone.width, 0, backbone.width)
    return small


def widen(backbone: Expandable, head: Head, stage: Stage) -> None:
    """Let a head answer for all classes from all branches, with an auxiliary one for the newest of several."""
    assert isinstance(head, Widening)
    if stage.index == 0:
        head.resize(stage.seen)
    else:
        head.resize(stage.seen, backbone.dim, 1 + len(stage.new), backbone.width)


def becomes(student: Model) -> Adjust:
    """Let another model take the place of the one that learnt so far."""

    def replace(work: Work) -> None:
        work.knowledge.model = student

    return Adjust("replace model", replace)


def expanded_phases(knowledge: Knowledge, stage: Stage, weight: float, optim: Optim) -> Iterator[Phase]:
    """Fit the newest branch and the head, align, remember (Yan et al., CVPR 2021, eq. 6, without its sparsity)."""
    auxiliary = (weight if stage.index else 0.0) * Auxiliary()
    loss = Loss(classification=CrossEntropy(), auxiliary=auxiliary)
    yield Fit(loss, seen_samples(knowledge, stage), knowledge.model, optim=optim)
    yield aligned(stage)
    yield Remember()

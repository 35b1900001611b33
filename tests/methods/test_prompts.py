"""L2P, DualPrompt and CODA-Prompt: how prompts are chosen and where they stand, worked out by hand; what is frozen stays."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nacre import modelfile
from nacre.data.readers import digits
from nacre.data.source import ImageSpec, Samples, Source
from nacre.data.stream import Stream
from nacre.errors import NacreError
from nacre.losses.loss import Batch, Step
from nacre.losses.prompts import Orthogonality, Pull
from nacre.methods import METHODS
from nacre.methods.coda import CODAPrompt
from nacre.methods.dualprompt import DualPrompt
from nacre.methods.l2p import L2P
from nacre.models.model import build_model
from nacre.models.output import Output
from nacre.models.prompts import Components, Experts, Pool, Prompted
from nacre.models.transformers import Block, Transformer, ViT
from nacre.training.learner import Learner, accuracy
from nacre.training.method import Method
from nacre.training.optim import Optim
from nacre.training.phases import Fit
from nacre.training.runtime import Runtime

SPEC = ImageSpec((1, 4, 6))
PROMPTING: dict[str, Method] = {
    name: replace(METHODS[name](), backbone="vit-tiny", optim=replace(METHODS[name]().optim, epochs=2, batch=16))
    for name in ("l2p", "dualprompt", "coda-prompt")
}


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float((a.double() * b.double()).sum() / math.sqrt(float(a.double().square().sum() * b.double().square().sum())))


def attention_by_hand(block: Block, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One block for one image, head by head: [T, D] with prefixes [P, D]."""
    dim, heads = x.shape[1], block.attn.num_heads
    normal = block.norm1(x)
    weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
    query, key, value = (normal @ weight[i * dim : (i + 1) * dim].T + bias[i * dim : (i + 1) * dim] for i in range(3))
    key, value = torch.cat([keys, key]), torch.cat([values, value])
    found = []
    for h in range(heads):
        own = slice(h * dim // heads, (h + 1) * dim // heads)
        scores = torch.exp(query[:, own] @ key[:, own].T / math.sqrt(dim / heads))
        found.append(scores / scores.sum(1, keepdim=True) @ value[:, own])
    x = x + block.attn.proj(torch.cat(found, 1))
    return x + block.mlp(block.norm2(x))


@pytest.fixture
def net() -> ViT:
    torch.manual_seed(0)
    return ViT(SPEC, 12, 3, 3).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 1, 4, 6, generator=torch.Generator().manual_seed(1))


def test_a_query_chooses_the_prompts_of_the_nearest_keys() -> None:
    torch.manual_seed(0)
    pool, query = Pool(6, 4, 3, top=2), torch.randn(5, 6)
    prompt = pool(query)
    assert prompt.front is not None
    for i in range(5):
        near = sorted(((cosine(query[i], pool.keys[m]), m) for m in range(4)), reverse=True)[:2]
        assert torch.equal(prompt.front[i], torch.cat([pool.tokens[m] for _, m in near]))
        assert prompt.aux["near"][i].tolist() == pytest.approx([value for value, _ in near], abs=1e-5)


def test_features_are_the_mean_of_what_leaves_where_the_prompts_stand(net: ViT, images: Tensor) -> None:
    model = Prompted(net, Pool(12, 4, 3, top=2))
    prompt = model.prompts(net(images)[-1][:, :, 0, 0])
    tokens = torch.cat([prompt.front, net.embed(images)], 1)
    for block in net.blocks:
        tokens = block(tokens)
    wanted = torch.stack([net.norm(tokens[:, place]) for place in range(6)]).mean(0)
    torch.testing.assert_close(model(images)[-1][:, :, 0, 0], wanted)


def test_prefixes_stand_before_keys_and_values_of_their_blocks(net: ViT, images: Tensor) -> None:
    model = Prompted(net, Experts(12, (0,), (2,), 4))
    experts = model.prompts
    assert isinstance(experts, Experts)
    (general,), (expert,) = experts.general, experts.every("prefixes")[0]
    found, nothing = model(images)[-1][:, :, 0, 0], torch.empty(0, 12)
    for i, image in enumerate(images):
        x = net.embed(image[None])[0]
        for block, (keys, values) in zip(net.blocks, (general, (nothing, nothing), expert), strict=True):
            assert isinstance(block, Block)
            x = attention_by_hand(block, x, keys, values)
        torch.testing.assert_close(found[i], net.norm(x[0]), atol=1e-4, rtol=1e-4)


def test_the_stages_own_expert_is_trained_and_the_nearest_answers() -> None:
    torch.manual_seed(0)
    experts, query = Experts(6, (0,), (1, 2), 2), torch.randn(7, 6)
    experts.resize(3)
    keys, prefixes = experts.every("key"), experts.every("prefixes")
    training, answering = experts.train()(query), experts.eval()(query)
    chosen = set()
    for i in range(7):
        cosines = [cosine(query[i], key) for key in keys]
        best = cosines.index(max(cosines))
        chosen.add(best)
        assert training.aux["near"][i].tolist() == pytest.approx([cosines[2]], abs=1e-5)
        assert answering.aux["near"][i].tolist() == pytest.approx([cosines[best]], abs=1e-5)
        for n, block in enumerate((1, 2)):
            assert all(torch.equal(part[i], prefixes[2][n, k]) for k, part in enumerate(training.prefixes[block]))
            assert all(torch.equal(part[i], prefixes[best][n, k]) for k, part in enumerate(answering.prefixes[block]))
    assert len(chosen) > 1


def test_a_prompt_is_the_weighted_sum_of_all_components() -> None:
    torch.manual_seed(0)
    components, query = Components(6, (0, 3), 2, 4), torch.randn(5, 6)
    components.resize(2)
    prompt = components(query)
    keys, attention, prefixes = (torch.cat(components.every(name), 1) for name in ("key", "attention", "prefixes"))
    assert keys.shape == (2, 4, 6)
    assert prefixes.shape == (2, 4, 2, 4, 6)
    for n, block in enumerate((0, 3)):
        for i in range(5):
            wanted = sum(cosine(query[i] * attention[n, m], keys[n, m]) * prefixes[n, m] for m in range(4))
            assert isinstance(wanted, Tensor)
            for k, part in enumerate(prompt.prefixes[block]):
                torch.testing.assert_close(part[i], wanted[k], atol=1e-5, rtol=1e-4)


def step(**aux: Tensor) -> Step:
    model = build_model("vit-tiny", "linear", SPEC)
    out = Output((), torch.empty(0), torch.empty(0), None, aux)
    return Step(Batch(torch.empty(2, 1, 4, 6), torch.zeros(2, dtype=torch.int64)), out, None, model, Stream(digits(), [10])[0], 0.0)


def test_the_pull_is_the_chosen_keys_distance() -> None:
    assert float(Pull()(step(near=torch.tensor([[1.0, 0.5], [0.0, -1.0]])))) == pytest.approx((0 + 0.5 + 1 + 2) / 2)


def test_orthonormal_sets_are_not_penalised_and_others_by_hand() -> None:
    components = Components(16, (0, 1), 5, 2)
    told = step(**components(torch.ones(1, 16)).aux)
    assert Orthogonality()(told).item() == pytest.approx(0, abs=1e-9)
    eye = torch.eye(2)[None]
    skew = torch.tensor([[[2.0, 0.0], [1.0, 0.0]]])  # B B^T - 1 = [[3, 2], [2, 0]]
    assert float(Orthogonality()(step(key=eye, attention=skew, prefixes=eye))) == pytest.approx((9 + 4 + 4 + 0) / 4)


@pytest.mark.parametrize(
    ("name", "term", "weight"), [("l2p", "pull", 0.1), ("dualprompt", "pull", 1.0), ("coda-prompt", "orthogonality", 0.1)]
)
def test_terms_are_weighed_as_in_the_paper(name: str, term: str, weight: float, stream: Stream, runtime: Runtime) -> None:
    learner = Learner(PROMPTING[name], stream.source.spec, runtime=runtime)
    fit = next(iter(PROMPTING[name].phases(learner.knowledge, stream[0])))
    assert isinstance(fit, Fit)
    assert (fit.loss.weight("classification"), fit.loss.weight(term)) == (1, weight)


@pytest.mark.parametrize("name", list(PROMPTING))
def test_the_transformer_earlier_prompts_and_known_rows_stay_bit_by_bit(name: str, stream: Stream, runtime: Runtime) -> None:
    learner = Learner(PROMPTING[name], stream.source.spec, runtime=runtime)
    states = []
    for stage in (None, *stream[:2]):
        if stage is not None:
            learner.learn(stage)
        states.append({key: tensor.clone() for key, tensor in learner.knowledge.model.state_dict().items()})
    fresh, first, second = states
    frozen = [key for key in fresh if key.startswith("backbone.transformer.")]
    assert frozen
    assert all(torch.equal(fresh[key], state[key]) for key in frozen for state in (first, second))
    old = [key for key in first if key.startswith("backbone.prompts.parts.0.")]
    assert all(torch.equal(first[key], second[key]) for key in old)
    assert bool(old) == (name != "l2p")
    prompts = {key for key in fresh if key.startswith("backbone.prompts.") and not key.endswith("_extra_state")}
    assert prompts
    assert not any(torch.equal(fresh[key], first[key]) for key in prompts)
    later = {key.replace("parts.0", "parts.1") for key in prompts}
    assert all(key not in first or not torch.equal(first[key], second[key]) for key in later)
    assert torch.equal(first["head.rows.weight"], second["head.rows.weight"][:2])


def test_a_loaded_model_is_frozen_as_the_saved_one(stream: Stream, runtime: Runtime, tmp_path: Path) -> None:
    learner = Learner(PROMPTING["coda-prompt"], stream.source.spec, runtime=runtime)
    for stage in stream[:2]:
        learner.learn(stage)
    modelfile.save(tmp_path / "m.nacre", learner)
    back, _ = modelfile.load(tmp_path / "m.nacre", runtime)
    found, wanted = ({n for n, p in model.knowledge.model.named_parameters() if p.requires_grad} for model in (back, learner))
    assert found == wanted
    assert {n.split(".")[3] for n in found if "parts" in n} == {"1"}
    backbone = back.knowledge.model.backbone
    assert isinstance(backbone, Prompted)
    assert backbone.train().prompts.training
    assert not any(part.training for part in backbone.transformer.modules())


def test_blocks_behind_the_last_are_the_last() -> None:
    model = PROMPTING["dualprompt"].build(SPEC)
    assert isinstance(model.backbone, Prompted)
    assert model.backbone.prompts.blocks == (0, 1, 2, 3)
    with pytest.raises(NacreError, match="a block takes one kind"):
        replace(PROMPTING["dualprompt"], general=(0, 5)).build(SPEC)  # type: ignore[call-arg]


class Scaled(Block):
    """A block that weakens what it adds, as some pre-trained ones do."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * (Block.forward(self, x) - x)


def test_what_takes_no_prompts_is_refused_plainly(net: ViT) -> None:
    with pytest.raises(NacreError, match="'small' is none: use timm:vit_"):
        L2P(backbone="small").build(SPEC)
    net.blocks[1] = Scaled(12, 3)
    Prompted(net, Pool(12, 2, 2, 1))
    with pytest.raises(NacreError, match="block 1 of this transformer takes no prefix"):
        Prompted(net, Components(12, (0, 1), 2, 2))
    net.blocks[1] = nn.Identity()
    with pytest.raises(NacreError, match="block 1 of this transformer takes no prefix"):
        Prompted(net, Components(12, (0, 1), 2, 2))


@pytest.mark.parametrize("wrong", [{"top": 11}, {"top": 0}, {"length": 0}])
def test_l2ps_numbers_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="prompts of length"):
        L2P(**wrong)  # type: ignore[arg-type]


def test_the_others_numbers_are_checked() -> None:
    for wrong in ({"length": 0}, {"expert": ()}, {"general": (-1,)}):
        with pytest.raises(ValueError, match="name blocks from 0"):
            DualPrompt(**wrong)  # type: ignore[arg-type]
    for other in ({"length": 3}, {"blocks": ()}, {"components": 0}):
        with pytest.raises(ValueError, match="name 1 or more"):
            CODAPrompt(**other)  # type: ignore[arg-type]


def of_classes(source: Source, labels: list[int]) -> Source:
    def some(samples: Samples) -> Samples:
        mine = samples.take(torch.isin(samples.labels, torch.tensor(labels)))
        return replace(mine, labels=torch.tensor([labels.index(int(label)) for label in mine.labels]))

    return replace(source, train=some(source.train), test=some(source.test), classes=tuple(source.classes[label] for label in labels))


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, runtime: Runtime) -> Path:
    """A model whose transformer learnt the odd digits."""
    stream, path = Stream(of_classes(digits(), [1, 3, 5, 7, 9]), [5]), tmp_path_factory.mktemp("taught") / "odd.nacre"
    optim = Optim(name="adamw", lr=0.003, weight_decay=0.01, clip=1.0, epochs=50)
    learner = Learner(METHODS["finetune"](backbone="vit-tiny", optim=optim), stream.source.spec, runtime=runtime)
    learner.learn(stream[0])
    modelfile.save(path, learner)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PROMPTING))
def test_even_digits_are_learnt_in_stages_on_what_the_odd_ones_taught(name: str, taught: Path, runtime: Runtime) -> None:
    optim = replace(METHODS[name]().optim, lr=0.005, epochs=8, batch=32)
    found = []
    for backbone in (f"vit-tiny@{taught}", "vit-tiny"):
        stream = Stream(of_classes(digits(), [0, 2, 4, 6]), [2, 2])
        learner = Learner(METHODS[name](backbone=backbone, optim=optim), stream.source.spec, runtime=runtime)
        for stage in stream:
            learner.learn(stage)
        found.append(accuracy(learner, stream[0].test + stream[1].test))
    assert found[0] > 0.6  # chance is 0.25
    assert found[0] > found[1] + 0.2


def test_a_plain_backbone_tells_nothing() -> None:
    model = build_model("vit-tiny", "linear", SPEC)
    assert isinstance(model.backbone, Transformer)
    assert model(torch.zeros(1, 1, 4, 6)).aux == {}
    assert set(PROMPTING["l2p"].build(SPEC)(torch.zeros(1, 1, 4, 6)).aux) == {"near"}

"""Backbones that others trained: where their weights come from, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from conftest import QUICK, toy_source
from nacre import modelfile
from nacre.data.source import ImageSpec
from nacre.data.stream import Stream
from nacre.errors import NacreError
from nacre.methods import METHODS
from nacre.models.pretrained import begin
from nacre.models.registry import backbone
from nacre.models.transformers import Attention, ViT, attended
from nacre.training.learner import Learner
from nacre.training.runtime import Runtime

SPEC = ImageSpec((3, 9, 12))


def test_attention_is_torchs_own() -> None:
    torch.manual_seed(0)
    ours, x = Attention(12, 3), torch.randn(2, 5, 12)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.load_state_dict(ours.proj.state_dict())
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0])


def test_a_prefix_is_looked_at_and_does_not_look() -> None:
    torch.manual_seed(0)
    attention, x, more = Attention(12, 3), torch.randn(2, 5, 12), torch.randn(2, 4, 12)
    _, key, value = attention.qkv(more).chunk(3, dim=-1)
    whole = attention(torch.cat([more, x], 1))[:, 4:]
    torch.testing.assert_close(attended(attention, x, (key, value)), whole)


def test_any_size_of_image_becomes_one_vector() -> None:
    for name, size in (("vit-tiny", (8, 8)), ("vit-tiny", (9, 12)), ("vit-small", (32, 32)), ("vit-tiny", (28, 28))):
        net = backbone(name, ImageSpec((3, *size)))
        assert net(torch.zeros(2, 3, *size))[-1].shape == (2, net.dim, 1, 1)


@pytest.fixture
def taught(tmp_path: Path, runtime: Runtime) -> Path:
    """A model of nacre's whose backbone learnt something."""
    stream = Stream(toy_source(), [4, 2], seed=0)
    learner = Learner(METHODS["finetune"](backbone="vit-tiny", optim=QUICK), stream.source.spec, runtime=runtime)
    learner.learn(stream[0])
    modelfile.save(tmp_path / "taught.nacre", learner)
    return tmp_path / "taught.nacre"


def test_a_model_file_gives_its_backbone_and_its_normalisation(taught: Path, runtime: Runtime) -> None:
    old, _ = modelfile.load(taught, runtime)
    stream = Stream(toy_source(), [2, 4], seed=5)
    frozen = METHODS["slda"](backbone=f"vit-tiny@{taught}", optim=QUICK)
    learner = Learner(frozen, stream.source.spec, seed=9, runtime=runtime)
    assert not torch.equal(learner.knowledge.model.backbone.places, old.knowledge.model.backbone.places)
    found = begin(learner.knowledge.model.backbone, frozen.backbone)
    assert found is not None
    assert torch.equal(found[0], old.knowledge.model.normalise.mean)
    wanted = old.knowledge.model.backbone.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in learner.knowledge.model.backbone.state_dict().items())
    learner.learn(stream[0])
    assert torch.equal(learner.knowledge.model.normalise.std, old.knowledge.model.normalise.std)


def test_a_model_is_loaded_without_the_file_it_began_from(taught: Path, tmp_path: Path, runtime: Runtime) -> None:
    stream = Stream(toy_source(), [4, 2], seed=0)
    learner = Learner(METHODS["finetune"](backbone=f"vit-tiny@{taught}", optim=QUICK), stream.source.spec, runtime=runtime)
    learner.learn(stream[0])
    modelfile.save(tmp_path / "next.nacre", learner)
    taught.unlink()
    back, _ = modelfile.load(tmp_path / "next.nacre", runtime)
    back.learn(stream[1])
    assert len(back.classes) == 6


def test_plain_tensors_are_taken_and_a_heads_left_out(tmp_path: Path) -> None:
    net, other = backbone("vit-tiny", SPEC), backbone("vit-tiny", SPEC)
    save_file({**net.state_dict(), "head.weight": torch.zeros(3, 3)}, tmp_path / "plain.safetensors")
    assert begin(other, f"vit-tiny@{tmp_path / 'plain.safetensors'}") is None
    assert torch.equal(other.places, net.places)


def test_what_does_not_fit_is_refused_plainly(tmp_path: Path) -> None:
    net = backbone("vit-tiny", SPEC)
    save_file(backbone("small", SPEC).state_dict(), tmp_path / "other.safetensors")
    (tmp_path / "none.safetensors").write_bytes(b"pickle" * 9)
    with pytest.raises(NacreError, match=r"weights of another net: begin is nothing, but ViT wants \[1, 1, 64\]"):
        begin(net, f"vit-tiny@{tmp_path / 'other.safetensors'}")
    with pytest.raises(NacreError, match="cannot take weights from"):
        begin(net, f"vit-tiny@{tmp_path / 'none.safetensors'}")
    with pytest.raises(NacreError, match="cannot take weights from"):
        begin(net, f"vit-tiny@{tmp_path / 'missing.safetensors'}")


class LikeTimms(nn.Module):
    """What of a transformer of timm's is used, around one of ours."""

    def __init__(self, spec: ImageSpec) -> None:
        nn.Module.__init__(self)
        inner = ViT(spec, 24, 2, 2)
        self.inner, self.blocks, self.norm, self.embed_dim = [inner], inner.blocks, inner.norm, 24
        self.patches, self.begin, self.places = inner.patches, inner.begin, inner.places
        self.patch_drop = self.norm_pre = nn.Identity()
        self.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}

    def patch_embed(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def _pos_embed(self, images: torch.Tensor) -> torch.Tensor:
        return self.inner[0].embed(images)

    def forward_head(self, tokens: torch.Tensor, *, pre_logits: bool) -> torch.Tensor:
        return tokens[:, 0]


def entry() -> None:
    pass


entry.__module__ = "timm.models.vision_transformer"


def test_a_transformer_of_timms_answers_and_brings_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def create_model(name: str, **form: Any) -> nn.Module:
        asked.append({"name": name, **form})
        torch.manual_seed(7 if form["pretrained"] else 1)
        return LikeTimms(SPEC)

    library = ModuleType("timm")
    library.__dict__.update(create_model=create_model, model_entrypoint=lambda name: entry)
    monkeypatch.setitem(sys.modules, "timm", library)
    net = backbone("timm:vit_x.in21k", SPEC)
    fresh = net(torch.ones(1, 3, 9, 12))[-1]
    assert fresh.shape == (1, 24, 1, 1)
    pixels = begin(net, "timm:vit_x.in21k")
    assert pixels is not None
    torch.testing.assert_close(pixels[0], torch.tensor([0.5, 0.4, 0.3]))
    torch.manual_seed(7)
    wanted = ViT(SPEC, 24, 2, 2)
    torch.testing.assert_close(net(torch.ones(1, 3, 9, 12))[-1], wanted(torch.ones(1, 3, 9, 12))[-1])
    assert asked[0] == {"name": "vit_x.in21k", "pretrained": False, "num_classes": 0, "img_size": (9, 12), "in_chans": 3}


def test_without_timm_its_nets_are_one_plain_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(NacreError, match="need that library"):
        backbone("timm:vit_base_patch16_224", SPEC)


def test_the_real_timm_where_it_imports() -> None:
    try:
        import timm  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm does not import here: {error}")
    assert isinstance(timm, ModuleType | SimpleNamespace)
    spec = ImageSpec((3, 32, 32))
    net: Any = backbone("timm:vit_tiny_patch16_224", spec).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(net(images)[-1][:, :, 0, 0], net.net.forward_head(net.net.forward_features(images), pre_logits=True))
    first = net.blocks[0].attn
    torch.testing.assert_close(attended(first, net.embed(images)), first(net.embed(images)))


@pytest.mark.parametrize("name", ["joint", "gdumb"])
def test_starting_afresh_starts_from_the_weights_that_were_given(name: str, stream: Stream, runtime: Runtime, tmp_path: Path) -> None:
    given = {key: torch.full_like(value, 0.25) for key, value in backbone("small", stream.source.spec).state_dict().items()}
    save_file(given, tmp_path / "w.safetensors")
    learner = Learner(METHODS[name](backbone=f"small@{tmp_path / 'w.safetensors'}"), stream.source.spec, runtime=runtime)
    for stage in stream[:2]:
        learner.prepare(stage)
        first = next(learner.knowledge.model.backbone.parameters())
        assert torch.equal(first, torch.full_like(first, 0.25))
        learner.classes, learner.stages = stream.classes[: stage.seen], stage.index + 1

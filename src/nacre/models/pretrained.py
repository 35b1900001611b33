"""Backbones that others trained: timm's, and weights from a file.

Shapes: B images, C channels, H x W pixels; T tokens, D numbers each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nacre.data.source import ImageSpec
from nacre.errors import NacreError
from nacre.models.backbones import Backbone
from nacre.models.transformers import Transformer

TIMM = "timm:"
VIT = "timm:vit_base_patch16_224.augreg_in21k"
"""The field's pre-trained backbone: ViT-B/16 on ImageNet-21k (Steiner et al., TMLR 2022)."""
OF_MODEL = "model/backbone."
"""How the names of a backbone's tensors begin in a model file."""


Pixels = tuple[Tensor, Tensor]
"""Mean and standard deviation of a channel's values in [0, 1]: [C] each."""


def library() -> ModuleType:
    """The timm library.

    Raises:
        NacreError: it is not there, or cannot be imported.
    """
    try:
        import timm  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except (ImportError, RuntimeError) as error:
        raise NacreError(f"backbones of timm need that library, which cannot be imported ({error}): pip install 'nacre[timm]'.") from None
    return timm  # type: ignore[no-any-return]


class Foreign(Backbone):
    """What every backbone of timm has: its net, and where its weights come from."""

    def __init__(self, name: str, spec: ImageSpec, **form: Any) -> None:
        Backbone.__init__(self)
        self.name, self.form = name, {**form, "in_chans": spec.channels}
        self.net: nn.Module = self.created(pretrained=False)

    def created(self, *, pretrained: bool) -> nn.Module:
        """A net of timm's.

        Raises:
            NacreError: timm has no such net, cannot make it for these images, or cannot fetch its weights.
        """
        try:
            return library().create_model(self.name, pretrained=pretrained, **self.form)  # type: ignore[no-any-return]
        except (RuntimeError, ValueError, TypeError, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise NacreError(
                f"timm cannot make {self.name!r} ({reason}): see timm.list_models(), and give images the size it takes."
            ) from None

    def fetch(self) -> Pixels:
        """Take the weights that timm has for this net; returns what its images were normalised by."""
        self.net.load_state_dict(self.created(pretrained=True).state_dict())
        about: Any = self.net
        return torch.tensor(about.pretrained_cfg["mean"]), torch.tensor(about.pretrained_cfg["std"])


class TimmNet(Foreign):
    """Any net of timm's that gives maps."""

    def __init__(self, name: str, spec: ImageSpec) -> None:
        Foreign.__init__(self, name, spec, features_only=True)
        about: Any = self.net.feature_info
        self.dim, self.reduction = about.channels()[-1], about.reduction()[-1]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, C, H, W] -> maps [B, D_i, h_i, w_i]."""
        return tuple(self.net(images))


class TimmTransformer(Foreign, Transformer):
    """A vision transformer of timm's, for images of one size."""

    def __init__(self, name: str, spec: ImageSpec) -> None:
        Foreign.__init__(self, name, spec, num_classes=0, img_size=spec.size)
        net: Any = self.net
        self.dim, self.reduction = net.embed_dim, max(spec.size)

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """The net's."""
        return self.net.blocks  # type: ignore[return-value]

    def embed(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, T, D]."""
        net: Any = self.net
        tokens: Tensor = net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(images))))
        return tokens

    def normed(self, tokens: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D], by whichever norm the net was trained with, before or behind its pooling."""
        net: Any = self.net
        whole: Tensor = net.fc_norm(net.norm(tokens))
        return whole

    def condense(self, tokens: Tensor) -> Tensor:
        """[B, T, D] -> [B, D], pooled as the net was trained."""
        net: Any = self.net
        pooled: Tensor = net.forward_head(net.norm(tokens), pre_logits=True)
        return pooled


def of_timm(name: str, spec: ImageSpec) -> Backbone:
    """The net of timm's of that name, without its weights."""
    from_library = library()
    try:
        entry = from_library.model_entrypoint(name.partition(".")[0])
    except (RuntimeError, KeyError):
        raise NacreError(f"timm has no {name!r}: see timm.list_models().") from None
    transformer = entry.__module__.endswith(".vision_transformer")
    return TimmTransformer(name, spec) if transformer else TimmNet(name, spec)


def begin(backbone: Backbone, name: str) -> Pixels | None:
    """Let a fresh backbone start from weights that others trained, where its name says so.

    Args:
        backbone: before its first stage.
        name: of it, see `nacre.models.registry.backbone`.

    Returns:
        What the weights were trained with and images must be normalised by, where that is known.

    Raises:
        NacreError: there are no such weights, or they are of another net.
    """
    file = name.partition("@")[2]
    bare = backbone.bare()
    if file:
        pixels, tensors = read(Path(file))
        fill(bare, tensors, Path(file))
        return pixels
    return bare.fetch() if isinstance(bare, Foreign) else None


def read(path: Path) -> tuple[Pixels | None, dict[str, Tensor]]:
    """Weights of a backbone in a safetensors file or in a model of nacre's; and what its images were normalised by, where that is known.

    Raises:
        NacreError: there is no such file, or it holds no tensors that can be read.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise NacreError(f"cannot take weights from {path} ({error}): give a safetensors file or a model of nacre's.") from None
    inner = {name.removeprefix(OF_MODEL): tensor.float() for name, tensor in tensors.items() if name.startswith(OF_MODEL)}
    if not inner:
        return None, tensors
    return (tensors["model/normalise.mean"].float(), tensors["model/normalise.std"].float()), inner


def fill(backbone: Backbone, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load weights; those of a head are left out.

    Raises:
        NacreError: one is missing, or of another shape.
    """
    own = backbone.net if isinstance(backbone, Foreign) else backbone
    wanted = own.state_dict()
    wrong = [name for name, tensor in wanted.items() if name not in tensors or tensors[name].shape != tensor.shape]
    if wrong:
        found = list(tensors[wrong[0]].shape) if wrong[0] in tensors else "nothing"
        raise NacreError(
            f"{path} holds the weights of another net: {wrong[0]} is {found}, "
            f"but {type(own).__name__} wants {list(wanted[wrong[0]].shape)}. "
            "Give the weights of this backbone, and images of the size and channels that it was trained with."
        )
    own.load_state_dict({name: tensors[name] for name in wanted})

"""The backbones by name."""

from __future__ import annotations

from collections.abc import Callable

from nacre.data.source import ImageSpec
from nacre.errors import NacreError, choose
from nacre.models.backbones import BACKBONES, Backbone
from nacre.models.pretrained import TIMM, of_timm
from nacre.models.transformers import TRANSFORMERS, Transformer


def backbone(name: str, spec: ImageSpec) -> Backbone:
    """Build a backbone for images of one kind, with fresh weights.

    Args:
        name: a key of `BACKBONES` or `TRANSFORMERS`, or `timm:NAME`, or `auto`: `small` below 32 pixels, `resnet32` up to 64, `resnet18`
            above. `@FILE` after it names the weights to begin from, which `nacre.models.pretrained.begin` loads.
        spec: of the images.

    Raises:
        NacreError: there is no such backbone.
    """
    kind = name.partition("@")[0]
    if kind.startswith(TIMM):
        return of_timm(kind.removeprefix(TIMM), spec)
    if kind == "auto":
        longest = max(spec.size)
        kind = "small" if longest < 32 else "resnet32" if longest <= 64 else "resnet18"
    makers = {**{key: by_channels(make) for key, make in BACKBONES.items()}, **TRANSFORMERS}
    return choose("backbone", kind, makers)(spec)


def transformer(name: str, spec: ImageSpec) -> Transformer:
    """Build a vision transformer (see `backbone`).

    Raises:
        NacreError: that backbone is none.
    """
    built = backbone(name, spec)
    if isinstance(built, Transformer):
        return built
    raise NacreError(f"this method works on a vision transformer, but {name!r} is none: use timm:vit_..., {' or '.join(TRANSFORMERS)}.")


def by_channels(make: Callable[[int], Backbone]) -> Callable[[ImageSpec], Backbone]:
    """The same maker, given the whole of what is known of the images."""
    return lambda spec: make(spec.channels)

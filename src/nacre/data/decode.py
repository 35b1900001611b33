"""One image file as the pixels a run works with: any format, mode and orientation that Pillow reads.

Shapes: C channels (1 grey, 3 colour), H x W pixels.
"""

from __future__ import annotations

import io
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

MODES_GREY = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"})
MODES_DEEP = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N", "F"})
BROKEN = (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError, LookupError, TypeError, struct.error)
"""What Pillow raises at damaged files."""
LONGEST_AS_IS = 64
"""Images up to this size, in pixels, are taken as they are."""
PHOTOGRAPH, MARGIN = 224, 256 / 224
"""Larger ones are cut to this size out of a shorter side that is longer by this factor, 256 pixels (He et al., CVPR 2016)."""


class Unreadable(Exception):  # noqa: N818 - a finding, to be reported with others
    """An image that cannot be used, and why."""


class Colourful(Exception):  # noqa: N818 - a finding
    """A colour image among images that were taken for grey ones."""


@dataclass(frozen=True)
class Form:
    """What all images of a data set become."""

    channels: int
    height: int
    width: int
    margin: float = 1.0
    """The shorter side is brought to this multiple of the form's before its centre is cut out."""
    strict: bool = True
    """Whether a colour image among grey ones is a finding, rather than made grey."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.channels, self.height, self.width

    @property
    def bytes(self) -> int:
        """Of one image."""
        return self.channels * self.height * self.width


@dataclass(frozen=True)
class Look:
    """What an image's header tells."""

    mode: str
    height: int
    width: int


def opened(data: bytes) -> Image.Image:
    """Open an image without decoding it.

    Raises:
        Unreadable: it is empty, no image, or absurdly large.
    """
    if not data:
        raise Unreadable("the file is empty")
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise Unreadable("not an image, or of an unknown format") from None
    except Image.DecompressionBombError:
        raise Unreadable("so many pixels that it may be a decompression bomb") from None
    except BROKEN as error:
        raise Unreadable(f"damaged ({error})") from None
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Unreadable(f"{image.width} x {image.height} pixels, so many that it may be a decompression bomb")
    return image


def look(data: bytes) -> Look:
    """Read an image's header; sizes are those after its orientation is undone.

    Raises:
        Unreadable: see `opened`.
    """
    image = opened(data)
    turned = orientation(image) >= 5
    mode = image.mode
    if mode == "P" and image.palette is not None and not image.info.get("transparency"):
        mode = "L" if grey_palette(image) else "P"
    return Look(mode, *(image.size if turned else image.size[::-1]))


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation."""


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none that can be read."""
    if "exif" not in image.info and image.format not in ("TIFF", "PNG", "MPO"):
        return 1
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:
        return 1


def grey_palette(image: Image.Image) -> bool:
    """Whether all colours of a palette image are grey."""
    colours = np.asarray(image.getpalette() or [0, 0, 0]).reshape(-1, 3)
    return bool((colours == colours[:, :1]).all())


def common_form(looks: Sequence[Look], size: int = 0) -> Form:
    """The form that suits a set of images.

    Args:
        looks: of some or all of them, at least one.
        size: height and width in pixels; 0: up to 64 pixels the commonest size as it is, larger images at 224.
    """
    channels = 1 if all(each.mode in MODES_GREY for each in looks) else 3
    if size:
        return Form(channels, size, size)
    if max(max(each.height, each.width) for each in looks) <= LONGEST_AS_IS:
        (height, width), _ = Counter((each.height, each.width) for each in looks).most_common(1)[0]
        return Form(channels, height, width)
    return Form(channels, PHOTOGRAPH, PHOTOGRAPH, MARGIN)


def decode(data: bytes, form: Form) -> NDArray[np.uint8]:
    """Decode an image: [C, H, W].

    The orientation that its EXIF data give is undone, transparency is laid on white, of an animation the first frame counts,
    16-bit grey is scaled to 8, and what is not of the form's shape is resized (shorter side) and cut (centre).

    Raises:
        Unreadable: it is damaged, cut short, or no image.
        Colourful: it has colours, and the form has not.
    """
    image = opened(data)
    try:
        image.draft(None, reach(image, form))  # lets a JPEG be decoded at a fraction of its size
        plain = flattened(image, form)
        if orientation(image) in TURNS:
            plain = plain.transpose(TURNS[orientation(image)])
        pixels = np.asarray(framed(plain, form))
    except BROKEN as error:
        raise Unreadable(f"damaged or cut short ({error})") from None
    return pixels[None] if form.channels == 1 else pixels.transpose(2, 0, 1)


def reach(image: Image.Image, form: Form) -> tuple[int, int]:
    """The size that a draft must not fall below, width first: twice the form's, which resizing then averages."""
    side = round(2 * form.margin * max(form.height, form.width))
    scale = side / max(1, min(image.size))
    return (round(image.width * scale), round(image.height * scale)) if scale < 1 else image.size


def flattened(image: Image.Image, form: Form) -> Image.Image:
    """Mode L or RGB without transparency."""
    if image.mode in MODES_DEEP:
        image = shallow(image)
    if image.mode == "P" or "transparency" in image.info:
        grey = image.mode in ("1", "L") or (image.mode == "P" and grey_palette(image))
        image = image.convert("RGBA" if not grey else "LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        solid = "L" if image.mode in ("LA", "La") else "RGB"
        image = image.convert("LA" if solid == "L" else "RGBA")
        paper = Image.new(solid, image.size, "white")
        paper.paste(image.convert(solid), mask=image.getchannel("A"))
        image = paper
    if form.channels == 1 and form.strict and image.mode not in MODES_GREY:
        raise Colourful
    return image.convert("L" if form.channels == 1 else "RGB")


def shallow(image: Image.Image) -> Image.Image:
    """Deep grey in 8 bits: 16-bit values over 257; what is within 0..255 already stays, floats in 0..1 are stretched."""
    values = np.asarray(image, dtype=np.float64)
    top = values.max(initial=0)
    within = 255.0 if image.mode == "F" and top <= 1 else 1.0 if image.mode in ("I", "F") and top <= 255 else 1 / 257
    return Image.fromarray((values * within).round().clip(0, 255).astype(np.uint8))


def framed(image: Image.Image, form: Form) -> Image.Image:
    """Resize the shorter side and cut out the centre, unless the size is right already."""
    if image.size == (form.width, form.height):
        return image
    inner = max(form.width / image.width, form.height / image.height) * form.margin
    size = max(form.width, round(image.width * inner)), max(form.height, round(image.height * inner))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - form.width) // 2, (size[1] - form.height) // 2
    return image.crop((left, top, left + form.width, top + form.height))

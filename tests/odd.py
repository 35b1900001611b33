"""Photographs of every odd kind, made here; and ways to see what became of them."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, height: int = 80, width: int = 96) -> Image.Image:
    """A colour picture: a bright square left above on a dark ground, so that turning it shows."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    pixels[: height // 2, : width // 2] = (200, 120 + seed % 100, 40)
    return Image.fromarray(pixels)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes whose header tells of 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def readable(seed: int = 0) -> dict[str, bytes]:
    """File name -> bytes of images that must be read."""
    colour = picture(seed)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: to be turned a quarter to the right
    animated = [picture(seed + i).quantize() for i in range(3)]
    deep = Image.fromarray((np.arange(80 * 96, dtype=np.uint16) * 8 + seed).reshape(80, 96))
    alpha = colour.convert("RGBA")
    alpha.putalpha(Image.fromarray(np.full((80, 96), 128, np.uint8)))
    return {
        "photo.jpg": saved(colour, "JPEG"),
        "PHOTO 2.JPEG": saved(picture(seed + 50), "JPEG", quality=50),
        "lossless.png": saved(colour, "PNG"),
        "web.webp": saved(picture(seed + 51), "WEBP"),
        "raw.bmp": saved(picture(seed + 52), "BMP"),
        "scan.tiff": saved(picture(seed + 53), "TIFF"),
        "moving.gif": saved(animated[0], "GIF", save_all=True, append_images=animated[1:]),
        "grey.png": saved(picture(seed + 54).convert("L"), "PNG"),
        "greyalpha.png": saved(picture(seed + 55).convert("LA"), "PNG"),
        "palette.png": saved(picture(seed + 56).quantize(64), "PNG"),
        "clear palette.png": saved(picture(seed + 57).quantize(64), "PNG", transparency=3),
        "alpha.png": saved(alpha, "PNG"),
        "print.jpg": saved(picture(seed + 58).convert("CMYK"), "JPEG"),
        "deep.png": saved(deep, "PNG"),
        "deep.tif": saved(deep, "TIFF"),
        "one bit.png": saved(picture(seed + 59).convert("1"), "PNG"),
        "turned.jpg": saved(picture(seed + 60), "JPEG", exif=exif),
        "猫 ñ 🐈.png": saved(picture(seed + 61), "PNG"),
        "n" * 240 + ".png": saved(picture(seed + 62), "PNG"),
        "no extension": saved(picture(seed + 63), "PNG"),
        "wrong.png": saved(picture(seed + 64), "JPEG"),
        "tall.jpg": saved(picture(seed + 65, 300, 40), "JPEG"),
    }


def unreadable(seed: int = 0) -> dict[str, tuple[bytes, str]]:
    """File name -> bytes, and a word of the reason that must be given."""
    whole = saved(picture(seed), "JPEG")
    png = saved(picture(seed + 1), "PNG")
    return {
        "empty.jpg": (b"", "empty"),
        "cut.jpg": (whole[: len(whole) // 2], "cut short"),
        "cut.png": (png[: len(png) // 2], "cut short"),
        "notes.txt": (b"these are not pixels", "not an image"),
        "page.html": (b"<html><script>alert(1)</script></html>", "not an image"),
        "bomb.png": (bomb(), "bomb"),
    }


def photographs(root: Path, classes: int = 10) -> Path:
    """A folder of classes with every readable kind in each, and what systems leave there."""
    for number in range(classes):
        folder = root / f"class {number}"
        folder.mkdir(parents=True)
        for name, data in readable(1000 * number).items():
            (folder / name).write_bytes(data)
        (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        (folder / "Thumbs.db").write_bytes(b"thumbs")
        (folder / "._photo.jpg").write_bytes(b"\0\5\x16\7")
    (root / "README.txt").write_text("about these photographs")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.png").write_bytes(b"")
    return root


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """Everything in a folder with its size and time, to see that nothing was touched."""
    found = {}
    for where, folders, names in os.walk(root):
        for path in (Path(where) / name for name in folders + names):
            found[str(path)] = (path.lstat().st_size, path.lstat().st_mtime_ns)
    return found

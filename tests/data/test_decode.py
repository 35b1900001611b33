"""Photographs as they are: every mode, orientation and kind of damage."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from nacre.data.decode import Colourful, Form, Look, Unreadable, common_form, decode, look
from odd import picture, readable, saved, unreadable

FORM = Form(3, 80, 96)
KINDS = list(readable())


@pytest.mark.parametrize("name", KINDS, ids=[name[:20] for name in KINDS])
def test_every_odd_kind_is_read(name: str) -> None:
    pixels = decode(readable()[name], FORM)
    assert pixels.shape == (3, 80, 96)
    assert pixels.dtype == np.uint8
    assert pixels.std() > 5


@pytest.mark.parametrize(("name", "case"), unreadable().items())
def test_damage_is_told(name: str, case: tuple[bytes, str]) -> None:
    data, word = case
    with pytest.raises(Unreadable, match=word):
        decode(data, FORM)


def test_lossless_pixels_are_the_pixels() -> None:
    image = picture(3)
    assert np.array_equal(decode(saved(image, "PNG"), FORM), np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    upright = picture(1)
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transpose that stores an upright picture under an orientation
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for form in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if form == "WEBP" else {}
        found = decode(saved(stored, form, exif=exif.tobytes() if form != "TIFF" else exif, **options), FORM)
        assert np.array_equal(found, np.asarray(upright).transpose(2, 0, 1)), form
    assert look(saved(stored, "PNG", exif=exif.tobytes())).height in (80, 96)


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 80 * 96).round().astype(np.uint16).reshape(80, 96)
    for form in ("PNG", "TIFF"):
        found = decode(saved(Image.fromarray(ramp), form), Form(1, 80, 96))[0]
        assert np.array_equal(found, (ramp / 257).round().astype(np.uint8))
    floats = Image.fromarray(np.linspace(0, 1, 80 * 96, dtype=np.float32).reshape(80, 96))
    assert decode(saved(floats, "TIFF"), Form(1, 80, 96)).max() == 255


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (96, 80), (10, 20, 30, 0))
    half = Image.new("RGBA", (96, 80), (0, 0, 0, 128))
    assert (decode(saved(clear, "PNG"), FORM) == 255).all()
    assert abs(int(decode(saved(half, "PNG"), FORM)[0, 0, 0]) - 127) <= 1
    assert (decode(saved(Image.new("LA", (96, 80), (0, 0)), "PNG"), Form(1, 80, 96)) == 255).all()


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("P", (96, 80), value) for value in (0, 1)]
    for frame in frames:
        frame.putpalette([250, 0, 0, 0, 250, 0])
    found = decode(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), FORM)
    assert found[:, 0, 0].tolist() == [250, 0, 0]


def test_cmyk_has_the_right_colours() -> None:
    red = Image.new("RGB", (96, 80), (255, 0, 0)).convert("CMYK")
    assert np.abs(decode(saved(red, "TIFF"), FORM)[:, 5, 5].astype(int) - [255, 0, 0]).max() < 3


def test_the_shorter_side_is_resized_and_the_centre_cut() -> None:
    wide = Image.new("RGB", (400, 100))
    wide.paste((255, 255, 255), (150, 0, 250, 100))
    whole = decode(saved(wide, "PNG"), Form(3, 50, 50))
    assert (whole[:, :, 1:-1] == 255).all()  # the outermost columns see a little of what lies beyond the cut
    assert (whole[:, :, [0, -1]] > 200).all()
    assert (decode(saved(wide, "PNG"), Form(3, 50, 50, 2.0)) == 255).all()  # twice as large before the cut: the square's middle
    narrow = decode(saved(wide, "PNG"), Form(3, 10, 60))
    assert narrow[:, 5, 30].tolist() == [255] * 3
    assert narrow[:, 5, 0].tolist() == [0] * 3


def test_a_jpeg_decoded_at_a_fraction_is_nearly_the_same() -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((1600, 1200), Image.Resampling.BICUBIC)
    whole = decode(saved(smooth, "PNG"), Form(3, 64, 64)).astype(int)
    drafted = decode(saved(smooth, "JPEG", quality=95), Form(3, 64, 64)).astype(int)
    assert np.abs(whole - drafted).mean() < 4


def test_colour_among_grey_is_noticed_and_grey_stays_grey() -> None:
    with pytest.raises(Colourful):
        decode(saved(picture(0), "PNG"), Form(1, 80, 96))
    with pytest.raises(Colourful):
        decode(saved(picture(0), "JPEG"), Form(1, 80, 96))
    assert decode(saved(picture(0).convert("L"), "JPEG"), Form(1, 80, 96)).shape == (1, 80, 96)


def test_the_form_is_found() -> None:
    grey, colour = Look("L", 28, 28), Look("RGB", 32, 32)
    assert common_form([grey, grey]) == Form(1, 28, 28)
    assert common_form([grey, colour, colour]) == Form(3, 32, 32)
    assert common_form([colour, Look("RGB", 65, 10)]).shape == (3, 224, 224)
    assert common_form([Look("RGB", 500, 400)], 48) == Form(3, 48, 48)


def test_headers_tell_size_after_turning() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert look(saved(picture(0), "JPEG", exif=exif)) == Look("RGB", 96, 80)
    out = io.BytesIO()
    picture(0).convert("L").convert("P").save(out, "PNG")
    assert look(out.getvalue()).mode == "L"

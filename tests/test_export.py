"""A model as ONNX: it answers in ONNX Runtime what nacre answers, alone and for any number of images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from classroom import QUICK, SAME, pictures
from nacre import export, modelfile
from nacre.cli import app
from nacre.errors import NacreError
from nacre.methods import METHODS
from nacre.predicting import Predictor

GREY_METHODS = ["reconstruction"]
PROMPTS = [pytest.param(name, marks=pytest.mark.slow) for name in ("l2p", "dualprompt", "coda-prompt")]


def good(*arguments: str | Path) -> dict:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output + str(result.exception)
    return json.loads(result.stdout)


def taught(folder: Path, method: str, channels: int = 3) -> Path:
    images = pictures(folder / "images", {"cat": 1, "dog": 2, "é \U0001f98a": 3}, channels=channels)
    extra = ["--set", "width=64"] if method in ("acil", "ds-al", "ranpac") else []
    extra += ["--set", "backbone=vit-tiny"] if "pre-training" in METHODS[method].needs else []
    good("learn", folder / "m.nacre", images, *QUICK, *SAME, "--method", method, "--check", "0.4", *extra)
    return folder / "m.nacre"


PRETRAINED = [pytest.param(name, marks=pytest.mark.slow) for name in ("simplecil", "aper", "ranpac", "ease", "slca")]


@pytest.mark.parametrize(
    "method", ["reconstruction", "bic", "podnet", "der", "acil", "ds-al", "fecam", "pass", "slda", *PRETRAINED, *PROMPTS]
)
def test_the_graph_answers_as_nacre_does(method: str, tmp_path: Path) -> None:
    model = taught(tmp_path, method)
    said = good("export", model, tmp_path / "m.onnx")
    assert said["difference"] < export.TOLERANCE
    assert said["checked"] > 0
    learner = modelfile.load(model)[0]
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    # pictures like those it learnt from: on noise the logits of a closed form are so large that float32 has no fourth digit for a share
    pixels = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "images").rglob("*.png"))]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)[:37]
    wanted, novelty = Predictor(learner).scores(images)
    for count in (1, 5, 37):
        found = session.run(None, {"images": images[:count].permute(0, 2, 3, 1).numpy()})
        assert np.allclose(found[0], wanted[:count], atol=1e-4)
        assert novelty is not None
        assert np.allclose(found[1], novelty[:count], atol=1e-3, rtol=1e-3)
    names = {prop.key: prop.value for prop in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(names["classes"]) == ["cat", "dog", "é \U0001f98a"]


def test_a_grey_model_takes_colour_as_pillow_makes_it_grey(tmp_path: Path) -> None:
    model = taught(tmp_path, "reconstruction", channels=1)
    good("export", model, tmp_path / "m.onnx")
    colours = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    grey = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in colours])
    wanted, _ = Predictor(modelfile.load(model)[0]).scores(torch.from_numpy(grey)[:, None])
    found = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"images": colours})
    assert np.allclose(found[0], wanted, atol=1e-4)


def test_it_runs_without_nacre_and_torch(tmp_path: Path) -> None:
    good("export", taught(tmp_path, "reconstruction"), tmp_path / "m.onnx")
    code = (
        "import sys, numpy, onnxruntime; s = onnxruntime.InferenceSession(sys.argv[1]);"
        "p, n = s.run(None, {'images': numpy.zeros((2, 8, 8, 3), 'uint8')}); assert p.shape == (2, 3) and n.shape == (2,);"
        "assert not {'torch', 'nacre'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "m.onnx"], check=True)


def test_int8_is_smaller_and_its_loss_is_told(tmp_path: Path) -> None:
    model = taught(tmp_path, "reconstruction")
    whole, small = good("export", model, tmp_path / "m.onnx"), good("export", model, tmp_path / "q.onnx", "--quantize")
    assert small["bytes"] < whole["bytes"] / 2
    assert small["quantized"]
    session = onnxruntime.InferenceSession(tmp_path / "q.onnx")
    held = modelfile.load(model)[0].knowledge.held
    answers = session.run(None, {"images": held.images.permute(0, 2, 3, 1).numpy()})[0].argmax(1)
    assert small["accuracy"]["after"] == pytest.approx((answers == held.labels.numpy()).mean())


def test_a_graph_that_answers_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = modelfile.load(taught(tmp_path, "reconstruction"))[0]
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(NacreError, match="nothing was written"):
        export.export(learner, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_without_the_libraries_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(NacreError, match=r"pip install 'nacre\[export\]'"):
        export.needed()
    assert METHODS

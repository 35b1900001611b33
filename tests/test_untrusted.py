"""Model files come from anybody: mutated ones are refused in a sentence, or work; they never crash, hang, swell or run code."""

from __future__ import annotations

import copy
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from classroom import QUICK, SAME, pictures
from nacre import editing, files, modelfile
from nacre.cli import app
from nacre.errors import NacreError
from nacre.evaluation import panel
from nacre.evaluation.report import render_evaluation
from nacre.inspection import inspection
from nacre.predicting import Predictor
from nacre.telling import inspection_parts
from nacre.training.runtime import Hardware, Runtime

LEAF = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 10**9]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["../../etc/passwd", "\x1b[2J", "all", "9" * 30, "resnet18", "bias-corrected", "acil", "none"]),
)
JSON = st.recursive(
    LEAF, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)), max_leaves=5
)
RUNTIME = Runtime(Hardware(device="cpu", threads=1))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("ease", "dualprompt", "coda-prompt")]


@pytest.fixture(scope="module", params=["reconstruction", "bic", "der", "acil", *SLOW])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrusted")
    images = pictures(folder / "images", {"cat": 1, "dog": 2})
    asked = ["learn", folder / "m.nacre", images, *QUICK, *SAME, "--method", request.param, "--memory", "3/class"]
    asked += ["--set", "width=64"] if request.param == "acil" else []
    asked += ["--set", "backbone=vit-tiny"] if request.param == "ease" or "prompt" in request.param else []
    asked += ["--set", "bottleneck=4"] if request.param == "ease" else []
    result = CliRunner().invoke(app, [str(item) for item in asked])
    assert result.exit_code == 0, result.output
    return folder / "m.nacre"


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a JSON value has parts."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def put(header: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The header with another value in a place."""
    changed = copy.deepcopy(header)
    inner: Any = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


def mutated(
    draw: st.DataObject, tensors: dict[str, torch.Tensor], header: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A header or a body with something wrong in it, signed anew."""
    kind = draw.draw(st.sampled_from(["header", "header", "header", "drop", "shape", "values", "size", "type", "name"]))
    name = draw.draw(st.sampled_from(sorted(tensors)))
    tensor = tensors[name]
    if kind == "header":
        every = [place for place in places(header) if place]
        return tensors, put(header, draw.draw(st.sampled_from(every)), draw.draw(JSON))
    if kind == "drop":
        return {key: value for key, value in tensors.items() if key != name}, header
    if kind == "name":
        return {(key if key != name else draw.draw(st.text(max_size=9)) + name[:5]): value for key, value in tensors.items()}, header
    if kind == "size":
        name = draw.draw(st.sampled_from([key for key in sorted(tensors) if key.endswith(("_extra_state", "labels"))]))
        numbers = draw.draw(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 50), min_size=0, max_size=6))
        return tensors | {name: torch.tensor(numbers, dtype=torch.int64)}, header
    if kind == "type":
        dtype = draw.draw(st.sampled_from([torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.bfloat16]))
        return tensors | {name: tensor.to(dtype)}, header
    if kind == "shape":
        shape = draw.draw(st.lists(st.integers(0, 5), max_size=5))
        return tensors | {name: torch.zeros(shape, dtype=tensor.dtype)}, header
    value = draw.draw(st.sampled_from([float("nan"), float("inf"), -1.0, 1e38, 0.0]))
    if tensor.is_floating_point():
        return tensors | {name: torch.full_like(tensor, value)}, header
    return tensors | {name: tensor.flip(0) if tensor.ndim else tensor}, header


def use(path: Path) -> None:
    """What a person does with a model; it may refuse in a sentence, and nothing else."""
    try:
        learner, more = modelfile.load(path, RUNTIME)
        if not learner.classes:
            return
        probabilities, _ = Predictor(learner).scores(torch.zeros(2, *learner.spec.shape, dtype=torch.uint8))
        assert probabilities.shape == (2, len(learner.classes))
        inspection_parts(inspection(learner, more, path))
        panel.panel(learner)
        editing.rename(learner, learner.classes[0], "other")
        if len(learner.classes) > 1:
            editing.drop(learner, [learner.classes[0]])
    except NacreError:
        return


def check_many(saved: Path, folder: Path, examples: int) -> None:
    tensors, header = files.read_tensors(saved)
    target = folder / "mutated.nacre"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(max_examples=examples, derandomize=True, database=None, deadline=5000, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def never_breaks(draw: st.DataObject) -> None:
        try:
            files.write_tensors(target, *mutated(draw, tensors, header))
        except (UnicodeEncodeError, ValueError):
            return  # what cannot be written cannot be read
        use(target)

    never_breaks()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 * 2**20  # in kB
    assert {path.name for path in folder.iterdir()} == {"mutated.nacre"}


def test_mutated_models_are_refused_or_work(saved: Path, tmp_path: Path) -> None:
    check_many(saved, tmp_path, 100)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_ten_thousand_mutated_models_are_refused_or_work(saved: Path, tmp_path: Path) -> None:
    check_many(saved, tmp_path, 2500)


@settings(max_examples=200, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_mutated_bytes_are_refused(saved: Path, draw: st.DataObject) -> None:
    data = bytearray(saved.read_bytes())
    for _ in range(draw.draw(st.integers(1, 4))):
        place = draw.draw(st.integers(0, 4000) | st.integers(0, len(data) - 1))
        data[place] ^= draw.draw(st.integers(1, 255))
    target = saved.with_name("bytes.nacre")
    target.write_bytes(bytes(data[: draw.draw(st.sampled_from([len(data), len(data), len(data) // 2, 100]))]))
    if bytes(data) != saved.read_bytes():
        with pytest.raises(NacreError):
            modelfile.load(target, RUNTIME)


def test_a_header_nested_beyond_all_sense_is_refused(saved: Path, tmp_path: Path) -> None:
    from safetensors.torch import save

    text = "[" * 100_000 + "]" * 100_000
    target = tmp_path / "deep.nacre"
    target.write_bytes(save({}, {"nacre": text, "format": "1", "digest": files.digest({}, f"1:{text}")}))
    with pytest.raises(NacreError, match="header that cannot be understood"):
        modelfile.load(target)


@pytest.mark.parametrize("setting", ["width", "epochs"])
def test_sizes_beyond_the_file_are_refused(saved: Path, tmp_path: Path, setting: str) -> None:
    tensors, header = files.read_tensors(saved)
    if header["method"]["name"] != "acil":
        pytest.skip("one method is enough")
    header["method"][setting] = 10**7
    files.write_tensors(tmp_path / "big.nacre", tensors, header)
    with pytest.raises(NacreError):
        modelfile.load(tmp_path / "big.nacre", RUNTIME)


def test_class_names_are_text_wherever_they_are_shown(saved: Path, tmp_path: Path) -> None:
    learner, more = modelfile.load(saved, RUNTIME)
    nasty = "<script>alert(1)</script>[red]../../x"
    editing.rename(learner, "cat", nasty)
    modelfile.save(tmp_path / "n.nacre", learner, more)
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "n.nacre")], env={"COLUMNS": "200"})
    assert nasty in result.stdout
    found = {"images": 1, "accuracy": {"all": 1.0, "old": None, "new": 1.0}, "novelty": None, "called_unknown": None}
    found |= {"classes": [{"name": nasty, "stage": 1, "images": 1, "accuracy": 1.0}], "confusion": [[1]], "confused": []}
    page = render_evaluation(
        {**found, "calibration": {"all": {"ece": 0, "nll": 0, "brier": 0}}}, [nasty], {"model": nasty, "images": "i", "unknowns": None}
    )
    assert "<script>" not in page
    for name in ("\x1b[2J", "two\nlines", " ", "dog"):
        with pytest.raises(NacreError):
            editing.rename(learner, nasty, name)
    assert sys.getrecursionlimit() >= 1000

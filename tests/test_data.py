"""Data from the command line: what people have is found out, described, decoded once, and trained on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from nacre.data import cache
from nacre.data.readers import read
from odd import photographs, picture, readable, saved, tree, unreadable
from test_cli import QUICK, call, refused

FINETUNE = [*QUICK, "--method", "finetune", "--backbone", "small", "--size", "16", "--set", "optim.batch=64"]


def classes(root: Path, count: int = 4, images: int = 10) -> Path:
    for label in range(count):
        (root / f"class {label}").mkdir(parents=True)
        for number in range(images):
            (root / f"class {label}" / f"{number}.png").write_bytes(saved(picture(100 * label + number, 20, 20), "PNG"))
    return root


def test_a_folder_of_odd_photographs_is_named_or_trained_on(tmp_path: Path) -> None:
    root = photographs(tmp_path / "photographs")
    for name, (data, _) in unreadable().items():
        (root / "class 3" / name).write_bytes(data)
    before = tree(root)
    out = tmp_path / "run"
    said = refused("run", *FINETUNE, "--data", str(root), "--out", str(out))
    for name, (_, reason) in unreadable().items():
        assert any(name in line and reason in line for line in said.splitlines())
    assert f"{len(unreadable())} things in" in said
    assert not out.exists()
    result = call("run", *FINETUNE, "--data", str(root), "--protocol", "b4-inc3", "--skip-unreadable", "--out", str(out))
    assert result.exit_code == 0, result.stderr
    assert f"{len(unreadable())} left out of {root.resolve()}" in result.stderr
    assert len([line for line in result.stdout.splitlines() if line.startswith("stage")]) == 3
    measured = json.loads((out / "metrics.json").read_text())
    assert len(measured["results"]["stages"]) == 3
    assert tree(root) == before
    assert len(readable()) * 10 == 220


def test_a_run_over_a_folder_goes_on_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    result = call("run", *FINETUNE, "--data", "pictures", "--protocol", "b0-inc2")
    assert result.exit_code == 0, result.stderr
    (out,) = Path("runs").iterdir()
    assert out.name == "pictures-finetune-seed0"
    assert f'data = "{tmp_path / "pictures"}"' in (out / "config.toml").read_text()
    monkeypatch.chdir("/")
    again = call("run", str(tmp_path / out / "config.toml"), "--out", str(tmp_path / "again"), "--json")
    first = json.loads((tmp_path / out / "metrics.json").read_text())
    assert json.loads(again.stdout)["results"] == first["results"]


def test_settings_of_data_arrive(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[arrival]\nstages = [["class 3", "class 1"], ["class 0"]]\n')
    root = classes(tmp_path / "pictures")
    out = tmp_path / "run"
    settings = ["--set", "augment.cutout=4", "--set", "augment.mix=cutmix", "--set", "augment.policy=trivialaugment"]
    assert call("run", str(recipe), *FINETUNE, "--data", str(root), *settings, "--out", str(out), "--quiet").exit_code == 0
    text = (out / "config.toml").read_text()
    assert "cutout = 4" in text
    assert "shift = 4" in text  # what suits the images stays
    assert 'policy = "trivialaugment"' in text
    assert list(json.loads((out / "metrics.json").read_text())["classes"]) == ["class 3", "class 1", "class 0"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "augment.cutuot=4"], ["augment.cutuot", "Did you mean 'cutout'"]),
        (["--set", "augment.mix=both"], ["augment.mix = 'both'"]),
        (["--set", "arrival.order=cifar"], ["arrival: order is", "numpy-1993"]),
        (["--set", "augment.policy=randaugment"], ["needs colour images"]),
        (["--size", "4"], ["size is 4", "8 pixels"]),
        (["--memory", "5XB"], ["5MB"]),
    ],
)
def test_mistakes_about_data_get_one_message(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    said = refused("run", *QUICK, *arguments, "--quiet", "--out", str(tmp_path / "run"))
    assert all(word in said for word in words), said


def test_a_data_set_is_described_and_drawn(tmp_path: Path) -> None:
    root = classes(tmp_path / "pictures", 3)
    (root / "class 1" / "broken.png").write_bytes(b"")
    sheet = tmp_path / "sheet.png"
    shown = call("data", str(root), "--size", "16", "--out", str(sheet)).stdout
    assert "class 1/broken.png: the file is empty" in shown
    found = json.loads(call("data", str(root), "--size", "16", "--out", str(sheet), "--json").stdout)
    assert (found["classes"], found["train"], found["test"], found["size"], found["channels"]) == (3, 24, 6, [16, 16], 3)
    assert found["counts"] == [[f"class {number}", 8, 2] for number in range(3)]
    source = read(str(root), type(read.__defaults__[0])(size=16, skip_unreadable=True))  # type: ignore[index]
    pixels = source.train.pixels().double() / 255
    np.testing.assert_allclose(found["mean"], pixels.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(found["std"], pixels.transpose(0, 1).flatten(1).std(1, correction=0), atol=1e-6)
    with Image.open(sheet) as image:
        assert image.height > 3 * 32
    plain = sheet.read_bytes()
    assert call("data", str(root), "--size", "16", "--out", str(sheet), "--view", "policy=randaugment", "--view", "cutout=4").exit_code == 0
    assert sheet.read_bytes() != plain
    assert "augment.polcy" in refused("data", str(root), "--size", "16", "--out", str(sheet), "--view", "polcy=randaugment")


def test_protocols_are_listed() -> None:
    shown = call("protocols").stdout
    assert all(word in shown for word in ("b0-incN", "bB-incN", "numpy-1993", "imbalance", "shots", "[['cat', 'dog'], ['ship']]"))


def test_the_cache_is_listed_and_cleared(tmp_path: Path, own_cache: Path) -> None:
    for name in ("first", "second"):
        call("data", str(classes(tmp_path / name, 2)), "--size", "16", "--out", str(tmp_path / "sheet.png"))
    listed = json.loads(call("cache", "--json").stdout)
    assert listed["folder"] == str(own_cache)
    assert {Path(entry["origin"]).name for entry in listed["entries"]} == {"first", "second"}
    assert all(entry["finished"] and entry["images"] == 20 for entry in listed["entries"])
    assert "first" in call("cache").stdout
    key = next(entry["key"] for entry in listed["entries"] if entry["origin"].endswith("first"))
    assert "cache entry" in refused("cache", "--clear", "0123")
    assert call("cache", "--clear", key).exit_code == 0
    assert [Path(entry.origin).name for entry in cache.entries()] == ["second"]
    assert call("cache", "--clear", "all").exit_code == 0
    assert not cache.entries()


LIMIT = """
import os, resource, sys
from pathlib import Path
limit = int(sys.argv[1])
group = Path("/sys/fs/cgroup/memory") / f"nacre-test-{os.getpid()}"
try:  # a control group counts the page cache too, and drops it
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(limit))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    print("control group", file=sys.stderr)
except OSError:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    print("ulimit -d", file=sys.stderr)
from torch import nn
from nacre.cli import app
from nacre.models.backbones import BACKBONES, Backbone, conv_norm
class Glance(Backbone):  # next to no computing, so that the data are what takes time and room
    dim = 16
    def __init__(self, channels):
        Backbone.__init__(self)
        self.stage = conv_norm(channels, 16, stride=8)
    def forward(self, images):
        return (self.stage(images),)
BACKBONES["glance"] = Glance
app(sys.argv[2:], prog_name="nacre")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits on memory")
def test_more_images_than_memory_allows(tmp_path: Path) -> None:
    count, side, limit = 15_000, 128, 700 * 10**6
    assert count * 3 * side * side > limit
    tiny = [saved(Image.new("RGB", (8, 8), (60 * (n % 4), 100, n)), "PNG") for n in range(256)]
    table = pa.table({"image": [tiny[n % 256] for n in range(count)], "label": [n % 4 for n in range(count)]})
    parquet.write_table(table, tmp_path / "big.parquet")
    arguments = ["run", "--method", "finetune", "--backbone", "glance", "--data", str(tmp_path / "big.parquet"), "--quiet"]
    arguments += ["--size", str(side), "--protocol", "b0-inc2", "--epochs", "1", "--out", str(tmp_path / "run"), "--device", "cpu"]
    for setting in ("optim.batch=64", "hardware.precision=fp32", "hardware.layout=contiguous"):
        arguments += ["--set", setting]
    process = subprocess.run([sys.executable, "-c", LIMIT, str(limit), *arguments], capture_output=True, text=True, check=False)
    for group in Path("/sys/fs/cgroup/memory").glob("nacre-test-*"):
        group.rmdir()
    assert process.returncode == 0, process.stderr
    measured = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert measured["results"]["stages"][0]["accuracy"] == 1
    assert process.stderr.split() in (["control", "group"], ["ulimit", "-d"])

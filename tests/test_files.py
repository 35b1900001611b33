"""Files are whole or not there: atomic writing, tensors of every kind, every damage refused in one sentence."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nacre import files
from nacre.errors import NacreError
from nacre.holding import beside, held


def tensors() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "float": torch.randn(3, 4, generator=draw),
        "double": torch.tensor([math.pi, math.nan, math.inf, -0.0], dtype=torch.float64),
        "bf16": torch.randn(5, generator=draw).bfloat16(),
        "half": torch.randn(2, 2, generator=draw).half(),
        "bool": torch.tensor([True, False, True]),
        "uint8": torch.arange(256, dtype=torch.uint8),
        "long": torch.tensor([-(2**62), 2**62]),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3, dtype=torch.uint8),
        "channels last": torch.randn(2, 3, 4, 5, generator=draw).contiguous(memory_format=torch.channels_last),
        "a view": torch.arange(12.0).reshape(3, 4).T[1:],
        "needs gradient": torch.ones(2, requires_grad=True),
        "ünï/cödé": torch.ones(1),
    }


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


def test_tensors_of_every_kind_come_back_bit_equal(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    given = {**tensors(), "shared": shared, "again": shared}
    files.write_tensors(tmp_path / "t", given, {"kind": "test", "n": [1, 2.5, None, "é"]})
    found, header = files.read_tensors(tmp_path / "t")
    assert header == {"kind": "test", "n": [1, 2.5, None, "é"]}
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(found[name]) == bits(tensor)


def test_a_file_without_tensors_is_a_file(tmp_path: Path) -> None:
    files.write_tensors(tmp_path / "t", {}, {"a": 1})
    assert files.read_tensors(tmp_path / "t") == ({}, {"a": 1})


def test_numbers_that_are_none_become_null(tmp_path: Path) -> None:
    header = {"a": math.nan, "b": [math.inf, {"c": (-math.inf, 1.5)}], "d": "nan"}
    files.write_tensors(tmp_path / "t", {}, header)
    want = {"a": None, "b": [None, {"c": [None, 1.5]}], "d": "nan"}
    assert files.read_tensors(tmp_path / "t")[1] == want
    assert json.loads(files.as_json(header, indent=1)) == want
    assert math.isnan(header["a"])  # type: ignore[arg-type]


def test_writing_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "t"
    files.write(path, "first")
    files.write(path, "zweite ü")
    assert path.read_text(encoding="utf-8") == "zweite ü"
    files.write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_writer_that_fails_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    def fail(*_: Any) -> None:
        raise error

    path = tmp_path / "t"
    files.write(path, "old")
    monkeypatch.setattr(os if call == "fsync" else Path, call, fail)
    with pytest.raises(type(error)):
        files.write(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_draft_is_complete_and_synced_before_it_takes_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, replace = os.fsync, Path.replace

    def spy_sync(handle: int) -> None:
        events.append("sync")
        sync(handle)

    def spy_replace(draft: Path, target: Path) -> Path:
        events.append("replace")
        assert draft.parent == target.parent
        assert draft.read_bytes() == b"whole"
        return replace(draft, target)

    monkeypatch.setattr(os, "fsync", spy_sync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    files.write(tmp_path / "t", b"whole")
    assert events[:2] == ["sync", "replace"]
    assert (tmp_path / "t").read_bytes() == b"whole"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small"
    files.write_tensors(path, {"w": torch.tensor([1.0, -2.0])}, {"a": 1})
    return path


def test_every_cut_is_refused(small: Path) -> None:
    whole = small.read_bytes()
    for length in range(len(whole)):
        small.write_bytes(whole[:length])
        with pytest.raises(NacreError):
            files.read_tensors(small)
    small.write_bytes(whole + b"\0")
    with pytest.raises(NacreError):
        files.read_tensors(small)


def test_every_flipped_bit_is_refused(small: Path) -> None:
    whole = small.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        small.write_bytes(damaged)
        with pytest.raises(NacreError):
            files.read_tensors(small)
    small.write_bytes(whole)
    assert files.read_tensors(small)[1] == {"a": 1}


@pytest.mark.parametrize("form", ["2", "999", "", "-1", "1.0", "²", "new"])
def test_other_formats_are_refused(tmp_path: Path, form: str) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "t", {"nacre": "{}", "format": form, "digest": "0"})
    with pytest.raises(NacreError, match="install a newer nacre"):
        files.read_tensors(tmp_path / "t")


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_safetensors_of_others_are_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "t", metadata)
    with pytest.raises(NacreError, match="not nacre's: give a journal"):
        files.read_tensors(tmp_path / "t", "journal")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" * 20, b"\xff" * 64, bytes(64)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(NacreError, match="no journal"):
        files.read_tensors(tmp_path / "t", "journal")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", tmp_path / "missing" / "t"):
        with pytest.raises(NacreError, match="no model file at"):
            files.read_tensors(path)


def test_the_digest_sees_name_type_shape_bytes_and_header() -> None:
    base = {"a": torch.zeros(2, 2)}
    others: list[tuple[dict[str, Tensor], str]] = [
        (base, "i"),
        ({"b": torch.zeros(2, 2)}, "h"),
        ({"a": torch.zeros(2, 2, dtype=torch.int32)}, "h"),
        ({"a": torch.zeros(4)}, "h"),
        ({"a": torch.tensor([[0.0, 0], [0, 1]])}, "h"),
        ({**base, "b": torch.zeros(0)}, "h"),
    ]
    found = {files.digest(*other) for other in [(base, "h"), *others]}
    assert len(found) == len(others) + 1
    assert files.digest({"b": torch.ones(1), "a": torch.zeros(1)}, "h") == files.digest({"a": torch.zeros(1), "b": torch.ones(1)}, "h")


@pytest.mark.parametrize("place", ["nowhere/x.json", "folder", "file/x.json"])
def test_a_place_that_cannot_be_written_is_one_message(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(NacreError, match="cannot write"):
        files.write(tmp_path / place, "text")
    assert not list(tmp_path.rglob("*.part"))


DIES = """
import os, pathlib, signal, sys
from nacre import files, holding
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
model = pathlib.Path(sys.argv[1])
{}
"""


@pytest.mark.parametrize(
    "how", ["files.write(model, 'new')", "files.write(holding.former(model), 'old')", "holding.held(model).__enter__()"]
)
def test_what_a_killed_writer_had_begun_is_cleared_by_the_next(tmp_path: Path, how: str) -> None:
    model = tmp_path / "m[1].nacre"
    others = {"m[1].nacre", ".other.nacre.0123abcd.part", ".m1.nacre.0123abcd.part", ".m[1].nacre.mine.part"}
    for name in others:
        (tmp_path / name).write_text("whole")
    killed = subprocess.run([sys.executable, "-c", DIES.format(how), model], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(set(tmp_path.glob(".*.part"))) == 4
    with held(model):
        pass
    assert {path.name for path in tmp_path.iterdir()} - {beside(model, "lock").name} == others
    assert model.read_text() == "whole"

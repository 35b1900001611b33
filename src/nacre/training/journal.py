"""What a killed run needs to go on, bit-equal: every finished phase of the current stage, and the fit under way.

A method's phases come from a generator; going on runs the generator again and, where a phase is finished, loads its result
in place instead of running it. Each file also holds the stage's log up to its moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nacre import files

Row = dict[str, float | int | str]
"""One epoch's line of the log, by column."""


class Journal:
    """Keeps the current stage's progress in a folder, or nowhere.

    Args:
        folder: for the files; None keeps the log in memory and nothing else.
        every: least seconds between two records of the fit under way; finished phases are always recorded.
        writes: False for processes that only read.
    """

    def __init__(self, folder: Path | None = None, every: float = 30.0, *, writes: bool = True) -> None:
        self.folder = folder
        self.every = every
        self.writes = writes and folder is not None
        self.rows: list[Row] = []
        self._stage = 0
        self._found: set[str] = set()
        self._last = time.monotonic()

    def begin(self, stage: int) -> None:
        """Turn to a stage: take stock of what an earlier process left of it, and drop what other stages left."""
        self._stage, self.rows, self._last = stage, [], time.monotonic()
        if self.writes and self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.iterdir():
                if not path.name.startswith(f"stage{stage}-") or path.name.endswith(".part"):
                    path.unlink()
        self._found = {path.name for path in self.folder.iterdir()} if self.folder is not None and self.folder.is_dir() else set()

    def clear(self) -> None:
        """The stage is safe elsewhere: drop everything."""
        if self.writes and self.folder is not None and self.folder.is_dir():
            for path in self.folder.iterdir():
                path.unlink()
            self.folder.rmdir()

    def finished(self, phase: int) -> dict[str, Tensor] | None:
        """The result of a phase, if it was recorded."""
        found = self._read(f"phase{phase}")
        return found and found[0]

    def finish(self, phase: int, tensors: Mapping[str, Tensor]) -> None:
        """Record the result of a phase."""
        self._write(f"phase{phase}", tensors, {})
        if self.writes and self.folder is not None:
            self._path(f"fit{phase}").unlink(missing_ok=True)

    def ongoing(self, phase: int) -> tuple[dict[str, Tensor], int] | None:
        """State and number of finished epochs of a fit that was cut short, if recorded."""
        found = self._read(f"fit{phase}")
        return found and (found[0], int(found[1]["epochs"]))

    def save(self, phase: int, epochs: int, state: Callable[[], Mapping[str, Tensor]], *, now: bool = False) -> None:
        """Record a fit under way, unless the last record is younger than `every` seconds and it need not be `now`."""
        if self.writes and (now or time.monotonic() - self._last >= self.every):
            self._write(f"fit{phase}", state(), {"epochs": epochs})

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"stage{self._stage}-{name}.safetensors"

    def _read(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if self.folder is None or self._path(name).name not in self._found:
            return None
        tensors, header = files.read_tensors(self._path(name), "journal")
        self.rows = header["rows"]
        return tensors, header

    def _write(self, name: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
        if self.writes:
            files.write_tensors(self._path(name), tensors, {**header, "rows": self.rows})
            self._last = time.monotonic()

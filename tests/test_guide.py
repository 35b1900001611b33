"""The guide: every command on the page is run in an empty folder, in order, and prints what the page says."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parent.parent / "docs" / "guide.md"
BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FRACTION = re.compile(r"([-+]?\d+\.\d+(?:e-?\d+)?)( %)?")
TIMES = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d|about \d+ (?:s|min)|[\d.]+ s\b")
"""What a clock decides."""
POINTS, SHARE, LEAST = 10, 0.1, 0.5
"""By how much fractions of a page may differ: percentages, and other numbers by a share or at least so much. Whole numbers may not."""
UNKNOWN = 20
"""By how much percentages of unknown images may: over six kinds of rounding (instruction sets, threads) they spread by 16 and 20 points."""


def steps() -> list[tuple[str, str]]:
    """Commands with what the page says that they print."""
    blocks = BLOCK.findall(GUIDE.read_text(encoding="utf-8"))
    found = []
    for number, (kind, text) in enumerate(blocks):
        if kind == "sh":
            follows = blocks[number + 1] if number + 1 < len(blocks) else ("sh", "")
            found.append((text, follows[1] if follows[0] == "text" else ""))
    return found


def alike(said: str, printed: str) -> bool:
    """Whether a line says the same: words and whole numbers to the letter, fractions nearly, times not at all."""
    one, other = (" ".join(TIMES.sub("TIME", line).split()) for line in (said, printed))
    if FRACTION.sub("#", one) != FRACTION.sub("#", other):
        return False
    points = UNKNOWN if "unknown" in one else POINTS
    pairs = zip(FRACTION.findall(one), FRACTION.findall(other), strict=True)
    return all(abs(float(a) - float(b)) <= (points if unit else max(LEAST, SHARE * abs(float(a)))) for (a, unit), (b, _) in pairs)


def matches(said: list[str], printed: list[str]) -> bool:
    """Whether lines are as the page says; `...` stands for any number of them."""
    if not said:
        return not printed
    if said[0] == "...":
        return any(matches(said[1:], printed[skip:]) for skip in range(len(printed) + 1))
    return bool(printed) and alike(said[0], printed[0]) and matches(said[1:], printed[1:])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_lines_that_differ_are_told_apart() -> None:
    assert alike("after   all 100.0 %  old      -", "after   all  97.1 %  old      -")
    assert not alike("after   all 100.0 %", "after   all  40.0 %")
    assert not alike("4 new classes (0, 1, 2, 3)", "4 new classes (0, 1, 2)")
    assert not alike("a.png 2 99.9 %", "a.png 3 99.9 %")
    assert alike("m.nacre 606.3 kB, 5.1 s", "m.nacre 610.0 kB, 17.0 s")
    assert not alike("m.nacre 606.3 kB", "m.nacre 806.3 kB")
    assert alike("called unknown: 75.0 %", "called unknown: 91.3 %")
    assert not alike("called unknown: 75.0 %", "called unknown: 50.0 %")
    assert matches(["a", "...", "z"], ["a", "b", "c", "z"])
    assert not matches(["a", "z"], ["a", "b", "z"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_command_of_the_guide_prints_what_it_says(tmp_path: Path) -> None:
    commands = steps()
    assert len(commands) > 12
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PORT": str(free_port()),
        "COLUMNS": "80",
        "OMP_NUM_THREADS": "1",
    }
    for command, said in commands:
        script = f"exec 2>&1\n{command}"
        run = subprocess.run(["bash", "-ec", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, f"{command}\n{run.stdout}"
        wanted, printed = said.splitlines(), run.stdout.splitlines()
        assert matches(wanted, printed), f"{command}\nthe page says:\n{said}\nit printed:\n{run.stdout}"

"""Put what the commands print today into the pages: below every command that ends in `--markdown` stands its table; and draw the figures.

python benchmarks/tables.py [README.md docs/*.md]
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TABLE = re.compile(r"^(nacre [^\n#]*--markdown)([^\n]*\n```\n\n)((?:\|[^\n]*\n)*)", re.MULTILINE)
FIGURE = re.compile(r"`(nacre compare [^`\n]* --out docs/[^`\s]+\.svg)`")


def printed(command: str) -> str:
    """What one of our commands prints today."""
    words = [sys.executable, "-m", "nacre", *shlex.split(command)[1:]]
    return subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def refreshed(found: re.Match[str]) -> str:
    """A command, and its table anew."""
    apart = "" if found.string[found.end() :].startswith("\n") else "\n"  # a table ends where a line is blank
    return f"{found[1]}{found[2]}{printed(found[1])}\n{apart}"


def main() -> None:
    """Every page that is named, or all."""
    pages = [Path(name) for name in sys.argv[1:]] or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        page.write_text(TABLE.sub(refreshed, text), encoding="utf-8")
        for command in FIGURE.findall(text):
            printed(command)


if __name__ == "__main__":
    main()

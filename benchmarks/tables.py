"""Put what the commands print today into the pages: below every command that ends in `--markdown` stands its table.

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


def refreshed(found: re.Match[str]) -> str:
    """A command, and its table anew."""
    words = shlex.split(found[1])[1:]
    done = subprocess.run([sys.executable, "-m", "nacre", *words], cwd=ROOT, check=True, capture_output=True, text=True)
    apart = "" if found.string[found.end() :].startswith("\n") else "\n"  # a table ends where a line is blank
    return f"{found[1]}{found[2]}{done.stdout.strip()}\n{apart}"


def main() -> None:
    """Every page that is named, or all."""
    pages = [Path(name) for name in sys.argv[1:]] or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        page.write_text(TABLE.sub(refreshed, text), encoding="utf-8")


if __name__ == "__main__":
    main()
